"""Reads CSV files as text, a block of whole rows at a time, for training and for scoring alike.

A line without any character is no row. Blocks that polars would read wrongly or not at all, such as those with a lone quote, are
read by Python's `csv` first, which also finds what is wrong with them.
"""

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.errors import DataError
from refit.tables.sources.files import NO_TEXT, UNREADABLE, Opened, check_names, describe_content, open_unpacked
from refit.texts import show

BLOCK_BYTES = 1 << 23
MAX_ROW_BYTES = 1 << 27
"""A row that is longer is taken for a quote that is never closed; more than a block."""
ROWS_A_FRAME = 65_536
"""Rows that `csv` reads at a time."""
ROWS_COMPARED = 5
"""Rows after the header whose cells must have names in it."""

QUOTE, COMMA, LINE_FEED, CARRIAGE_RETURN = (ord(sign) for sign in '",\n\r')
OTHER_SEPARATORS = re.compile(r"[;\t|]")
BLANK_LINE = re.compile(rb"\n\r?\n")
BESIDE_QUOTES = np.isin(np.arange(256), [QUOTE, COMMA, LINE_FEED, CARRIAGE_RETURN])
"""Whether a byte may stand before a quote that opens, or after one that closes."""
EXCEL_HINT = ["sep=", ""]
"""Excel's first line `sep=,`, which says what stands between cells."""
BYTE_ORDER_MARK = "\ufeff"

Places: TypeAlias = NDArray[np.int64]
"""Of bytes in a block."""

TOO_LONG = "field larger than field limit"
"""What `csv` says of a cell that is longer."""
csv.field_size_limit(MAX_ROW_BYTES)


@dataclass(frozen=True)
class Header:
    """What stands before the rows.

    Args:
        names: Of all columns; a first one that is empty stands for an index, which is no column of the table.
        num_bytes: Before the first row, uncompressed.
    """

    names: list[str]
    num_bytes: int

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return self.names[1:] if not self.names[0] else self.names


class _Lines(Iterator[str]):
    """The lines of a file as text, counted; bytes that are no UTF-8 come as lone surrogates."""

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
    """Read the header of a CSV file, after Excel's `sep=,` where that is there.

    Raises:
        DataError: It is no CSV with commas, or has no header with a name for each cell of the rows.
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
    width = max(map(len, rows), default=0)
    if len(names) < width and sum(len(cells) == width for cells in rows) > len(rows) / 2:
        ends_in_comma = len(names) == width - 1 and not any(cells[-1] for cells in rows)
        remedy = (
            "remove the comma at the end of the rows"
            if ends_in_comma
            else "remove what stands above the header, or name all columns"
        )
        raise DataError(
            f"{path}: expected a header with a name for each of the {width} cells of the rows, found {len(names)} in"
            f" `{show(','.join(names))}`; {remedy}"
        )
    return Header(check_names(names, path), num_bytes)


def iterate_csv(opened: Opened, path: str) -> Iterator[pl.DataFrame]:
    """Read the rows of a CSV file, all cells as text, by blocks, one at least; cells that are empty are null.

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
    width, num_rows, num_bytes = len(header.names), 0, header.num_bytes
    with open_unpacked(opened) as file:
        _skip(file, num_bytes)
        for rows, quotes in _cut(file):
            if not _is_regular(rows, quotes):
                break
            parsed = _parse(rows, quotes, width)
            for frame in _read_rows(io.BytesIO(rows), opened, path, width, num_rows) if parsed is None else [parsed]:
                yield frame
                num_rows += frame.height
            num_bytes += len(rows)
        else:
            return
    with open_unpacked(opened) as file:
        _skip(file, num_bytes)
        yield from _read_rows(file, opened, path, width, num_rows)


def _cut(file: BinaryIO) -> Iterator[tuple[bytes, Places]]:
    """The bytes of a file, cut where rows end, by what the quotes say, and the places of the quotes in each part."""
    rest, known = b"", np.empty(0, np.int64)
    while data := file.read(max(BLOCK_BYTES, len(rest))):
        quotes = _find_quotes(data)
        quotes += len(rest)
        quotes = np.concatenate([known, quotes]) if len(known) else quotes
        end = _find_end(data, quotes, len(rest))
        if end:
            num_quotes = int(np.searchsorted(quotes, len(rest) + end))
            yield b"".join((rest, memoryview(data)[:end])), quotes[:num_quotes]
            rest, known = data[end:], quotes[num_quotes:] - len(rest) - end
        else:
            rest, known = rest + data, quotes
            if len(rest) > MAX_ROW_BYTES:
                break
    if rest:
        yield rest, known


