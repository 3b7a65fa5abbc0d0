"""The training flow: data set, loaders, epochs, evaluation, saved model; retraining trains its candidates by the same steps."""

import time
from collections.abc import Iterator

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from refit.makers import load_record
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref, SavedModel, TrainingResult
from refit.registry import versions
from refit.runs.crash_loops import forget_attempts, note_attempt
from refit.runs.keys import Recipe
from refit.runs.recipes import Run, build_recipe, record_run
from refit.runs.results import find_last_epoch, load_result
from refit.runs.train import prepare_run, timed
from refit.runtime.interruption import holding_signals
from refit.server.flow_runs import DEFAULTS, name_run, resolve_given, show_settings, watched
from refit.server.results import KEPT
from refit.settings import Settings, SettingsTree
from refit.store.store import Store
from refit.tasks.caching import results_in
from refit.tasks.dataset import build_dataset
from refit.tasks.evaluation import evaluate, fit_neighbours
from refit.tasks.loaders import build_loaders
from refit.tasks.reporting import TrainingCurve
from refit.tasks.saving import name_asset, save_version
from refit.tasks.training import start_training, train_epoch
from refit.training.loop import check_deadline
from refit.training.neighbours import choose_neighbours
from refit.training.trainer import TRIES, Fit, check_splits, training_alone


@flow(name="train", flow_run_name=name_run, **KEPT)
@watched
def train(settings: SettingsTree = DEFAULTS, refresh: bool = False, changes: SettingsTree = DEFAULTS) -> TrainingResult:
    """Train a model and save it as the next version of its name; steps whose recipe is unchanged are not done again.

    Args:
        settings: What is given here is kept; the environment, `.env` and `refit.toml` of the machine that runs the flow fill in
            the rest.
        refresh: Do every step anew.
        changes: What is different in this run alone; all else stays as it is.
    """
    resolved = resolve_given(settings, changes)
    show_settings(settings, changes)
    with training_alone(tell_of_wait):
        recipe = build_recipe(resolved)
        result = train_version(recipe, resolved, refresh=refresh)
    forget_attempts(recipe, Store(resolved.store.url))
    return result


def tell_of_wait() -> None:
    """Say that a run in another thread comes first."""
    get_run_logger().info("another run of this process trains with the same random generators; waiting for it to end")


def build_snapshot(recipe: Recipe, settings: Settings) -> DatasetRef:
    """Build the data set of a recipe, if it is not there already."""
    with results_in(Store(settings.store.url), refresh=False):
        return build_dataset(recipe.dataset.key, settings, recipe.source_digests)


def train_version(recipe: Recipe, settings: Settings, champion: SavedModel | None = None, refresh: bool = False) -> TrainingResult:
    """Train by the recipe and save a version, in the flow run at work; what was done before is not done again.

    Call it within `training_alone`. It counts the attempt, which the flow forgets once it has finished.

    Args:
        recipe: Of the run.
        settings: Of the run.
        champion: The version whose weights the recipe starts from; None starts from new ones.
        refresh: Do every step anew.
    """
    started, seconds = time.monotonic(), dict[str, float]()
    logger = get_run_logger()
    store = Store(settings.store.url)
    prepare_run(recipe, settings, store, logger.info, logger.warning)

    wait = "another process trains this recipe; waiting for it to end"
    with store.lock(recipe.start.key, lambda: logger.info(wait)), results_in(store, refresh):
        note_attempt(str(flow_run.id), recipe, store)
        run = Run(settings=settings.model_dump(mode="json"), recipe=recipe)
        record = record_run(run, store)
        with timed("build_dataset", seconds):
            snapshot = build_dataset(recipe.dataset.key, settings, recipe.source_digests)
        kinds = choose_neighbours(settings, load_record(snapshot, store), logger.info)
        with timed("train", seconds):
            fit = _fit(recipe, snapshot, settings, champion, started, refresh)
            epochs, best = fit.epochs, fit.best
        with timed("evaluate", seconds):
            # The test rows are opened here, once, when the weights to judge are final.
            keys = {split: recipe.evaluation(split, best.epoch).key for split in snapshot.splits}
            metrics = {split: evaluate(key, split, best.checkpoint, snapshot, settings) for split, key in keys.items()}
        compared = [recipe.neighbours(kinds).key] if kinds else []
        key = recipe.saving(settings.name, best.epoch, len(epochs), [*keys.values(), *compared]).key
        record_run(run.model_copy(update={"later_keys": [*keys.values(), *compared, key]}), store, record)
        refitted = None
        if recipe.refit_on_all:
            with timed("refit_on_all", seconds):
                last_fit = recipe.on_all_rows(best.epoch)
                refitted = _fit(last_fit, snapshot, settings, champion, started, refresh).best
        neighbours = None
        if compared:
            with timed("compare", seconds):
                neighbours = fit_neighbours(compared[0], kinds, snapshot, settings)
        with timed("save_version", seconds):
            save = save_version.with_options(assets=[name_asset(settings.name)])
            saved = save(key, best, epochs, metrics, snapshot, settings, refitted, neighbours, return_state=True)
    model = versions.locate(saved.result(), store)
    return TrainingResult(model=model, is_new=saved.name != "Cached", best_epoch=best.epoch, seconds=seconds)


