"""Take columns and rows out of tables by their names and numbers."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Rows
from refit.data.signature import Kind
from refit.errors import DataError
from refit.texts import list_names, show

MAX_CELLS = 1 << 20
"""Numbers of several columns that are stacked at a time: a wide table takes few steps, and a long one little memory."""

Numbers = NDArray[np.float64]
Locate = Callable[[int], str]
"""Says where a row of a column is, for messages: `row 7 of rows.csv`."""


def check_columns(setting: str, wanted: Iterable[str], present: Sequence[str], where: str) -> None:
    """Raise DataError for the first wanted column that `where` lacks, and suggest the nearest name that it has."""
    known = set(present)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, present, n=1)
            other = f"set {setting} to one of them"
            if len(present) == 1:
                other = "set data.separator if its cells are separated otherwise, or remove the lines above its header"
            hint = f"did you mean `{show(near[0])}`?" if near else other
            raise DataError(f"{setting}: expected a column of {where}, found no `{show(name)}` among {list_names(present)}; {hint}")


def take_column(frame: pl.DataFrame, name: str) -> pl.Series:
    """Take a column of a frame; a name like `^…$`, which polars would take for a pattern, gets a blank at its end."""
    values = frame[name]
    return values.alias(f"{name} ") if name.startswith("^") and name.endswith("$") else values


def stack_numbers(frame: pl.DataFrame, names: Sequence[str], rows: Rows | None = None) -> Iterator[tuple[Sequence[str], Numbers]]:
    """Take some columns of numbers at a time as one array, a row a column: what many of them need takes few steps like this.

    Yields: Their names, and their numbers in these rows, or in all; NaN where one is missing.

    Shape:
        frame: (N, ...); yields arrays of shape (columns, N).
    """
    index = None if rows is None or 2 * len(rows) > frame.height else index_rows(rows)  # a few rows are gathered first
    height = frame.height if index is None else len(index)
    size = max(1, MAX_CELLS // max(1, height))
    for start in range(0, len(names), size):
        some = names[start : start + size]
        numbers = np.empty((len(some), height))
        for place, name in enumerate(some):
            values = frame[name] if index is None else frame[name][index]
            numbers[place] = (values if values.dtype == pl.Float64 else values.cast(pl.Float64)).to_numpy()
        yield some, numbers if rows is None or index is not None else numbers.take(rows, axis=1)


def index_rows(rows: Rows | None) -> pl.Series | None:
    """Return the same rows in the form that polars takes most quickly from many columns."""
    return None if rows is None else pl.Series(rows, dtype=pl.get_index_type())


def take_rows(values: pl.Series, rows: Rows | pl.Series | None, kind: Kind | None = None) -> pl.Series:
    """Take the cells of these rows, or of all rows, from a column; if its kind is numeric, as Float64 with NaN as null.

    To take the same rows from many columns, `index_rows` saves time.
    """
    taken = values if rows is None else values[rows]
    if kind != "numeric":
        return taken
    taken = taken.cast(pl.Float64)
    numbers = taken.to_numpy()
    has_nan = taken.null_count() < int(np.isnan(numbers).sum())
    return pl.Series(taken.name, numbers, nan_to_null=True) if has_nan else taken
