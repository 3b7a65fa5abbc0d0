"""Commands about saved versions of a model."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from rich.markdown import Markdown
from rich.table import Column, Table

from refit.commands.terminal import (
    COMPLETED,
    FAILED,
    SettingsFile,
    StoreGiven,
    Trust,
    app,
    as_given,
    cell,
    complain,
    open_console,
    open_store,
    say,
)
from refit.errors import SettingsError, StoreError
from refit.registry import versions
from refit.registry.differences import find_differences
from refit.registry.ledger import Entry
from refit.registry.versions import CHAMPION
from refit.server.own_server import is_server_named
from refit.settings import resolve_settings
from refit.store.store import Store
from refit.texts import escape_controls

WIDTH_OF_CARD = 100
"""Most columns of a card in a pipe. Its titles are centred, so a wider one is harder to read."""


@app.command
def models(*, given: StoreGiven = None, settings_file: SettingsFile = None) -> int:
    """List the saved versions of every model in the store, and their aliases.

    Args:
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    table = Table(Column("version", no_wrap=True, overflow="fold"), "alias", "created (UTC)", "judged on", "accuracy or R²", "loss")
    damages: list[StoreError] = []
    for name in versions.list_models(store):
        try:
            aliases = versions.list_aliases(store, name)
        except StoreError as error:
            damages.append(error)
            aliases = {}
        numbers = versions.list_versions(store, name)
        for number in sorted({*numbers, *(entry.after for entry in aliases.values() if entry.after)}):
            mine = ", ".join(alias for alias, entry in aliases.items() if entry.after == number)
            try:
                if mine:  # a version in use has to be whole
                    versions.check_version(store, name, number)
                table.add_row(
                    f"{name}@v{number}", mine, *map(cell, _describe_version(store, name, number)), style="bold" if mine else None
                )
            except StoreError as error:
                damages.append(error)
                table.add_row(f"{name}@v{number}", mine, "damaged" if number in numbers else "lost")
    if table.rows:
        open_console().print(table)
    else:
        print(f"no models in {store.url}", file=sys.stderr)
    for damage in damages:
        complain(damage)
    return FAILED if damages else COMPLETED


@app.command
def show(model: str, /, *, given: StoreGiven = None, settings_file: SettingsFile = None) -> int:
    """Print the card of a saved model.

    Args:
        model: `NAME` for the newest version, `NAME@v1`, or an alias as in `NAME@champion`.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    name, number = versions.resolve_reference(store, model)
    folder = versions.version_folder(name, number)
    card = store.read(f"{folder}/card.md").decode()
    say(store.location(folder))
    damages: list[StoreError] = []
    try:
        for alias, entry in versions.list_aliases(store, name).items():
            if entry.after == number:
                say(f"{alias} since {entry.at}, by {entry.who}: {escape_controls(entry.why)}")
        versions.check_version(store, name, number)
    except StoreError as error:
        damages.append(error)
    print()
    _print_card("\n".join(map(escape_controls, card.split("\n"))))
    for damage in damages:
        complain(damage)
    return FAILED if damages else COMPLETED


@app.command
def diff(one: str, other: str, /, *, given: StoreGiven = None, settings_file: SettingsFile = None) -> int:
    """Compare two versions: settings and data that differ, and metrics side by side.

    Args:
        one: `NAME@v2`, or an alias as in `NAME@champion`.
        other: Another version.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    sides = [versions.resolve_reference(store, reference) for reference in (one, other)]
    found = find_differences(store, *sides)
    names = [f"{name}@v{number}" for name, number in sides]
    _print_pairs("setting", names, found.settings)
    _print_pairs("data", names, found.data)
    table = Table("split", "metric", *names, "difference")
    for (split, metric), pair in found.metrics.items():
        difference = "-" if None in pair else f"{pair[1] - pair[0]:+.4f}"
        table.add_row(split, metric, *("-" if figure is None else f"{figure:.4f}" for figure in pair), difference)
    open_console().print(table)
    return COMPLETED


@app.command
def promote(
    version: str,
    /,
    *,
    why: str = "promoted by hand",
    alias: str = CHAMPION,
    given: StoreGiven = None,
    settings_file: SettingsFile = None,
) -> int:
    """Make a version the champion, or point another alias at it. The ledger records who did it, when and why.

    Args:
        version: `NAME@v3`.
        why: The reason, for the ledger.
        alias: The alias to move.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    model, _, wanted = version.partition("@")
    if not wanted:
        raise SettingsError(f"{version}: expected a version to promote, found a name alone; name one, such as {model}@v1")
    store = open_store(given, settings_file)
    name, number = versions.resolve_reference(store, version)
    before = versions.read_alias(store, name, alias)
    if before == number:
        versions.check_version(store, name, number)
        print(f"{name}@{alias} is v{number} already")
    else:
        entry = versions.move_alias(store, name, number, expected=before, why=why, alias=alias)
        _print_move(name, alias, before, number)
        _tell_server(name, entry)
    return COMPLETED


@app.command
def rollback(
    name: str,
    /,
    *,
    why: str = "rolled back by hand",
    alias: str = CHAMPION,
    given: StoreGiven = None,
    settings_file: SettingsFile = None,
) -> int:
    """Make the previous champion the champion again. Running it again goes back one more.

    Args:
        name: The model's name.
        why: The reason, for the ledger.
        alias: The alias to move back.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    if "@" in name:
        raise SettingsError(f"{name}: expected the name of a model, found a version; leave out `@` and what follows")
    store = open_store(given, settings_file)
    versions.resolve_reference(store, name)
    entry = versions.rollback(store, name, why, alias)
    _print_move(name, alias, entry.before, entry.after)
    _tell_server(name, entry)
    return COMPLETED


