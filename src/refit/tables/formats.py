"""Finds how a column of text writes numbers, dates or times of day, and reads it by that format.

A column has a format if it reads every text, and no other format reads them as other values.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from refit.tables.months import MONTHS, translate_months

CURRENCY = r"\p{Sc}|US\$|A\$|C\$|R\$|Rs\.?|USD|EUR|GBP|CHF|JPY|INR|CNY|AUD|CAD|SEK|NOK|DKK|PLN|CZK|HUF|BRL|kr\.?|zł|Kč|Ft"
UNITS = (
    *("g", "kg", "mg", "µg", "t", "lb", "lbs", "oz", "m", "cm", "mm", "µm", "nm", "km", "in", "ft", "yd", "mi", "mile", "miles"),
    *("l", "L", "ml", "mL", "cl", "dl", "m²", "m2", "m³", "m3", "km²", "km2", "sqft", "sq ft", "sq. ft.", "sqm", "ha", "cc", "CC"),
    *("s", "sec", "ms", "µs", "min", "mins", "h", "hr", "hrs", "hour", "hours", "d", "day", "days", "week", "weeks"),
    *("month", "months", "yr", "yrs", "year", "years", "km/h", "kmh", "kph", "mph", "m/s", "mpg", "kmpl", "km/kg", "rpm"),
    *("kB", "KB", "MB", "GB", "TB", "kbps", "Mbps", "Gbps", "Hz", "kHz", "MHz", "GHz", "W", "kW", "MW", "hp", "bhp", "PS"),
    *("V", "kV", "mV", "mA", "mAh", "Wh", "kWh", "J", "kJ", "cal", "kcal", "N", "Nm", "Pa", "hPa", "kPa", "MPa", "bar", "psi"),
    *("K", "°C", "°F", "°", "dB", "px", "dpi", "ppm", "mmHg", "mg/dl", "mg/dL", "mmol/l", "mmol/L", "g/l", "g/L", "pcs"),
)
FAMILIES: dict[str, dict[str, float]] = {
    "count": {"k": 1e3, "K": 1e3, "M": 1e6, "mn": 1e6, "Mio": 1e6, "B": 1e9, "bn": 1e9, "lakh": 1e5, "Lac": 1e5, "Cr": 1e7},
    "bytes": {"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "mass": {"mg": 1e-3, "g": 1.0, "kg": 1e3, "t": 1e6},
    "length": {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3},
    "volume": {"ml": 1e-3, "cl": 1e-2, "dl": 1e-1, "l": 1.0},
    "frequency": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
}
"""Units of which one column may have several, and how many of the basic one each is."""
AT_LEAST = "+"
"""After a number that stands for itself and all that are greater, as in `10,000+`."""
PERCENT = "%"
MINUS = "\u2212"
"""The minus sign of Unicode, which is not a hyphen."""
BLANK = r"[ \u00a0\u2009\u202f]"
"""A space, a no-break space, and thin spaces."""
SEPARATORS = {",": ",", ".": r"\.", "'": "['\u2019]", " ": BLANK}
"""Thousands separators, as patterns."""
READINGS = (("", "."), (",", "."), ("", ","), (".", ","), ("'", "."), (" ", "."), ("'", ","), (" ", ","))
"""Pairs of thousands separator and decimal sign that people use."""

_AFTER = {*UNITS, *FAMILIES["count"], PERCENT, "‰", AT_LEAST}
_SUFFIX = "|".join(re.escape(unit).replace(r"\ ", " ") for unit in sorted(_AFTER, key=lambda unit: (-len(unit), unit)))
NUMBER = (
    rf"^(?P<open>\(?)(?P<sign>[+\-{MINUS}]?){BLANK}?(?P<before>{CURRENCY})?{BLANK}?(?P<open_after>\(?)(?P<sign_after>[+\-{MINUS}]?)"
    rf"(?P<body>\d(?:[\d.,'\u2019 \u00a0\u2009\u202f]*\d)?\.?|[.,]\d+)(?P<exponent>[eE][+\-]?\d+)?"
    rf"{BLANK}?(?P<after>{CURRENCY}|{_SUFFIX})?(?P<end>[)\-{MINUS}]?)$"
)
"""A number in any of these notations."""

DATE_PARTS = {
    **{
        "%Y": r"\d{4}",
        "%y": r"\d{2}",
        "%m": r"\d{1,2}",
        "%2m": r"\d{2}",
        "%d": r"\d{1,2}",
        "%b": "[A-Za-z]{3}",
        "%B": "[A-Za-z]{3,9}",
    },
    **{
        "%a": "[A-Za-z]{3}",
        "%e": r" ?\d{1,2}",
        "%3f": r"\d{3}",
        "%.f": r"\.\d{1,9}",
        "%z": r"[+-]\d{2}:?\d{2}",
        "%#z": r"[+-]\d{2}(?::?\d{2})?",
    },
    **{"%H": r"\d{1,2}", "%I": r"\d{1,2}", "%M": r"\d{2}", "%S": r"\d{2}", "%p": "[AaPp][Mm]", ".": r"\.", " ": " {1,2}"},
}
DATES = (
    *("%d.%m.%Y", "%d.%m.%y", "%Y.%m.%d", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%Y-%m", "%b-%y", "%b %Y", "%B %Y", "%b-%Y", "%B-%Y", "%m/%Y"),
    *("%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %b %y", "%d %B %Y", "%d. %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
)
DATE_TIMES = (
    *("%Y-%m-%d %H:%M:%S,%3f", "%Y-%m-%dT%H:%M:%S,%3f", "%Y-%m-%d %H:%M:%S UTC", "%Y/%m/%d %H:%M:%S%.f"),
    *("%d/%b/%Y:%H:%M:%S %z", "%d/%b/%Y:%H:%M:%S", "%a %b %e %H:%M:%S UTC %Y", "%a %b %e %H:%M:%S GMT %Y"),
    *("%a %b %e %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S %z", "%a %b %e %H:%M:%S %z %Y"),
    "%Y/%m/%d %H:%M:%S%#z",
)
"""As logs, mail, the web and Java's `Date` write them."""
COMPACT_DATE = "%Y%m%d"
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", ", %H:%M:%S")
MONTH = r"[^\W\d_]{3}"
LOGGED_DATE = r"^\[?\d{1,2}/[A-Za-z]{3}/\d{4}:\d|^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? (?:\d|[A-Z][a-z]{2} )"
ANY_DATE = (
    r"^(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}(?:er)?[. -] ?(?:de )?\p{L}{3,10}\.?[ -](?:de )?\d{2,4}"
    r"|\p{L}{3,10} \d{1,2},? \d{4}|\p{L}{3,10}-\d{4})(?:[ T,].*)?$|" + LOGGED_DATE
)
ISO_DATE = "%Y-%m-%d"
YEAR = "%Y"
MIXED_DATES = (*(date + time for date in (*DATES, ISO_DATE) for time in TIMES), f"{ISO_DATE}T%H:%M:%S", YEAR)
MIXED_DATE = rf"{ANY_DATE}|^(?:1[89]|20)\d\d$"
MAX_MIXED = 6
"""So many formats of dates may stand in one column."""
BESIDE = " | "
CLOCK = r"^(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d(?:\.\d+)?))?(?: ?(?P<half>[AaPp][Mm]))?$"


