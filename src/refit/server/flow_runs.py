"""What flow runs have in common: their names, their settings, and when one gives way to another of the same deployment."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import lru_cache, wraps
from itertools import takewhile
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Running

from refit.errors import RefitError, SettingsError
from refit.server.api import RESUMING, SUSPENDED, describe_run, find_runs, in_states, is_alive, name_planned_runs
from refit.server.project import enter_project
from refit.settings import NothingGiven, Settings, SettingsTree, resolve_settings, walk_settings
from refit.undocumented import RunKeepsState, asking_once, stop_server_with_process

P = ParamSpec("P")
R = TypeVar("R")
DEFAULTS = NothingGiven()
LONGEST_SILENCE = timedelta(minutes=20)
"""Of a run that is alive: it continues for 15 minutes while its server is away."""
WAITING = FlowRunFilterState(name=FlowRunFilterStateName(any_=[SUSPENDED, RESUMING]))
SECONDS_BETWEEN_LOOKS = 30
"""How often a run looks at its own state. A worker that listens ends a cancelled run within this time."""


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Drop the traceback that Prefect logs with an error that a user can correct, and its later record of the same error."""
    if record.exc_info and isinstance(record.exc_info[1], RefitError):
        record.exc_info = record.exc_text = None
        return not record.getMessage().startswith("Engine execution exited")
    return True


for _runs in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_runs).addFilter(is_worth_a_line)


def name_run() -> str:
    """Name a run by its flow, its model and the time when it was due."""
    settings, changes = flow_run.parameters["settings"], flow_run.parameters["changes"]
    name = (changes if "name" in changes.model_fields_set else settings).name
    with contextlib.suppress(SettingsError):  # the flow will raise it
        enter_project()
        name = _resolve(settings, changes)[0].name
    return describe_run(flow_run.flow_name, name, flow_run.scheduled_start_time)


def resolve_given(settings: SettingsTree, changes: SettingsTree, learns: bool = True) -> Settings:
    """Merge the changes into the settings, leaf by leaf, and fill in the rest from the environment of this machine.

    Args:
        settings: Of the run; merged over what its deployment fixes, where they are others.
        changes: What is different in this run alone.
        learns: Whether the run needs rows to learn from. Only a run without a deployment falls back on the toy table.

    Raises:
        SettingsError: As in `resolve_settings`, or the worker does not name the project's folder, or a run of a deployment is to
            learn and nothing names the rows.
    """
    enter_project()
    stop_server_with_process()
    resolved, origins = _resolve(settings, changes)
    is_unsaid = origins["data.source"] == "default" and resolved.data.factory is None
    if learns and is_unsaid and find_deployed_run() is not None:
        raise SettingsError(
            "data.source: expected the rows that a deployment learns from, found none; set it (`notebook` is the toy table), for"
            " a single run among its `changes`"
        )
    return resolved


def show_settings(settings: SettingsTree, changes: SettingsTree) -> None:
    """Show on the page of a deployment's run where its settings come from; `refit settings` does it at a terminal."""
    if find_deployed_run() is None:
        return
    resolved, origins = _resolve(settings, changes)
    rows = [{"setting": name, "value": json.dumps(value), "from": origins[name]} for name, value in walk_settings(resolved)]
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 2}):  # not worth a long wait for the server
            create_table_artifact(rows, f"{resolved.name.replace('_', '-')}-settings", "Settings of this run, and their origins")
    except httpx.HTTPError as error:
        get_run_logger().warning("the settings cannot be shown on the run's page: %s", error)


def _resolve(settings: SettingsTree, changes: SettingsTree) -> tuple[Settings, dict[str, str]]:
    """Merge what the run was given over what its deployment fixes, and tell one from the other."""
    own, given = find_deployed_run(), settings.model_dump(exclude_unset=True)
    fixed = _read_fixed(own.id, _deployment_of(own)) if own is not None and _is_self(own) else {}
    parameters = {
        "changes": changes.model_dump(exclude_unset=True),
        "settings": {} if given == fixed else given,
        "deployment": fixed,
    }
    return resolve_settings(parameters=parameters)