def _skip(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes and (data := file.read(min(num_bytes, BLOCK_BYTES))):
        num_bytes -= len(data)


def _find_quotes(data: bytes) -> Places:
    return np.flatnonzero(np.frombuffer(data, np.uint8) == QUOTE) if b'"' in data else np.empty(0, np.int64)


def _find_end(data: bytes, quotes: Places, num_before: int) -> int:
    """Where the last row ends: after a line end with an even number of quotes before it, `num_before` bytes on; 0 if nowhere."""
    end = data.rfind(b"\n") + 1
    while end > 0 and (num_quotes := int(np.searchsorted(quotes, num_before + end))) % 2:
        end = data.rfind(b"\n", 0, max(0, int(quotes[num_quotes - 1]) - num_before)) + 1
    return end


def _is_regular(rows: bytes, quotes: Places) -> bool:
    """Whether every quote begins or ends a cell, or is one of two within a quoted cell, and lines end as we look for it."""
    if len(rows) > MAX_ROW_BYTES or len(quotes) % 2 or (b"\n" not in rows and b"\r" in rows):
        return False
    signs, opening, closing = np.frombuffer(rows, np.uint8), quotes[::2], quotes[1::2]
    is_at_start, is_at_end = opening[:1] == 0, closing[-1:] == len(rows) - 1
    before, after = signs[opening[int(is_at_start.sum()) :] - 1], signs[closing[: len(closing) - int(is_at_end.sum())] + 1]
    return bool(BESIDE_QUOTES[before].all() and BESIDE_QUOTES[after].all())


def _parse(rows: bytes, quotes: Places, width: int) -> pl.DataFrame | None:
    """The rows of a regular block, read by polars; None where blank lines or a mistake are to be found by `_read_rows`."""
    if b"\r" in rows and b"\r\r\n" in rows:
        return None
    schema = {f"column {position}": pl.String for position in range(width)}
    try:
        frame = pl.read_csv(rows, has_header=False, schema=schema) if rows else pl.DataFrame(schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    # polars fills short rows and blank lines with nulls, and refuses long rows.
    if frame.width != width or (frame.to_series(-1).has_nulls() and _has_gaps(frame, rows, quotes)):
        return None
    return frame.with_columns(pl.all().replace("", None)) if (np.diff(quotes) == 1).any() else frame


def _has_gaps(frame: pl.DataFrame, rows: bytes, quotes: Places) -> bool:
    """Whether some cells are null for want of commas: of short rows, or of blank lines."""
    blanks = (blank.start() for blank in BLANK_LINE.finditer(rows))
    return (
        _count_commas(rows, quotes) != frame.height * (frame.width - 1)
        or rows.startswith((b"\n", b"\r\n"))
        or any(np.searchsorted(quotes, place) % 2 == 0 for place in blanks)
    )


def _count_commas(rows: bytes, quotes: Places) -> int:
    """Those between cells, not within."""
    if not len(quotes):
        return rows.count(b",")
    signs = np.frombuffer(rows, np.uint8)
    is_within = np.bitwise_xor.accumulate(signs == QUOTE)
    return int(np.count_nonzero((signs == COMMA) & ~is_within))


def _read_rows(file: BinaryIO, opened: Opened, path: str, width: int, num_before: int) -> Iterator[pl.DataFrame]:
    """The rows of a file or block as Python's `csv` reads them, which takes a quote within an unquoted cell as it is."""
    lines, row, held = _Lines(file, is_start=False), num_before, list[list[str]]()
    try:
        for cells in filter(None, csv.reader(lines, strict=True)):
            row += 1
            if len(cells) != width:
                where = name_row(opened, path, row)
                raise DataError(f"{where}: expected {width} cells as in the header, found {len(cells)}; mend the row")
            if NO_TEXT.search("".join(cells)):
                raise DataError(f"{name_row(opened, path, row)}: expected UTF-8 text, found other bytes; write the file in UTF-8")
            held.append(cells)
            if len(held) == ROWS_A_FRAME:
                yield _make_frame(held)
                held = []
    except csv.Error as error:
        is_long = TOO_LONG in str(error)
        where = path if is_long else name_row(opened, path, row + 1)
        raise DataError(f"{where}: {_explain(error, lines.last)}") from error
    if held:
        yield _make_frame(held)


def _explain(error: csv.Error, line: str) -> str:
    if TOO_LONG in str(error):
        return f"expected rows of less than {MAX_ROW_BYTES} bytes, found a longer one; mend its quotes"
    if '\\"' in line:
        return 'expected quotes within a quoted cell to be doubled, found \\"; write them as ""'
    found = {"expected after": "a cell that goes on after its closing quote", "end of data": "one that is never closed"}
    what = next((words for sign, words in found.items() if sign in str(error)), str(error))
    return f"expected quotes in pairs, found {what}; mend the quotes of the row"


def _make_frame(rows: list[list[str]]) -> pl.DataFrame:
    columns = ([cell or None for cell in column] for column in zip(*rows, strict=True))
    return pl.DataFrame([pl.Series(f"column {position}", cells, pl.String) for position, cells in enumerate(columns)])
