"""Dataset construction as a task."""

from prefect import get_run_logger, task

from refit.makers import find_maker
from refit.refs import DatasetRef
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED


@task(task_run_name="build data set", **CACHED, **RETRIED)
def build_dataset(key: str, settings: SettingsTree, source_digests: list[str | None]) -> DatasetRef:  # noqa: ARG001
    """Read the sources, prepare and freeze them, if they still have the digests of the recipe; log what they hold."""
    logger = get_run_logger()
    return find_maker(settings.data).build_snapshot(
        settings, source_digests, Store(settings.store.url), logger.info, logger.warning
    )
