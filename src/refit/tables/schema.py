"""Finds out what a column holds, and turns its cells into that: numbers, booleans, date-times or categories.

The same conversion runs over training files and over raw rows that are scored later.
"""

import contextlib
import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.signature import Kind
from refit.errors import DataError
from refit.tables.columns import Locate
from refit.tables.formats import AnyFormat, ClockFormat, DateFormat, find_alike, find_formats
from refit.texts import list_names, show

Numbers = NDArray[np.float64]

ZONE = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
"""The end of a time that names its zone."""
MISTAKE_SHARE = 0.5
"""Text of which this share reads as numbers (or dates) was meant to be numbers (or dates): the rest are mistakes."""
LOOK_SHARE = 0.1
"""Text of which this share looks like numbers, dates or times may have been meant to be such; people are told."""
NUM_LOOKED_AT = 1000
"""Cells of which one must look like a number, a date or a time before all are looked at."""

EXPECTED = {
    "numeric": "a number",
    "boolean": "true or false",
    "datetime": "an ISO date or date-time",
    "categorical": "a text, whole number or boolean",
}
MISTAKES = "mend the value, add it to data.null_values, or name the column in data.categorical"
MISTAKE = "mend the value, or add it to data.null_values and train anew"
OTHER_TARGET = "name another column in data.target"
CONTINUOUS = (
    "Refit classifies: bin the numbers into classes, name another column in data.target, or this one in data.categorical if each"
    " number is a class"
)
BOOLEANS = (["true", "false"], ["True", "False"], ["TRUE", "FALSE"])
"""Ways to write booleans, each of which gives back its texts to the letter."""
WHOLE_NUMBER = r"^(?:0|-?[1-9]\d*)$"
"""How a whole number is written that gives back its text to the letter."""
MISSING_MARKS = (
    *("-", "--", "\u2013", "\u2014", ".", "..", "?", "#n/a", "#n/a n/a", "#na", "<na>", "n/a", "na", "n.a.", "nan", "-nan", "nat"),
    *("null", "nil", "none", "missing", "unknown", "undefined", "not available"),
)
"""Texts that often mean a missing value, in lower case."""
DATE_START = r"^\d{4}-\d{1,2}-\d{1,2}"
DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
ZONE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
CLOCK = "%H:%M:%S%.f"
CODE = r"^[+-]?0\d+$"
"""A whole number with a zero before it that a number does not keep."""


@dataclass(frozen=True)
class Reading:
    """How a column is read.

    Args:
        kind: What it holds.
        format: How numbers or dates are written in text; None for what every language reads.
        remark: What people should know of it, in one line.
    """

    kind: Kind
    format: AnyFormat | None = None
    remark: str | None = None


def find_reading(values: pl.Series, null_values: Sequence[str], locate: Locate) -> tuple[Reading, pl.Series]:
    """Find what a column holds, over all its rows, and convert it; text is categorical unless all of it reads as something else.

    Raises:
        DataError: It holds infinities or something that no model input can be made of, or text of which `MISTAKE_SHARE` or more,
            but not all, reads as numbers or dates.
    """
    if values.dtype == pl.String and (numbers := _read_plain_numbers(values, null_values)) is not None:
        floats = numbers.to_numpy()
        if (floats != np.floor(floats)).any() or not _has_codes(values):
            return Reading("numeric"), numbers
    values = _clean(values, null_values, locate)
    if values.dtype == pl.Time:
        reading = Reading("numeric", ClockFormat(), "times of day are read as hours, so that `7:45` is 7.75")
        return reading, convert_column(values, "numeric", null_values, locate, reading.format)
    if values.dtype != pl.String:
        kind: Kind = "boolean" if values.dtype == pl.Boolean else "datetime" if values.dtype.is_temporal() else "numeric"
        return Reading(kind), convert_column(values, kind, null_values, locate)
    counts = values.drop_nulls().alias("text").value_counts(name="rows")
    reading = _read_texts(values, counts, locate) if counts.height else Reading("categorical")
    if reading.kind == "categorical" and _parse_category(counts["text"]).equals(counts["text"]):
        return reading, values
    if reading.kind == "numeric":
        return reading, convert_column(values, "numeric", null_values, locate, reading.format)
    return reading, _parse(values, reading.kind, reading.format)


