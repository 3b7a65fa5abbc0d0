"""How the steps of an epoch run: each as it stands, or several a call in compiled code."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from refit.data.loaders import ShuffledLoader
from refit.engine.backpropagation import build_backpropagation
from refit.engine.compilation import GradientComputation, Steps, can_compile, compile_steps, count_steps_a_call, count_steps_before
from refit.engine.optimizer_updates import build_update
from refit.errors import TrainingError
from refit.training.optimizers import LearningRate
from refit.training.steps import Batch

CALLS_A_GATHER = 8
"""Calls of several compiled steps whose rows are gathered at once: small gathers take 60 ns a row, where large ones take 20."""


class Taken(NamedTuple):
    """What some steps did."""

    losses: Sequence[Tensor]
    """Mean loss of each batch, before its step; a vector where one call took several steps."""
    num_batches: int
    num_steps: int


@dataclass
class EpochSteps:
    """Takes the steps of one epoch, which change the parameters of `model` and the state of `optimizer` in place."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    """Of one group of parameters."""
    learning_rate: LearningRate
    """Of a step, counted from 0 over the whole run."""
    loader: ShuffledLoader
    order: Tensor
    """The loader's rows in the order of training, `(N,)`."""
    epoch: int
    """Counted from 1."""
    compute: GradientComputation
    engine: str
    """`eager`, `compiled`, or `auto`, which turns from the one to the other."""
    accumulate_batches: int
    """Batches a step."""
    report: Callable[[str], object]
    """Told how long compiling took."""
    lr: float = 0.0
    """Of the last step."""
    norm: Tensor | None = None
    """2-norm of the last gradient before it was clipped, if it was."""
    compile_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.batch_size = cast(int, self.loader.batch_size)
        self.num_batches = len(self.loader)
        self._parameters = list(self.model.parameters())
        rows_a_step = self.accumulate_batches * self.batch_size
        self._num_steps_before = count_steps_before(self.engine, self._parameters, rows_a_step)
        self._num_steps_a_call = count_steps_a_call(self._parameters, rows_a_step)
        self._num_batches_a_call = self._num_steps_a_call * self.accumulate_batches
        self._update = build_update(self.optimizer, may_rearrange=self.engine == "eager")
        device, precision = (self.compute.keywords[name] for name in ("device", "precision"))
        num_rows = len(self.order)
        sizes = {min(self.batch_size, num_rows), num_rows % self.batch_size or self.batch_size}
        self._backpropagate = build_backpropagation(self.model, sizes, device, precision)
        self._rows: Iterator[Batch] | None = None
        self._program: Steps | None = None

    def take(self, num_done: int, step: int) -> Taken:
        """Take the next step, or as many as a compiled call takes; the epoch's last is never compiled, for its gradient's sake.

        Args:
            num_done: Batches of the epoch before it.
            step: Its number, counted from 0 over the whole run.

        Raises:
            TrainingError: The model cannot train on a last batch of one row.
            SettingsError: The model cannot be compiled.
        """
        # Where calls begin must not depend on pauses. The last batch, which may be short, is in none.
        is_call = num_done % self._num_batches_a_call == 0 and num_done + self._num_batches_a_call < self.num_batches
        if is_call and step >= self._num_steps_before and can_compile(self.engine, self.model, self.optimizer):
            taken = self._take_compiled(num_done, step)
            if taken is not None:
                return taken
        return self._take_one(num_done, step)

    def _take_one(self, num_done: int, step: int) -> Taken:
        end, self.lr = min(num_done + self.accumulate_batches, self.num_batches), self.learning_rate(step)
        firsts = range(num_done * self.batch_size, end * self.batch_size, self.batch_size)
        batches = [self.loader.gather(self.order[first : first + self.batch_size]) for first in firsts]
        try:
            losses, self.norm = self.compute(self.model, self._parameters, batches, backpropagate=self._backpropagate)
        except ValueError as error:
            if len(batches[-1][1]) > 1:
                raise
            raise TrainingError(
                f"epoch {self.epoch}, batch {end}: expected a model that trains on one row, as this batch has no more, "
                f"found {error}; leave a last, shorter batch out by loader.drop_last, or change loader.batch_size"
            ) from error
        self._update(self.lr)
        return Taken(losses, end - num_done, 1)

    def _take_compiled(self, num_done: int, step: int) -> Taken | None:
        """A call of compiled steps, or None if `auto` does without."""
        lrs = [self.learning_rate(step + number) for number in range(self._num_steps_a_call)]
        if self._rows is None:
            group_size, num_groups = self._num_batches_a_call * self.batch_size, CALLS_A_GATHER if self._num_steps_a_call > 1 else 1
            self._rows = self.loader.gather_groups(self.order[num_done * self.batch_size :], group_size, num_groups)
        rows = next(self._rows)
        if self._program is None:
            started = time.perf_counter()
            self._program = compile_steps(
                self.engine, self.model, self.optimizer, rows, len(lrs), self.batch_size, self.compute, self.report
            )
            self._update = build_update(self.optimizer, may_rearrange=False)  # its state may lie elsewhere now
            self.compile_seconds += time.perf_counter() - started
            if self._program is None:
                return None
        self.lr = lrs[-1]
        return Taken(self._program(rows, lrs), self._num_batches_a_call, len(lrs))