@app.command
def repair(name: str, /, *, given: StoreGiven = None, settings_file: SettingsFile = None) -> int:
    """Make a ledger with lost or damaged entries readable again, by recording which ones are lost. Nothing is removed.

    Restore from a backup whatever you can first.

    Args:
        name: The model's name.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    lost, moves = versions.repair(store, name)
    print(f"{name}: {'lost entries: ' + ', '.join(map(str, lost)) if lost else 'no entry is lost'}")
    for entry in moves:
        _print_move(name, entry.alias or "", entry.before, entry.after)
    return COMPLETED


@app.command
def export(
    model: str,
    /,
    *,
    format: Literal["onnx", "torch"],
    output: str,
    given: StoreGiven = None,
    settings_file: SettingsFile = None,
    trust: Trust = False,
) -> int:
    """Write a model, including its preparation of rows, into one file that runs without Refit. It is checked on test rows or items.

    Args:
        model: `NAME` for the champion, `NAME@v3` for a version, or another alias.
        format: ONNX, or a `torch.export` program.
        output: The file, ending in `.onnx` or `.pt2`.
        given: Where the store is.
        settings_file: A TOML file to read instead of `refit.toml`.
        trust: Call the factory that the version names, even if `model.factory` here names another or none.
    """
    settings, _ = resolve_settings(as_given(given, trust), settings_file)
    store = Store(settings.store.url)
    name, number = versions.resolve_reference(store, model, CHAMPION)
    from refit.serving.export import export_model
    from refit.serving.saved_model import load_version
    from refit.store.outputs import check_outside

    check_outside(output, store)
    loaded = load_version(store, name, number, settings)
    if loaded.manifest.maker == "tables":
        rows = loaded.manifest.load_test_rows(store)
        where = f"its {len(rows)} test rows"
    else:  # a batch, as the file takes no items
        rows, y = loaded.manifest.load_sample(store)
        where = f"{len(y)} of its items"
    difference = export_model(loaded, output, format, rows, f"{name}@v{number}")
    say(f"exported {name}@v{number}: {output}")
    what = "a probability" if loaded.manifest.signature.target.classes else "a prediction"
    print(f"largest difference of {what} on {where}: {difference:.2g}")
    return COMPLETED


def _print_card(card: str) -> None:
    """Print Markdown rendered, with pictures as their file names; in a pipe, without colours and padding."""
    console = open_console()
    text = Markdown(re.sub(r"(?m)^!\[(.*)\]\((.*)\)$", r"\1: \2", card), hyperlinks=False)
    if console.is_terminal:
        console.print(text)
        return
    with console.capture() as capture:
        console.print(text, width=min(console.width, WIDTH_OF_CARD))
    for line in capture.get().splitlines():
        print(line.rstrip())


def _describe_version(store: Store, name: str, number: int) -> list[str]:
    record, metrics = versions.read_record(store, name, number), versions.load_part(store, name, number, "metrics")
    try:
        split, scores = list(metrics.items())[-1]
        created = record["created"][:16].replace("T", " ")
        accuracy = scores.get("accuracy", scores.get("figures", {}).get("R²"))
        return [
            created,
            f"{scores['num_rows']} {split} rows",
            "-" if accuracy is None else f"{accuracy:.4f}",
            f"{scores['loss']:.4f}",
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        folder = store.location(versions.version_folder(name, number))
        raise StoreError(f"{folder}: expected the record and scores of a version, found others; {versions.RESTORE}") from error


def _print_pairs(kind: str, names: list[str], pairs: Mapping[str, tuple[Any, Any]]) -> None:
    table = Table(kind, *names)
    for name, pair in pairs.items():
        table.add_row(cell(name), *(cell(_render(value)) for value in pair))
    if table.rows:
        open_console().print(table)
    else:
        print(f"{kind}: no difference")


def _render(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tell_server(name: str, entry: Entry) -> None:
    """Have automations of the server that is set, if any, know of another champion; it is that already."""
    sys.stdout.flush()
    if entry.alias == CHAMPION and is_server_named():
        from refit.server.events import send_decision

        send_decision(name, entry)


def _print_move(name: str, alias: str, before: int | None, after: int | None) -> None:
    was = "none" if before is None else f"v{before}"
    print(f"{name}@{alias}: {was} -> v{after}")
