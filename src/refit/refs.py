"""Light handles to objects in the store: the JSON that tasks pass to one another instead of tensors and modules."""

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
    frozen: "Ref | None" = None
    """What a checkpoint leaves out: the parameters of its model that are not trained, which all checkpoints of a run share."""

    @property
    def digests(self) -> list[str]:
        """Digests of all objects that it stands for."""
        return [self.digest] if self.frozen is None else [self.digest, self.frozen.digest]


class DatasetRef(Ref):
    """A snapshot."""

    splits: dict[str, Ref]
    """The arrays of each of `train`, `val` and `test` that has rows."""
    test_rows: Ref | None
    """The raw test rows, with all their columns."""


class LoadersRef(Handle):
    """Everything needed to build seeded loaders, which themselves stay in the process that uses them."""

    dataset: DatasetRef
    batch_size: int
    drop_last: bool
    num_batches: int
    """Training batches in an epoch."""
    splits: list[str] = ["train"]
    """The splits whose rows are trained on, in this order."""
    sampler: str | None = None
    """The user's function that weighs the train rows; None shuffles them."""


class EpochResult(Handle):
    """An epoch's checkpoint and log, and the figures that decide what comes next."""

    epoch: int
    checkpoint: Ref
    log: Ref
    train_loss: float
    val_loss: float | None
    val_score: float | None

    def watch(self, monitor: str) -> float | None:
        """Return what the best epoch is chosen by, lower being better: the validation loss, or minus the monitored score."""
        return self.val_loss if monitor == "loss" or self.val_score is None else -self.val_score

    def describe(self, num_epochs: int) -> str:
        """Describe the epoch in one line for people."""
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
    """The same for the weights that it is judged by, if the served ones were trained on all rows."""

    @property
    def reference(self) -> str:
        """Name and version, as in `penguins@v3`."""
        return f"{self.name}@v{self.version}"


class TrainingResult(Handle):
    """The outcome of a training run."""

    model: SavedModel
    is_new: bool
    """False if the same recipe was run before, and its version is still there."""
    best_epoch: int
    """The epoch whose weights were saved."""
    seconds: dict[str, float]
    """Wall time of each step."""


class Deviation(Handle):
    """A property of a column that many rows to score have, but few train rows had."""

    column: str
    rows: int
    """Rows that have it."""
    of: int
    """Rows that were scored."""
    what: str
    """The property, in words."""

    def describe(self) -> str:
        """Describe the deviation in one line for people."""
        return f"column `{show(self.column)}`: {self.rows:,} of {self.of:,} rows {self.what}"


class Prediction(Handle):
    """The outcome of scoring rows."""

    model: str
    """The version that scored them, such as `penguins@v3`."""
    output: str
    num_rows: int
    seconds: float
    deviations: list[Deviation] = []
    """How the rows deviate from the train rows, by column."""


Alarm = Literal["collapsed", "incomparable", "damaged"]


class RetrainingResult(Handle):
    """The outcome of a retraining."""

    outcome: Literal["promoted", "kept", "skipped"]
    alarm: Alarm | None = None
    """Set if a person should look at the previous champion; `reason` says why."""
    reason: str
    """One sentence for people, with its figures."""
    champion: str | None
    """The champion from now on, as in `penguins@v3`; None if there is none."""
    candidate: str | None = None
    scores: dict[str, dict[str, float | None]] = {}
    """Metrics by model on the same test rows, the candidate first."""
    report: str | None = None
    """Where the report is."""
    seconds: dict[str, float] = {}
    """Wall time of each step."""
