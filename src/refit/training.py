"""The training loop: the state that moves, and one epoch of moving it."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from refit.devices import autocast
from refit.errors import TrainingError
from refit.evaluation import compute_logits
from refit.loaders import Batches
from refit.models import build_model
from refit.optimizers import LearningRate, build_optimizer
from refit.randomness import capture_random_state, restore_random_state, seed_everything
from refit.settings import ModelSettings, OptimizerSettings

STEPS_BETWEEN_CHECKS = 200


class EpochLog(BaseModel):
    """What one epoch did."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epoch: int
    """Counted from 1."""
    batch_losses: list[float]
    """Mean cross-entropy of each batch, before its step."""
    train_loss: float
    """Mean over the epoch's rows, each at the weights its batch met."""
    val_loss: float | None
    val_score: float | None
    """Accuracy on the validation rows, after the epoch."""
    lr: float
    """Learning rate of the last step."""
    grad_norm: float
    """2-norm of the last step's gradient, before clipping."""
    rows_per_second: float
    """Training rows, validation left out."""
    seconds: float
    """Training and validation."""


@dataclass
class TrainingState:
    """All that training changes: what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimizer steps taken."""
    random_state: dict[str, Any] = field(default_factory=capture_random_state)
    """The generators, as the next epoch finds them."""


def build_training_state(
    model: ModelSettings, optimizer: OptimizerSettings, num_inputs: int, num_outputs: int, seed: int, device: torch.device
) -> TrainingState:
    """Seed everything, then build the model and its optimizer.

    Raises:
        SettingsError: The user's model factory cannot be used.
    """
    seed_everything(seed)
    module = build_model(model, num_inputs, num_outputs).to(device)
    return TrainingState(module, build_optimizer(optimizer, module.parameters()))


def train_epoch(
    state: TrainingState,
    loader: Batches,
    learning_rate: LearningRate,
    *,
    device: torch.device,
    precision: str = "fp32",
    accumulate_batches: int = 1,
    max_grad_norm: float | None = None,
    val_loader: Batches | None = None,
) -> EpochLog:
    """Train `state` in place for one epoch, from its own random state, then look at the validation rows.

    Args:
        state: What is trained; left half-trained if this raises.
        loader: Batches `(B, F)` and `(B,)` in training order.
        learning_rate: The learning rate of a step, counted from 0 over the whole run.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        accumulate_batches: Batches a step; each weighs by its rows, so that the gradient is that of one large batch.
        max_grad_norm: 2-norm that gradients are scaled down to; None does not clip.
        val_loader: Validation rows; None where there are none.

    Raises:
        TrainingError: A loss or a weight is not finite.
    """
    model, optimizer, epoch = state.model, state.optimizer, state.epoch + 1
    restore_random_state(state.random_state)
    model.train()
    started = time.perf_counter()
    losses: list[Tensor] = []
    sizes: list[int] = []
    for batches in _grouped(loader, accumulate_batches):
        optimizer.zero_grad()
        num_rows = sum(len(y) for _, y in batches)
        for x, y in batches:
            with autocast(device, precision):
                loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            (loss if len(batches) == 1 else loss * (len(y) / num_rows)).backward()
            losses.append(loss.detach())
            sizes.append(len(y))
        if max_grad_norm is not None:
            clipped_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        lr = learning_rate(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        state.step += 1
        if state.step % STEPS_BETWEEN_CHECKS == 0:
            _refuse_non_finite(losses[-STEPS_BETWEEN_CHECKS * accumulate_batches :], epoch, len(losses))
    grad_norm = _gradient_norm(model) if max_grad_norm is None else clipped_norm.item()
    batch_losses = _refuse_non_finite(losses, epoch, len(losses))
    train_seconds = time.perf_counter() - started
    _refuse_non_finite_weights(model, epoch)
    state.random_state = capture_random_state()
    state.epoch = epoch
    val_loss, val_score = (None, None) if val_loader is None else _validate(model, val_loader, device, precision)
    return EpochLog(
        epoch=epoch,
        batch_losses=batch_losses,
        train_loss=math.fsum(loss * size for loss, size in zip(batch_losses, sizes, strict=True)) / sum(sizes),
        val_loss=val_loss,
        val_score=val_score,
        lr=lr,
        grad_norm=grad_norm,
        rows_per_second=sum(sizes) / train_seconds,
        seconds=time.perf_counter() - started,
    )


def best_epoch(val_losses: Sequence[float | None], patience: int | None) -> int:
    """The epoch, counted from 1, whose weights a run keeps: the lowest validation loss with `patience`, else the last."""
    if patience is None:
        return len(val_losses)
    losses = [math.inf if loss is None else loss for loss in val_losses]
    return 1 + losses.index(min(losses))


def has_lost_patience(val_losses: Sequence[float | None], patience: int | None) -> bool:
    """Whether the last `patience` epochs all failed to go below the lowest validation loss before them."""
    return patience is not None and len(val_losses) - best_epoch(val_losses, patience) >= patience


def _grouped(loader: Batches, size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    iterator = iter(loader)
    while batches := list(itertools.islice(iterator, size)):
        yield batches


def _validate(model: nn.Module, loader: Batches, device: torch.device, precision: str) -> tuple[float, float]:
    """Mean loss and accuracy on all rows of `loader`."""
    logits, classes = compute_logits(model, loader, device, precision)
    return functional.cross_entropy(logits, classes).item(), (logits.argmax(dim=1) == classes).double().mean().item()


def _gradient_norm(model: nn.Module) -> float:
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()


def _refuse_non_finite(losses: Sequence[Tensor], epoch: int, num_batches: int) -> list[float]:
    """Return the last `losses` of an epoch's first `num_batches` batches as floats, if they are finite."""
    values: list[float] = torch.stack(list(losses)).tolist()
    for batch, value in enumerate(values, start=num_batches - len(values) + 1):
        if not math.isfinite(value):
            raise TrainingError(
                f"epoch {epoch}, batch {batch}: expected a finite loss, found {value}; "
                "lower optimizer.lr, set training.max_grad_norm, or look for extreme values in the data"
            )
    return values


def _refuse_non_finite_weights(model: nn.Module, epoch: int) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise TrainingError(
                f"epoch {epoch}, last batch: expected finite weights, found others in {name}; "
                "lower optimizer.lr or set training.max_grad_norm"
            )
