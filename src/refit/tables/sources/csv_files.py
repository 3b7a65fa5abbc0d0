"""Reads CSV files as text, a block of whole rows at a time, for training and for scoring alike.

An empty line is not a row. pyarrow reads a file up to the first row that it would read wrongly or not at all, such as one with a
lone quote. From there on, Python's `csv` reads it, and finds what is wrong with it.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from refit.errors import DataError
from refit.tables.sources.files import NO_TEXT, UNREADABLE, Opened, check_names, describe_content, open_unpacked
from refit.texts import show

BLOCK_BYTES = 1 << 20
"""pyarrow reads so much at a time, and holds up to 32 blocks; longer rows are left to `csv`.

More than one byte, as pyarrow takes a block of `\\n` alone, after one that ends in `\\r`, for the end of the file.
"""
MAX_ROW_BYTES = 1 << 27
"""A longer row is taken for one with a quote that is never closed."""
ROWS_A_FRAME = 65_536
"""Rows that `csv` reads at a time."""
ROWS_COMPARED = 5
"""Rows after the header that are checked for cells without a name in it."""

QUOTE, COMMA, LINE_FEED, CARRIAGE_RETURN = (ord(sign) for sign in '",\n\r')
OTHER_SEPARATORS = re.compile(r"[;\t|]")
BESIDE_QUOTES = np.isin(np.arange(256), [QUOTE, COMMA, LINE_FEED, CARRIAGE_RETURN])
"""Whether a byte may stand before a quote that opens, or after one that closes."""
EXCEL_HINT = ["sep=", ""]
"""Excel's first line `sep=,`, which names the separator."""
BYTE_ORDER_MARK = "\ufeff"

TOO_LONG = "field larger than field limit"
"""How `csv` reports a longer cell."""
csv.field_size_limit(MAX_ROW_BYTES)


@dataclass(frozen=True)
class Header:
    """What stands before the rows.

    Args:
        names: Of all columns; an empty first one stands for an index, which is not a column of the table.
        num_bytes: Bytes before the first row, uncompressed.
    """

    names: list[str]
    num_bytes: int


class _Lines(Iterator[str]):
    """The lines of a file as text, counted; bytes that are not UTF-8 come as lone surrogates."""

    def __init__(self, file: BinaryIO, is_start: bool = True) -> None:
        self._is_start = is_start
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
        is_start, self._is_start = self._is_start, False
        return line.removeprefix(BYTE_ORDER_MARK) if is_start else line


def read_header(opened: Opened, path: str) -> Header:
    """Read the header of a CSV file, after Excel's `sep=,` if there is one.

    Raises:
        DataError: The file is not CSV with commas, or has no header with a name for each cell of the rows.
    """
    try:
        with open_unpacked(opened) as file:
            if content := describe_content(file.read(16)):
                raise DataError(f"{path}: expected CSV, found {content}")
        with open_unpacked(opened) as file:
            lines = _Lines(file)
            records = filter(None, csv.reader(lines))
            names = next(records, [])
            if names == EXCEL_HINT:
                names = next(records, [])
            num_bytes = lines.num_bytes
            rows = list(itertools.islice(records, ROWS_COMPARED))
    except csv.Error as error:
        raise DataError(f"{path}: {_explain(error, lines.last)}") from error
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error
    if not names:
        raise DataError(f"{path}: expected a header and rows, found an empty file; write it again or remove it")
    if NO_TEXT.search(names[0]):
        raise DataError(f"{path}: expected UTF-8 text, found other bytes in the header; write the file in UTF-8")
    if len(names) == 1 and OTHER_SEPARATORS.search(names[0]):
        raise DataError(
            f"{path}: expected commas between columns, found `{show(names[0])}` as the header; write the file with commas"
        )
    _check_width(names, rows, path)
    return Header(check_names(names, path), num_bytes)


def _check_width(names: list[str], rows: list[list[str]], path: str) -> None:
    """Raise DataError where most rows have more cells than the header has names."""
    width = max(map(len, rows), default=0)
    if len(names) < width and sum(len(cells) == width for cells in rows) > len(rows) / 2:
        ends_in_comma = len(names) == width - 1 and not any(cells[-1] for cells in rows)
        remedy = (
            "remove the comma at the end of the rows" if ends_in_comma else "remove the lines above the header, or name all columns"
        )
        raise DataError(
            f"{path}: expected a header with a name for each of the {width} cells of the rows, found {len(names)} in"
            f" `{show(','.join(names))}`; {remedy}"
        )


def iterate_csv(opened: Opened, path: str) -> Iterator[pl.DataFrame]:
    """Read the rows of a CSV file, in one block or more, all cells as text; empty cells are null.

    Raises:
        DataError: As `read_header`; or a row is short, long, not UTF-8, or its quotes are not in pairs around whole cells.
    """
    header = read_header(opened, path)
    try:
        frames = _iterate(opened, path, header)
        for frame in itertools.chain([next(frames, pl.DataFrame(schema=dict.fromkeys(header.names, pl.String)))], frames):
            frame.columns = header.names
            yield frame if header.names[0] else frame.drop("")
    except UNREADABLE as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error