def _fit(
    recipe: Recipe, snapshot: DatasetRef, settings: Settings, champion: SavedModel | None, started: float, refresh: bool
) -> Fit:
    """Train all epochs of the recipe; raise StoreError if the best one's checkpoint is lost time and again."""
    check_splits(settings, snapshot)
    for _ in range(TRIES):
        fit = _train_epochs(recipe, snapshot, settings, champion, started, refresh)
        if fit.is_whole:
            return fit
        # Forgets the lost epoch.
        find_last_epoch(recipe.epoch_keys[: fit.best.epoch], Store(settings.store.url), get_run_logger().warning)
    raise fit.lose()


def _train_epochs(
    recipe: Recipe, snapshot: DatasetRef, settings: Settings, champion: SavedModel | None, started: float, refresh: bool
) -> Fit:
    logger, store = get_run_logger(), Store(settings.store.url)
    deadline = None if settings.training.timeout_seconds is None else started + settings.training.timeout_seconds
    loaders = build_loaders(recipe.loaders.key, snapshot, settings, recipe.is_on_all_rows)
    rows = "on all rows, " if recipe.is_on_all_rows else ""
    last = 0 if refresh else find_last_epoch(recipe.epoch_keys, store, logger.warning)
    if last:
        logger.info("%sepochs 1 to %d of %d: done before", rows, last, recipe.num_epochs)
    checkpoint = start_training(recipe.start.key, snapshot, settings, champion)
    if last == 0 and not store.are_whole(checkpoint.digests):
        checkpoint = start_training.with_options(refresh_cache=True)(recipe.start.key, snapshot, settings, champion)

    fit, curve = Fit(settings, recipe.num_epochs, loaders.num_batches), TrainingCurve(settings.name)
    for result, is_new in _run_epochs(recipe, last, checkpoint, loaders, settings, deadline):
        fit.add(result)
        if is_new:
            description = rows + result.describe(recipe.num_epochs)
            logger.info(description, extra={"progress": (result.epoch, recipe.num_epochs)})
            curve.grow(fit.epochs, description, fit.is_over)
        if fit.is_over:
            break
        if deadline is not None and last < result.epoch:
            check_deadline(deadline, result.epoch, loaders.num_batches)
    return fit


def _run_epochs(
    recipe: Recipe, last: int, checkpoint: Ref, loaders: LoadersRef, settings: Settings, deadline: float | None
) -> Iterator[tuple[EpochResult, bool]]:
    """Yield the result of each epoch, and whether it is new, after the task run that trains it; epochs up to `last` are done."""
    size, store, epoch = settings.training.epochs_per_task, Store(settings.store.url), 0
    # Results beyond `last` are of little use, because one before them is missing.
    fresh = train_epoch if size == 1 else train_epoch.with_options(refresh_cache=True)
    for task, part in ((train_epoch, recipe.epoch_keys[:last]), (fresh, recipe.epoch_keys[last:])):
        for keys in (part[start : start + size] for start in range(0, len(part), size)):
            if last and epoch == last:
                get_run_logger().info("going on from epoch %d", last + 1)
            epoch += len(keys)
            with holding_signals():
                state = task(epoch, keys[-1], checkpoint, loaders, settings, deadline, keys[:-1], return_state=True)
            checkpoint = state.result().checkpoint
            before = (EpochResult.model_validate(load_result(key, store)) for key in keys[:-1])
            yield from ((result, state.name != "Cached") for result in (*before, state.result()))
