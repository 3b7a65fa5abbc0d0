import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from tasks import reporting
from tasks.reporting import ProgressBar

pytestmark = pytest.mark.usefixtures("prefect_server")


def find_bars(identity: str) -> list[tuple[float, str]]:
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[identity]))
        return [(artifact.data, artifact.description) for artifact in client.read_artifacts(artifact_filter=of_run)]


def test_a_bar_is_made_at_once_moved_seldom_and_full_at_the_end():
    seen = []

    @flow
    def move() -> None:
        bar = ProgressBar("my_model")
        for epoch in range(1, 6):
            bar.move(epoch / 5, f"epoch {epoch}")
            seen.extend(find_bars(flow_run.id))

    move()
    assert seen == [(20.0, "epoch 1")] * 4 + [(100.0, "epoch 5")]


def test_a_bar_is_moved_again_after_a_while(monkeypatch):
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_UPDATES", 0.0)

    @flow
    def move() -> list[tuple[float, str]]:
        bar = ProgressBar("a")
        for epoch in (1, 2):
            bar.move(epoch / 5, f"epoch {epoch}")
        return find_bars(flow_run.id)

    assert move() == [(40.0, "epoch 2")]


def test_a_server_that_is_away_does_not_stop_the_training(monkeypatch, caplog):
    def refuse(*_) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(reporting, "create_progress_artifact", refuse)

    @flow
    def move() -> None:
        ProgressBar("a").move(0.5, "epoch 1")

    move()
    assert "the progress bar cannot be moved: connection refused" in caplog.text
