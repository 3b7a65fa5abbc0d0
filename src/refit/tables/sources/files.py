"""Finds the files of a source, and opens them: here or at an fsspec URL, plain or gzip; does not read their rows.

A source is a file, a folder or a glob. Folders named like `day=2026-11-26` stand for columns of the files in them.
"""

import codecs
import contextlib
import gzip
import hashlib
import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, TypeAlias, cast
from urllib.parse import unquote

from fsspec.core import OpenFile
from fsspec.implementations.local import LocalFileSystem

from refit.errors import DataError
from refit.runtime.limits import find_free_memory
from refit.store.disk import open_files
from refit.texts import show

SUFFIXES = (".csv", ".csv.gz", ".parquet")
TEXT_SUFFIXES = (".tsv", ".tab", ".psv", ".txt", ".data", ".dat", ".ndjson", ".jsonl")
OTHER_SUFFIXES = tuple(f"{suffix}{end}" for suffix in TEXT_SUFFIXES for end in ("", ".gz"))
"""Data files of a folder or glob without any of those in `SUFFIXES`. A file that is named by itself may end in anything."""
NO_TEXT = re.compile("[\0\udc80-\udcff]")
"""A NUL, or a lone surrogate, which stands for a byte that is not UTF-8."""
GLOB_SIGNS = re.compile(r"[*?\[]")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"

UNREADABLE = (OSError, EOFError, zlib.error)
"""Errors from reading the bytes of a file that is gone, cut or damaged."""

CONTENTS = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"PAR1": "a Parquet file; rename it to end in .parquet",
    b"\x1f\x8b": "a gzip file; rename it to end in .csv.gz if it holds CSV, or unpack it",
    b"BZh": "a bzip2 file; unpack it",
    b"\xfd7zXZ": "an xz file; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"%PDF": "a PDF document; export its table as CSV",
    b"SQLite format 3": "an SQLite database; export a table of it as CSV or Parquet",
    b"\x89HDF": "an HDF5 file; convert it to CSV or Parquet",
    b"ARROW1": "an Arrow file; convert it to Parquet",
    b"[{": "JSON; write an object a line, or convert it to CSV or Parquet",
    b"[\n": "JSON; write an object a line, or convert it to CSV or Parquet",
    b"[\r": "JSON; write an object a line, or convert it to CSV or Parquet",
    b"<!": "HTML; save its table as CSV",
    b"<html": "HTML; save its table as CSV",
    b"<?xml": "XML; convert it to CSV or Parquet",
}
"""The kind of file that begins with these bytes, and what to do with it."""
SPECIAL_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}

HEAD_BYTES = 1 << 12
OLD_EXCEL = b"\xd0\xcf\x11\xe0"
JSON_LINE = re.compile(rb'\{\s*"')
"""How a line of JSON begins, which stands for a row."""
BYTES_A_TEXT = 16
"""Memory that a cell of text takes besides its characters."""

FileKind: TypeAlias = Literal["csv", "excel", "json", "parquet"]
Opened: TypeAlias = str | bytes | OpenFile
"""A local path, the bytes of a file, or a remote file."""