def convert_column(
    values: pl.Series, kind: Kind, null_values: Sequence[str], locate: Locate, format: AnyFormat | None = None
) -> pl.Series:
    """Convert a column to a known kind: Float64, Boolean, Datetime (UTC, without a zone) or String; NaN becomes null.

    Raises:
        DataError: A value cannot be converted, or is infinite.
    """
    if kind == "numeric":
        return pl.Series(values.name, convert_numbers(values, null_values, locate, format), nan_to_null=True)
    values = _clean(values, null_values, locate)
    parsed = _parse(values, kind, format)
    if parsed.null_count() > values.null_count():
        _refuse(values, parsed, _expect(kind, format), locate, MISTAKE)
    return parsed


def convert_numbers(values: pl.Series, null_values: Sequence[str], locate: Locate, format: AnyFormat | None = None) -> Numbers:
    """Convert a column to float64, missing values to NaN; raises as `convert_column` does.

    Shape: returns (N,).
    """
    parsed = None
    if values.dtype.is_numeric():
        parsed = _mark_missing(values.cast(pl.Float64), null_values)
    elif values.dtype == pl.String and format is None:
        parsed = _read_plain_numbers(values, null_values)
    if parsed is None:
        values = _clean(values, null_values, locate)
        parsed = _parse(values, "numeric", format)
        if parsed.null_count() > values.null_count():
            _refuse(values, parsed, _expect("numeric", format), locate, MISTAKE)
    numbers: Numbers = parsed.to_numpy()
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(
            f"{locate(row)}, column `{show(values.name)}`: expected a finite number, found {numbers[row]};"
            " mend it or leave it empty"
        )
    return numbers


def convert_target(values: pl.Series, kind: Kind | None, null_values: Sequence[str], locate: Locate) -> tuple[Kind, pl.Series]:
    """Convert the target to whole numbers, Boolean or String; a class is what the cell holds, to the letter.

    Text is read as numbers or booleans only where those, written again, give every text as it was.

    Args:
        values: The column as it was read.
        kind: What it holds, where that is known; None finds it out.
        null_values: Texts that mean a missing value.
        locate: Where a row is.

    Raises:
        DataError: It holds dates or numbers that are not whole, or a value is not of the kind.
    """
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = _clean_labels(values, null_values)
        kind = kind or _find_kind_of_labels(values, locate)
    elif dtype.is_temporal() or dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise DataError(f"{_name_target(values, 0, locate)} {dtype}; {OTHER_TARGET}")
    else:
        kind = kind or ("boolean" if dtype == pl.Boolean else "numeric")
        values = _mark_missing(values, null_values) if dtype.is_numeric() else values
    if kind == "numeric":
        return kind, _convert_whole(values, locate)
    if kind == "categorical" and values.dtype == pl.String:
        return kind, values
    return kind, convert_column(values, kind, null_values, locate)


def remark_on_target(values: pl.Series, target: pl.Series, max_shown: int = 5) -> list[str]:
    """Say what people should know of the classes: texts that count as missing values, and classes that may not be meant.

    Args:
        values: The column as it was read.
        target: What `convert_target` made of it.
        max_shown: Texts named in a remark, at most.
    """
    if values.dtype.is_numeric():
        values = (values.fill_nan(None) if values.dtype.is_float() else values).cast(pl.String)
    if values.dtype != pl.String:
        return []
    remarks = []
    for mark, num_rows in count_marks(values, target)[:max_shown]:
        remarks.append(
            f"column `{show(values.name)}`: `{show(mark)}` counts as a missing value, in {num_rows} rows;"
            " take it out of data.null_values if it is a class"
        )
    classes = target.drop_nulls().cast(pl.String).unique().sort()
    if (unknown := classes.filter(classes.str.strip_chars().str.to_lowercase().is_in(MISSING_MARKS))).len():
        remarks.append(
            f"column `{show(values.name)}`: {list_names(unknown, max_shown)} counts as a class;"
            " add it to data.null_values if it means a missing value"
        )
    alike: dict[str, list[str]] = {}
    for label in classes:
        alike.setdefault(_simplify(label), []).append(label)
    for names in [names for names in alike.values() if len(names) > 1][:max_shown]:
        remarks.append(
            f"column `{show(values.name)}`: {list_names(map(quote, names), max_shown)} are different classes;"
            " write them alike if they are one"
        )
    return remarks


