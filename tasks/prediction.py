"""Scoring of files as a task."""

import time

from prefect import get_run_logger, task

from refit.refs import Prediction
from refit.serving import item_scoring, saved_model, scoring
from refit.settings import SettingsTree
from refit.store import outputs
from refit.store.store import Store
from refit.tasks.caching import RETRIED

SECONDS_BETWEEN_LINES = 2.0


@task(task_run_name="score {source}", persist_result=False, **RETRIED)
def score_files(
    name: str, version: int, source: str, output: str, keep: tuple[str, ...], settings: SettingsTree, strict: bool
) -> Prediction:
    """Score files with a version of the store; log how far it is, how fast it was, and how the rows deviate."""
    logger, reference = get_run_logger(), f"{name}@v{version}"
    store = Store(settings.store.url)
    outputs.check_outside(output, store)
    model = saved_model.load_version(store, name, version, settings)
    logger.info("model: %s", reference)
    started = told = time.monotonic()

    def tell(num_rows: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            logger.info(_describe(num_rows, now - started), extra={"progress": (num_rows, None)})

    if model.manifest.source is None:
        num_rows, deviations = scoring.score_files(model, source, output, reference, tell, keep, strict)
    else:
        num_rows, deviations = item_scoring.score_items(model, settings.data.predict_factory, source, output, reference, tell)
    seconds = time.monotonic() - started
    logger.info(_describe(num_rows, seconds))
    for deviation in deviations:
        logger.warning(deviation.describe())
    return Prediction(model=reference, output=output, num_rows=num_rows, seconds=seconds, deviations=deviations)


def _describe(num_rows: int, seconds: float) -> str:
    return f"scored {num_rows:,} rows: {seconds:.1f} s, {num_rows / seconds:,.0f} rows/s"
