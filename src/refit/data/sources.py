"""Reads the outside world: CSV and Parquet files, folders and globs of them, and the built-in toy table.

Cells stay as they are in the file (all CSV cells are text); `schema` finds their types.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import operator
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, TypeAlias, cast
from urllib.parse import unquote

import fsspec
import polars as pl
from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from refit.errors import DataError, first_line

NOTEBOOK = "notebook"
SUFFIXES = (".csv", ".csv.gz", ".parquet")
NO_TEXT = re.compile("[\0\udc80-\udcff]")
OTHER_SEPARATORS = re.compile(r"[;\t|]")
GLOB_SIGNS = re.compile(r"[*?\[]")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PANDAS_INDEX = r"^__index_level_\d+__$"
"""How pandas names a nameless index that it writes to Parquet; it is no column to pandas either."""

Opened: TypeAlias = str | bytes | OpenFile
"""A local path, the bytes of a file, or a remote file."""


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
    """

    name: str
    frame: pl.DataFrame
    files: tuple[tuple[str, int], ...]
    digest: str
    test: "Table | None" = None
    is_raw: bool = False

    def locate(self, index: int) -> str:
        """Say where row `index` (from 0) of `frame` is: data rows of a file count from 1, without the header."""
        for name, num_rows in self.files:
            if index < num_rows:
                return f"row {index + 1} of {name}"
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
        files, paths = find_files(source)
        frames, digests = [], []
        for path in paths:
            opened = _fetch(files, path)
            frame = _read_parquet(opened, path) if path.lower().endswith(".parquet") else _read_csv(opened, path)
            frames.append(add_partitions(frame, path))
            digests.append(_digest(opened, path))  # after reading: if it is still that of the recipe, so were the rows
    frame = join_parts(paths, frames)
    if frame.height == 0:
        raise DataError(f"{source}: expected rows, found an empty table with columns {list_names(frame.columns)}; add rows")
    counts = tuple((path, part.height) for path, part in zip(paths, frames, strict=True))
    return Table(source, frame, counts, _join_digests(digests))


def read_names(source: str) -> list[str]:
    """Read the column names of a source, from its first file. Raises like `read_table`."""
    if source == NOTEBOOK:
        return _read_notebook().frame.columns
    with naming_read_errors(source):
        files, (path, *_) = find_files(source)
        opened = _fetch(files, path)
        is_parquet = path.lower().endswith(".parquet")
        names = _read_parquet(opened, path, num_rows=0).columns if is_parquet else read_header(opened, path)
        return add_partition_names(names, path)


def digest_source(source: str) -> str:
    """SHA-256 over the bytes of a source's files, in order, and their partitions; neither their names nor their times count.

    Raises like `read_table`.
    """
    if source == NOTEBOOK:
        return _read_notebook().digest
    with naming_read_errors(source):
        files, paths = find_files(source)
        return _join_digests(_digest(_fetch(files, path), path) for path in paths)


def digest_sources(source: str, test_source: str | None) -> tuple[str, str | None]:
    """Digests of `data.source` and, where there is one, `data.test_source`; raises like `read_table`."""
    return digest_source(source), None if test_source is None else digest_source(test_source)


