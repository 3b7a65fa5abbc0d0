"""How good a model is on a split: softmax, argmax, and the metrics of a classifier."""

from collections.abc import Sized
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from refit.data.loaders import Batches
from refit.errors import TrainingError
from refit.runtime.devices import autocast
from refit.runtime.randomness import give_way

CALIBRATION_BINS = 15


class ClassMetrics(BaseModel):
    """One class against the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Rows of this class."""


class Metrics(BaseModel):
    """What a model scored on the rows of one split; every row counts the same, whatever batch it came in."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int
    num_correct: int
    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    roc_auc: float | None
    """Area under the ROC curve, each class against the rest, averaged over classes; None where a class has no rows."""
    calibration_error: float
    """Expected calibration error over 15 bins of confidence (Guo et al., 2017, equation 3)."""
    classes: list[ClassMetrics]
    confusion: list[list[int]]
    """Rows by true class (first index) and predicted class (second index)."""


def compute_logits(model: nn.Module, loader: Batches, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    """Return the logits `(N, C)` in fp32 and the classes `(N,)` of all rows of `loader`, on the CPU; draws nothing."""
    was_training = model.training
    model.eval()
    # One tensor from the start: small ones, kept between the large ones of each batch, would leave holes of their size in memory.
    logits, classes = torch.empty(0), torch.empty(len(cast(Sized, loader.dataset)), dtype=torch.int64)
    end = 0
    for x, y in loader:
        with torch.inference_mode(), autocast(device, precision):
            batch_logits = model(x.to(device))
        if end == 0:
            logits = torch.empty(len(classes), batch_logits.shape[1])
        start, end = end, end + len(y)
        logits[start:end] = batch_logits
        classes[start:end] = y
        give_way()
    model.train(was_training)
    return logits, classes


def refuse_non_finite_logits(logits: Tensor, use: str) -> None:
    """Raise TrainingError for the first row whose logits `(N, C)` are not finite; `use` says what the rows are for."""
    is_broken = ~torch.isfinite(logits).all(dim=1)
    if is_broken.any():
        row = int(is_broken.nonzero()[0]) + 1
        raise TrainingError(
            f"row {row} of the {use} rows: expected finite logits, found {logits[row - 1].tolist()}; "
            "look for extreme values in the row, or lower optimizer.lr"
        )


def evaluate(model: nn.Module, loader: Batches, labels: list[str], device: torch.device, precision: str) -> Metrics:
    """Compute the metrics of `model` on all rows of `loader`; `labels` are the names of the C classes.

    Raises:
        TrainingError: What the model gives for a row is not finite.
    """
    logits, classes = compute_logits(model, loader, device, precision)
    refuse_non_finite_logits(logits, "evaluation")
    return compute_metrics(logits, classes, labels)


def compute_metrics(logits: Tensor, classes: Tensor, labels: list[str]) -> Metrics:
    """Compute the metrics of finite logits `(N, C)` whose true classes `(N,)` are known."""
    from torchmetrics.functional import classification  # which loads scipy, where that is installed

    probabilities = functional.softmax(logits, dim=1)
    predicted = probabilities.argmax(dim=1)
    num_classes = len(labels)
    confusion = classification.multiclass_confusion_matrix(predicted, classes, num_classes)
    by_class = [
        metric(predicted, classes, num_classes, average="none").tolist()
        for metric in (classification.multiclass_precision, classification.multiclass_recall, classification.multiclass_f1_score)
    ]
    supports = confusion.sum(dim=1).tolist()
    # One class after the other, which takes a class's memory, not that of all.
    areas = [
        classification.binary_auroc(probabilities[:, place], (classes == place).long())
        for place in range(num_classes if all(supports) else 0)
    ]
    return Metrics(
        num_rows=len(classes),
        num_correct=int((predicted == classes).sum()),
        loss=functional.cross_entropy(logits, classes).item(),
        accuracy=(predicted == classes).double().mean().item(),
        roc_auc=torch.stack(areas).mean().item() if areas else None,
        calibration_error=classification.multiclass_calibration_error(
            probabilities, classes, num_classes, n_bins=CALIBRATION_BINS
        ).item(),
        classes=[
            ClassMetrics(label=label, precision=precision, recall=recall, f1=f1, support=support)
            for label, precision, recall, f1, support in zip(labels, *by_class, supports, strict=True)
        ],
        confusion=confusion.tolist(),
    )
