"""The training loop: the state that training changes, and one epoch of it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from refit.data.live_items import ItemLoader
from refit.data.loaders import Batches, ShuffledLoader
from refit.data.signature import Signature
from refit.errors import SettingsError, TrainingError
from refit.models.building import build_model
from refit.refs import Ref
from refit.runtime.randomness import capture_random_state, give_way, holding_generators, restore_random_state, seed_everything
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.evaluation import compute_outputs, refuse_non_finite_outputs
from refit.training.objective import Objective
from refit.training.objectives import build_objective
from refit.training.optimizers import LearningRate, build_optimizer, group_parameters
from refit.training.steps import Steps, find_engine

LOSSES_BETWEEN_CHECKS = 200
FEW_BATCHES = 32


class EpochLog(BaseModel):
    """What one epoch did."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epoch: int
    """Counted from 1."""
    batch_losses: list[float]
    """Mean loss of each batch, before its step."""
    train_loss: float
    """Mean over the epoch's rows, each with the weights before its batch's step."""
    val_loss: float | None
    val_score: float | None
    """The objective's score of the validation rows, after the epoch: for classes, the accuracy."""
    lr: float
    """Learning rate of the last step."""
    grad_norm: float
    """2-norm of the last step's gradient, before clipping."""
    rows_per_second: float
    """Of training, without validation."""
    seconds: float
    """Of training and validation, without compiling."""


