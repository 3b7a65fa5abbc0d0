"""Deployments of the flows: one of each flow for each model, in the work pool of its project."""

import importlib
import socket
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    DeploymentFilterTags,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled
from prefect.workers.process import ProcessWorker

from refit.errors import SettingsError
from refit.server.api import (
    PAUSED,
    SECONDS_TO_DEPLOY,
    SUSPENDED,
    Deployed,
    ServerError,
    connected,
    find_runs,
    forgets_soon,
    in_states,
    name_planned_runs,
    read_deployed,
)
from refit.server.automations import (
    FLOWS,
    TAG,
    announce,
    remove_automations,
    remove_automations_of,
    remove_notifications,
    update_automations,
)
from refit.server.forms import fill_in_values
from refit.server.plans import A_DAY, Plan, check_variables, describe_version, find_period, read_plan
from refit.settings import resolve_settings

SECONDS_TO_SCHEDULE = 120
"""The server's scheduler looks for new deployments every few seconds; on a busy machine, 30 were not enough."""
UNFINISHED = StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING
OF_PROJECT = "Runs of the Refit project in "
"""How the description of a pool that `deploy` has made begins."""


@dataclass(frozen=True)
class Registered:
    """The deployments and automations that the server has for a project."""

    deployments: list[Deployed]
    automations: list[str]
    others: list[str]
    """Deployments that retrain other models of the same project."""
    forgets_soon: bool
    """As `refit.server.api.forgets_soon` says."""


@dataclass(frozen=True)
class Removed:
    """What `remove` has removed, and what became of the runs."""

    removed: list[str]
    """Deployments, automations and the work pool."""
    going_on: list[str]
    """Runs at work, which continue to their end and are not started again if they crash."""
    num_dropped: int
    """Runs that were planned, or waited for a worker or an answer."""


def deploy(settings: Mapping[str, Any], plan: Plan) -> Registered:
    """Create the work pool if it is missing, register the deployments, and have the server look after their runs.

    Another call for the same model replaces its deployments.

    Args:
        settings: The settings that are fixed for the runs. The model's name is always fixed, and the deployments have it too. Other
            settings come from the machine that runs them.
        plan: When and where they run.

    Raises:
        SettingsError: No server is set, nothing names the rows to learn from, a schedule is invalid, the pool does not know a job
            variable, there is no such block, or another project has deployments of that name.
        ServerError: The server does not answer, refuses, or plans no run of a schedule.
    """
    resolved, origins = resolve_settings(settings)
    name = resolved.name
    if origins["data.source"] == "default" and resolved.data.factory is None:
        raise SettingsError(
            "data.source: expected the rows to learn from, found none; add --data.source or --data.factory, or set one in"
            " refit.toml (`notebook` deploys the toy table)"
        )
    fields = read_plan({**settings, "name": name}, plan)
    with connected(SECONDS_TO_DEPLOY) as client:
        _refuse_name_of_others(client, name, plan.pool)
        period = find_period(line.schedule for line in fields["retrain"]["schedules"])
        to_answer = timedelta(seconds=resolved.promotion.timeout_seconds)
        version = describe_version(resolved)
        planned_first = sorted(fields, key=lambda flow: not fields[flow]["schedules"])  # the server plans them while others load
        with _all_or_nothing(client, plan.pool, name):
            check_variables(plan.job_variables, _make_pool(client, plan.pool))
            automations = update_automations(client, name, period, to_answer, plan.block)
            registered = {flow: _register(client, flow, {**fields[flow], "version": version}, settings) for flow in planned_first}
        if plan.block is None:
            remove_notifications(client, name)
        announce(name, registered["retrain"])
        deployed = [_await_schedule(client, flow, name, bool(of_flow["schedules"])) for flow, of_flow in fields.items()]
        for flow, deployment in registered.items():
            name_planned_runs(client, deployment, flow, name)
        others = [f"retrain/{other.name}" for other in _find(client, "retrain", pool=plan.pool) if other.name != name]
        return Registered(deployed, automations, others, forgets_soon(client))


