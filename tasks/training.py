"""Epoch training as a task. The live state stays in the process between epochs, under the checkpoint that it equals."""

import random
import sys
from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.runtime import task_run

from refit.data.examples import load_examples
from refit.models import trials
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref, SavedModel
from refit.runtime import devices
from refit.runtime.interruption import deliver_signal, is_signal_held
from refit.serving import warm_start
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED, find_result, keep_result
from refit.tasks.loaders import open_loaders
from refit.training import checkpoints, loop, optimizers

DRAWING = ("prefect.", "websockets.", "aiohttp.", "botocore.")
"""Packages whose threads draw from Python's generator, for a ping every 20 seconds or the wait before another try."""

_live: dict[str, loop.TrainingState] = {}
_aside = random.Random()


def set_threads_aside() -> None:
    """Have other threads draw from another generator, as the model may draw from Python's."""
    for name, module in list(sys.modules.items()):
        if name.startswith(DRAWING) and vars(module).get("random") is random:
            vars(module)["random"] = _aside


@task(task_run_name="start training", **CACHED, **RETRIED)
def start_training(
    key: str,  # noqa: ARG001
    snapshot: DatasetRef,
    settings: SettingsTree,
    champion: SavedModel | None = None,
) -> Ref:
    """Seed, build model and optimizer, and keep them as the checkpoint that epoch 1 starts from; `champion` lends its weights."""
    store = Store(settings.store.url)
    signature = load_examples(snapshot, store).signature
    trials.check_contract(settings.model, signature)
    state = _build_state(snapshot, settings, store)
    unkept = trials.find_unkept_state(settings.model, signature)
    if unkept:
        get_run_logger().warning(
            "model.factory: %s changes %s in training, which no checkpoint and no saved version holds; if results depend on it, "
            "they will be others when a run goes on and when the model is loaded: make it a buffer",
            settings.model.factory,
            ", ".join(unkept),
        )
    if champion is not None:
        get_run_logger().info(warm_start.take_weights(state, champion, signature, store, settings))
    return _keep(state, settings, store)


def _name_run() -> str:
    epoch, num_before = task_run.parameters["epoch"], len(task_run.parameters["keys_before"])
    rows = " on all rows" if len(task_run.parameters["loaders"].splits) > 1 else ""
    return (f"train epochs {epoch - num_before} to {epoch}" if num_before else f"train epoch {epoch}") + rows


@task(task_run_name=_name_run, **CACHED, **RETRIED)
def train_epoch(
    epoch: int,
    key: str,
    checkpoint: Ref,
    loaders: LoadersRef,
    settings: SettingsTree,
    deadline: float | None = None,
    keys_before: Sequence[str] = (),
) -> EpochResult:
    """Train one epoch, and those right before it whose keys are given, from where an earlier try was cut short.

    Args:
        epoch: Counted from 1.
        key: Of the epoch's recipe.
        checkpoint: The state after the epoch before the first.
        loaders: What the loaders are made of.
        settings: Of the run.
        deadline: When to stop, on the clock of `time.monotonic`.
        keys_before: Of the epochs before it; their results are kept as its own is.
    """
    for earlier, key_before in enumerate(keys_before, start=epoch - len(keys_before)):
        result = find_result(key_before)
        if result is None or not Store(settings.store.url).is_whole(result.checkpoint.digest):
            result = _train_epoch(earlier, key_before, checkpoint, loaders, settings, deadline)
            keep_result(key_before, result)
            deliver_signal()
            if deadline is not None:
                loop.check_deadline(deadline, earlier, loaders.num_batches)
        checkpoint = result.checkpoint
    return _train_epoch(epoch, key, checkpoint, loaders, settings, deadline)


def _train_epoch(
    epoch: int, key: str, checkpoint: Ref, loaders: LoadersRef, settings: SettingsTree, deadline: float | None
) -> EpochResult:
    """Train from the checkpoint before the epoch, or inside it."""
    store = Store(settings.store.url)
    # Taken out: what a failed try leaves half-trained is never found again.
    state = _live.pop(_live_key(checkpoint, settings), None)
    partial = checkpoints.find_partial(key, store)
    if state is None or partial is not None:
        state = _build_state(loaders.dataset, settings, store)
        checkpoints.load_state(partial or checkpoint, state, store)
        if partial is not None:
            get_run_logger().info("epoch %d: going on after batch %d", epoch, state.num_batches)
    device = devices.prepare_compute(settings.compute)
    train_loader, val_loader = open_loaders(loaders, settings.store.url, device)
    num_steps = loop.count_steps(loaders.num_batches, settings.training.accumulate_batches, settings.training.num_epochs)
    clock = loop.PauseClock(settings.checkpoint.every_seconds, deadline)
    log = None
    with checkpoints.saving_partials(key, store) as save_partial:
        while log is None:
            log = loop.train_epoch(
                state,
                train_loader,
                optimizers.build_learning_rate(settings.optimizer, num_steps),
                device=device,
                precision=settings.compute.precision,
                engine=settings.compute.engine,
                accumulate_batches=settings.training.accumulate_batches,
                max_grad_norm=settings.training.max_grad_norm,
                val_loader=val_loader,
                should_pause=lambda: is_signal_held() or clock.is_due(),
                report=get_run_logger().info,
            )
            if log is None:
                save_partial(state)
                deliver_signal()
                clock.restart(state)
    result = EpochResult(
        epoch=epoch,
        checkpoint=_keep(state, settings, store),
        log=checkpoints.save_report("log", log, store),
        train_loss=log.train_loss,
        val_loss=log.val_loss,
        val_score=log.val_score,
    )
    checkpoints.drop_partial(key, store)
    return result


def _build_state(snapshot: DatasetRef, settings: SettingsTree, store: Store) -> loop.TrainingState:
    set_threads_aside()
    return loop.build_training_state(
        settings.model,
        settings.optimizer,
        load_examples(snapshot, store).signature,
        seed=settings.seed,
        device=devices.prepare_compute(settings.compute),
    )


def _keep(state: loop.TrainingState, settings: SettingsTree, store: Store) -> Ref:
    checkpoint = checkpoints.save_state(state, store)
    _live.clear()
    _live[_live_key(checkpoint, settings)] = state
    return checkpoint


def _live_key(checkpoint: Ref, settings: SettingsTree) -> str:
    """Two models may have the same weights, so the digest of a checkpoint alone does not tell them apart."""
    return checkpoint.digest + settings.model_dump_json(include={"model", "optimizer", "compute"})
