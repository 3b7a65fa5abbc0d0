"""CSV and Parquet files, folders and globs of them, as one table."""

import fnmatch
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import polars as pl
from fsspec.implementations.local import LocalFileSystem

from refit.errors import DataError
from refit.runtime.limits import find_free_memory
from refit.store.disk import open_files
from refit.tables.columns import take_column
from refit.tables.sources import parquet_files
from refit.tables.sources.data_file import ASCII, DataFile, Like
from refit.tables.sources.dialects import UNKNOWN, Dialect, name_separator
from refit.tables.sources.encoded_text import UTF8, name_encoding
from refit.tables.sources.files import BYTES_A_TEXT, Files, digest_file, find_files, find_partitions, naming_read_errors, outgrow
from refit.tables.sources.located_rows import LocatedRows, Part, join, name_row, rebatch
from refit.tables.sources.table_source import Table, TableSource, choose_columns, lack_rows
from refit.texts import count, list_names, show

NUM_PARTS = 16
"""Of a sample, at least, if the table has more rows than it holds."""
MAX_PLACES = 5
"""So many columns without a name are counted out, at most."""
MIN_NAMES = 2
"""A cell that is called like the only column may be a value."""


class FileSource(TableSource):
    """A file, folder or glob of CSV or Parquet files, or of files with a JSON object a line, as a path or fsspec URL.

    Args:
        name: The source as it was asked for.
        given: What the settings say of the dialect of CSV files.
        like: What CSV files must be written like; None finds how the first is written, which the others must be like.
        named: Columns that are asked for; a first row with one of them is a header.
        is_union: Whether files may lack columns that others have.
    """

    def __init__(
        self,
        name: str,
        given: Dialect = UNKNOWN,
        like: Like | None = None,
        named: frozenset[str] = frozenset(),
        is_union: bool = False,
    ) -> None:
        super().__init__(name)
        self.given, self.like, self.named, self.is_union = given, like, named, is_union

    def digest(self) -> str:
        """SHA-256 over the bytes of the files, in order, and their partitions; neither their names nor their times count.

        Raises:
            DataError: Nothing is there, or a file cannot be read.
        """
        with naming_read_errors(self.name):
            files = find_files(self.name)
            return _join_digests(digest_file(files.fetch(path), path) for path in files.paths)

    def names(self) -> list[str]:
        """Read the names of the columns from the first file, or from all if they may differ; raises as `read` does."""
        with naming_read_errors(self.name):
            files, names = find_files(self.name), list[str]()
            for path in files.paths if self.is_union else files.paths[:1]:
                file = DataFile(files.fetch(path), path, self.given, self.like, self.named)
                names += _add_partition_names(file.names, path)
            return list(dict.fromkeys(names))

    def read(self) -> Table:
        """Read all rows of all files.

        Raises:
            DataError: Nothing is there, a file is damaged or does not fit into memory, its rows differ in length, files differ in
                columns, or there is no row.
        """
        with naming_read_errors(self.name):
            files = find_files(self.name)
            pieces, digests, read = list[LocatedRows](), [], list[DataFile]()
            for path in files.paths:
                file = DataFile(files.fetch(path), path, self.given, self._find_like(read), self.named)
                pieces += _hold(_read_pieces(file), path)
                digests.append(digest_file(file.opened, path))  # after reading: if it is still the recipe's, so were the rows
                _ = file.other_sheets
                file.opened = b""  # all of it, if it was fetched
                read.append(file)
        return self._make_table(pieces, files, read, _join_digests(digests))

    def sample(self, max_bytes: int, max_bytes_read: int) -> Table:
        """Read as many pieces, evenly from all over the files, as `max_bytes` hold; raises as `read` does."""
        with naming_read_errors(self.name):
            files = find_files(self.name)
            read, sample = list[DataFile](), _Sample(max_bytes)
            for path in files.paths:
                read.append(DataFile(files.open_lazily(path), path, self.given, self._find_like(read), self.named))
                for piece in _read_pieces(read[-1]):
                    sample.add(piece)
                    if sample.num_bytes_seen > max_bytes_read:
                        return self._make_table(sample.pieces, files, read, "", sample.num_rows_seen)
        return self._make_table(sample.pieces, files, read, "", sample.num_rows_seen)

    def _make_table(
        self, pieces: Sequence[LocatedRows], files: Files, read: Sequence[DataFile], digest: str, num_seen: int | None = None
    ) -> Table:
        rows = join(pieces, self.is_union)
        num_seen = None if num_seen == rows.frame.height else num_seen
        remarks = (*_describe_dialects(read, self.given), *_describe_left_out(read, files.left_out), *_describe_lacking(read))
        return Table(
            rows.frame,
            rows.parts,
            self.name,
            digest,
            outer=tuple(files.outer),
            remarks=remarks,
            dialect=_unite_dialects(read),
            num_seen=num_seen,
        )

    def _find_like(self, read: Sequence[DataFile]) -> Like | None:
        """What the next file must be written like."""
        first = next((file for file in read if file.dialect is not None), None)
        if self.like is not None or first is None or first.dialect is None:
            return self.like
        dialect, names = first.dialect.model_copy(update={"encoding": None}), tuple(filter(None, first.names))
        return Like(dialect, first.path, "or read the files separately", names)

    def iterate(self, columns: Sequence[str], keep: Sequence[str], batch_size: int) -> Iterator[LocatedRows]:
        """Read some columns in memory that does not grow with the files, once all headers are checked; raises as `read` does."""
        with naming_read_errors(self.name):
            files = find_files(self.name)
            opened = list[DataFile]()
            for path in files.paths:
                opened.append(DataFile(files.open_lazily(path), path, self.given, self._find_like(opened), self.named))
                present = _add_partition_names(opened[-1].names, path)
                wanted = choose_columns(columns, keep, present, path)
            pieces = (piece for file in opened for piece in _read_pieces(file, wanted, batch_size))
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


