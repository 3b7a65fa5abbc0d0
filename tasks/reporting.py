"""What a person sees of a run on its page in the Prefect UI: the report, and a bar while it trains."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import SettingsContext, get_settings_context
from prefect.runtime import flow_run

from refit import outcomes
from refit.comparison import Verdict
from refit.ledger import Entry
from refit.refs import SavedModel
from refit.settings import SettingsTree
from refit.store import Store
from tasks.caching import RETRIED

SECONDS_BETWEEN_UPDATES = 10.0
"""One takes a tenth of a second, and the training waits for it."""
SECONDS_WITHOUT_SERVER = 30.0


@task(task_run_name="write report", cache_policy=NO_CACHE, **RETRIED)
def report(candidate: SavedModel, verdict: Verdict, entry: Entry, settings: SettingsTree) -> str:
    """Write the report next to the candidate, show it on the run's page, and return where the file is."""
    markdown, place = outcomes.write_report(candidate, verdict, entry, Store(settings.store.url))
    get_run_logger().info("report: %s", place)
    _show(markdown, candidate.name, outcomes.describe_outcome(candidate.name, entry))
    return place


@task(task_run_name="show report", cache_policy=NO_CACHE, **RETRIED)
def show_report(candidate: SavedModel, verdict: Verdict, question: str, settings: SettingsTree) -> None:
    """Show on the run's page what a person needs to know who is asked this question."""
    _show(
        outcomes.render_report(candidate, verdict, question, verdict.figures, Store(settings.store.url)), candidate.name, question
    )


class ProgressBar:
    """A bar on the run's page, made with the first epoch that is trained and moved now and then."""

    def __init__(self, name: str) -> None:
        self.key = f"{_as_key(name)}-training"
        self.artifact: UUID | None = None
        self.rests_until = 0.0

    def move(self, share: float, description: str) -> None:
        """Show how far the training has come; `share` is 1 at its end. Training does not wait for a server that is away."""
        if share < 1 and time.monotonic() < self.rests_until:
            return
        pause = SECONDS_BETWEEN_UPDATES
        try:
            with _without_retries():
                if self.artifact is None:
                    self.artifact = cast(UUID, create_progress_artifact(100 * share, self.key, description))
                else:
                    update_progress_artifact(self.artifact, 100 * share, description)
        except httpx.HTTPError as error:
            pause = SECONDS_WITHOUT_SERVER
            get_run_logger().warning("the progress bar cannot be moved: %s", error)
        self.rests_until = time.monotonic() + pause


@contextmanager
def _without_retries() -> Iterator[None]:
    """As `temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})`, which takes a twentieth of a second to read all settings again."""
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 0})
    with SettingsContext(profile=context.profile, settings=context.settings.model_copy(update={"client": client})):
        yield


def _show(markdown: str, name: str, description: str) -> None:
    """Have the report of the run at work on its page, in the place of an earlier one."""
    key, run = f"{_as_key(name)}-report", UUID(flow_run.id)
    of_run = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    try:
        with get_client(sync_client=True) as client:
            earlier = client.read_artifacts(artifact_filter=of_run)
            if earlier:
                client.update_artifact(earlier[0].id, ArtifactUpdate(data=markdown, description=description))
            else:
                create_markdown_artifact(markdown, key, description)
    except httpx.HTTPError as error:
        get_run_logger().warning("the report cannot be shown on the run's page: %s", error)


def _as_key(name: str) -> str:
    """Artifacts are named by lower-case letters, digits and dashes."""
    return name.replace("_", "-")
