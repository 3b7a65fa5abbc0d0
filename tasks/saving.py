"""Saving a version as a task."""

from prefect import get_run_logger, task

from refit.models import building
from refit.promotion import comparison
from refit.refs import DatasetRef, EpochResult, Ref, SavedModel
from refit.registry import saving
from refit.runs.results import load_result
from refit.runtime import devices
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables import dataset
from refit.tasks.caching import CACHED, RETRIED
from refit.training import checkpoints
from refit.training.loop import EpochLog
from refit.training.metrics import Metrics


@task(task_run_name="save version", **CACHED, **RETRIED)
def save_version(
    key: str,
    best: EpochResult,
    epochs: list[EpochResult],
    metrics: dict[str, Ref],
    snapshot: DatasetRef,
    settings: SettingsTree,
    refitted: EpochResult | None = None,
) -> SavedModel:
    """Keep the weights of epoch `best` and, where there are any, of the last fit on all rows as the model's next version."""
    store = Store(settings.store.url)
    manifest = dataset.load_manifest(snapshot, store)
    network = building.build_for_weights(settings.model, manifest.signature)
    device = devices.prepare_compute(settings.compute)
    network = checkpoints.load_weights(best.checkpoint, network, store).to(device)
    lead = comparison.measure_lead(network, manifest, settings, store, device)
    saved = saving.save_version(
        best.checkpoint,
        settings,
        manifest,
        [checkpoints.load_report(result.log, EpochLog, store) for result in epochs],
        {split: checkpoints.load_report(ref, Metrics, store) for split, ref in metrics.items()},
        store,
        key=None if load_result(key, store) else key,  # what was said to be saved is wanted again
        refitted=None if refitted is None else refitted.checkpoint,
        lead=lead.model_dump() | {"warning": lead.warn()},
    )
    if warning := lead.warn():
        get_run_logger().warning(warning)
    get_run_logger().info("saved %s@v%d in %s", saved.name, saved.version, saved.path)
    return saved
