"""Rows of a source that know where they came from: joined over files, and cut into batches."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from refit.errors import DataError
from refit.tables.sources import csv_files
from refit.tables.sources.dialects import Dialect
from refit.texts import show


class Part(NamedTuple):
    """Neighbouring rows of one file: its name, the number of its rows before these, their number, and how it is written if CSV."""

    path: str
    num_before: int
    num_rows: int
    dialect: Dialect | None = None


@dataclass(frozen=True)
class LocatedRows:
    """Neighbouring rows of a source.

    Args:
        frame: The rows.
        parts: Where they come from, in their order.
    """

    frame: pl.DataFrame
    parts: tuple[Part, ...]

    def locate(self, index: int) -> str:
        """Say where row `index` (from 0) of `frame` is: data rows of a file count from 1, without the header."""
        for part in self.parts:
            if index < part.num_rows:
                return name_row(part.path, part.num_before + index + 1, part.dialect)
            index -= part.num_rows
        raise IndexError(index)

    def slice(self, start: int, num_rows: int | None = None) -> "LocatedRows":
        """Some of the rows of a single part; all that follow `start` without `num_rows`."""
        part, frame = self.parts[0], self.frame.slice(start, num_rows)
        return LocatedRows(frame, (Part(part.path, part.num_before + start, frame.height, part.dialect),))


def name_row(path: str, row: int, dialect: Dialect | None) -> str:
    """Say where a row of a file is, counted from 1; in a CSV file of this machine also at which line it begins."""
    if dialect is None or not os.path.isfile(path):
        return f"row {row} of {path}"
    return csv_files.name_row(path, path, row, dialect)


def join(pieces: Sequence[LocatedRows], is_union: bool = False) -> LocatedRows:
    """Return rows of single parts below one another; arguments and errors as those of `join_parts`."""
    frame = join_parts([piece.parts[0].path for piece in pieces], [piece.frame for piece in pieces], is_union)
    return LocatedRows(frame, tuple(part for piece in pieces for part in piece.parts))


def rebatch(pieces: Iterable[LocatedRows], keep: Sequence[str], batch_size: int) -> Iterator[LocatedRows]:
    """Cut pieces, each a single part, into batches of one size; the last may be shorter.

    Raises:
        DataError: A column has incompatible types in two files, or different types if it is in `keep`.
    """
    held: list[LocatedRows] = []
    num_held = 0
    first: LocatedRows | None = None
    for piece in pieces:
        if not piece.frame.height:
            continue
        first = first or piece.slice(0, 0)
        if piece.parts[0].num_before == 0:
            _check_types(first, piece, keep)
        while num_held + piece.frame.height >= batch_size:
            num_taken = batch_size - num_held
            yield join([*held, piece.slice(0, num_taken)])
            piece, held, num_held = piece.slice(num_taken), [], 0
        if piece.frame.height:
            held.append(piece)
            num_held += piece.frame.height
    if held:
        yield join(held)


def _check_types(first: LocatedRows, piece: LocatedRows, keep: Sequence[str]) -> None:
    join([first, piece.slice(0, 0)])
    for name in keep:
        known, found = first.frame.schema[name], piece.frame.schema[name]
        if known != found:
            has, path = first.parts[0].path, piece.parts[0].path
            raise DataError(f"{path}, column `{name}`: expected {known} as in {has}, found {found}; convert the column")


def join_parts(paths: Sequence[str], frames: Sequence[pl.DataFrame], is_union: bool = False) -> pl.DataFrame:
    """Return all parts below one another, in the first part's order of columns; types that mean the same become one.

    Args:
        paths: Where each part comes from.
        frames: The parts.
        is_union: Whether a part may lack columns that others have, whose cells are null there.

    Raises:
        DataError: A part has other columns than the first, unless it may, or a column of another kind.
    """
    if is_union:
        all_names = dict.fromkeys(name for frame in frames for name in frame.columns)
        lacking = ([pl.lit(None).alias(name) for name in all_names if name not in frame.columns] for frame in frames)
        frames = [frame.with_columns(nulls) for frame, nulls in zip(frames, lacking, strict=True)]
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
                f"{lacks}: expected the same columns as in {has}, found no column `{show(absent)}`; add it, or set"
                " data.union to take its values as missing there"
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
    """A type that can hold both; None if they do not mean the same."""
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
