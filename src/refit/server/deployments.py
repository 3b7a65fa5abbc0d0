"""Deployments of the flows, as `prefect.yaml` beside this file says: for each model one of each flow, in its project's pool."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
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
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule
from prefect.settings import get_current_settings
from prefect.states import Cancelled
from pydantic import ValidationError

from refit.errors import SettingsError
from refit.server.api import (
    PAUSED,
    SECONDS_TO_DEPLOY,
    Deployed,
    ServerError,
    connected,
    find_runs,
    forgets_soon,
    in_states,
    name_planned_runs,
    read_deployed,
)
from refit.server.automations import FLOWS, TAG, announce, remove_automations, remove_automations_of, update_automations
from refit.server.forms import show_effective_values
from refit.settings import resolve_settings

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
SECONDS_TO_SCHEDULE = 120
"""The server's scheduler looks for new deployments every few seconds; on a busy machine, 30 were not enough."""
NUM_DATES = 60
UNFINISHED = StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING
OF_PROJECT = "Runs of the Refit project in "
"""Begins the description of a pool that `deploy` has made."""


@dataclass(frozen=True)
class Registered:
    """What the server has of a project."""

    deployments: list[Deployed]
    automations: list[str]
    others: list[str]
    """Deployments that retrain other models of the same project."""
    forgets_soon: bool
    """As `refit.server.api.forgets_soon` says."""


@dataclass(frozen=True)
class Removed:
    """What a project no longer has on the server."""

    removed: list[str]
    """Deployments, automations and the work pool."""
    going_on: list[str]
    """Runs at work, which go on to their end, and are not started again if they crash."""
    num_dropped: int
    """Runs that were planned, or waited for a worker."""


def deploy(
    settings: Mapping[str, Any], pool: str, cron: str | None = None, timezone: str | None = None, block: str | None = None
) -> Registered:
    """Make the work pool if it is missing, register the deployments, and have the server look after their runs.

    What an earlier call said of the same model is replaced; nothing is made twice.

    Args:
        settings: What runs are given, besides the model's name, which is also that of the deployments; the rest is left to the
            machine that runs them.
        pool: Of the project.
        cron: When to retrain, if not when the file says.
        timezone: Of the schedule, as in `Europe/Berlin`, if not the file's.
        block: `TYPE/NAME` of the Prefect block that is told of failed retraining.

    Raises:
        SettingsError: No server is set, nothing names the rows to learn from, the schedule is none, there is no such block, or
            another project has deployments of that name.
        ServerError: The server does not answer, refuses, or makes no run of a schedule.
    """
    resolved, origins = resolve_settings(settings)
    name = resolved.name
    if origins["data.source"] == "default":
        raise SettingsError(
            "data.source: expected the rows to learn from, found none; add --data.source, or set it in refit.toml"
            " (`notebook` deploys the toy table)"
        )
    document = _read_prefect_file({**settings, "name": name}, pool, cron, timezone)
    with connected(SECONDS_TO_DEPLOY) as client:
        _refuse_name_of_others(client, name, pool)
        _make_pool(client, pool)
        automations = update_automations(client, name, _find_period(document), block)
        _run_prefect_deploy(document)
        found = {flow: client.read_deployment_by_name(f"{flow}/{name}") for flow in FLOWS}
        for deployment in found.values():  # first, as the server plans the runs of a deployment that is changed anew
            show_effective_values(client, deployment, settings)
        announce(name, found["retrain"].id)
        deployed = [_await_schedule(client, entry) for entry in document["deployments"]]
        for flow, deployment in found.items():
            name_planned_runs(client, deployment.id, flow, name)
        others = [f"retrain/{other.name}" for other in _find(client, "retrain", pool=pool) if other.name != name]
        return Registered(deployed, automations, others, forgets_soon(client))


