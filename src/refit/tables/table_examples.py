"""What scoring and comparing ask of a table's examples: how raw rows become inputs, and which of them are alike."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from refit.data.examples import Examples, Obstacle
from refit.data.identities import Hashes, Rows, find_known, identify
from refit.data.inputs import Mask
from refit.errors import DataError
from refit.refs import Ref
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.columns import check_columns, take_column
from refit.tables.conversion import EXPECTED
from refit.tables.copies import estimate_chances, is_more_than_chance
from refit.tables.formats import AnyFormat, DateFormat, NumberFormat
from refit.tables.hashes import hash_rows
from refit.tables.manifest import Manifest, load_test_rows
from refit.tables.preprocessing import AnyColumn, apply_columns, read_frame
from refit.tables.row_identities import convert_rows
from refit.tables.sources.opening import open_source
from refit.texts import list_names, show


class TableExamples(Manifest):
    """The examples of a table."""

    def load_test_rows(self, store: Store) -> pl.DataFrame:
        """Load the test rows with all their cells as they were read; raises as `load_split` does."""
        return load_test_rows(self, store)

    def prepare(self, rows: Any) -> Tensor:
        """Turn raw rows, a frame or lists by column, into inputs `(N, F)`.

        Raises:
            DataError: A column is missing or has a value that training would refuse.
        """
        return apply_columns(self.columns, read_frame(rows))

    def read_truth(self, rows: pl.DataFrame) -> list[str]:
        """Return the true class of each raw row, as text; raises as `prepare` does."""
        return convert_rows(self, rows)[0].cast(pl.String).to_list()

    def read_target(self, rows: pl.DataFrame) -> Tensor:
        """Return the number of each raw row, standardized, float64; raises as `prepare` does."""
        found, target = convert_rows(self, rows)[0], self.signature.target
        if found.has_nulls():
            row = int(found.is_null().arg_max() or 0)
            raise DataError(
                f"row {row + 1} of the test rows, column `{show(target.name)}`: expected a number, found"
                f" {show(rows[target.name][row])}, which is a missing value to this model; train again"
            )
        numbers = found.to_numpy()
        return torch.from_numpy((numbers - target.centers[0]) / target.scales[0])

    def find_learned(self, rows: pl.DataFrame, numbers: Rows, store: Store) -> Mask:
        """Find the raw rows that a model of this data set has learned from.

        A raw row that equals a learned one counts as learned from. But if rows with such columns would be equal as often by chance,
        equality says nothing, and no row counts.

        Args:
            rows: N raw rows.
            numbers: Number of each row among its equals, `(N,)`.
            store: Where the data set is.

        Raises:
            DataError: The rows lack a column, or a value cannot be converted.
            StoreError: The record of the learned rows is gone.
        """
        _, hashes, known = convert_rows(self, rows)
        learned = self.load_learned(store)
        is_learned = find_known(identify(hashes, numbers), learned)
        chances = estimate_chances(known, numbers, len(learned))
        return is_learned if is_more_than_chance(is_learned.sum(), chances, min_share=0.0) else np.zeros(len(is_learned), bool)

    def find_clusters(self, rows: pl.DataFrame, store: Store) -> Hashes | None:
        """Number the raw test rows so that rows which depend on one another have the same number; None if all are independent.

        Rows of the same group depend on one another if the settings name a group column. Otherwise equal rows do, if chance does
        not explain them.
        """
        identities = self.load_identities("test", store)
        if identities.groups is not None:
            return identities.groups
        if self.time_column is None and len(np.unique(identities.hashes)) == rows.height:
            return None  # no two are equal, whatever they hold
        *_, known = convert_rows(self, rows)
        hashes = hash_rows(known[[*(column.name for column in self.columns), self.target]])
        _, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        chances = estimate_chances(known, np.zeros(len(hashes), np.int64), len(hashes) - 1)
        return hashes if is_more_than_chance((counts[places] > 1).sum(), chances) else None

    def is_told_apart_like(self, other: Examples) -> bool:
        """Whether the same columns tell rows apart in both data sets."""
        return isinstance(other, TableExamples) and self._list_columns() == other._list_columns()

    def find_obstacle(self, rows: pl.DataFrame, now: Examples, data: DataSettings) -> Obstacle | None:
        """Say why a model of this data set cannot be compared on raw rows of today's: lost columns or classes, other readings."""
        other_kind = super().find_obstacle(rows, now, data)
        if other_kind is not None or not isinstance(now, TableExamples):
            return other_kind
        return self._find_lost_columns(rows) or self._find_lost_classes(now) or self._find_other_readings(now, data)

    def find_slices(self, rows: pl.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Mask]]:
        """Name the rows of each value of each column."""
        for column in columns:
            values = take_column(rows, column).cast(pl.String)
            for value in values.unique().sort():
                name = f"{column} is missing" if value is None else f"{column} = {value}"
                yield name, values.eq_missing(value).to_numpy()

    def explain_useless_slices(self, rows: pl.DataFrame, columns: Sequence[str]) -> str | None:
        """Name the columns whose values are all different, so that their slices cannot show anything; None if there is none."""
        useless = [name for name in columns if rows.height > 1 and rows[name].n_unique() == rows.height]
        if not useless:
            return None
        return (
            f"promotion.slices by {list_names(useless)} have one row each, which cannot show a drop; name columns with fewer values"
        )

    def check_slices(self, columns: Sequence[str], rows: pl.DataFrame) -> None:
        """Raise DataError for columns that the raw rows lack."""
        check_columns("promotion.slices", columns, rows.columns, "the table")

    def explain_change(self, data: DataSettings) -> list[str]:
        """Say what has changed in the source since this data set."""
        now = open_source(data.source, data).read().frame
        lines = []
        if more := now.height - self.source_rows:
            change = f"{abs(more)} {'added' if more > 0 else 'removed'}"
            lines.append(f"data.source: {self.source_rows} -> {now.height} rows ({change})")
        if data.features is None:
            apart = {*filter(None, (self.target, data.time_column, data.group_column)), *data.exclude}
            known = {column.name for column in self.columns} | self.dropped_columns.keys() | apart
            lines += [f"data.source: column {name} added" for name in now.columns if name not in known]
            lines += [f"data.source: column {name} removed" for name in sorted(known - {*now.columns})]
        return lines or ["data.source: other values, same number of rows"]

    def _find_lost_columns(self, rows: pl.DataFrame) -> Obstacle | None:
        lost = [name for name in self._list_columns() if name is not None and name not in rows.columns]
        if not lost:
            return None
        problem = f"expected the columns that it needs, found no {list_names(sorted(lost))} in the data"
        return problem, "bring them back, or promote a candidate by hand"

    def _find_lost_classes(self, now: Manifest) -> Obstacle | None:
        """Name problem and remedy if the data has no row of a class that a model knows: a candidate would never predict it."""
        lost = [label for label in self.classes if label not in now.classes]
        if not lost:
            return None
        found = f"found none of {list_names(map(str, lost))}"
        problem = f"column `{now.target}`: expected rows of every class that it knows, {found}"
        return problem, "add such rows, or, if they are gone for good, promote a candidate by hand"

    def _find_other_readings(self, now: Manifest, data: DataSettings) -> Obstacle | None:
        """Name problem and remedy if files or columns are written otherwise than those that a model knows."""
        remedy = "write it as before, or, if it stays so, promote a candidate by hand"
        if self.dialect is not None and now.dialect is not None:
            dialects = [dialect.describe() for dialect in (self.dialect, now.dialect)]
            if not self.dialect.agrees_with(now.dialect, data):
                return f"expected files written {dialects[0]}, found them written {dialects[1]}", remedy
        columns = {column.name: column for column in now.columns}
        said = {*data.kinds, *data.formats}
        formats = [_strip(format) for format in (self.target_format, now.target_format)]
        if formats[0] != formats[1] and self.target not in said:
            names = [format.describe() for format in formats]
            return f"column `{show(self.target)}`: expected {names[0]}, found {names[1]}", remedy
        for known in self.columns:
            found = columns.get(known.name)
            if found is not None and known.name not in said and not _are_read_alike(known, found):
                return f"column `{show(known.name)}`: expected {_describe(known)}, found {_describe(found)}", remedy
        return None

    def _list_columns(self) -> set[str | None]:
        """List the columns that tell rows apart."""
        return {*(column.name for column in self.columns), self.target, self.time_column}


def _are_read_alike(before: AnyColumn, now: AnyColumn) -> bool:
    """Whether cells have the same kind, unit and notation; signs between thousands and around negative numbers may come and go."""
    return (_find_notation(before), before.kind) == (_find_notation(now), now.kind)


def _find_notation(column: AnyColumn) -> AnyFormat:
    """The format of a column, without what it has only if some of its cells are such."""
    return _strip(column.format)


def _strip(format: AnyFormat | None) -> AnyFormat:
    format = format or NumberFormat()
    if isinstance(format, NumberFormat):
        return format.model_copy(update={"thousands": "", "negative": ""})
    return format.model_copy(update={"last_year": None}) if isinstance(format, DateFormat) else format


def _describe(column: AnyColumn) -> str:
    return EXPECTED[column.kind] if column.format is None else column.format.describe()


def load_manifest(ref: Ref, store: Store) -> TableExamples:
    """Load the record whose ref `build_dataset` returned."""
    return parse_manifest(store.get(ref.digest))


@functools.lru_cache(maxsize=1)
def parse_manifest(record: bytes) -> TableExamples:
    """Parse such a record; the last one is kept, as steps of a run ask for the same, and one of many columns takes long."""
    return TableExamples.model_validate_json(record)