def count_marks(values: pl.Series, converted: pl.Series) -> list[tuple[str, int]]:
    """Count the texts that mean a missing value, most frequent first: each and its number of rows.

    Args:
        values: A column of text as it was read.
        converted: What became of it.
    """
    marks = values.filter(converted.is_null()).drop_nulls().str.strip_chars().alias("mark").value_counts(name="rows")
    return marks.filter(pl.col("mark") != "").sort("rows", "mark", descending=[True, False]).rows()


def _simplify(text: str) -> str:
    """What a class is apart from letter case, blanks, code points that look alike, and ways to write a number."""
    text = unicodedata.normalize("NFKC", text).strip().casefold()
    with contextlib.suppress(ValueError):
        return repr(float(text))
    return text


def quote(text: str) -> str:
    """Return a text, with its code points where it may look like another."""
    return text if text == text.strip() and unicodedata.is_normalized("NFKC", text) else ascii(text)


def _clean_labels(values: pl.Series, null_values: Sequence[str]) -> pl.Series:
    """The cells to the letter, null where they mean a missing value; a blank after every comma of a file is none of theirs."""
    stripped = values.str.strip_chars()
    values = values.set(stripped.is_in(["", *null_values]), None)
    return values.str.strip_chars_start() if values.str.starts_with(" ").all() else values


def _find_kind_of_labels(values: pl.Series, locate: Locate) -> Kind:
    """What text stands for; refuses dates, and numbers that are not whole."""
    texts = values.drop_nulls().unique()
    if any(texts.is_in(words).all() for words in BOOLEANS) and texts.len():
        return "boolean"
    numbers = texts.cast(pl.Float64, strict=False)
    if not numbers.has_nulls() and texts.str.contains(WHOLE_NUMBER).all() and _fits_whole(texts):
        return "numeric"
    is_fraction = _is_fraction(values)
    num_fractions, num_values = int(is_fraction.sum()), values.len() - values.null_count()
    if num_fractions and (not numbers.has_nulls() or num_fractions >= MISTAKE_SHARE * num_values):
        row = int(is_fraction.arg_true()[0])
        raise DataError(f"{_name_target(values, row, locate)} {show(values[row])}, as if it were continuous; {CONTINUOUS}")
    if texts.len() and not _parse_datetime(texts).has_nulls():
        raise DataError(f"{_name_target(values, 0, locate)} date-times; {OTHER_TARGET}")
    return "categorical"


def _convert_whole(values: pl.Series, locate: Locate) -> pl.Series:
    """Whole numbers, exact beyond 2**53, where floats are not: Int64, or UInt64 where they need it."""
    if values.dtype == pl.String:
        given = values.set(~values.str.contains(WHOLE_NUMBER), None)
    else:
        numbers = pl.Series(convert_numbers(values, (), locate), nan_to_null=True)
        given = values.set((numbers != numbers.floor()) | numbers.is_null(), None)
    wholes = [given.cast(dtype, strict=False) for dtype in (pl.Int64, pl.UInt64)]
    whole = min(wholes, key=pl.Series.null_count)  # the first of them, where both do
    broken = (whole.is_null() & values.is_not_null() & (values.is_not_nan() if values.dtype.is_float() else True)).arg_true()
    if broken.len():
        row = int(broken[0])
        where = f"{locate(row)}, column `{show(values.name)}`"
        if values.dtype == pl.String:
            raise DataError(f"{where}: expected a whole number as the class, found {show(values[row])!r}; mend the value")
        raise DataError(f"{_name_target(values, row, locate)} {values[row]}, as if it were continuous; {CONTINUOUS}")
    return whole


