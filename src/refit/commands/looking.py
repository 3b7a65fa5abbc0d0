"""The command `refit look`: what training makes of a table, before it is trained on."""

import json as jsonlib
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

from refit.commands.terminal import (
    COMPLETED,
    REFUSED,
    AsJson,
    Given,
    SettingsFile,
    app,
    as_given,
    cell,
    complain,
    open_console,
    say,
)
from refit.errors import DataError
from refit.settings import NOTEBOOK, SettingsTree, check_url, resolve_settings
from refit.texts import count, list_names, shorten, show

if TYPE_CHECKING:
    from refit.tables.overview import ColumnOverview, Overview

MAX_CLASSES_SHOWN, MAX_TARGETS_SHOWN = 10, 4
MAX_COLUMNS_SHOWN = 100
MAX_EXAMPLE = 24
TITLES = ("column", "kind", "missing", "distinct", "inputs", "read as", "such as")
GAP, MIN_WIDTH = 2, 10


@app.command
def look(
    table: str,
    /,
    *,
    target: Annotated[str | None, Parameter(name="--target")] = None,
    given: Given = None,
    settings_file: SettingsFile = None,
    json: AsJson = False,
) -> int:
    """Show what training would make of a table: how it is read, what each column is, and what looks wrong. Nothing is trained.

    Args:
        table: A CSV or Parquet file, or a folder or glob of them.
        target: The column to predict; short for `--data.target`.
        given: The settings of a training.
        settings_file: A TOML file to read instead of `refit.toml`.
        json: Print one JSON object instead of a table.
    """
    check_url(table, "TABLE")
    flags = as_given(given)
    flags["data"] = {**flags.get("data", {}), "source": table, **({} if target is None else {"target": target})}
    settings, origins = resolve_settings(flags, settings_file)
    from refit.tables.overview import look_at_table
    from refit.tables.typed_columns import write_flags

    found = look_at_table(settings.data, settings.seed, is_target_given=not origins["data.target"].startswith("default"))
    likely = found.targets[0] if found.targets else None
    data = {**flags.pop("data"), **({} if likely is None else {"target": likely})}
    remedies = found.remedies or [{}] * (not found.faults)  # without a remedy, the command would be refused again
    commands = [shlex.join(["refit", "train", *write_flags({"data": {**data, **remedy}, **flags})]) for remedy in remedies]
    if json:
        print(jsonlib.dumps({**found.model_dump(), "commands": commands}))
        return REFUSED if found.faults else COMPLETED
    _print(found)
    for fault in found.faults:
        complain(DataError(fault))
    if likely is not None:
        others = f"; it may be another column: {list_names(found.targets[1:], MAX_TARGETS_SHOWN)}" if found.targets[1:] else ""
        say(f"the target is not known: `{likely}` is a guess{others}")
    for start, command in zip(("to train: ", "or, if the other meaning is right: "), commands, strict=False):
        say(start + command)
    return REFUSED if found.faults else COMPLETED


def show_table(settings: SettingsTree) -> None:
    """Print what training makes of the table that the settings name, if they name one."""
    found = _look(settings)
    if found is not None:
        _print(found)


def look_ahead(settings: SettingsTree) -> dict[str, Any] | None:
    """Say what training makes of the table that the settings name; None if they name none."""
    found = _look(settings)
    return None if found is None else found.model_dump()


def _look(settings: SettingsTree) -> "Overview | None":
    from refit.tables.overview import look_at_table

    if settings.data.factory is not None or settings.data.source == NOTEBOOK:
        return None
    return look_at_table(settings.data, settings.seed, is_target_given=True)


def _make_table(columns: Sequence["ColumnOverview"], width: int) -> Table:
    """A line a column; where not all fits into the width, names and readings are folded, and the last examples are cut."""
    names, hows = [show(column.name) for column in columns], [_say_how(column) for column in columns]
    examples = [", ".join(shorten(example, MAX_EXAMPLE) for example in column.examples) for column in columns]
    numbers = [[f"{number:,}" for number in (column.missing, column.distinct, column.inputs)] for column in columns]
    known = ([column.kind for column in columns], *zip(*numbers, strict=True))
    fixed = [max(map(len, [title, *texts])) for title, texts in zip(TITLES[1:5], known, strict=True)]
    left = max(width - sum(fixed) - GAP * (len(TITLES) - 1), 3 * MIN_WIDTH)
    widths, texts = list[int](), [names, hows, examples]
    for title, some, others in zip((TITLES[0], *TITLES[5:]), texts, (2, 1, 0), strict=True):
        wanted = max(map(cell_len, [title, *some]))
        widths.append(min(wanted, max(MIN_WIDTH, left // (others + 1))))
        left -= widths[-1]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title, size in zip(TITLES, (widths[0], *fixed, *widths[1:]), strict=True):
        is_number = title in TITLES[2:5]
        is_cut = title == TITLES[-1]
        table.add_column(
            title, width=size, justify="right" if is_number else "left", overflow="ellipsis" if is_cut else "fold", no_wrap=is_cut
        )
    for column, name, how, example, counts in zip(columns, names, hows, examples, numbers, strict=True):
        style = None if column.inputs else "dim"
        table.add_row(cell(name), cell(column.kind), *counts, cell(how), cell(example), style=style)
    return table


def _say_how(column: "ColumnOverview") -> str:
    """How a column is read, without what its kind says already."""
    how = re.sub("^a (?:date|number|time) written as ", "", column.how)
    is_cut = column.categories and column.categories < column.distinct
    return ", ".join(filter(None, [f"{column.categories} kept, others as one" if is_cut else "", how]))


def _print(found: "Overview") -> None:
    looked_at = f", of which {found.rows_looked_at:,} were looked at" if found.rows_looked_at < found.rows else ""
    num_columns, num_inputs = count(len(found.columns), "column"), count(found.num_inputs, "input")
    say(f"{found.source}: {count(found.rows, 'row')}{looked_at}; {num_columns}, as {num_inputs}")
    if found.dialect is not None:
        say(f"written {found.dialect.describe()}")
    console = open_console()
    console.print(_make_table(found.columns[:MAX_COLUMNS_SHOWN], console.width))
    if others := found.columns[MAX_COLUMNS_SHOWN:]:
        kinds = Counter(column.kind for column in others)
        told = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
        say(f"{len(others):,} more columns: {told}; --json shows them all")
    if found.classes:
        shown = [f"{show(name)} ({rows:,})" for name, rows in [*found.classes.items()][:MAX_CLASSES_SHOWN]]
        more = f" and {len(found.classes) - MAX_CLASSES_SHOWN} more" if len(found.classes) > MAX_CLASSES_SHOWN else ""
        say(f"classes: {', '.join(shown)}{more}")
    for remark in found.remarks:
        say(remark)
