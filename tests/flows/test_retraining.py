"""Nights of retraining, on the CPU, in seconds."""

import json
import os
import pydoc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import Artifact, FlowRun, State, StateType
from prefect.events import emit_event
from prefect.exceptions import Abort, Pause, PrefectHTTPStatusError
from prefect.filesystems import LocalFileSystem
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, temporary_settings
from prefect.states import Cancelled, Cancelling, Crashed, Running, Scheduled

import refit.flows.approval
import refit.flows.candidates
import refit.promotion.comparison
import refit.registry.versions
import refit.reports.run_report
import refit.server.flow_runs
import refit.tasks.promotion
import refit.training.loop
from refit.commands.terminal import complain
from refit.errors import DataError
from refit.flows.retraining import retrain
from refit.promotion.questions import Question, list_questions
from refit.refs import RetrainingResult
from refit.registry.ledger import Entry, load_ledger
from refit.registry.versions import list_versions, load_part, move_alias, read_alias, rollback
from refit.runs.recipes import load_runs
from refit.runtime.interruption import holding_signals
from refit.server.api import HEARTBEAT, describe_run, is_alive
from refit.settings import SettingsTree
from refit.store.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server")

GOOD, BAD = {"name": "sgd", "lr": 0.1}, {"name": "sgd", "lr": 1e-6}


def write_table(num_rows: int = 200, num_classes: int = 3, without: str | None = None) -> None:
    """Rows of classes in turn, the same ones first however many there are."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(num_rows) % num_classes
    x = torch.randn(num_rows, 3, generator=generator, dtype=torch.float64) / 2 + y[:, None]
    table = pl.DataFrame({**{f"x{i}": x[:, i].tolist() for i in range(3)}, "y": [f"c{index}" for index in y]})
    table.drop(without or []).write_csv("rows.csv")


def give(optimizer: dict = GOOD, **sections) -> SettingsTree:
    given = {
        "preset": "plain",
        "data": {"source": "rows.csv"},
        "loader": {"batch_size": 10},
        "model": {"hidden_sizes": [16, 16]},
        "optimizer": optimizer,
        "training": {"num_epochs": 3},
        **sections,
    }
    return SettingsTree.model_validate(given)


def run(optimizer: dict = GOOD, **sections) -> State[RetrainingResult]:
    return retrain(give(optimizer, **sections), return_state=True)


def read_ledger(name: str = "model") -> list[Entry]:
    return [entry for entry in load_ledger(Store("refit-store"), name) if entry.action != "open"]


def find_artifacts(state: State) -> list[Artifact]:
    """Those that the page shows; where the result is, Prefect keeps as one without a key."""
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
        return [artifact for artifact in client.read_artifacts(artifact_filter=of_run) if artifact.key]


@flow
def nightly(name: str, promotion: dict | None = None) -> RetrainingResult:
    """Somebody's own flow, which retrains among other things."""
    return retrain(give(name=name, promotion=promotion or {}))


def champion() -> int | None:
    return read_alias(Store("refit-store"), "model")


@pytest.fixture(autouse=True)
def _table() -> None:
    write_table()


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """The epochs that were trained."""
    epochs: list[int] = []
    train_epoch = refit.training.loop.train_epoch
    monkeypatch.setattr(
        refit.training.loop,
        "train_epoch",
        lambda state, *args, **more: epochs.append(state.epoch + 1) or train_epoch(state, *args, **more),
    )
    return epochs


def test_nights_end_in_a_first_champion_then_in_nothing_then_in_a_candidate_that_must_beat_it(trained, caplog):
    first = run()
    result = first.result()
    told = [record.getMessage() for record in caplog.records if record.filename == "candidates.py"]
    assert told == ["model@v1 is the champion now"]  # Prefect logs the state with its reason, and the command prints that
    assert (first.name, first.type, first.message) == ("Promoted", StateType.COMPLETED, result.reason)
    assert result.reason.startswith("promoted: accuracy ")
    assert "of the majority class on 30 rows" in result.reason
    assert (result.candidate, result.champion, champion()) == ("model@v1", "model@v1", 1)
    assert trained == [1, 2, 3]
    (promoted,) = read_ledger()
    assert (promoted.action, promoted.before, promoted.after, promoted.why) == ("promote", None, 1, result.reason)
    page = Path(result.report).read_text()
    assert Path(result.report) == Path("refit-store/models/model/reports/v1.html").resolve()
    assert "model@v1 is the champion now" in page

    trained.clear()
    second = run()
    assert (second.name, second.type, trained) == ("Skipped", StateType.COMPLETED, [])
    assert second.message == f"model@v1 stays the champion; nothing new since the decision of {promoted.at}"
    assert (second.result().outcome, second.result().champion) == ("skipped", "model@v1")
    assert read_ledger() == [promoted]

    write_table(300)
    third = run()
    assert (third.name, trained) == ("Kept", [1, 2, 3])
    result = third.result()
    assert (result.candidate, result.champion, champion()) == ("model@v2", "model@v1", 1)
    assert list(result.scores) == ["model@v2", "model@v1", "majority class"]
    assert "model@v1 stays the champion" in Path(result.report).read_text()
    kept = read_ledger()[-1]
    assert (kept.action, kept.before, kept.after, kept.why) == ("keep", 1, 2, result.reason)
    assert run().name == "Skipped"
    assert list_versions(Store("refit-store"), "model") == [1, 2]