def _fits_whole(texts: pl.Series) -> bool:
    return any(not texts.cast(dtype, strict=False).has_nulls() for dtype in (pl.Int64, pl.UInt64))


def _is_fraction(texts: pl.Series) -> pl.Series:
    numbers = texts.cast(pl.Float64, strict=False)
    return (numbers.is_finite() & (numbers != numbers.floor())).fill_null(False)


def _name_target(values: pl.Series, row: int, locate: Locate) -> str:
    return f"{locate(row)}, column `{show(values.name)}`: expected strings, integers or booleans as the target, found"


def _read_plain_numbers(values: pl.Series, null_values: Sequence[str]) -> pl.Series | None:
    """The numbers of text in which all that is there is one, as most languages write it, and finite; else None."""
    parsed = values.cast(pl.Float64, strict=False)
    if parsed.null_count() > values.null_count() or len(read_marks(tuple(null_values), "numeric")):
        return None
    return None if np.isinf(parsed.to_numpy()).any() else parsed


@functools.cache
def read_marks(texts: tuple[str, ...], kind: Literal["numeric", "datetime"]) -> pl.Series:
    """Those of the texts that mean a missing value which are numbers or date-times too, such as -999."""
    marks = _parse(pl.Series(texts, dtype=pl.String).str.strip_chars(), kind).drop_nulls()
    return marks.drop_nans() if kind == "numeric" else marks


def _mark_missing(values: pl.Series, null_values: Sequence[str]) -> pl.Series:
    """Numbers or date-times, null for those that mean a missing value."""
    kind: Literal["numeric", "datetime"] = "datetime" if values.dtype.is_temporal() else "numeric"
    marks = read_marks(tuple(null_values), kind)
    return values.set(_parse(values, kind).is_in(marks.implode()).fill_null(False), None) if len(marks) else values


def _has_codes(texts: pl.Series) -> bool:
    """Whether some whole numbers begin with a zero, as postcodes do."""
    return bool(texts.str.contains(CODE).any())


def _read_texts(values: pl.Series, counts: pl.DataFrame, locate: Locate) -> Reading:
    """How a column of text is read, and what it looks like though it is not read so.

    Args:
        values: All its cells, null where they mean a missing value.
        counts: Its different texts, and the `rows` of each.
        locate: Says where a row is.
    """
    texts = counts["text"]
    kinds: tuple[Kind, ...] = ("numeric", "datetime", "boolean")
    parsed = {kind: _parse(texts, kind) for kind in kinds}
    if _count_rows(counts, parsed["numeric"].is_not_null()) >= MISTAKE_SHARE and _has_codes(texts):
        example = texts.filter(texts.str.contains(CODE)).min()
        return Reading("categorical", remark=f"categories, as numbers lose the zeros before `{show(example)}`")
    for kind in kinds:
        if not parsed[kind].has_nulls():
            return Reading(kind, remark=_remark_on_zones(texts) if kind == "datetime" else None)
    formats = find_formats(texts)
    if len(formats) == 1:
        return Reading("datetime" if isinstance(formats[0], DateFormat) else "numeric", formats[0], _describe(values, formats))
    for kind in ("numeric", "datetime"):
        if _count_rows(counts, parsed[kind].is_not_null()) >= MISTAKE_SHARE:
            _refuse(values, _parse(values, kind), EXPECTED[kind], locate, MISTAKES)
    if formats:
        return Reading("categorical", remark=_describe(values, formats))
    return Reading("categorical", remark=_look_at(values, counts, locate))


def _remark_on_zones(texts: pl.Series) -> str | None:
    """What to say of times of which only some name their zone."""
    has_zone = texts.str.contains(ZONE)
    if has_zone.all() or not has_zone.any():
        return None
    return f"times without a zone, such as `{show(texts.filter(~has_zone).min())}`, are taken as UTC; others name theirs"


