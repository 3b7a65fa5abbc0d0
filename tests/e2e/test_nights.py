"""What a real server does by itself for runs that crash, fall silent, are cancelled, or do not come at all; without a worker."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from queue import Queue
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running, State, Suspended
from servers import SELDOM, TIMEOUT_SECONDS, Site, wait_for
from test_schedule import MAKE_BLOCK

from refit.server import automations
from refit.server.api import HEARTBEAT
from refit.server.automations import MAX_STARTS, announce, remove_notifications, update_automations

pytestmark = pytest.mark.slow

AFTER_CRASH, SILENCE, TO_CANCEL, TO_ANSWER = (timedelta(seconds=seconds) for seconds in (24, 45, 12, 60))


@pytest.fixture
def client(site: Site, monkeypatch) -> Iterator[SyncPrefectClient]:
    """Of a server whose automations wait seconds where others wait minutes."""
    monkeypatch.setattr(automations, "BETWEEN_REPORTS", AFTER_CRASH)
    monkeypatch.setattr(automations, "SILENCE", SILENCE)
    monkeypatch.setattr(automations, "TO_CANCEL", TO_CANCEL)
    # A process sends its events to the server that was set when it sent the first.
    EventsWorker.drain_all()
    with temporary_settings({PREFECT_API_URL: site.url}), get_client(sync_client=True) as client:
        yield client
        EventsWorker.drain_all()


def register(client: SyncPrefectClient, flow: str, name: str, tags: list[str]) -> UUID:
    return client.create_deployment(client.create_flow_from_name(flow), name, tags=tags)


def start(client: SyncPrefectClient, deployment: UUID, *states: State) -> FlowRun:
    run = client.create_flow_run_from_deployment(deployment)
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run


def beat(run: FlowRun, flow: str = "train") -> None:
    """As Prefect's engine does for a run."""
    related = [
        {"prefect.resource.role": "flow", "prefect.resource.id": "prefect.flow.1", "prefect.resource.name": flow},
        {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{run.deployment_id}"},
        *({"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{tag}"} for tag in run.tags),
    ]
    emit_event(HEARTBEAT, {"prefect.resource.id": f"prefect.flow-run.{run.id}"}, related=related)


def names(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    return [state.name for state in client.read_flow_run_states(run.id)]


def test_runs_that_die_start_again_unless_somebody_cancelled_them_and_nobody_elses_do(site, client):
    update_automations(client, "fish", timedelta(days=1), TO_ANSWER, block=None)
    ours, others = register(client, "train", "fish", ["refit"]), register(client, "train", "theirs", ["other"])
    tagged = register(client, "their own", "theirs", ["other", "refit"])
    asking = start(client, register(client, "retrain", "fish", ["refit"]), Running())
    beat(asking, "retrain")
    time.sleep(3)  # the server reads its automations
    unbegun = start(client, ours, Pending(), Crashed())
    worn = start(client, ours, *[Pending(), Running(), Crashed()] * MAX_STARTS)
    cancelled = start(client, ours, Running(), Crashed(), Cancelled())
    killed = start(client, ours, Running(), Cancelling(), Crashed())
    foreign = start(client, others, Running(), Crashed())
    done, suspended, silent, half_cancelled = (start(client, ours, Running()) for _ in range(4))
    elsewhere, by_choice = start(client, others, Running()), start(client, tagged, Running())
    for run in (done, suspended, silent, half_cancelled, elsewhere):
        beat(run)
    beat(by_choice, "their own")
    time.sleep(5)  # as long as a heartbeat takes to the server
    client.set_flow_run_state(done.id, Completed())
    client.set_flow_run_state(suspended.id, Suspended(timeout_seconds=3600))
    client.set_flow_run_state(half_cancelled.id, Cancelling())
    client.set_flow_run_state(asking.id, Suspended())
    assert names(client, half_cancelled)[-1] == "Cancelling"

    for attempts in (1, 2):
        wait_for(lambda times=attempts: names(client, unbegun).count("AwaitingRetry") == times, SELDOM)
        client.set_flow_run_state(unbegun.id, Crashed(), force=True)
    wait_for(lambda: names(client, unbegun)[-1] == "Failed", SELDOM)
    assert client.read_flow_run(unbegun.id).state.message.startswith("Died 3 times before it began: see the worker's log")
    for run in (silent, by_choice):
        wait_for(lambda run=run: names(client, run)[-2:] == ["Crashed", "AwaitingRetry"], SELDOM)
    wait_for(lambda: names(client, half_cancelled)[-1] == "Cancelled", SELDOM)
    wait_for(lambda: names(client, killed)[-1] == "Cancelled", SELDOM)
    time.sleep(2 * AFTER_CRASH.seconds)
    last = {"unbegun": unbegun, "worn": worn, "cancelled": cancelled, "foreign": foreign, "done": done, "elsewhere": elsewhere}
    assert {name: names(client, run)[-1] for name, run in {**last, "suspended": suspended}.items()} == {
        "unbegun": "Failed",
        "worn": "Crashed",
        "cancelled": "Cancelled",
        "foreign": "Crashed",
        "done": "Completed",
        "elsewhere": "Running",
        "suspended": "Suspended",
    }
    assert names(client, asking)[-3:] == ["Running", "Suspended", "Resuming"], "its heart may rest until its time is up"
    for run in (half_cancelled, killed):
        assert names(client, run)[-1] == "Cancelled"
        assert "AwaitingRetry" not in names(client, run)
    log = site.log("server").read_text()
    failed = [line for line in log.splitlines() if "Action failed" in line]
    assert all("already in terminal state" in line for line in failed), "on a slow machine, a run may end as the server acts on it"
    assert "database is locked" not in log


def test_crashes_and_lost_nights_are_told_to_the_block_of_the_model(site, client, mailbox):
    url, messages = mailbox
    subprocess.run([sys.executable, "-c", MAKE_BLOCK, url], env=site.environment, check=True)
    deployment = register(client, "retrain", "crab", ["refit"])
    update_automations(client, "crab", timedelta(seconds=20), TO_ANSWER, "custom-webhook/team")
    time.sleep(3)
    announce("crab", deployment)
    assert find_subject(messages) == "retrain/crab: no run has ended for 0:00:30"
    run = start(client, deployment, Running(), Crashed())
    assert find_subject(messages) == f"{run.name}: Crashed"
    asking = start(client, deployment, Running(), Suspended())
    message = messages.get(timeout=TIMEOUT_SECONDS)
    assert message["subject"] == f"{asking.name}: Suspended"
    assert re.fullmatch(rf"It waits on its page for an answer\.\n\nhttp://.*{asking.id}", message["body"])
    start(client, deployment, Running(), Completed(name="Kept"))
    assert find_subject(messages) == "retrain/crab: no run has ended for 0:00:30"
    assert [entry["name"] for entry in site.ask("/automations/filter").json() if "crab" in entry["name"]] == [
        "refit: go on without an answer about crab",
        "refit: tell of lost nights of crab",
        "refit: tell of trouble with crab",
    ]
    remove_notifications(client, "crab")
    assert "refit: tell of" not in json.dumps(site.ask("/automations/filter").json())


def find_subject(messages: Queue) -> str:
    return messages.get(timeout=TIMEOUT_SECONDS)["subject"]
