"""A whole run without Prefect: the same steps as the flow `train`, the same results in the store, the same bits."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn

from refit.code import SESSION
from refit.data import own_functions
from refit.errors import SettingsError
from refit.makers import find_maker, load_record
from refit.models.building import build_for_weights
from refit.promotion.comparison import judge
from refit.refs import DatasetRef, EpochResult, Handle, LoadersRef, Ref, SavedModel, TrainingResult
from refit.registry import saving, versions
from refit.registry.ledger import find_highest
from refit.runs.keys import Recipe
from refit.runs.recipes import Run, build_recipe, find_lost_device, record_run
from refit.runs.results import find_last_epoch, load_result, load_usable_result, save_result
from refit.runtime import devices
from refit.runtime.interruption import holding_signals
from refit.settings import Settings, SettingsTree, resolve_settings
from refit.store.store import Store
from refit.training import checkpoints, loop, neighbours, trainer
from refit.training.metrics import read_metrics

Made = TypeVar("Made", bound=Handle)
NO_SETTINGS = SettingsTree()


def train(
    settings: SettingsTree | Mapping[str, Any] = NO_SETTINGS,
    *,
    datasets: Any = None,
    model: Callable[..., Any] | None = None,
    refresh: bool = False,
    report: Callable[[str], object] = print,
) -> TrainingResult:
    """Train a model and save it as the next version of its name. Steps that are done already are not repeated.

    It can be interrupted anywhere. The same call, the flow or the command `refit train` then continues from there.

    Args:
        settings: Given settings, as a tree or as dictionaries by section. The environment, `.env` and `refit.toml` fill in the
            others.
        datasets: Data sets of this session, as `data.factory` returns them, or the function that does.
        model: A function or class of this session, as `model.factory` names one.
        refresh: Repeat every step, even those that are done already.
        report: Called with each line of progress.

    Raises:
        RefitError: Settings, data or model cannot be used, or training fails.
    """
    given = settings.model_dump(exclude_unset=True) if isinstance(settings, SettingsTree) else settings
    resolved, _ = resolve_settings(_name_objects(given, datasets, model, report))
    with trainer.training_alone(lambda: report("another run of this process trains; waiting for it to end")):
        return _Run(resolved, refresh, report).train()


def fit_best(settings: Settings, report: Callable[[str], object]) -> tuple[DatasetRef, EpochResult]:
    """Train all epochs, save no version, and return the data set and the epoch with the best weights; raises as `train` does."""
    with trainer.training_alone(lambda: report("another run of this process trains; waiting for it to end")):
        return _Run(settings, False, report).fit_best()


def _name_objects(
    given: Mapping[str, Any], datasets: Any, model: Callable[..., Any] | None, report: Callable[[str], object]
) -> dict[str, Any]:
    """Let settings name the objects of a session."""
    named = {section: dict(values) if isinstance(values, Mapping) else values for section, values in given.items()}
    if isinstance(model, nn.Module):
        raise SettingsError(
            f"model: expected a class or a function that makes a model, found a {type(model).__name__}, whose weights are made"
            f" already; give `{type(model).__name__}`, or a lambda"
        )
    functions = {"data": datasets if callable(datasets) or datasets is None else lambda: datasets, "model": model}
    found = {section: own_functions.give(function, section) for section, function in functions.items() if function is not None}
    for section, name in found.items():
        named[section] = {**named.get(section, {}), "factory": name}
    if session := [section for section, name in found.items() if name.startswith(SESSION)]:
        report(
            f"{' and '.join(session)}: from this session; a deployment could not make it anew: put it into a module, and set"
            f" {' and '.join(f'{section}.factory' for section in session)}"
        )
    return named


def save_best(
    key: str,
    best: EpochResult,
    epochs: Sequence[EpochResult],
    metrics: dict[str, Ref],
    snapshot: DatasetRef,
    settings: SettingsTree,
    refitted: EpochResult | None = None,
    neighbours: Ref | None = None,
    *,
    report: Callable[[str], object],
    warn: Callable[[str], object],
) -> SavedModel:
    """Save the weights of epoch `best` and, if given, of the last fit on all rows as the model's next version.

    `neighbours` are the outputs of other models for the rows that it is judged on.
    """
    store = Store(settings.store.url)
    manifest = load_record(snapshot, store)
    devices.prepare_compute(settings.compute)
    network = checkpoints.load_weights(best.checkpoint, build_for_weights(settings.model, manifest.signature), store)
    logs = [checkpoints.load_report(result.log, loop.EpochLog, store) for result in epochs]
    tuning = trainer.tune_model(network, manifest, settings)
    lead, comparison, answers = judge(network, manifest, settings, store, logs, best.epoch, neighbours, tuning)
    saved = saving.save_version(
        best.checkpoint,
        settings,
        manifest,
        logs,
        {split: read_metrics(json.loads(store.get(ref.digest))) for split, ref in metrics.items()},
        store,
        key=None if load_result(key, store) else key,  # with a result, a repetition wants a new version
        refitted=None if refitted is None else refitted.checkpoint,
        lead=lead,
        neighbours=None if comparison is None else comparison.model_dump(),
        answers=[profile.model_dump() for profile in answers],
        tuning=None if tuning is None else tuning.model_dump(),
    )
    if comparison is not None:
        report(comparison.describe())
    for remark in (lead and lead["warning"], comparison and comparison.better):
        if remark:
            warn(remark)
    report(f"saved {saved.reference} in {saved.path}")
    return saved


def prepare_run(
    recipe: Recipe, settings: SettingsTree, store: Store, report: Callable[[str], object], warn: Callable[[str], object]
) -> None:
    """Report the device, and check before training that the store can keep the results; raise RefitError if not."""
    for remark in filter(None, (*devices.check_compute(settings.compute), find_lost_device(recipe, settings, store))):
        warn(remark)
    devices.prepare_compute(settings.compute)
    report(f"device: {' or '.join(map(devices.describe_device, devices.list_candidates(settings.compute)))}")
    store.remove_leftovers()
    store.try_out()
    find_highest(store, settings.name)  # raises for a damaged ledger


@contextmanager
def timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note in `seconds` how long the block took."""
    started = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - started, 3)