@lru_cache(maxsize=16)
def _read_fixed(_run: UUID, deployment: UUID) -> dict[str, Any]:
    """Return the settings of a deployment, as they were when the run began; a run may be given others in their place."""
    with contextlib.suppress(ObjectNotFound), get_client(sync_client=True) as client:
        fixed = client.read_deployment(deployment).parameters.get("settings", {})
        return SettingsTree.model_validate(fixed).model_dump(exclude_unset=True)
    return {}


def name_next_runs(model: str) -> None:
    """Name the planned runs of the same deployment, because a run that dies before it begins cannot name itself."""
    run = find_deployed_run()
    if run is None or not _is_self(run):  # the runs of a flow that calls ours have names of their own
        return
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        name_planned_runs(client, _deployment_of(run), flow_run.flow_name, model)


def find_newer_run(max_delay_seconds: float) -> FlowRun | None:
    """Find the newest run of the same deployment that is due, if this one started more than `max_delay_seconds` late."""
    own, now = find_deployed_run(), datetime.now(UTC)
    scheduled = own.expected_start_time if own else None
    if own is None or scheduled is None:
        return None
    began_at = now if _is_self(own) else own.start_time or now  # a flow may work for hours before it retrains
    if (began_at - scheduled).total_seconds() <= max_delay_seconds:
        return None
    due = FlowRunFilter(
        expected_start_time=FlowRunFilterExpectedStartTime(after_=scheduled, before_=now),
        state=in_states(StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING),
    )
    with get_client(sync_client=True) as client:
        found = find_runs(client, _deployment_of(own), due, FlowRunSort.EXPECTED_START_TIME_DESC)
    newer = (run for run in found if run.expected_start_time and run.expected_start_time > scheduled)
    return next((run for run in newer if _does_the_same(run, own)), None)


def find_run_at_work() -> FlowRun | None:
    """Find a run of the same deployment that began before this one and is at work, or waits for an answer.

    A run that died with its server is set to Crashed. With a concurrency limit of Prefect, it would keep its slot, and all later
    runs would be cancelled.
    """
    own = find_deployed_run()
    if own is None:
        return None
    running = FlowRunFilter(state=in_states(StateType.RUNNING))
    with get_client(sync_client=True) as client:
        found = find_runs(client, _deployment_of(own), running, FlowRunSort.START_TIME_ASC)
        began_at = {run.id: run.state.timestamp for run in found if run.state}
        found.sort(key=lambda run: (began_at[run.id], run.id))
        for run in takewhile(lambda run: run.id != own.id, found):
            if is_alive(client, run, datetime.now(UTC) - LONGEST_SILENCE):
                if _does_the_same(run, own):
                    return run
            elif _is_self(own):
                client.set_flow_run_state(run.id, Crashed(message=f"No heartbeat for {LONGEST_SILENCE.seconds} seconds."))
        waiting = FlowRunFilter(state=WAITING)
        found = find_runs(client, _deployment_of(own), waiting, FlowRunSort.START_TIME_ASC, limit=1) if _is_self(own) else []
    return next(iter(found), None)


def find_waiting_run(ids: Sequence[str]) -> FlowRun | None:
    """Find one of these runs that waits for an answer."""
    if not ids:
        return None
    waiting = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run) for run in ids]), state=WAITING)
    with get_client(sync_client=True) as client:
        return next(iter(client.read_flow_runs(flow_run_filter=waiting, limit=1)), None)


def describe_precedence(other: FlowRun) -> str:
    """Say to which run another gives way, and why."""
    return f"gives way to {other.name}, which {'is at work' if other.state_type == StateType.RUNNING else 'waits for an answer'}"


def find_own_deployment() -> UUID | None:
    """Return the deployment that lets the run at work end now and begin anew later; None if another flow has called it."""
    own = find_deployed_run()
    return own.deployment_id if own is not None and _is_self(own) and own.parent_task_run_id is None else None


