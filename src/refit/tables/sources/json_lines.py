"""Reads files with a JSON object a line, all cells as text, as in CSV."""

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from refit.errors import DataError
from refit.tables.sources.encoded_text import open_text
from refit.tables.sources.files import UNREADABLE, Opened, check_names
from refit.texts import show

ROWS_A_FRAME = 65_536
NUM_ROWS = 1000
"""The first rows name all columns."""
WORDS = {True: "true", False: "false", None: None}


def read_names(opened: Opened, path: str) -> list[str]:
    """Read the names of the columns from the first rows; raises as `iterate_json_lines` does."""
    names: dict[str, bool] = {}
    for row, record in _iterate(opened, path):
        for name, value in record.items():
            names[name] = names.get(name, False) or value is not None
        if row == NUM_ROWS:
            break
    outer = {name[:place] for name in names for place, sign in enumerate(name) if sign == "."}
    names = {name: has_value for name, has_value in names.items() if has_value or name not in outer}
    if not all(check_names(names, path)):
        raise DataError(f"{path}: expected names, found an empty one; name or remove it")
    return list(names)


def iterate_json_lines(opened: Opened, path: str) -> Iterator[pl.DataFrame]:
    """Read the rows, in one frame or more; missing names and nulls are null, and what an object in a row holds is `user.age`.

    Raises:
        DataError: A line is no object of texts, numbers and booleans, or has a name that none of the first rows has.
    """
    names = read_names(opened, path)
    held: dict[str, list[str | None]] = {name: [] for name in names}
    num_held = 0
    for row, record in _iterate(opened, path):
        if extra := {name for name, value in record.items() if value is not None} - held.keys():
            raise DataError(
                f"row {row} of {path}: expected names that one of the first {NUM_ROWS:,} rows has, found `{min(extra)}`;"
                " add it to the first row"
            )
        for name, cells in held.items():
            cells.append(_read_cell(record.get(name), row, name, path))
        num_held += 1
        if num_held == ROWS_A_FRAME:
            yield pl.DataFrame(held, dict.fromkeys(held, pl.String))
            held, num_held = {name: [] for name in names}, 0
    if num_held:
        yield pl.DataFrame(held, dict.fromkeys(held, pl.String))


def _iterate(opened: Opened, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, counted from 1, with numbers as they are written."""
    try:
        with open_text(opened) as file:
            for row, line in enumerate(filter(bytes.strip, file), start=1):
                try:
                    record = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
                except ValueError as error:
                    raise DataError(f"row {row} of {path}: expected an object in one line, found {error}; write it so") from error
                if not isinstance(record, dict):
                    raise DataError(f"row {row} of {path}: expected an object, found {type(record).__name__}; write one")
                yield row, _flatten(record)
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a file of JSON, found one that cannot be read ({error}); write it again") from error


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    """The values of an object, and those of the objects in it, as `user.age`."""
    flat = dict[str, Any]()
    for name, value in record.items():
        inner = {f"{name}.{key}": cell for key, cell in _flatten(value).items()} if isinstance(value, dict) else {name: value}
        flat |= inner
    return flat


def _read_cell(value: Any, row: int, name: str, path: str) -> str | None:
    """A cell as CSV would have it."""
    if isinstance(value, list):
        raise DataError(
            f"row {row} of {path}, column `{show(name)}`: expected a text, a number, true or false, found a list; join it into a"
            " text, or leave it out of the file"
        )
    return value or None if isinstance(value, str) else WORDS[value]
