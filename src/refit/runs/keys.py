"""Recipe keys: hashes of everything that a step depends on, known before the step runs and chained from one step to the next.

Ingredients are the bytes of the source, the settings, the code that computes, the versions of packages and the kind of processor.
Paths, names, log levels and retry counts are not.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
from pydantic import BaseModel, ConfigDict

from refit.code import digest_code, digest_user_code, list_modules
from refit.errors import SettingsError
from refit.makers import find_maker
from refit.settings import Settings, walk_settings

PACKAGE = Path(__file__).parents[1]
EVALUATION_CODE = (
    *(f"refit.data.{name}" for name in ("inputs", "live_items", "loaders", "own_dataset", "own_functions", "seeded", "signature")),
    "refit.models.building",
    "refit.models.ensemble",
    *(f"refit.runtime.{name}" for name in ("accelerators", "devices", "randomness")),
    *(
        f"refit.training.{name}"
        for name in ("evaluation", "influences", "metrics", "objective", "objectives", "own_metrics", "rare_classes", "tuning")
    ),
)
ENGINE_CODE = tuple(f"refit.engine.{path.stem}" for path in sorted(PACKAGE.glob("engine/[!_]*.py")))
"""Empty if the folder of faster engines is missing: that is another engine, whose steps may have other bits."""
TRAINING_CODE = (*EVALUATION_CODE, *(f"refit.training.{name}" for name in ("loop", "optimizers", "steps")), *ENGINE_CODE)
PLACES = ("data.source", "data.test_source", "data.inputs", "data.predict_factory")
"""Settings that name places, of which only the contents count, or serve predictions alone."""
READERS = ("loader.num_workers", "loader.prefetch_factor", "loader.pin_memory", "loader.persistent_workers")
"""Settings that say who reads items, which no bit depends on."""
ROWS = "rows"
"""Name of the ingredient of epochs that train on other rows than the train split."""


class Stage(BaseModel):
    """A stage of a run, such as its data set or an epoch, and everything that its result depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ingredients: dict[str, Any]

    @property
    def key(self) -> str:
        """SHA-256 of the ingredients."""
        return digest_json(self.ingredients)


def digest_json(content: Any) -> str:
    """SHA-256 of content as JSON, independent of the order of names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Recipe(BaseModel):
    """Everything that a run's results depend on, up to its last epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Stage
    start: Stage
    epoch: Stage
    """What each epoch depends on besides the epoch before it."""
    num_epochs: int
    processor: str
    scorer: str
    """The CPU, on which weights are evaluated wherever they were trained."""
    judges: dict[str, Any] = {}
    """The user's own metrics, which evaluation depends on besides the weights."""
    refit_on_all: bool = False

    @property
    def fits(self) -> list["Recipe"]:
        """This recipe and, if `refit_on_all`, that of the last fit on all rows, with as many epochs as validation could choose."""
        return [self, self.on_all_rows(self.num_epochs)] if self.refit_on_all else [self]

    def on_all_rows(self, num_epochs: int) -> "Recipe":
        """Return the recipe of `num_epochs` epochs on all rows, from the same start and with the same settings."""
        epoch = Stage(name="epoch", ingredients={**self.epoch.ingredients, ROWS: "all"})
        processors = {"processor": self.processor, "scorer": self.scorer}
        return Recipe(dataset=self.dataset, start=self.start, epoch=epoch, num_epochs=num_epochs, **processors)

    @property
    def is_on_all_rows(self) -> bool:
        """Whether epochs train on all rows, not only on the train split."""
        return ROWS in self.epoch.ingredients

    @property
    def source_digests(self) -> list[str | None]:
        """Digests of `data.source` and `data.test_source`; None for the latter if it is not set."""
        return [self.dataset.ingredients[name] for name in ("data.source", "data.test_source")]

    @property
    def loaders(self) -> Stage:
        """The stage of the loaders."""
        settings = {name: value for name, value in self.epoch.ingredients.items() if name.startswith("loader.") or name == ROWS}
        return Stage(name="loaders", ingredients={"data set": self.dataset.key, **settings})

    @cached_property
    def epoch_keys(self) -> list[str]:
        """Key of each epoch, which covers the epochs before it."""
        links = itertools.accumulate(
            range(self.num_epochs), lambda previous, _: digest_json([previous, self.epoch.key]), initial=self.start.key
        )
        return list(links)[1:]

    def evaluation(self, split: str, epoch: int) -> Stage:
        """Return the stage of the metrics of one split at one epoch."""
        versions = {name: version(name) for name in ("torch", "torchmetrics")}
        weights = {"weights": self.epoch_keys[epoch - 1], "split": split, "processor": self.scorer}
        return Stage(name=f"evaluate {split}", ingredients={**weights, **versions, **self.judges, **digest_code(EVALUATION_CODE)})

    def neighbours(self, kinds: Sequence[str]) -> Stage:
        """Return the stage of fitting other models on the same rows, on which nothing of the run depends."""
        versions = {name: version(name) for name in ("scikit-learn", "scipy")}
        fitted = {"data set": self.dataset.key, "kinds": list(kinds), "processor": self.scorer}
        fitted |= {name: self.epoch.ingredients[name] for name in ("training.loss", "training.class_weights")}
        code = digest_code([f"refit.{name}" for name in ("data.signature", "training.neighbours", "training.rare_classes")])
        return Stage(name="compare", ingredients={**fitted, **versions, **code})

    def saving(self, name: str, best_epoch: int, num_epochs: int, metrics: Sequence[str]) -> Stage:
        """Return the stage of saving a version: its name, the weights chosen and served, the epochs logged, the metrics' keys."""
        chosen, served = (fit.epoch_keys[best_epoch - 1] for fit in (self, self.fits[-1]))
        epochs = {"weights": chosen, "served": served, "epochs": self.epoch_keys[num_epochs - 1]}
        return Stage(name="save", ingredients={"name": name, **epochs, "metrics": list(metrics)})