def test_nights_of_numbers_to_predict_go_like_those_of_classes(monkeypatch):
    monkeypatch.setattr(refit.reports.run_report, "draw_predictions", lambda *_: b"")

    def write_numbers(num_rows: int, factor: float = 1.0) -> None:
        write_table(num_rows)
        table = pl.read_csv("rows.csv")
        table.with_columns(y=factor * (1000 + 50 * table["x0"] + 20 * table["x1"] ** 2)).write_csv("rows.csv")

    def night() -> State[RetrainingResult]:
        return run(preset="plain", training={"num_epochs": 5, "warm_start": True})

    write_numbers(200)
    first = night()
    assert first.name == "Promoted"
    assert first.message.startswith("promoted: negative loss -")
    assert "of the mean of the targets on 30 rows" in first.message
    assert night().name == "Skipped"
    write_numbers(400)
    second = night()
    assert second.name in ("Promoted", "Kept")
    assert list(second.result().scores) == ["model@v2", "model@v1", "mean of the targets"]
    assert {"negative loss", "RMSE", "MAE", "R²"} <= second.result().scores["model@v1"].keys()
    page = Path(second.result().report).read_text()
    assert "Predictions and residuals" in page
    assert "Confusion matrix" not in page
    write_numbers(600, factor=-1.0)
    assert night().name == "Collapsed", "the champion knows nothing of the new numbers"
    assert champion() == 3


def test_a_better_candidate_is_promoted_a_worse_one_kept_with_its_reason_and_what_was_rolled_back_stays_so(trained):
    assert run(BAD).name == "Kept", "no better than the majority class"
    assert champion() is None
    better = run(GOOD)
    assert (better.name, champion()) == ("Promoted", 2)
    worse = run(BAD)
    assert (worse.name, champion()) == ("Kept", 2)
    assert "worse by" in worse.message
    assert trained == [1, 2, 3, 1, 2, 3], "the first candidate came back, and was not trained again"
    assert worse.result().candidate == "model@v1"
    assert run({**GOOD, "momentum": 0.1}).name == "Kept"
    move_alias(Store("refit-store"), "model", 3, expected=2, why="by hand")
    rollback(Store("refit-store"), "model", why="it was a mistake")
    assert run({**GOOD, "momentum": 0.1}).name == "Skipped"
    assert champion() == 2


