"""Optimizer steps: the reference engine, plain autograd and `optimizer.step()`, and the seam where faster ones go in."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from refit.data.inputs import Inputs
from refit.data.live_items import ItemLoader
from refit.data.loaders import ShuffledLoader
from refit.errors import SettingsError, TrainingError
from refit.runtime.devices import autocast
from refit.training.objective import Objective
from refit.training.optimizers import LearningRate, set_learning_rate, take_step

Batch = tuple[Inputs, Tensor]
"""Inputs, for a table `(B, F)`, and targets, for classes `(B,)`."""
ENGINE = "refit.engine"
"""The package of faster engines; without it the reference takes all steps."""


class Taken(NamedTuple):
    """What some steps did."""

    losses: Sequence[Tensor]
    """Mean loss of each batch, before its step; a vector where one call took several steps."""
    num_batches: int
    num_steps: int


def compute_gradients(
    forward: Callable[..., Any],
    parameters: Sequence[Tensor],
    batches: Sequence[Batch],
    *,
    objective: Objective,
    device: torch.device,
    precision: str,
    max_grad_norm: float | None,
) -> tuple[list[Tensor], Tensor | None]:
    """Give each parameter the gradient of the mean loss over the rows of all batches, clipped.

    Returns:
        The mean loss of each batch, and the gradient's 2-norm before clipping, or None if it is not clipped.
    """
    for parameter in parameters:
        parameter.grad = None
    num_rows = sum(len(y) for _, y in batches)
    losses = []
    for x, y in batches:
        with autocast(device, precision):
            loss = objective.batch_loss(forward, x, y)
        (loss * (len(y) / num_rows) if len(batches) > 1 else loss).backward()
        losses.append(loss.detach())
    return losses, None if max_grad_norm is None else nn.utils.clip_grad_norm_(parameters, max_grad_norm)


@dataclass
class Steps:
    """Takes the steps of one epoch, which change the parameters of `model` and the state of `optimizer` in place.

    This is the reference engine: one step a call, by plain autograd. Another is a subclass that overrides `take`, or part of it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    """The rate of a step; steps are counted from 0 over the whole run."""
    loader: ShuffledLoader | ItemLoader
    order: Tensor
    """The loader's rows in the order of training, `(N,)`."""
    epoch: int
    """Counted from 1."""
    arithmetic: dict[str, Any]
    """Options of `compute_gradients`."""
    engine: str
    """`eager`, `compiled` or `auto`."""
    accumulate_batches: int
    """Batches per step."""
    report: Callable[[str], object]
    """Receives lines about what takes long."""
    lr: float = 0.0
    """The rate of the last step."""
    norm: Tensor | None = None
    """2-norm of the last gradient before it was clipped, if it was."""
    compile_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.batch_size = cast(int, self.loader.batch_size)
        self.num_batches = len(self.loader)

    def take(self, num_done: int, step: int) -> Taken:
        """Take the next step, or several.

        Args:
            num_done: Batches of the epoch before it.
            step: Its number, counted from 0 over the whole run.

        Raises:
            TrainingError: The model cannot train on a last batch of one row.
        """
        end, self.lr = min(num_done + self.accumulate_batches, self.num_batches), self.learning_rate(step)
        firsts = range(num_done * self.batch_size, end * self.batch_size, self.batch_size)
        batches = [self.loader.gather_at(self.order, first) for first in firsts]
        try:
            losses, self.norm = self.compute_gradients(batches)
        except ValueError as error:
            if len(batches[-1][1]) > 1:
                raise
            raise TrainingError(
                f"epoch {self.epoch}, batch {end}: expected a model that can train on a single row, as in this batch, "
                f"found {error}; leave out a shorter last batch with loader.drop_last, or change loader.batch_size"
            ) from error
        self.update()
        return Taken(losses, end - num_done, 1)

    def compute_gradients(self, batches: Sequence[Batch]) -> tuple[list[Tensor], Tensor | None]:
        """Compute the gradients of the model, as the function of this name does."""
        return compute_gradients(self.model, [*self.model.parameters()], batches, **self.arithmetic)

    def update(self) -> None:
        """Change the parameters by their gradients, at the rate `lr`."""
        set_learning_rate(self.optimizer, self.lr)
        take_step(self.optimizer)


def find_engine(name: str) -> type[Steps]:
    """Find the class that takes the steps: the fast engine, or the reference if that is missing or not tested with this PyTorch.

    Args:
        name: `eager`, `compiled` or `auto`.

    Raises:
        SettingsError: `compiled` is asked for, and there is no fast engine.
    """
    found = _find_fast()
    if isinstance(found, str):
        if name == "compiled":
            raise SettingsError(f"compute.engine: expected an engine that compiles steps, found {found}; use `eager` or `auto`")
        return Steps
    return found


@cache
def _find_fast() -> type[Steps] | str:
    """The class of the fast engine, or why there is none."""
    try:
        engine = importlib.import_module(ENGINE)
    except ModuleNotFoundError as error:
        if not ENGINE.startswith(cast(str, error.name)):
            raise
        return f"no package {ENGINE}"
    if torch.__version__.partition("+")[0] not in engine.TESTED_VERSIONS:
        problem = f"PyTorch {torch.__version__}, while the fast engine was tested with {', '.join(engine.TESTED_VERSIONS)}"
        warnings.warn(f"training with the reference engine, which is slower: found {problem}", stacklevel=2)
        return problem
    fast: type[Steps] = importlib.import_module(f"{ENGINE}.fast_steps").FastSteps
    return fast
