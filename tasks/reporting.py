"""What a person sees of a run on its page in the Prefect UI: the report, and a bar while it trains."""

import time
from typing import cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from refit import outcomes
from refit.comparison import Verdict
from refit.ledger import Entry
from refit.refs import SavedModel
from refit.settings import SettingsTree
from refit.store import Store
from tasks.caching import RETRIED

SECONDS_BETWEEN_UPDATES = 1.0
SECONDS_WITHOUT_SERVER = 30.0


@task(task_run_name="write report", cache_policy=NO_CACHE, **RETRIED)
def report(candidate: SavedModel, verdict: Verdict, entry: Entry, settings: SettingsTree) -> str:
    """Write the report next to the candidate, show it on the run's page, and return where the file is."""
    markdown, place = outcomes.write_report(candidate, verdict, entry, Store(settings.store.url))
    create_markdown_artifact(markdown, f"{_as_key(candidate.name)}-report", outcomes.describe_outcome(candidate.name, entry))
    get_run_logger().info("report: %s", place)
    return place


class ProgressBar:
    """A bar on the run's page, made with the first epoch that is trained and moved at most once a second."""

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
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                if self.artifact is None:
                    self.artifact = cast(UUID, create_progress_artifact(100 * share, self.key, description))
                else:
                    update_progress_artifact(self.artifact, 100 * share, description)
        except httpx.HTTPError as error:
            pause = SECONDS_WITHOUT_SERVER
            get_run_logger().warning("the progress bar cannot be moved: %s", error)
        self.rests_until = time.monotonic() + pause


def _as_key(name: str) -> str:
    """Artifacts are named by lower-case letters, digits and dashes."""
    return name.replace("_", "-")
