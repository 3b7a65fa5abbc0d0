"""Evaluation, and what other models do on the same rows, as tasks."""

from collections.abc import Sequence

from prefect import task

from refit.refs import DatasetRef, Ref
from refit.settings import SettingsTree
from refit.tasks.caching import CACHED, RETRIED
from refit.training import neighbours, trainer


@task(task_run_name="evaluate {split}", **CACHED, **RETRIED)
def evaluate(key: str, split: str, checkpoint: Ref, snapshot: DatasetRef, settings: SettingsTree) -> Ref:  # noqa: ARG001
    """Score the weights of `checkpoint` on the rows of one split."""
    return trainer.evaluate(split, checkpoint, snapshot, settings)


@task(task_run_name="fit other models", **CACHED, **RETRIED)
def fit_neighbours(key: str, kinds: Sequence[neighbours.Kind], snapshot: DatasetRef, settings: SettingsTree) -> Ref:  # noqa: ARG001
    """Fit a linear model, boosted trees, or both on the train rows, and keep what they give for the rows to judge on."""
    return neighbours.fit_neighbours(kinds, snapshot, settings)
