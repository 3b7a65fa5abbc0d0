"""Finds what the target holds: numbers to predict, or classes; a class is exactly what a cell holds."""

import contextlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from refit.data.identities import Rows
from refit.data.signature import Kind, Target
from refit.errors import DataError
from refit.tables.columns import Locate
from refit.tables.conversion import convert_column, convert_numbers, mark_missing, parse_datetimes
from refit.tables.formats import AnyFormat
from refit.tables.schema import MISTAKE_SHARE
from refit.texts import count, list_names, show

OTHER_TARGET = "name another column in data.target"
CONTINUOUS = (
    "correct the value if it is a mistake, set data.task to `regression` to predict numbers, or make the column a category in"
    " data.kinds if each number is a class"
)
FEW_VALUES, MANY_VALUES = 10, 30
"""Whole numbers of at most so many different values are classes, as grades and numbers of doors are; of more values, they are
numbers unless they are like codes of classes. In between, they are classes if these have rows enough to learn from."""
MIN_ROWS_A_CLASS = 3
"""With fewer rows a value on average, most classes could not be in all three splits."""
MIN_ROWS_A_CODE = 10
"""Codes of classes go from 0 or 1 on without a gap, each in several rows; of counts and amounts, the largest are rare."""
MIN_SHARE_OF_FRACTIONS = 0.1
"""Fewer fractions among whole numbers of few values may be mistakes."""
MAX_EXACT = 2.0**53
"""Larger whole numbers are codes: floats, by which numbers are predicted, do not tell them apart."""
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


def convert_known_target(
    values: pl.Series, kind: Kind, is_number: bool, format: AnyFormat | None, null_values: Sequence[str], locate: Locate
) -> pl.Series:
    """Convert the target of other rows as that of the train rows was; raises as `convert_column` does."""
    if is_number:
        return convert_column(values, "numeric", null_values, locate, format)
    return convert_target(values, kind, null_values, locate)[1]


def explain_numbers(numbers: pl.Series) -> str | None:
    """Say why a column is predicted as numbers; None if each of its values is a class.

    Args:
        numbers: The column, read as numbers.
    """
    counts = numbers.filter(numbers.is_finite()).alias("number").value_counts(name="rows").sort("number")
    values, rows = counts["number"], counts["rows"]
    if not len(values) or values.abs().max() > MAX_EXACT:  # type: ignore[operator]
        return None
    is_fraction = values != values.floor()
    if is_fraction.any():
        is_clear = len(values) > FEW_VALUES or int(rows.filter(is_fraction).sum()) >= MIN_SHARE_OF_FRACTIONS * int(rows.sum())
        return f"it holds fractions such as {values.filter(is_fraction)[0]}" if is_clear else None
    reason = f"it holds whole numbers of {len(values):,} different values"
    num_rows = int(rows.sum())
    if len(values) > FEW_VALUES and num_rows < MIN_ROWS_A_CLASS * len(values):
        return f"{reason} in {num_rows:,} rows"
    first, last = values[0], values[-1]
    are_codes = first in (0, 1) and last - first + 1 == len(values) and rows.min() >= MIN_ROWS_A_CODE  # type: ignore[operator]
    return reason if len(values) > MANY_VALUES and not are_codes else None


def sign_numbers(target: pl.Series, train: Rows, table_name: str) -> Target:
    """Find mean and population deviation of the train rows, by which numbers are standardized.

    Raises:
        DataError: They are equal, or too large.
    """
    numbers = target[train].to_numpy()  # numpy adds in one order, whatever the number of threads
    where = f"{table_name}, column `{show(target.name)}`"
    with np.errstate(over="ignore", invalid="ignore"):
        center, scale = float(numbers.mean()), float(numbers.std())
    if not np.isfinite([center, scale]).all():
        raise DataError(
            f"{where}: expected numbers whose mean and deviation fit float64, found values up to {np.abs(numbers).max()};"
            " divide the column"
        )
    if numbers.min() == numbers.max():
        raise DataError(
            f"{where}: expected numbers that differ in the train rows, found only {numbers[0]:.15g}; add other rows, or name"
            " another column in data.target"
        )
    return Target(name=target.name, kind="numbers", centers=[center], scales=[scale])


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
    what, remarks = "number" if target.dtype.is_float() else "class", []
    for mark, num_rows in count_marks(values, target)[:max_shown]:
        remarks.append(
            f"column `{show(values.name)}`: `{show(mark)}` counts as a missing value in {num_rows} rows;"
            f" take it out of data.null_values if it is a {what}"
        )
    if target.dtype.is_float():
        return remarks
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


def tell_rows_without_target(name: str, number: int, are_numbers: bool = False) -> str | None:
    """Say how many rows have no value of the target, if there are such."""
    if not number:
        return None
    advice = "" if are_numbers else "; fill in a name if an empty cell is a class"
    return f"dropped: {count(number, 'row')} without a value of {show(name)}{advice}"


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
