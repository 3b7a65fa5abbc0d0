"""The Prefect server that PREFECT_API_URL names: whether it answers, and what it knows about a deployment and its runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_HOME, temporary_settings
from pydantic import TypeAdapter

from refit.errors import RefitError, SettingsError, first_line
from refit.texts import show_line

HEARTBEAT = "prefect.flow-run.heartbeat"
AWAITING_RESTART = "AwaitingRetry"
"""Prefect's name for the state of a crashed run that is to start again."""
SUSPENDED, RESUMING = "Suspended", "Resuming"
"""Prefect's names for the states of a run that waits for an answer, and of one that has it and waits for a worker."""
PAUSED = "paused"
SECONDS_TO_CONNECT = 5
SECONDS_TO_ANSWER = 20
"""A server that was just started takes a few seconds."""
SECONDS_TO_DEPLOY = 120
"""A server that was started just before takes a minute on a busy machine."""
SECONDS_TO_SAY_SO = 3
"""After so long a wait, a line says that it is waiting."""
SECONDS_TO_START = 60
"""For the server that a local run starts for itself."""


class ServerError(RefitError):
    """The Prefect server does not answer, or not as it should."""

    @classmethod
    def of(cls, url: str, error: Exception) -> "ServerError":
        """Say which server, what it answered, and what to do."""
        remedy = "start it, or set the address of another"
        if _is_refusal(error):
            remedy = "check the address, and PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        return cls(f"PREFECT_API_URL: expected a Prefect server at {url}, found {first_line(error)}; {remedy}")


@dataclass(frozen=True)
class Ran:
    """A run that was started."""

    name: str
    state: str
    has_failed: bool
    message: str
    at: datetime
    """When it entered that state."""
    starts_again: bool = False
    """It crashed, and waits to be started again."""


@dataclass(frozen=True)
class Deployed:
    """A deployment, and what the server knows of its runs and workers."""

    name: str
    schedule: str
    """Cron line and time zone, or `paused`; empty if it runs only when somebody starts it."""
    last_run: Ran | None
    next_run_at: datetime | None
    pool: str | None
    """The work pool whose workers take its runs."""
    num_workers: int
    """Workers that are online."""


def await_server(seconds: float, seconds_to_say_so: float = SECONDS_TO_SAY_SO) -> None:
    """Wait until the server that is set answers Prefect's client, which has the certificates, credentials and headers for it.

    Raises:
        ServerError: It does not answer within `seconds`, or refuses.
    """
    began_at, is_told = time.monotonic(), False
    impatient = get_client(httpx_settings={"timeout": SECONDS_TO_CONNECT}, sync_client=True)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), impatient as client:
        while True:
            try:
                client.read_flow_runs(limit=1)  # its health check would need no credentials
                return
            except (httpx.HTTPError, ValueError) as error:
                if isinstance(error, httpx.HTTPStatusError | httpx.ReadTimeout) and not _is_refusal(error):
                    return  # it is busy, and Prefect's client will wait
                waited = time.monotonic() - began_at
                if _is_refusal(error) or waited > seconds:
                    raise ServerError.of(PREFECT_API_URL.value(), error) from error
                if waited > seconds_to_say_so and not is_told:
                    is_told = True
                    told = f"waiting up to {seconds:g} seconds for a Prefect server at {PREFECT_API_URL.value()}"
                    print(show_line(told), file=sys.stderr, flush=True)
            time.sleep(0.05)


def await_own_server(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server of this process answers.

    Raises:
        ServerError: It does not answer in time, or its `process` has ended.
    """
    give_up_at = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            httpx.get(f"{url}/health", trust_env=False).raise_for_status()  # without a proxy
            return
        except httpx.HTTPError as error:
            if process.poll() is not None:
                raise ServerError(
                    f"expected to start a Prefect server, found that it ended with code {process.returncode};"
                    f" look at {PREFECT_HOME.value()}, or start one yourself and set PREFECT_API_URL"
                ) from error
            if time.monotonic() > give_up_at:
                raise ServerError.of(url, error) from error
        time.sleep(0.05)


@contextmanager
def connected(seconds: float = 0) -> Iterator[SyncPrefectClient]:
    """Yield a client of the server, which has `seconds` to answer.

    Raises:
        SettingsError: No server is set.
        ServerError: It does not answer, or refuses.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise SettingsError(
            "PREFECT_API_URL: expected the address of a Prefect server, found none;"
            " start one with `refit server` and set it to http://127.0.0.1:4200/api"
        )
    try:
        await_server(seconds)
        with get_client(sync_client=True) as client:
            yield client
    except (PrefectHTTPStatusError, httpx.TransportError) as error:
        raise ServerError.of(url, error) from error


def forgets_soon(client: SyncPrefectClient) -> bool:
    """Whether a server that is away forgets within an hour what it was watching; Prefect Cloud does not say, and is never away."""
    try:
        remembers_for = client.request("GET", "/admin/settings").json()["server"]["events"]["expired_bucket_buffer"]
    except (PrefectHTTPStatusError, KeyError):  # or its version has another name for it
        return False
    return TypeAdapter(timedelta).validate_python(remembers_for) < timedelta(hours=1)


def read_deployed(client: SyncPrefectClient, flow: str, name: str | None = None) -> list[Deployed]:
    """Return what the server knows about the deployments of a flow, or about the one called `name`."""
    found = client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])) if name else None,
    )
    return [_read_runs(client, flow, deployment) for deployment in found]


