"""Reads CSV files as text, a block of whole rows at a time, for training and for scoring alike.

An empty line is not a row. pyarrow reads a file up to the first row that it would read wrongly or not at all, such as one with a
lone quote. From there on, Python's `csv` reads it, and finds what is wrong with it.
"""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from refit.errors import DataError
from refit.tables.sources.dialects import PLAIN, Dialect
from refit.tables.sources.encoded_text import UTF8, Settle, name_encoding, open_text, take_found
from refit.tables.sources.files import NO_TEXT, UNREADABLE, Opened, check_names
from refit.texts import show

BLOCK_BYTES, WIDE_BLOCK_BYTES = 1 << 20, 1 << 22
"""pyarrow reads so much at a time, the second if there are many columns, and holds up to 32 blocks; longer rows are left to `csv`.

More than one byte, as pyarrow takes a block of `\\n` alone, after one that ends in `\\r`, for the end of the file.
"""
MANY_COLUMNS = 1000
MAX_ROW_BYTES = 1 << 27
"""A longer row is taken for one with a quote that is never closed."""
ROWS_A_FRAME = 65_536
"""Rows that `csv` reads at a time."""
ROWS_COMPARED = 5
"""Rows after the header that are checked for cells without a name in it."""

MIN_WIDTH = 3
"""A table has so many columns at least if a row with a single text below it is a note."""
TellNotes: TypeAlias = Callable[[int, str], object]

LINE_FEED, CARRIAGE_RETURN = (ord(sign) for sign in "\n\r")
EXCEL_HINT = ["sep=", ""]
"""Excel's first line, such as `sep=,`, which names the separator."""
ROW_NUMBER = re.compile(r"\d+")

TOO_LONG = "field larger than field limit"
"""How `csv` reports a longer cell."""
csv.field_size_limit(MAX_ROW_BYTES)


@dataclass(frozen=True)
class Header:
    """What stands before the rows.

    Args:
        names: Of all columns; those with an empty one are not columns of the table.
        num_bytes: Bytes before the first row, as UTF-8.
    """

    names: list[str]
    num_bytes: int


