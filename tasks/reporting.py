"""What the page of a run in the Prefect UI shows: the report, and a curve while it trains."""

import time
from collections.abc import Sequence
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.runtime import flow_run

from refit.promotion import retraining_report
from refit.promotion.comparison import Verdict
from refit.refs import EpochResult, SavedModel
from refit.registry.ledger import Entry
from refit.reports.curves import draw_curve
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import RETRIED
from refit.undocumented import asking_once

SECONDS_BETWEEN_UPDATES = 10.0
"""An update takes a tenth of a second, and the training waits for it."""
SECONDS_WITHOUT_SERVER = 30.0


@task(task_run_name="write report", persist_result=False, **RETRIED)
def report(candidate: SavedModel, verdict: Verdict, entry: Entry, settings: SettingsTree) -> str:
    """Write the report next to the candidate, show it on the run's page, and return where the file is."""
    markdown, place = retraining_report.write_report(candidate, verdict, entry, Store(settings.store.url), flow_run.name)
    get_run_logger().info("report: %s", place)
    _show_report(
        markdown, candidate.name, f"{retraining_report.describe_outcome(candidate.name, entry)}: {verdict.decision.summary}"
    )
    return place


@task(task_run_name="show report", persist_result=False, **RETRIED)
def show_report(candidate: SavedModel, verdict: Verdict, question: str, settings: SettingsTree) -> None:
    """Show on the run's page what a person needs to know to answer the question."""
    markdown = retraining_report.render_report(candidate, verdict, question, verdict.figures, Store(settings.store.url))
    _show_report(markdown, candidate.name, question)


class TrainingCurve:
    """The losses so far on the run's page, from the first epoch that is trained, redrawn now and then."""

    def __init__(self, name: str, seconds_between_updates: float = SECONDS_BETWEEN_UPDATES) -> None:
        self.key = f"{_as_key(name)}-training"
        self.seconds_between_updates = seconds_between_updates
        self.rests_until = 0.0

    def grow(self, epochs: Sequence[EpochResult], description: str, is_last: bool) -> None:
        """Show the epochs that are done, the last one without delay. Training does not wait for a server that is away."""
        if not is_last and time.monotonic() < self.rests_until:
            return
        pause = self.seconds_between_updates
        curve = draw_curve([epoch.train_loss for epoch in epochs], [epoch.val_loss for epoch in epochs])
        try:
            with asking_once():
                _show(f"{description}\n\n{curve}\n", self.key, description)
        except httpx.HTTPError as error:
            pause = SECONDS_WITHOUT_SERVER
            get_run_logger().warning("the curve of the training cannot be shown: %s", error)
        self.rests_until = time.monotonic() + pause


def _show_report(markdown: str, name: str, description: str) -> None:
    try:
        _show(markdown, f"{_as_key(name)}-verdict", description)
    except httpx.HTTPError as error:
        get_run_logger().warning("the report cannot be shown on the run's page: %s", error)


def _show(markdown: str, key: str, description: str) -> None:
    """Show a text on the page of the run at work, in place of an earlier one.

    The artifact belongs to the run, not to the task run that writes it, because the page shows those of task runs last. Of the
    others, it shows first the one whose key is last in the alphabet.
    """
    run = UUID(flow_run.id)
    of_run = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    with get_client(sync_client=True) as client:
        earlier = client.read_artifacts(artifact_filter=of_run)
        if earlier:
            client.update_artifact(earlier[0].id, ArtifactUpdate(data=markdown, description=description))
        else:
            new = ArtifactCreate(key=key, type="markdown", description=description, data=markdown, flow_run_id=run)
            client.create_artifact(new)


def _as_key(name: str) -> str:
    """Artifacts are named by lower-case letters, digits and dashes."""
    return name.replace("_", "-")