class _Sample:
    """Pieces that come one after the other: all of them, then every second, every fourth and so on, as memory fills up."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._stride, self._num_pieces = max_bytes, 1, 0
        self._held: dict[int, tuple[LocatedRows, int]] = {}
        self.num_rows_seen = self.num_bytes_seen = 0

    @property
    def pieces(self) -> list[LocatedRows]:
        """Those that are kept, in order."""
        return [piece for piece, _ in self._held.values()]

    def add(self, piece: LocatedRows) -> None:
        """Keep some of the next rows."""
        size, num_rows = int(piece.frame.estimated_size()), piece.frame.height
        self.num_rows_seen += num_rows
        self.num_bytes_seen += size
        num_parts = max(1, min(num_rows, NUM_PARTS * size // self._max_bytes))
        for start in range(0, max(num_rows, 1), num_rows_a_part := -(-num_rows // num_parts) or 1):
            self._add_part(piece.slice(start, num_rows_a_part), size // num_parts)

    def _add_part(self, part: LocatedRows, size: int) -> None:
        if self._num_pieces % self._stride == 0:
            self._held[self._num_pieces] = part, size
        self._num_pieces += 1
        while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._max_bytes:
            self._stride *= 2
            self._held = {number: kept for number, kept in self._held.items() if number % self._stride == 0}


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
    file: DataFile, columns: list[str] | None = None, batch_size: int = parquet_files.ROWS_A_FRAME
) -> Iterator[LocatedRows]:
    """Read the rows of a file in one piece or more, with the columns that its folders stand for; `columns` None reads all.

    Raises:
        DataError: The file cannot be read; or, if columns are named, the header stands among the rows.
    """
    start = 0
    for whole in file.iterate(columns, batch_size):
        headers = _find_headers(whole, file)
        if headers and columns is not None:
            where = name_row(file.path, start + headers[0] + 1, file.dialect)
            raise DataError(f"{where}: expected a row, found the header again; remove it")
        file.repeated += [start + index + 1 for index in headers]
        for first, last in itertools.pairwise([-1, *headers, whole.height]):
            frame = _add_partitions(whole[first + 1 : last], file.path, start + first + 1, file.dialect)
            part = Part(file.path, start + first + 1, frame.height, file.found)
            yield LocatedRows(frame if columns is None else frame[columns], (part,))
        start += whole.height


def _find_headers(frame: pl.DataFrame, file: DataFile) -> list[int]:
    """Rows of a CSV file that repeat its header, as when files were put together."""
    if file.dialect is None or not file.dialect.header or frame.width < MIN_NAMES:
        return []
    likely: set[int] = set()
    for name in (frame.columns[0], frame.columns[-1]):
        likely |= {*(take_column(frame, name).str.strip_chars() == name).fill_null(False).arg_true()}
    if 2 * len(likely) > frame.height:
        return []
    # Where a single cell is called like its column, or most are, names are values, too.
    rows = ([(cell or "").strip() for cell in frame.row(index)] for index in likely)
    return sorted(likely) if all(row == frame.columns for row in rows) else []


def _add_partition_names(names: Iterable[str], path: str) -> list[str]:
    """Names of a file's own columns without an index, then of those that only its folders stand for."""
    return list(dict.fromkeys([*filter(None, names), *find_partitions(path)]))


