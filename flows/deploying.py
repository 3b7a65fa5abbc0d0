"""Deployments of the flows, as `prefect.yaml` beside this file says."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import ValidationError

from flows.automations import update_automations
from flows.server import PAUSED, SECONDS_TO_ANSWER, Deployed, ServerError, connected, forgets_soon, read_deployed
from refit.errors import SettingsError

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
SECONDS_TO_SCHEDULE = 30
"""The server's scheduler looks for new deployments every few seconds."""


def deploy(
    settings: Mapping[str, Any], cron: str | None = None, timezone: str | None = None, block: str | None = None
) -> tuple[list[Deployed], list[str], bool]:
    """Make the work pool if it is missing, register the deployments, and have the server look after their runs.

    What an earlier call said is replaced; nothing is made twice.

    Args:
        settings: What runs are given; the rest is left to the machine that runs them. A `name` is that of the deployments too,
            so that a server may retrain several models, and of the model that scores.
        cron: When to retrain, if not when the file says.
        timezone: Of the schedule, as in `Europe/Berlin`, if not the file's.
        block: `TYPE/NAME` of the Prefect block that is told of failed retraining.

    Returns:
        The deployments as the server has them, the names of the automations, and whether the server forgets soon.

    Raises:
        SettingsError: No server is set, the schedule is none, or there is no such block.
        ServerError: The server does not answer, refuses, or makes no run of a schedule.
    """
    document = _read_prefect_file(settings, cron, timezone)
    with connected(SECONDS_TO_ANSWER) as client:
        for pool in {entry["work_pool"]["name"] for entry in document["deployments"]}:
            _make_pool(client, pool)
        automations = update_automations(client, block)
        _run_prefect_deploy(document)
        deployed = [_await_schedule(client, entry) for entry in document["deployments"]]
        return deployed, automations, forgets_soon(client)


def _read_prefect_file(settings: Mapping[str, Any], cron: str | None, timezone: str | None) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(PREFECT_FILE.read_text())
    changed = {"cron": cron, "timezone": timezone}
    for entry in document["deployments"]:
        entry["parameters"] = {"settings": settings} if settings else {}
        if model := settings.get("name"):
            if entry["name"] == "predict":
                entry["parameters"]["model"] = model
            entry["name"] = model
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


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


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
