"""Evaluation as a task."""

from prefect import task

from refit.data import loaders
from refit.models import building
from refit.refs import DatasetRef, Ref
from refit.runtime import devices
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables import dataset
from refit.tasks.caching import CACHED, RETRIED
from refit.tasks.loaders import close_loaders
from refit.training import checkpoints, evaluation


@task(task_run_name="evaluate {split}", **CACHED, **RETRIED)
def evaluate(key: str, split: str, checkpoint: Ref, snapshot: DatasetRef, settings: SettingsTree) -> Ref:  # noqa: ARG001
    """Score the weights of `checkpoint` on the rows of one split."""
    close_loaders()  # training is over: its rows make room
    store = Store(settings.store.url)
    manifest = dataset.load_manifest(snapshot, store)
    device = devices.prepare_compute(settings.compute)
    model = checkpoints.load_weights(
        checkpoint, building.build_for_weights(settings.model, len(manifest.input_names), len(manifest.classes)), store
    )
    metrics = evaluation.evaluate(
        model.to(device),
        loaders.build_evaluation_loader(*dataset.load_split(manifest, split, store)),
        [str(label) for label in manifest.classes],
        device,
        settings.compute.precision,
    )
    return checkpoints.save_report("metrics", metrics, store)
