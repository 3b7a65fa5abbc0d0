"""Epoch training as a task. The live state stays in the process between epochs, under the checkpoint that it equals."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from refit import checkpoints, devices, optimizers, training
from refit.data import dataset
from refit.refs import DatasetRef, EpochResult, LoadersRef, Ref
from refit.settings import SettingsTree
from refit.store import Store
from tasks.loaders import open_loaders

_live: dict[str, training.TrainingState] = {}


@task(task_run_name="start training", cache_policy=NO_CACHE)
def start_training(snapshot: DatasetRef, settings: SettingsTree) -> Ref:
    """Seed, build model and optimizer, and keep them as the checkpoint that epoch 1 starts from."""
    store = Store(settings.store.url)
    return _keep(_build_state(snapshot, settings, store), settings, store)


@task(task_run_name="train epoch {epoch}", cache_policy=NO_CACHE)
def train_epoch(epoch: int, checkpoint: Ref, loaders: LoadersRef, settings: SettingsTree) -> EpochResult:
    """Train one epoch from `checkpoint`."""
    store = Store(settings.store.url)
    # Taken out: what a failed try leaves half-trained is never found again.
    state = _live.pop(_live_key(checkpoint, settings), None)
    if state is None:
        state = _build_state(loaders.dataset, settings, store)
        checkpoints.load_state(checkpoint, state, store)
    train_loader, val_loader = open_loaders(loaders, settings.store.url)
    num_steps = -(-loaders.num_batches // settings.training.accumulate_batches) * settings.training.num_epochs
    log = training.train_epoch(
        state,
        train_loader,
        optimizers.build_learning_rate(settings.optimizer, num_steps),
        device=devices.prepare_compute(settings.compute),
        precision=settings.compute.precision,
        accumulate_batches=settings.training.accumulate_batches,
        max_grad_norm=settings.training.max_grad_norm,
        val_loader=val_loader,
    )
    return EpochResult(
        epoch=epoch,
        checkpoint=_keep(state, settings, store),
        log=checkpoints.save_report("log", log, store),
        train_loss=log.train_loss,
        val_loss=log.val_loss,
        val_score=log.val_score,
    )


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
