"""Finds out what kind a column is, from all its cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from refit.data.signature import Kind
from refit.tables.ambiguity import list_readings
from refit.tables.columns import Locate
from refit.tables.conversion import (
    EXPECTED,
    clean_cells,
    convert_column,
    parse_categories,
    parse_cells,
    read_plain_numbers,
    refuse_cell,
)
from refit.tables.formats import (
    COMPACT_DATE,
    AnyFormat,
    ClockFormat,
    DateFormat,
    NumberFormat,
    find_alike,
    find_formats,
    is_compact_dates,
)
from refit.tables.ngrams import are_texts
from refit.texts import show

KINDS: dict[Kind, str] = {"numeric": "number", "datetime": "date", "boolean": "boolean", "categorical": "category", "text": "text"}
"""As people call them."""
ZONE = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
"""The end of a time that names its zone."""
MISTAKE_SHARE = 0.5
"""If this share of a column of text reads as numbers (or dates), all of it was meant to: the rest are mistakes."""
LOOK_SHARE = 0.1
"""If this share of a column of text looks like numbers, dates or times, it may have been meant to: a remark says so."""
NUM_LOOKED_AT = 1000
"""Cells looked at first; all are looked at only if one of these looks like a number, a date or a time."""
NUM_TRIED = 100
"""Numbers that show first what others of their column cannot be."""
LEAST_RANGES = 3
"""With fewer different texts that are no numbers, they may be mistakes."""
LEAST_COMPACT, LEAST_THOUSAND = 19_000_000, 1000
MISTAKES = "correct the value, add it to data.null_values, or make the column a category in data.kinds"
OTHER_KIND = "correct the value, add it to data.null_values, or change the column's kind in data.kinds"
CODE = r"^[+-]?0\d+$"
"""A whole number with leading zeros, which a number would lose."""


@dataclass(frozen=True)
class Reading:
    """How a column is read.

    Args:
        kind: What it holds.
        format: How numbers or dates are written in text; None for plain numbers and ISO dates.
        remark: What people should know about the column, in one line.
        choices: The formats of which it may have either. It is read by the first unless it is read as categories.
    """

    kind: Kind
    format: AnyFormat | None = None
    remark: str | None = None
    choices: tuple[AnyFormat, ...] = ()


def find_reading(values: pl.Series, null_values: Sequence[str], locate: Locate) -> tuple[Reading, pl.Series]:
    """Find what a column holds, over all its rows, and convert it; text is categorical unless all of it reads as something else.

    Raises:
        DataError: The column holds infinities, a type that cannot become model inputs, or text of which `MISTAKE_SHARE` or more,
            but not all, reads as numbers or dates.
    """
    if values.dtype == pl.String and (numbers := read_plain_numbers(values, null_values)) is not None:
        floats = numbers.to_numpy()
        head = np.abs(floats[:NUM_TRIED])
        if not (head < LEAST_COMPACT).any() and is_compact_dates(values):
            reading = Reading(
                "datetime", DateFormat(pattern=COMPACT_DATE), describe_formats(values, [DateFormat(pattern=COMPACT_DATE)])
            )
            return reading, convert_column(values, "datetime", null_values, locate, reading.format)
        if (floats != np.floor(floats)).any() or not _has_codes(values):
            is_clear = ((head > 0) & (head < 1) | (head >= LEAST_THOUSAND)).any()
            return Reading("numeric", choices=() if is_clear else list_readings(values, None)), numbers
    values = clean_cells(values, null_values, locate)
    if values.dtype == pl.Time:
        reading = Reading("numeric", ClockFormat(), "times of day are read as hours, so that `7:45` is 7.75")
        return reading, convert_column(values, "numeric", null_values, locate, reading.format)
    if values.dtype != pl.String:
        kind: Kind = "boolean" if values.dtype == pl.Boolean else "datetime" if values.dtype.is_temporal() else "numeric"
        return Reading(kind), convert_column(values, kind, null_values, locate)
    counts = values.drop_nulls().alias("text").value_counts(name="rows")
    reading = _read_texts(values, counts, locate) if counts.height else Reading("categorical")
    if reading.kind == "categorical" and not reading.choices and are_texts(counts):
        remark = (
            f"read as text, for its words, as {counts.height:,} of its values differ; make it a category in data.kinds otherwise"
        )
        return Reading("text", remark=remark), values
    if reading.kind == "categorical" and parse_categories(counts["text"]).equals(counts["text"]):
        return reading, values
    if reading.kind == "numeric":
        return reading, convert_column(values, "numeric", null_values, locate, reading.format)
    return reading, parse_cells(values, reading.kind, reading.format)


def read_as(values: pl.Series, kind: Kind, null_values: Sequence[str], locate: Locate) -> tuple[Reading, pl.Series]:
    """Convert a column to a kind that people named, whatever it looks like; several formats that read all cells are `choices`.

    Raises:
        DataError: A cell is not of this kind in the format that others have, or is infinite.
    """
    cells = clean_cells(values, null_values, locate)
    different = cells.drop_nulls().unique(maintain_order=True)
    formats = [] if kind in ("categorical", "text") else _list_formats(different, kind)
    if len(formats) > 1:
        return Reading("categorical", choices=tuple(formats)), parse_categories(cells)
    format = formats[0] if formats else None
    parsed = parse_cells(cells, kind, format)
    if parsed.null_count() > cells.null_count():
        refuse_cell(cells, parsed, EXPECTED[kind] if format is None else format.describe(), locate, OTHER_KIND)
    converted = convert_column(values, kind, null_values, locate, format)
    number = format if isinstance(format, NumberFormat) else None
    is_number = kind == "numeric" and cells.dtype == pl.String and number == format
    remark = None if format is None or cells.dtype == pl.Time else describe_formats(different.cast(pl.String), formats)
    return Reading(kind, format, remark, list_readings(different, number) if is_number else ()), converted


def _list_formats(different: pl.Series, kind: Kind) -> list[AnyFormat]:
    """The formats of this kind that read all cells, or the one that reads all that look like numbers or dates; none if plain."""
    if different.dtype == pl.Time:
        return [ClockFormat()]
    if not parse_cells(different, kind).has_nulls():
        return []
    compact = DateFormat(pattern=COMPACT_DATE)
    if kind == "datetime" and not parse_cells(different, kind, compact).has_nulls():
        return [compact]
    if different.dtype != pl.String:
        return []
    formats = find_formats(different)
    if not formats and len(alike := find_formats(different.filter(find_alike(different)))) == 1:
        formats = alike
    return [format for format in formats if isinstance(format, DateFormat) == (kind == "datetime") and format != NumberFormat()]


def _has_codes(texts: pl.Series) -> bool:
    """Whether some whole numbers begin with a zero, as postcodes do."""
    return bool(texts.str.contains(CODE).any())


def _read_texts(values: pl.Series, counts: pl.DataFrame, locate: Locate) -> Reading:
    """Find how a column of text is read; remark on what it looks like but is not read as.

    Args:
        values: All its cells, null where they mean a missing value.
        counts: Its distinct texts, and the number of `rows` of each.
        locate: Says where a row is.
    """
    texts = counts["text"]
    if not texts.str.contains(r"\d").any() and texts.cast(pl.Float64, strict=False).null_count() == len(texts):
        return Reading("categorical" if parse_cells(texts, "boolean").has_nulls() else "boolean")
    kinds: tuple[Kind, ...] = ("numeric", "datetime", "boolean")
    parsed = {kind: parse_cells(texts, kind) for kind in kinds}
    if _share_of_rows(counts, parsed["numeric"].is_not_null()) >= MISTAKE_SHARE and _has_codes(texts):
        example = texts.filter(texts.str.contains(CODE)).min()
        return Reading("categorical", remark=f"read as categories, as numbers would lose the leading zeros of `{show(example)}`")
    for kind in kinds:
        if not parsed[kind].has_nulls():
            choices = list_readings(texts, None) if kind == "numeric" else ()
            return Reading(kind, remark=_remark_on_zones(texts) if kind == "datetime" else None, choices=choices)
    formats = find_formats(texts)
    if len(formats) == 1:
        choices = list_readings(texts, formats[0]) if isinstance(formats[0], NumberFormat) else ()
        kind = "datetime" if isinstance(formats[0], DateFormat) else "numeric"
        return Reading(kind, formats[0], describe_formats(values, formats), choices)
    if formats:
        return Reading("categorical", choices=tuple(formats))
    for kind in ("numeric", "datetime"):
        is_read = parsed[kind].is_not_null()
        if _share_of_rows(counts, is_read) >= MISTAKE_SHARE and not _are_ranges(texts, is_read):
            refuse_cell(values, parse_cells(values, kind), EXPECTED[kind], locate, MISTAKES)
    return Reading("categorical", remark=_look_at(values, counts, locate))


def _remark_on_zones(texts: pl.Series) -> str | None:
    """Remark on times if only some of them name their zone."""
    has_zone = texts.str.contains(ZONE)
    if has_zone.all() or not has_zone.any():
        return None
    return f"times without a zone, such as `{show(texts.filter(~has_zone).min())}`, are taken as UTC; others name their zone"


def _look_at(values: pl.Series, counts: pl.DataFrame, locate: Locate) -> str | None:
    """Remark on text of which a part looks like numbers, dates or times; refuse text that was meant to be such."""
    sample = counts["text"]
    if len(sample) > NUM_LOOKED_AT:
        sample = values.drop_nulls().gather_every(max(1, values.len() // NUM_LOOKED_AT))
    if not find_alike(sample).any():
        return None
    is_alike = find_alike(counts["text"])
    share = _share_of_rows(counts, is_alike)
    if share < LOOK_SHARE:
        return None
    alike, others = (values.filter(values.is_in(counts["text"].filter(chosen).implode())) for chosen in (is_alike, ~is_alike))
    formats = find_formats(alike.unique())
    if (
        share >= MISTAKE_SHARE
        and len(formats) == 1
        and not _are_ranges(counts["text"], formats[0].read(counts["text"]).is_not_null())
    ):
        refuse_cell(values, formats[0].read(values), formats[0].describe(), locate, MISTAKES)
    rest = f"`, and others do not, such as `{show(others[0])}`" if others.len() else "`, but in no single format that is known"
    return (
        f"read as categories, though {share:.0%} of its values look like numbers or dates, such as"
        f" `{show(alike[0])}{rest}; correct these, add them to data.null_values if they mean a missing value, or make the"
        " column a category in data.kinds if categories are meant"
    )


def _are_ranges(texts: pl.Series, is_read: pl.Series) -> bool:
    """Whether most different texts are ranges and no mistakes, as `9-11years` and `>16years` beside `12years`."""
    others = texts.filter(~is_read)
    return len(others) >= max(LEAST_RANGES, is_read.sum()) and others.str.contains(r"\d").all()


def describe_formats(values: pl.Series, formats: Sequence[AnyFormat]) -> str:
    """Say by an example how a column is read, or, if that is ambiguous, how it may be read."""
    texts = values.drop_nulls().head(NUM_LOOKED_AT)
    text = max(texts, key=lambda text: (len({_read(format, text) for format in formats}), _is_moved(formats[0], text), len(text)))
    shown = [_show_value(_read(format, text)) for format in formats]
    if len(formats) > 1:
        meanings = (f"{value} (`{format.notation}`)" for value, format in zip(shown, formats, strict=True) if format.notation)
        return f"`{show(text)}` may mean {' or '.join(meanings)}"
    if isinstance(formats[0], DateFormat) and formats[0].others:
        return _describe_mixed(values, formats[0])
    why = ", as dates are not to come" if _is_moved(formats[0], text) else ""
    return f"`{show(text)}` is read as {shown[0]}{why}"


def _describe_mixed(values: pl.Series, format: DateFormat) -> str:
    """Give an example of each format of dates that stand in one column."""
    left, told = values.drop_nulls(), []
    for pattern in format.patterns:
        one = format.model_copy(update={"pattern": pattern, "others": ()})
        is_read = one.read(left).is_not_null()
        text = left.filter(is_read)[0]
        told.append(f"`{show(text)}` as {_show_value(_read(one, text))}")
        left = left.filter(~is_read)
    return f"dates in {len(told)} formats are read: {', '.join(told)}"


def _read(format: AnyFormat, text: str) -> Any:
    return format.read(pl.Series([text]))[0]


def _is_moved(format: AnyFormat, text: str) -> bool:
    """Whether a year of two digits is taken for the century before."""
    if not isinstance(format, DateFormat) or format.last_year is None:
        return False
    return bool(_read(format, text) != _read(format.model_copy(update={"last_year": None}), text))


def _show_value(value: float | datetime) -> str:
    return str(value).removesuffix(" 00:00:00") if isinstance(value, datetime) else f"{value:.15g}"


def _share_of_rows(counts: pl.DataFrame, chosen: pl.Series) -> float:
    """The share of the rows whose text is chosen."""
    return int(counts["rows"].filter(chosen).sum()) / int(counts["rows"].sum())