class _Lines(Iterator[str]):
    """The lines of a file as text, counted; bytes that are not UTF-8 come as lone surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        self.last = ""
        self.num_bytes = 0

    def __next__(self) -> str:
        self.last = line = self._text.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        if len(line) >= MAX_ROW_BYTES:
            raise csv.Error(TOO_LONG)
        self.num_bytes += len(line.encode("utf-8", "surrogateescape"))
        return line


def read_header(opened: Opened, path: str, dialect: Dialect = PLAIN, settle: Settle = take_found) -> Header:
    """Read the header of a CSV file, after Excel's `sep=,` if there is one; without a header, make the names.

    Args:
        opened: The file.
        path: Its name, for messages.
        dialect: How it is written; at least its separator is known.
        settle: Asked for the encoding if the dialect does not know it.

    Raises:
        DataError: The file cannot be read as CSV, or has no header with a name for each cell of the rows.
    """
    names, rows, num_bytes = _read_start(opened, path, dialect, settle)
    if not names:
        raise DataError(f"{path}: expected a header and rows, found an empty file; write it again or remove it")
    if dialect.header is False:
        return Header([f"column_{place}" for place in range(1, len(names) + 1)], num_bytes)
    if NO_TEXT.search(names[0]):
        raise DataError(f"{path}: expected text in {_name(dialect)}, found other bytes in the header; correct data.encoding")
    return Header(check_names(_complete(names, rows, path), path), num_bytes)


def read_first_row(opened: Opened, path: str, dialect: Dialect, settle: Settle = take_found) -> list[str]:
    """Read the cells of the first row, stripped; arguments and errors as those of `read_header`."""
    return [cell.strip() for cell in _read_start(opened, path, dialect, settle)[0]]


def _read_start(opened: Opened, path: str, dialect: Dialect, settle: Settle) -> tuple[list[str], list[list[str]], int]:
    """The first row, some that follow it, and the bytes before the first row of data."""
    try:
        with open_text(opened, dialect.encoding, settle) as file:
            lines, num_bytes = _Lines(file), 0
            records = filter(None, csv.reader(lines, delimiter=dialect.separator or ",", quotechar=dialect.quote or '"'))
            names = next(records, [])
            for _ in range((names == EXCEL_HINT) + (dialect.above or 0)):
                num_bytes, names = lines.num_bytes, next(records, [])
            num_bytes = num_bytes if dialect.header is False else lines.num_bytes
            rows = list(itertools.islice(records, ROWS_COMPARED))
    except csv.Error as error:
        raise DataError(f"{path}: {_explain(error, lines.last)}") from error
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error
    return names, rows, num_bytes


def _complete(names: list[str], rows: list[list[str]], path: str) -> list[str]:
    """Add an empty name for row numbers that R writes without one, or for the empty cells after a last comma.

    Raises:
        DataError: Most rows have more cells than the header has names, for another reason.
    """
    width = max(map(len, rows), default=0)
    if len(names) >= width or 2 * sum(len(cells) == width for cells in rows) <= len(rows):
        return names
    rows = [cells for cells in rows if len(cells) == width]
    if len(names) == width - 1 and not any(cells[-1] for cells in rows):
        return [*names, ""]
    starts = [cells[0] for cells in rows]
    is_counting = all(map(ROW_NUMBER.fullmatch, starts)) and [*map(int, starts)] == [*range(int(starts[0]), int(starts[-1]) + 1)]
    if len(names) == width - 1 and len(rows) > 1 and is_counting:
        return ["", *names]
    raise DataError(
        f"{path}: expected a header with a name for each of the {width} cells of the rows, found {len(names)} in"
        f" `{show(','.join(names))}`; remove the lines above the header, or name all columns"
    )


def iterate_csv(
    opened: Opened,
    path: str,
    dialect: Dialect = PLAIN,
    settle: Settle = take_found,
    tell_notes: TellNotes = lambda *_: None,
) -> Iterator[pl.DataFrame]:
    """Read the rows of a CSV file, in one block or more, all cells as text; empty cells are null.

    Args:
        opened: The file.
        path: Its name, for messages.
        dialect: How it is written; at least its separator is known.
        settle: Asked for the encoding if the dialect does not know it.
        tell_notes: Told how many notes stand below the rows, and how they begin; they are left out.

    Raises:
        DataError: As `read_header`; or a row is short, long, in another encoding, or its quotes are not in pairs around cells.
    """
    header = read_header(opened, path, dialect, settle)
    kept = [place for place, name in enumerate(header.names) if name]
    try:
        file = _CsvFile(opened, path, header, dialect, settle, tell_notes)
        frames = file.iterate()
        none = pl.DataFrame(schema=dict.fromkeys(map(str, range(len(header.names))), pl.String))
        for frame in itertools.chain([next(frames, none)], frames):
            named = frame[:, kept] if len(kept) < frame.width else frame
            named.columns = [header.names[place] for place in kept]
            yield named
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error


def name_row(opened: Opened, path: str, row: int, dialect: Dialect = PLAIN) -> str:
    """Say where a row of a CSV file is, and at which line it begins; rows count from 1, without the header and blank lines."""
    try:
        with open_text(opened, dialect.encoding) as file:
            reader = csv.reader(_Lines(file), delimiter=dialect.separator or ",", quotechar=dialect.quote or '"')
            num_records, line = int(dialect.header is False) - (dialect.above or 0), 0  # the header counts as the first
            is_first = True
            while num_records <= row:
                line = reader.line_num + 1
                cells = next(reader)
                num_records += bool(cells) and not (is_first and cells == EXCEL_HINT)
                is_first = is_first and not cells
    except (*UNREADABLE, csv.Error, StopIteration):
        return f"row {row} of {path}"
    return f"row {row} of {path}, line {line}"


class _CsvFile:
    """A CSV file whose header is known; arguments as those of `iterate_csv`."""

    def __init__(self, opened: Opened, path: str, header: Header, dialect: Dialect, settle: Settle, tell_notes: TellNotes) -> None:
        self.opened, self.path, self.header, self.dialect, self.settle = opened, path, header, dialect, settle
        self.tell_notes = tell_notes
        self.encoding = dialect.encoding or UTF8

    def iterate(self) -> Iterator[pl.DataFrame]:
        """The frames of `iterate_csv`, before their columns are named."""
        num_rows = 0
        try:
            for frame in self._read_blocks():
                yield frame
                num_rows += frame.height
        except (pa.ArrowInvalid, _LoneQuoteError):
            yield from self._read_rows(num_rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The rows, as UTF-8."""
        with open_text(self.opened, self.dialect.encoding, self._settle) as file:
            num_bytes = self.header.num_bytes
            while num_bytes and (data := file.read(min(num_bytes, BLOCK_BYTES))):
                num_bytes -= len(data)
            yield file

    def _settle(self, found: str) -> str:
        self.encoding = self.settle(found)
        return self.encoding

    @property
    def _separator(self) -> str:
        return self.dialect.separator or ","

    @property
    def _quote(self) -> str:
        return self.dialect.quote or '"'

    def _read_blocks(self) -> Iterator[pl.DataFrame]:
        """The rows as pyarrow reads them, up to what raises ArrowInvalid or _LoneQuoteError."""
        names = [f"column {position}" for position in range(len(self.header.names))]
        as_text = dict.fromkeys(names, pa.string())
        block_bytes = WIDE_BLOCK_BYTES if len(names) > MANY_COLUMNS else BLOCK_BYTES
        with (
            self._open() as file,
            pa_csv.open_csv(
                _PairedQuotes(file, self._separator, self._quote),
                pa_csv.ReadOptions(use_threads=False, block_size=block_bytes, column_names=names),
                pa_csv.ParseOptions(delimiter=self._separator, quote_char=self._quote, newlines_in_values=True),
                pa_csv.ConvertOptions(column_types=as_text, null_values=[""], strings_can_be_null=True),
            ) as reader,
        ):
            for batch in reader:
                yield cast(pl.DataFrame, pl.from_arrow(batch))

    def _read_rows(self, num_before: int) -> Iterator[pl.DataFrame]:
        """The rows after the first `num_before` as `csv` reads them, which keeps a quote within an unquoted cell."""
        row, held, notes = 0, list[list[str]](), list[tuple[list[str], int]]()
        with self._open() as file:
            lines = _Lines(file)
            try:
                for cells in filter(None, csv.reader(lines, delimiter=self._separator, quotechar=self._quote, strict=True)):
                    row += 1
                    if row <= num_before:
                        continue
                    if self._may_be_note(cells, bool(notes)):
                        notes.append((cells, row))
                        continue
                    for note in notes:
                        self._check_row(*note)  # which a row follows, so that it is none
                    self._check_row(cells, row)
                    held.append(cells)
                    if len(held) == ROWS_A_FRAME:
                        yield _make_frame(held)
                        held = []
            except csv.Error as error:
                where = self.path if TOO_LONG in str(error) else self._name_row(row + 1)
                raise DataError(f"{where}: {_explain(error, lines.last)}") from error
        if held:
            yield _make_frame(held)
        if notes:
            self.tell_notes(len(notes), notes[0][0][0])

    def _may_be_note(self, cells: list[str], is_going_on: bool) -> bool:
        """Whether a row may be a note below the table: a single text, or a short row after such."""
        if is_going_on:
            return len(cells) < len(self.header.names)
        return len(cells) == 1 and len(self.header.names) >= MIN_WIDTH and not any(map(str.isdigit, cells[0]))

    def _check_row(self, cells: list[str], row: int) -> None:
        if len(cells) != len(self.header.names):
            raise DataError(
                f"{self._name_row(row)}: expected {len(self.header.names)} cells as in the header, found {len(cells)};"
                " correct the row"
            )
        if NO_TEXT.search("".join(cells)):
            name, cell = next((name, cell) for name, cell in zip(self.header.names, cells, strict=True) if NO_TEXT.search(cell))
            found = repr(cell.encode("utf-8", "surrogateescape"))[1:]
            raise DataError(
                f"{self._name_row(row)}, column `{show(name)}`: expected text in {name_encoding(self.encoding)}, found the bytes"
                f" {show(found)}; correct the row, or name another encoding in data.encoding"
            )

    def _name_row(self, row: int) -> str:
        return name_row(self.opened, self.path, row, self.dialect)