def read_back(state: State) -> State:
    """As another process finds it."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id).state


def test_results_are_read_back_typed_from_the_server_whatever_the_state_is_called():
    states = [run(), run(), run(BAD)]
    assert [(state.name, type(state.data).__name__) for state in map(read_back, states)] == [
        ("Promoted", "ResultRecordMetadata"),
        ("Skipped", "ResultRecordMetadata"),
        ("Kept", "ResultRecordMetadata"),
    ]
    results = [read_back(state).result() for state in states]
    assert results == [state.result() for state in states]
    assert {type(result) for result in results} == {RetrainingResult}
    with pytest.raises(DataError, match=r"nowhere\.csv: expected a file, folder or glob, found nothing there"):
        read_back(run(data={"source": "nowhere.csv"})).result()


def test_a_flows_result_alone_is_kept_and_where_flow_or_settings_say(tmp_path):
    first = retrain.with_options(result_storage=tmp_path / "told")(give(), return_state=True)
    LocalFileSystem(basepath=str(tmp_path / "default")).save("results")
    with temporary_settings({PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/results"}):
        second = run()
    for state, folder in ((first, "told"), (second, "default")):
        (path,) = (tmp_path / folder).iterdir()
        assert json.loads(path.read_text())["fields"]["outcome"] == state.result().outcome
    assert read_back(first).result() == first.result()


@pytest.mark.slow
def test_each_decision_is_an_event_of_the_model_that_names_version_champion_reason_and_run(await_events):
    states = [run(GOOD, name="told"), run(GOOD, name="told"), run(BAD, name="told")]
    damage("told")
    states.append(run(BAD, name="told", seed=1))
    results = [state.result() for state in states]
    events = await_events("refit.model.told", 4)
    assert [event.event for event in events] == [
        "refit.champion.promoted",
        "refit.champion.kept",
        *(f"refit.champion.{results[3].outcome}", "refit.champion.damaged"),
    ], "nothing is decided where there is nothing new"
    promoted, kept = (event.payload for event in events[:2])
    assert (promoted["version"], promoted["before"], promoted["after"]) == ("told@v1", None, "told@v1")
    assert (kept["version"], kept["before"], kept["after"]) == ("told@v2", "told@v1", "told@v1")
    assert (kept["reason"], kept["scores"], kept["report"]) == (results[2].reason, results[2].scores, results[2].report)
    assert [kept["who"], kept["at"]] == [read_ledger("told")[1].who, read_ledger("told")[1].at]
    related = {resource.role: resource.id for resource in events[1].related}
    assert related["flow-run"] == f"prefect.flow-run.{states[2].state_details.flow_run_id}"


def test_the_runs_page_has_the_report_first_the_curve_of_the_training_and_says_what_ran_when():
    state = run(name="my_model")
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
    report, curve = sorted(find_artifacts(state), key=lambda artifact: artifact.key, reverse=True)
    due = flow_run.expected_start_time.astimezone()
    assert flow_run.name == f"retrain my_model, {due.day} {due:%b %Y %H:%M}"
    assert (report.key, report.task_run_id) == ("my-model-verdict", None), "the page shows those of task runs last"
    assert report.data.startswith("# my\\_model@v1 is the champion now")
    assert (
        report.description
        == f"my_model@v1 is the champion now: {state.message.removeprefix('promoted: ').split(' of the maj')[0]} on 30 rows"
    )
    assert f"run {flow_run.name}.".replace("_", "\\_") in report.data
    assert (curve.key, curve.task_run_id) == ("my-model-training", None)
    assert curve.description.startswith("epoch 3/3: train loss")


def damage(name: str = "model") -> None:
    Path(f"refit-store/models/{name}/v1/model.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("happens", "reason", "alarm", "next_night"),
    [
        (damage, "model@v1 is damaged: ", "damaged", "Damaged"),
        (lambda: write_table(200, without="x1"), "found no `x1` in the data", "incomparable", "Skipped"),
    ],
    ids=["damaged champion", "lost column"],
)
def test_a_champion_that_cannot_be_compared_stays_and_the_runs_state_says_so(happens, reason, alarm, next_night):
    longer = {"num_epochs": 8}
    run(training=longer)
    happens()
    state = run(training=longer)
    assert (state.name, state.type, champion()) == (alarm.capitalize(), StateType.COMPLETED, 1)
    assert state.result().alarm == alarm
    assert reason in state.message
    assert "promotion.when_incomparable is `keep`" in state.message
    assert f"stays the champion, but it is {alarm}" in Path(state.result().report).read_text()
    assert (run(training=longer).name, champion()) == (next_night, 1)
    assert run(training=longer, promotion={"when_incomparable": "promote"}).name == alarm.capitalize()
    assert champion() == 2


def test_a_champion_that_does_not_know_a_new_class_is_compared():
    run(training={"num_epochs": 8})
    write_table(400, num_classes=4)
    state = run(training={"num_epochs": 8})
    assert (state.name, champion()) == ("Promoted", 2)
    assert "of the majority class" not in state.message


def test_a_collapsed_champion_is_told_even_where_the_candidate_is_no_better():
    assert run().name == "Promoted"
    rows = pl.read_csv("rows.csv")
    names = pl.col("y").replace({"c0": "c1", "c1": "c2", "c2": "c0"})
    rows.with_columns(y=names).write_csv("rows.csv")
    state = run(BAD)
    assert (state.name, state.type, champion()) == ("Collapsed", StateType.COMPLETED, 1)
    assert (state.result().outcome, state.result().alarm) == ("kept", "collapsed")
    assert "; model@v1 has collapsed: " in state.message
    assert "model@v1 stays the champion, but it is collapsed" in Path(state.result().report).read_text()
    assert read_ledger()[-1].details["alarm"] == "collapsed"
    assert (run(GOOD).name, champion()) == ("Collapsed", 3), "the new champion takes over, and the old one is told of"


def test_what_fails_after_a_candidate_was_trained_does_not_say_that_nothing_was(monkeypatch):
    def refuse(*_):
        raise DataError("expected another column")

    monkeypatch.setattr(refit.promotion.comparison, "compare", refuse)
    error = run().result(raise_on_failure=False)
    assert str(error) == "model@v1 was trained and saved, but cannot be judged: expected another column"
    assert complain(error) == 1


def test_without_a_row_that_may_judge_nothing_is_trained_and_the_champion_stays(trained):
    pl.read_csv("rows.csv")[:60].write_csv("test.csv")
    pl.read_csv("rows.csv")[60:].write_csv("rows.csv")
    data = {"source": "rows.csv", "test_source": "test.csv"}
    assert run(data=data).name == "Promoted"
    pl.concat([pl.read_csv("rows.csv"), pl.read_csv("test.csv")]).write_csv("rows.csv")
    trained.clear()
    state = run(data={**data, "val": 0})
    assert (state.name, trained, champion()) == ("Kept", [], 1)
    assert state.message.startswith("expected test rows that neither the candidate nor the champion has learned from, found none")
    assert (state.result().candidate, list_versions(Store("refit-store"), "model")) == (None, [1])
    assert run(data={**data, "val": 0}).name == "Skipped"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x0,x1,x2,y\n", "expected rows"),
        ("x0,x1,x2\n1,2,3\n", "expected a column of rows.csv, found no `y`"),
        (None, "expected a file, folder or glob, found nothing there"),
    ],
    ids=["empty", "no target", "gone"],
)
def test_a_table_that_cannot_be_trained_on_today_fails_the_run_and_the_champion_stands(content, message):
    run(BAD, promotion={"mode": "never"})
    move_alias(Store("refit-store"), "model", 1, expected=None, why="by hand")
    Path("rows.csv").write_text(content) if content else Path("rows.csv").unlink()
    state = run()
    assert (state.type, champion()) == (StateType.FAILED, 1)
    assert message in str(state.result(raise_on_failure=False))


def test_a_slice_that_is_no_column_fails_the_run_before_anything_is_trained():
    state = run(promotion={"slices": ["x9"]})
    assert state.type == StateType.FAILED
    assert "promotion.slices: expected a column of rows.csv, found no `x9`" in str(state.result(raise_on_failure=False))
    assert Store("refit-store").names("results") == []


def test_with_mode_never_a_better_candidate_is_only_reported():
    state = run(promotion={"mode": "never"})
    assert (state.name, champion()) == ("Kept", None)
    assert state.message.startswith("promotion.mode is `never`, otherwise promoted: accuracy")
    assert "model has no champion yet" in Path(state.result().report).read_text()
    assert run(promotion={"mode": "never"}).name == "Skipped"
    assert (run().name, champion()) == ("Promoted", 1)


@pytest.fixture
def answering(monkeypatch) -> Iterator[Callable[..., threading.Thread]]:
    """A person who answers the next question."""
    monkeypatch.setattr(refit.flows.approval, "SECONDS_BETWEEN_LOOKS", 0.1)
    threads = []

    def answer(**answers: str) -> None:
        threads.append(threading.Thread(target=copy_context().run, args=(resume, answers)))
        threads[-1].start()

    def resume(answers: dict[str, str]) -> None:
        paused = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.PAUSED])))
        with get_client(sync_client=True) as client:
            while True:
                for flow_run in client.read_flow_runs(flow_run_filter=paused):
                    key = flow_run.state.state_details.run_input_keyset["description"]
                    try:
                        question = client.read_flow_run_input(flow_run.id, key)
                    except PrefectHTTPStatusError as error:
                        if error.response.status_code == 404:  # the form comes a little after the pause
                            continue
                        raise
                    assert "Shall model@v1 be the champion?" in question
                    client.resume_flow_run(flow_run.id, answers)
                    return
                time.sleep(0.1)

    yield answer
    for thread in threads:
        thread.join()


def test_with_mode_ask_a_persons_word_counts(answering):
    answering(answer="reject", comment="not on a Friday")
    rejected = run(promotion={"mode": "ask", "timeout_seconds": 60})
    assert (rejected.name, champion()) == ("Kept", None)
    assert rejected.message.startswith("rejected in the Prefect UI (not on a Friday), otherwise promoted: accuracy")
    assert run(promotion={"mode": "ask"}).name == "Skipped", "nobody is asked twice"
    answering(answer="approve", comment="")
    approved = run(promotion={"mode": "ask", "min_effect": 0.001, "timeout_seconds": 60})
    assert (approved.name, champion()) == ("Promoted", 1)
    assert read_ledger()[-1].why.startswith("approved in the Prefect UI; promoted: accuracy")
    (report,) = (artifact for artifact in find_artifacts(approved) if artifact.key == "model-verdict")
    assert report.description.startswith("model@v1 is the champion now: accuracy"), (
        "what the person was shown has become the report"
    )
    again = run()
    assert (again.name, again.message) == ("Kept", "model@v1 is the champion already")


def test_with_mode_ask_nobodys_word_is_a_no_and_the_run_completes(monkeypatch):
    monkeypatch.setattr(refit.flows.approval, "SECONDS_BETWEEN_LOOKS", 0.1)
    state = run(promotion={"mode": "ask", "timeout_seconds": 1})
    assert (state.name, state.type, champion()) == ("Kept", StateType.COMPLETED, None)
    assert state.message.startswith("nobody approved within 1 seconds, otherwise promoted: accuracy")
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).state.name == "Kept"


ASKING = {"mode": "ask", "timeout_seconds": 60}


class Deployed:
    """Runs of a deployment, which take turns in this process."""

    def __init__(self, client: SyncPrefectClient, name: str) -> None:
        self.client, self.deployment = client, client.create_deployment(client.create_flow(retrain), name)

    def start(self, **sections) -> FlowRun:
        """Begin a run, which asks and is suspended."""
        run = self.client.create_flow_run_from_deployment(self.deployment)
        self.suspend(run, **sections)
        return self.client.read_flow_run(run.id)

    def suspend(self, run: FlowRun, **sections) -> None:
        with pytest.raises(Pause):
            self.begin(run, **sections)
        assert self.client.read_flow_run(run.id).state_name == "Suspended"

    def begin(self, run: FlowRun | None = None, **sections) -> State[RetrainingResult]:
        run = run or self.client.create_flow_run_from_deployment(self.deployment)
        parameters = {"settings": give(promotion=ASKING | sections)}
        return run_flow(retrain, flow_run=self.client.read_flow_run(run.id), parameters=parameters, return_type="state")


@pytest.fixture
def deployed(request) -> Iterator[Deployed]:
    with get_client(sync_client=True) as client:
        yield Deployed(client, request.node.name)


def test_a_run_of_a_deployment_is_suspended_and_goes_on_with_its_candidate_whatever_the_table_is_by_now(deployed, trained):
    asking = deployed.start()
    waits = f"model has no champion; gives way to {asking.name}, which waits for an answer"
    assert run(promotion=ASKING).message == waits, "one question a candidate, also from a terminal"
    Path("rows.csv").unlink()
    trained.clear()
    assert deployed.begin().message == waits
    deployed.client.resume_flow_run(asking.id, {"answer": "approve", "comment": "go"})
    assert deployed.begin().message == waits
    state = deployed.begin(asking)
    assert (state.name, state.result().candidate, champion(), trained) == ("Promoted", "model@v1", 1, [])
    assert read_ledger()[-1].why.startswith("approved in the Prefect UI (go); promoted: accuracy")
    assert list_questions(Store("refit-store"), "model") == []
    assert not list(Path("refit-store/attempts").glob("*"))


def test_an_answer_counts_in_a_run_that_crashed_after_it_and_whatever_the_mode_is_by_now(deployed):
    asking = deployed.start()
    deployed.client.resume_flow_run(asking.id, {"answer": "reject", "comment": ""})
    for state in (Running(), Crashed(), Scheduled()):
        deployed.client.set_flow_run_state(asking.id, state, force=True)
    state = deployed.begin(asking, mode="auto")
    assert (state.name, champion()) == ("Kept", None)
    assert state.message.startswith("rejected in the Prefect UI, otherwise promoted: accuracy")


def test_a_suspended_run_that_begins_without_an_answer_asks_on_until_its_time_is_up(deployed, monkeypatch):
    asking = deployed.start()
    (question,) = list_questions(Store("refit-store"), "model")
    deployed.client.set_flow_run_state(asking.id, Scheduled())
    deployed.suspend(asking)
    (again,) = list_questions(Store("refit-store"), "model")
    assert (again.asked_at, again.form == question.form) == (question.asked_at, False)
    deployed.client.set_flow_run_state(asking.id, Scheduled())
    monkeypatch.setattr(Question, "is_over", True)
    state = deployed.begin(asking)
    assert (state.name, champion()) == ("Kept", None)
    assert state.message.startswith("nobody approved within 60 seconds, otherwise promoted: accuracy")


def test_a_suspended_run_asks_again_if_the_champion_is_another_by_then(deployed):
    run(BAD, promotion={"mode": "never"})
    asking = deployed.start()
    move_alias(Store("refit-store"), "model", 1, expected=None, why="by hand")
    deployed.client.resume_flow_run(asking.id, {"answer": "approve", "comment": ""})
    deployed.suspend(asking)
    deployed.client.resume_flow_run(asking.id, {"answer": "approve", "comment": ""})
    assert (deployed.begin(asking).name, champion()) == ("Promoted", 2)


def test_a_run_that_died_before_its_report_makes_up_for_it_after_an_answer_too(deployed, monkeypatch):
    asking = deployed.start()
    deployed.client.resume_flow_run(asking.id, {"answer": "approve", "comment": ""})
    with monkeypatch.context() as patched:
        patched.setattr(refit.flows.candidates, "report", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            deployed.begin(asking)
    deployed.client.set_flow_run_state(asking.id, Scheduled())
    state = deployed.begin(asking)
    assert (state.name, champion()) == ("Promoted", 1)
    assert [entry.action for entry in read_ledger()] == ["promote"]
    assert Path(state.result().report).exists()


def test_a_subflow_is_paused_as_no_server_suspends_it(answering):
    answering(answer="approve", comment="")
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(nightly), "asks"))
        given = {"name": "model", "promotion": ASKING}
        assert run_flow(nightly, flow_run=run, parameters=given).outcome == "promoted"


def test_a_candidate_is_compared_again_with_a_champion_that_came_meanwhile(monkeypatch):
    run(BAD, promotion={"mode": "never"})
    store, against, move = Store("refit-store"), [], refit.registry.versions.move_alias
    compare = refit.promotion.comparison.compare

    def note(candidate, number, *rest):
        against.append(number)
        return compare(candidate, number, *rest)

    def move_after_another(*given, **named):
        if len(against) == 1:
            move(store, "model", 1, expected=None, why="by hand")
        return move(*given, **named)

    monkeypatch.setattr(refit.promotion.comparison, "compare", note)
    monkeypatch.setattr(refit.registry.versions, "move_alias", move_after_another)
    state = run(GOOD)
    assert against == [None, 1]
    assert (state.name, champion()) == ("Promoted", 2)
    assert "of the majority class" not in state.message
    assert [(entry.before, entry.after) for entry in read_ledger() if entry.action == "promote"] == [(None, 1), (1, 2)]


@pytest.mark.parametrize(
    ("function", "optimizer", "name", "action"),
    [
        ("refit.registry.versions.move_alias", GOOD, "Promoted", "promote"),
        ("refit.registry.versions.read_alias", BAD, "Kept", "keep"),
        ("refit.registry.ledger.append_entry", BAD, "Kept", "keep"),
    ],
)
def test_of_two_runs_of_one_recipe_one_decides_and_the_other_gives_way(monkeypatch, function, optimizer, name, action):
    """The second comes to its decision after the first has acted."""
    original, outer = pydoc.locate(function), []
    acting, act = [], getattr(refit.tasks.promotion, action)

    def act_and_note(*given, **named):
        acting.append(True)
        return act(*given, **named)

    def call_after_the_other_run(*given, **named):
        if acting and not outer:
            outer.append("")
            outer[0] = run(optimizer).name
        return original(*given, **named)

    monkeypatch.setattr(refit.flows.candidates, action, act_and_note)
    monkeypatch.setattr(function, call_after_the_other_run)
    state = run(optimizer)
    assert [state.name, *outer] == ["Skipped", name]
    assert state.message.startswith("gives way to another run, which decided on the same recipe at 20")
    assert [(entry.action, entry.after) for entry in read_ledger()] == [(action, 1)]


def test_a_source_that_is_missing_is_one_line_in_the_log(caplog):
    assert run(data={"source": "nowhere.csv"}).type == StateType.FAILED
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.exc_info for record in errors] == [None]
    assert "nowhere.csv: expected a file, folder or glob, found nothing there" in errors[0].getMessage()


def test_a_row_of_a_new_class_loses_no_night_and_is_told():
    run()
    write_table(300)
    with Path("rows.csv").open("a") as file:
        file.write("0.5,0.5,0.5,c3\n")
    state = run()
    assert state.name in ("Kept", "Promoted")
    assert "left out: 1 row of classes of y that have too few rows to be in every split: c3 (1, in row " in state.message


def test_a_warm_start_takes_the_champions_weights_and_a_night_without_news_is_none_after_it_either(caplog, trained):
    run(training={"num_epochs": 2})
    trained.clear()
    write_table(300)
    warm = {"num_epochs": 2, "warm_start": True}
    first = run(training=warm)
    assert "starting from the weights of model@v1" in caplog.text
    assert trained == [1, 2]
    number = int(first.result().candidate.partition("@v")[2])
    move_alias(Store("refit-store"), "model", number, expected=champion(), why="by hand")
    assert run(training=warm).name == "Skipped"
    digests = [
        json.loads(Path(f"refit-store/models/model/v{version}/version.json").read_text())["weights_digest"] for version in (1, 2)
    ]
    assert run(training={"num_epochs": 2}).result().candidate == "model@v3", "from new weights it is another candidate"
    assert len(set(digests)) == 2


def test_after_a_last_fit_on_all_rows_a_warm_start_takes_the_weights_before_and_the_report_says_whose_scores_it_has():
    state = run(training={"refit_on_all": True})
    assert (state.name, champion()) == ("Promoted", 1)
    assert "retrained on all rows" in Path(state.result().report).read_text()
    write_table(300)
    run(training={"refit_on_all": True, "warm_start": True})
    recipe = next(iter(load_runs(Store("refit-store")).values())).recipe
    first = load_part(Store("refit-store"), "model", 1, "version")
    assert recipe.start.ingredients["first weights"] == first["held_back"]["weights_digest"] != first["weights_digest"]


def test_a_run_gives_way_to_one_at_work_unless_that_has_died(trained, monkeypatch):
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retrain), "one at a time")
        first, second = (client.create_flow_run_from_deployment(deployment) for _ in range(2))
        client.set_flow_run_state(first.id, Running())
        parameters = {"settings": give()}
        state = run_flow(retrain, flow_run=second, parameters=parameters, return_type="state")
        assert (state.name, trained) == ("Skipped", [])
        assert state.message == f"model has no champion; gives way to {first.name}, which is at work"
        assert client.read_flow_run(first.id).state_name == "Running"

        monkeypatch.setattr(refit.server.flow_runs, "LONGEST_SILENCE", timedelta())
        third = client.create_flow_run_from_deployment(deployment)
        assert run_flow(retrain, flow_run=third, parameters=parameters, return_type="state").name == "Promoted"
        assert client.read_flow_run(first.id).state_name == "Crashed"


def test_a_subflow_gives_way_to_the_same_one_of_a_run_of_its_deployment(trained):
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(nightly), "one model at a time")
        first, second, third = (
            client.create_flow_run_from_deployment(deployment, parameters={"name": name}) for name in ("cod", "cod", "eel")
        )
        client.set_flow_run_state(first.id, Running())
        skipped = run_flow(nightly, flow_run=second, parameters={"name": "cod"})
        assert (skipped.outcome, skipped.reason, trained) == ("skipped", f"gives way to {first.name}, which is at work", [])
        assert run_flow(nightly, flow_run=third, parameters={"name": "eel"}).outcome == "promoted"


def test_a_subflow_of_a_late_run_gives_way_to_a_newer_one_that_is_due(trained):
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(nightly), "late")
        late, newer = (
            client.create_flow_run_from_deployment(
                deployment, parameters={"name": "cod"}, state=Scheduled(scheduled_time=now - timedelta(hours=hours))
            )
            for hours in (26, 2)
        )
        planned = client.read_flow_run(newer.id).name
        skipped = run_flow(nightly, flow_run=client.read_flow_run(late.id), parameters={"name": "cod"})
        assert (skipped.outcome, skipped.reason, trained) == ("skipped", f"gives way to {planned}, as it starts late", [])
        assert client.read_flow_run(newer.id).name == planned, "runs of others keep their names"


@pytest.mark.parametrize("of", [retrain, nightly])
@pytest.mark.parametrize("cancelled", [Cancelled(), Cancelling()])
def test_a_cancelled_run_ends_itself_where_no_worker_does(monkeypatch, cancelled, of):
    monkeypatch.setattr(refit.server.flow_runs, "SECONDS_BETWEEN_LOOKS", 0.2)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(of), "cancelled"))

        def cancel_and_go_on(*_: object) -> None:
            client.set_flow_run_state(run.id, cancelled, force=True)
            time.sleep(60)

        monkeypatch.setattr(refit.flows.candidates, "judge_candidate", cancel_and_go_on)
        with pytest.raises(Abort):
            run_flow(of, flow_run=run, parameters={"settings": give()} if of is retrain else {"name": "model"})
        assert client.read_flow_run(run.id).state_name == "Cancelled"


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: sys.exit(1)])
def test_a_run_that_ends_while_it_is_being_cancelled_is_not_called_crashed(monkeypatch, end):
    """By its worker's signal, or as it cannot print to a worker that is gone."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(retrain), "cancelled"))

        def cancel_and_end(*_: object) -> None:
            client.set_flow_run_state(run.id, Cancelling(), force=True)
            with holding_signals():
                end()

        monkeypatch.setattr(refit.flows.candidates, "judge_candidate", cancel_and_end)
        with pytest.raises(Abort):
            run_flow(retrain, flow_run=run, parameters={"settings": give()})
        assert client.read_flow_run(run.id).state_name == "Cancelling"


