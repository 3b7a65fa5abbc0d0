"""Converts the cells of a column to a known kind: numbers, booleans, date-times, categories or texts.

The same conversion runs over training files and over raw rows that are scored later.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.signature import Kind
from refit.errors import DataError
from refit.tables.columns import Locate
from refit.tables.formats import COMPACT_DATE, AnyFormat, ClockFormat, DateFormat, find_formats
from refit.texts import list_names, show

Numbers = NDArray[np.float64]

EXPECTED = {
    "numeric": "a number",
    "boolean": "true or false",
    "datetime": "an ISO date or date-time",
    "categorical": "a text, whole number or boolean",
    "text": "a text",
}
MISTAKE = "correct the value, or add it to data.null_values and train again"
DATE_START = r"^\d{4}-\d{1,2}-\d{1,2}"
DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
ZONE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
CLOCK = "%H:%M:%S%.f"
MARK = r"^(?:[^\d]{2,40}|[^\d\pL])$"
"""Without digits, and not a single letter, which may be a code."""
MAX_MARKS = 5
"""So many different texts like this among numbers may each mean a missing value."""
MAX_MISTAKES_SHARE = 0.1
"""So few cells, of whatever text, are mistakes among numbers of which there are too many to be categories."""
MIN_NUMBERS = 20


def convert_column(
    values: pl.Series, kind: Kind, null_values: Sequence[str], locate: Locate, format: AnyFormat | None = None
) -> pl.Series:
    """Convert a column to a known kind: Float64, Boolean, Datetime (UTC, without a zone) or String; NaN becomes null.

    Raises:
        DataError: A value cannot be converted, or is infinite.
    """
    if kind == "numeric":
        return pl.Series(values.name, convert_numbers(values, null_values, locate, format), nan_to_null=True)
    values = clean_cells(values, null_values, locate)
    parsed = parse_cells(values, kind, format)
    if parsed.null_count() > values.null_count():
        refuse_cell(values, parsed, _expect(kind, format), locate, MISTAKE)
    return parsed


def convert_numbers(values: pl.Series, null_values: Sequence[str], locate: Locate, format: AnyFormat | None = None) -> Numbers:
    """Convert a column to float64, missing values to NaN; raises as `convert_column` does.

    Shape: returns (N,).
    """
    parsed = None
    if values.dtype.is_numeric():
        parsed = mark_missing(values.cast(pl.Float64), null_values)
    elif values.dtype == pl.String and format is None:
        parsed = read_plain_numbers(values, null_values)
    if parsed is None:
        values = clean_cells(values, null_values, locate)
        parsed = parse_cells(values, "numeric", format)
        if parsed.null_count() > values.null_count():
            refuse_cell(values, parsed, _expect("numeric", format), locate, MISTAKE)
    numbers: Numbers = parsed.to_numpy()
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(
            f"{locate(row)}, column `{show(values.name)}`: expected a finite number, found {numbers[row]};"
            " correct it or leave it empty",
            remedies=[{"exclude": [values.name]}],
        )
    return numbers


def read_plain_numbers(values: pl.Series, null_values: Sequence[str]) -> pl.Series | None:
    """Read text whose cells are all finite plain numbers or empty; None if one is not, or if numbers may mean missing values."""
    parsed = values.cast(pl.Float64, strict=False)
    if parsed.null_count() > values.null_count() or len(read_marks(tuple(null_values), "numeric")):
        return None
    return None if np.isinf(parsed.to_numpy()).any() else parsed


@functools.cache
def read_marks(texts: tuple[str, ...], kind: Literal["numeric", "datetime"]) -> pl.Series:
    """Read those texts for a missing value that are numbers or date-times too, such as -999."""
    marks = parse_cells(pl.Series(texts, dtype=pl.String).str.strip_chars(), kind).drop_nulls()
    return marks.drop_nans() if kind == "numeric" else marks


def mark_missing(values: pl.Series, null_values: Sequence[str]) -> pl.Series:
    """Return numbers or date-times, with those that mean a missing value set to null."""
    kind: Literal["numeric", "datetime"] = "datetime" if values.dtype.is_temporal() else "numeric"
    marks = read_marks(tuple(null_values), kind)
    return values.set(parse_cells(values, kind).is_in(marks.implode()).fill_null(False), None) if len(marks) else values


def clean_cells(values: pl.Series, null_values: Sequence[str], locate: Locate) -> pl.Series:
    """Return the same cells as text, numbers, booleans or date-times, with null for those that mean a missing value."""
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        return values.set(values.is_in(["", *null_values]), None)
    if dtype.is_float():
        values = values.fill_nan(None)
    if dtype.is_numeric() or dtype in (pl.Date, pl.Datetime):
        return mark_missing(values, null_values)
    if dtype in (pl.Boolean, pl.Time):
        return values
    expected = "expected numbers, booleans, date-times or text"
    raise DataError(
        f"{locate(0)}, column `{show(values.name)}`: {expected}, found {dtype}; leave it out with data.exclude",
        remedies=[{"exclude": [values.name]}],
    )


def parse_cells(values: pl.Series, kind: Kind, format: AnyFormat | None = None) -> pl.Series:
    """Read cells as this kind; null for those that are not."""
    dtype = values.dtype
    if kind == "text" and dtype == pl.String:
        return values
    if kind in ("categorical", "text"):
        return parse_categories(values)
    if kind == "datetime":
        if dtype.is_integer() and isinstance(format, DateFormat) and format.pattern == COMPACT_DATE:
            return format.read(values.cast(pl.String))
        if dtype == pl.String:
            return parse_datetimes(values) if format is None else _fill(format.read(values), parse_datetimes(values))
        if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return values.cast(pl.Datetime("us")) if dtype.is_temporal() and dtype != pl.Time else _nulls(values, pl.Datetime("us"))
    if dtype == pl.Time and kind == "numeric":
        return ClockFormat().read(values.dt.to_string(CLOCK))
    if dtype.is_temporal():
        return _nulls(values, pl.Boolean if kind == "boolean" else pl.Float64)
    if kind == "numeric":
        return values.cast(pl.Float64, strict=False) if format is None or dtype != pl.String else format.read(values)
    if dtype == pl.Boolean:
        return values
    if dtype.is_numeric():
        return (values == 1).set((values != 0) & (values != 1), None)
    texts = values.str.to_lowercase()
    return (texts == "true").set(~texts.is_in(["true", "false"]), None)


def parse_categories(values: pl.Series) -> pl.Series:
    """Return text; whole numbers and booleans give the same text, whether they came as text, integer or float."""
    if values.dtype.is_float() or values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    texts = values.dt.to_string(CLOCK) if values.dtype == pl.Time else values.cast(pl.String)
    if values.dtype.is_float() or values.dtype == pl.String:
        texts = texts.str.replace(r"^(-?\d+)\.0+$", "$1")
    return texts.set(texts.is_in(["True", "TRUE"]), "true").set(texts.is_in(["False", "FALSE"]), "false")


def parse_datetimes(texts: pl.Series) -> pl.Series:
    """Read ISO dates and date-times; those without a zone are taken as UTC."""
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


def refuse_cell(values: pl.Series, parsed: pl.Series, expected: str, locate: Locate, remedy: str) -> None:
    """Raise DataError for the first value that could not be parsed as expected."""
    broken = (values.is_not_null() & parsed.is_null()).arg_true()
    texts = values.gather(broken).cast(pl.String).unique(maintain_order=True)
    marks = texts.filter(texts.str.contains(MARK))
    value = show(values[int(broken[0])])
    more = f" (and {broken.len() - 1} more such rows)" if broken.len() > 1 else ""
    where = f"{locate(int(broken[0]))}, column `{show(values.name)}`"
    if len(texts) > 1:
        more += f", also {list_names(texts[1:], MAX_MARKS)}"
    settings: dict[str, Any] = {"kinds": {values.name: "category"}}
    if _are_marks(marks, texts, values):
        settings = {"null_values": marks.to_list()}
    elif _are_mistakes(texts, broken.len(), parsed):
        settings = {"null_values": texts.to_list()}
    raise DataError(f"{where}: expected {expected}, found {value!r}{more}; {remedy}", remedies=[settings])


def _are_marks(marks: pl.Series, broken: pl.Series, values: pl.Series) -> bool:
    """Whether a few texts may mean missing values, so that all others are written in one way."""
    if not 0 < len(marks) <= MAX_MARKS:
        return False
    return len(marks) == len(broken) or len(find_formats(values.filter(~values.is_in(marks.implode())).drop_nulls().unique())) == 1


def _are_mistakes(broken: pl.Series, num_rows: int, parsed: pl.Series) -> bool:
    """Whether a few texts are better missed than all numbers or dates of their column, and mean none in other columns."""
    num_known = parsed.len() - parsed.null_count()
    is_few = len(broken) <= MAX_MARKS and num_rows <= MAX_MISTAKES_SHARE * (num_known + num_rows)
    if not is_few or parsed.dtype == pl.Boolean or parsed.n_unique() < min(MIN_NUMBERS, num_known // 2):
        return False
    return not any(len(read_marks(tuple(broken), kind)) for kind in ("numeric", "datetime"))


def _fill(values: pl.Series, others: pl.Series) -> pl.Series:
    return values.zip_with(values.is_not_null(), others)


def _nulls(values: pl.Series, dtype: pl.DataType | type[pl.DataType]) -> pl.Series:
    return pl.repeat(None, values.len(), dtype=dtype, eager=True).alias(values.name)


def _expect(kind: Kind, format: AnyFormat | None) -> str:
    return EXPECTED[kind] if format is None else format.describe()