def _add_partitions(frame: pl.DataFrame, path: str, num_before: int = 0, dialect: Dialect | None = None) -> pl.DataFrame:
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
                f"{name_row(path, num_before + index + 1, dialect)}, column `{name}`: expected {value}, as its folder says,"
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


def _unite_dialects(files: Sequence[DataFile]) -> Dialect | None:
    """How all the files are written, with their encoding if it is one; None if none is CSV."""
    dialects = [file.found for file in files if file.found is not None]
    if not dialects:
        return None
    encodings = {dialect.encoding for dialect in dialects} - {ASCII}
    encoding = ASCII if not encodings else encodings.pop() if len(encodings) == 1 else None
    return dialects[0].model_copy(update={"encoding": encoding})


def _describe_dialects(files: Sequence[DataFile], given: Dialect) -> Iterator[str]:
    """A sentence for all files that are written in one way that was found and is not the usual."""
    alike: dict[Dialect, list[DataFile]] = {}
    for file in files:
        if file.found is not None:
            alike.setdefault(file.found, []).append(file)
    for dialect, same in alike.items():
        told = {}
        if given.separator is None and dialect.separator != ",":
            told["data.separator"] = f"with {name_separator(dialect.separator)} between cells"
        if given.encoding is None and dialect.encoding not in (None, ASCII, UTF8):
            told["data.encoding"] = f"as text in {name_encoding(dialect.encoding)}"
        if given.header is None and not dialect.header:
            told["data.header"] = f"without a header, so that columns are named `{same[0].names[0]}` to `{same[0].names[-1]}`"
        if told:
            where = _count_others([file.path for file in same])
            yield f"read {where} {', '.join(told.values())}; set {' or '.join(told)} if that is not meant"


def _describe_left_out(files: Sequence[DataFile], in_hidden: list[str]) -> Iterator[str]:
    """A sentence each for nameless columns, and for files in folders that are not read."""
    nameless = {file.path: [place for place, name in enumerate(file.names) if not name] for file in files}
    nameless = {path: places for path, places in nameless.items() if places}
    if nameless:
        first = next(iter(nameless.values()))
        if first == [0]:
            what = "the first column"
            why = "which has no name, as when pandas and R write row numbers; name it to learn from it"
        else:
            what = f"column{'s' * (len(first) > 1)} {', '.join(str(place + 1) for place in first[:MAX_PLACES])}"
            what += f" and {len(first) - MAX_PLACES} more" if len(first) > MAX_PLACES else ""
            why = "without a name; name what to learn from"
        yield f"left out: {what} of {_count_others([*nameless])}, {why}"
    for file in files:
        if file.other_sheets:
            yield f"left out: all sheets of {file.path} but the first: {list_names(file.other_sheets)}; save one as CSV to read it"
    for file in files:
        if file.dialect is not None and (above := file.dialect.above):
            yield f"left out: {count(above, 'row')} above the {'header' if file.dialect.header else 'table'} of {file.path}"
        if file.dialect is not None and file.dialect.quote:
            yield f"read {file.path} with `{file.dialect.quote}` around cells"
        if file.notes is not None:
            number, start = file.notes
            yield f"left out: {count(number, 'row')} below the table of {file.path}, from `{show(start)}` on"
        if file.repeated:
            more = f" and {len(file.repeated) - 1} more" if len(file.repeated) > 1 else ""
            yield f"left out: {name_row(file.path, file.repeated[0], file.dialect)}{more}, where the header is repeated"
    if in_hidden:
        yield (f"left out: {_count_others(in_hidden)}, as folders that begin with `_` are not read; move files that should be read")


def _describe_lacking(files: Sequence[DataFile]) -> Iterator[str]:
    """A sentence for each column that some files lack."""
    names = dict.fromkeys(name for file in files for name in file.names if name)
    present = {file.path: {*file.names, *find_partitions(file.path)} for file in files}
    for name in names:
        if lacking := [path for path, known in present.items() if name not in known]:
            lack = "lacks" if len(lacking) == 1 else "lack"
            yield f"column `{show(name)}`: {_count_others(lacking)} {lack} it, so that its values are missing there"


def _count_others(paths: list[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _join_digests(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
