"""Finds the classes of the target; a class is exactly what a cell holds."""

import contextlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

import polars as pl

from refit.data.signature import Kind
from refit.errors import DataError
from refit.tables.columns import Locate
from refit.tables.conversion import convert_column, convert_numbers, mark_missing, parse_datetimes
from refit.tables.schema import MISTAKE_SHARE
from refit.texts import count, list_names, show

OTHER_TARGET = "name another column in data.target"
CONTINUOUS = (
    "Refit trains classifiers: bin the numbers into classes, name another column in data.target, or make this one a"
    " category in data.kinds if each number is a class"
)
BOOLEANS = (["true", "false"], ["True", "False"], ["TRUE", "FALSE"])
"""Spellings of booleans, each of which can be written back exactly."""
WHOLE_NUMBER = r"^(?:0|-?[1-9]\d*)$"
"""A whole number in the spelling that can be written back exactly."""
MISSING_MARKS = (
    *("-", "--", "\u2013", "\u2014", ".", "..", "?", "#n/a", "#n/a n/a", "#na", "<na>", "n/a", "na", "n.a.", "nan", "-nan", "nat"),
    *("null", "nil", "none", "missing", "unknown", "undefined", "not available"),
)
"""Texts that often mean a missing value, in lower case."""


def convert_target(values: pl.Series, kind: Kind | None, null_values: Sequence[str], locate: Locate) -> tuple[Kind, pl.Series]:
    """Convert the target to whole numbers, Boolean or String; a class is exactly what the cell holds.

    Text is read as numbers or booleans only if writing these back gives every text unchanged.

    Args:
        values: The column as it was read.
        kind: What the column holds, if that is known; None finds it.
        null_values: Texts that mean a missing value.
        locate: Where a row is.

    Raises:
        DataError: The column holds dates or fractions, or a value is not of the kind.
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
        values = mark_missing(values, null_values) if dtype.is_numeric() else values
    if kind == "numeric":
        return kind, _convert_whole(values, locate)
    if kind == "categorical" and values.dtype == pl.String:
        return kind, values
    return kind, convert_column(values, kind, null_values, locate)


def remark_on_target(values: pl.Series, target: pl.Series, max_shown: int = 5) -> list[str]:
    """Say what people should know about the classes: texts that count as missing values, and classes that may not be meant.

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
            f"column `{show(values.name)}`: `{show(mark)}` counts as a missing value in {num_rows} rows;"
            " take it out of data.null_values if it is a class"
        )
    classes = target.drop_nulls().cast(pl.String).unique().sort()
    if (unknown := classes.filter(classes.str.strip_chars().str.to_lowercase().is_in(MISSING_MARKS))).len():
        remarks.append(
            f"column `{show(values.name)}`: the classes include {list_names(unknown, max_shown)};"
            " add texts that mean a missing value to data.null_values"
        )
    alike: dict[str, list[str]] = {}
    for label in classes:
        alike.setdefault(_simplify(label), []).append(label)
    for names in [names for names in alike.values() if len(names) > 1][:max_shown]:
        remarks.append(
            f"column `{show(values.name)}`: {list_names(map(quote, names), max_shown)} are different classes;"
            " write them alike if they are the same class"
        )
    return remarks


def tell_rare_classes(name: str, rare: Mapping[str, int], places: Mapping[str, str], max_shown: int = 10) -> str | None:
    """Say which classes of the target are not learned, as they have too few rows.

    Args:
        name: Of the target.
        rare: The number of rows of each.
        places: Where the first of them is.
        max_shown: Classes to name, at most.
    """
    if not rare:
        return None
    told = {label: f", {'first ' * (number > 1)}in {places[label]}" if label in places else "" for label, number in rare.items()}
    named = ", ".join(f"{show(label)} ({number}{told[label]})" for label, number in [*rare.items()][:max_shown])
    more = f" and {len(rare) - max_shown} more" if len(rare) > max_shown else ""
    return (
        f"left out: {count(sum(rare.values()), 'row')} of classes of {show(name)} that have too few rows to be in every split:"
        f" {named}{more}; add rows of these, or correct them if they are mistyped"
    )


def tell_rows_without_target(name: str, number: int) -> str | None:
    """Say how many rows have no class, if there are such."""
    if not number:
        return None
    return f"dropped: {count(number, 'row')} without a value of {show(name)}; fill in a name if an empty cell is a class"


def count_marks(values: pl.Series, converted: pl.Series) -> list[tuple[str, int]]:
    """Count the texts that mean a missing value, most frequent first: each and its number of rows.

    Args:
        values: A column of text as it was read.
        converted: The same column, converted.
    """
    marks = values.filter(converted.is_null()).drop_nulls().str.strip_chars().alias("mark").value_counts(name="rows")
    return marks.filter(pl.col("mark") != "").sort("rows", "mark", descending=[True, False]).rows()


def quote(text: str) -> str:
    """Return a text, as an escaped literal if it could be mistaken for another."""
    return text if text == text.strip() and unicodedata.is_normalized("NFKC", text) else ascii(text)


def _simplify(text: str) -> str:
    """Return a form that ignores letter case, outer blanks, look-alike code points and ways to write a number."""
    text = unicodedata.normalize("NFKC", text).strip().casefold()
    with contextlib.suppress(ValueError):
        return repr(float(re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", text)))
    return text


def _clean_labels(values: pl.Series, null_values: Sequence[str]) -> pl.Series:
    """Return the cells unchanged, but null where they mean a missing value; if all begin with a blank, it is stripped."""
    stripped = values.str.strip_chars()
    values = values.set(stripped.is_in(["", *null_values]), None)
    return values.str.strip_chars_start() if values.str.starts_with(" ").all() else values


def _find_kind_of_labels(values: pl.Series, locate: Locate) -> Kind:
    """Find what text stands for; refuse dates and fractions."""
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
        raise DataError(f"{_name_target(values, row, locate)} {show(values[row])}, which looks continuous; {CONTINUOUS}")
    if texts.len() and not parse_datetimes(texts).has_nulls():
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
    whole = min(wholes, key=pl.Series.null_count)  # Int64, if both convert as many
    broken = (whole.is_null() & values.is_not_null() & (values.is_not_nan() if values.dtype.is_float() else True)).arg_true()
    if broken.len():
        row = int(broken[0])
        where = f"{locate(row)}, column `{show(values.name)}`"
        if values.dtype == pl.String:
            raise DataError(f"{where}: expected a whole number as the class, found {show(values[row])!r}; correct the value")
        raise DataError(f"{_name_target(values, row, locate)} {values[row]}, which looks continuous; {CONTINUOUS}")
    return whole


def _fits_whole(texts: pl.Series) -> bool:
    return any(not texts.cast(dtype, strict=False).has_nulls() for dtype in (pl.Int64, pl.UInt64))


def _is_fraction(texts: pl.Series) -> pl.Series:
    numbers = texts.cast(pl.Float64, strict=False)
    return (numbers.is_finite() & (numbers != numbers.floor())).fill_null(False)


def _name_target(values: pl.Series, row: int, locate: Locate) -> str:
    return f"{locate(row)}, column `{show(values.name)}`: expected strings, integers or booleans as the target, found"