def remove(pool: str, name: str | None = None) -> Removed:
    """Remove a project's deployments, with their schedules and planned runs, and what the server did for them alone.

    Args:
        pool: Of the project.
        name: Of the model; None removes those of all its models.

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
                if run.state_type != StateType.SCHEDULED:
                    going_on.append(run.name)
                    continue
                num_dropped += 1
                if run.run_count:  # else the server deletes it with its deployment
                    client.set_flow_run_state(run.id, Cancelled(message="Its deployment was removed."), force=True)
            client.delete_deployment(entry.id)
            removed.append(f"{flow}/{entry.name}")
        for model in {entry.name for _, entry in found}:
            removed += remove_automations_of(client, model)
        if not client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])), limit=1):
            removed += remove_automations(client)
        if not client.read_deployments(work_pool_filter=_in_pool(pool), limit=1) and _has_been_made(client, pool):
            client.delete_work_pool(pool)
            removed.append(f"work pool {pool}")
        return Removed(removed, going_on, num_dropped)


def _read_prefect_file(settings: Mapping[str, Any], pool: str, cron: str | None, timezone: str | None) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(PREFECT_FILE.read_text())
    changed = {"cron": cron, "timezone": timezone}
    for entry in document["deployments"]:
        entry["parameters"] = {"settings": settings}
        if entry["name"] == "predict":
            entry["parameters"]["model"] = settings["name"]
        entry["name"] = settings["name"]
        entry["work_pool"]["name"] = pool
        for schedule in entry.get("schedules", []):
            schedule.update({name: value for name, value in changed.items() if value is not None})
            try:
                CronSchedule(**schedule)
            except ValidationError as error:
                mistake = error.errors()[0]
                raise SettingsError(
                    f"--{mistake['loc'][0]}: expected a cron line such as '0 3 * * *' and a time zone such as Europe/Berlin,"
                    f" found {mistake['input']!r}"
                ) from error
    return document


def _find_period(document: Mapping[str, Any]) -> timedelta:
    """The longest time between two planned runs, as far as the next sixty tell."""
    (plan,) = [schedule for entry in document["deployments"] for schedule in entry.get("schedules", [])]
    dates = asyncio.run(ServerCronSchedule(**plan).get_dates(NUM_DATES))
    seconds = [(following - date).total_seconds() for date, following in pairwise(dates)]
    return timedelta(seconds=max(seconds, default=86400))


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
                other = taken.work_pool_name or ""
                place = _describe_pool(client, other).removeprefix(OF_PROJECT)
                raise SettingsError(
                    f"name: expected one that no other project has on this server, found {flow}/{name}"
                    f" of {place or 'somebody'} in work pool {other or 'none'};"
                    f" set another name, or, if it is this project under another path, take over its pool by --pool {other}"
                )


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        description = f"{OF_PROJECT}{Path.cwd()} on {socket.gethostname()}"
        client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))


def _describe_pool(client: SyncPrefectClient, name: str) -> str:
    """As whoever made it did; nothing, if it is gone."""
    try:
        return client.read_work_pool(name).description or ""
    except ObjectNotFound:
        return ""


def _has_been_made(client: SyncPrefectClient, pool: str) -> bool:
    return _describe_pool(client, pool).startswith(OF_PROJECT)


def _run_prefect_deploy(document: Mapping[str, Any]) -> None:
    """In a folder of its own, as Prefect imports the flows with the folder that it works in ahead of all packages."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "prefect.yaml").write_text(json.dumps(document))  # JSON is YAML
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
        environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
        finished = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        lines = finished.stdout.splitlines()
        raise ServerError(f"prefect deploy: expected to succeed, found exit code {finished.returncode}:", *lines)


def _await_schedule(client: SyncPrefectClient, entry: Mapping[str, Any]) -> Deployed:
    """The deployment once its next run is planned; one without a schedule at once."""
    give_up_at = time.monotonic() + SECONDS_TO_SCHEDULE
    while True:
        (deployed,) = read_deployed(client, entry["entrypoint"].partition(":")[2], entry["name"])
        if deployed.next_run_at or not entry.get("schedules") or deployed.schedule == PAUSED:
            return deployed
        if time.monotonic() > give_up_at:
            raise ServerError(
                f"{deployed.name}: expected the server to plan a run within {SECONDS_TO_SCHEDULE} seconds, found none;"
                " see in its log whether its scheduler works"
            )
        time.sleep(0.2)
