"""What is fitted on validation rows after training: the temperature of probabilities, and from which one a class is predicted."""

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional

from refit.data.signature import Target
from refit.errors import SettingsError
from refit.settings import TrainingSettings
from refit.training.rare_classes import Monitor, find_positive

MAX_LOG_TEMPERATURE = 3.0


class Tuning(BaseModel):
    """How outputs are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    temperature: float = 1.0
    """What logits are divided by."""
    positive: int | None = None
    """Place of the class that is predicted from `threshold` on; None predicts the likeliest."""
    threshold: float = 0.5
    """A probability."""


def tune(outputs: Tensor, target: Tensor, settings: TrainingSettings) -> Tuning:
    """Fit to validation rows what the settings ask for.

    Shape:
        outputs (N, C), target (N,).
    """
    temperature = fit_temperature(outputs, target) if settings.calibrate else 1.0
    if not settings.tune_threshold:
        return Tuning(temperature=temperature)
    positive = find_positive(target)
    probabilities = (outputs.double() / temperature).softmax(dim=1)[:, positive]
    return Tuning(
        temperature=temperature, positive=positive, threshold=fit_threshold(probabilities, target == positive, settings.monitor)
    )


def refuse_tuning(settings: TrainingSettings, target: Target) -> None:
    """Raise SettingsError for settings that a kind of target has nothing to tune for."""
    if settings.tune_threshold and (target.kind != "classes" or len(target.classes) != 2):
        found = f"{len(target.classes)} classes" if target.kind == "classes" else target.kind
        raise SettingsError(f"training.tune_threshold: expected two classes, found {found}; drop it")


def fit_temperature(outputs: Tensor, target: Tensor) -> float:
    """Find what to divide logits by so that the cross-entropy is least; it is convex in the inverse.

    As if one more row were wrong, so that few rows, all of them right, do not make the network sure of itself.

    Shape:
        outputs (N, C), target (N,).

    Source:
        Guo et al., On Calibration of Modern Neural Networks (2017), equation 9; the smoothed truth is that of Platt, Probabilistic
        Outputs for Support Vector Machines (1999), for any number of classes.
    """
    from scipy.optimize import minimize_scalar

    logits, num_classes = outputs.double(), outputs.shape[1]
    smoothing = num_classes / max(1, num_classes - 1) / (len(target) + 2)  # the share of a row's truth that all classes have

    def measure(log_temperature: float) -> float:
        return functional.cross_entropy(logits / math.exp(log_temperature), target, label_smoothing=smoothing).item()

    found = minimize_scalar(measure, bounds=(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE), method="bounded")
    return math.exp(found.x)


def fit_threshold(probabilities: Tensor, is_positive: Tensor, monitor: Monitor = "f1") -> float:
    """Find from which probability on to predict the positive class so that the score is best: what is monitored, or F1.

    It is half-way between two probabilities that rows have, so that a rounding error changes no prediction.

    Shape:
        both (N,).
    """
    ordered, places = probabilities.sort(descending=True, stable=True)
    hits = is_positive[places].double().cumsum(0)  # (N,): true positives if the first 1, 2, … rows are predicted positive
    predicted = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    num_positive = hits[-1]
    true_negatives = len(ordered) - num_positive - (predicted - hits)
    f1 = 2 * hits / (predicted + num_positive)
    scores = {
        "accuracy": hits + true_negatives,
        "balanced_accuracy": hits / num_positive + true_negatives / (len(ordered) - num_positive).clamp(min=1),
        "macro_f1": f1 + 2 * true_negatives / (2 * len(ordered) - predicted - num_positive).clamp(min=1),
    }.get(monitor, f1)
    is_last = torch.cat([ordered[1:] < ordered[:-1], torch.tensor([True])])  # of equal probabilities
    best = int(torch.where(is_last, scores, -1.0).argmax())
    below = ordered[best + 1] if best + 1 < len(ordered) else torch.zeros((), dtype=ordered.dtype)
    return ((ordered[best] + below) / 2).item()
