"""Evaluation as a task."""

from prefect import task

from refit.data import loaders
from refit.data.examples import load_examples
from refit.models import building
from refit.refs import DatasetRef, Ref
from refit.runtime import devices
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED
from refit.tasks.loaders import close_loaders
from refit.training import checkpoints, evaluation
from refit.training.objective import build_objective


@task(task_run_name="evaluate {split}", **CACHED, **RETRIED)
def evaluate(key: str, split: str, checkpoint: Ref, snapshot: DatasetRef, settings: SettingsTree) -> Ref:  # noqa: ARG001
    """Score the weights of `checkpoint` on the rows of one split."""
    close_loaders()  # training is over: its rows make room
    store = Store(settings.store.url)
    examples = load_examples(snapshot, store)
    device = devices.prepare_compute(settings.compute)
    model = checkpoints.load_weights(checkpoint, building.build_for_weights(settings.model, examples.signature), store)
    metrics = evaluation.evaluate(
        model.to(device),
        loaders.build_evaluation_loader(*examples.load_split(split, store)),
        build_objective(examples.signature.target),
        device,
        settings.compute.precision,
    )
    return checkpoints.save_report("metrics", metrics, store)
