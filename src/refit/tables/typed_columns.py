"""Converts the columns of a table that the settings name to learn from."""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from refit.data.signature import Kind
from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.ambiguity import choose_date, choose_number, find_decimal_signs
from refit.tables.columns import check_columns, take_column
from refit.tables.conversion import clean_cells, convert_column, read_marks
from refit.tables.formats import AnyFormat, ClockFormat, DateFormat, NumberFormat, read_notation
from refit.tables.row_labels import find_label, remark_on_counting
from refit.tables.schema import Reading, describe_formats, find_reading, read_as
from refit.tables.sources.dialects import SEPARATORS, name_separator
from refit.tables.sources.table_source import Table
from refit.texts import list_names, show

KINDS: dict[str, Kind] = {"number": "numeric", "category": "categorical", "date": "datetime", "text": "text"}
"""What columns hold, by the names that people give."""
NUM_ROWS, MIN_ROWS = 100, 3
"""So many rows show that they are single cells."""
ADVICE = ("to train on it as it is, add: ", "or, if the other meaning is right: ")
"""How lines of a refusal begin that end in flags."""
HUNDREDS = "hundreds such as `512` stand beside it"


@dataclass(frozen=True)
class Features:
    """The columns to learn from.

    Args:
        readings: How each is read.
        frame: All of them, converted but for those that hold numbers already.
        left_out: Columns that only tell rows apart, and why each is taken for such; none if there is no other column.
        faults: What is wrong with columns that cannot be read.
    """

    readings: dict[str, Reading]
    frame: pl.DataFrame
    left_out: dict[str, str]
    faults: list[DataError]


def type_features(settings: DataSettings, table: Table, has_target: bool = True) -> Features:
    """Find how each column to learn from is read, and convert it; raises DataError if columns cannot be chosen like this."""
    _check_width(settings, table)
    readings, converted = dict[str, Reading](), dict[str, pl.Series]()
    left_out, faults = dict[str, str](), list[DataError]()
    has_marks = len(read_marks(tuple(settings.null_values), "numeric")) > 0
    starts = [*itertools.accumulate(part.num_rows for part in table.parts)]
    for name in _choose_features(settings, table, has_target):
        values = take_column(table.frame, name)
        try:
            reading, typed = read_column(name, values, settings, table)
        except DataError as fault:
            faults.append(fault)
            continue
        is_chosen = settings.features is not None or name in settings.kinds
        if not is_chosen and (reason := find_label(name, values, typed, reading, starts)):
            left_out[name] = reason
        elif told := remark_on_counting(name, typed, reading, starts):
            reading = replace(reading, remark="; ".join(filter(None, [reading.remark, told])))
        # Numbers stay as they are: a second copy would double what a table of numbers takes.
        is_kept = reading.kind == "numeric" and values.dtype.is_numeric() and not has_marks
        readings[name], converted[name] = reading, values if is_kept else typed
    faults += settle_formats(readings, converted, settings, table)
    if all(values.null_count() == len(values) for name, values in converted.items() if name not in left_out):
        left_out = {}
    for name in left_out:
        del readings[name], converted[name]
    return Features(readings, pl.DataFrame(converted), left_out, faults)


def _check_width(settings: DataSettings, table: Table) -> None:
    """Raise DataError if all rows are one cell in which others stand, as where each whole row is in quotes."""
    if table.frame.width != 1 or table.dialect is None or table.frame.dtypes != [pl.String]:
        return
    rows = table.frame.to_series().drop_nulls().head(NUM_ROWS)
    for separator in SEPARATORS:
        nums = rows.str.count_matches(separator, literal=True)
        if len(rows) >= MIN_ROWS and nums.n_unique() == 1 and nums[0]:
            why = "set data.separator to it" if settings.separator else "take away the quotes around whole rows"
            raise DataError(
                f"{table.name}: expected {name_separator(separator)} between cells, found one a row, such as {show(rows[0])!r};"
                f" {why}"
            )


def read_column(name: str, values: pl.Series, settings: DataSettings, table: Table) -> tuple[Reading, pl.Series]:
    """Read a column as the settings say, or as it is."""
    said, notation = settings.kinds.get(name), settings.formats.get(name)
    if notation is None:
        if said is None:
            return find_reading(values, settings.null_values, table.locate)
        return read_as(values, KINDS[said], settings.null_values, table.locate)
    cells = clean_cells(values, settings.null_values, table.locate)
    format = read_notation(notation, cells.drop_nulls().unique()) if cells.dtype == pl.String else None
    if format is None:
        raise DataError(
            f"data.formats, column `{show(name)}`: expected text, and a date as `%d/%m/%Y` or a number as `1.234,5`,"
            f" found {cells.dtype} and {show(notation)!r}; change it"
        )
    if said is not None and KINDS[said] != _find_kind(format):
        raise DataError(
            f"data.kinds, column `{show(name)}`: expected a kind that is written as data.formats says, {show(notation)!r}, found"
            f" `{said}`; drop either"
        )
    return _apply_format(values, format, settings, table, None)


def _apply_format(
    values: pl.Series, format: AnyFormat, settings: DataSettings, table: Table, remark: str | None
) -> tuple[Reading, pl.Series]:
    kind = _find_kind(format)
    return Reading(kind, format, remark), convert_column(values, kind, settings.null_values, table.locate, format)


def _find_kind(format: AnyFormat) -> Kind:
    return "datetime" if isinstance(format, DateFormat) else "numeric"


