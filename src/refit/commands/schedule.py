"""Commands for scheduled retraining: start a server, deploy, and see the status."""

import json as jsonlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from refit.commands.terminal import (
    COMPLETED,
    FAILED,
    AsJson,
    Given,
    SettingsFile,
    StoreGiven,
    Switch,
    app,
    as_given,
    cell,
    open_console,
    open_store,
)
from refit.errors import RefitError, SettingsError
from refit.registry.status import Status, list_damaged, read_status
from refit.registry.versions import find_version, list_models
from refit.server.own_server import SQLITE_SERVER, find_prefect_home
from refit.texts import escape_controls

if TYPE_CHECKING:
    from refit.server.api import Deployed
    from refit.server.deployments import Registered, Removed

SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}
LATE = timedelta(minutes=5)
"""A planned run that no worker has taken after this time is late."""
OF_SERVER = {"PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P1D", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
"""Make a server remember watched runs for a day while it is down; Prefect's own default is a minute."""
VERBS = {"promote": "promoted", "keep": "turned down", "rollback": "went back to"}


@app.command(name="server")
def start_server(*, host: str | None = None, port: int | None = None) -> None:
    """Start a Prefect server that copes with several runs writing to SQLite and remembers watched runs for a day while it is down.

    Args:
        host: Its address; PREFECT_SERVER_API_HOST or 127.0.0.1, if not given.
        port: Its port; PREFECT_SERVER_API_PORT or 4200, if not given.
    """
    find_prefect_home()
    given = {"--host": host, "--port": port}
    flags = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    command = [sys.executable, "-P", SQLITE_SERVER, "start", *flags]
    os.execve(sys.executable, command, {**OF_SERVER, **os.environ})


@app.command
def deploy(
    *,
    given: Given = None,
    cron: str | None = None,
    timezone: str | None = None,
    notify: str | None = None,
    pool: str | None = None,
    queue: str | None = None,
    job_variables: Annotated[str | None, Parameter(name="--job-variables")] = None,
    tag: tuple[str, ...] = (),
    concurrency_limit: Annotated[int | None, Parameter(name="--concurrency-limit")] = None,
    predict_source: Annotated[str | None, Parameter(name="--predict-source")] = None,
    predict_output: Annotated[str | None, Parameter(name="--predict-output")] = None,
    predict_cron: Annotated[str | None, Parameter(name="--predict-cron")] = None,
    systemd: Switch = False,
    remove: Switch = False,
    json: AsJson = False,
) -> int:
    """Register the deployments that retrain every night. Running it again replaces them.

    Args:
        given: The settings of all runs. Settings that are not given are left to the machine that runs them, except for the model's
            name, which is also the name of the deployments.
        cron: When to retrain; `0 3 * * *`, if not given.
        timezone: The time zone of all schedules, such as `Europe/Berlin`; UTC, if not given.
        notify: `TYPE/NAME` of the Prefect block that reports failed retraining, such as `slack-webhook/team`.
        pool: The work pool, of any type, whose workers take the runs; one for this folder on this machine, if not given.
        queue: The queue of the work pool; its default queue, if not given.
        job_variables: A JSON object of job variables, such as `{"image": "registry/refit:1"}`; its `env` is added to Refit's own.
        tag: A tag of the deployments and their runs, besides `refit`; it may be given several times.
        concurrency_limit: How many runs of one deployment may run at a time; the others wait.
        predict_source: The rows to score, if a run of `predict` names none.
        predict_output: The Parquet file to write the scores to, if a run of `predict` names none.
        predict_cron: When to score; only on demand, if not given.
        systemd: Also write systemd units that start the worker with the machine, and the server too if it runs on this machine.
        remove: Remove the deployments of the model given by `--name`, or of all models of this folder.
        json: Print one JSON object instead of text.
    """
    find_prefect_home()  # Prefect needs it on import
    from refit.server import deployments, plans, project
    from refit.server.systemd import write_units

    pool = pool or project.name_pool(Path.cwd())
    if remove:
        return _print_removed(deployments.remove(pool, as_given(given).get("name")), json)
    scoring = {"source": predict_source, "output": predict_output}
    plan = plans.Plan(
        pool=pool,
        cron=cron,
        timezone=timezone,
        predict_cron=predict_cron,
        predict_parameters={name: value for name, value in scoring.items() if value is not None},
        queue=queue,
        job_variables=_read_variables(job_variables),
        tags=tag,
        concurrency_limit=concurrency_limit,
        block=notify,
    )
    registered = deployments.deploy(as_given(given), plan)
    written = write_units(Path.cwd(), pool) if systemd else []
    if json:
        worker = project.START_WORKER.format(pool=pool)
        shown = {**asdict(registered), "pool": pool, "worker": worker, "units": list(map(str, written))}
        print(jsonlib.dumps(shown, default=datetime.isoformat))
        return COMPLETED
    _print_registered(registered, pool, written)
    return COMPLETED


def _print_registered(registered: "Registered", pool: str, written: Sequence[Path]) -> None:
    deployed = registered.deployments
    _print_block("deployed", {entry.name: _describe_plan(entry) for entry in deployed})
    _print_block("the server will", {name.removeprefix("refit: "): "" for name in registered.automations})
    if registered.others:
        remedies = {name: f"`refit deploy --remove --name {name.partition('/')[2]}`" for name in registered.others}
        _print_block("also deployed from here; remove with", remedies)
    if written:
        _print_block("units for systemd", dict.fromkeys(map(str, written), ""))
        names = " ".join(path.name for path in written)
        enable = f"systemctl --user daemon-reload && systemctl --user enable --now {names} && loginctl enable-linger"
        _print_block("stop the server and the worker that run now, then enable the units with", {enable: ""})
    elif not all(entry.num_workers for entry in deployed):
        _print_missing_worker(pool)
    if registered.forgets_soon:
        _print_block("the server forgets runs that a power cut ends", {"start it with": "refit server"})


def _read_variables(text: str | None) -> dict[str, Any]:
    """Job variables, as `--job-variables` gives them."""
    try:
        variables = jsonlib.loads(text or "{}")
    except ValueError:
        variables = None
    if not isinstance(variables, dict) or not isinstance(variables.get("env", {}), dict):
        raise SettingsError(
            f'--job-variables: expected a JSON object such as {{"image": "registry/refit:1"}}, found {text!r}; correct it'
        )
    return variables


def _print_missing_worker(pool: str) -> None:
    from refit.server import project

    worker = project.START_WORKER.format(pool=pool)
    _print_block(f"no worker of the pool {pool} is online", {"start one in the project's folder": worker})


def _print_removed(found: "Removed", json: bool) -> int:
    if json:
        print(jsonlib.dumps(asdict(found)))
        return COMPLETED
    _print_block("removed", dict.fromkeys(found.removed or ["nothing: nothing was deployed from here"], ""))
    if found.going_on or found.num_dropped:
        going_on = ", ".join(found.going_on) or "none"
        _print_block("runs", {"continue to their end": going_on, "dropped": f"{found.num_dropped} that were planned or waited"})
    return COMPLETED


@app.command(name="automations")
def look_after(model: str | None = None, /, *, notify: str | None = None, json: AsJson = False) -> int:
    """Have the Prefect server look after the runs of deployments that `refit deploy` has not made, by their tag `refit`.

    Args:
        model: The deployment of `retrain` whose trouble is to be told.
        notify: `TYPE/NAME` of the Prefect block that is told of it; nobody is any more, if it is not given.
        json: Print one JSON object instead of text.
    """
    find_prefect_home()  # which Prefect looks for on import
    from refit.server.deployments import look_after_others

    if notify is not None and model is None:
        raise SettingsError("--notify: expected a model whose trouble is to be told, found none; name it: refit automations MODEL")
    automations, deployed = look_after_others(model, notify)
    if json:
        print(jsonlib.dumps({"automations": automations, "deployments": deployed}))
        return COMPLETED
    _print_block("the server will", {name.removeprefix("refit: "): "" for name in automations})
    _print_block("for the runs of", dict.fromkeys(deployed or ["no deployment yet: none has the tag `refit`"], ""))
    return COMPLETED


@app.command
def status(
    model: str | None = None, /, *, given: StoreGiven = None, settings_file: SettingsFile = None, json: AsJson = False
) -> int:
    """Show the status of models: champion, last decision, damage and, if a Prefect server is set, the last and next retraining.

    The exit code is 1 if something is damaged, the server does not answer, the last run failed, or the next one is late.

    Args:
        model: Its name; all models of the store, if not given.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
        json: Print one JSON object instead of text.
    """
    store = open_store(given, settings_file)
    damaged, retraining = list_damaged(store), _read_retraining(model)
    if model is not None and (isinstance(retraining, RefitError) or not retraining):
        find_version(store, model)  # its error lists the models there are; a deployed model has no version before its first night
    models = [read_status(store, name) for name in ([model] if model is not None else list_models(store))]
    if json:
        shown = {
            "models": [entry.model_dump(mode="json") for entry in models],
            "damaged": damaged,
            "retraining": str(retraining) if isinstance(retraining, RefitError) else [asdict(entry) for entry in retraining],
        }
        print(jsonlib.dumps(shown, default=datetime.isoformat))
    else:
        for entry in models:
            _print_block(entry.name, _describe_model(entry))
        if not models:
            print(f"no models in {store.url}")
        if isinstance(retraining, RefitError) or not retraining:
            _print_block("retraining", {"not known": str(retraining)} if retraining else {"not deployed": "run `refit deploy`"})
        else:
            for planned in retraining:
                _print_block(planned.name, _describe_runs(planned))
            for pool in dict.fromkeys(planned.pool for planned in retraining if planned.pool and not planned.num_workers):
                _print_missing_worker(pool)
        if damaged:
            _print_block("set aside, as damaged", dict.fromkeys(damaged, ""))
    is_ill = _is_ill(retraining) or bool(damaged) or any(entry.damaged for entry in models)
    return FAILED if is_ill else COMPLETED


def _read_retraining(model: str | None) -> "list[Deployed] | RefitError":
    """Read the deployments that retrain, all or those of `model`, from the server; return the error if that fails."""
    try:
        find_prefect_home()  # Prefect needs it on import
        from refit.server.api import connected, read_deployed

        with connected() as client:
            return read_deployed(client, "retrain", model)
    except RefitError as error:
        return error


def _is_ill(retraining: "list[Deployed] | RefitError") -> bool:
    """Whether the server does not answer, or a run failed or is late. A missing server is no fault."""
    if isinstance(retraining, RefitError):
        return not isinstance(retraining, SettingsError)
    late = datetime.now(UTC) - LATE
    return any(
        (entry.last_run and entry.last_run.has_failed) or (entry.next_run_at and entry.next_run_at < late) for entry in retraining
    )


def _describe_model(status: Status) -> dict[str, str]:
    lines = {"champion": "unknown" if status.damaged else "none"}
    if status.champion is not None:
        ages = {"trained": status.trained_at, "promoted": status.promoted_at}
        known = [f"{verb} {_describe_age(at)} ago" for verb, at in ages.items() if at is not None]
        lines["champion"] = ", ".join([f"v{status.champion} of {max([status.champion, *status.versions])}", *known])
    if (decision := status.decision) is not None:
        reason = escape_controls(decision.why).removeprefix("not ").removeprefix("promoted: ")
        verb = "kept" if decision.action == "keep" and decision.after == decision.before else VERBS[decision.action]
        lines["last decision"] = f"{verb} v{decision.after} {_describe_age(decision.at)} ago: {reason}"
    return lines | ({"damaged": "\n".join(status.damaged)} if status.damaged else {})


def _describe_runs(deployed: "Deployed") -> dict[str, str]:
    lines = {"schedule": deployed.schedule or "none"}
    if (last := deployed.last_run) is not None:
        again = ", to be started again" if last.starts_again else ""
        message = f": {last.message}" if last.message else ""
        lines["last run"] = f"{last.name}, {last.state} {_describe_age(last.at)} ago{again}{message}"
    return {**lines, "next run": _describe_next(deployed), "workers": f"{deployed.num_workers} online"}


def _describe_plan(deployed: "Deployed") -> str:
    return f"{deployed.schedule}, next run {_describe_next(deployed)}" if deployed.schedule else "by hand"


def _describe_next(deployed: "Deployed") -> str:
    at = deployed.next_run_at
    if at is None:
        return "none planned"
    distance = f"in {_describe_age(at)}" if at > datetime.now(UTC) else f"{_describe_age(at)} late"
    return f"{at.astimezone():%Y-%m-%d %H:%M %Z}, {distance}"


def _describe_age(at: datetime | str) -> str:
    """Say how long ago or ahead a time is, in the largest unit of which there is at least one."""
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    seconds = abs((datetime.now(UTC) - moment).total_seconds())
    unit, length = next(((unit, length) for unit, length in SECONDS.items() if seconds >= length), ("second", 1))
    count = int(seconds // length)
    return f"{count} {unit}{'' if count == 1 else 's'}"


def _print_block(title: str, lines: Mapping[str, str]) -> None:
    """Print a title, and under it names with their texts beside them."""
    table = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        style = "red" if name == "damaged" else ""
        shown = cell(text)
        shown.stylize(style)
        table.add_row(cell(f"  {name}"), shown)
    console = open_console()
    console.print(cell(title), style="bold", highlight=False)
    console.print(table)
    console.print()
