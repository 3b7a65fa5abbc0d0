"""Reads sources a batch of rows at a time, in memory that does not grow with the files; cells are read as in `sources`."""

import contextlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from refit.data.schema import check_columns
from refit.data.sources import (
    Opened,
    add_partition_names,
    add_partitions,
    check_rows,
    find_files,
    join_parts,
    list_names,
    naming_read_errors,
    open_csv,
    read_header,
)
from refit.errors import DataError, first_line

BLOCK_BYTES = 1 << 23
PARQUET_BUFFER_BYTES = 1 << 20
MAX_ROW_BYTES = 1 << 27
"""A CSV row that is longer is taken for a quote that is never closed."""

Piece = tuple[str, int, pl.DataFrame]
"""A file, the number of its rows that came before, and some rows."""


@dataclass(frozen=True)
class Batch:
    """Neighbouring rows of a source.

    Args:
        frame: The rows.
        parts: Name of each file, number of its rows before these, and number of these, in the order of `frame`.
    """

    frame: pl.DataFrame
    parts: tuple[tuple[str, int, int], ...]

    def locate(self, index: int) -> str:
        """Say where row `index` (from 0) of `frame` is: data rows of a file count from 1, without the header."""
        for name, num_before, num_rows in self.parts:
            if index < num_rows:
                return f"row {num_before + index + 1} of {name}"
            index -= num_rows
        raise IndexError(index)


def read_batches(source: str, columns: Sequence[str], keep: Sequence[str], batch_size: int) -> Iterator[Batch]:
    """Read some columns of a file, folder or glob of CSV or Parquet files, in the order of files and rows.

    All batches but the last have `batch_size` rows, whatever the files. Headers are checked first.

    Args:
        source: A path or fsspec URL.
        columns: Columns that are needed.
        keep: Columns that were asked for with `--keep`, needed too.
        batch_size: Rows in a batch.

    Raises:
        DataError: Nothing is there, a file is damaged, lacks columns or has rows that differ in length, or there is no row.
    """
    with naming_read_errors(source):
        files, paths = find_files(source)
        opened = {path: path if isinstance(files, LocalFileSystem) else OpenFile(files, path) for path in paths}
        for path in paths:
            present = add_partition_names(_read_names(opened[path], path), path)
            missing = [name for name in columns if name not in present]
            if missing:
                raise DataError(
                    f"{path}: expected column {list_names(missing)}, found {list_names(present)}; add what is missing"
                    " (leave cells empty where the value is unknown)"
                )
            check_columns("--keep", keep, present, path)
        wanted = list(dict.fromkeys([*keep, *columns]))
        pieces = (piece for path in paths for piece in _read_pieces(opened[path], path, wanted, batch_size))
        batches = _rebatch(pieces, keep, batch_size)
        first = next(batches, None)
        if first is None:
            raise DataError(f"{source}: expected rows, found an empty table with columns {list_names(present)}; add rows")
        yield from itertools.chain([first], batches)


def _rebatch(pieces: Iterable[Piece], keep: Sequence[str], batch_size: int) -> Iterator[Batch]:
    """Batches of one size; columns must have types that go together with those of the first file, columns to keep the same."""
    held: list[Piece] = []
    num_held = 0
    first: Piece | None = None
    for path, start, frame in pieces:
        first = first or (path, 0, frame.clear())
        _check_types(first, path, frame, keep)
        while num_held + frame.height >= batch_size:
            num_taken = batch_size - num_held
            yield _join([*held, (path, start, frame.head(num_taken))])
            start, frame = start + num_taken, frame.slice(num_taken)
            held, num_held = [], 0
        if frame.height:
            held.append((path, start, frame))
            num_held += frame.height
    if held:
        yield _join(held)


def _check_types(first: Piece, path: str, frame: pl.DataFrame, keep: Sequence[str]) -> None:
    join_parts([first[0], path], [first[2], frame.clear()])
    for name in keep:
        known, found = first[2].schema[name], frame.schema[name]
        if known != found:
            raise DataError(f"{path}, column `{name}`: expected {known} as in {first[0]}, found {found}; convert the column")


