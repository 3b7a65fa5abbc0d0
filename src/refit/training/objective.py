"""What a model is trained for: its loss, what its outputs say, and how good that is, for each kind of target.

N is the number of rows, C of classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from refit.data.inputs import Inputs, Mask, apply_model
from refit.training.influences import SPREAD
from refit.training.metrics import ClassificationMetrics, ClassMetrics, Metrics, has_rare_class
from refit.training.rare_classes import (
    SCORES,
    Monitor,
    measure_average_precision,
    measure_balanced_accuracy,
    measure_macro_f1,
    trace_curve,
)
from refit.training.tuning import Tuning

CALIBRATION_BINS = 15
MIN_PROBABILITY = 0.01
"""The least probability of a true class in a log likelihood. With less, a single row could outweigh hundreds."""

Labels = NDArray[np.str_] | NDArray[np.object_] | Sequence[str]
Scores = NDArray[np.float64]
Score = Literal["accuracy", "log_likelihood", "brier", "balanced_accuracy", "macro_f1", "f1", "average_precision", "negative_loss"]
"""Of classes, all but the last; of all else, the last, the negative loss of a row alone."""

SPANS: dict[Score, float] = {"accuracy": 1.0, "log_likelihood": -math.log(MIN_PROBABILITY), "brier": 1.0}
"""How far two scores of a row may be apart."""


@dataclass(frozen=True)
class RowScores:
    """What a model gets for each of N rows: its score, higher being better, and whether it is right; each `(N,)`."""

    scores: Scores
    is_right: Mask


Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of a batch to a scalar to differentiate, their mean."""