def write_recipe(
    settings: Settings,
    source_digest: str,
    test_source_digest: str | None,
    processor: str,
    scorer: str,
    first_weights: str | None = None,
) -> Recipe:
    """Write the recipe of a run.

    `num_epochs` is an ingredient only if a schedule depends on it, so that a longer run continues where a shorter one ended.

    Args:
        settings: The run's settings.
        source_digest: Digest of the bytes of `data.source`.
        test_source_digest: Digest of the bytes of `data.test_source`, if it is set.
        processor: The properties of the processor that bits depend on: kind, instruction set, threads.
        scorer: Those of the CPU.
        first_weights: Digest of the weights to start from; None starts from new ones.

    Raises:
        SettingsError: The source code of the user's factory cannot be read.
    """
    maker = find_maker(settings.data)
    chosen = {name: value for name, value in walk_settings(settings.data, "data.") if name not in PLACES}
    sources = {"data.source": source_digest, "data.test_source": test_source_digest}
    code: dict[str, Any] = {name: version(name) for name in maker.packages} | digest_code(maker.list_code())
    code |= maker.list_ingredients(settings)
    for setting, function in maker.list_functions(settings).items():
        code |= {setting: function, **digest_user_code(function, setting)}
    dataset = Stage(name="dataset", ingredients={**sources, **chosen, "seed": settings.seed, **code})
    network = [] if settings.model.factory else list_modules(f"refit.models.{settings.model.architecture}")
    network += [] if settings.model.weights is None else ["refit.training.start_weights"]
    more_code = network if first_weights is None else [*network, "refit.serving.warm_start"]
    start = {
        **digest_user_code(settings.model.factory),
        "data set": dataset.key,
        "seed": settings.seed,
        **dict(walk_settings(settings.model, "model.")),
        "model.weights": None if settings.model.weights is None else _digest_file(settings.model.weights, "model.weights"),
        **dict(walk_settings(settings.optimizer, "optimizer.")),
        **{f"compute.{name}": getattr(settings.compute, name) for name in ("engine", "precision", "matmul_precision")},
        "processor": processor,
        "torch": version("torch"),
        "first weights": first_weights,
        **digest_code([*TRAINING_CODE, *more_code]),
    }
    goes_by_end = settings.optimizer.schedule in ("cosine", "coslog4") or settings.training.regularization != "constant"
    loop = {
        **_digest_own(settings.training.loss, "training.loss"),
        **_digest_own(settings.training.step, "training.step"),
        **digest_user_code(settings.loader.sampler, "loader.sampler"),
        **{name: value for name, value in walk_settings(settings.loader, "loader.") if name not in READERS},
        "training.class_weights": settings.training.class_weights,
        "training.label_smoothing": settings.training.label_smoothing,
        "training.regularization": settings.training.regularization,
        "training.monitor": settings.training.monitor,
        "training.accumulate_batches": settings.training.accumulate_batches,
        "training.max_grad_norm": settings.training.max_grad_norm,
        "training.num_epochs": settings.training.num_epochs if goes_by_end else None,
    }
    judges: dict[str, Any] = {"training.metrics": settings.training.metrics} if settings.training.metrics else {}
    judges |= {f"training.{name}": True for name in ("tune_threshold", "calibrate") if getattr(settings.training, name)}
    for metric in settings.training.metrics:
        judges |= digest_user_code(metric, "training.metrics")
    return Recipe(
        dataset=dataset,
        start=Stage(name="start", ingredients=start),
        epoch=Stage(name="epoch", ingredients=loop),
        num_epochs=settings.training.num_epochs,
        processor=processor,
        scorer=scorer,
        judges=judges,
        refit_on_all=settings.training.refit_on_all,
    )


def _digest_file(path: str, setting: str) -> str:
    """SHA-256 of a file; raises SettingsError if it cannot be read."""
    try:
        with fsspec.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{setting}: expected a file that can be read, found {path}: {error}; name another") from error


def _digest_own(name: str | None, setting: str) -> dict[str, Any]:
    """The name of a loss or a step and, if it is the user's own, its code."""
    return {setting: name, **(digest_user_code(name, setting) if name is not None and ":" in name else {})}


def retraining_key(settings: Settings, source_digest: str, test_source_digest: str | None) -> str:
    """SHA-256 of everything that the outcome of a retraining depends on, except the champion and the machine."""
    recipe = write_recipe(settings, source_digest, test_source_digest, processor="any", scorer="any")
    promotion = dict(walk_settings(settings.promotion, "promotion."))
    del promotion["promotion.timeout_seconds"]
    steps = [recipe.start.key, recipe.epoch.key, recipe.num_epochs, settings.training.patience]
    if settings.promotion.must_beat_baseline:
        steps.append(settings.training.baseline)
    return digest_json([*steps, settings.training.warm_start, settings.training.refit_on_all, promotion])