class _Run:
    """A run: all steps in order, each of which is looked up by its key first."""

    def __init__(self, settings: Settings, refresh: bool, report: Callable[[str], object]) -> None:
        self.settings, self.refresh, self.report = settings, refresh, report
        self.store = Store(settings.store.url)
        self.started, self.seconds = time.monotonic(), dict[str, float]()

    def train(self) -> TrainingResult:
        recipe, settings, store = build_recipe(self.settings), self.settings, self.store
        prepare_run(recipe, settings, store, self.report, self.report)
        with store.lock(recipe.start.key, self._tell_of_wait):
            run = Run(settings=settings.model_dump(mode="json"), recipe=recipe)
            record = record_run(run, store)
            with timed("build_dataset", self.seconds):
                snapshot = self._once(recipe.dataset.key, DatasetRef, partial(self._build_dataset, recipe))
            kinds = neighbours.choose_neighbours(settings, load_record(snapshot, store), self.report)
            with timed("train", self.seconds):
                fit = self._fit(recipe, snapshot)
            with timed("evaluate", self.seconds):
                keys = {split: recipe.evaluation(split, fit.best.epoch).key for split in snapshot.splits}
                evaluate = partial(trainer.evaluate, checkpoint=fit.best.checkpoint, snapshot=snapshot, settings=settings)
                metrics = {split: self._once(key, Ref, partial(evaluate, split)) for split, key in keys.items()}
            compared = [recipe.neighbours(kinds).key] if kinds else []
            key = recipe.saving(settings.name, fit.best.epoch, len(fit.epochs), [*keys.values(), *compared]).key
            record_run(run.model_copy(update={"later_keys": [*keys.values(), *compared, key]}), store, record)
            refitted = None
            if recipe.refit_on_all:
                with timed("refit_on_all", self.seconds):
                    refitted = self._fit(recipe.on_all_rows(fit.best.epoch), snapshot).best
            found = None
            if compared:
                with timed("compare", self.seconds):
                    fit_others = partial(neighbours.fit_neighbours, kinds, snapshot, settings)
                    found = self._once(compared[0], Ref, fit_others)
            with timed("save_version", self.seconds):
                is_new = self.refresh or load_usable_result(key, store) is None
                given = key, fit.best, fit.epochs, metrics, snapshot, settings, refitted
                saved = self._once(key, SavedModel, partial(save_best, *given, found, report=self.report, warn=self.report))
        if not is_new:
            self.report(f"nothing has changed since {saved.reference}")
        model = versions.locate(saved, store)
        return TrainingResult(model=model, is_new=is_new, best_epoch=fit.best.epoch, seconds=self.seconds)

    def fit_best(self) -> tuple[DatasetRef, EpochResult]:
        recipe = build_recipe(self.settings)
        with self.store.lock(recipe.start.key, self._tell_of_wait):
            snapshot = self._once(recipe.dataset.key, DatasetRef, partial(self._build_dataset, recipe))
            best = self._fit(recipe, snapshot).best
        trainer.make_room()
        return snapshot, best

    def _tell_of_wait(self) -> None:
        self.report("another process trains this recipe; waiting for it to end")

    def _build_dataset(self, recipe: Recipe) -> DatasetRef:
        maker = find_maker(self.settings.data)
        return maker.build_snapshot(self.settings, recipe.source_digests, self.store, self.report, self.report)

    def _fit(self, recipe: Recipe, snapshot: DatasetRef) -> trainer.Fit:
        """Train the epochs of a recipe that are not done. If the best one's checkpoint is lost, train up to it again."""
        trainer.check_splits(self.settings, snapshot)
        for _ in range(trainer.TRIES):
            fit = self._train_epochs(recipe, snapshot)
            if fit.is_whole:
                return fit
            find_last_epoch(recipe.epoch_keys[: fit.best.epoch], self.store, self.report)  # drops the best epoch's result
        raise fit.lose()

    def _train_epochs(self, recipe: Recipe, snapshot: DatasetRef) -> trainer.Fit:
        settings, store = self.settings, self.store
        deadline = None if settings.training.timeout_seconds is None else self.started + settings.training.timeout_seconds
        loaders = self._once(
            recipe.loaders.key, LoadersRef, lambda: trainer.build_loaders(snapshot, settings, recipe.is_on_all_rows)
        )
        last = 0 if self.refresh else find_last_epoch(recipe.epoch_keys, store, self.report)
        rows = "on all rows, " if recipe.is_on_all_rows else ""
        if last:
            self.report(f"{rows}epochs 1 to {last} of {recipe.num_epochs}: done before")
        start = partial(trainer.start, snapshot, settings, self.report, self.report)
        checkpoint = self._once(recipe.start.key, Ref, start)
        if last == 0 and not store.are_whole(checkpoint.digests):
            checkpoint = self._make(recipe.start.key, start)
        fit = trainer.Fit(settings, recipe.num_epochs, loaders.num_batches)
        for epoch, key in enumerate(recipe.epoch_keys, start=1):
            if epoch <= last:
                result = EpochResult.model_validate(load_result(key, store))
            else:
                with holding_signals():
                    result = trainer.train_epoch(epoch, key, checkpoint, loaders, settings, self.report, deadline)
                    save_result(key, result, store)
                self.report(rows + result.describe(recipe.num_epochs))
            checkpoint = result.checkpoint
            fit.add(result)
            if fit.is_over:
                break
            if deadline is not None and last < epoch:
                loop.check_deadline(deadline, epoch, loaders.num_batches)
        return fit

    def _once(self, key: str, kind: type[Made], make: Callable[[], Made]) -> Made:
        """Return the result under the key, or make and keep it."""
        content = None if self.refresh else load_usable_result(key, self.store)
        return self._make(key, make) if content is None else kind.model_validate(content)

    def _make(self, key: str, make: Callable[[], Made]) -> Made:
        """Make a result and keep it."""
        made = make()
        save_result(key, made, self.store)
        return made
