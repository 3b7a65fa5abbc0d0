"""The recipe of a run, written before it starts; the record of runs; and why a step would run again."""

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from refit.data import own_functions
from refit.errors import SettingsError, StoreError
from refit.makers import find_maker, load_record
from refit.models import architectures, building
from refit.refs import DatasetRef, EpochResult
from refit.runs.keys import Recipe, Stage, write_recipe
from refit.runs.results import find_last_epoch, load_usable_result, result_path
from refit.runtime import devices
from refit.runtime.accelerators import CPU
from refit.settings import Settings, SettingsTree
from refit.store.store import Store
from refit.texts import list_names
from refit.training.loop import best_epoch, choose_patience, has_lost_patience
from refit.training.neighbours import choose_neighbours

RUNS = "runs"
MAX_CODE_SHOWN = 5


class Run(BaseModel):
    """Record of a run that was started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    recipe: Recipe
    later_keys: list[str] = []
    """Keys of evaluation and saving, known only at the end of the run."""

    @property
    def keys(self) -> set[str]:
        """Keys of all steps of the run."""
        fits = (key for fit in self.recipe.fits for key in (fit.loaders.key, *fit.epoch_keys))
        return {self.recipe.dataset.key, self.recipe.start.key, *fits, *self.later_keys}


class Forecast(BaseModel):
    """Whether a run would find a step done, and if not, why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    is_done: bool
    because: list[str]


def build_recipe(
    settings: Settings, source_digests: tuple[str, str | None] | None = None, first_weights: str | None = None
) -> Recipe:
    """Write the recipe of a run on this machine, with the digest of the code that this process computes with.

    Args:
        settings: Settings of the run.
        source_digests: Of what the data set is made from, as its maker digests it; None digests the sources as they are now.
        first_weights: Digest of the weights to start from; None starts from new ones.

    Raises:
        DataError: The source cannot be read.
        SettingsError: The device or the compiler is missing on this machine, the architecture does not exist, or the user's
            own functions cannot be imported.
    """
    processor = devices.describe_processors(settings.compute)
    scorer = devices.describe_processor(CPU, devices.choose_num_threads(settings.compute))
    maker = find_maker(settings.data)
    own_functions.import_anew({**list_own_functions(settings), **maker.list_functions(settings)})
    digests = source_digests or maker.digest_sources(settings)
    if settings.model.factory is None:
        architectures.find_architecture(settings.model.architecture)
    building.check_options(settings.model)
    return write_recipe(settings, *digests, processor, scorer, first_weights)


def list_own_functions(settings: SettingsTree) -> dict[str, str | None]:
    """List the functions of the user's own that a run calls, by the setting that names them."""
    training = settings.training
    loss = training.loss if training.loss is not None and ":" in training.loss else None
    metrics = {f"training.metrics {name}": name for name in training.metrics}
    named = {"model.factory": settings.model.factory, "loader.sampler": settings.loader.sampler}
    return {**named, "training.loss": loss, "training.step": training.step, **metrics}


def find_lost_device(recipe: Recipe, settings: SettingsTree, store: Store) -> str | None:
    """Say that the model's last run could use an accelerator and this one cannot; None if it can or none did.

    Raises:
        SettingsError: `compute.when_missing` is `fail`.
    """
    if not recipe.processor.startswith("cpu") or " or " in recipe.processor or settings.compute.device == "cpu":
        return None
    before = next((run for _, run in _iterate_runs(store) if run.settings["name"] == settings.name), None)
    if (
        before is None
        or before.settings["compute"]["device"] != settings.compute.device
        or before.recipe.processor == recipe.processor
    ):
        return None
    lost = before.recipe.processor.rpartition(" or ")[2]
    if lost.startswith("cpu"):
        return None
    if settings.compute.when_missing == "fail":
        raise SettingsError(
            f"compute.device: expected {lost}, as in the last run of {settings.name}, found only the CPU;"
            " mend it, or set compute.when_missing to `cpu`"
        )
    return f"compute.device: training on the CPU, from the start; the last run of {settings.name} could use {lost}"


def record_run(run: Run, store: Store, name: str | None = None) -> str:
    """Keep a run's settings and recipe, so that a later run can name what has changed; return the name of the record."""
    name = name or f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.json"
    store.write(f"{RUNS}/{name}", run.model_dump_json().encode())
    return name


def load_runs(store: Store) -> dict[str, Run]:
    """Load the records of all runs by name, newest first."""
    return dict(_iterate_runs(store))


def _iterate_runs(store: Store) -> Iterator[tuple[str, Run]]:
    """Load one record after the other, newest first."""
    for name in reversed(store.names(RUNS)):
        with contextlib.suppress(ValidationError):  # a record of another version of Refit
            yield name, Run.model_validate_json(store.read(f"{RUNS}/{name}"))


