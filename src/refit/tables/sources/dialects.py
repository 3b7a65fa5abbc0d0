"""Finds how a CSV file is written: what separates its cells, and whether its first row is a header."""

import contextlib
import csv
import io
import itertools
import re
from collections import Counter

import duckdb
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import BaseModel, ConfigDict

from refit.settings import DataSettings
from refit.tables.sources.encoded_text import Settle, is_unicode, name_encoding, open_text, take_found
from refit.tables.sources.files import Opened

SEPARATORS = (",", ";", "\t", "|")
"""What separates cells, unless it is given."""
HEAD_BYTES = 1 << 18
NUM_ROWS = 1000
"""Rows of the head that are compared with the first."""
MIN_ROWS = 3
"""Fewer rows do not show whether the first is one of them."""
MIN_WIDTH = 3
"""In a narrower table, a row with one cell may be the header of a table with a comma in its texts."""
MAX_TITLES = 30
MOST_SHARE = 0.6
APOSTROPHE, APOSTROPHE_SHARE = "'", 0.9
HEAD = "head.csv"
HINT = re.compile(rb"\s*sep=(.)\r?\n?", re.DOTALL)
"""Excel's first line, such as `sep=;`, which names the separator."""
SNIFF = """
SELECT Delimiter, HasHeader AND SkipRows = 0, list_any_value(list_filter(Columns, lambda c: c.type <> 'VARCHAR')) IS NOT NULL
FROM sniff_csv($path, {separator} quote = '"', escape = '"', comment = '', strict_mode = {is_strict}, null_padding = {is_padded})
"""
WHOLE = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
DIGITS = re.compile(r"\d+")
DECIMALS = re.compile(r"\D*\d+(?:,\d+)+\D*")
YEARS = range(1800, 2200)
MARKS = ("", "?", "-", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Cells that say nothing of the others in their column."""


class Dialect(BaseModel):
    """How a CSV file is written; None where that is not known.

    Args:
        separator: The sign between cells.
        encoding: The encoding of its text, as Python names it; `ascii` where it has no other signs.
        header: Whether the first row holds names.
        above: Rows above the header that are titles or notes.
        quote: The sign around cells, if it is not the usual one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None
    above: int | None = None
    quote: str | None = None

    def fill_in(self, other: "Dialect") -> "Dialect":
        """Take from another dialect what is not known of this one."""
        return Dialect(**(other.model_dump(exclude_none=True) | self.model_dump(exclude_none=True)))

    def agrees_with(self, now: "Dialect", given: DataSettings) -> bool:
        """Whether files are still written like this, but for what the settings say of how to read them."""
        same = [
            given.separator is not None or self.separator == now.separator,
            given.header is not None or self.header == now.header,
            self.quote == now.quote,
        ]
        encodings = {self.encoding, now.encoding} - {None, "ascii"}
        return all(same) and (given.encoding is not None or len({is_unicode(str(encoding)) for encoding in encodings}) < 2)

    def describe(self) -> str:
        """Say in words how a file is written."""
        encoding = "text in several encodings" if self.encoding is None else f"text in {name_encoding(self.encoding)}"
        return (
            f"with {name_separator(self.separator)} between cells, as {encoding}, {'with' if self.header else 'without'} a header"
        )


PLAIN = Dialect(separator=",", header=True)
UNKNOWN = Dialect()


def name_separator(separator: str | None) -> str:
    """A separator as people call it."""
    return {"\t": "tabs", " ": "blanks"}.get(separator or ",", f"`{separator}`")


def read_given(settings: DataSettings) -> Dialect:
    """What the settings say of the dialect."""
    return Dialect(separator=settings.separator, encoding=settings.encoding, header=settings.header)


def sniff_dialect(opened: Opened, given: Dialect = UNKNOWN, settle: Settle = take_found) -> Dialect:
    """Find separator and header by the beginning of a file; `header` is None if it does not show whether there is one."""
    with open_text(opened, given.encoding, settle) as file:
        head = file.read(HEAD_BYTES)
        if file.read(1):
            head = head[: max(head.rfind(b"\n"), head.rfind(b"\r")) + 1] or head
    hint = HINT.match(head)
    if hint:
        head = head[hint.end() :]
    separator = given.separator or (hint[1].decode("utf-8", "replace") if hint else None)
    found, has_header, is_typed = _ask_duckdb(head, separator)
    separator = separator or (_find_beside_decimals(head) if found == "," else found)
    if given.separator is None and len(_split_rows(head, separator)[0]) < 2 and not hint:
        separator = " " if _is_split_by_blanks(head) else ","
    rows = _split_rows(head, separator)
    quote = APOSTROPHE if _are_in_apostrophes(rows) else None
    rows = _split_rows(head, separator, quote) if quote else rows
    above = _count_titles(rows)
    width = _find_width(rows)
    if not above and given.separator is None and not hint and (len(rows[0]) < width or width == 1):
        separator = _find_in_most_rows(head) or separator
        rows = _split_rows(head, separator)
        above = _count_titles(rows)
    if given.header is None:
        has_header = _judge_first_row(rows[above:], None if above else has_header, is_typed)
    header = has_header if given.header is None else given.header
    return Dialect(separator=separator, encoding=given.encoding, header=header, above=above or None, quote=quote)


class _Memory(MemoryFileSystem):  # type: ignore[misc]
    """Files in memory that nobody else sees, as a disk may be full."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, object] = {}
        self.pseudo_dirs = [""]


def _ask_duckdb(head: bytes, separator: str | None) -> tuple[str, bool | None, bool]:
    """Ask DuckDB for the separator, whether there is a header, and whether a column holds something else than text."""
    given = {} if separator is None else {"separator": separator}
    with duckdb.connect(config={"threads": 1}) as connection:
        files = _Memory()
        files.pipe_file(f"/{HEAD}", head.decode("utf-8", "replace").encode())
        connection.register_filesystem(files)
        for is_strict, is_padded in (("true", "false"), ("false", "true")):
            given_separator = "delim = $separator," if given else ""
            sniff = SNIFF.format(separator=given_separator, is_strict=is_strict, is_padded=is_padded)
            with contextlib.suppress(duckdb.Error):
                found = connection.execute(sniff, {"path": f"memory://{HEAD}", **given}).fetchone()
                if found is not None and (given or found[0] in SEPARATORS):
                    return found
    return separator or ",", None, False


def _find_beside_decimals(head: bytes) -> str:
    """A separator of all rows where commas stand only within numbers; otherwise the comma."""
    for separator in SEPARATORS[1:]:
        rows = _split_rows(head, separator)
        if len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            cells = [cell for row in rows for cell in row if "," in cell]
            if all(map(DECIMALS.fullmatch, cells)):
                return separator
    return ","


def _is_split_by_blanks(head: bytes) -> bool:
    """Whether all rows have as many words, most of them numbers."""
    rows = _split_rows(head, " ")
    cells = [cell for row in rows[1:] for cell in row]
    is_even = len(rows) > MIN_ROWS and {len(row) for row in rows} == {len(rows[0])} and len(rows[0]) > 1
    return is_even and all(cells) and 2 * sum(map(bool, map(NUMBER.fullmatch, cells))) > len(cells)


def _are_in_apostrophes(rows: list[list[str]]) -> bool:
    """Whether nearly all cells of text are in apostrophes, which other programs write instead of quotes."""
    cells = [cell for row in rows for cell in row if cell and not NUMBER.fullmatch(cell)]
    starts, ends = ([cell[place] == APOSTROPHE for cell in cells] for place in (0, -1))  # a cell with a separator is in two parts
    num_quoted = sum(starts[place] or ends[place] for place in range(len(cells)))
    return len(rows) > MIN_ROWS and sum(starts) == sum(ends) and num_quoted > APOSTROPHE_SHARE * len(cells)


def _split_rows(head: bytes, separator: str, quote: str = '"') -> list[list[str]]:
    """The first rows that are not blank, as far as they can be read; one at least."""
    rows = []
    with contextlib.suppress(csv.Error):
        lines = io.StringIO(head.decode("utf-8", "replace"), newline="")
        for row in itertools.islice(filter(None, csv.reader(lines, delimiter=separator, quotechar=quote)), NUM_ROWS):
            rows.append([cell.strip() for cell in row])
    return rows or [[]]


def _count_titles(rows: list[list[str]]) -> int:
    """Count the rows above the header: titles and notes, which fill few of the table's cells, and notes after a `#`."""
    width = _find_width(rows)
    few = max(1, width // 3) if width >= MIN_WIDTH else 0

    def is_title(row: list[str]) -> bool:
        filled = [*filter(None, row)]
        is_note = len(row) < width and row[0].startswith("#")
        return is_note or (len(filled) <= few and not NUMBER.fullmatch("".join(row[:1])))

    above = next((place for place, row in enumerate(rows[: MAX_TITLES + 1]) if not is_title(row)), 0)
    is_full = len(rows[above]) == width and 2 * sum(map(bool, rows[above])) > width
    return above if is_full and sum(len(row) == width for row in rows) > MIN_ROWS else 0


def _find_in_most_rows(head: bytes) -> str | None:
    """A separator of most rows, which begin with the first or below titles, where notes keep others from being found."""
    for separator in SEPARATORS:
        rows = _split_rows(head, separator)
        width = _find_width(rows)
        is_regular = width > 1 and sum(len(row) == width for row in rows) > MOST_SHARE * len(rows)
        if _count_titles(rows) or (is_regular and len(rows[0]) == width and len(rows) > MIN_ROWS):
            return separator
    return None


def _find_width(rows: list[list[str]]) -> int:
    """The number of cells that most rows have."""
    return Counter(map(len, rows)).most_common(1)[0][0]


def _judge_first_row(rows: list[list[str]], by_duckdb: bool | None, is_typed: bool) -> bool | None:
    """Whether the first row is a header; None if nothing shows it.

    A column speaks if its cells repeat, or if all have digits: then the first cell is one of them, or written like one.
    """
    first, *others = rows
    others = [row for row in others if len(row) == len(first)]
    if len(others) < MIN_ROWS:
        return None
    numbers = [int(cell) for cell in first if WHOLE.fullmatch(cell)]
    is_counting = len(numbers) > 1 and {after - before for before, after in itertools.pairwise(numbers)} == {1}
    if is_counting and (len(numbers) > MIN_ROWS or all(number in YEARS for number in numbers)):
        return True  # 2010, 2011, 2012 are names, and so are 0, 1, 2, 3
    if not first[0] and any(first) and all(row[0] for row in others):
        return True  # row numbers need no name
    by_text, by_digits = list[bool](), list[bool]()
    for cell, column in zip(first, zip(*others, strict=True), strict=True):
        present = list(filter(None, column))
        if not present or cell in MARKS:
            continue
        if all(map(DIGITS.search, present)):
            by_digits.append(DIGITS.sub("0", cell) in {DIGITS.sub("0", other) for other in present})
        elif 2 * len(set(present)) <= len(present):
            by_text.append(cell in present)
    votes = [*by_text, *by_digits]
    if votes and all(votes) and (len(votes) >= MIN_ROWS or not (by_duckdb and is_typed)):
        return False
    votes = by_text or by_digits  # numbers may be names, too
    if is_typed and (not votes or by_duckdb):
        return by_duckdb
    return None if not votes else True if not any(votes) else False if sum(votes) > len(votes) / 2 else None
