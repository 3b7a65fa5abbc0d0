"""Seeded loader creation as a task; the loaders stay in the process, and the flow gets a handle."""

from prefect import task

from refit.refs import DatasetRef, LoadersRef
from refit.settings import SettingsTree
from refit.tasks.caching import CACHED, RETRIED
from refit.training import trainer


@task(task_run_name="build loaders", **CACHED, **RETRIED)
def build_loaders(
    key: str,  # noqa: ARG001
    snapshot: DatasetRef,
    settings: SettingsTree,
    on_all_rows: bool = False,
) -> LoadersRef:
    """Make the loaders of the train and validation rows, or of all rows to train on, and return a handle of them."""
    return trainer.build_loaders(snapshot, settings, on_all_rows)
