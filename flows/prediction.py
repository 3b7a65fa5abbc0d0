"""The prediction flow: score files with a saved version."""

from prefect import flow
from prefect.runtime import flow_run

from refit.refs import Prediction
from refit.registry import versions
from refit.server.flow_runs import DEFAULTS, resolve_given, show_settings, watched
from refit.server.results import KEPT
from refit.settings import SettingsTree, Url
from refit.store.store import Store
from refit.tasks.prediction import score_files


def _name_run() -> str:
    return f"predict {flow_run.parameters['model']} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@flow(name="predict", flow_run_name=_name_run, **KEPT)
@watched
def predict(
    model: str,
    source: Url,
    output: Url,
    keep: tuple[str, ...] = (),
    settings: SettingsTree = DEFAULTS,
    strict: bool = False,
    changes: SettingsTree = DEFAULTS,
) -> Prediction:
    """Score a file, folder or glob of CSV or Parquet files into one Parquet file: class, probabilities, model version.

    Args:
        model: `NAME` or `NAME@champion` for the champion, `NAME@v3` for a version, or another alias.
        source: A path or fsspec URL of the rows to score.
        output: A path or fsspec URL that ends in `.parquet`; an existing file is replaced once all rows are scored.
        keep: Columns of the source to copy.
        settings: Only `store` and `model.factory` count; if not given, they come from the environment, `.env` and `refit.toml` of
            the machine that runs the flow.
        strict: Fail if the rows deviate from those that the model learned from, and write nothing.
        changes: What is different in this run alone; all else stays as it is.
    """
    resolved = resolve_given(settings, changes, learns=False)
    show_settings(settings, changes)
    name, version = versions.resolve_reference(Store(resolved.store.url), model, versions.CHAMPION)
    return score_files(name, version, source, output, keep, resolved, strict)