def look_after_others(model: str | None = None, block: str | None = None) -> tuple[list[str], list[str]]:
    """Have the server look after the runs of deployments that have our tag but were not made by `deploy`.

    Args:
        model: The name of a deployment that retrains and whose trouble is told; None tells of none.
        block: `TYPE/NAME` of the Prefect block that is told; None tells nobody any more.

    Returns:
        The names of the automations, and of the deployments that have the tag.

    Raises:
        SettingsError: No server is set, there is no such block, or no such deployment with the tag.
        ServerError: The server does not answer, or refuses.
    """
    with connected() as client:
        found = {f"{flow}/{entry.name}": entry for flow in FLOWS for entry in _find(client, flow) if TAG in entry.tags}
        deployment = found.get(f"retrain/{model}")
        if model is not None and deployment is None:
            there = ", ".join(sorted(found)) or "none that has it"
            raise SettingsError(
                f"expected a deployment retrain/{model} with the tag `{TAG}`, found {there}; tag it in"
                " `prefect.yaml` or `.serve(tags=…)`"
            )
        period = find_period(line.schedule for line in deployment.schedules if line.active) if deployment else A_DAY
        given = deployment.parameters.get("settings", {}) if deployment else {}
        to_answer = timedelta(seconds=resolve_settings(parameters={"deployment": given})[0].promotion.timeout_seconds)
        automations = update_automations(client, model, period, to_answer, block)
        if model is not None and block is None:
            remove_notifications(client, model)
        if deployment and block:
            announce(deployment.name, deployment.id)
        return automations, sorted(found)


def remove(pool: str, name: str | None = None) -> Removed:
    """Remove a project's deployments, with their schedules and planned runs, and the automations that are for them alone.

    Args:
        pool: The work pool of the project.
        name: The name of the model; None removes the deployments of all models.

    Raises:
        SettingsError: No server is set, or the project has no deployment of that name.
        ServerError: The server does not answer, or refuses.
    """
    with connected(SECONDS_TO_DEPLOY) as client:
        found = [(flow, entry) for flow in FLOWS for entry in _find(client, flow, name, pool)]
        if name is not None and not found:
            there = sorted({entry.name for entry in _find(client, "retrain", pool=pool)})
            raise SettingsError(
                f"--name: expected a model that is deployed in work pool {pool}, found no {name!r};"
                f" those there: {', '.join(there) or 'none'}; --pool names another pool"
            )
        removed, going_on, num_dropped = [], [], 0
        for flow, entry in found:
            for run in find_runs(
                client, entry.id, FlowRunFilter(state=in_states(*UNFINISHED)), FlowRunSort.EXPECTED_START_TIME_ASC
            ):
                if run.state_type != StateType.SCHEDULED and run.state_name != SUSPENDED:
                    going_on.append(run.name)
                    continue
                num_dropped += 1
                if run.run_count:  # else the server deletes it with its deployment
                    client.set_flow_run_state(run.id, Cancelled(message="Its deployment was removed."), force=True)
            client.delete_deployment(entry.id)
            removed.append(f"{flow}/{entry.name}")
        removed += _remove_unneeded(client, pool, {entry.name for _, entry in found})
        return Removed(removed, going_on, num_dropped)


@contextmanager
def _all_or_nothing(client: SyncPrefectClient, pool: str, name: str) -> Iterator[None]:
    """Remove what the block has registered for a model that had nothing, if it fails."""
    is_new = not any(_find(client, flow, name) for flow in FLOWS)
    try:
        yield
    except Exception:
        if is_new:
            for entry in [entry for flow in FLOWS for entry in _find(client, flow, name)]:
                client.delete_deployment(entry.id)
            _remove_unneeded(client, pool, {name})
        raise


