"""Chooses how a column is read that may be read in several ways: by its own cells, else by those of its neighbours.

Two things are ambiguous: which of day and month comes first, and whether `4.282` and `8,627` are fractions or thousands.
"""

from collections.abc import Iterable, Sequence

import polars as pl

from refit.tables.formats import AnyFormat, DateFormat, NumberFormat

NUM_LOOKED_AT = 10_000
"""Cells of a column that are searched for its decimal sign."""
NUM_TRIED = 100
"""Another reading is only looked for if it reads this many texts."""
FEWEST_HUNDREDS = 100
"""Numbers below a thousand that stand beside thousands are mostly hundreds; fractions stand beside small numbers."""
MAY_BE_THOUSANDS = r"^\s*(?:[+\-]?[1-9]\d{0,2}(?:\.\d{3})?|0)\s*$|^\s*[^\d\s]*\s*$"
"""A plain number that may have a point between its thousands, or none."""
FOUR_DIGITS = r"^\D*\d{4,}\D*$"
"""A whole number that has no sign between its thousands."""
PLAIN = NumberFormat()
ENGLISH_UNITS = ("$", "US$", "A$", "C$", "£", "USD", "GBP", "AUD", "CAD", "Rs", "Rs.", "₹", "INR", "+")
"""Units of countries with a decimal point, and the sign of counts."""


def list_readings(texts: pl.Series, format: NumberFormat | None) -> tuple[NumberFormat, ...]:
    """List the ways to read numbers that a format reads: more than one if all may be fractions of three digits or thousands.

    Args:
        texts: The cells; blanks around them, and null, do not count.
        format: The format that reads them; None for plain numbers.
    """
    known = format or PLAIN
    if format is None and not texts.head(NUM_TRIED).str.contains(MAY_BE_THOUSANDS).all():
        return ()
    if known.unit in ENGLISH_UNITS or (known.thousands, known.decimal) not in (("", "."), (",", ".")):
        return ()
    signs = {"thousands": "", "decimal": ","} if known.thousands else {"thousands": ".", "decimal": ","}
    other = known.model_copy(update=signs)
    for some in (texts.head(NUM_TRIED), texts):
        some = some.drop_nulls().str.strip_chars()
        if (
            some.str.contains(FOUR_DIGITS).any()
            or not some.len()
            or other.read(some).has_nulls()
            or known.read(some).equals(other.read(some))
        ):
            return ()
    return known, other


def find_decimal_signs(texts: pl.Series) -> set[str]:
    """Find the decimal signs that the first numbers show beyond doubt."""
    first = texts.head(NUM_LOOKED_AT)
    return {sign for sign, others in ((".", ","), (",", ".")) if first.str.contains(_pattern_of_sign(sign, others)).any()}


def choose_number(choices: Sequence[NumberFormat], texts: pl.Series, signs: set[str]) -> NumberFormat | None:
    """Choose by the decimal signs of other columns, else by the cells: hundreds such as `512` stand beside thousands."""
    fitting = [choice for choice in choices if {choice.decimal} == signs]
    if fitting:
        return fitting[0]
    hundreds = texts.str.extract(r"^\D*(\d{1,3})\D*$").drop_nulls().cast(pl.Float64)
    is_round = texts.str.contains(r"[.,]\d\d0\D*$").any()  # who leaves out `.000` would leave out a last zero, too
    if not is_round or not hundreds.len() or hundreds.median() < FEWEST_HUNDREDS:  # type: ignore[operator]
        return None
    return next((choice for choice in choices if choice.thousands), None)


def choose_date(choices: Sequence[AnyFormat], others: Iterable[AnyFormat]) -> AnyFormat | None:
    """Choose the reading with the day or the month first, as in neighbouring columns that agree."""
    firsts = {other.first for other in others if isinstance(other, DateFormat)} - {""}
    fitting = [choice for choice in choices if isinstance(choice, DateFormat) and choice.first in firsts]
    return fitting[0] if len(fitting) == 1 else None


def _pattern_of_sign(sign: str, other: str) -> str:
    """A pattern of numbers in which `sign` cannot stand between thousands, or in which `other` does."""
    return (
        rf"[{sign}]\d{{1,2}}(?:[^\d{sign}]|$)|[{sign}]\d{{4}}|(?:^|[^\d.,])0[{sign}]\d|\d{{4}}[{sign}]\d"
        rf"|[{other}]\d{{3}}[{sign}]\d|\d[{other}]\d{{3}}[{other}]\d{{3}}(?:\D|$)"
    )
