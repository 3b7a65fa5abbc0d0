"""Finds columns that only tell rows apart: row numbers and ids, from which nothing can be learned for other rows."""

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from refit.tables.conversion import Numbers
from refit.tables.schema import Reading

MIN_ROWS = 20
"""In fewer rows, measurements may all differ, or count up, too."""
NUM_LOOKED_AT = 100
"""Rows looked at first, as most columns are no labels."""
CODE = r"^[A-Za-z0-9]+(?:[-_./:#][A-Za-z0-9]+)*$"
"""A code without blanks, such as `C-0017`; short ones without a letter may be months or quarters."""
YEAR_WORDS = {"time", "year", "yr", "jahr", "jaar", "annee", "ano", "anno"}
"""They name what counts up by itself and means something."""
QUANTITY_WORDS = {
    *("day", "days", "week", "weeks", "month", "months", "quarter", "hour", "hours", "minute", "minutes", "second", "seconds"),
    *("tag", "tage", "woche", "wochen", "monat", "monate", "stunde", "jour", "jours", "semaine", "mois", "dia", "mes", "semana"),
    *(
        "age",
        "alter",
        "temperature",
        "temperatur",
        "temp",
        "dose",
        "dosis",
        "distance",
        "depth",
        "height",
        "length",
        "size",
        "level",
    ),
    *("step", "steps", "iteration", "epoch", "cycle", "round", "position", "pos", "rank", "rang", "lag", "frequency", "wavelength"),
    *("count", "counts", "amount", "price", "score", "speed", "pressure", "voltage", "level"),
}
"""They name what may be measured at each number in turn."""
LEAST_START = 1000
"""Row numbers begin at 0, at 1, or so high that nothing is measured from there on."""
ID_WORDS = {"id", "ids", "uid", "uuid", "guid", "index", "idx", "key", "rowid", "rownames"}
ID_OWNERS = {
    *(
        "account",
        "acct",
        "applicant",
        "app",
        "booking",
        "candidate",
        "case",
        "claim",
        "client",
        "customer",
        "cust",
        "device",
        "donor",
    ),
    *(
        "driver",
        "emp",
        "employee",
        "event",
        "flight",
        "game",
        "guest",
        "host",
        "hotel",
        "house",
        "invoice",
        "item",
        "job",
        "listing",
    ),
    *("loan", "machine", "match", "member", "message", "movie", "obs", "observation", "order", "passenger", "patient", "person"),
    *(
        "player",
        "policy",
        "post",
        "prod",
        "product",
        "property",
        "pt",
        "record",
        "res",
        "restaurant",
        "review",
        "row",
        "sale",
        "sample",
    ),
    *("school", "session", "shop", "song", "station", "store", "student", "subject", "ticket", "track", "trans", "transaction"),
    *("trip", "user", "vehicle", "visit", "visitor"),
}
"""They have ids that may be called in one word, such as `userid`."""
NUMBER_WORDS = {"nr", "no", "num", "number", "nummer", "numero", "code"}
"""They name an id only at the end: a house number may be one, a number of houses is not."""


def find_label(name: str, values: pl.Series, typed: pl.Series, reading: Reading, starts: Sequence[int] = ()) -> str | None:
    """Say why a column only tells rows apart, if it does: its values all differ, and count up, are codes, or are called ids.

    Args:
        name: Of the column.
        values: As they were read.
        typed: The same, converted.
        reading: How they were converted.
        starts: The first rows of each part of the table, where counting may begin again.
    """
    if len(typed) < MIN_ROWS or typed.has_nulls() or reading.format is not None:
        return None
    if reading.kind == "numeric":
        if not float(typed[0]).is_integer():
            return None
        numbers = typed.cast(pl.Float64).to_numpy()
        if not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
            return None
        words = {*split_name(name)}
        is_start = numbers[0] in (0, 1) or numbers[0] >= LEAST_START or is_named_like_id(name)
        if is_start and not words & (YEAR_WORDS | QUANTITY_WORDS) and _counts_up(numbers, starts):
            return f"row numbers, from {numbers[0]:.0f} on"
        return "ids: all different, and named so" if is_named_like_id(name) and _all_differ(typed) else None
    if reading.kind != "categorical" or values.dtype != pl.String or not _all_differ(typed.head(NUM_LOOKED_AT)):
        return None
    is_code = typed.str.contains(CODE) & typed.str.contains(r"\d") & (typed.str.contains("[A-Za-z]") | (typed.str.len_chars() >= 8))
    if is_code.all() and typed.str.replace_all("[A-Za-z0-9]+", "x").n_unique() == 1 and _all_differ(typed):
        return "ids: all different, and codes of one pattern"
    return "ids: all different, and named so" if is_named_like_id(name) and _all_differ(typed) else None


def remark_on_counting(name: str, typed: pl.Series, reading: Reading, starts: Sequence[int] = ()) -> str | None:
    """Say that a column that is learned from counts up from row to row; arguments as those of `find_label`."""
    if reading.kind != "numeric" or reading.format is not None or len(typed) < MIN_ROWS or typed.has_nulls():
        return None
    if typed[1] - typed[0] != 1 and 1 not in starts:
        return None
    if YEAR_WORDS.intersection(split_name(name)) or not _counts_up(typed.cast(pl.Float64).to_numpy(), starts):
        return None
    return "counts up by one from row to row; leave it out with data.exclude if it only numbers the rows"


def _counts_up(numbers: Numbers, starts: Sequence[int]) -> bool:
    """Whether numbers grow by one from row to row; parts of the table may each begin anew."""
    return all(_grows_by_one(some, starts) for some in (numbers[:NUM_LOOKED_AT], numbers))


def _grows_by_one(numbers: Numbers, starts: Sequence[int]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(numbers)
    steps[[start - 1 for start in starts if 0 < start <= len(steps)]] = 1
    return bool((steps == 1).all())


def _all_differ(values: pl.Series) -> bool:
    return values.n_unique() == len(values)


def split_name(name: str) -> list[str]:
    """The words of a name, in lower case: `CustomerId` has two."""
    return re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())


def is_named_like_id(name: str) -> bool:
    """Whether a name ends, or begins, in a word for an id, as in `CustomerId`, `userid`, `id_client` and `Unnamed: 0`."""
    words = split_name(name)
    if not words:
        return False
    is_owned = words[-1].endswith("id") and words[-1].removesuffix("id") in ID_OWNERS
    return is_owned or words[0] in {*ID_WORDS, "unnamed"} or words[-1] in ID_WORDS | NUMBER_WORDS
