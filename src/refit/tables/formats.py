"""How numbers, dates and times of day are written in text: found for a whole column, and read back by the same rule.

A format is found where it reads every text of a column, and no other format reads them as something else.
"""

import functools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

CURRENCY = r"\p{Sc}|US\$|A\$|C\$|R\$|Rs\.?|USD|EUR|GBP|CHF|JPY|INR|CNY|AUD|CAD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|kr\.?|zł|Kč|Ft"
UNITS = (
    *("g", "kg", "mg", "µg", "t", "lb", "lbs", "oz", "m", "cm", "mm", "µm", "nm", "km", "in", "ft", "yd", "mi", "mile", "miles"),
    *("l", "L", "ml", "mL", "cl", "dl", "m²", "m2", "m³", "m3", "km²", "km2", "sqft", "sqm", "ha", "cc", "CC"),
    *("s", "sec", "ms", "µs", "min", "mins", "h", "hr", "hrs", "hour", "hours", "d", "day", "days", "week", "weeks"),
    *("month", "months", "yr", "yrs", "year", "years", "km/h", "kmh", "kph", "mph", "m/s", "mpg", "kmpl", "km/kg", "rpm"),
    *("kB", "KB", "MB", "GB", "TB", "kbps", "Mbps", "Gbps", "Hz", "kHz", "MHz", "GHz", "W", "kW", "MW", "hp", "bhp", "PS"),
    *("V", "kV", "mV", "mA", "mAh", "Wh", "kWh", "J", "kJ", "cal", "kcal", "N", "Nm", "Pa", "hPa", "kPa", "MPa", "bar", "psi"),
    *("K", "°C", "°F", "°", "dB", "px", "dpi", "ppm", "mmHg", "mg/dl", "mg/dL", "mmol/l", "mmol/L", "g/l", "g/L", "pcs"),
)
PERCENT = "%"
MINUS = "\u2212"
"""The minus sign of Unicode, which is no hyphen."""
BLANK = r"[ \u00a0\u2009\u202f]"
"""A blank, one that keeps a line together, and thin ones."""
SEPARATORS = {",": ",", ".": r"\.", "'": "['\u2019]", " ": BLANK}
"""What stands between thousands, as patterns."""
READINGS = (("", "."), (",", "."), ("", ","), (".", ","), ("'", "."), (" ", "."), ("'", ","), (" ", ","))
"""Signs between thousands and before decimals that people write."""

_SUFFIX = "|".join(re.escape(unit).replace(r"\ ", " ") for unit in sorted((*UNITS, PERCENT, "‰"), key=len, reverse=True))
NUMBER = (
    rf"^(?P<sign>[+\-{MINUS}]?){BLANK}?(?P<before>{CURRENCY})?{BLANK}?(?P<sign_after>[+\-{MINUS}]?)"
    rf"(?P<body>\d(?:[\d.,'\u2019 \u00a0\u2009\u202f]*\d)?\.?|[.,]\d+)(?P<exponent>[eE][+\-]?\d+)?"
    rf"{BLANK}?(?P<after>{CURRENCY}|{_SUFFIX})?$"
)
"""A number as anybody may write it."""

