"""Reads the outside world: CSV and Parquet files, folders and globs of them, and the built-in toy table.

Cells stay as they are in the file (all CSV cells are text); `schema` finds their types.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from refit.errors import DataError
from refit.runtime.limits import find_free_memory
from refit.settings import NOTEBOOK
from refit.tables import csv_files, parquet_files
from refit.tables.files import (
    BYTES_A_TEXT,
    Opened,
    digest_file,
    find_files,
    find_partitions,
    is_parquet,
    naming_read_errors,
    outgrow,
)
from refit.texts import list_names, show


@dataclass(frozen=True)
class Table:
    """Rows as they were read, and where each came from.

    Args:
        name: The source as it was asked for.
        frame: All rows of all files.
        files: Name and number of rows of each file, in the order of `frame`.
        digest: Digest of the files' bytes, in order.
        test: The test rows, where they come along with the source.
        is_raw: Whether numbers are learned from as they are, not standardized.
        outer: Columns that folders above the source stand for, which say the same of all rows.
        remarks: What was left out, a sentence each.
    """

    name: str
    frame: pl.DataFrame
    files: tuple[tuple[str, int], ...]
    digest: str
    test: "Table | None" = None
    is_raw: bool = False
    outer: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def locate(self, index: int) -> str:
        """Say where row `index` (from 0) of `frame` is: data rows of a file count from 1, without the header."""
        for name, num_rows in self.files:
            if index < num_rows:
                return name_row(name, index + 1)
            index -= num_rows
        raise IndexError(index)


def read_table(source: str) -> Table:
    """Read a source: `notebook`, or a file, folder or glob, as a path or fsspec URL.

    Raises:
        DataError: Nothing is there, a file is damaged, its rows differ in length, files differ in columns, or there is no row.
    """
    return _read_notebook() if source == NOTEBOOK else read_files(source)


def read_files(source: str) -> Table:
    """Read a file, folder or glob of CSV or Parquet files; raises like `read_table`."""
    with naming_read_errors(source):
        files = find_files(source)
        frames, digests, indexed = [], [], []
        for path in files.paths:
            opened = files.fetch(path)
            names = read_file_names(opened, path)
            columns = [name for name in names if name]
            if len(columns) < len(names):
                indexed.append(path)
            parts = _read_parts(opened, path)
            frame = pl.concat(parts) if parts else pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
            frames.append(add_partitions(frame, path))
            digests.append(digest_file(opened, path))  # after reading: if it is still that of the recipe, so were the rows
    frame = join_parts(files.paths, frames)
    if frame.height == 0:
        raise DataError(f"{source}: expected rows, found an empty table with columns {list_names(frame.columns)}; add rows")
    return Table(
        source,
        frame,
        files=tuple((path, part.height) for path, part in zip(files.paths, frames, strict=True)),
        digest=_join_digests(digests),
        outer=tuple(files.outer),
        remarks=_describe_left_out(indexed, files.left_out),
    )


def _read_parts(opened: Opened, path: str) -> list[pl.DataFrame]:
    """All rows of a file; raises DataError once it is clear that memory cannot hold them, over which polars ends the process."""
    if is_parquet(path):
        return list(parquet_files.iterate_parquet(opened, path))
    free, num_bytes, parts = find_free_memory(), 0, list[pl.DataFrame]()
    for part in csv_files.iterate_csv(opened, path):
        parts.append(part)
        num_bytes += int(part.estimated_size()) + BYTES_A_TEXT * part.height * part.width
        if num_bytes > free:
            raise outgrow(path)
    return parts


def read_names(source: str) -> list[str]:
    """Read the column names of a source, from its first file. Raises like `read_table`."""
    if source == NOTEBOOK:
        return _read_notebook().frame.columns
    with naming_read_errors(source):
        files = find_files(source)
        path = files.paths[0]
        return add_partition_names(filter(None, read_file_names(files.fetch(path), path)), path)


def digest_source(source: str) -> str:
    """SHA-256 over the bytes of a source's files, in order, and their partitions; neither their names nor their times count.

    Raises like `read_table`.
    """
    if source == NOTEBOOK:
        return _read_notebook().digest
    with naming_read_errors(source):
        files = find_files(source)
        return _join_digests(digest_file(files.fetch(path), path) for path in files.paths)


def digest_sources(source: str, test_source: str | None) -> tuple[str, str | None]:
    """Digests of `data.source` and, where there is one, `data.test_source`; raises like `read_table`."""
    return digest_source(source), None if test_source is None else digest_source(test_source)


def name_row(path: str, row: int) -> str:
    """Say where a row of a file is, counted from 1; in a CSV file of this machine also at which line it begins."""
    if is_parquet(path) or not os.path.isfile(path):
        return f"row {row} of {path}"
    return csv_files.name_row(path, path, row)


def read_file_names(opened: Opened, path: str) -> list[str]:
    """Read the names of a file's own columns, an empty one standing for an index. Raises like `read_table`."""
    return parquet_files.read_names(opened, path) if is_parquet(path) else csv_files.read_header(opened, path).names


