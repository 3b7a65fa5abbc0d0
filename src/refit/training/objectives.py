"""The objective of each kind of target, and of a step of the user's own.

N is the number of examples, D of numbers to predict, L of labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from refit.data.inputs import Inputs, list_tensors
from refit.data.own_functions import import_function
from refit.data.signature import Target
from refit.errors import SettingsError
from refit.training.metrics import Metrics, NumberBin, NumberMetrics
from refit.training.objective import (
    Classification,
    Loss,
    Objective,
    OfOutputs,
    OwnLoss,
    RowScores,
    Score,
    Scores,
    SmoothedClassification,
    WeightedClassification,
    join_members,
)
from refit.training.rare_classes import Monitor
from refit.training.tuning import Tuning

LOSSES: Mapping[str, Loss] = {
    "cross_entropy": functional.cross_entropy,
    "squared": functional.mse_loss,
    "absolute": functional.l1_loss,
    "huber": functional.huber_loss,
    "quantile": functional.l1_loss,
    "binary": functional.binary_cross_entropy_with_logits,
}
"""By the names that `training.loss` can have, their means over all numbers of a batch. Of quantiles, it is that of the median."""
OF_NUMBERS = ("squared", "absolute", "huber", "quantile")
NUM_BINS = 10


def build_objective(
    target: Target,
    loss: str | None = None,
    step: str | None = None,
    *,
    weights: tuple[float, ...] | None = None,
    smoothing: float = 0.0,
    monitor: Monitor = "loss",
    tuning: Tuning | None = None,
) -> Objective:
    """Build the objective for a kind of target.

    Args:
        target: What is predicted.
        loss: One of `LOSSES`, or the name of the user's own; None takes that of the kind.
        step: The name of a step of the user's own, which takes the place of all else. Only predictions do without it.
        weights: Of each class; None weighs all rows alike.
        smoothing: Share of the truth of a row that is spread over all classes, instead of weights or a loss; numbers have none.
        monitor: What classes are scored by.
        tuning: How outputs are read; None takes them as they are.

    Raises:
        SettingsError: The user's function cannot be imported, or the score of two classes is set for another number of them.
    """
    if monitor == "f1" and len(target.classes) != 2:
        raise SettingsError(f"training.monitor: expected two classes for f1, found {len(target.classes)}; take macro_f1")
    if step is not None or target.kind == "none":
        return OwnStep(_lack_step if step is None else import_function(step, "training.step"))
    own = None if loss is None or loss in LOSSES else import_function(loss, "training.loss")
    if target.quantiles:
        levels, scale = tuple(target.quantiles), target.scales[0]
        return Quantiles(own or LOSSES[loss or "quantile"], tuple(target.centers), scale, levels)
    if target.kind == "numbers" and target.scales:
        return StandardizedNumber(own or LOSSES[loss or "squared"], tuple(target.centers), target.scales[0])
    if target.kind == "numbers":
        return Numbers(own or LOSSES[loss or "squared"], tuple(target.centers))
    if target.kind == "labels":
        return Labels(tuple(target.classes), own or LOSSES["binary"], tuple(target.centers))
    classes = tuple(target.classes)
    if smoothing:
        return SmoothedClassification(classes, smoothing, monitor=monitor)
    if weights is not None:
        return WeightedClassification(classes, weights, monitor=monitor)
    if tuning is not None:
        return Classification(classes, tuning=tuning)
    return Classification(classes, monitor=monitor) if own is None else OwnLoss(classes, own, monitor=monitor)


@dataclass(frozen=True)
class Numbers(OfOutputs):
    """Numbers to predict.

    Shape: outputs and targets `(N,)` or `(N, D)`; `(N, 1)` stands for `(N,)`.
    """

    function: Loss
    centers: tuple[float, ...] = ()
    """Means of the train targets, which the baseline predicts."""
    baseline: ClassVar[str | None] = "mean of the targets"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss; over members, too, where outputs are `(B, K, D)`."""
        if outputs.numel() > target.numel():
            outputs, target = join_members(outputs, target)
        return self.function(outputs.reshape(target.shape), target)

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Return the negative loss."""
        return -self.loss(outputs, target).item()

    def measure(self, outputs: Tensor, target: Tensor) -> Metrics:
        """Compute the metrics: root of the mean squared error, mean absolute error, explained share of the variance."""
        errors = (outputs.reshape(target.shape) - target).double()
        spread = (target.double() - target.double().mean(dim=0)).square().sum().item()
        figures = {
            "RMSE": errors.square().mean().sqrt().item(),
            "MAE": errors.abs().mean().item(),
            "R²": None if spread == 0 else 1 - errors.square().sum().item() / spread,
        }
        return Metrics(num_rows=len(target), loss=self.loss(outputs, target).item(), figures=figures)

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers, twice."""
        numbers = outputs.squeeze(1) if outputs.dim() == 2 and outputs.shape[1] == 1 else outputs
        return numbers, numbers

    def predict(self, outputs: Tensor) -> NDArray[Any]:
        """Return the numbers."""
        numbers: NDArray[np.float32] = self.answer(outputs)[0].numpy()
        return numbers

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""
        return ["prediction", *(f"prediction {place}" for place in range(1, len(self.centers)))]

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the columns of a table of predictions."""
        return dict(zip(self.list_columns(), self.answer(outputs)[0].reshape(len(outputs), -1).numpy().T, strict=True))

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:  # noqa: ARG002
        """Score each row by its negative loss."""
        return score_by_loss(self.loss, outputs, target)

    def score_baseline(self, target: Tensor) -> Scores:
        """Score each row as if the mean of the train targets were predicted for it."""
        outputs = target.new_tensor(self.centers).reshape(target.shape[1:]).expand(target.shape)
        return score_by_loss(self.loss, outputs, target).scores


@dataclass(frozen=True)
class StandardizedNumber(Numbers):
    """A number of a table, trained for as (number - center) / scale. All but the loss is in the units of its column, in float64."""

    scale: float = 1.0

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss, of standardized numbers."""
        return super().loss(outputs.to(target.dtype), target)

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Return the explained share of the variance, 0 where all targets are equal."""
        return self._measure_errors(outputs, target)["R²"] or 0.0

    def measure(self, outputs: Tensor, target: Tensor) -> NumberMetrics:
        """Compute the metrics: those of `Numbers`, and bins of rows by prediction."""
        predicted, true = self.answer(outputs)[0].numpy(), self.restore(target).numpy()
        return NumberMetrics(
            num_rows=len(target),
            loss=self.loss(outputs, target).item(),
            figures=self._measure_errors(outputs, target),
            bins=_bin(predicted, true, -self._find_errors(outputs, target).numpy()),
        )

    def restore(self, standardized: Tensor) -> Tensor:
        """Return numbers in the units of the column, float64."""
        center, scale = torch.tensor([self.centers[0], self.scale], dtype=torch.float64).unbind()
        return standardized.double() * scale + center

    def present(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and true numbers, each `(N,)`."""
        return self.answer(outputs)[0], self.restore(target)

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers, `(N,)`, twice."""
        numbers = self.restore(self._take(outputs))
        return numbers, numbers

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:  # noqa: ARG002
        """Score each row by its negative loss: the squared error, or, for robust losses, the absolute one, or the user's own."""
        errors = self._find_errors(outputs, target).numpy()
        if self.function is LOSSES["squared"]:
            scores = -(errors**2)
        elif self.function in (LOSSES["absolute"], LOSSES["huber"]):
            scores = -np.abs(errors)
        else:
            return score_by_loss(self.function, self.answer(outputs)[0], self.restore(target))
        return RowScores(scores, np.zeros(len(scores), bool))

    def score_baseline(self, target: Tensor) -> Scores:
        """Score each row as if the mean of the train rows were predicted for it."""
        return self.score_rows(torch.zeros_like(target), target, "negative_loss").scores

    def _measure_errors(self, outputs: Tensor, target: Tensor) -> dict[str, float | None]:
        errors = self._find_errors(outputs, target)
        spread = (target.double() - target.double().mean()).square().sum().item() * self.scale**2
        return {
            "RMSE": errors.square().mean().sqrt().item(),
            "MAE": errors.abs().mean().item(),
            "R²": None if spread == 0 else 1 - errors.square().sum().item() / spread,
        }

    def _find_errors(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Predictions less true numbers, which would lose digits as their difference."""
        return (self._take(outputs).double() - target.double()) * self.scale

    def _take(self, outputs: Tensor) -> Tensor:
        """Take what is predicted, `(N,)`, of the outputs."""
        return outputs.flatten()


@dataclass(frozen=True)
class Quantiles(StandardizedNumber):
    """Quantiles of a number of a table, of which the median is predicted.

    Those that cross are put in order (Chernozhukov et al., Quantile and Probability Curves Without Crossing, 2010).

    Shape: outputs are `(N, Q)`, or in training `(N, K, Q)` of K members; `(N, 1)` and `(N,)` stand for equal ones.
    """

    levels: tuple[float, ...] = (0.5,)
    """Q numbers in (0, 1), ascending, 0.5 among them."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean pinball loss of standardized numbers, over rows, members and quantiles (Koenker and Bassett, 1978)."""
        levels = torch.tensor(self.levels, dtype=target.dtype, device=target.device)
        outputs = outputs[:, None] if outputs.dim() == 1 else outputs
        errors = target.reshape(-1, *[1] * (outputs.dim() - 1)) - outputs
        return torch.maximum(levels * errors, (levels - 1) * errors).mean()

    def measure(self, outputs: Tensor, target: Tensor) -> NumberMetrics:
        """Compute the metrics of the median, and the share of numbers between the outer quantiles."""
        found, ordered = super().measure(outputs, target), self._order(outputs)
        is_inside = (ordered[:, 0] <= target) & (target <= ordered[:, -1])
        figures = {**found.figures, f"inside {self.levels[0]:g} to {self.levels[-1]:g}": is_inside.double().mean().item()}
        return found.model_copy(update={"figures": figures})

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the medians, `(N,)`, and all quantiles, `(N, Q)`."""
        return self.restore(self._take(outputs)), self.restore(self._order(outputs))

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""
        return ["prediction", *(f"quantile {level:g}" for level in self.levels if level != 0.5)]

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the median and the other quantiles."""
        median, quantiles = (part.numpy() for part in self.answer(outputs))
        others = [part for level, part in zip(self.levels, quantiles.T, strict=True) if level != 0.5]
        return dict(zip(self.list_columns(), [median, *others], strict=True))

    def _order(self, outputs: Tensor) -> Tensor:
        outputs = outputs[:, None] if outputs.dim() == 1 else outputs
        return outputs.expand(-1, len(self.levels)).sort(dim=1).values

    def _take(self, outputs: Tensor) -> Tensor:
        return self._order(outputs)[:, self.levels.index(0.5)]


def _bin(predicted: Scores, true: Scores, residuals: Scores) -> list[NumberBin]:
    """Put rows `(N,)` into at most `NUM_BINS` bins of as many rows each."""
    order = np.argsort(predicted, kind="stable")
    bins = []
    for rows in np.array_split(order, min(NUM_BINS, len(order))):
        low, median, high = np.quantile(residuals[rows], [0.05, 0.5, 0.95]).tolist()
        means = float(predicted[rows].mean()), float(true[rows].mean())
        bins.append(NumberBin(num_rows=len(rows), predicted=means[0], true=means[1], low=low, median=median, high=high))
    return bins


@dataclass(frozen=True)
class Labels(OfOutputs):
    """Any number of L labels at once, by a sigmoid each.

    Shape: outputs are logits `(N, L)`, targets 0 or 1 `(N, L)`.
    """

    classes: tuple[bool | int | str, ...]
    function: Loss
    centers: tuple[float, ...] = ()
    """Shares of the labels among the train items."""
    baseline: ClassVar[str | None] = "shares of the labels"

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss over examples and labels."""
        return self.function(*join_members(outputs, target))

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Return the share of right labels."""
        return ((outputs > 0) == (target > 0.5)).double().mean().item()

    def measure(self, outputs: Tensor, target: Tensor) -> Metrics:
        """Compute the metrics: shares of right labels and of examples with all labels right, and the mean F1 of labels."""
        predicted, truth = outputs > 0, target > 0.5
        hits = (predicted & truth).sum(dim=0).double()
        f1 = 2 * hits / (predicted.sum(dim=0) + truth.sum(dim=0)).clamp(min=1)
        is_right = predicted == truth
        return Metrics(
            num_rows=len(target),
            loss=self.loss(outputs, target).item(),
            figures={
                "label accuracy": is_right.double().mean().item(),
                "exact match": is_right.all(dim=1).double().mean().item(),
                "mean F1": f1.mean().item(),
            },
        )

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether an example has each label, and how likely that is, `(N, L)`."""
        return outputs > 0, outputs.sigmoid()

    def predict(self, outputs: Tensor) -> NDArray[Any]:
        """Return whether each example has each label, `(N, L)`."""
        found: NDArray[np.bool_] = self.answer(outputs)[0].numpy()
        return found

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""
        return [f"probability of {label}" for label in self.classes]

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the probability of each label."""
        return dict(zip(self.list_columns(), self.answer(outputs)[1].numpy().T, strict=True))

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:  # noqa: ARG002
        """Score each example by its negative loss."""
        return score_by_loss(self.loss, outputs, target)

    def score_baseline(self, target: Tensor) -> Scores:
        """Score each example as if the shares of the labels were predicted for it."""
        shares = target.new_tensor(self.centers).clamp(0.001, 0.999)
        return score_by_loss(self.loss, shares.logit().expand(target.shape), target).scores


@dataclass(frozen=True)
class OwnStep:
    """A step of the user's own: a function of the model and a batch, as the loader gives it, that returns the loss."""

    function: Callable[[Any, Any], Tensor]
    baseline: ClassVar[str | None] = None

    def batch_loss(self, forward: Callable[..., Any], x: Inputs, y: Tensor) -> Tensor:  # noqa: ARG002
        """Return what the user's function does."""
        return self.function(forward, list(x) if isinstance(x, tuple) else x)

    def compute(self, model: nn.Module, x: Inputs, y: Tensor) -> Tensor:
        """Return the loss of each example alone, `(B,)`: how good the model is for it."""
        batches = [_take_one(x, place) for place in range(len(y))]
        return torch.stack([self.batch_loss(model, one, y[:1]).detach().float() for one in batches])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """Return the mean of the losses of examples."""
        return outputs.mean()

    def score(self, outputs: Tensor, target: Tensor) -> float:
        """Return the negative loss."""
        return -self.loss(outputs, target).item()

    def measure(self, outputs: Tensor, target: Tensor) -> Metrics:
        """Compute the mean loss, the only metric."""
        return Metrics(num_rows=len(target), loss=outputs.double().mean().item(), figures={})

    def present(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as they are."""
        return outputs, target

    def answer(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the model as they are, twice."""
        return outputs, outputs

    def predict(self, outputs: Tensor) -> NDArray[Any]:
        """Return the outputs of the model as they are."""
        found: NDArray[np.float32] = outputs.numpy()
        return found

    def list_columns(self) -> list[str]:
        """Name the columns of a table of predictions."""
        return ["output"]

    def tabulate(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the outputs of the model."""
        return {"output": outputs.reshape(len(outputs), -1)[:, 0].numpy()}

    def score_rows(self, outputs: Tensor, target: Tensor, score: Score) -> RowScores:  # noqa: ARG002
        """Score each example by its negative loss."""
        return RowScores(-outputs.double().numpy(), np.zeros(len(outputs), bool))


def score_without_inputs(objective: Objective, target: Tensor) -> Scores | None:
    """Score each row as the baseline of an objective without classes would; None if it has none."""
    return objective.score_baseline(target) if isinstance(objective, Numbers | Labels) else None


def score_by_loss(loss: Loss, outputs: Tensor, target: Tensor) -> RowScores:
    """Score each row by the negative loss that it has alone."""
    losses = [loss(outputs[row : row + 1].double(), target[row : row + 1].double()).item() for row in range(len(target))]
    return RowScores(-np.array(losses), np.zeros(len(losses), bool))


def _lack_step(*_: object) -> Tensor:
    raise SettingsError("training.step: expected the step that the model was trained by, to score it, found none; set it")


def _take_one(x: Inputs, place: int) -> Inputs:
    """A batch of one example."""
    if isinstance(x, Tensor):
        return x[place : place + 1]
    if isinstance(x, dict):
        return {name: _take_one(part, place) for name, part in x.items()}
    if isinstance(x, tuple | list):
        is_deep = bool(list_tensors(x))
        return [_take_one(part, place) for part in x] if is_deep else x[place : place + 1]
    return x