DATE_PARTS = {
    **{"%Y": r"\d{4}", "%y": r"\d{2}", "%m": r"\d{1,2}", "%d": r"\d{1,2}", "%b": "[A-Za-z]{3}", "%B": "[A-Za-z]{3,9}"},
    **{"%a": "[A-Za-z]{3}", "%e": r" ?\d{1,2}", "%3f": r"\d{3}", "%.f": r"\.\d{1,9}", "%z": r"[+-]\d{2}:?\d{2}"},
    **{"%H": r"\d{1,2}", "%I": r"\d{1,2}", "%M": r"\d{2}", "%S": r"\d{2}", "%p": "[AaPp][Mm]", ".": r"\."},
}
DATES = (
    *("%d.%m.%Y", "%d.%m.%y", "%Y.%m.%d", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y", "%d. %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
)
DATE_TIMES = (
    *("%Y-%m-%d %H:%M:%S,%3f", "%Y-%m-%dT%H:%M:%S,%3f", "%Y-%m-%d %H:%M:%S UTC", "%Y/%m/%d %H:%M:%S%.f"),
    *("%d/%b/%Y:%H:%M:%S %z", "%d/%b/%Y:%H:%M:%S", "%a %b %e %H:%M:%S UTC %Y", "%a %b %e %H:%M:%S GMT %Y"),
    *("%a %b %e %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S %z"),
)
"""As logs, mail, the web and Java's `Date` write them."""
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S")
LOGGED_DATE = r"^\[?\d{1,2}/[A-Za-z]{3}/\d{4}:\d|^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? (?:\d|[A-Z][a-z]{2} )"
ANY_DATE = (
    r"^(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}[. -] ?[A-Za-z]{3,9}[ -]\d{2,4}|[A-Za-z]{3,9} \d{1,2},? \d{4})(?:[ T,].*)?$|"
    + LOGGED_DATE
)
CLOCK = r"^(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d(?:\.\d+)?))?(?: ?(?P<half>[AaPp][Mm]))?$"


NUM_TRIED = 100
"""Texts that a format must read before it is tried on all."""


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumberFormat(_Format):
    """A number with a unit, with signs between thousands, or with a decimal comma."""

    style: Literal["number"] = "number"
    thousands: Literal["", ",", ".", "'", " "] = ""
    decimal: Literal[".", ","] = "."
    unit: str = ""
    """A currency, a unit or `%`, before or after the digits of all cells or of some; `%` of all."""

    def read(self, texts: pl.Series) -> pl.Series:
        """The numbers, Float64; null for what is not written so."""
        parts = _split(texts)
        is_written_so = parts["body"].str.contains(_body_pattern(self.thousands, self.decimal))
        for name in ("before", "after"):
            is_written_so &= parts[name].is_in(["", self.unit])
        if self.unit == PERCENT:
            is_written_so &= parts["after"] == PERCENT
        body = parts["body"].str.replace_all(SEPARATORS[self.thousands], "") if self.thousands else parts["body"]
        number = (body.str.replace(self.decimal, ".", literal=True) + parts["exponent"]).cast(pl.Float64, strict=False)
        signs = parts["sign"] + parts["sign_after"]
        number = number.zip_with(~signs.is_in(["-", MINUS]).fill_null(False), -number)
        is_written_so &= signs.str.len_chars() <= 1
        number = number.set(~is_written_so.fill_null(False), None).alias(texts.name)
        if self.unit == PERCENT:
            return number
        # Without signs between thousands and without a unit it is the same number; tables to be scored may be written so.
        is_plain = texts.str.contains(r"^[+\-]?\d+(\.\d+)?$" if self.decimal == "." else r"^[+\-]?\d+$").fill_null(False)
        return number.zip_with(~is_plain, texts.cast(pl.Float64, strict=False))

    def describe(self) -> str:
        """Say how it is written, by an example."""
        unit = f" and `{self.unit}`" if self.unit else ""
        return f"a number written as `1{self.thousands}234{self.decimal}5`{unit}"


class ClockFormat(_Format):
    """A time of day or a span, `7:45` or `7:45:30 pm`, in hours."""

    style: Literal["clock"] = "clock"

    def read(self, texts: pl.Series) -> pl.Series:
        """The hours, Float64; null for what is not written so."""
        parts = texts.str.extract_groups(CLOCK).struct.unnest()
        hours, minutes, seconds = (parts[name].cast(pl.Float64) for name in ("hours", "minutes", "seconds"))
        half = parts["half"].str.to_lowercase().fill_null("")
        hours = hours.zip_with(half == "", hours % 12 + 12 * (half == "pm").cast(pl.Float64))
        return (hours + minutes / 60 + seconds.fill_null(0.0) / 3600).alias(texts.name)

    def describe(self) -> str:
        """Say how it is written, by an example."""
        return "a time written as `7:45`"


class DateFormat(_Format):
    """A date, or a date and a time of day."""

    style: Literal["date"] = "date"
    pattern: str
    """As `strptime` writes it, such as `%d.%m.%Y`."""

    def read(self, texts: pl.Series) -> pl.Series:
        """The date-times in UTC, Datetime("us"); null for what is not written so."""
        is_written_so = texts.str.contains(_date_pattern(self.pattern)).fill_null(False)
        found = texts.set(~is_written_so, None).str.to_datetime(self.pattern, time_unit="us", strict=False)
        return found.dt.replace_time_zone(None)  # polars has turned all zones into UTC

    def describe(self) -> str:
        """Say how it is written, by an example."""
        pattern = self.pattern.replace("%3f", "123").replace("%.f", ".123")
        return f"a date written as `{datetime(2026, 12, 31, 19, 45, tzinfo=UTC).strftime(pattern)}`"


AnyFormat = NumberFormat | ClockFormat | DateFormat
Format = Annotated[AnyFormat, Field(discriminator="style")]


def find_formats(texts: pl.Series) -> list[AnyFormat]:
    """Find how some different texts are written, none of them null.

    Returns:
        Formats that read every text, each to other values: one where that is clear, several where it is open, else none.
    """
    if not texts.len():
        return []
    sample, readings = texts.head(NUM_TRIED), list[tuple[AnyFormat, pl.Series]]()
    for format in _list_formats(texts[0], texts):
        if format.read(sample).has_nulls() or (values := format.read(texts)).has_nulls():
            continue
        if not any(values.equals(known) for _, known in readings):
            readings.append((format, values))
    return [format for format, _ in readings]


def find_alike(texts: pl.Series) -> pl.Series:
    """Which texts look like a number, a date or a time of day, in whatever format."""
    any_body = "|".join(_body_pattern(*signs) for signs in READINGS)
    is_number = _split(texts)["body"].str.contains(any_body).fill_null(False)
    return is_number | texts.str.contains(CLOCK) | texts.str.contains(ANY_DATE)


def _list_formats(first: str, texts: pl.Series) -> Iterator[AnyFormat]:
    """The formats that may read all texts, as they read the first."""
    if re.match(CLOCK, first):
        yield ClockFormat()
    known = (*DATE_TIMES, *(date + time for date in DATES for time in TIMES))
    dates = [pattern for pattern in known if re.match(_date_pattern(pattern), first)]
    yield from (DateFormat(pattern=pattern) for pattern in dates)
    if dates or not any(sign.isdigit() for sign in first):
        return
    parts = _split(texts)
    units = {*parts["before"], *parts["after"]} - {"", None}
    bodies = parts["body"]
    if bodies.has_nulls() or len(units) > 1:
        return
    signs = [signs for signs in READINGS if bodies.str.contains(_body_pattern(*signs)).all()]
    with_commas = bodies.filter(bodies.str.contains(",", literal=True))
    if with_commas.len() and with_commas.str.contains(_body_pattern(",", ".")).all():
        # Three digits after every comma: thousands, if other numbers have commas too where they would.
        signs = [(",", ".")] if (",", ".") in signs else [*signs, (",", ".")]
    for thousands, decimal in signs:
        yield NumberFormat(thousands=thousands, decimal=decimal, unit="".join(units))


def _split(texts: pl.Series) -> dict[str, pl.Series]:
    """The parts of numbers by their name in `NUMBER`, empty where absent; no body where it is no number."""
    parts = texts.str.extract_groups(NUMBER).struct.unnest()
    return {name: parts[name] if name == "body" else parts[name].fill_null("") for name in parts.columns}


@functools.cache
def _body_pattern(thousands: str, decimal: str) -> str:
    """Digits in groups of three; behind commas also as in India, where the groups before the last have two."""
    point = re.escape(decimal)
    whole = r"\d+"
    if thousands:
        sign = SEPARATORS[thousands]
        indian = r"|[1-9]\d?(?:,\d{2})+,\d{3}" if thousands == "," else ""
        whole = rf"(?:[1-9]\d{{0,2}}(?:{sign}\d{{3}})+|\d{{1,3}}{indian})"
    return rf"^(?:{whole}(?:{point}\d*)?|{point}\d+)$"


@functools.cache
def _date_pattern(pattern: str) -> str:
    """A regular expression for what `strptime` would take more loosely."""
    return "^" + re.sub(r"%(?:\.f|\d?\w)|\.", lambda part: DATE_PARTS[part[0]], pattern) + "$"
