"""The `refit` command. Each command imports its heavy modules itself, so that the others answer at once."""

import io
import json as jsonlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import pydantic
from cyclopts import CoercionError, CycloptsError, Parameter, UnknownOptionError, UnusedCliTokensError
from rich.table import Table

import refit.commands.looking
import refit.commands.schedule  # its commands
import refit.commands.versions  # noqa: F401  # its commands
from refit.commands.terminal import (
    ALARMED,
    COMPLETED,
    FAILED,
    AsJson,
    DryRun,
    Given,
    SettingsFile,
    StoreGiven,
    Switch,
    Trust,
    app,
    as_given,
    cell,
    complain,
    open_console,
    open_store,
    say,
)
from refit.errors import RefitError, SettingsError, StoreError
from refit.refs import RetrainingResult
from refit.registry.versions import load_part, read_record
from refit.settings import (
    DataSettings,
    Settings,
    SettingsTree,
    check_url,
    env_name,
    explain_validation,
    resolve_settings,
    walk_settings,
)
from refit.store.store import Store
from refit.training.metrics import ClassificationMetrics, read_metrics

MAX_LOSSES_SHOWN = 8


def main() -> None:
    """Run the command line and exit: 0 done, 1 the run failed, 2 bad settings or data, 3 done, but look at the champion."""
    _speak_utf8()
    _open_streams()
    try:
        code = app(_join_values(sys.argv[1:]), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        sys.exit(code)
    except CycloptsError as error:
        sys.exit(complain(SettingsError(*_explain_arguments(error))))
    except RefitError as error:
        sys.exit(complain(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


@app.command
def train(
    *,
    given: Given = None,
    settings_file: SettingsFile = None,
    json: AsJson = False,
    refresh: Switch = False,
    dry_run: DryRun = False,
) -> int:
    """Train a model and save it as the next version of its name. Steps that are done already are not repeated.

    Args:
        given: The settings.
        settings_file: A TOML file to read instead of `refit.toml`.
        json: Print one JSON object instead of tables.
        refresh: Repeat every step, even those that are done already.
        dry_run: Only print which steps would run, and why, and what is made of the table.
    """
    settings, _ = resolve_settings(as_given(given), settings_file)
    _check_data(settings)
    if dry_run:
        from refit.commands.looking import look_ahead, show_table

        if json:
            print(jsonlib.dumps({"steps": _forecast(settings), "table": look_ahead(settings)}))
            return COMPLETED
        _print_forecast(_forecast(settings))
        show_table(settings)
        return COMPLETED
    from refit.commands import local_run

    tree = SettingsTree(**settings.model_dump())
    result = local_run.run_locally("refit.flows.training:train", tree, refresh)
    if isinstance(result, BaseException):
        return complain(result)
    store = Store(settings.store.url)
    name, number = result.model.name, result.model.version
    log, metrics, manifest = (load_part(store, name, number, part) for part in ("log", "metrics", "manifest"))
    record = read_record(store, name, number)
    lead, neighbours = record["lead"], record.get("neighbours")
    if json:
        fields = {
            **result.model.model_dump(),
            "data": _tell_data(manifest),
            "is_new": result.is_new,
            "best_epoch": result.best_epoch,
            "epochs": log,
            "metrics": metrics,
            "lead": lead,
            "neighbours": neighbours,
        }
        print(jsonlib.dumps({**fields, "seconds": result.seconds}))
    else:
        _print_result(log, metrics, neighbours)
        for remark in (lead and lead["warning"], neighbours and neighbours["better"]):
            if remark:
                say(f"warning: {remark}")
        say(f"{'saved' if result.is_new else 'nothing has changed since'} {result.model.reference} in {result.model.path}")
    return COMPLETED


@app.command
def predict(
    model: str,
    source: str,
    /,
    *,
    output: str,
    keep: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    strict: Switch = False,
    given: StoreGiven = None,
    settings_file: SettingsFile = None,
    trust: Trust = False,
    json: AsJson = False,
) -> int:
    """Score rows with a saved model into a Parquet file: the class and a probability of each, or a number, and the model version.

    Args:
        model: `NAME` for the champion, `NAME@v3` for a version, or another alias such as `NAME@candidate`.
        source: A CSV or Parquet file, or a folder or glob of them.
        output: The Parquet file. An existing file is replaced once all rows are scored.
        keep: Columns of the source to copy into the output.
        strict: If the rows deviate from the train rows, fail and write nothing.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
        trust: Call the factory that the version names, even if `model.factory` here names another or none.
        json: Print one JSON object.
    """
    check_url(source, "SOURCE")
    check_url(output, "--output")
    settings, _ = resolve_settings(as_given(given, trust), settings_file)
    is_table = settings.data.predict_factory is None and settings.data.factory is None
    if is_table:
        _check_header(source)
    from refit.commands import local_run

    arguments = (model, source, output, keep, SettingsTree(**settings.model_dump()), strict)
    result = local_run.run_locally(
        "refit.flows.prediction:predict",
        *arguments,
        when_stopped="nothing was written, start again with",
        check=(lambda: _check_files(source, output)) if is_table else (lambda: None),
    )
    if isinstance(result, BaseException):
        return complain(result)
    told = f"scored {result.num_rows} rows with {result.model}: {result.output}"
    if json:
        print(result.model_dump_json())
    else:
        say(told)
    return COMPLETED


@app.command
def retrain(*, given: Given = None, settings_file: SettingsFile = None, trust: Trust = False, json: AsJson = False) -> int:
    """Train a candidate on today's data and promote it if it is better. If nothing has changed, do nothing.

    Args:
        given: The settings.
        settings_file: A TOML file to read instead of `refit.toml`.
        trust: Call the factory that the champion names, even if `model.factory` here names another or none.
        json: Print one JSON object instead of a table.
    """
    settings, _ = resolve_settings(as_given(given, trust), settings_file)
    _check_data(settings)
    from refit.commands import local_run
    from refit.flows.approval import check_server

    check_server(settings.promotion)
    tree = SettingsTree(**settings.model_dump())
    result = local_run.run_locally("refit.flows.retraining:retrain", tree)
    if isinstance(result, BaseException):
        return complain(result)
    if json:
        print(result.model_dump_json())
    else:
        _print_decision(result)
    return ALARMED if result.alarm else COMPLETED


@app.command
def why(*, given: Given = None, settings_file: SettingsFile = None, json: AsJson = False) -> int:
    """Show which steps of a run are done already, and why the others would run: what changed since the most similar earlier run.

    Args:
        given: The settings.
        settings_file: A TOML file to read instead of `refit.toml`.
        json: Print one JSON object instead of a table.
    """
    settings, _ = resolve_settings(as_given(given), settings_file)
    _check_data(settings)
    if json:
        print(jsonlib.dumps({"steps": _forecast(settings)}))
    else:
        _print_forecast(_forecast(settings))
    return COMPLETED


@app.command
def settings(*, given: Given = None, settings_file: SettingsFile = None, json: AsJson = False) -> int:
    """Print every setting, its value, and where the value comes from.

    Args:
        given: The settings.
        settings_file: A TOML file to read instead of `refit.toml`.
        json: Print one JSON object instead of a table.
    """
    resolved, origins = resolve_settings(as_given(given), settings_file)
    values = dict(walk_settings(resolved))
    if json:
        print(jsonlib.dumps({name: {"value": value, "origin": origins[name]} for name, value in values.items()}))
        return COMPLETED
    table = Table("setting", "value", "from")
    for name, value in values.items():
        origin = f"environment ({env_name(name)})" if origins[name] == "environment" else origins[name]
        table.add_row(
            name,
            cell(jsonlib.dumps(value, ensure_ascii=False)),
            cell(origin),
            style=None if origin.startswith("default") else "bold",
        )
    open_console().print(table)
    return COMPLETED


@app.command
def gc(
    *,
    given: StoreGiven = None,
    settings_file: SettingsFile = None,
    dry_run: DryRun = False,
) -> int:
    """Remove all files from the store that neither a saved version nor one of the last 20 runs needs.

    Args:
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
        dry_run: Only list what would be removed.
    """
    store = open_store(given, settings_file)
    from refit.runs.garbage import find_garbage

    damages: list[str] = []
    garbage = find_garbage(store, damages.append)
    for path in garbage:
        if dry_run:
            say(path)
        else:
            store.remove(path)
    print(f"{'would remove' if dry_run else 'removed'} {len(garbage)} files, {sum(garbage.values()) / 1e6:.1f} MB, of {store.url}")
    for damage in damages:
        complain(StoreError(damage))
    return FAILED if damages else COMPLETED


def _speak_utf8() -> None:
    """Restart in UTF-8 mode if Python reads file names in another encoding: Polars and PyTorch always read them as UTF-8."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Open any standard stream that is closed, or the next opened file would take its place, and let them write any character."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number, the lowest free one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _explain_arguments(error: CycloptsError) -> list[str]:
    """Say what is wrong with the arguments, and what to write instead."""
    if isinstance(error.__cause__, pydantic.ValidationError):
        return explain_validation(error.__cause__)
    if isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
        if not option.startswith("--"):
            return [f"{option}: expected an option or an argument, found neither; write a file of this name as `./{option}`"]
    if isinstance(error, UnusedCliTokensError):
        found = ", ".join(map(repr, error.unused_tokens or []))
        return [f"expected no more arguments, found {found}; put a value that contains spaces in quotes"]
    if isinstance(error, CoercionError) and error.target_type is bool and error.token is not None:
        name = (error.token.keyword or "").lstrip("-")
        return [f"{name}: expected true or false, found {error.token.value!r}; change it"]
    return str(error).splitlines()


def _join_values(arguments: Sequence[str]) -> list[str]:
    """Write `--section.field VALUE` as `--section.field=VALUE`, so that `false` and `-1` are read as values."""
    joined: list[str] = []
    for argument in arguments:
        previous = joined[-1] if joined else ""
        if previous.startswith("--") and "." in previous and "=" not in previous and not argument.startswith("--"):
            joined[-1] = f"{previous}={argument}"
        else:
            joined.append(argument)
    return joined


def _check_header(source: str) -> None:
    """Refuse a local file that is missing or empty, before anything slow is started or imported."""
    from refit.tables.sources.opening import open_source

    if "://" not in source:
        open_source(source, DataSettings(header=False)).names()  # whether there is a header, the version knows


def _check_data(settings: SettingsTree) -> None:
    """Refuse a table that training would refuse, before anything slow is started or imported."""
    if settings.data.factory is None:
        from refit.tables.draft import check_data

        check_data(settings.data, settings.seed)


def _check_files(source: str, output: str) -> None:
    from refit.serving.scoring import check_files

    check_files(source, output)


def _tell_data(manifest: dict[str, Any]) -> dict[str, Any]:
    """Collect facts about the data set for the JSON output."""
    names, target = (
        ("rows", "rows_without_target", "rare_classes", "dropped_columns", "remarks", "dialect"),
        manifest["signature"]["target"],
    )
    missing = {profile["name"]: profile["num_missing"] for profile in manifest.get("profiles", [])}
    inputs = {column["name"]: len(column["inputs"]) for column in manifest["signature"]["columns"]}
    columns = [
        {
            **{name: column[name] for name in ("name", "kind", "format")},
            "missing": missing[column["name"]],
            "inputs": inputs[column["name"]],
        }
        for column in manifest.get("columns", [])
    ]
    return {
        **{name: manifest[name] for name in names if name in manifest},
        **({"columns": columns} if columns else {}),
        "target": target["name"],
        "classes": target["classes"],
        "splits": {split: info["rows"] for split, info in manifest["splits"].items()},
        "kinds": {column["name"]: column["kind"] for column in manifest.get("columns", [])},
    }


def _forecast(settings: Settings) -> list[dict[str, Any]]:
    from refit.runs.recipes import forecast

    return [step.model_dump() for step in forecast(settings, Store(settings.store.url))]


def _print_forecast(steps: Sequence[dict[str, Any]]) -> None:
    table = Table("step", "", "because")
    for step in steps:
        table.add_row(step["step"], "done" if step["is_done"] else "to do", cell("\n".join(step["because"])))
    open_console().print(table)


def _print_decision(result: RetrainingResult) -> None:
    if result.scores:
        num_shown = 1 + sum("@" in name for name in result.scores)  # versions and the baseline, which a terminal has room for
        shown, others = [*result.scores.items()][:num_shown], [*result.scores.items()][num_shown:]
        has_rival = len(shown) > 1  # the first model of a step of the user's own has not even a baseline
        table = Table("on the same test rows", *dict(shown), *(["difference"] if has_rival else []))
        for metric in shown[0][1]:
            figures = [scores.get(metric) for _, scores in shown]
            cells = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
            if has_rival:
                candidate, rival, *_ = figures
                cells.append("-" if candidate is None or rival is None else f"{candidate - rival:+.4f}")
            table.add_row(metric, *cells)
        open_console().print(table)
        for name, scores in others:
            say(f"{name}: {', '.join(f'{metric} {figure:.4f}' for metric, figure in scores.items() if figure is not None)}")
    champion = f"the champion is {result.champion}" if result.champion else "there is no champion"
    say(result.reason if result.outcome != "skipped" else f"skipped: {result.reason}")
    say(champion)
    if result.report:
        say(f"report: {result.report}")


def _print_result(log: list[dict[str, Any]], metrics: dict[str, Any], neighbours: dict[str, Any] | None) -> None:
    console = open_console()
    epochs = Table("epoch", "batch losses", "train loss", "val loss", "val score", "lr", "rows/s")
    for entry in log:
        losses = entry["batch_losses"]
        shown = " ".join(f"{loss:.2f}" for loss in losses) if len(losses) <= MAX_LOSSES_SHOWN else f"{len(losses)} batches"
        val_figures = ("-" if entry[name] is None else f"{entry[name]:.4f}" for name in ("val_loss", "val_score"))
        figures = (f"{entry['train_loss']:.4f}", *val_figures, f"{entry['lr']:.4g}", f"{entry['rows_per_second']:,.0f}")
        epochs.add_row(str(entry["epoch"]), shown, *figures)
    console.print(epochs)
    found = {split: read_metrics(scored) for split, scored in metrics.items()}
    are_classes = isinstance(next(iter(found.values())), ClassificationMetrics)
    scores = Table("split", "correct" if are_classes else "rows", *next(iter(found.values())).list_figures())
    for split, scored in found.items():
        num_correct = f"{scored.num_correct}/" if isinstance(scored, ClassificationMetrics) else ""
        scores.add_row(split, f"{num_correct}{scored.num_rows}", *_show_figures(scored.list_figures().values()))
    names = next(iter(found.values())).list_figures()
    if neighbours:
        for model, figures in list(neighbours["figures"].items())[:-1]:  # the last is this model
            scores.add_row(f"{neighbours['split']}, {model}", "", *_show_figures(map(figures.get, names)))
    console.print(scores)


def _show_figures(figures: Iterable[float | None]) -> Iterator[str]:
    return ("-" if figure is None else f"{figure:.4f}" for figure in figures)
