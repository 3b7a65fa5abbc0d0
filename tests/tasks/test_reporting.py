import re
from base64 import b64decode
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

from refit.refs import EpochResult, Ref
from refit.tasks import reporting
from refit.tasks.reporting import TrainingCurve

pytestmark = pytest.mark.usefixtures("prefect_server")


REF = Ref(kind="checkpoint", digest="0" * 64, size=1)
EPOCHS = [
    EpochResult(epoch=epoch, checkpoint=REF, log=REF, train_loss=1 / epoch, val_loss=2 / epoch, val_score=0.5)
    for epoch in range(1, 6)
]


def count_points(markdown: str) -> list[int]:
    """Points of each line of the picture in an artifact."""
    svg = b64decode(re.search(r"base64,([^)]+)", markdown)[1]).decode()
    return [len(points.split()) for points in re.findall('points="([^"]*)"', svg)]


def find_curves(identity: str) -> list[tuple[list[int], str, UUID | None]]:
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[identity]))
        found = client.read_artifacts(artifact_filter=of_run)
        return [(count_points(artifact.data), artifact.description, artifact.task_run_id) for artifact in found]


def test_the_curve_of_a_training_is_there_at_once_grows_seldom_and_is_whole_at_the_end():
    seen = []

    @flow
    def train() -> None:
        curve = TrainingCurve("my_model")
        for epoch in range(1, 6):
            curve.grow(EPOCHS[:epoch], f"epoch {epoch}", is_last=epoch == 5)
            seen.extend(find_curves(flow_run.id))

    train()
    assert seen == [([2, 2], "epoch 1", None)] * 4 + [([5, 5], "epoch 5", None)]


def test_the_curve_grows_after_a_while_and_goes_on_where_an_earlier_attempt_of_the_run_was():
    @flow
    def train() -> list[tuple[list[int], str, UUID | None]]:
        first = TrainingCurve("a", seconds_between_updates=0.0)
        for epoch in (2, 3):
            first.grow(EPOCHS[:epoch], f"epoch {epoch}", is_last=False)
        TrainingCurve("a").grow(EPOCHS[:4], "epoch 4", is_last=False)
        return find_curves(flow_run.id)

    assert train() == [([4, 4], "epoch 4", None)]


def test_a_server_that_is_away_does_not_stop_the_training(monkeypatch, caplog):
    def refuse(*_) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(reporting, "_show", refuse)

    @flow
    def train() -> None:
        TrainingCurve("a").grow(EPOCHS, "epoch 5", is_last=True)

    train()
    assert "the curve of the training cannot be shown: connection refused" in caplog.text