def is_alive(client: SyncPrefectClient, run: FlowRun, since: datetime) -> bool:
    """Whether a run that is at work has begun or sent a heartbeat since then."""
    heartbeats = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=since),
    )
    return (run.state is not None and run.state.timestamp >= since) or client.read_events(heartbeats, limit=1).total > 0


def find_runs(
    client: SyncPrefectClient, deployment: UUID, runs: FlowRunFilter, sort: FlowRunSort, limit: int | None = None
) -> list[FlowRun]:
    """Runs of a deployment."""
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return client.read_flow_runs(deployment_filter=of_deployment, flow_run_filter=runs, sort=sort, limit=limit)


def describe_run(flow: str, model: str, at: datetime) -> str:
    """The name of a run, such as `retrain penguins, 2 Oct 2026 03:00`, in this machine's time zone."""
    return f"{flow} {model}, {at.astimezone():%-d %b %Y %H:%M}"


def name_planned_runs(client: SyncPrefectClient, deployment: UUID, flow: str, model: str) -> None:
    """Give planned runs of a deployment the names that they take once they begin, in place of the server's random ones."""
    planned = FlowRunFilter(state=in_states(StateType.SCHEDULED))
    for run in find_runs(client, deployment, planned, FlowRunSort.EXPECTED_START_TIME_ASC):
        if run.expected_start_time is not None:
            client.update_flow_run(run.id, name=describe_run(flow, model, run.expected_start_time))


def in_states(*types: StateType) -> FlowRunFilterState:
    """The filter for runs that are in one of these states."""
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=[*types]))


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in {401, 403, 404}


def _read_runs(client: SyncPrefectClient, flow: str, deployment: DeploymentResponse) -> Deployed:
    scheduled, again = FlowRunFilterStateType(any_=[StateType.SCHEDULED]), [AWAITING_RESTART]
    crashed = FlowRunFilter(state=FlowRunFilterState(type=scheduled, name=FlowRunFilterStateName(any_=again)))
    waiting = FlowRunFilter(state=FlowRunFilterState(type=scheduled, name=FlowRunFilterStateName(not_any_=again)))
    started = FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False))
    runs = [
        *find_runs(client, deployment.id, crashed, FlowRunSort.EXPECTED_START_TIME_DESC, limit=1),
        *find_runs(client, deployment.id, started, FlowRunSort.START_TIME_DESC, limit=1),
    ]
    last = max(filter(None, map(partial(_describe_run, client), runs)), key=lambda ran: ran.at, default=None)
    following = next(iter(find_runs(client, deployment.id, waiting, FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC, limit=1)), None)
    return Deployed(
        name=f"{flow}/{deployment.name}",
        schedule=_describe_schedules(deployment),
        last_run=last,
        next_run_at=following.next_scheduled_start_time if following else None,
        pool=deployment.work_pool_name,
        num_workers=_count_workers(client, deployment.work_pool_name),
    )


def _describe_run(client: SyncPrefectClient, run: FlowRun) -> Ran | None:
    state = run.state
    if state is None:
        return None
    starts_again = state.name == AWAITING_RESTART
    if starts_again:  # that state says only which automation set it
        states = client.read_flow_run_states(run.id)
        state = max((found for found in states if found.is_crashed()), key=lambda found: found.timestamp, default=state)
    has_failed = state.type in (StateType.FAILED, StateType.CRASHED)
    message = "it waits on its page for an answer" if state.is_paused() else state.message or ""
    return Ran(run.name, state.name or "", has_failed, message, state.timestamp, starts_again)


def _describe_schedules(deployment: DeploymentResponse) -> str:
    if deployment.paused:
        return PAUSED
    schedules = [entry.schedule for entry in deployment.schedules if entry.active]
    return ", ".join(
        f"{schedule.cron} {schedule.timezone}" if isinstance(schedule, CronSchedule) else str(schedule) for schedule in schedules
    )


def _count_workers(client: SyncPrefectClient, pool: str | None) -> int:
    if pool is None:
        return 0
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    return len(client.read_workers_for_work_pool(pool, worker_filter=online))
