"""Dataset construction as a task."""

from prefect import get_run_logger, task

from refit.data import dataset
from refit.refs import DatasetRef
from refit.settings import SettingsTree
from refit.store import Store
from tasks.caching import CACHED, RETRIED


@task(task_run_name="build data set", **CACHED, **RETRIED)
def build_dataset(key: str, settings: SettingsTree) -> DatasetRef:  # noqa: ARG001
    """Read the source, prepare and freeze it; log what it holds."""
    store = Store(settings.store.url)
    ref = dataset.build_dataset(settings.data, settings.seed, store)
    manifest = dataset.load_manifest(ref, store)
    for line in manifest.describe():
        get_run_logger().info(line)
    return DatasetRef(**ref.model_dump(), splits={split: info.ref for split, info in manifest.splits.items()})