def forecast(settings: Settings, store: Store) -> list[Forecast]:
    """Say for each step whether a run would find it done, and if not, how it differs from the most similar earlier run.

    Only runs of the same model name are compared, or, if there are none, those of other models; the name is stated then.

    Raises:
        DataError: The source cannot be read.
        SettingsError: As `build_recipe`.
    """
    recipe, earlier = build_recipe(settings), list(load_runs(store).values())
    snapshot = load_usable_result(recipe.dataset.key, store)
    forecasts = [
        Forecast(
            step="build data set",
            is_done=snapshot is not None,
            because=[] if snapshot else _explain(recipe, _take_dataset, recipe.dataset.key, earlier, settings, store),
        )
    ]
    last = find_last_epoch(recipe.epoch_keys, store)
    if last:
        forecasts.append(Forecast(step=f"train epochs 1 to {last}", is_done=True, because=[]))
    epochs = [EpochResult.model_validate(load_usable_result(key, store)) for key in recipe.epoch_keys[:last]]
    val_losses = [epoch.watch(settings.training.monitor) for epoch in epochs]
    loaders = load_usable_result(recipe.loaders.key, store)
    patience = choose_patience(settings.training.patience, loaders["num_batches"] if loaders else 0)
    stopped_at = next((epoch for epoch in range(1, last + 1) if has_lost_patience(val_losses[:epoch], patience)), None)
    if last < recipe.num_epochs and stopped_at is None:
        reasons = [] if last else _explain(recipe, _take_training, recipe.epoch_keys[0], earlier, settings, store)
        to_train = Forecast(
            step=f"train epochs {last + 1} to {recipe.num_epochs}", is_done=False, because=reasons or ["not run yet"]
        )
        rest = "evaluate, train on all rows and save" if recipe.refit_on_all else "evaluate and save"
        return [*forecasts, to_train, Forecast(step=rest, is_done=False, because=["the weights will change"])]
    return [*forecasts, *_forecast_the_rest(recipe, settings, snapshot, val_losses[: stopped_at or last], store)]


def _forecast_the_rest(
    recipe: Recipe, settings: Settings, snapshot: dict[str, Any] | None, val_losses: Sequence[float | None], store: Store
) -> Iterator[Forecast]:
    """Forecast the steps after the epochs, which are all done."""
    best = best_epoch(val_losses)
    splits = DatasetRef.model_validate(snapshot).splits if snapshot else {}
    metrics = {split: recipe.evaluation(split, best).key for split in splits}
    for split, key in metrics.items():
        yield _forecast_by_result(f"evaluate {split}", key, store)
    if recipe.refit_on_all:
        last = find_last_epoch(recipe.on_all_rows(best).epoch_keys, store)
        if last:
            yield Forecast(step=f"train epochs 1 to {last} on all rows", is_done=True, because=[])
        if last < best:
            yield Forecast(step=f"train epochs {last + 1} to {best} on all rows", is_done=False, because=["not run yet"])
    kinds = choose_neighbours(settings, load_record(DatasetRef.model_validate(snapshot), store)) if snapshot else []
    compared = [recipe.neighbours(kinds).key] if kinds else []
    for key in compared:
        yield _forecast_by_result("fit other models", key, store)
    saving = recipe.saving(settings.name, best, len(val_losses), [*metrics.values(), *compared])
    yield _forecast_by_result("save", saving.key, store)


def _forecast_by_result(step: str, key: str, store: Store) -> Forecast:
    is_done = load_usable_result(key, store) is not None
    reason = "another name, another best epoch, other metrics, or its code or result has changed"
    return Forecast(step=step, is_done=is_done, because=[] if is_done else [reason])


def _take_dataset(recipe: Recipe) -> Stage:
    return recipe.dataset


def _take_training(recipe: Recipe) -> Stage:
    """Combine all that the first epoch depends on into one stage."""
    return Stage(name="epoch", ingredients={**recipe.start.ingredients, **recipe.epoch.ingredients})


def _explain(
    recipe: Recipe, take: Callable[[Recipe], Stage], key: str, earlier: Sequence[Run], settings: Settings, store: Store
) -> list[str]:
    """Say how the step with this key differs from the nearest earlier one: the newest of those that differ least."""
    if not earlier:
        return ["nothing was run before"]
    own = [run for run in earlier if run.settings.get("name") == settings.name]
    step, steps = take(recipe), [(run, take(run.recipe)) for run in own or earlier]
    run, nearest = min(steps, key=lambda other: len(_differences(step.ingredients, other[1].ingredients)))
    changed = _differences(step.ingredients, nearest.ingredients)
    lines = [] if own else [f"{settings.name} was not run before; compared with the nearest run, of {run.settings.get('name')}:"]
    if not changed:
        return [*lines, "its result is gone or damaged" if store.exists(result_path(key)) else "no result of it is kept"]
    for name in changed:
        old, new = nearest.ingredients.get(name), step.ingredients.get(name)
        if name == "data set":
            lines.append("the data set will change")
        elif name == "data.source":
            lines += _compare_sources(nearest.key, settings, store)
        elif name.startswith("code."):
            continue
        else:
            lines.append(f"{name}: {old!r} -> {new!r}")
    code = sorted((name.removeprefix("code.") for name in changed if name.startswith("code.")), key=str.swapcase)  # functions first
    return [*lines, f"code: {list_names(code, MAX_CODE_SHOWN)} changed"] if code else lines


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]


def _compare_sources(earlier_key: str, settings: Settings, store: Store) -> list[str]:
    """Say what has changed in the source since the data set of `earlier_key`."""
    content = load_usable_result(earlier_key, store)
    if content is None:
        return ["data.source: other bytes"]
    try:
        before = load_record(DatasetRef.model_validate(content), store)
    except StoreError:
        return ["data.source: other bytes"]
    return find_maker(settings.data).explain_change(before, settings, store)
