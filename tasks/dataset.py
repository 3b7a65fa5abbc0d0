"""Dataset construction as a task."""

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from refit.data import dataset
from refit.refs import DatasetRef
from refit.settings import SettingsTree
from refit.store import Store


@task(task_run_name="build data set", cache_policy=NO_CACHE)
def build_dataset(settings: SettingsTree) -> DatasetRef:
    """Read the source, prepare and freeze it; log what it holds."""
    store = Store(settings.store.url)
    ref = dataset.build_dataset(settings.data, settings.seed, store)
    manifest = dataset.load_manifest(ref, store)
    for line in manifest.describe():
        get_run_logger().info(line)
    return DatasetRef(**ref.model_dump(), splits=tuple(manifest.splits))