def test_a_run_that_is_taken_for_dead_says_that_it_is_alive(monkeypatch):
    """As one is whose machine has slept for longer than runs may be silent."""
    monkeypatch.setattr(refit.server.flow_runs, "SECONDS_BETWEEN_LOOKS", 0.2)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(retrain), "asleep"))

        def sleep_and_wake(*_: object) -> RetrainingResult:
            client.set_flow_run_state(run.id, Crashed(), force=True)
            for _ in range(300):
                if client.read_flow_run(run.id).state_name == "Running":
                    break
                time.sleep(0.1)
            return RetrainingResult(outcome="kept", reason="it may be luck", champion=None)

        monkeypatch.setattr(refit.flows.candidates, "judge_candidate", sleep_and_wake)
        run_flow(retrain, flow_run=run, parameters={"settings": give()})
        names = [state.name for state in sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp)]
        assert names[-4:] == ["Running", "Crashed", "Running", "Kept"]


def test_a_run_names_those_that_are_planned_as_one_that_dies_before_it_begins_cannot():
    at = datetime(2031, 10, 2, 3, tzinfo=UTC)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retrain), "named")
        states = None, Scheduled(scheduled_time=at)
        now, later = (client.create_flow_run_from_deployment(deployment, state=state) for state in states)
        run_flow(retrain, flow_run=now, parameters={"settings": give(name="toy")}, return_type="state")
        assert client.read_flow_run(later.id).name == f"retrain toy, {at.astimezone():%-d %b %Y %H:%M}"
        assert client.read_flow_run(later.id).state_name == "Scheduled"