def _remove_unneeded(client: SyncPrefectClient, pool: str, models: Set[str]) -> list[str]:
    """Remove the automations of models that are no longer deployed, those of all once none is, and a pool that `deploy` made."""
    removed = [name for model in sorted(models) for name in remove_automations_of(client, model)]
    if not client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), limit=1):
        removed += remove_automations(client)
    if not client.read_deployments(work_pool_filter=_in_pool(pool), limit=1) and _has_been_made(client, pool):
        client.delete_work_pool(pool)
        removed.append(f"work pool {pool}")
    return removed


def _find(client: SyncPrefectClient, flow: str, name: str | None = None, pool: str | None = None) -> list[DeploymentResponse]:
    return client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])) if name else None,
        work_pool_filter=_in_pool(pool) if pool else None,
    )


def _in_pool(name: str) -> WorkPoolFilter:
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[name]))


def _refuse_name_of_others(client: SyncPrefectClient, name: str, pool: str) -> None:
    for flow in FLOWS:
        for taken in _find(client, flow, name):
            if taken.work_pool_name != pool:
                other = taken.work_pool_name
                place = _describe_pool(client, other).removeprefix(OF_PROJECT) if other else ""
                remedy = f", or, if it is this project under another path, take over its pool with --pool {other}" if other else ""
                raise SettingsError(
                    f"name: expected one that no other project has on this server, found {flow}/{name}"
                    f" of {place or 'somebody'} in {f'work pool {other}' if other else 'no work pool'}; set another name{remedy}"
                )


def _make_pool(client: SyncPrefectClient, name: str) -> WorkPool:
    """The pool of that name, whatever its type, or a new one for processes."""
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        description = f"{OF_PROJECT}{Path.cwd()} on {socket.gethostname()}"
        template = ProcessWorker.get_default_base_job_template()  # otherwise the first worker would bring it
        pool = WorkPoolCreate(name=name, type="process", description=description, base_job_template=template)
        try:
            return client.create_work_pool(pool)
        except ObjectAlreadyExists:  # a worker that was started a moment ago has made it meanwhile
            return client.read_work_pool(name)


def _describe_pool(client: SyncPrefectClient, name: str) -> str:
    """The pool's own description; empty if the pool is gone."""
    try:
        return client.read_work_pool(name).description or ""
    except ObjectNotFound:
        return ""


def _has_been_made(client: SyncPrefectClient, pool: str) -> bool:
    return _describe_pool(client, pool).startswith(OF_PROJECT)


def _register(client: SyncPrefectClient, flow: str, fields: Mapping[str, Any], settings: Mapping[str, Any]) -> UUID:
    """Create a deployment, or replace the one of its name, whose planned runs are dropped and planned anew."""
    module, _, name = fields["entrypoint"].partition(":")
    form = getattr(importlib.import_module(module), name).parameters.model_dump(exclude_unset=True)
    try:
        identity = client.create_flow_from_name(flow)
        return client.create_deployment(identity, **fields, parameter_openapi_schema=fill_in_values(form, settings))
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 422:
            raise
        found = error.response.json().get("detail")
        raise SettingsError(
            f"{flow}/{fields['name']}: expected fields that the server accepts, found: {found}; correct them"
        ) from error


def _await_schedule(client: SyncPrefectClient, flow: str, name: str, is_planned: bool) -> Deployed:
    """Return the deployment once its next run is planned, or at once if it has no schedule."""
    give_up_at = time.monotonic() + SECONDS_TO_SCHEDULE
    while True:
        (deployed,) = read_deployed(client, flow, name)
        if deployed.next_run_at or not is_planned or deployed.schedule == PAUSED:
            return deployed
        if time.monotonic() > give_up_at:
            raise ServerError(
                f"{deployed.name}: expected the server to plan a run within {SECONDS_TO_SCHEDULE} seconds, found none;"
                " look in its log whether its scheduler works"
            )
        time.sleep(0.2)
