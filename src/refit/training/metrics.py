"""The metrics of a model, as they are kept and shown."""

from pydantic import BaseModel, ConfigDict

FIGURES = {"accuracy": "accuracy", "loss": "loss", "roc_auc": "ROC AUC", "calibration_error": "calibration error"}
"""The metrics that people are shown side by side, and their titles."""


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

    def list_figures(self) -> dict[str, float | None]:
        """Return the figures that people are shown, by their titles."""
        return {title: getattr(self, name) for name, title in FIGURES.items()}

    def list_scores(self) -> dict[str, float | None]:
        """Return the same with the mean log likelihood in place of the loss."""
        scores = self.list_figures().items()
        return dict(("log likelihood", -self.loss) if title == "loss" else (title, figure) for title, figure in scores)