@dataclass(frozen=True)
class Files:
    """The data files of a source.

    Args:
        system: The fsspec file system that they are in.
        paths: Sorted; a file reached twice, through links, is listed once.
        left_out: Data files in folders such as Spark's `_temporary`, which hold no rows of the table.
        outer: Columns that folders above the source stand for, so that all its rows have the same value.
    """

    system: Any
    paths: list[str]
    left_out: list[str]
    outer: list[str]

    def fetch(self, path: str) -> str | bytes:
        """A local path as it is, a remote file's bytes; raises DataError if memory cannot hold them."""
        if self.is_local:
            return path
        if (self.system.size(path) or 0) > find_free_memory():  # some servers do not tell
            raise outgrow(path)
        return cast(bytes, self.system.cat_file(path))

    def open_lazily(self, path: str) -> str | OpenFile:
        """A local path as it is, a remote file to be read in parts."""
        return path if self.is_local else OpenFile(self.system, path)

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine."""
        return isinstance(self.system, LocalFileSystem)


@contextlib.contextmanager
def naming_read_errors(source: str) -> Iterator[None]:
    """Turn errors from opening and reading into a DataError that names `source`."""
    try:
        yield
    except MemoryError as error:
        raise outgrow(source) from error
    except (OSError, ImportError, ValueError) as error:
        raise DataError(
            f"{source}: expected files that can be read, found {error}; check the path, its protocol and its permissions"
        ) from error


def outgrow(path: str) -> DataError:
    """The error for a table that is larger than memory."""
    return DataError(
        f"{path}: expected a table that fits into memory, of which {find_free_memory() / 1e9:.1f} GB are free, found a larger one;"
        " leave rows or columns out, or use a machine with more memory"
    )


def find_files(source: str) -> Files:
    """Find the data files of a source; raises DataError if there are none."""
    if not source.strip():
        raise DataError("expected the path or URL of a file, folder or glob, found an empty text; name one")
    system, root = open_files(source)
    system.invalidate_cache()
    if system.isfile(root):
        return Files(system, [root], [], list(find_partitions(root)))
    if system.isdir(root):
        found = _walk(system, root)
    elif GLOB_SIGNS.search(root):
        matches = system.glob(root)
        found = [path for path in matches if system.isfile(path)] or [path for folder in matches for path in _walk(system, folder)]
    else:
        raise DataError(f"{source}: expected a file, folder or glob, found {_describe_absence(system, root)}")
    start = GLOB_SIGNS.split(root)[0]
    above = start.rpartition("/")[0] if start != root else root
    shown = [path for path in found if not _has_part(path.removeprefix(start), ".")]
    data = [path for path in shown if path.lower().endswith(SUFFIXES)]
    data = data or [path for path in shown if path.lower().endswith(OTHER_SUFFIXES)]
    left_out = [path for path in data if _has_part(path.removeprefix(start).rpartition("/")[0], "_")]
    paths = _sort(system, set(data) - set(left_out))
    if not paths:
        endings = ", ".join(SUFFIXES + TEXT_SUFFIXES)
        raise DataError(f"{source}: expected files ending in {endings}, found none of them; check the path")
    _refuse_mixture(paths, source)
    outer = find_partitions(f"{above}/file").keys() & find_partitions(paths[0])
    return Files(system, paths, sorted(left_out), sorted(outer))


def _sort(system: Any, paths: Iterable[str]) -> list[str]:
    unique = {os.path.realpath(path) if isinstance(system, LocalFileSystem) else path: path for path in sorted(paths, reverse=True)}
    return sorted(unique.values())


def _refuse_mixture(paths: list[str], source: str) -> None:
    parquet = [path for path in paths if is_parquet(path)]
    if parquet and len(parquet) < len(paths):
        other = next(path for path in paths if path not in parquet)
        raise DataError(
            f"{source}: expected either CSV or Parquet, found {other} and {parquet[0]}; name one kind, like `*.parquet`"
        )


def _is_workbook(opened: Opened) -> bool:
    with open_bytes(opened) as file, contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        return any(name.startswith("xl/workbook") for name in archive.namelist())
    return False


def describe_content(head: bytes) -> str | None:
    """Say from its first bytes what kind of file this is, and what to do with it; None if it may be CSV."""
    return next((content for magic, content in CONTENTS.items() if head.startswith(magic)), None)


def _describe_absence(system: Any, root: str) -> str:
    """What is at a path that is neither file nor folder, and the remedy."""
    nothing = "nothing there; check the path"
    if not isinstance(system, LocalFileSystem):
        return nothing
    try:
        mode = os.stat(root).st_mode
    except OSError as error:
        if os.path.islink(root):
            return f"a broken link to {os.readlink(root)}; correct the link"
        return nothing if isinstance(error, FileNotFoundError) else f"{error.strerror}; check the path and its permissions"
    return f"{SPECIAL_FILES.get(stat.S_IFMT(mode), 'something else')}; write what comes from it to a file first"


def _walk(system: Any, folder: str) -> list[str]:
    """All files in a folder and those inside it."""
    if isinstance(system, LocalFileSystem):
        return [f"{inner}/{name}" for inner, _, names in os.walk(folder) for name in names]
    return cast(list[str], system.find(folder))


def _has_part(path: str, sign: str) -> bool:
    return any(part.startswith(sign) for part in PurePosixPath(path).parts)


def is_parquet(path: str) -> bool:
    """Whether a data file is named as a Parquet file."""
    return path.lower().endswith(".parquet")


def find_kind(opened: Opened, path: str, encoding: str | None = None) -> FileKind:
    """Find by the first bytes of a file how it is read; raises DataError for one that is no table, and says what it is.

    Args:
        opened: The file.
        path: Its name, for messages.
        encoding: Of its text, if that is given, as some encodings have bytes that are in no other text.
    """
    if is_parquet(path):
        return "parquet"
    with open_unpacked(opened) as file:
        head = file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if JSON_LINE.match(head):
        return "json"
    if head.startswith(OLD_EXCEL) or (head.startswith(b"PK") and _is_workbook(opened)):
        return "excel"
    content = describe_content(head)
    if content is None and encoding is None and b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = "bytes that are no text; save the table as CSV or Parquet"
    if content is not None:
        raise DataError(f"{path}: expected CSV or Parquet, found {content}")
    return "csv"


def find_partitions(path: str) -> dict[str, str | None]:
    """Find the columns that a file's folders stand for, as Hive, Spark and pandas lay tables out: `day=2026-11-26/part.parquet`.

    Only folders right above the file, with no other one between, stand for columns. The working directory and the folders above it
    do not, such as a project's `lr=0.1`.
    """
    values: dict[str, str | None] = {}
    for part in reversed(PurePosixPath(path.removeprefix(f"{os.getcwd()}/")).parts[:-1]):
        name, equals, value = part.partition("=")
        if not (name and equals):
            break
        values[unquote(name)] = None if value == NULL_PARTITION else unquote(value)
    return dict(reversed(values.items()))


@contextlib.contextmanager
def open_bytes(opened: Opened) -> Iterator[BinaryIO]:
    """A file's bytes as they are."""
    if isinstance(opened, OpenFile):
        with opened as file:
            yield cast(BinaryIO, file)
        return
    with open(opened, "rb") if isinstance(opened, str) else io.BytesIO(opened) as file:
        yield file


