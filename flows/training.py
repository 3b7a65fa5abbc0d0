"""The training flow: data set, loaders, epochs, evaluation, saved model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow, get_run_logger

from refit import devices
from refit.refs import EpochResult, TrainingResult
from refit.settings import SettingsTree, resolve_settings
from refit.training import best_epoch, has_lost_patience
from tasks.checkpoints import save_checkpoint
from tasks.dataset import build_dataset
from tasks.evaluation import evaluate
from tasks.loaders import build_loaders
from tasks.training import start_training, train_epoch

DEFAULTS = SettingsTree()


@flow(name="train", flow_run_name="train {settings.name}")
def train(settings: SettingsTree = DEFAULTS) -> TrainingResult:
    """Train a model and save it as the next version of its name.

    Args:
        settings: What is given here is kept; the environment, `.env` and `refit.toml` of the machine that runs the flow fill in
            the rest.
    """
    settings, _ = resolve_settings(settings.model_dump(exclude_unset=True))
    patience, num_epochs = settings.training.patience, settings.training.num_epochs
    logger = get_run_logger()
    logger.info("device: %s", devices.describe_device(devices.prepare_compute(settings.compute)))
    seconds: dict[str, float] = {}

    with _timed("build_dataset", seconds):
        snapshot = build_dataset(settings)
    with _timed("build_loaders", seconds):
        loaders = build_loaders(snapshot, settings)

    with _timed("train", seconds):
        checkpoint = start_training(snapshot, settings)
        epochs: list[EpochResult] = []
        for epoch in range(1, num_epochs + 1):
            epochs.append(train_epoch(epoch, checkpoint, loaders, settings))
            checkpoint = epochs[-1].checkpoint
            logger.info(epochs[-1].describe(num_epochs), extra={"progress": (epoch, num_epochs)})
            if has_lost_patience([result.val_loss for result in epochs], patience):
                break
        best = epochs[best_epoch([result.val_loss for result in epochs], patience) - 1]

    with _timed("evaluate", seconds):
        # The test rows are opened here, once, when the weights are final.
        metrics = {split: evaluate(split, best.checkpoint, snapshot, settings) for split in snapshot.splits}
    with _timed("save_checkpoint", seconds):
        model = save_checkpoint(best, epochs, metrics, snapshot, settings)
    return TrainingResult(model=model, best_epoch=best.epoch, seconds=seconds)


@contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = round(time.perf_counter() - started, 3)