class Objective(Protocol):
    """All that depends on the kind of target."""

    baseline: ClassVar[str | None]
    """What a model must beat to be worth anything, in words."""

    def batch_loss(self, forward: Callable[..., Any], x: Inputs, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar to differentiate, from the model's inputs."""

    def compute(self, model: nn.Module, x: Inputs, y: Tensor) -> Tensor:
        """Return the outputs of a batch by which its examples are scored, `(B, …)`."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar to differentiate."""

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Score validation rows for people, higher being better."""

    def measure(self, outputs: Tensor, target: Tensor) -> Metrics:
        """Compute all metrics of finite outputs."""

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is predicted for each row, `(N,)`, and how sure that is, as tensors."""

    def predict(self, outputs: Tensor) -> NDArray[Any]:
        """Return what is predicted for each row, `(N,)`, as the target column writes it."""

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the columns of a table of predictions, each `(N,)`."""

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:
        """Score each row, for the decision about a promotion."""

    def present(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as the user's own metrics take them."""


class OfOutputs:
    """An objective whose loss and scores come from the model's outputs alone."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        raise NotImplementedError

    def present(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as they are."""
        return outputs, target

    def batch_loss(self, forward: Callable[..., Any], x: Inputs, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.loss(apply_model(forward, x), y)

    def compute(self, model: nn.Module, x: Inputs, y: Tensor) -> Tensor:  # noqa: ARG002
        """Return the outputs of a batch."""
        return apply_model(model, x)


@dataclass(frozen=True)
class Classification(OfOutputs):
    """One of C classes, by softmax.

    Shape: outputs are logits `(N, C)`, or in training `(N, K, C)` of K members, targets the places of classes `(N,)`, int64.
    """

    classes: tuple[bool | int | str, ...]
    baseline: ClassVar[str | None] = "majority class"
    monitor: Monitor = field(default="loss", kw_only=True)
    """What `score` measures: of `loss`, the accuracy."""
    tuning: Tuning = field(default=Tuning(), kw_only=True)
    """How outputs are read, where that was fitted on validation rows."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return functional.cross_entropy(*join_members(outputs, target))

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Return what is monitored, or the accuracy."""
        predicted, probabilities = self.answer(outputs)
        if self.monitor == "average_precision":
            probabilities = self.find_probabilities(outputs).float()
        return SCORES[self.monitor](probabilities, predicted, target)

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place of the predicted class, `(N,)`, and the probability of each, `(N, C)`."""
        outputs = self.scale(outputs)
        probabilities, positive = outputs.softmax(dim=1), self.tuning.positive
        if positive is None:
            return outputs.argmax(dim=1), probabilities
        is_positive = probabilities[:, positive] >= self.tuning.threshold
        if len(self.classes) == 2:
            return torch.where(is_positive, positive, 1 - positive), probabilities
        others = outputs.index_fill(1, torch.tensor([positive]), -math.inf).argmax(dim=1)  # some that the model does not know
        return torch.where(is_positive, positive, others), probabilities

    def find_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each class, `(N, C)`, float64: in single precision, those that are equal then rank alike."""
        return self.scale(outputs.double()).softmax(dim=1)

    def scale(self, outputs: Tensor) -> Tensor:
        """Return the logits at their temperature."""
        return outputs if self.tuning.temperature == 1 else outputs / self.tuning.temperature

    def predict(self, outputs: Tensor) -> NDArray[Any]:
        """Return the likeliest class of each row."""
        predicted: NDArray[Any] = self.labels[self.answer(outputs)[0].numpy()]
        return predicted

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""
        return ["class", *(f"probability of {label}" for label in self.classes)]

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the likeliest class and the probability of each."""
        places, probabilities = (part.numpy() for part in self.answer(outputs))
        return dict(zip(self.list_columns(), [self.labels[places], *probabilities.T], strict=True))

    @property
    def labels(self) -> NDArray[Any]:
        """The classes, `(C,)`, as the target column writes them."""
        is_unsigned = any(isinstance(label, int) and label >= 2**63 for label in self.classes)
        return np.array(self.classes, np.uint64 if is_unsigned else None)  # numpy alone would take floats

    def measure(self, outputs: Tensor, target: Tensor) -> ClassificationMetrics:
        """Compute the metrics of finite logits."""
        from torchmetrics.functional import classification  # which loads scipy

        predicted, probabilities = self.answer(outputs)
        num_classes = len(self.classes)
        confusion = classification.multiclass_confusion_matrix(predicted, target, num_classes)
        by_class = [
            metric(predicted, target, num_classes, average="none").tolist()
            for metric in (
                classification.multiclass_precision,
                classification.multiclass_recall,
                classification.multiclass_f1_score,
            )
        ]
        supports = confusion.sum(dim=1).tolist()
        # One class after the other, which takes the memory of one class, not of all.
        areas = [
            classification.binary_auroc(probabilities[:, place], (target == place).long())
            for place in range(num_classes if all(supports) else 0)
        ]
        return ClassificationMetrics(
            num_rows=len(target),
            num_correct=int((predicted == target).sum()),
            loss=functional.cross_entropy(self.scale(outputs), target).item(),
            accuracy=(predicted == target).double().mean().item(),
            roc_auc=torch.stack(areas).mean().item() if areas else None,
            balanced_accuracy=measure_balanced_accuracy(confusion),
            macro_f1=measure_macro_f1(confusion),
            average_precision=measure_average_precision(self.find_probabilities(outputs).float(), target),
            calibration_error=classification.multiclass_calibration_error(
                probabilities, target, num_classes, n_bins=CALIBRATION_BINS
            ).item(),
            curve=trace_curve(probabilities, target) if num_classes == 2 and has_rare_class(supports) else [],
            classes=[
                ClassMetrics(label=str(label), precision=precision, recall=recall, f1=f1, support=support)
                for label, precision, recall, f1, support in zip(self.classes, *by_class, supports, strict=True)
            ],
            confusion=confusion.tolist(),
        )

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:
        """Score each row by the probabilities of its classes, in double precision."""
        probabilities = self.find_probabilities(outputs).numpy()
        predicted = None if self.tuning.positive is None else self.answer(outputs)[0].numpy()
        return score_probabilities(probabilities, target.numpy(), score, predicted)


@dataclass(frozen=True)
class OwnLoss(Classification):
    """One of C classes, by softmax, learned by a loss of the user's own. Metrics and scores are those of `Classification`."""

    function: Loss

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return what the user's function does."""
        return self.function(*join_members(outputs, target))


@dataclass(frozen=True)
class WeightedClassification(Classification):
    """One of C classes, by softmax, learned with a weight for each class. Metrics and scores are those of `Classification`."""

    weights: tuple[float, ...]

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean over rows of the cross-entropy times the weight of the true class, so that batches add up."""
        outputs, target = join_members(outputs, target)
        losses = functional.cross_entropy(outputs, target, reduction="none")
        return (losses * losses.new_tensor(self.weights)[target]).mean()


@dataclass(frozen=True)
class SmoothedClassification(Classification):
    """One of C classes, by softmax, learned as if a share of each row's truth were spread over all classes.

    Metrics, scores and the loss of validation rows are those of `Classification`.

    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision (2016), section 7.
    """

    smoothing: float

    def batch_loss(self, forward: Callable[..., Any], x: Inputs, y: Tensor) -> Tensor:
        """Return the mean cross-entropy with the smoothed truth."""
        return functional.cross_entropy(*join_members(apply_model(forward, x), y), label_smoothing=self.smoothing)


def join_members(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Let each row come once for each of K members, if outputs are those of members.

    Shape: `(B, C)` or `(B, K, C)`, and `(B, …)`; returns `(B, C)` or `(B K, C)`, and `(B, …)` or `(B K, …)`.
    """
    return (outputs, target) if outputs.dim() < 3 else (outputs.flatten(0, 1), target.repeat_interleave(outputs.shape[1], dim=0))


def score_probabilities(
    probabilities: Scores, y: NDArray[np.intp], score: Score, predicted: NDArray[np.intp] | None = None
) -> RowScores:
    """Score rows by the probabilities of their classes.

    `accuracy` gives 1 where the predicted class, or else the likeliest, is right and else 0; `log_likelihood` the log probability
    of the true class, which is taken to be `MIN_PROBABILITY` at least; `brier` 1 less half the squared distance between
    probabilities and truth, in [0, 1]. Others are metrics of all rows together, spread over them as `influences` does.

    Shape:
        probabilities (N, C), y and predicted (N,).

    Source:
        Brier, Verification of forecasts expressed in terms of probability (1950).
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    is_right = predicted == y
    if score in SPREAD:
        return RowScores(SPREAD[score](probabilities, predicted, y), is_right)
    of_truth = np.take_along_axis(probabilities, y[:, None], axis=1)[:, 0]
    if score == "accuracy":
        return RowScores(is_right.astype(float), is_right)
    if score == "log_likelihood":
        return RowScores(np.log(np.fmax(of_truth, MIN_PROBABILITY)), is_right)
    return RowScores(1 - ((probabilities**2).sum(axis=1) - of_truth**2 + (1 - of_truth) ** 2) / 2, is_right)


def score_majority(classes: Labels, class_counts: Mapping[str, int], score: Score) -> Scores:
    """Score each row by a model that knows nothing but how many train rows each class has.

    For accuracy it predicts the largest class for all rows; else the classes' shares, with one more row of each.

    Shape:
        classes: (N,); returns (N,).
    """
    names, indices = np.unique(classes, return_inverse=True)
    known = [*class_counts, *(name for name in names if name not in class_counts)]
    counts = np.array([class_counts.get(name, 0) + 1 for name in known], float)
    shares = counts / counts.sum()
    if score == "accuracy":
        shares = (np.arange(len(known)) == counts.argmax()).astype(float)
    y = np.array([known.index(name) for name in names])
    if score in SPREAD:
        return score_probabilities(np.broadcast_to(shares, (len(indices), len(known))), y[indices], score).scores
    return score_probabilities(np.tile(shares, (len(names), 1)), y, score).scores[indices]
