"""Identifies rows by the columns that a data set uses, whichever table they come from."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from refit.data.identities import Hashes, Identities, number_copies
from refit.data.signature import Kind
from refit.tables.columns import check_columns, take_column
from refit.tables.conversion import convert_column
from refit.tables.hashes import hash_rows
from refit.tables.manifest import Manifest
from refit.tables.preprocessing import AnyColumn
from refit.tables.table_splits import TypedTable
from refit.tables.targets import convert_known_target


def convert_rows(manifest: Manifest, rows: pl.DataFrame) -> tuple[pl.Series, Hashes, pl.DataFrame]:
    """Convert raw rows as those of this data set were.

    Returns:
        The true classes or numbers, a hash that identifies each row for this data set, and the columns that it covers: those
        learned from, the target, the time. Each has N rows.

    Raises:
        DataError: A column is missing, or a value cannot be converted.
    """
    names = [*(column.name for column in manifest.columns), manifest.target, manifest.time_column]
    check_columns("data.source", filter(None, names), rows.columns, "the table")
    frame = pl.DataFrame(
        {
            column.name: convert_column(
                take_column(rows, column.name), column.kind, column.null_values, _name_test_row, column.format
            )
            for column in manifest.columns
        }
    )
    kinds: dict[type, Kind] = {bool: "boolean", int: "numeric", str: "categorical"}
    null_values = manifest.columns[0].null_values
    is_number = not manifest.classes
    kind: Kind = "numeric" if is_number else kinds[type(manifest.classes[0])]
    values = take_column(rows, manifest.target)
    target = convert_known_target(values, kind, is_number, manifest.target_format, null_values, _name_test_row)
    known = _gather_known(frame, manifest.columns, target.alias(manifest.target), rows, manifest.time_column)
    return target, hash_rows(known), known


def identify_rows(typed: TypedTable, columns: Sequence[AnyColumn], time_column: str | None) -> Identities:
    """Hash each row, and number the copies among those that have a class."""
    hashes = hash_rows(_gather_known(typed.frame, columns, typed.target, typed.table.frame, time_column))
    numbers, labelled = np.zeros(len(hashes), np.int64), typed.labelled
    numbers[labelled] = number_copies(hashes[labelled])
    return Identities(hashes, numbers, typed.groups)


def _name_test_row(index: int) -> str:
    return f"row {index + 1} of the test rows"


def _gather_known(
    frame: pl.DataFrame, columns: Sequence[AnyColumn], target: pl.Series, raw: pl.DataFrame, time_column: str | None
) -> pl.DataFrame:
    """What tells rows apart: the columns that are learned from, the class, and the time of a `time` split."""
    known = frame[[column.name for column in columns]].with_columns(target)
    return known if time_column is None else known.with_columns(take_column(raw, time_column).alias(f"time {time_column}"))
