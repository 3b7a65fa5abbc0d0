"""One file of a source: what kind it is, how it is written, its columns and its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from refit.errors import DataError
from refit.tables.sources import csv_files, excel_files, json_lines, parquet_files
from refit.tables.sources.dialects import PLAIN, UNKNOWN, Dialect, name_separator, sniff_dialect
from refit.tables.sources.encoded_text import is_unicode, name_encoding
from refit.tables.sources.files import UNREADABLE, Opened, find_kind

ASCII = "ascii"


@dataclass(frozen=True)
class Like:
    """What a file must be written like.

    Args:
        dialect: How that is written; an encoding that is None is not compared.
        where: What is written so, for messages.
        remedy: What else to do about a file that differs.
        names: Columns that it has; a file whose header names all of them is written alike.
    """

    dialect: Dialect
    where: str
    remedy: str
    names: tuple[str, ...] = ()


class DataFile:
    """A file of a source.

    Args:
        opened: The file.
        path: Its name, for messages.
        given: What the settings say of its dialect, which is not questioned.
        like: What it must be written like, if it is CSV; None finds out how it is written.
        named: Columns that are asked for; a first row with one of them is a header.

    Raises:
        DataError: It is no table, or is written otherwise.
    """

    def __init__(
        self,
        opened: Opened,
        path: str,
        given: Dialect = UNKNOWN,
        like: Like | None = None,
        named: frozenset[str] = frozenset(),
    ) -> None:
        self.opened, self.path, self.given, self.like, self.named = opened, path, given, like, named
        try:
            self.kind = find_kind(opened, path, given.encoding)
            self.encoding: str | None = given.encoding if self.kind == "csv" else None
            self.dialect = self._find_dialect() if self.kind == "csv" else None
        except UNREADABLE as error:
            raise DataError(f"{path}: expected a CSV file, found one that cannot be read ({error}); write it again") from error
        self.repeated = list[int]()
        """Rows that were found to repeat the header, counted from 1."""
        self.notes: tuple[int, str] | None = None
        """How many notes were found below the rows, and how they begin."""
        self.names = self._read_names()
        """Of its columns; those with an empty one are not read."""

    @cached_property
    def other_sheets(self) -> list[str]:
        """Sheets of a workbook that are not read."""
        return excel_files.list_other_sheets(self.opened, self.path) if self.kind == "excel" else []

    @property
    def found(self) -> Dialect | None:
        """How it is written if it is CSV; its encoding is known once all of it was read."""
        return None if self.dialect is None else self.dialect.model_copy(update={"encoding": self.encoding or ASCII})

    def _read_names(self) -> list[str]:
        if self.dialect is not None:
            return csv_files.read_header(self.opened, self.path, self.dialect, self._settle).names
        readers = {"json": json_lines.read_names, "excel": excel_files.read_names, "parquet": parquet_files.read_names}
        return readers[self.kind](self.opened, self.path)

    def iterate(self, columns: Sequence[str] | None = None, batch_size: int = parquet_files.ROWS_A_FRAME) -> Iterator[pl.DataFrame]:
        """Read its rows, at least the columns that are named; None reads all."""
        if self.dialect is not None:
            return csv_files.iterate_csv(self.opened, self.path, self.dialect, self._settle, self._keep_notes)
        if self.kind == "json":
            return json_lines.iterate_json_lines(self.opened, self.path)
        if self.kind == "excel":
            return excel_files.iterate_excel(self.opened, self.path)
        return parquet_files.iterate_parquet(self.opened, self.path, columns, batch_size)

    def _keep_notes(self, number: int, first: str) -> None:
        self.notes = number, first

    def _find_dialect(self) -> Dialect:
        """What is given, what it must be like, what the file shows, and a header if it does not show any, in this order."""
        if self.like is None:
            found = self.given.fill_in(sniff_dialect(self.opened, self.given, self._settle)).fill_in(PLAIN)
            is_named = self.given.header is None and not self.named.isdisjoint(self._read_first_row(found))
            return found.model_copy(update={"header": True}) if is_named else found
        known = self.given.fill_in(self.like.dialect.model_copy(update={"encoding": None})).fill_in(PLAIN)
        if known.header and self.like.names and {*self.like.names} <= {*self._read_first_row(known)}:
            return known
        found = sniff_dialect(self.opened, Dialect(encoding=self.given.encoding), self._settle)
        known = known.model_copy(update={"above": found.above})
        is_split, was_split = (len(self._read_first_row(dialect)) > 1 for dialect in (found, known))
        if found.separator != known.separator and is_split and not was_split:
            raise self._differ(f"{name_separator(known.separator)} between cells", name_separator(found.separator))
        if found.separator == known.separator and self.given.header is None and found.header == (not known.header):
            raise self._differ(*("a header", "none")[:: 1 if known.header else -1])
        return known

    def _read_first_row(self, dialect: Dialect) -> list[str]:
        """The cells of its first row in a dialect, whatever they mean."""
        dialect = dialect.model_copy(update={"encoding": self.given.encoding})
        return csv_files.read_first_row(self.opened, self.path, dialect, self._settle)

    def _settle(self, found: str) -> str:
        """The encoding to use where the bytes look like `found`."""
        expected = self.like.dialect.encoding if self.like is not None else None
        if expected not in (None, ASCII):
            if is_unicode(found) != is_unicode(expected):
                raise self._differ(f"text in {name_encoding(expected)}", name_encoding(found))
            found = found if is_unicode(found) else expected
        self.encoding = found
        return found

    def _differ(self, expected: str, found: str) -> DataError:
        assert self.like is not None
        return DataError(
            f"{self.path}: expected {expected}, as in {self.like.where}, found {found}; write the file alike, {self.like.remedy}"
        )
