"""What is registered for a model: `prefect.yaml` beside this file, changed by the flags of `refit deploy`."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.schedules import SCHEDULE_TYPES, CronSchedule
from pydantic import ValidationError

import refit
from refit.code import digest_code, digest_user_code
from refit.errors import SettingsError
from refit.settings import Settings, check_url
from refit.undocumented import plan_runs

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
NUM_DATES = 60
A_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Plan:
    """When and where the runs of a model take place, and who is told of them; None leaves it to the file."""

    pool: str
    """The work pool of the project."""
    cron: str | None = None
    """When to retrain."""
    timezone: str | None = None
    """Of the schedules, such as `Europe/Berlin`."""
    predict_cron: str | None = None
    """When to score; None plans no scoring."""
    predict_parameters: Mapping[str, str] = field(default_factory=dict)
    """`source` and `output` of scoring, if a run does not name others."""
    queue: str | None = None
    """The queue of the pool."""
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the pool, such as an image; `env` is added to ours."""
    tags: Sequence[str] = ()
    """Tags besides `refit`."""
    concurrency_limit: int | None = None
    """How many runs of a deployment may be at work at a time; others wait."""
    block: str | None = None
    """`TYPE/NAME` of the Prefect block that is told of failed retraining."""


def read_plan(settings: Mapping[str, Any], plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the deployments of `prefect.yaml` by flow, changed as planned, as fields for Prefect's client.

    Args:
        settings: The settings that are fixed for the runs, including the model's name.
        plan: When and where they run.

    Raises:
        SettingsError: A schedule is invalid, scoring is planned without source or output, or the limit is less than 1.
    """
    if plan.concurrency_limit is not None and not 1 <= plan.concurrency_limit < 2**31:
        raise SettingsError(
            f"--concurrency-limit: expected 1 to {2**31 - 1}, found {plan.concurrency_limit}; leave it out for no limit"
        )
    if not all(map(str.strip, plan.tags)):
        raise SettingsError("--tag: expected a text, found an empty one, as from a variable that is not set; name one")
    _check_scoring(plan)
    document = yaml.safe_load(PREFECT_FILE.read_text())
    of_flows: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in document["deployments"]}
    of_flows["predict"]["schedules"] = [{"timezone": "UTC"}] if plan.predict_cron else []
    crons = {"retrain": ("--cron", plan.cron), "predict": ("--predict-cron", plan.predict_cron)}
    more = {"predict": {"model": settings["name"], **plan.predict_parameters}}
    return {
        flow: {
            "name": settings["name"],
            "description": entry["description"],
            "entrypoint": entry["entrypoint"],
            "pull_steps": document["pull"],
            "parameters": {"settings": settings, **more.get(flow, {})},
            "enforce_parameter_schema": True,
            "schedules": [_make_schedule(line, *crons[flow], plan.timezone) for line in entry.get("schedules", [])],
            "tags": [*dict.fromkeys([*entry["tags"], *plan.tags])],
            "concurrency_limit": plan.concurrency_limit,
            "work_pool_name": plan.pool,
            "work_queue_name": plan.queue,
            "job_variables": _merge_variables(entry["work_pool"]["job_variables"], plan.job_variables),
        }
        for flow, entry in of_flows.items()
    }


def _check_scoring(plan: Plan) -> None:
    """Refuse to plan scoring without source or output, and URLs with secrets."""
    for name in ("source", "output"):
        if name in plan.predict_parameters:
            check_url(plan.predict_parameters[name], f"--predict-{name}")
        elif plan.predict_cron:
            raise SettingsError(f"--predict-{name}: expected a path or URL, as --predict-cron is given, found none; add it")


def _make_schedule(line: Mapping[str, str], option: str, cron: str | None, timezone: str | None) -> DeploymentScheduleCreate:
    given = {name: value for name, value in {"cron": cron, "timezone": timezone}.items() if value is not None}
    try:
        schedule = CronSchedule(**{**line, **given})
        if not schedule.timezone:
            raise SettingsError("--timezone: expected one such as Europe/Berlin, found an empty text; name one")
        _check_dates(schedule, option)
        return DeploymentScheduleCreate(schedule=schedule)
    except ValidationError as error:
        mistake = error.errors()[0]
        raise SettingsError(
            f"{option if mistake['loc'] == ('cron',) else '--timezone'}: expected a cron line such as '0 3 * * *' and a time zone"
            f" such as Europe/Berlin, found {mistake['input']!r}"
        ) from error


def _check_dates(schedule: CronSchedule, option: str) -> None:
    """Refuse a cron line such as that of 30 February, for which the server would look in vain."""
    try:
        dates = plan_runs(schedule, 1)
    except ValueError:
        dates = []
    if not dates:
        raise SettingsError(f"{option}: expected a cron line of dates that come, found {schedule.cron!r}; correct it")


def _merge_variables(ours: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {**ours, **given, "env": {**ours["env"], **given.get("env", {})}}


def find_period(schedules: Iterable[SCHEDULE_TYPES]) -> timedelta:
    """Return the longest time between two of the next sixty runs, the least of several schedules; a day without a schedule."""
    longest = []
    for schedule in schedules:
        dates = plan_runs(schedule, NUM_DATES)
        longest.append(max((following - date for date, following in pairwise(dates)), default=A_DAY))
    return min(longest, default=A_DAY)


def check_variables(given: Mapping[str, Any], pool: WorkPool) -> None:
    """Raise SettingsError for job variables that the pool does not know: the server accepts them, but no run reads them."""
    known = pool.base_job_template.get("variables", {}).get("properties", {})
    unknown = [name for name in given if name not in known]
    if known and unknown:
        raise SettingsError(
            f"--job-variables: expected those of work pool {pool.name}, which is of type {pool.type}, found {', '.join(unknown)};"
            f" it knows {', '.join(known)}"
        )


def describe_version(settings: Settings) -> str:
    """Return Refit's version with a digest of all code, including the model's own, and one of the settings on this machine."""
    package = Path(refit.__file__).parent
    modules = [Path(folder, file) for folder, _, files in os.walk(package, followlinks=True) for file in files]
    code = digest_code(
        ".".join(["refit", *path.relative_to(package).with_suffix("").parts]) for path in modules if path.suffix == ".py"
    )
    with contextlib.suppress(SettingsError):  # the factory need not be on this machine
        code |= digest_user_code(settings.model.factory) | digest_user_code(settings.training.loss, "training.loss")
    digests = (
        hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for part in (code, settings.model_dump(mode="json"))
    )
    return "{}+{:.8}.{:.8}".format(version("refit"), *digests)
