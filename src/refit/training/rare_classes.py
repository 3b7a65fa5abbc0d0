"""Weights and metrics that rare classes count in as much as others, or more.

N is the number of rows, C of classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from refit.errors import SettingsError
from refit.texts import list_names

MAX_POINTS = 200
Monitor = Literal["loss", "accuracy", "balanced_accuracy", "macro_f1", "f1", "average_precision"]


def weigh_classes(
    weights: Literal["balanced"] | Mapping[str, float], labels: Sequence[str], counts: Sequence[int]
) -> tuple[float, ...]:
    """Return the weight of each class: `balanced`, inverse to its train rows, 1 on average over them; or as given, else 1.

    Args:
        weights: The setting.
        labels: The classes, as text.
        counts: Train rows of each.

    Raises:
        SettingsError: A weight is given for what is no class.
    """
    if weights == "balanced":
        return tuple(sum(counts) / (len(counts) * max(count, 1)) for count in counts)
    assert not isinstance(weights, str)
    if unknown := [label for label in weights if label not in labels]:
        raise SettingsError(
            f"training.class_weights: expected classes of the target, {list_names(labels)}, found {list_names(unknown)};"
            " correct them"
        )
    return tuple(float(weights.get(label, 1)) for label in labels)


def find_positive(target: Tensor) -> int:
    """Return the rarer class, 0 or 1, among rows of two; the second of two that are as frequent."""
    return int(2 * int(target.sum()) <= len(target))


def measure_balanced_accuracy(confusion: Tensor) -> float:
    """Return the mean share of right rows in each class that has rows.

    Shape:
        confusion: (C, C), rows by true class and predicted class.
    """
    counts = confusion.sum(dim=1)
    return (confusion.diag()[counts > 0] / counts[counts > 0]).double().mean().item()


def measure_macro_f1(confusion: Tensor) -> float:
    """Return the mean F1 of the classes that are true or predicted anywhere; takes what `measure_balanced_accuracy` takes."""
    counts = confusion.sum(dim=0) + confusion.sum(dim=1)
    return (2 * confusion.diag()[counts > 0] / counts[counts > 0]).double().mean().item()


def measure_average_precision(probabilities: Tensor, target: Tensor) -> float | None:
    """Return the average precision of the rarer of two classes, or the mean over more against the rest; None if one has no rows.

    Shape:
        probabilities (N, C), target (N,).
    """
    from torchmetrics.functional.classification import binary_average_precision  # which loads scipy

    num_classes = probabilities.shape[1]
    places = [find_positive(target)] if num_classes == 2 else range(num_classes)
    truths = [(target == place).long() for place in places]
    if not all(map(torch.any, truths)):
        return None
    found = [binary_average_precision(probabilities[:, place], truth) for place, truth in zip(places, truths, strict=True)]
    return torch.stack(found).double().mean().item()


def trace_curve(probabilities: Tensor, target: Tensor) -> list[tuple[float, float]]:
    """Return recall and precision of the rarer of two classes if it is predicted for the likeliest row, the next, and so on.

    They are those of at most `MAX_POINTS` numbers of rows, from the fewest on; takes what `measure_average_precision` takes.
    """
    positive = find_positive(target)
    ordered, places = probabilities[:, positive].sort(descending=True, stable=True)
    hits = (target[places] == positive).double().cumsum(0)
    is_last = torch.cat([ordered[1:] < ordered[:-1], torch.tensor([True])])  # of equal probabilities
    ends = is_last.nonzero()[:, 0]
    ends = ends[torch.linspace(0, len(ends) - 1, min(len(ends), MAX_POINTS)).round().long()]
    recall, precision = hits[ends] / hits[-1].clamp(min=1), hits[ends] / (ends + 1)
    return list(zip(recall.tolist(), precision.tolist(), strict=True))


def count_confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count rows `(N,)` by true class and predicted class, `(C, C)`."""
    return torch.bincount(target * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def _measure_f1(probabilities: Tensor, predicted: Tensor, target: Tensor) -> float:  # noqa: ARG001
    """F1 of the rarer of two classes."""
    positive = find_positive(target)
    hits = ((predicted == positive) & (target == positive)).sum()
    return (2 * hits / ((predicted == positive).sum() + (target == positive).sum()).clamp(min=1)).item()


def _measure_accuracy(probabilities: Tensor, predicted: Tensor, target: Tensor) -> float:  # noqa: ARG001
    return (predicted == target).double().mean().item()


SCORES: Mapping[str, Callable[[Tensor, Tensor, Tensor], float]] = {
    "loss": _measure_accuracy,
    "accuracy": _measure_accuracy,
    "f1": _measure_f1,
    "balanced_accuracy": lambda p, predicted, y: measure_balanced_accuracy(count_confusion(predicted, y, p.shape[1])),
    "macro_f1": lambda p, predicted, y: measure_macro_f1(count_confusion(predicted, y, p.shape[1])),
    "average_precision": lambda p, predicted, y: measure_average_precision(p, y) or 0.0,  # noqa: ARG005
}
"""The score of validation rows by what is monitored, from probabilities `(N, C)`, predictions `(N,)` and targets `(N,)`."""
