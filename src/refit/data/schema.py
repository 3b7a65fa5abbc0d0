"""Finds out what a column holds, and turns its cells into that: numbers, booleans, date-times or categories.

The same conversion runs over training files and over raw rows that are scored later.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.files import list_names
from refit.errors import DataError

Kind = Literal["numeric", "boolean", "datetime", "categorical"]
Locate = Callable[[int], str]
"""Says where a row of a column is, for messages: `row 7 of rows.csv`."""
Rows = NDArray[np.int64]
"""Numbers of rows, from 0."""

MISTAKE_SHARE = 0.5
"""Text of which this share reads as numbers (or dates) was meant to be numbers (or dates): the rest are mistakes."""

EXPECTED = {
    "numeric": "a number",
    "boolean": "true or false",
    "datetime": "an ISO date or date-time",
    "categorical": "a text, whole number or boolean",
}
DATE_START = r"^\d{4}-\d{1,2}-\d{1,2}"
DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
ZONE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")


def check_columns(setting: str, wanted: Iterable[str], present: Sequence[str], where: str) -> None:
    """Raise DataError for the first wanted column that `where` lacks, with the nearest name that it has."""
    for name in wanted:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"set {setting} to one of them"
            raise DataError(f"{setting}: expected a column of {where}, found no `{name}` among {list_names(present)}; {hint}")


def take_rows(values: pl.Series, rows: Rows | None, kind: Kind | None = None) -> pl.Series:
    """The cells of these rows of a column, or of all; those known to be numeric as Float64, NaN as null."""
    taken = values if rows is None else values[rows]
    return taken.cast(pl.Float64).fill_nan(None) if kind == "numeric" else taken


def find_kind(values: pl.Series, null_values: Sequence[str], locate: Locate) -> tuple[Kind, pl.Series]:
    """Find what a column holds, over all its rows, and convert it; text is categorical unless all of it reads as something else.

    Raises:
        DataError: It holds infinities or something that no model input can be made of, or text of which `MISTAKE_SHARE` or more,
            but not all, reads as numbers or dates.
    """
    values = _clean(values, null_values, locate)
    kinds: tuple[Kind, ...] = ("boolean",) if values.dtype == pl.Boolean else ("numeric", "datetime", "boolean")
    num_values = values.len() - values.null_count()
    for kind in kinds if num_values else ():
        parsed = _parse(values, kind)
        num_parsed = parsed.len() - parsed.null_count()
        if num_parsed == num_values:
            return kind, _check_finite(parsed, locate)
        if kind != "boolean" and num_parsed >= MISTAKE_SHARE * num_values:
            remedy = "mend the value, add it to data.null_values, or name the column in data.categorical"
            _refuse(values, parsed, kind, locate, remedy)
    return "categorical", _parse(values, "categorical")


def convert_column(values: pl.Series, kind: Kind, null_values: Sequence[str], locate: Locate) -> pl.Series:
    """Convert a column to a known kind: Float64, Boolean, Datetime (UTC, without a zone) or String; NaN becomes null.

    Raises:
        DataError: A value cannot be converted, or is infinite.
    """
    values = _clean(values, null_values, locate)
    parsed = _parse(values, kind)
    if parsed.null_count() > values.null_count():
        _refuse(values, parsed, kind, locate, "mend the value, or add it to data.null_values and train anew")
    return _check_finite(parsed, locate)


def convert_target(values: pl.Series, kind: Kind | None, null_values: Sequence[str], locate: Locate) -> tuple[Kind, pl.Series]:
    """Convert the target to Int64, Boolean or String.

    Args:
        values: The column as it was read.
        kind: What it holds, where that is known; None finds it out.
        null_values: Texts that mean a missing value.
        locate: Where a row is.

    Raises:
        DataError: It holds dates or numbers that are not whole, or what `find_kind` and `convert_column` refuse.
    """
    if kind is None:
        kind, parsed = find_kind(values, null_values, locate)
    else:
        parsed = convert_column(values, kind, null_values, locate)
    target = f"column `{values.name}`: expected strings, integers or booleans as the target, found"
    if kind == "datetime":
        raise DataError(f"{locate(0)}, {target} date-times; name another column in data.target")
    if kind != "numeric":
        return kind, parsed
    whole = _clean(values, null_values, locate).cast(pl.Int64, strict=False)  # exact beyond 2**53, where Float64 is not
    whole = whole.zip_with(whole.is_not_null(), parsed.cast(pl.Int64, strict=False))  # text such as 1.0
    broken = (parsed.is_not_null() & (parsed != whole.cast(pl.Float64)).fill_null(True)).arg_true()
    if broken.len():
        remedy = "Refit classifies: bin the numbers into classes, or name another column in data.target"
        raise DataError(f"{locate(broken[0])}, {target} {values[broken[0]]}, as if it were continuous; {remedy}")
    return kind, whole


def _clean(values: pl.Series, null_values: Sequence[str], locate: Locate) -> pl.Series:
    """The same cells as text, numbers, booleans or date-times, with nulls for what means a missing value."""
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        return values.set(values.is_in(["", *null_values]), None)
    if dtype.is_float():
        return values.fill_nan(None)
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Date, pl.Datetime):
        return values
    expected = "expected numbers, booleans, date-times or text"
    raise DataError(f"{locate(0)}, column `{values.name}`: {expected}, found {dtype}; leave it out with data.features")


def _parse(values: pl.Series, kind: Kind) -> pl.Series:
    """Cells of that kind, and null for what is not."""
    dtype = values.dtype
    if kind == "categorical":
        return _parse_category(values)
    if kind == "datetime":
        if dtype == pl.String:
            return _parse_datetime(values)
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return values.cast(pl.Datetime("us")) if dtype.is_temporal() else _nulls(values, pl.Datetime("us"))
    if dtype.is_temporal():
        return _nulls(values, pl.Boolean if kind == "boolean" else pl.Float64)
    if kind == "numeric":
        return values.cast(pl.Float64, strict=False)
    if dtype == pl.Boolean:
        return values
    if dtype.is_numeric():
        return (values == 1).set((values != 0) & (values != 1), None)
    texts = values.str.to_lowercase()
    return (texts == "true").set(~texts.is_in(["true", "false"]), None)


def _parse_category(values: pl.Series) -> pl.Series:
    """Text that is the same whether a whole number or a boolean came as text, integer or float."""
    if values.dtype.is_float() or values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    texts = values.cast(pl.String)
    if values.dtype.is_float() or values.dtype == pl.String:
        texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1")
    return texts.set(texts.is_in(["True", "TRUE"]), "true").set(texts.is_in(["False", "FALSE"]), "false")


def _parse_datetime(texts: pl.Series) -> pl.Series:
    """ISO dates and date-times; those without a zone are taken as UTC."""
    is_date = texts.str.contains(DATE_START)
    parsed = _nulls(texts, pl.Datetime("us"))
    if not is_date.any():
        return parsed
    texts = texts.str.replace("T", " ", literal=True).str.replace(r"[Zz]$", "+00:00")
    for form in (*DATE_FORMATS, *ZONE_FORMATS):
        if parsed.null_count() == texts.null_count():
            break
        found = texts.str.to_datetime(form, time_unit="us", strict=False)
        if form in ZONE_FORMATS:
            found = found.dt.replace_time_zone(None)
        parsed = parsed.zip_with(parsed.is_not_null(), found)
    return parsed


def _nulls(values: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.repeat(None, values.len(), dtype=dtype, eager=True).alias(values.name)


def _refuse(values: pl.Series, parsed: pl.Series, kind: Kind, locate: Locate, remedy: str) -> None:
    """Raise DataError for the first value that did not become what was expected."""
    broken = (values.is_not_null() & parsed.is_null()).arg_true()
    value = values[broken[0]]
    more = f" (and {broken.len() - 1} more such rows)" if broken.len() > 1 else ""
    raise DataError(f"{locate(broken[0])}, column `{values.name}`: expected {EXPECTED[kind]}, found {value!r}{more}; {remedy}")


def _check_finite(parsed: pl.Series, locate: Locate) -> pl.Series:
    """The numbers, with NaN as null."""
    if parsed.dtype != pl.Float64:
        return parsed
    infinite = parsed.is_infinite()
    if infinite.any():
        row = int(infinite.arg_true()[0])
        raise DataError(
            f"{locate(row)}, column `{parsed.name}`: expected a finite number, found {parsed[row]}; mend it or leave it empty"
        )
    return parsed.fill_nan(None)
