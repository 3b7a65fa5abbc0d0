"""Chooses the rows of each split of a table, as the settings say: by row, features, group or time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Hashes, Rows, find_known, identify, number_copies
from refit.data.splits import Sizes, split_by_time, split_randomly
from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.columns import check_columns, take_column
from refit.tables.conversion import clean_cells, convert_column
from refit.tables.formats import DateFormat, read_notation
from refit.tables.hashes import hash_rows
from refit.tables.schema import Reading, find_reading
from refit.tables.sources.table_source import Table
from refit.texts import show

DEFAULT_SHARE = 0.15


@dataclass(frozen=True)
class TypedTable:
    """A table whose columns are converted.

    Args:
        table: As it was read.
        frame: The columns to learn from.
        target: The classes, null where there is none.
        y: Index of each row's class; null likewise.
        groups: Hash of the group of each row that has a class, where rows come in groups.
    """

    table: Table
    frame: pl.DataFrame
    target: pl.Series
    y: pl.Series
    groups: Hashes | None

    @property
    def labelled(self) -> Rows:
        """Numbers of the rows that have a class."""
        return np.flatnonzero(self.y.is_not_null())


def read_groups(settings: DataSettings, table: Table, target: pl.Series) -> Hashes | None:
    """Hash the group of each row, `(N,)`; None where there are no groups.

    Raises:
        DataError: There is no such column, or a row with a class has no group.
    """
    name = settings.group_column
    if name is None:
        return None
    check_columns("data.group_column", [name], table.frame.columns, table.name)
    groups = convert_column(take_column(table.frame, name), "categorical", settings.null_values, table.locate)
    missing = (groups.is_null() & target.is_not_null()).arg_true()
    if len(missing):
        raise DataError(
            f"{table.locate(missing[0])}, column `{name}`: expected the row's group, found none; fill it in (with a value of its"
            " own if no other row belongs to it), or drop the row"
        )
    return hash_rows(groups.to_frame())


def choose_sides(
    settings: DataSettings, seed: int, source: TypedTable, test: TypedTable | None, classes: Sequence[Any]
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Choose the rows of `source` in each split; rows without a class are in none.

    Args:
        settings: How rows are divided.
        seed: Of a random split.
        source: The rows to divide.
        test: The test rows, if they are given separately; rows of `source` that must stay together with one are left out.
        classes: The classes, for messages.

    Returns:
        Row numbers by split, and how many rows are left out for which reason.

    Raises:
        DataError: Rows cannot be divided like this.
    """
    rows, units, num_apart = source.labelled, _find_units(settings, seed, source), 0
    test_units = None if test is None else _find_units(settings, seed, test)
    if units is not None and test_units is not None:
        is_apart = ~find_known(units, test_units)
        rows, units, num_apart = rows[is_apart], units[is_apart], int((~is_apart).sum())
    y, where = source.y[rows].to_numpy(), f"{source.table.name}, column `{settings.target}`"
    sizes = _find_sizes(settings, source.table, len(rows), has_test=test is not None)
    if settings.split == "time":
        times = _read_times(settings, source)[rows]
        _check_spans(sizes, None if times.dtype == np.int64 else f"column `{settings.time_column}` holds no date-times")
        parts, left_out = split_by_time(times, y, classes, sizes, where, units)
    else:
        _check_spans(sizes, "a `random` split has no times")
        if units is None:
            hashes = hash_rows(source.frame.with_columns(source.target), seed)[rows]
            units = identify(hashes, number_copies(hashes))
        parts, left_out = split_randomly(units, y, classes, sizes, where), {}
    if num_apart:
        left_out["units"] = left_out.get("units", 0) + num_apart
    return {split: rows[positions] for split, positions in parts.items()}, left_out


def _find_units(settings: DataSettings, seed: int, typed: TypedTable) -> Hashes | None:
    """Hash what each row with a class must stay together with; None where rows are independent."""
    if typed.groups is not None:
        groups = typed.groups[typed.labelled]
        return identify(groups, np.full(len(groups), seed))
    return hash_rows(typed.frame, seed)[typed.labelled] if settings.split_by == "features" else None


def _find_sizes(settings: DataSettings, table: Table, num_rows: int, has_test: bool) -> Sizes:
    """The sizes of the splits, with the defaults filled in."""
    val, test = (DEFAULT_SHARE if size is None else size for size in (settings.val, settings.test))
    if has_test:
        test = 0.0
    if table.is_raw and settings.val is None:
        val = 0.0
    shares = (size / num_rows if isinstance(size, int) and num_rows else size for size in (val, test) if not isinstance(size, str))
    if sum(shares) >= 1:
        raise DataError(
            f"data.val + data.test: expected less than all {num_rows} rows, to leave some to train on, found {val} +"
            f" {test}; lower one"
        )
    return Sizes(val, test, settings.window, settings.gap or 0.0)


def _check_spans(sizes: Sizes, reason: str | None) -> None:
    """Raise DataError for the first size that is a span of time, if there is a reason against them."""
    for name, size in vars(sizes).items():
        if isinstance(size, str) and reason is not None:
            raise DataError(f"data.{name}: expected a share or a number of rows, as {reason}, found {size}; give either")


def _read_times(settings: DataSettings, typed: TypedTable) -> NDArray[Any]:
    """The column that orders rows: date-times in microseconds as int64, numbers as float64, zero for rows without a class."""
    name, table = settings.time_column or "", typed.table
    check_columns("data.time_column", [name], table.frame.columns, table.name)
    values = take_column(table.frame, name)
    cells = clean_cells(values, settings.null_values, table.locate)
    notation = settings.formats.get(name) if cells.dtype == pl.String else None
    if format := None if notation is None else read_notation(notation, cells.drop_nulls().unique()):
        reading = Reading("datetime" if isinstance(format, DateFormat) else "numeric", format)
        times = convert_column(values, reading.kind, settings.null_values, table.locate, format)
    else:
        reading, times = find_reading(values, settings.null_values, table.locate)
    if reading.kind not in ("numeric", "datetime"):
        example = show(take_column(table.frame, name).drop_nulls().head(1).item())
        raise DataError(
            f"{table.name}, column `{name}`: expected date-times or numbers to order rows by, found text such as {example!r};"
            " write dates as 2026-12-31, which is unambiguous, say in data.formats how they are written, or name another column"
        )
    missing = (times.is_null() & typed.y.is_not_null()).arg_true()
    if len(missing):
        raise DataError(f"{table.locate(missing[0])}, column `{name}`: expected a time, found none; fill it in or drop the row")
    return times.to_physical().fill_null(0).to_numpy()
