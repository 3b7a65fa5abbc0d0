"""Finds what the target of a table holds, numbers to predict or classes, and converts it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Rows
from refit.data.signature import Kind, Target
from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.columns import take_column
from refit.tables.conversion import clean_cells, convert_column
from refit.tables.formats import AnyFormat, ClockFormat, NumberFormat, find_alike, find_formats
from refit.tables.schema import Reading
from refit.tables.sources.table_source import Table
from refit.tables.table_splits import TypedTable, read_groups
from refit.tables.targets import convert_known_target, convert_target, explain_numbers
from refit.tables.typed_columns import KINDS, read_column, settle_formats
from refit.texts import list_names, show


@dataclass(frozen=True)
class TargetReading:
    """How the target is read.

    Args:
        kind: What it holds; of classes, what each is.
        is_number: Whether numbers are predicted, not classes.
        format: How numbers are written in text; None for plain ones.
        remark: What people should know about it, in one line.
    """

    kind: Kind
    is_number: bool = False
    format: AnyFormat | None = None
    remark: str | None = None


def type_target(settings: DataSettings, table: Table, others: Mapping[str, Reading]) -> tuple[TargetReading, pl.Series]:
    """Find what the target holds, and convert it to numbers or to classes.

    Args:
        settings: What is known of it.
        table: The table.
        others: How the columns to learn from are read, which may tell `1,234` of `1.234`.

    Raises:
        DataError: It holds neither, or a few cells among numbers are none.
    """
    name = settings.target
    said = settings.kinds.get(name)
    is_misfit = said == "category" and settings.task == "regression"
    if said in ("date", "text") or is_misfit:
        expected = "`number`" if is_misfit else "`category` or `number`"
        raise DataError(f"data.kinds, column `{show(name)}`: expected {expected} for the target, found `{said}`; drop it")
    values = take_column(table.frame, name)
    if settings.task == "classification" and said is None and _has_fractions(values):
        said = "category"
    found = None if settings.task == "classification" or said == "category" else _read_target_numbers(settings, table, others)
    reason = None if found is None else explain_numbers(found[1])
    if found is not None and (reason is not None or settings.task == "regression"):
        (reading, numbers), told = found, None
        if settings.task == "auto":
            told = f"predicted as numbers, as {reason}; add --data.task classification if each value is a class"
        return TargetReading(
            "numeric", True, reading.format, "; ".join(filter(None, [told, reading.remark])) or None
        ), numbers.fill_nan(None)
    kind, classes = convert_target(values, None if said is None else KINDS[said], settings.null_values, table.locate)
    told, num_classes = None, 0 if kind != "numeric" or settings.task != "auto" else classes.drop_nulls().n_unique()
    if num_classes > 2:
        told = f"each of its {num_classes:,} whole numbers is a class; add --data.task regression to predict numbers"
    return TargetReading(kind, remark=told), classes


def _read_target_numbers(settings: DataSettings, table: Table, others: Mapping[str, Reading]) -> tuple[Reading, pl.Series] | None:
    """Read the target as numbers; None if it holds others, unless the task is to predict numbers."""
    name = settings.target
    values, is_free = take_column(table.frame, name), settings.task == "auto"
    if is_free and not (values.str.contains(r"\d").any() if values.dtype == pl.String else values.dtype.is_numeric()):
        return None
    chosen = settings if is_free else settings.model_copy(update={"kinds": {**settings.kinds, name: "number"}})
    try:
        reading, numbers = read_column(name, values, chosen, table)
    except DataError as fault:
        if is_free and explain_numbers(_read_most(values, settings, table)) is None:
            return None
        raise DataError(*fault.args, remedies=[remedy for remedy in fault.remedies if "null_values" in remedy]) from fault
    first = reading.choices[0] if reading.choices else reading.format
    if is_free and ((reading.kind != "numeric" and not isinstance(first, NumberFormat)) or isinstance(first, ClockFormat)):
        return None
    if not reading.choices:
        return reading, numbers
    if is_free and explain_numbers(_read_by(first, values, settings, table)) is None:
        return None
    readings = {known: other for known, other in others.items() if not other.choices} | {name: reading}
    columns = {name: numbers}
    if faults := settle_formats(readings, columns, settings, table):
        raise faults[0]
    return readings[name], columns[name]


def _has_fractions(values: pl.Series) -> bool:
    numbers = values.cast(pl.Float64, strict=False) if values.dtype == pl.String or values.dtype.is_numeric() else values.clear()
    return bool((numbers != numbers.floor()).any()) if len(numbers) else False


def _read_most(values: pl.Series, settings: DataSettings, table: Table) -> pl.Series:
    """Read the cells that are numbers in the format of most, as far as there is one; null for others."""
    cells = clean_cells(values, settings.null_values, table.locate)
    plain = cells.cast(pl.Float64, strict=False)
    formats = (
        find_formats(cells.filter(find_alike(cells)).unique()) if 2 * len(plain.drop_nulls()) < len(cells.drop_nulls()) else []
    )
    return formats[0].read(cells) if len(formats) == 1 and isinstance(formats[0], NumberFormat) else plain


def _read_by(format: AnyFormat | None, values: pl.Series, settings: DataSettings, table: Table) -> pl.Series:
    return convert_column(values, "numeric", settings.null_values, table.locate, format)


def type_test_rows(
    settings: DataSettings,
    table: Table,
    readings: Mapping[str, Reading],
    reading: TargetReading,
    classes: pl.Series | None,
    rare: pl.Series,
) -> TypedTable:
    """The rows of `test_source`, converted as those of `source` were."""
    time_column = settings.time_column if settings.split == "time" else None
    needed = filter(None, (settings.target, time_column, settings.group_column))
    present = set(table.frame.columns)
    missing = [name for name in (*readings, *needed) if name not in present]
    if missing:
        choice = ", or leave it out with data.features" if readings.keys() >= {*missing} else ""
        raise DataError(
            f"data.test_source: expected column {list_names(missing)} in {table.name} as in data.source,"
            f" found {list_names(table.frame.columns)}; add what is missing{choice}"
        )
    frame = pl.DataFrame(
        {
            name: convert_column(take_column(table.frame, name), column.kind, settings.null_values, table.locate, column.format)
            for name, column in readings.items()
        }
    )
    values = take_column(table.frame, settings.target)
    target = convert_known_target(values, reading.kind, reading.is_number, reading.format, settings.null_values, table.locate)
    if target.null_count() == len(target):
        what = "number" if reading.is_number else "class"
        raise DataError(f"{table.name}, column `{show(target.name)}`: expected a {what} in some row, found none; add some")
    groups, target = read_groups(settings, table, target), leave_out(target, rare)
    return TypedTable(table, frame, target.alias(settings.target), index_classes(target, classes, table), groups)


def list_targets(target: Target, typed: TypedTable, rows: Rows) -> NDArray[Any]:
    """List what a model is trained for: the place of each row's class, int64, or its number, standardized, float32.

    Raises:
        DataError: A number is too far from those of the train rows.

    Shape: returns `(len(rows),)`.
    """
    if target.kind == "classes":
        return typed.y[rows].to_numpy()
    numbers = typed.target[rows].to_numpy()
    with np.errstate(over="ignore"):
        standardized = ((numbers - target.centers[0]) / target.scales[0]).astype(np.float32)
    is_far = ~np.isfinite(standardized)
    if is_far.any():
        row = int(is_far.argmax())
        raise DataError(
            f"{typed.table.locate(int(rows[row]))}, column `{show(target.name)}`: expected a number nearer to those of the train"
            f" rows, found {numbers[row]}; correct it, or leave the row out"
        )
    return standardized


def leave_out(target: pl.Series, rare: pl.Series) -> pl.Series:
    """Return the classes of rows, with the rare classes set to null."""
    if not len(rare):
        return target
    return target.set(target.cast(rare.dtype, strict=False).is_in(rare.implode()).fill_null(False), None)


def index_classes(target: pl.Series, classes: pl.Series | None, table: Table) -> pl.Series:
    """Each row's place in `classes`, 0 for a number; null for rows without a target."""
    if classes is None:
        return (target * 0).cast(pl.Int64)
    known = target.cast(classes.dtype, strict=False)
    y = known.replace_strict(classes, pl.int_range(len(classes), eager=True), default=None, return_dtype=pl.Int64)
    unknown = (y.is_null() & target.is_not_null()).arg_true()
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            f"{table.locate(row)}, column `{show(target.name)}`: expected a class that data.source has too,"
            f" {list_names(map(str, classes))}, found {show(target[row])}; leave the row out, or add such rows to data.source"
        )
    return y