FIRST_OF_CENTURY = 2000
YEARS_AHEAD = 5
"""Dates that are all to come begin within so many years."""
NUM_TRIED = 100
"""A format must read this many texts before it is tried on all."""


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumberFormat(_Format):
    """A number with a unit, with thousands separators, or with a decimal comma."""

    style: Literal["number"] = "number"
    thousands: Literal["", ",", ".", "'", " "] = ""
    decimal: Literal[".", ","] = "."
    unit: str = ""
    """A currency, a unit, `+` or `%`, before or after the digits. Cells may lack it, unless it is `%`."""
    family: Literal["", "count", "bytes", "mass", "length", "volume", "frequency"] = ""
    """The units that cells may have after the digits instead, each for its multiple of the basic one: `19M`, `2.5k`."""
    negative: Literal["", "()", "-"] = ""
    """What may also stand around, or after, a negative number: `(12.50)`, `12.50-`."""

    def read(self, texts: pl.Series) -> pl.Series:
        """Return the numbers, Float64; null for text in another format."""
        parts = _split(texts)
        is_written_so = parts["body"].str.contains(_body_pattern(self.thousands, self.decimal))
        scales = FAMILIES.get(self.family, {})
        for name in ("before", "after"):
            is_written_so &= parts[name].is_in(["", self.unit, *(scales if name == "after" else ())])
        if self.unit == PERCENT:
            is_written_so &= parts["after"] == PERCENT
        body = parts["body"].str.replace_all(SEPARATORS[self.thousands], "") if self.thousands else parts["body"]
        number = (body.str.replace(self.decimal, ".", literal=True) + parts["exponent"]).cast(pl.Float64, strict=False)
        if scales:
            number *= parts["after"].replace_strict(scales, default=1.0, return_dtype=pl.Float64)
        signs, around = parts["sign"] + parts["sign_after"], _join_signs(parts)
        is_written_so &= (signs.str.len_chars() <= 1) & around.is_in(["", self.negative]) & ((signs == "") | (around == ""))
        is_negative = signs.is_in(["-", MINUS]) | (around != "")
        number = number.zip_with(~is_negative.fill_null(False), -number)
        number = number.set(~is_written_so.fill_null(False), None).alias(texts.name)
        if self.unit == PERCENT:
            return number
        # Without thousands separators and unit it is the same number; rows to score may be written like that.
        is_plain = texts.str.contains(r"^[+\-]?\d+(\.\d+)?$" if self.decimal == "." else r"^[+\-]?\d+$").fill_null(False)
        return number.zip_with(~is_plain, texts.cast(pl.Float64, strict=False))

    @property
    def notation(self) -> str:
        """As `data.formats` has it."""
        return f"1{self.thousands}234{self.decimal}5"

    def describe(self) -> str:
        """Describe the format by an example."""
        unit = f" with `{self.unit}`" if self.unit else ""
        unit += f" and multiples such as `{[*FAMILIES[self.family]][2]}`" if self.family else ""
        negative = {"()": ", negative ones in brackets", "-": ", the minus sign at the end"}.get(self.negative, "")
        return f"a number written as `{self.notation}`{unit}{negative}"


