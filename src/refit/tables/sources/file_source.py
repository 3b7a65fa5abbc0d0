"""CSV and Parquet files, folders and globs of them, as one table."""

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import polars as pl
from fsspec.implementations.local import LocalFileSystem

from refit.errors import DataError
from refit.runtime.limits import find_free_memory
from refit.store.disk import open_files
from refit.tables.sources import csv_files, parquet_files
from refit.tables.sources.files import (
    BYTES_A_TEXT,
    Opened,
    digest_file,
    find_files,
    find_partitions,
    is_parquet,
    naming_read_errors,
    outgrow,
)
from refit.tables.sources.located_rows import LocatedRows, join, name_row, rebatch
from refit.tables.sources.table_source import Table, TableSource, choose_columns, lack_rows
from refit.texts import show


class FileSource(TableSource):
    """A file, folder or glob of CSV or Parquet files, as a path or fsspec URL."""

    def digest(self) -> str:
        """SHA-256 over the bytes of the files, in order, and their partitions; neither their names nor their times count.

        Raises:
            DataError: Nothing is there, or a file cannot be read.
        """
        with naming_read_errors(self.name):
            files = find_files(self.name)
            return _join_digests(digest_file(files.fetch(path), path) for path in files.paths)

    def names(self) -> list[str]:
        """Read the names of the columns from the first file; raises as `read` does."""
        with naming_read_errors(self.name):
            files = find_files(self.name)
            path = files.paths[0]
            return _add_partition_names(_read_file_names(files.fetch(path), path), path)

    def read(self) -> Table:
        """Read all rows of all files.

        Raises:
            DataError: Nothing is there, a file is damaged or does not fit into memory, its rows differ in length, files differ in
                columns, or there is no row.
        """
        with naming_read_errors(self.name):
            files = find_files(self.name)
            pieces, digests, indexed = list[LocatedRows](), [], []
            for path in files.paths:
                opened = files.fetch(path)
                if not all(_read_file_names(opened, path)):
                    indexed.append(path)
                pieces += _hold(_read_pieces(opened, path), path)
                digests.append(digest_file(opened, path))  # after reading: if it is still the recipe's, so were the rows
        rows = join(pieces)
        remarks = _describe_left_out(indexed, files.left_out)
        return Table(rows.frame, rows.parts, self.name, _join_digests(digests), outer=tuple(files.outer), remarks=remarks)

    def iterate(self, columns: Sequence[str], keep: Sequence[str], batch_size: int) -> Iterator[LocatedRows]:
        """Read some columns in memory that does not grow with the files, once all headers are checked; raises as `read` does."""
        with naming_read_errors(self.name):
            files = find_files(self.name)
            opened = {path: files.open_lazily(path) for path in files.paths}
            for path in files.paths:
                present = _add_partition_names(_read_file_names(opened[path], path), path)
                wanted = choose_columns(columns, keep, present, path)
            pieces = (piece for path in files.paths for piece in _read_pieces(opened[path], path, wanted, batch_size))
            is_empty = True
            for batch in rebatch(pieces, keep, batch_size):
                is_empty = False
                yield batch
            if is_empty:
                raise lack_rows(self.name, present)

    def count_bytes(self) -> int | None:
        """The size of the files, if they are on this machine."""
        with naming_read_errors(self.name):
            files = find_files(self.name)
            return sum(map(os.path.getsize, files.paths)) if files.is_local else None

    def includes(self, output: str) -> bool:
        """Whether a file written to `output` would be read as part of the source next time, or replace it."""
        output_files, path = open_files(output)
        with naming_read_errors(self.name):
            source_files, root = open_files(self.name)
        if source_files.protocol != output_files.protocol:
            return False
        if isinstance(source_files, LocalFileSystem):
            root, path = os.path.realpath(root), os.path.realpath(path)
        return path == root or path.startswith(root.rstrip("/") + "/") or fnmatch.fnmatchcase(path, root)


def _hold(pieces: Iterable[LocatedRows], path: str) -> list[LocatedRows]:
    """Keep all rows of a file; raises DataError once memory cannot hold them, as polars would end the process."""
    free, num_bytes, held = find_free_memory(), 0, list[LocatedRows]()
    for piece in pieces:
        held.append(piece)
        frame = piece.frame
        num_texts = frame.height * sum(dtype == pl.String for dtype in frame.dtypes)
        num_bytes += int(frame.estimated_size()) + BYTES_A_TEXT * num_texts
        if num_bytes > free:
            raise outgrow(path)
    return held


def _read_pieces(
    opened: Opened, path: str, columns: list[str] | None = None, batch_size: int = parquet_files.ROWS_A_FRAME
) -> Iterator[LocatedRows]:
    """Read the rows of a file in one piece or more, with the columns that its folders stand for; `columns` None reads all."""
    frames = (
        parquet_files.iterate_parquet(opened, path, columns, batch_size)
        if is_parquet(path)
        else csv_files.iterate_csv(opened, path)
    )
    start = 0
    for frame in frames:
        frame = _add_partitions(frame, path, start)
        yield LocatedRows(frame if columns is None else frame[columns], ((path, start, frame.height),))
        start += frame.height


def _read_file_names(opened: Opened, path: str) -> list[str]:
    """The names of a file's own columns, an empty one standing for an index."""
    return parquet_files.read_names(opened, path) if is_parquet(path) else csv_files.read_header(opened, path).names


def _add_partition_names(names: Iterable[str], path: str) -> list[str]:
    """Names of a file's own columns without an index, then of those that only its folders stand for."""
    return list(dict.fromkeys([*filter(None, names), *find_partitions(path)]))


def _add_partitions(frame: pl.DataFrame, path: str, num_before: int = 0) -> pl.DataFrame:
    """Add the columns that only a file's folders stand for, as text, to rows of the file; `num_before` rows came before them.

    Raises:
        DataError: The file has a column of that name, and a row holds another value.
    """
    partitions = find_partitions(path)
    for name, value in partitions.items():
        if name not in frame.columns:
            continue
        same = _is_same(frame[name].alias(""), value)
        if not same.all():
            index = int((~same).arg_true()[0])
            raise DataError(
                f"{name_row(path, num_before + index + 1)}, column `{name}`: expected {value}, as its folder says,"
                f" found {show(frame[name][index])}; rename the column or the folder"
            )
    return frame.with_columns(
        pl.lit(value, pl.String).alias(name) for name, value in partitions.items() if name not in frame.columns
    )


def _is_same(values: pl.Series, text: str | None) -> pl.Series:
    """Which cells say what a folder's name says."""
    if text is None:
        return values.is_null()
    texts = values.cast(pl.String).str.strip_chars()
    numbers, number = texts.cast(pl.Float64, strict=False), pl.Series([text]).cast(pl.Float64, strict=False)
    return (texts == text).fill_null(False) | (numbers == number).fill_null(False)


def _describe_left_out(indexed: list[str], in_hidden: list[str]) -> tuple[str, ...]:
    """A sentence each for nameless first columns, and for files in folders that are not read."""
    remarks = []
    if indexed:
        remarks.append(
            f"left out: the first column of {_count_others(indexed)}, which has no name, as when pandas and R write row numbers;"
            " name it to learn from it"
        )
    if in_hidden:
        remarks.append(
            f"left out: {_count_others(in_hidden)}, as folders that begin with `_` are not read; move files that should be read"
        )
    return tuple(remarks)


def _count_others(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _join_digests(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