def list_names(names: Iterable[str], limit: int = 30) -> str:
    """Name columns or classes in a message, the first `limit` of them."""
    names = [f"`{name}`" for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _read_notebook() -> Table:
    test = _make_table({"x1": [-0.8, 2.6], "x2": [2.8, -1.6], "y": [0, 1]}, None)
    return _make_table({"x1": [-1.2, -0.9, -0.5, 2.3, 2.7], "x2": [3.1, 2.9, 2.6, -1.1, -1.5], "y": [0, 0, 0, 1, 1]}, test)


def _make_table(rows: dict[str, list[float]], test: Table | None) -> Table:
    frame, digest = pl.DataFrame(rows), hashlib.sha256(repr(rows).encode()).hexdigest()
    return Table(NOTEBOOK, frame, ((NOTEBOOK, frame.height),), digest, test, is_raw=True)


@contextlib.contextmanager
def naming_read_errors(source: str) -> Iterator[None]:
    """Turn what cannot be opened into a DataError that names `source`."""
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{source}: expected files that can be read, found {error}; check the path and its permissions") from error


def find_files(source: str) -> tuple[Any, list[str]]:
    """Return the file system, and the paths of the data files, sorted; a file reached twice, through links, counts once."""
    files, root = fsspec.url_to_fs(source)
    files.invalidate_cache()
    return files, _find_paths(files, root, source)


def _find_paths(files: Any, root: str, source: str) -> list[str]:
    if files.isfile(root):
        if not root.lower().endswith(SUFFIXES):
            raise DataError(
                f"{source}: expected a file ending in {', '.join(SUFFIXES)}, found another ending; rename or convert it"
            )
        return [root]
    if files.isdir(root):
        found = _walk(files, root)
    elif GLOB_SIGNS.search(root):
        matches = files.glob(root)
        found = [path for path in matches if files.isfile(path)] or [path for folder in matches for path in _walk(files, folder)]
    else:
        raise DataError(f"{source}: expected a file, folder or glob, found nothing there; check the path")
    start = GLOB_SIGNS.split(root)[0]
    shown = (path for path in found if path.lower().endswith(SUFFIXES) and not _is_hidden(path.removeprefix(start)))
    unique = {os.path.realpath(path) if isinstance(files, LocalFileSystem) else path: path for path in sorted(shown, reverse=True)}
    paths = sorted(unique.values())
    if not paths:
        raise DataError(f"{source}: expected files ending in {', '.join(SUFFIXES)}, found none of them; check the path")
    parquet = [path for path in paths if path.lower().endswith(".parquet")]
    if parquet and len(parquet) < len(paths):
        other = next(path for path in paths if path not in parquet)
        raise DataError(
            f"{source}: expected either CSV or Parquet, found {other} and {parquet[0]}; name one kind, like `*.parquet`"
        )
    return paths


def _walk(files: Any, folder: str) -> list[str]:
    """All files in a folder and those inside it."""
    if isinstance(files, LocalFileSystem):
        return [f"{inner}/{name}" for inner, _, names in os.walk(folder) for name in names]
    return cast(list[str], files.find(folder))


def _find_partitions(path: str) -> dict[str, str | None]:
    """Find the columns that a file's folders stand for, as Hive, Spark and pandas lay tables out: `day=2026-11-26/part.parquet`.

    The folders that the work is done in, such as a project's `lr=0.1`, stand for none.
    """
    inner = path.removeprefix(f"{os.getcwd()}/")
    parts = (part.partition("=") for part in PurePosixPath(inner).parts[:-1])
    values = {unquote(name): unquote(value) for name, equals, value in parts if name and equals}
    return {name: None if value == NULL_PARTITION else value for name, value in values.items()}


def add_partition_names(names: Iterable[str], path: str) -> list[str]:
    """Names of a file's own columns, then of those that only its folders stand for."""
    return list(dict.fromkeys([*names, *_find_partitions(path)]))


def add_partitions(frame: pl.DataFrame, path: str) -> pl.DataFrame:
    """Add to a file's own columns those that only its folders stand for, as text."""
    partitions = _find_partitions(path).items()
    return frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in partitions if name not in frame.columns)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _open(opened: Opened) -> BinaryIO:
    if isinstance(opened, OpenFile):
        return cast(BinaryIO, opened.open())
    return open(opened, "rb") if isinstance(opened, str) else io.BytesIO(opened)


@contextlib.contextmanager
def open_csv(opened: Opened) -> Iterator[BinaryIO]:
    """A CSV file's bytes, decompressed where they are gzip."""
    with _open(opened) as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with cast(BinaryIO, gzip.open(raw)) if is_gzip else raw as file:
            yield file


@contextlib.contextmanager
def _open_text(opened: Opened) -> Iterator[IO[str]]:
    """A CSV file as text; bytes that are no UTF-8 come as lone surrogates."""
    with open_csv(opened) as file:
        yield io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _fetch(files: Any, path: str) -> str | bytes:
    """A local path as it is, a remote file's bytes."""
    return path if isinstance(files, LocalFileSystem) else cast(bytes, files.cat_file(path))