def add_partition_names(names: Iterable[str], path: str) -> list[str]:
    """Names of a file's own columns, then of those that only its folders stand for."""
    return list(dict.fromkeys([*names, *find_partitions(path)]))


def add_partitions(frame: pl.DataFrame, path: str, num_before: int = 0) -> pl.DataFrame:
    """Add to some rows of a file, `num_before` of which came before, the columns that only its folders stand for, as text.

    Raises:
        DataError: A row says something else in a column of that name.
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


def join_parts(paths: Sequence[str], frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return all parts below one another, in the first part's order of columns; types that mean the same become one.

    Raises:
        DataError: A part has other columns than the first, or a column of another kind.
    """
    names = frames[0].columns
    parts = [_order_columns(names, paths[0], frame, path) for path, frame in zip(paths, frames, strict=True)]
    types = [part.dtypes for part in parts]
    if all(dtypes == types[0] for dtypes in types[1:]):
        return pl.concat(parts)
    united = {name: _unite_types(name, paths, dtypes) for name, *dtypes in zip(names, *types, strict=True)}
    dtypes = {name: dtype for name, dtype in united.items() if dtype is not None}
    parts = [part.with_columns(part[name].cast(dtype) for name, dtype in dtypes.items()) for part in parts]
    return pl.concat(parts, how="vertical_relaxed")


def _order_columns(names: list[str], first_path: str, frame: pl.DataFrame, path: str) -> pl.DataFrame:
    found = frame.columns
    if found == names:
        return frame
    for has, lacks, more, fewer in ((first_path, path, names, set(found)), (path, first_path, found, set(names))):
        absent = next((name for name in more if name not in fewer), None)
        if absent is not None:
            raise DataError(
                f"{lacks}: expected the same columns as in {has}, found no column `{show(absent)}`; add it, or read them apart"
            )
    return frame[names]  # `select` takes `*` and `^…$` for patterns


def _unite_types(name: str, paths: Sequence[str], dtypes: Sequence[pl.DataType]) -> pl.DataType | None:
    """The type that the cells of all parts of a column become; None where polars finds it."""
    known, where = dtypes[0], paths[0]
    for path, dtype in zip(paths, dtypes, strict=True):
        united = _unite(known, dtype)
        if united is None:
            raise DataError(f"{path}, column `{show(name)}`: expected {known} as in {where}, found {dtype}; convert the column")
        known, where = united, where if known != pl.Null else path
    return None if known.is_numeric() or known == pl.Null else known


def _unite(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """A type for what both mean; None if they mean something else."""
    if one == other or other == pl.Null or (one.is_numeric() and other.is_numeric()):
        return one
    if one == pl.Null:
        return other
    both = (one, other)
    if all(dtype in (pl.String, pl.Categorical, pl.Enum) for dtype in both):
        return pl.String()
    if all(dtype in (pl.Date, pl.Datetime) for dtype in both):
        zones = {getattr(dtype, "time_zone", None) is not None for dtype in both}
        return pl.Datetime("us", "UTC" if zones == {True} else None) if len(zones) == 1 else None
    return None


def _describe_left_out(indexed: list[str], in_hidden: list[str]) -> tuple[str, ...]:
    """A sentence each for nameless first columns, and for files in folders that hold no rows."""
    remarks = []
    if indexed:
        remarks.append(
            f"left out: the first column of {_count_others(indexed)}, which has no name, as when pandas and R write row numbers;"
            " name it to learn from it"
        )
    if in_hidden:
        remarks.append(
            f"left out: {_count_others(in_hidden)}, as folders that begin with `_` hold no rows; move what is to be read"
        )
    return tuple(remarks)


def _count_others(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _read_notebook() -> Table:
    test = _make_table({"x1": [-0.8, 2.6], "x2": [2.8, -1.6], "y": [0, 1]}, None)
    return _make_table({"x1": [-1.2, -0.9, -0.5, 2.3, 2.7], "x2": [3.1, 2.9, 2.6, -1.1, -1.5], "y": [0, 0, 0, 1, 1]}, test)


def _make_table(rows: dict[str, list[float]], test: Table | None) -> Table:
    frame, digest = pl.DataFrame(rows), hashlib.sha256(repr(rows).encode()).hexdigest()
    return Table(NOTEBOOK, frame, ((NOTEBOOK, frame.height),), digest, test, is_raw=True)


def _join_digests(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
