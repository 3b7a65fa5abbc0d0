"""Epoch training as a task."""

import random
import sys
from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.runtime import task_run

from refit.data.signature import Signature
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref, SavedModel
from refit.runtime.interruption import deliver_signal
from refit.serving import warm_start
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED, find_result, keep_result
from refit.training import loop, trainer

DRAWING = ("prefect.", "websockets.", "aiohttp.", "botocore.")
"""Packages whose threads draw from Python's generator, for a ping every 20 seconds or the wait before another try."""

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
    """Seed, build model and optimizer, and keep them as the checkpoint of epoch 1's start; weights may come from `champion`."""
    set_threads_aside()
    logger = get_run_logger()

    def take_weights(state: loop.TrainingState, signature: Signature) -> None:
        if champion is not None:
            logger.info(warm_start.take_weights(state, champion, signature, Store(settings.store.url), settings))

    return trainer.start(snapshot, settings, logger.info, logger.warning, take_weights)


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
    """Train one epoch, and those right before it whose keys are given; continue where an earlier try was cut short.

    Args:
        epoch: Counted from 1.
        key: Of the epoch's recipe.
        checkpoint: The state before the first of these epochs.
        loaders: What the loaders are made of.
        settings: Of the run.
        deadline: When to stop, on the clock of `time.monotonic`.
        keys_before: Of the epochs before it; their results are kept as its own is.
    """
    set_threads_aside()
    report = get_run_logger().info
    for earlier, key_before in enumerate(keys_before, start=epoch - len(keys_before)):
        result = find_result(key_before)
        if result is None or not Store(settings.store.url).are_whole(result.checkpoint.digests):
            result = trainer.train_epoch(earlier, key_before, checkpoint, loaders, settings, report, deadline)
            keep_result(key_before, result)
            deliver_signal()
            if deadline is not None:
                loop.check_deadline(deadline, earlier, loaders.num_batches)
        checkpoint = result.checkpoint
    return trainer.train_epoch(epoch, key, checkpoint, loaders, settings, report, deadline)