def _join_digests(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(opened: Opened, path: str) -> bytes:
    with _open(opened) as file:
        digest = hashlib.file_digest(cast(io.BytesIO, file), "sha256")
    if partitions := _find_partitions(path):
        digest.update(repr(partitions).encode())
    return digest.digest()


def _read_parquet(opened: str | bytes, path: str, num_rows: int | None = None) -> pl.DataFrame:
    file = opened if isinstance(opened, str) else io.BytesIO(opened)
    try:
        frame = pl.read_parquet(file, n_rows=num_rows, glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(
            f"{path}: expected a whole Parquet file, found a damaged one ({first_line(error)}); write it again"
        ) from error
    return frame.select(pl.exclude(PANDAS_INDEX))


def _read_csv(opened: str | bytes, path: str) -> pl.DataFrame:
    header = read_header(opened, path)
    try:
        frame = pl.read_csv(opened if isinstance(opened, str) else io.BytesIO(opened), infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        check_rows(opened, path, len(header))
        raise DataError(
            f"{path}: expected a CSV file, found one that cannot be read ({first_line(error)}); write it again"
        ) from error
    if frame.width != len(header):
        raise DataError(f"{path}: expected {len(header)} columns as in the header, found {frame.width}; write the file again")
    if frame.width > 1 and frame.to_series(-1).has_nulls():
        check_rows(opened, path, frame.width)  # polars fills short rows with nulls
    frame.columns = header
    return frame


def read_header(opened: Opened, path: str) -> list[str]:
    """Return the column names of a CSV file, stripped and each there once."""
    try:
        with _open_text(opened) as text:
            names = [name.strip() for name in next(filter(None, csv.reader(text)), [])]
    except (OSError, EOFError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error
    if not names:
        raise DataError(f"{path}: expected a header and rows, found an empty file; write it again or remove it")
    if len(names) == 1 and OTHER_SEPARATORS.search(names[0]):
        raise DataError(f"{path}: expected commas between columns, found `{names[0]}` as the header; write the file with commas")
    for position, name in enumerate(names):
        if NO_TEXT.search(name):
            raise DataError(f"{path}: expected UTF-8 text, found other bytes in the header; write the file in UTF-8")
        if not name:
            raise DataError(f"{path}: expected a name for every column, found none for column {position + 1}; name or remove it")
        if name in names[:position]:
            first = names.index(name) + 1
            raise DataError(f"{path}: expected each column once, found `{name}` as columns {first} and {position + 1}; rename one")
    return names


def check_rows(opened: Opened, path: str, width: int) -> None:
    """Raise DataError for the first row that is short, long, not UTF-8 or has an unclosed quote; blank lines pass."""
    row = 0
    try:
        with _open_text(opened) as text:
            for row, cells in enumerate(dropwhile(operator.not_, csv.reader(text, strict=True))):
                if cells and len(cells) != width:
                    raise DataError(
                        f"row {row} of {path}: expected {width} cells as in the header, found {len(cells)}; mend the row"
                    )
                if NO_TEXT.search("".join(cells)):
                    raise DataError(f"row {row} of {path}: expected UTF-8 text, found other bytes; write the file in UTF-8")
    except csv.Error as error:
        raise DataError(f"row {row + 1} of {path}: expected quotes in pairs, found {error}; mend the quotes of the row") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: expected a whole gzip file, found a damaged one ({error}); write it again") from error


def join_parts(paths: list[str], frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Return all parts below one another, in the first part's order of columns."""
    first = frames[0]
    for path, frame in zip(paths[1:], frames[1:], strict=True):
        for name in [*first.columns, *frame.columns]:
            if name not in frame.columns or name not in first.columns:
                has, lacks = (paths[0], path) if name in first.columns else (path, paths[0])
                raise DataError(
                    f"{lacks}: expected the same columns as in {has}, found no column `{name}`; add it, or read them apart"
                )
            known, found = first.schema[name], frame.schema[name]
            if known != found and not (known.is_numeric() and found.is_numeric()) and pl.Null not in (known, found):
                raise DataError(f"{path}, column `{name}`: expected {known} as in {paths[0]}, found {found}; convert the column")
    return pl.concat([frame.select(first.columns) for frame in frames], how="vertical_relaxed")
