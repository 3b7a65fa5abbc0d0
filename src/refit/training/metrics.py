"""The metrics of a model, as they are kept and shown."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FIGURES = {"accuracy": "accuracy", "loss": "loss", "roc_auc": "ROC AUC", "calibration_error": "calibration error"}
"""The metrics of classes that people are shown side by side, and their titles."""
RARE_FIGURES = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "average_precision": "average precision"}
"""Those that are shown besides where one of the classes is rare."""
RARE = 0.2
"""Share of the rows below which one of two classes is rare; of C classes, 2 / C times it."""


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
    loss: float
    """Mean loss; for classes the cross-entropy, in nats."""
    figures: dict[str, float | None] = Field(default_factory=dict)
    """Metrics of targets that are no classes, and the user's own, by their titles."""

    def list_figures(self) -> dict[str, float | None]:
        """Return the figures that people are shown, by their titles."""
        return {"loss": self.loss, **self.figures}

    def list_scores(self) -> dict[str, float | None]:
        """Return the same with the negative loss, higher being better, in place of the loss."""
        return {"negative loss": -self.loss, **self.figures}


class ClassificationMetrics(Metrics):
    """Those of a target that has classes."""

    num_correct: int
    accuracy: float
    roc_auc: float | None
    """Area under the ROC curve, each class against the rest, averaged over classes; None where a class has no rows."""
    calibration_error: float
    """Expected calibration error over 15 bins of confidence (Guo et al., 2017, equation 3)."""
    balanced_accuracy: float
    """Mean over classes of the share of right rows."""
    macro_f1: float
    """Mean F1 of the classes."""
    average_precision: float | None
    """Area under the steps of the precision-recall curve of the rarer of two classes, or the mean over more."""
    curve: list[tuple[float, float]]
    """Recall and precision of the rarer of two classes, from the highest probability on; empty where no class is rare."""
    classes: list[ClassMetrics]
    confusion: list[list[int]]
    """Rows by true class (first index) and predicted class (second index)."""

    def list_figures(self) -> dict[str, float | None]:
        """Return the figures that people are shown, by their titles."""
        shown = FIGURES | (RARE_FIGURES if has_rare_class([entry.support for entry in self.classes]) else {})
        return {title: getattr(self, name) for name, title in shown.items()} | self.figures

    def list_scores(self) -> dict[str, float | None]:
        """Return the same with the mean log likelihood in place of the loss."""
        scores = self.list_figures().items()
        return dict(("log likelihood", -self.loss) if title == "loss" else (title, figure) for title, figure in scores)


class NumberBin(BaseModel):
    """Rows whose predictions are next to one another; all figures are in the units of the column."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int
    predicted: float
    """Mean prediction."""
    true: float
    """Mean of the true numbers."""
    low: float
    """5 % of the rows have a lower residual: the true number less the prediction."""
    median: float
    high: float
    """5 % have a higher one."""


class NumberMetrics(Metrics):
    """Those of a column of numbers."""

    bins: list[NumberBin]
    """As many rows each, by ascending prediction."""


def has_rare_class(counts: Sequence[int]) -> bool:
    """Whether one of some classes has few of the rows."""
    return bool(counts) and min(counts) < RARE * 2 / len(counts) * sum(counts)


def read_metrics(content: dict[str, Any]) -> Metrics:
    """Read the metrics of any kind from their JSON."""
    kind = ClassificationMetrics if "confusion" in content else NumberMetrics if "bins" in content else Metrics
    return kind.model_validate(content)