def name_row(opened: Opened, path: str, row: int) -> str:
    """Say where a row of a CSV file is, and at which line it begins; rows count from 1, without the header and blank lines."""
    try:
        with open_unpacked(opened) as file:
            reader, num_records, line = csv.reader(_Lines(file)), 0, 0
            while num_records <= row:  # the header is the first
                line = reader.line_num + 1
                cells = next(reader)
                num_records += bool(cells) and not (num_records == 0 and cells == EXCEL_HINT)
    except (*UNREADABLE, csv.Error, StopIteration):
        return f"row {row} of {path}"
    return f"row {row} of {path}, line {line}"


def _iterate(opened: Opened, path: str, header: Header) -> Iterator[pl.DataFrame]:
    """The frames of `iterate_csv`, before their columns are named."""
    num_rows = 0
    try:
        for frame in _read_blocks(opened, header):
            yield frame
            num_rows += frame.height
    except (pa.ArrowInvalid, _LoneQuoteError):
        yield from _read_rows(opened, path, header, num_rows)


def _read_blocks(opened: Opened, header: Header) -> Iterator[pl.DataFrame]:
    """The rows as pyarrow reads them, up to what raises ArrowInvalid or _LoneQuoteError."""
    names = [f"column {position}" for position in range(len(header.names))]
    as_text = dict.fromkeys(names, pa.string())
    with open_unpacked(opened) as file:
        _skip(file, header.num_bytes)
        with pa_csv.open_csv(
            _PairedQuotes(file),
            pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, column_names=names),
            pa_csv.ParseOptions(newlines_in_values=True),
            pa_csv.ConvertOptions(column_types=as_text, null_values=[""], strings_can_be_null=True),
        ) as reader:
            for batch in reader:
                yield cast(pl.DataFrame, pl.from_arrow(batch))


def _skip(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes and (data := file.read(min(num_bytes, BLOCK_BYTES))):
        num_bytes -= len(data)


class _LoneQuoteError(Exception):
    """A quote neither begins nor ends a cell, nor is it doubled within a quoted cell."""


class _PairedQuotes(io.RawIOBase):
    """The bytes of a file, up to a block with a lone quote, which pyarrow would misread without an error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last = b"\n"
        self._is_within = self._has_closed = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if b'"' in data or self._has_closed:
            self._check(np.frombuffer(self._last + data, np.uint8))
        elif not data and self._is_within:
            raise _LoneQuoteError
        self._last = data[-1:]
        return data

    def _check(self, signs: NDArray[np.uint8]) -> None:
        """Check a block; `signs` begins with the last byte of the block before it."""
        quotes = np.flatnonzero(signs[1:] == QUOTE) + 1
        opening, closing = quotes[self._is_within :: 2], quotes[not self._is_within :: 2]
        if self._has_closed:
            closing = np.concatenate([[0], closing])
        self._is_within ^= bool(len(quotes) % 2)
        self._has_closed = len(closing) > 0 and int(closing[-1]) == len(signs) - 1
        after = closing[: len(closing) - self._has_closed] + 1
        if not (BESIDE_QUOTES[signs[opening - 1]].all() and BESIDE_QUOTES[signs[after]].all()):
            raise _LoneQuoteError


def _read_rows(opened: Opened, path: str, header: Header, num_before: int) -> Iterator[pl.DataFrame]:
    """The rows after the first `num_before` as `csv` reads them, which keeps a quote within an unquoted cell."""
    row, held = 0, list[list[str]]()
    with open_unpacked(opened) as file:
        _skip(file, header.num_bytes)
        lines = _Lines(file, is_start=False)
        try:
            for cells in filter(None, csv.reader(lines, strict=True)):
                row += 1
                if row <= num_before:
                    continue
                _check_row(cells, header, opened, path, row)
                held.append(cells)
                if len(held) == ROWS_A_FRAME:
                    yield _make_frame(held)
                    held = []
        except csv.Error as error:
            where = path if TOO_LONG in str(error) else name_row(opened, path, row + 1)
            raise DataError(f"{where}: {_explain(error, lines.last)}") from error
    if held:
        yield _make_frame(held)


def _check_row(cells: list[str], header: Header, opened: Opened, path: str, row: int) -> None:
    if len(cells) != len(header.names):
        where = name_row(opened, path, row)
        raise DataError(f"{where}: expected {len(header.names)} cells as in the header, found {len(cells)}; correct the row")
    if NO_TEXT.search("".join(cells)):
        raise DataError(f"{name_row(opened, path, row)}: expected UTF-8 text, found other bytes; write the file in UTF-8")


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
