"""A hash of what each row of a table holds."""

import hashlib

import numpy as np
import polars as pl

from refit.data.identities import Hashes, mix
from refit.tables.columns import take_column

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
        for name in sorted(frame.columns):
            hashes[rows] = mix(hashes[rows] ^ mix(_hash_values(take_column(frame, name)[rows]) + _hash_text(name)))
    return hashes


def _hash_values(values: pl.Series) -> Hashes:
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        counts = values.cast(pl.Int64) if values.dtype.is_temporal() else values
        numbers = counts.cast(pl.Float64).to_numpy() + 0.0  # so that -0.0 is 0.0; null is NaN
        return np.where(np.isnan(numbers), MISSING, numbers.view(np.uint64))
    texts = values.cast(pl.String)
    unique = texts.drop_nulls().unique()
    known = pl.Series([_hash_text(text) for text in unique], dtype=pl.UInt64)
    hashes: Hashes = texts.replace_strict(unique, known, default=MISSING, return_dtype=pl.UInt64).to_numpy()
    return hashes


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