@dataclass
class PartialEpoch:
    """How far an epoch has come."""

    first_random_state: dict[str, Any]
    """The generators as the epoch found them: the order of its rows comes from there."""
    batch_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class TrainingState:
    """All that training changes: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps taken."""
    random_state: dict[str, Any] = field(default_factory=capture_random_state)
    """The generators, as the next batch finds them."""
    partial: PartialEpoch | None = None
    """The epoch in progress; None between epochs."""
    frozen: Ref | None = None
    """Where the parameters that are not trained are kept; None if there are none, or if they change nevertheless."""
    losses: list[float] = field(default_factory=list)
    """Of each epoch, if the learning rate goes by them: of validation rows or, where there are none, in training."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def num_batches(self) -> int:
        """Batches done of the epoch in progress."""
        return 0 if self.partial is None else len(self.partial.batch_losses)


@holding_generators()
def build_training_state(
    model: ModelSettings,
    optimizer: OptimizerSettings,
    signature: Signature,
    seed: int,
    device: torch.device | Callable[[nn.Module], torch.device],
    objective: Objective | None = None,
) -> TrainingState:
    """Seed everything, then build the model on the CPU, move it to its device, and build its optimizer.

    Args:
        model: What to build.
        optimizer: What updates its parameters.
        signature: What the model is told of its inputs.
        seed: Of all generators.
        device: Where to train, or a function that chooses that for the model.
        objective: What it is trained for; None takes that of the kind of target.

    Raises:
        SettingsError: The user's model factory cannot be used.
    """
    seed_everything(seed)
    module = build_model(model, signature)
    module = module.to(device if isinstance(device, torch.device) else device(module))
    return TrainingState(
        module, build_optimizer(optimizer, group_parameters(optimizer, module)), objective or build_objective(signature.target)
    )


@holding_generators(for_an_epoch=True)
def train_epoch(
    state: TrainingState,
    loader: ShuffledLoader | ItemLoader,
    learning_rate: LearningRate,
    *,
    device: torch.device,
    precision: str = "fp32",
    engine: str = "eager",
    accumulate_batches: int = 1,
    max_grad_norm: float | None = None,
    val_loader: Batches | None = None,
    should_pause: Callable[[], bool] = lambda: False,
    report: Callable[[str], object] = lambda _: None,
) -> EpochLog | None:
    """Train `state` in place to the end of its epoch, from its own random state, then evaluate the validation rows.

    Other threads that train wait until it ends; those that load a model get the generators between two steps.

    Args:
        state: What is trained; left half-trained if this raises.
        loader: Batches in training order, for a table `(B, F)` and `(B,)`.
        learning_rate: The learning rate of a step; steps are counted from 0 over the whole run.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        engine: `eager`, `compiled`, or `auto`, which changes from the first to the second.
        accumulate_batches: Batches per step; each is weighted by its rows, so that the gradient is that of one large batch.
        max_grad_norm: 2-norm that gradients are scaled down to; None does not clip.
        val_loader: Validation rows; None where there are none.
        should_pause: Asked after every step, or call of compiled steps, but the epoch's last; if it returns True, training stops
            there. The same call goes on later, from this state or from a checkpoint of it, and gives the same bits.
        report: Receives a line about how long compiling took.

    Returns:
        The epoch's log, or None if it was paused.

    Raises:
        TrainingError: A loss or a weight is not finite, or the model cannot train on a last batch of one row.
        SettingsError: The model cannot be compiled.
    """
    model, epoch = state.model, state.epoch + 1
    state.partial = partial = state.partial or PartialEpoch(state.random_state)
    started = time.perf_counter()
    order = _draw_order(loader, state, partial)
    is_plain = (
        isinstance(loader, ShuffledLoader) and isinstance(loader.x, Tensor) and all(p.requires_grad for p in model.parameters())
    )
    if engine == "compiled" and not is_plain:
        raise SettingsError(
            "compute.engine: expected `eager` or `auto`, as items are read one by one, are no single tensor, or parameters are"
            " frozen, found `compiled`; change it"
        )
    steps = (find_engine(engine) if is_plain else Steps)(
        model=model,
        optimizer=state.optimizer,
        learning_rate=learning_rate,
        loader=loader,
        order=order,
        epoch=epoch,
        arithmetic={"objective": state.objective, "device": device, "precision": precision, "max_grad_norm": max_grad_norm},
        engine=engine,
        accumulate_batches=accumulate_batches,
        report=report,
    )
    losses: list[Tensor] = []
    num_done = len(partial.batch_losses)

    model.train()
    while num_done < steps.num_batches:
        taken = steps.take(num_done, state.step)
        losses += taken.losses
        num_done += taken.num_batches
        state.step += taken.num_steps
        if len(losses) >= LOSSES_BETWEEN_CHECKS:
            _move_losses(losses, partial, epoch, loader)
        give_way()
        if num_done < steps.num_batches and should_pause():
            _move_losses(losses, partial, epoch, loader)
            state.random_state = capture_random_state()
            partial.seconds += time.perf_counter() - started - steps.compile_seconds
            return None
    grad_norm = _gradient_norm(model) if steps.norm is None else steps.norm.item()
    _move_losses(losses, partial, epoch, loader)
    _refuse_non_finite_weights(model, epoch)
    state.random_state, state.epoch, state.partial = capture_random_state(), epoch, None
    started += steps.compile_seconds
    train_seconds = partial.seconds + time.perf_counter() - started
    val_loss, val_score = (None, None) if val_loader is None else _validate(model, val_loader, state.objective, device, precision)
    batch_size, num_rows = steps.batch_size, len(order)
    sizes = (min(batch_size, num_rows - first) for first in range(0, num_rows, batch_size))
    weighted = (loss * size for loss, size in zip(partial.batch_losses, sizes, strict=True))
    return EpochLog(
        epoch=epoch,
        batch_losses=partial.batch_losses,
        train_loss=math.fsum(weighted) / num_rows,
        val_loss=val_loss,
        val_score=val_score,
        lr=steps.lr,
        grad_norm=grad_norm,
        rows_per_second=num_rows / train_seconds,
        seconds=partial.seconds + time.perf_counter() - started,
    )


def check_deadline(deadline: float, epoch: int, num_batches: int) -> None:
    """Raise TrainingError if the time of a run, on the clock of `time.monotonic`, is over after that many batches of an epoch."""
    if time.monotonic() >= deadline:
        raise TrainingError(
            f"epoch {epoch}, batch {num_batches}: training.timeout_seconds have passed; "
            "everything trained so far is kept, and the same command continues from there"
        )


class PauseClock:
    """Says when a long epoch pauses for a checkpoint, and when the run has to stop.

    Args:
        every_seconds: Between checkpoints inside an epoch.
        deadline: When to stop, on the clock of `time.monotonic`; None never stops.
    """

    def __init__(self, every_seconds: float, deadline: float | None) -> None:
        self.every_seconds = every_seconds
        self.deadline = math.inf if deadline is None else deadline
        self.pause_at = min(time.monotonic() + every_seconds, self.deadline)

    def is_due(self) -> bool:
        """Whether it is time to pause."""
        return time.monotonic() >= self.pause_at

    def restart(self, state: TrainingState) -> None:
        """Set the next pause.

        Raises:
            TrainingError: The deadline has passed.
        """
        check_deadline(self.deadline, state.epoch + 1, state.num_batches)
        self.pause_at = min(time.monotonic() + self.every_seconds, self.deadline)


def count_steps(num_batches: int, accumulate_batches: int, num_epochs: int) -> int:
    """Optimizer steps in a run; the last step of an epoch may have fewer batches."""
    return -(-num_batches // accumulate_batches) * num_epochs


def best_epoch(val_losses: Sequence[float | None]) -> int:
    """The epoch, counted from 1, whose weights a run keeps: the first of the lowest validation loss, or the last without any."""
    if None in val_losses:
        return len(val_losses)
    losses = [math.inf if loss is None or math.isnan(loss) else loss for loss in val_losses]
    return 1 + losses.index(min(losses))


def choose_patience(patience: int | Literal["auto"] | None, num_batches: int) -> int | None:
    """Return after how many epochs without a lower validation loss training stops, given the batches of an epoch.

    On the tables by which the preset `table` was chosen, 16 lose 3 % of the loss at most; but where batches are few, epochs go by
    noise.
    """
    return patience if patience != "auto" else 16 if num_batches >= FEW_BATCHES else 32


def has_lost_patience(val_losses: Sequence[float | None], patience: int | None) -> bool:
    """Whether the last `patience` epochs all failed to go below the lowest validation loss before them."""
    return patience is not None and len(val_losses) - best_epoch(val_losses) >= patience


def _draw_order(loader: ShuffledLoader | ItemLoader, state: TrainingState, partial: PartialEpoch) -> Tensor:
    """The rows of the epoch in its own order; leaves the generators where its next batch finds them."""
    restore_random_state(partial.first_random_state)
    order = loader.draw_order(state.epoch + 1)
    if partial.batch_losses:
        restore_random_state(state.random_state)
    return order


def _validate(model: nn.Module, loader: Batches, objective: Objective, device: torch.device, precision: str) -> tuple[float, float]:
    """Mean loss and score on all rows of `loader`."""
    outputs, target = compute_outputs(model, loader, device, precision, objective.compute)
    refuse_non_finite_outputs(outputs, "validation")
    return objective.loss(outputs, target).item(), objective.score(outputs, target)


def _gradient_norm(model: nn.Module) -> float:
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


def _move_losses(losses: list[Tensor], partial: PartialEpoch, epoch: int, loader: ShuffledLoader | ItemLoader) -> None:
    """Move losses from the device to the log, if they are finite."""
    for value in torch.hstack(losses).cpu().tolist() if losses else []:
        partial.batch_losses.append(value)
        if not math.isfinite(value):
            number = len(partial.batch_losses)
            item = loader.name_non_finite(number) if isinstance(loader, ItemLoader) else None
            raise TrainingError(
                f"epoch {epoch}, batch {number}: expected a finite loss, found {value}; "
                + (
                    f"{item} has NaN or infinite numbers, mend it or leave it out"
                    if item
                    else "lower optimizer.lr, set training.max_grad_norm, or look for extreme values in the data"
                )
            )
    losses.clear()


def _refuse_non_finite_weights(model: nn.Module, epoch: int) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(
                f"epoch {epoch}, last batch: expected finite weights, found infinite ones or NaN in {name}; "
                "lower optimizer.lr or set training.max_grad_norm"
            )
