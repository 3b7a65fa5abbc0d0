"""Light handles to what the store holds: the JSON that tasks hand to one another in place of tensors and modules."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from refit.texts import show


class Handle(BaseModel):
    """Frozen JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Ref(Handle):
    """An object of the store."""

    kind: Literal["dataset", "arrays", "rows", "checkpoint", "log", "metrics"]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its bytes."""
    size: int
    """Bytes."""


class DatasetRef(Ref):
    """A snapshot."""

    splits: dict[str, Ref]
    """The arrays of `train`, `val` and `test`, those that have rows."""
    test_rows: Ref | None
    """All cells of the test rows."""


class LoadersRef(Handle):
    """What seeded loaders are made of; the loaders themselves stay in the process that uses them."""

    dataset: DatasetRef
    batch_size: int
    drop_last: bool
    num_batches: int
    """Training batches in an epoch."""
    splits: list[str] = ["train"]
    """Those whose rows are trained on, in this order."""


class EpochResult(Handle):
    """An epoch's checkpoint and log, and the figures that decide what comes next."""

    epoch: int
    checkpoint: Ref
    log: Ref
    train_loss: float
    val_loss: float | None
    val_score: float | None

    def describe(self, num_epochs: int) -> str:
        """One line for people."""
        figures = {"train loss": self.train_loss, "val loss": self.val_loss, "val score": self.val_score}
        return f"epoch {self.epoch}/{num_epochs}: " + ", ".join(
            f"{name} {value:.4f}" for name, value in figures.items() if value is not None
        )


class SavedModel(Handle):
    """A version of a model in the store."""

    name: str
    version: int
    path: str
    """The version's folder, or its URL."""
    weights_digest: str
    """SHA-256 over names, types, shapes and bytes of the weights."""
    held_back_digest: str | None = None
    """The same of the weights that it is judged by, where the others were trained on all rows."""

    @property
    def reference(self) -> str:
        """Name and version, as in `penguins@v3`."""
        return f"{self.name}@v{self.version}"


class TrainingResult(Handle):
    """What a training run made."""

    model: SavedModel
    is_new: bool
    """False if the same recipe had been run before, and its version stands."""
    best_epoch: int
    """The epoch whose weights were saved."""
    seconds: dict[str, float]
    """Wall time of each step."""


class Deviation(Handle):
    """What many rows to score have in a column, and few train rows had."""

    column: str
    rows: int
    """Rows that have it."""
    of: int
    """Rows that were scored."""
    what: str
    """What it is, for people."""

    def describe(self) -> str:
        """One line for people."""
        return f"column `{show(self.column)}`: {self.rows:,} of {self.of:,} rows {self.what}"


class Prediction(Handle):
    """Rows that were scored, and where the scores are."""

    model: str
    """The version that scored them, such as `penguins@v3`."""
    output: str
    num_rows: int
    seconds: float
    deviations: list[Deviation] = []
    """How the rows deviate from those that the model learned from, by column."""


Alarm = Literal["collapsed", "incomparable", "damaged"]


class RetrainingResult(Handle):
    """What a retraining came to."""

    outcome: Literal["promoted", "kept", "skipped"]
    alarm: Alarm | None = None
    """Set if a person should look at the champion that was: `reason` says why."""
    reason: str
    """One sentence for people, with its figures."""
    champion: str | None
    """The champion from now on, as in `penguins@v3`; None where there is none."""
    candidate: str | None = None
    scores: dict[str, dict[str, float | None]] = {}
    """Metrics by model on the same test rows, the candidate first."""
    report: str | None = None
    """Where the report is."""
    seconds: dict[str, float] = {}
    """Wall time of each step."""
