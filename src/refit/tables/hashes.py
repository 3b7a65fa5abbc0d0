"""A hash of what each row of a table holds."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from refit.data.identities import Hashes, mix
from refit.tables.columns import Numbers, stack_numbers, take_column

MISSING = 0x9E3779B97F4A7C15
"""The hash of a missing value."""
ROWS_A_BLOCK = 262_144
"""Rows hashed at a time: intermediate results stay in the processor's cache, and take little memory."""


def hash_rows(frame: pl.DataFrame, seed: int = 0, rows_a_block: int = ROWS_A_BLOCK) -> Hashes:
    """Hash the names and values of each row; the hash is the same in any order of columns and on any machine.

    Numbers are hashed as floats and all else but date-times as text, so that the type found for a column does not matter.

    Shape:
        frame: N rows; returns (N,).
    """
    hashes = np.full(frame.height, seed, np.uint64)
    for start in range(0, frame.height, rows_a_block):
        rows = slice(start, start + rows_a_block)
        for values in _hash_columns(frame[rows]):
            hashes[rows] = mix(hashes[rows] ^ values)
    return hashes


def _hash_columns(frame: pl.DataFrame) -> Iterator[Hashes]:
    """Hash the values of each column with its name, by which the columns are sorted; numbers of several columns at a time."""
    numbers = [name for name in sorted(frame.columns) if frame[name].dtype.is_numeric()]
    stacked = (zip(names, _mix_names(names, _hash_numbers(cells)), strict=True) for names, cells in stack_numbers(frame, numbers))
    blocks = itertools.chain.from_iterable(stacked)
    for name in sorted(frame.columns):
        if frame[name].dtype.is_numeric():
            yield next(blocks)[1]
        else:
            yield _mix_names([name], _hash_values(take_column(frame, name))[None])[0]


def _mix_names(names: Sequence[str], hashes: Hashes) -> Hashes:
    """Mix the name of each column into the hashes of its values; `(columns, N)`."""
    return mix(hashes + np.array([_hash_text(name) for name in names], np.uint64)[:, None])


def _hash_numbers(numbers: Numbers) -> Hashes:
    numbers = numbers + 0.0  # so that -0.0 is 0.0
    return np.where(np.isnan(numbers), np.uint64(MISSING), numbers.view(np.uint64))


def _hash_values(values: pl.Series) -> Hashes:
    if values.dtype.is_temporal():
        return _hash_numbers(values.cast(pl.Int64).cast(pl.Float64).to_numpy())  # null is NaN
    texts = values.cast(pl.String)
    unique = texts.drop_nulls().unique()
    known = pl.Series([_hash_text(text) for text in unique], dtype=pl.UInt64)
    hashes: Hashes = texts.replace_strict(unique, known, default=MISSING, return_dtype=pl.UInt64).to_numpy()
    return hashes


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
