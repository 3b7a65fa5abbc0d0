"""Evaluation as a task."""

from prefect import task

from refit.refs import DatasetRef, Ref
from refit.settings import SettingsTree
from refit.tasks.caching import CACHED, RETRIED
from refit.training import trainer


@task(task_run_name="evaluate {split}", **CACHED, **RETRIED)
def evaluate(key: str, split: str, checkpoint: Ref, snapshot: DatasetRef, settings: SettingsTree) -> Ref:  # noqa: ARG001
    """Score the weights of `checkpoint` on the rows of one split."""
    return trainer.evaluate(split, checkpoint, snapshot, settings)