def test_a_run_is_alive_while_its_heart_beats():
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(retrain, state=Running())
        before, after = (datetime.now(UTC) + timedelta(seconds=seconds) for seconds in (-1, 1))
        assert is_alive(client, run, before)
        assert not is_alive(client, run, after)
        emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run.id}"}, occurred=after)
        for _ in range(300):
            if is_alive(client, run, after):
                break
            time.sleep(0.1)
        assert is_alive(client, run, after)
        assert not is_alive(client, run, datetime.now(UTC) + timedelta(seconds=1))


def test_a_late_run_gives_way_to_a_newer_one_that_is_due(trained):
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retrain), "nightly")
        ids = [
            client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=now - timedelta(hours=hours))).id
            for hours in (50, 26, 2, -22)
        ]
        runs = [client.read_flow_run(identity) for identity in ids]
    parameters = {"settings": give(schedule={"max_delay_seconds": 3 * 3600})}
    oldest, _, newest, _ = runs
    state = run_flow(retrain, flow_run=oldest, parameters=parameters, return_type="state")
    assert (state.name, trained) == ("Skipped", [])
    other = describe_run("retrain", "model", newest.expected_start_time)
    assert state.message == f"model has no champion; gives way to {other}, as it starts late"
    assert run_flow(retrain, flow_run=newest, parameters=parameters, return_type="state").name == "Promoted"