def _look_at(values: pl.Series, counts: pl.DataFrame, locate: Locate) -> str | None:
    """What to say of text of which a part looks like numbers, dates or times; refuses what was meant to be such."""
    sample = values.drop_nulls().gather_every(max(1, values.len() // NUM_LOOKED_AT))
    if not find_alike(sample).any():
        return None
    is_alike = find_alike(counts["text"])
    share = _count_rows(counts, is_alike)
    if share < LOOK_SHARE:
        return None
    alike, others = (values.filter(values.is_in(counts["text"].filter(chosen))) for chosen in (is_alike, ~is_alike))
    formats = find_formats(alike.unique())
    if share >= MISTAKE_SHARE and len(formats) == 1:
        _refuse(values, formats[0].read(values), formats[0].describe(), locate, MISTAKES)
    rest = f"`, and others do not, such as `{show(others[0])}`" if others.len() else "`, but in no one way that is known"
    return (
        f"categories, though {share:.0%} of its values look like numbers or dates, such as"
        f" `{show(alike[0])}{rest}; mend these, add them to data.null_values if they mean a missing value, or name the column in"
        " data.categorical if categories are meant"
    )


def _describe(values: pl.Series, formats: Sequence[AnyFormat]) -> str:
    """How a column is read, by an example; or how it may be, where that is open."""
    texts = values.drop_nulls().head(NUM_LOOKED_AT)
    text = max(texts, key=lambda text: (len({format.read(pl.Series([text]))[0] for format in formats}), len(text)))
    shown = [_show_value(format.read(pl.Series([text]))[0]) for format in formats]
    if len(formats) == 1:
        return f"`{show(text)}` is read as {shown[0]}"
    return (
        f"categories, as `{show(text)}` may mean {' or '.join(shown)}; write it in one of these ways, or name the column in"
        " data.categorical if categories are meant"
    )


def _show_value(value: float | datetime) -> str:
    return str(value).removesuffix(" 00:00:00") if isinstance(value, datetime) else f"{value:.15g}"


def _expect(kind: Kind, format: AnyFormat | None) -> str:
    return EXPECTED[kind] if format is None else format.describe()


def _count_rows(counts: pl.DataFrame, chosen: pl.Series) -> float:
    """The share of the rows whose text is chosen."""
    return int(counts["rows"].filter(chosen).sum()) / int(counts["rows"].sum())


def _clean(values: pl.Series, null_values: Sequence[str], locate: Locate) -> pl.Series:
    """The same cells as text, numbers, booleans or date-times, with nulls for what means a missing value."""
    dtype = values.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        return values.set(values.is_in(["", *null_values]), None)
    if dtype.is_float():
        values = values.fill_nan(None)
    if dtype.is_numeric() or dtype in (pl.Date, pl.Datetime):
        return _mark_missing(values, null_values)
    if dtype in (pl.Boolean, pl.Time):
        return values
    expected = "expected numbers, booleans, date-times or text"
    raise DataError(f"{locate(0)}, column `{show(values.name)}`: {expected}, found {dtype}; leave it out with data.features")


def _parse(values: pl.Series, kind: Kind, format: AnyFormat | None = None) -> pl.Series:
    """Cells of that kind, and null for what is not."""
    dtype = values.dtype
    if kind == "categorical":
        return _parse_category(values)
    if kind == "datetime":
        if dtype == pl.String:
            return _parse_datetime(values) if format is None else _fill(format.read(values), _parse_datetime(values))
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


def _fill(values: pl.Series, others: pl.Series) -> pl.Series:
    return values.zip_with(values.is_not_null(), others)


def _parse_category(values: pl.Series) -> pl.Series:
    """Text that is the same whether a whole number or a boolean came as text, integer or float."""
    if values.dtype.is_float() or values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    texts = values.dt.to_string(CLOCK) if values.dtype == pl.Time else values.cast(pl.String)
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


def _refuse(values: pl.Series, parsed: pl.Series, expected: str, locate: Locate, remedy: str) -> None:
    """Raise DataError for the first value that did not become what was expected."""
    broken = (values.is_not_null() & parsed.is_null()).arg_true()
    value = show(values[int(broken[0])])
    more = f" (and {broken.len() - 1} more such rows)" if broken.len() > 1 else ""
    where = f"{locate(int(broken[0]))}, column `{show(values.name)}`"
    raise DataError(f"{where}: expected {expected}, found {value!r}{more}; {remedy}")