def _name(dialect: Dialect) -> str:
    return name_encoding(dialect.encoding or UTF8)


class _LoneQuoteError(Exception):
    """A quote neither begins nor ends a cell, nor is it doubled within a quoted cell."""


class _PairedQuotes(io.RawIOBase):
    """The bytes of a file, up to a block with a lone quote, which pyarrow would misread without an error."""

    def __init__(self, file: BinaryIO, separator: str, quote: str) -> None:
        self._file, self._quote = file, quote.encode()
        self._last = b"\n"
        self._is_within = self._has_closed = False
        # Whether a byte may stand before a quote that opens, or after one that closes.
        self._is_beside = np.isin(np.arange(256), [ord(quote), ord(separator), LINE_FEED, CARRIAGE_RETURN])

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._quote in data or self._has_closed:
            self._check(np.frombuffer(self._last + data, np.uint8))
        elif not data and self._is_within:
            raise _LoneQuoteError
        self._last = data[-1:]
        return data

    def _check(self, signs: NDArray[np.uint8]) -> None:
        """Check a block; `signs` begins with the last byte of the block before it."""
        quotes = np.flatnonzero(signs[1:] == ord(self._quote)) + 1
        opening, closing = quotes[self._is_within :: 2], quotes[not self._is_within :: 2]
        if self._has_closed:
            closing = np.concatenate([[0], closing])
        self._is_within ^= bool(len(quotes) % 2)
        self._has_closed = len(closing) > 0 and int(closing[-1]) == len(signs) - 1
        after = closing[: len(closing) - self._has_closed] + 1
        if not (self._is_beside[signs[opening - 1]].all() and self._is_beside[signs[after]].all()):
            raise _LoneQuoteError


def _explain(error: csv.Error, line: str) -> str:
    if TOO_LONG in str(error):
        return f"expected rows of less than {MAX_ROW_BYTES} bytes, found a longer one; correct its quotes"
    if '\\"' in line:
        return 'expected quotes within a quoted cell to be doubled, found \\"; write them as ""'
    found = {"expected after": "a cell that goes on after its closing quote", "end of data": "one that is never closed"}
    what = next((words for sign, words in found.items() if sign in str(error)), str(error))
    return f"expected quotes in pairs, found {what}; correct the quotes of the row"


def _make_frame(rows: list[list[str]]) -> pl.DataFrame:
    columns = ([cell or None for cell in column] for column in zip(*rows, strict=True))
    return pl.DataFrame([pl.Series(f"column {position}", cells, pl.String) for position, cells in enumerate(columns)])
