"""What people should know about the columns of a table: how they were read, and from which nothing can be learned."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from refit.data.identities import Rows
from refit.tables.columns import MAX_CELLS, stack_numbers, take_column, take_rows
from refit.tables.conversion import Numbers
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, DatetimeColumn, NumericColumn, TextColumn
from refit.tables.row_labels import is_named_like_id, split_name
from refit.tables.schema import Reading
from refit.tables.targets import count_marks, quote
from refit.texts import count, show

NUM_LOOKED_AT = 1000
"""Train rows looked at first: for most columns, they suffice to show that it is not a copy of the target."""
MIN_ROWS_A_VALUE, MIN_SHARE_OF_LEAK = 5, 0.95
"""So many rows of a value, and so many such rows, show that it is no chance if each value goes with one class."""
MIN_CORRELATION_OF_LEAK = 0.9999
"""Another column rarely goes so closely with a number unless one was computed from the other."""
LEAVE_OUT = "leave it out with data.exclude unless it is known before the class is"
LUMPED_SHARE = 0.1
"""A remark is made if this share of the train rows has categories without an input of their own."""
MAX_EXACT = 2.0**53
"""Up to here, every whole number has a float of its own."""
MAX_EXACT_LENGTH = 24
"""The longest text that is needed to write a float; a longer one may have digits that no float keeps."""
EXPONENT = r"^\d+[eE]\d+$"
"""Digits around an `E`, as in the code `10E0`; most programs write numbers with a point or a sign in the exponent."""
TRAILING_ZERO = r"\.\d*[1-9]0+$"
"""Zeros that a number would lose, as in the version 1.10."""
BLANK_AROUND = r"^\s|\s$"
STAND_IN = r"^(?:-?99+(?:\.9+|\.25)?|-[789]|-?32768|32767|-?2147483648|2147483647|-?9223372036854775807)$"
"""Numbers that people and programs often write for a missing value."""
MIN_STAND_INS, MIN_STAND_IN_SHARE = 3, 0.001
"""So many rows, and this share of them, must have a number that people rarely use for a missing value."""
MAX_STAND_INS = 5
FEWEST_LARGE = 100
CODE_WORDS = {
    *(
        "zip",
        "zipcode",
        "plz",
        "postcode",
        "postal",
        "postleitzahl",
        "cap",
        "phone",
        "telephone",
        "tel",
        "telefon",
        "mobile",
        "fax",
    ),
    *("ean", "upc", "gtin", "isbn", "issn", "barcode", "sku", "iban", "blz", "siren", "siret", "imei", "fips"),
}
"""Words in the names of columns whose numbers are codes."""
LEAST_CODE = 1e8
"""Whole numbers of as many digits as this, and all of the same length, may be codes."""
TIMES = ((8e8, 2.2e9), (8e11, 2.2e12), (8e14, 2.2e15), (8e17, 2.2e18))
"""Seconds since 1970, and thousandths, millionths and billionths of them, from 1995 to 2039."""
FAR_TIMES = 10.0
"""A number that people rarely use for a missing value must be this many times as far from the others as they are spread."""
FEW_VALUES = 10
"""So few distinct numbers may be levels of something, however far apart."""
FIRST_TIME, LAST_TIME = ((datetime(year, 1, 1) - datetime(1970, 1, 1)) / timedelta(microseconds=1) for year in (2, 9999))
"""Limits of the dates that may be meant, in microseconds since 1970."""


def remark_on_columns(
    columns: Sequence[AnyColumn],
    readings: Mapping[str, Reading],
    frame: pl.DataFrame,
    raw: pl.DataFrame,
    y: pl.Series,
    rows: Rows,
) -> list[str]:
    """Say what people should know about columns, a line for each column with something to say.

    Args:
        columns: As they were fitted to the train rows.
        readings: How each was read.
        frame: The cells of all rows, converted.
        raw: The same as they were read.
        y: The index of each row's class, or its number, float.
        rows: Which of them are train rows.
    """
    texts = [name for name in (column.name for column in columns) if raw[name].dtype == pl.String]
    lengths = raw[texts].select(pl.all().str.len_bytes().max()).row(0, named=True) if texts else {}
    numbers = [column.name for column in columns if isinstance(column, NumericColumn) and column.name in lengths]
    decimals = {name for name, dtype in raw.schema.items() if dtype.is_decimal()}
    with_codes, suspects = _find_resembling_codes(raw, numbers), _find_suspects(columns, frame, rows)
    index, lines = pl.Series(rows, dtype=pl.get_index_type()), list[str]()
    num_classes = 0 if y.dtype.is_float() else take_rows(y, index).n_unique()
    first = frame[index.head(NUM_LOOKED_AT)]
    num_values = first.select(pl.all().n_unique()).row(0, named=True)
    may_leak = {
        name: y.dtype.is_float() or num_values[name] <= max(num_classes, first.height // MIN_ROWS_A_VALUE) or num_nulls > 0
        for name, num_nulls in first.null_count().row(0, named=True).items()
    }
    for column in columns:
        told = [readings[column.name].remark]
        if isinstance(column, TextColumn) and column.is_constant:
            told.append("no word is in two train rows, so that nothing is learned from it")
        elif column.is_constant:
            told.append(
                _remark_on_constant(column, take_column(raw, column.name)[_find_first(take_column(frame, column.name), rows)])
            )
        elif isinstance(column, CategoricalColumn):
            values = take_rows(take_column(frame, column.name), index)
            told.append(_remark_on_categories(column, values))
            told.append(_remark_on_alike(column, values))
            told.append(_remark_on_blanks(take_column(raw, column.name)) if column.name in lengths else None)
            told.append(_remark_on_marks(take_column(frame, column.name), take_column(raw, column.name)))
        if isinstance(column, NumericColumn):
            typed, length, digits = take_column(frame, column.name), lengths.get(column.name) or 0, None
            if column.name in suspects.large or length > MAX_EXACT_LENGTH or column.name in decimals:
                digits = _remark_on_digits(typed, take_column(raw, column.name), length)
            may_be_codes = column.format is None and column.name in suspects.whole
            told.append(digits or (_remark_on_digit_codes(column, typed) if may_be_codes else None))
            is_plain = column.format is None and column.name in with_codes
            told.append(_remark_on_codes(typed, take_column(raw, column.name)) if is_plain else None)
        if column.name in suspects.with_ends and not column.is_constant:
            told.append(_remark_on_stand_ins(column, take_column(frame, column.name), take_column(raw, column.name), rows))
        if may_leak[column.name] and (not column.is_constant or column.has_indicator):
            values = take_column(frame, column.name)
            told.append(_remark_on_line(values, y, rows) if y.dtype.is_float() else _remark_on_leak(values, y, index, num_classes))
        if any(told):
            lines.append(f"column `{show(column.name)}`: {'; '.join(filter(None, told))}")
    return lines


def _find_resembling_codes(raw: pl.DataFrame, names: Sequence[str]) -> set[str]:
    """Find the columns of which some texts resemble codes; trailing zeros only do where numbers differ in their decimals."""
    found, size = set[str](), max(1, MAX_CELLS // max(1, raw.height))
    for start in range(0, len(names), size):
        some = names[start : start + size]
        texts, shape = pl.concat([raw[name] for name in some]), (len(some), raw.height)
        trimmed = texts.str.strip_chars_end()
        decimals = trimmed.str.len_bytes().cast(pl.Int64) - trimmed.str.find(".", literal=True)
        lengths = decimals.fill_null(-1).to_numpy().reshape(shape)
        differ = np.not_equal(lengths.min(axis=1), lengths.max(axis=1))
        has_exponents, has_zeros = (
            np.count_nonzero(texts.str.contains(pattern).fill_null(False).to_numpy().reshape(shape), axis=1) > 0
            for pattern in (EXPONENT, TRAILING_ZERO)
        )
        found |= {some[place] for place in np.flatnonzero(has_exponents | (has_zeros & differ)).tolist()}
    return found


@dataclass(frozen=True)
class _Suspects:
    """The columns of which a remark may be made, so that all others need not be looked at one by one."""

    large: set[str]
    """They have numbers that may not be exact."""
    whole: set[str]
    """They have whole numbers, none of them negative."""
    with_ends: set[str]
    """Their least or greatest value may stand for a missing one."""


def _find_suspects(columns: Sequence[AnyColumn], frame: pl.DataFrame, rows: Rows) -> _Suspects:
    found = _Suspects(set(), set(), {column.name for column in columns if isinstance(column, DatetimeColumn)})
    numeric = [column.name for column in columns if isinstance(column, NumericColumn)]
    for names, numbers in stack_numbers(frame, numeric):
        first, chosen = numbers[:, :NUM_LOOKED_AT], numbers.take(rows, axis=1)
        sizes = np.fmax.reduce(np.abs(numbers), axis=1, initial=0)
        is_whole = np.logical_and.reduce(np.isnan(first) | (first == np.floor(first)) & (first >= 0), axis=1)
        ends = [end.reduce(chosen, axis=1, initial=np.nan) for end in (np.fmin, np.fmax)]
        num_rows = np.maximum(*(np.count_nonzero(chosen == end[:, None], axis=1) for end in ends))
        fewest = np.maximum(MIN_STAND_INS, MIN_STAND_IN_SHARE * np.count_nonzero(~np.isnan(chosen), axis=1))
        for place, name in enumerate(names):
            found.large.update([name] if sizes[place] > MAX_EXACT else [])
            found.whole.update([name] if is_whole[place] else [])
            may_stand_in = num_rows[place] >= fewest[place] or any(_is_code(end[place]) for end in ends)
            found.with_ends.update([name] if may_stand_in else [])
    return found


def _remark_on_leak(values: pl.Series, y: pl.Series, index: pl.Series, num_classes: int) -> str | None:
    """Remark on a column that gives the class away in these rows, all of which have a class."""
    first = _pair(values, y, index.head(NUM_LOOKED_AT))
    is_filled = first["value"].is_not_null()
    may_be_mark = num_classes == 2 and is_filled.any() and first.filter(is_filled)["class"].n_unique() == 1
    num_values = first["value"].n_unique()
    has_few = num_values <= num_classes or MIN_ROWS_A_VALUE * num_values <= first.height
    if not may_be_mark and (not has_few or first.unique().height > num_values):
        return None
    pairs = _pair(values, y, index)
    counts = pairs.group_by("value").agg(pl.len().alias("rows"), pl.col("class").n_unique().alias("classes"))
    if counts["classes"].max() == 1:
        if counts.height == num_classes:
            return f"one value for each class in all train rows, like a copy of the target; {LEAVE_OUT}"
        if int(counts.filter(pl.col("rows") >= MIN_ROWS_A_VALUE)["rows"].sum()) >= MIN_SHARE_OF_LEAK * pairs.height:
            return f"each of its values goes with one class, so that it gives the class away; {LEAVE_OUT}"
    marks = pairs.select(pl.col("value").is_null(), pl.col("class")).unique()
    if may_be_mark and marks.height == marks["value"].n_unique() == num_classes:
        return f"filled in the rows of one class alone, so that it gives the class away; {LEAVE_OUT}"
    return None


def _remark_on_line(values: pl.Series, y: pl.Series, rows: Rows) -> str | None:
    """Remark on numbers that the target is a multiple of, or nearly so."""
    if not values.dtype.is_numeric():
        return None
    pair = np.stack([values[rows].cast(pl.Float64).to_numpy(), y[rows].to_numpy()])
    pair = pair[:, ~np.isnan(pair).any(axis=0)]
    with np.errstate(all="ignore"):
        correlation = np.corrcoef(pair)[0, 1] if pair.shape[1] > FEW_VALUES else 0.0
    if not abs(correlation) >= MIN_CORRELATION_OF_LEAK:
        return None
    return f"its correlation with the target is {correlation:.6g}, like that of a copy; {LEAVE_OUT.replace('class', 'target')}"


def _pair(values: pl.Series, y: pl.Series, index: pl.Series) -> pl.DataFrame:
    return pl.DataFrame([take_rows(values, index).alias("value"), take_rows(y, index).alias("class")])


def _find_first(values: pl.Series, rows: Rows) -> int:
    """The first of these rows that has a value."""
    return int(rows[int(take_rows(values, rows).is_not_null().arg_max() or 0)])


def _remark_on_constant(column: AnyColumn, value: object) -> str:
    if column.has_indicator:
        return f"`{show(value)}` in all train rows that have a value, so that the model learns only from its absence"
    return f"`{show(value)}` in all train rows, so that nothing is learned from it"


def _remark_on_categories(column: CategoricalColumn, values: pl.Series) -> str | None:
    present = values.drop_nulls()
    if not column.categories:
        return (
            f"{present.n_unique():,} texts in the train rows, none of them twice, so that nothing is learned from it;"
            " leave it out with data.exclude, or make it a text in data.kinds if its words say something"
        )
    share = 1 - int(present.is_in(column.categories).sum()) / present.len()
    if share < LUMPED_SHARE:
        return None
    return (
        f"{present.n_unique():,} categories in the train rows, of which the {len(column.categories)} most frequent are told"
        f" apart; all others, in {share:.0%} of the rows, count as one;"
        " make it a text in data.kinds if its words say something"
    )


def _remark_on_marks(values: pl.Series, raw: pl.Series) -> str | None:
    """Name the most frequent text that means a missing value, where texts are categories."""
    if raw.dtype != pl.String:
        return None
    marks = count_marks(raw, values)
    if not marks:
        return None
    mark, num_rows = marks[0]
    return f"`{show(mark)}` counts as a missing value in {num_rows} rows; take it out of data.null_values if it is a category"


def _count_more(number: int) -> str:
    return f", and {number:,} more of its texts" if number else ""


def _remark_on_alike(column: CategoricalColumn, values: pl.Series) -> str | None:
    """Remark on categories that differ only in how they are written."""
    if not column.categories:
        return None
    names = values.drop_nulls().unique().sort()
    simple = names.str.normalize("NFKC").str.strip_chars().str.to_lowercase()
    num_alike = names.len() - simple.n_unique()
    if not num_alike:
        return None
    first = simple.filter(simple.is_duplicated())[0]
    one, other = names.filter(simple == first).head(2)
    return (
        f"`{show(quote(one))}` and `{show(quote(other))}` differ only in letter case or Unicode form"
        f"{_count_more(num_alike - 1)}; write them alike if they are one category"
    )


def _remark_on_blanks(raw: pl.Series) -> str | None:
    """Remark on texts that are one category because blanks around them do not count."""
    texts = raw.drop_nulls().unique()
    num_lost = texts.len() - texts.str.strip_chars().n_unique()
    if not num_lost:
        return None
    example = texts.filter(texts.str.contains(BLANK_AROUND)).min()
    return f"blanks around texts do not count: `'{show(example)}'` is the same category as another text{_count_more(num_lost - 1)}"


def _remark_on_codes(numbers: pl.Series, raw: pl.Series) -> str | None:
    """Remark on texts that are numbers, but may be codes or versions."""
    texts = raw.str.strip_chars().str.replace(r"\.0+$", "").str.replace("^-0$", "0")
    if texts.n_unique() == numbers.n_unique() and not texts.str.contains(EXPONENT).any():
        return None
    pairs = pl.DataFrame([numbers.alias("number"), texts.alias("text")]).drop_nulls().unique().sort("number", "text")
    told, codes = [], pairs.filter(pairs["text"].str.contains(EXPONENT))
    if codes.height:
        number, text = codes.row(0)
        rows = int(texts.is_in(codes["text"].implode()).sum())
        told.append(f"`{show(text)}` is read as {number:.15g}, and {rows:,} rows hold such texts")
    if num_lost := pairs.height - pairs["number"].n_unique():
        one, other = pairs.filter(pairs["number"].is_duplicated())["text"].head(2)
        told.append(f"`{show(one)}` and `{show(other)}` are read as the same number{_count_more(num_lost - 1)}")
    return f"{'; '.join(told)}; make the column a category in data.kinds if they are codes or versions" if told else None


def _remark_on_digit_codes(column: NumericColumn, values: pl.Series) -> str | None:
    """Remark on whole numbers that may be postcodes, telephone numbers or the like, which are no amounts."""
    words = split_name(column.name)
    is_named_so = not CODE_WORDS.isdisjoint(words)
    first = values.head(NUM_LOOKED_AT).cast(pl.Float64).to_numpy()
    first = first[~np.isnan(first)]
    is_named_so |= len(words) > 1 and is_named_like_id(column.name) and len(np.unique(first)) > FEW_VALUES
    if not len(first) or not (is_named_so or first.min() >= LEAST_CODE):
        return None
    if not np.isfinite(first).all() or (first != np.floor(first)).any() or first.min() < 0:
        return None
    if not is_named_so:
        is_time = any(low <= first.min() and first.max() < high for low, high in TIMES)
        if is_time or len(np.unique(np.floor(np.log10(first)))) > 1 or 2 * len(np.unique(first)) < len(first):
            return None
    flags = shlex.join(["--data.kinds", json.dumps({column.name: "category"}, ensure_ascii=False)])
    return (
        f"read as numbers, though values such as `{first[0]:.0f}` may be codes, of which neither size nor order means anything; add"
        f" {flags} if they are"
    )


def _remark_on_stand_ins(column: AnyColumn, values: pl.Series, raw: pl.Series, rows: Rows) -> str | None:
    """Remark on numbers or dates that may stand for a missing value."""
    is_date = values.dtype.is_temporal()
    places = rows if not values.has_nulls() else rows[~values.is_null().to_numpy()[rows]]
    numbers = (values.dt.epoch("us") if is_date else values).cast(pl.Float64).to_numpy()[places]
    if not is_date:
        is_number = ~np.isnan(numbers)
        numbers, places = numbers[is_number], places[is_number]
    found = find_stand_ins(numbers, is_date)
    if not found:
        return None
    texts = [str(raw[int(places[(numbers == number).argmax()])]) for number, _ in found]
    told = [f"`{show(text)}` in {count(num_rows, 'train row')}" for text, (_, num_rows) in zip(texts, found, strict=True)]
    flags = shlex.join(["--data.null_values", json.dumps([*column.null_values, *texts], ensure_ascii=False)])
    return (
        f"{' and '.join(told)}, though all others are far from {'it' if len(told) == 1 else 'them'}; add {flags} if a missing value"
        " is meant, in any column"
    )


def find_stand_ins(numbers: Numbers, is_date: bool = False) -> list[tuple[float, int]]:
    """Find numbers at either end that may stand for a missing value, and the number of rows of each.

    Such a number lies farther from all others than these are spread; or ten times as far, and it repeats, if people rarely use it
    for this. -9 and its like need not be far if no other number is negative, nor -1 if it is by far the most frequent, or the
    others are large.

    Args:
        numbers: The numbers of some rows, not NaN; dates in microseconds since 1970.
        is_date: Whether they are dates; the years 1 and 9999 need not repeat.

    Shape:
        numbers: (N,).
    """
    found = list[tuple[float, int]]()
    while len(numbers) and len(found) < MAX_STAND_INS and (ends := _find_ends(numbers, is_date)):
        found += ends
        numbers = numbers[~np.isin(numbers, [end for end, _ in ends])]
    return found


def _find_ends(numbers: Numbers, is_date: bool) -> list[tuple[float, int]]:
    """Find whether the least or the greatest number may stand for a missing value."""
    ends = {float(end): int((numbers == end).sum()) for end in (numbers.min(), numbers.max())}
    fewest = max(MIN_STAND_INS, MIN_STAND_IN_SHARE * len(numbers))
    chosen = {
        end: num_rows
        for end, num_rows in ends.items()
        if num_rows >= fewest or (not FIRST_TIME <= end < LAST_TIME if is_date else _is_code(end))
    }
    found = []
    for end, num_rows in chosen.items():
        kept = (numbers[~np.isin(numbers, apart)] for apart in dict.fromkeys([(end,), (*chosen,)]))
        if any(_stands_out(end, num_rows, others, is_date) for others in kept if len(others)):
            found.append((end, num_rows))
    return found


def _is_code(number: float) -> bool:
    return re.match(STAND_IN, f"{number:.15g}") is not None


def _stands_out(end: float, num_rows: int, others: Numbers, is_date: bool) -> bool:
    """Whether a number stands out from others, as `find_stand_ins` says."""
    low, high = float(others.min()), float(others.max())
    distance, span = max(low - end, end - high), high - low
    if is_date and not FIRST_TIME <= end < LAST_TIME:
        return True
    if end < 0 and not is_date:
        positive = others[others >= 0]
        is_alone = len(positive) > 0 and all(
            number == -1 or _is_code(number) for number in np.unique(others[others < 0])[:FEW_VALUES]
        )
        if is_alone and (_is_code(end) or (end == -1 and (_is_usual(num_rows, positive) or _are_large(positive)))):
            return True
        if end == -1 and low >= 0:
            return False
    if not span or distance <= span:
        return False
    if _is_limit_of_year(end) if is_date else _is_code(end):
        return True
    return distance > FAR_TIMES * span and len(np.unique(others)) > FEW_VALUES


def _are_large(numbers: Numbers) -> bool:
    """Whether all numbers but 0 are so large that -1 is none of them."""
    return bool(numbers[numbers > 0].min(initial=np.inf) >= FEWEST_LARGE) and len(np.unique(numbers)) > FEW_VALUES


def _is_limit_of_year(microseconds: float) -> bool:
    """Whether it is the first or the last day of a year, as in 1900-01-01."""
    time = datetime(1970, 1, 1) + timedelta(microseconds=microseconds)
    return (time.month, time.day) in ((1, 1), (12, 31))


def _is_usual(num_rows: int, others: Numbers) -> bool:
    """Whether `num_rows` is more than twice the rows of any other number."""
    counts = np.unique_counts(others).counts
    return len(counts) > FEW_VALUES and num_rows > 2 * counts.max() and num_rows >= LUMPED_SHARE * len(others)


def _remark_on_digits(numbers: pl.Series, raw: pl.Series, length: int | None) -> str | None:
    """Remark on different cells that became one float."""
    if raw.dtype.is_float() or not numbers.len():
        return None
    floats = numbers.cast(pl.Float64)
    sizes = np.abs(floats.to_numpy())
    if not (sizes > MAX_EXACT).any() and (length or 0) <= MAX_EXACT_LENGTH and not raw.dtype.is_decimal():
        return None
    num_lost = raw.drop_nulls().n_unique() - floats.drop_nulls().n_unique()
    if num_lost <= 0:
        return None
    example = raw[int(np.nanargmax(sizes))]
    return (
        f"{num_lost:,} of its values, such as `{show(example)}`, have more digits than a float keeps, and become equal to others;"
        " make the column a category in data.kinds if they are codes"
    )