def _join(pieces: list[Piece]) -> Batch:
    frame = join_parts([path for path, _, _ in pieces], [part for _, _, part in pieces])
    return Batch(frame, tuple((path, start, part.height) for path, start, part in pieces))


def _read_names(opened: Opened, path: str) -> list[str]:
    if not path.lower().endswith(".parquet"):
        return read_header(opened, path)
    with _open_parquet(opened, path) as file:
        return list(file.schema_arrow.names)


def _read_pieces(opened: Opened, path: str, columns: list[str], batch_size: int) -> Iterator[Piece]:
    is_parquet = path.lower().endswith(".parquet")
    start = 0
    for frame in _read_parquet(opened, path, columns, batch_size) if is_parquet else _read_csv(opened, path):
        yield path, start, add_partitions(frame, path).select(columns)
        start += frame.height


@contextlib.contextmanager
def _open_parquet(opened: Opened, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with opened.open() if isinstance(opened, OpenFile) else open(opened, "rb") as file:
            # Neither whole row groups nor whole columns are held in memory.
            yield pq.ParquetFile(file, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: expected a whole Parquet file, found a damaged one ({first_line(error)}); write it again"
        ) from error


def _read_parquet(opened: Opened, path: str, columns: list[str], batch_size: int) -> Iterator[pl.DataFrame]:
    with _open_parquet(opened, path) as file:
        present = file.schema_arrow.names
        wanted = [name for name in columns if name in present] or present[:1]  # not none, to know how many rows there are
        for batch in file.iter_batches(batch_size, columns=wanted):
            yield cast(pl.DataFrame, pl.from_arrow(batch))


def _read_csv(opened: Opened, path: str) -> Iterator[pl.DataFrame]:
    """The cells that `sources` reads, all text, by blocks of whole rows."""
    header = read_header(opened, path)
    plain = ",".join(f"c{position}" for position in range(len(header))).encode() + b"\n"
    is_first = True
    for block in _read_blocks(opened, path, len(header)):
        frame = _parse_block(block if is_first else plain + block, len(header))
        if frame is None:
            check_rows(opened, path, len(header))
            raise DataError(f"{path}: expected a CSV file, found one that cannot be read; write it again")
        frame.columns = header
        yield frame
        is_first = False


def _read_blocks(opened: Opened, path: str, width: int) -> Iterator[bytes]:
    """The bytes of a CSV file, cut where rows end."""
    rest = b""
    try:
        with open_csv(opened) as file:
            while data := file.read(max(BLOCK_BYTES, len(rest))):
                block = rest + data
                end = _find_end(block)
                if end:
                    yield block[:end]
                rest = block[end:]
                if len(rest) > MAX_ROW_BYTES:
                    check_rows(opened, path, width)
                    raise DataError(
                        f"{path}: expected rows of less than {MAX_ROW_BYTES} bytes, found a longer one; mend its quotes"
                    )
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error
    if rest:
        yield rest


def _find_end(block: bytes) -> int:
    """Where the last whole row ends: after a line end with an even number of quotes before it; 0 if there is none."""
    end = block.rfind(b"\n") + 1
    num_quotes = block.count(b'"', 0, end)
    while end and num_quotes % 2:
        start = block.rfind(b"\n", 0, block.rfind(b'"', 0, end)) + 1
        num_quotes -= block.count(b'"', start, end)
        end = start
    return end


def _parse_block(block: bytes, width: int) -> pl.DataFrame | None:
    """The rows after the header line, or None where one of them is broken."""
    try:
        frame = pl.read_csv(io.BytesIO(block), infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.width != width:
        return None
    # polars fills short rows with nulls. Without quotes, commas tell them from rows whose last cell is empty.
    is_even = b'"' not in block and block.count(b",") == (frame.height + 1) * (width - 1)
    if width > 1 and not is_even and frame.to_series(-1).has_nulls():
        try:
            check_rows(block, "block", width)
        except DataError:
            return None
    return frame