@contextlib.contextmanager
def open_unpacked(opened: Opened) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed where they are gzip."""
    with open_bytes(opened) as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with cast(BinaryIO, gzip.open(raw)) if is_gzip else raw as file:
            yield file


def digest_file(opened: Opened, path: str) -> bytes:
    """SHA-256 of a file's bytes and the columns that its folders stand for."""
    with open_bytes(opened) as file:
        digest = hashlib.file_digest(cast(io.BytesIO, file), "sha256")
    if partitions := find_partitions(path):
        digest.update(repr(partitions).encode())
    return digest.digest()


def check_names(names: Iterable[str], path: str) -> list[str]:
    """Return the names of a file's columns, stripped; a column with an empty one is left out.

    Raises:
        DataError: No column has a name, or a name is not UTF-8 text or comes twice.
    """
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError(f"{path}: expected columns with names, found none; write the table again")
    for name in names:
        if NO_TEXT.search(name):
            raise DataError(f"{path}: expected UTF-8 text, found other bytes in the header; write the file in UTF-8")
    places: dict[str, list[str]] = {}
    for position, name in enumerate(names, start=1):
        places.setdefault(name, []).append(str(position))
    twice = [f"`{show(name)}` as columns {' and '.join(found)}" for name, found in places.items() if name and len(found) > 1]
    if twice:
        raise DataError(f"{path}: expected each column once, found {', '.join(twice)}; rename all but one")
    return names
