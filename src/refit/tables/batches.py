"""Reads sources a batch of rows at a time, in memory that does not grow with the files; cells are read as in `sources`."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from refit.errors import DataError
from refit.tables import csv_files, parquet_files
from refit.tables.files import Opened, find_files, is_parquet, naming_read_errors
from refit.tables.schema import check_columns
from refit.tables.sources import add_partition_names, add_partitions, join_parts, name_row, read_file_names
from refit.texts import list_names

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
                return name_row(name, num_before + index + 1)
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
        files = find_files(source)
        opened = {path: files.open_lazily(path) for path in files.paths}
        for path in files.paths:
            present = add_partition_names(filter(None, read_file_names(opened[path], path)), path)
            known = set(present)
            missing = [name for name in columns if name not in known]
            if missing:
                raise DataError(
                    f"{path}: expected column {list_names(missing)}, found {list_names(present)}; add what is missing"
                    " (leave cells empty where the value is unknown)"
                )
            check_columns("--keep", keep, present, path)
        wanted = list(dict.fromkeys([*keep, *columns]))
        pieces = (piece for path in files.paths for piece in _read_pieces(opened[path], path, wanted, batch_size))
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
        if start == 0:
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


def _read_pieces(opened: Opened, path: str, columns: list[str], batch_size: int) -> Iterator[Piece]:
    start = 0
    frames = (
        parquet_files.iterate_parquet(opened, path, columns, batch_size)
        if is_parquet(path)
        else csv_files.iterate_csv(opened, path)
    )
    for frame in frames:
        yield path, start, add_partitions(frame, path, start)[columns]
        start += frame.height