class ClockFormat(_Format):
    """A time of day or a span, `7:45` or `7:45:30 pm`, in hours."""

    style: Literal["clock"] = "clock"
    notation: ClassVar[str] = ""

    def read(self, texts: pl.Series) -> pl.Series:
        """Return the hours, Float64; null for text in another format."""
        parts = texts.str.extract_groups(CLOCK).struct.unnest()
        hours, minutes, seconds = (parts[name].cast(pl.Float64) for name in ("hours", "minutes", "seconds"))
        half = parts["half"].str.to_lowercase().fill_null("")
        hours = hours.zip_with(half == "", hours % 12 + 12 * (half == "pm").cast(pl.Float64))
        return (hours + minutes / 60 + seconds.fill_null(0.0) / 3600).alias(texts.name)

    def describe(self) -> str:
        """Describe the format by an example."""
        return "a time written as `7:45`"


class DateFormat(_Format):
    """A date, or a date and a time of day."""

    style: Literal["date"] = "date"
    pattern: str
    """As `strptime` takes it, such as `%d.%m.%Y`."""
    language: str = ""
    """Of the names of months; empty for English. For others, the pattern is that of `translate_months`."""
    others: tuple[str, ...] = ()
    """Patterns of dates that stand beside it, each tried where those before it fail."""
    last_year: int | None = None
    """The last year that two digits mean; those beyond it are of the century before. None for 2068."""

    @property
    def notation(self) -> str:
        """As `data.formats` has it."""
        return BESIDE.join(self.patterns)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Those of all its dates."""
        return self.pattern, *self.others

    @property
    def first(self) -> str:
        """Which of `%d` and `%m` is first; empty where they cannot be mistaken."""
        return next(filter(None, map(_find_first, self.patterns)), "")

    def read(self, texts: pl.Series) -> pl.Series:
        """Return the date-times in UTC, Datetime("us"); null for text in another format."""
        texts = translate_months(texts, self.language) if self.language else texts
        found = _read_dates(texts, self.pattern)
        for pattern in self.others:
            found = found.zip_with(found.is_not_null(), _read_dates(texts, pattern))
        return found if self.last_year is None else found.zip_with(found.dt.year() <= self.last_year, found.dt.offset_by("-100y"))

    def settle_century(self, texts: pl.Series) -> "DateFormat":
        """Take years of two digits that are still to come for the century before, if the column speaks of the past.

        It does if it has years of that century anyway, or if all are far ahead.
        """
        if "%y" not in self.notation:
            return self
        this_year, years = datetime.now(UTC).year, self.read(texts).dt.year().drop_nulls()
        is_past = years.len() and ((years < FIRST_OF_CENTURY).any() or years.min() > this_year + YEARS_AHEAD)  # type: ignore[operator]
        return self.model_copy(update={"last_year": this_year}) if is_past and (years > this_year).any() else self

    def describe(self) -> str:
        """Describe the format by an example."""
        patterns = [pattern.replace("%3f", "123").replace("%.f", ".123").replace("%#z", "+00") for pattern in self.patterns]
        examples = [f"`{datetime(2026, 12, 31, 19, 45, tzinfo=UTC).strftime(pattern)}`" for pattern in patterns]
        names = f" with {self.language} names of months" if self.language else ""
        return f"a date written as {' or '.join(examples)}{names}"


AnyFormat = NumberFormat | ClockFormat | DateFormat
NOTATION = r"^1([.,' ]?)234(?:([.,])5)?$"
"""How people say how numbers are written: by 1,234.5 in that way."""
Format = Annotated[AnyFormat, Field(discriminator="style")]


def find_formats(texts: pl.Series) -> list[AnyFormat]:
    """Find the format of distinct texts, none of them null.

    Returns:
        The formats that read every text, no two of them to the same values: several if the format is ambiguous.
    """
    if not texts.len():
        return []
    sample, readings = texts.head(NUM_TRIED), list[tuple[AnyFormat, pl.Series]]()
    for format in _list_formats(texts[0], texts):
        if format.read(sample).has_nulls():
            continue
        if isinstance(format, DateFormat):
            format = format.settle_century(texts)
        if (values := format.read(texts)).has_nulls():
            continue
        if not any(values.equals(known) for _, known in readings):
            readings.append((format, values))
    return [format for format, _ in readings] or _find_mixed_dates(texts)


def _find_mixed_dates(texts: pl.Series) -> list[AnyFormat]:
    """Find the formats that together read dates of which each may be written otherwise, but all with the day or the month first."""
    if not texts.head(NUM_TRIED).str.contains(MIXED_DATE).all():
        return []
    readings = list[tuple[AnyFormat, pl.Series]]()
    for first in ("%d", "%m"):
        known = [pattern for pattern in MIXED_DATES if _find_first(pattern) in ("", first)]
        left, num_read = texts.sort(), dict[str, int]()
        while left.len() and len(num_read) < MAX_MIXED:
            fitting = [pattern for pattern in known if re.match(_date_pattern(pattern), left[0])]
            unread = {pattern: _read_dates(left, pattern).is_null() for pattern in fitting}
            pattern = min(unread, key=lambda pattern: unread[pattern].sum(), default="")
            if not unread or unread[pattern].all():
                break
            num_read[pattern] = int((~unread[pattern]).sum())
            left = left.filter(unread[pattern])
        if left.len() or len(num_read) < 2:
            continue
        patterns = sorted(num_read, key=lambda pattern: -num_read[pattern])
        format = DateFormat(pattern=patterns[0], others=tuple(patterns[1:])).settle_century(texts)
        values = format.read(texts)
        if not any(values.equals(known) for _, known in readings):
            readings.append((format, values))
    return [format for format, _ in readings]


def _find_first(pattern: str) -> str:
    """Which of day and month is first; empty where they cannot be mistaken: months with names, and years, are followed by one."""
    day, month = pattern.find("%d"), pattern.find("%m")
    return "" if min(day, month) < 0 or pattern.startswith("%Y") else "%d" if day < month else "%m"


def is_compact_dates(texts: pl.Series) -> bool:
    """Whether whole numbers, of which two differ and some may be missing, are all dates without signs, such as `20240131`."""
    if not texts.head(NUM_TRIED).str.contains(_date_pattern(COMPACT_DATE)).all():
        return False
    texts = texts.drop_nulls().str.strip_chars()
    return texts.n_unique() > 1 and not DateFormat(pattern=COMPACT_DATE).read(texts).has_nulls()


def read_notation(notation: str, texts: pl.Series) -> AnyFormat | None:
    """Read what says how texts are written, as `strptime` takes it or like `1.234,5`; None if it says neither."""
    if "%" in notation:
        parts = re.findall(r"%(?:\.f|#?\d?\w)", notation)
        if not all(part in DATE_PARTS for part in parts):
            return None
        first, *others = notation.split(BESIDE)
        format = DateFormat(pattern=first, others=tuple(others)) if others else _choose_language(first, texts)
        return format.settle_century(texts)
    match = re.match(NOTATION, notation)
    if match is None:
        return None
    split = _split(texts)
    (unit, family), around = _name_units(split) or ("", ""), _join_signs(split)
    known = {"thousands": match[1], "decimal": match[2] or ("," if match[1] == "." else "."), "unit": unit, "family": family}
    known["negative"] = next((signs for signs in ("()", "-") if (around == signs).any()), "")
    return NumberFormat.model_validate(known)


def _choose_language(pattern: str, texts: pl.Series) -> DateFormat:
    """The language of months with which a pattern reads all texts; English if none does."""
    translated = translate_months(pl.Series([pattern.replace("%B", "%b").replace("%d.", "%d")]), "Spanish")[0]
    others = (DateFormat(pattern=translated, language=language) for language in MONTHS if "%b" in translated)
    english = DateFormat(pattern=pattern)
    return next((format for format in (english, *others) if not format.read(texts).has_nulls()), english)


def find_alike(texts: pl.Series) -> pl.Series:
    """Which texts look like a number, a date or a time of day, in whatever format."""
    any_body = "|".join(_body_pattern(*signs) for signs in READINGS)
    is_number = _split(texts)["body"].str.contains(any_body).fill_null(False)
    return is_number | texts.str.contains(CLOCK) | texts.str.contains(ANY_DATE)


def _list_formats(first: str, texts: pl.Series) -> Iterator[AnyFormat]:
    """List the formats that may read all texts, as they read the first."""
    if re.match(CLOCK, first):
        yield ClockFormat()
    known = (*DATE_TIMES, *(date + time for date in DATES for time in TIMES))
    dates = [pattern for pattern in known if re.match(_date_pattern(pattern), first)]
    yield from (DateFormat(pattern=pattern) for pattern in dates)
    for language in MONTHS if re.search(MONTH, first) else ():
        translated = translate_months(texts[:1], language)[0]
        fitting = [pattern for pattern in known if "%b" in pattern and re.match(_date_pattern(pattern), translated)]
        yield from (DateFormat(pattern=pattern, language=language) for pattern in fitting)
    if dates or not any(sign.isdigit() for sign in first):
        return
    parts = _split(texts)
    named, bodies = _name_units(parts), parts["body"]
    if bodies.has_nulls() or named is None:
        return
    unit, family = named
    around = [*_join_signs(parts).unique().sort()]
    if around not in ([""], ["", "()"], ["", "-"]):
        return
    signs = [signs for signs in READINGS if bodies.str.contains(_body_pattern(*signs)).all()]
    with_commas = bodies.filter(bodies.str.contains(",", literal=True))
    if with_commas.len() and with_commas.str.contains(_body_pattern(",", ".")).all():
        # Three digits after every comma: thousands, if no number of four digits or more lacks a comma; else ambiguous.
        signs = [(",", ".")] if (",", ".") in signs else [*signs, (",", ".")]
    for thousands, decimal in signs:
        fields = {"thousands": thousands, "decimal": decimal, "unit": unit, "family": family, "negative": around[-1]}
        yield NumberFormat.model_validate(fields)


def _name_units(parts: Mapping[str, pl.Series]) -> tuple[str, str] | None:
    """The unit of split numbers, and the family of those that they have beside it; None if there is no such."""
    units, after = ({*parts[name]} - {"", None} for name in ("before", "after"))
    families = (name for name, scales in FAMILIES.items() if after <= scales.keys() and (len(after) > 1 or after - {*UNITS}))
    family = next(families, "")
    units |= set() if family else after
    return ("".join(units), family) if len(units) <= 1 else None


def _split(texts: pl.Series) -> dict[str, pl.Series]:
    """The parts of numbers by their name in `NUMBER`, empty where absent; the body is null if a text is not a number."""
    parts = texts.str.extract_groups(NUMBER).struct.unnest()
    return {name: parts[name] if name == "body" else parts[name].fill_null("") for name in parts.columns}


def _join_signs(parts: Mapping[str, pl.Series]) -> pl.Series:
    """The brackets around split numbers, or the minus sign after them."""
    return (parts["open"] + parts["open_after"] + parts["end"]).str.replace(MINUS, "-", literal=True)


@functools.cache
def _body_pattern(thousands: str, decimal: str) -> str:
    """A pattern of digits in groups of three; with commas also as in India, where the groups before the last have two."""
    point = re.escape(decimal)
    whole = r"\d+"
    if thousands:
        sign = SEPARATORS[thousands]
        indian = r"|[1-9]\d?(?:,\d{2})+,\d{3}" if thousands == "," else ""
        whole = rf"(?:[1-9]\d{{0,2}}(?:{sign}\d{{3}})+|\d{{1,3}}{indian})"
    return rf"^(?:{whole}(?:{point}\d*)?|{point}\d+)$"


def _read_dates(texts: pl.Series, pattern: str) -> pl.Series:
    is_written_so = texts.str.contains(_date_pattern(pattern)).fill_null(False)
    texts = texts.set(~is_written_so, None)
    if pattern == YEAR:
        texts, pattern = texts + " 01", f"{pattern} %m"
    if "%d" not in pattern and "%e" not in pattern:
        texts, pattern = texts + " 01", f"{pattern} %d"
    found = texts.str.to_datetime(pattern, time_unit="us", strict=False)
    return found.dt.replace_time_zone(None)  # polars has turned all zones into UTC


@functools.cache
def _date_pattern(pattern: str) -> str:
    """A regular expression that is stricter than `strptime`."""
    if pattern == COMPACT_DATE:
        return r"^(?:19|20)\d{6}$"
    if "%d" not in pattern and "%e" not in pattern:
        pattern = pattern.replace("%m", "%2m")  # with one digit, it may be a quarter
    return "^" + re.sub(r"%(?:\.f|#?\d?\w)|[. ]", lambda part: DATE_PARTS[part[0]], pattern) + "$"
