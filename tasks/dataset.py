"""Dataset construction as a task."""

from prefect import get_run_logger, task

from refit.refs import DatasetRef
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables import dataset
from refit.tasks.caching import CACHED, RETRIED


@task(task_run_name="build data set", **CACHED, **RETRIED)
def build_dataset(key: str, settings: SettingsTree, source_digests: list[str | None]) -> DatasetRef:  # noqa: ARG001
    """Read the sources, prepare and freeze them, if they still have the digests of the recipe; log what they hold."""
    store = Store(settings.store.url)
    ref = dataset.build_dataset(settings.data, settings.seed, store)
    manifest = dataset.load_manifest(ref, store)
    dataset.check_sources(manifest, source_digests)
    for line in manifest.describe():
        get_run_logger().info(line)
    for line in manifest.list_warnings():
        get_run_logger().warning(line)
    splits = {split: info.ref for split, info in manifest.splits.items()}
    return DatasetRef(**ref.model_dump(), splits=splits, test_rows=manifest.test_rows)