@contextlib.contextmanager
def watching_own_state() -> Iterator[None]:
    """End this run of a deployment if it is cancelled and no worker ends it; correct its state if it is called dead but is alive.

    A subflow ends itself when the deployment's run that it belongs to is cancelled.

    Once its server has been away for half a minute, a worker no longer listens for the run's cancellation: its websocket gives up
    after ten tries, and the polling that replaces it after three. When a machine wakes after minutes of sleep, its runs have been
    silent for too long.
    """
    own = find_deployed_run()
    if own is None:
        yield
        return
    is_over, is_cancelled = threading.Event(), threading.Event()

    def watch() -> None:
        if _await_cancellation(own, is_over):
            is_cancelled.set()
            # Sent to the process, another thread might take it, and the main one would sleep or wait on.
            signal.pthread_kill(cast(int, threading.main_thread().ident), signal.SIGTERM)

    threading.Thread(target=copy_context().run, args=(watch,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        # Prefect would call the run crashed, because it takes a signal for a cancellation only if its own handler is in place, not
        # that of `holding_signals`. The worker then calls it cancelled, but a busy server that `prefect server start` started
        # misses that (19 times of 20) and starts the run again.
        if is_cancelled.is_set() or (not isinstance(error, Exception) and _is_cancelled(own.id)):
            raise RunKeepsState("cancelled") from error
        raise
    finally:
        is_over.set()


def watched(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function run in `watching_own_state`, which cannot decorate a flow itself, because `.serve` could not pickle that."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with watching_own_state():
            return function(*args, **kwargs)

    return run


def _is_cancelled(run: UUID) -> bool:
    """Whether a run is cancelled, or about to be."""
    with contextlib.suppress(httpx.HTTPError, ObjectNotFound), asking_once(), get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state or Running()
        return state.is_cancelling() or state.is_cancelled()
    return False


def _await_cancellation(run: FlowRun, is_over: threading.Event) -> bool:
    """Wait until the run is cancelled (True) or over; set it to Cancelled if no worker does, and from Crashed back to Running."""
    is_asked, is_own = False, _is_self(run)
    with asking_once():
        while not is_over.wait(SECONDS_BETWEEN_LOOKS):
            with contextlib.suppress(httpx.HTTPError, ObjectNotFound), get_client(sync_client=True) as client:
                state = client.read_flow_run(run.id).state or Running()
                if state.is_crashed() and is_own:  # a flow that calls ours may have died in a process of its own
                    client.set_flow_run_state(run.id, Running(message="It was taken for dead, but is alive."), force=True)
                if state.is_cancelling() and is_asked:
                    state = Cancelled(message="Its worker did not end it; it ended itself.")
                    client.set_flow_run_state(run.id, state, force=True)
                if state.is_cancelled():
                    return True
                is_asked = state.is_cancelling()
    return False


def find_deployed_run() -> FlowRun | None:
    """Return the run of a deployment that the run at work is or, as a subflow, belongs to; None if there is none."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.deployment_id is None and run.parent_task_run_id is not None:
        run = _read_deployed_parent(run.id)
    return run if run is not None and run.deployment_id else None


@lru_cache(maxsize=16)
def _read_deployed_parent(subflow: UUID) -> FlowRun:
    """Return the nearest run of a deployment that a subflow belongs to, or the outermost run if there is none."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(subflow)
        while run.deployment_id is None and run.parent_task_run_id is not None:
            parent = client.read_task_run(run.parent_task_run_id).flow_run_id
            if parent is None:
                break
            run = client.read_flow_run(parent)
    return run


def _is_self(run: FlowRun) -> bool:
    """Whether this is the run at work itself, not one that it belongs to."""
    return str(run.id) == str(flow_run.id)


def _does_the_same(run: FlowRun, own: FlowRun) -> bool:
    """Whether two runs of a deployment retrain the same model; a user's own flow may retrain several, by its parameters."""
    return _is_self(own) or run.parameters == own.parameters


def _deployment_of(run: FlowRun) -> UUID:
    return cast(UUID, run.deployment_id)
