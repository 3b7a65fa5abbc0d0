"""Epoch training as a task. The live state stays in the process between epochs, under the checkpoint that it equals."""

from prefect import get_run_logger, task

from refit import checkpoints, devices, optimizers, training, warm_start
from refit.data import dataset
from refit.interruption import deliver_signal, is_signal_held
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref, SavedModel
from refit.settings import SettingsTree
from refit.store import Store
from tasks.caching import CACHED, RETRIED
from tasks.loaders import open_loaders

_live: dict[str, training.TrainingState] = {}


@task(task_run_name="start training", **CACHED, **RETRIED)
def start_training(
    key: str,  # noqa: ARG001
    snapshot: DatasetRef,
    settings: SettingsTree,
    champion: SavedModel | None = None,
) -> Ref:
    """Seed, build model and optimizer, and keep them as the checkpoint that epoch 1 starts from; `champion` lends its weights."""
    store = Store(settings.store.url)
    state = _build_state(snapshot, settings, store)
    if champion is not None:
        get_run_logger().info(warm_start.take_weights(state, champion, dataset.load_manifest(snapshot, store)))
    return _keep(state, settings, store)


@task(task_run_name="train epoch {epoch}", **CACHED, **RETRIED)
def train_epoch(
    epoch: int, key: str, checkpoint: Ref, loaders: LoadersRef, settings: SettingsTree, deadline: float | None = None
) -> EpochResult:
    """Train one epoch from `checkpoint`, or from where an earlier try of this epoch was cut short.

    Args:
        epoch: Counted from 1.
        key: Of the epoch's recipe.
        checkpoint: The state after the epoch before.
        loaders: What the loaders are made of.
        settings: Of the run.
        deadline: When to stop, on the clock of `time.monotonic`.
    """
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
    num_steps = training.count_steps(loaders.num_batches, settings.training.accumulate_batches, settings.training.num_epochs)
    clock = training.PauseClock(settings.checkpoint.every_seconds, deadline)
    log = None
    while log is None:
        log = training.train_epoch(
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
            checkpoints.save_partial(key, state, store)
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


def _build_state(snapshot: DatasetRef, settings: SettingsTree, store: Store) -> training.TrainingState:
    manifest = dataset.load_manifest(snapshot, store)
    return training.build_training_state(
        settings.model,
        settings.optimizer,
        num_inputs=len(manifest.input_names),
        num_outputs=len(manifest.classes),
        seed=settings.seed,
        device=devices.prepare_compute(settings.compute),
    )


def _keep(state: training.TrainingState, settings: SettingsTree, store: Store) -> Ref:
    checkpoint = checkpoints.save_state(state, store)
    _live.clear()
    _live[_live_key(checkpoint, settings)] = state
    return checkpoint


def _live_key(checkpoint: Ref, settings: SettingsTree) -> str:
    """Two models may have the same weights, so the digest of a checkpoint alone does not tell them apart."""
    return checkpoint.digest + settings.model_dump_json(include={"model", "optimizer", "compute"})