def settle_formats(
    readings: dict[str, Reading], converted: dict[str, pl.Series], settings: DataSettings, table: Table
) -> list[DataError]:
    """Read columns that have several readings by their cells or their neighbours; say what is wrong with those still ambiguous."""
    dates = [reading.format for reading in readings.values() if reading.format is not None]
    faults, signs = [], None
    for name in [name for name, reading in readings.items() if reading.choices]:
        values, reading = take_column(table.frame, name), readings[name]
        texts = clean_cells(values, settings.null_values, table.locate)
        numbers = [choice for choice in reading.choices if isinstance(choice, NumberFormat)]
        if numbers and signs is None:
            signs = _find_decimal_signs(readings, settings, table)
        chosen = choose_number(numbers, texts, signs or set()) if numbers else choose_date(reading.choices, dates)
        if chosen is None:
            has_semicolons = table.dialect is not None and table.dialect.separator == ";"
            if reading.kind == "categorical" or (has_semicolons and numbers[0].thousands):
                faults.append(_refuse_meanings(name, texts, reading, table))
                del readings[name], converted[name]
            else:
                readings[name] = replace(reading, remark=_offer_second(name, texts, reading, settings))
        elif reading.kind == "categorical" or chosen != reading.choices[0]:
            is_alike = not isinstance(chosen, NumberFormat) or signs == {chosen.decimal}
            remark = f"{describe_formats(texts, [chosen])}, as {'other columns are written' if is_alike else HUNDREDS}"
            readings[name], converted[name] = _apply_format(values, chosen, settings, table, remark)
    return faults


def _refuse_meanings(name: str, texts: pl.Series, reading: Reading, table: Table) -> DataError:
    kind = "numbers" if isinstance(reading.choices[0], NumberFormat) else "dates"
    return DataError(
        f"{table.name}, column `{show(name)}`: expected {kind} with one meaning, found that"
        f" {describe_formats(texts, reading.choices)}; name the right notation in data.formats, or make the column a"
        " category in data.kinds",
        remedies=[{"formats": {name: choice.notation}} for choice in reading.choices],
    )


def _offer_second(name: str, texts: pl.Series, reading: Reading, settings: DataSettings) -> str:
    flags = write_flags({"data": {"formats": {**settings.formats, name: reading.choices[1].notation}}})
    return f"{describe_formats(texts, reading.choices)}, and is read as the first; add {shlex.join(flags)} for the second"


def _find_decimal_signs(readings: Mapping[str, Reading], settings: DataSettings, table: Table) -> set[str]:
    """Find the decimal signs of columns that can be read in one way only, or whose notation is given."""
    signs = set[str]()
    for name, reading in readings.items():
        values = take_column(table.frame, name)
        if reading.kind != "numeric" or reading.choices or isinstance(reading.format, ClockFormat) or values.dtype != pl.String:
            continue
        if name in settings.formats and isinstance(reading.format, NumberFormat):
            signs.add(reading.format.decimal)
        else:
            signs |= find_decimal_signs(values)
    return signs


def raise_faults(settings: DataSettings, faults: Sequence[DataError]) -> None:
    """Raise one DataError for all faults, with the flags that would let training begin, if there are such for each."""
    if not faults:
        return
    lines = [line for fault in faults for line in fault.args]
    remedies = merge_remedies(settings, faults)
    for start, remedy in zip(ADVICE, remedies, strict=False):
        lines.append(start + shlex.join(write_flags({"data": remedy})))
    raise DataError(*lines, remedies=remedies)


def merge_remedies(settings: DataSettings, faults: Sequence[DataError]) -> list[dict[str, Any]]:
    """The settings of `data` with which nothing is wrong any more: two where a column may be read in two ways; none if no such."""
    if not faults or not all(fault.remedies for fault in faults):
        return []
    num_ways = max(len(fault.remedies) for fault in faults)
    return [_merge(settings, [fault.remedies[min(way, len(fault.remedies) - 1)] for fault in faults]) for way in range(num_ways)]


def _merge(settings: DataSettings, remedies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for remedy in remedies:
        for name, more in remedy.items():
            known = merged.setdefault(name, getattr(settings, name))
            merged[name] = {**known, **more} if isinstance(more, dict) else [*dict.fromkeys([*known, *more])]
    return merged


def write_flags(settings: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Given settings, by section, as words of a command."""
    words = []
    for name, value in settings.items():
        if prefix == "--" and isinstance(value, Mapping):
            words += write_flags(value, f"--{name}.")
        else:
            words += [prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
    return words


def _choose_features(settings: DataSettings, table: Table, has_target: bool) -> list[str]:
    """The columns to learn from."""
    present = table.frame.columns
    features = settings.features
    if has_target:
        check_columns("data.target", [settings.target], present, table.name)
    check_columns("data.features", features or [], present, table.name)
    check_columns("data.kinds", settings.kinds, present, table.name)
    check_columns("data.exclude", settings.exclude, present, table.name)
    check_columns("data.formats", settings.formats, present, table.name)
    if both := [name for name in features or [] if name in settings.exclude]:
        raise DataError(f"data.exclude: expected columns that data.features does not name, found {list_names(both)}; drop either")
    if features is None:
        time_column = settings.time_column if settings.split == "time" else None
        apart = {settings.target, settings.group_column, time_column, *table.outer, *settings.exclude}
        features = [name for name in present if name not in apart]
    if not features:
        raise DataError(f"{table.name}: expected a column to learn from, found {list_names(present)}; name some in data.features")
    if settings.target in features:
        raise DataError(f"data.features: expected columns to learn from, found the target `{show(settings.target)}`; take it out")
    if settings.group_column in [*features, settings.target]:
        raise DataError(
            f"data.group_column: expected a column that is neither learned from nor the target, found `{settings.group_column}`;"
            " take it out of data.features, or name another"
        )
    return list(dict.fromkeys(features))
