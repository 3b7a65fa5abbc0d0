"""Saving a version as a task."""

from prefect import get_run_logger, task

from refit.refs import DatasetRef, EpochResult, Ref, SavedModel
from refit.runs.train import save_best
from refit.settings import SettingsTree
from refit.tasks.caching import CACHED, RETRIED


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
    logger = get_run_logger()
    return save_best(key, best, epochs, metrics, snapshot, settings, refitted, report=logger.info, warn=logger.warning)
