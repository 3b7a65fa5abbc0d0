"""Hashes that tell rows apart: by what they hold, and by their number among equal ones."""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.tables.schema import Rows

Hashes = NDArray[np.uint64]

MISSING = 0x9E3779B97F4A7C15
"""The hash of no value."""
ROWS_A_BLOCK = 262_144
"""Hashed at once: what is computed in between stays in the processor's cache, and takes little memory."""


@dataclass(frozen=True)
class Identities:
    """What tells N rows apart, and which belong together.

    Args:
        hashes: Of each row's columns that are learned from, its class and its time.
        numbers: Each row's number among those of its table with the same hash, from 0 on; rows without a class do not count.
        groups: Hash of each row's group; None where rows come in none.
    """

    hashes: Hashes
    numbers: Rows
    groups: Hashes | None

    @property
    def keys(self) -> Hashes:
        """One hash for each row, its number included."""
        return identify(self.hashes, self.numbers)


def hash_rows(frame: pl.DataFrame, seed: int = 0) -> Hashes:
    """Hash what each row holds: names and values, in any order of columns, whatever computes it.

    Numbers are hashed as floats and all else but date-times as text, so that the type found for a column does not matter.

    Source: the mixer is `splitmix64` (Steele, Lea and Flood, 2014, figure 16).

    Shape:
        frame: N rows; returns (N,).
    """
    hashes = np.full(frame.height, seed, np.uint64)
    for start in range(0, frame.height, ROWS_A_BLOCK):
        rows = slice(start, start + ROWS_A_BLOCK)
        for name in sorted(frame.columns):
            hashes[rows] = _mix(hashes[rows] ^ _mix(_hash_values(frame[name][rows]) + _hash_text(name)))
    return hashes


def number_copies(hashes: Hashes) -> Rows:
    """Number the rows of each hash in their order: 0 for the first of them, 1 for its first copy.

    Shape:
        hashes: (N,); returns (N,).
    """
    order = np.argsort(hashes, kind="stable")
    places = np.arange(len(order))
    numbers = np.empty_like(places)
    numbers[order] = places - np.maximum.accumulate(np.where(find_changes(hashes[order]), places, 0))
    return numbers


def identify(hashes: Hashes, numbers: Rows) -> Hashes:
    """Hash each row's hash with its number among equal ones; number 0 leaves the hash as it is.

    Shape:
        hashes, numbers: (N,); returns (N,).
    """
    return np.where(numbers == 0, hashes, _mix(hashes ^ _mix(numbers.astype(np.uint64))))


def find_known(hashes: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Mark the hashes that are among others too, as `np.isin` does, which takes ten times as long.

    Shape:
        hashes: (N,); others: (M,); returns (N,).
    """
    if not len(others):
        return np.zeros(len(hashes), bool)
    ordered = np.sort(others)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    known: NDArray[np.bool_] = ordered[places] == hashes
    return known


def find_changes(ordered: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Mark the values that differ from the one before them, and the first, `(N,)`."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def _hash_values(values: pl.Series) -> Hashes:
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        # Without its name, as polars would take one such as `^a$` for a pattern.
        numbers = values.alias("").to_physical().cast(pl.Float64).to_numpy() + 0.0  # so that -0.0 is 0.0; null is NaN
        return np.where(np.isnan(numbers), MISSING, numbers.view(np.uint64))
    texts = values.cast(pl.String)
    unique = texts.drop_nulls().unique()
    known = pl.Series([_hash_text(text) for text in unique], dtype=pl.UInt64)
    hashes: Hashes = texts.replace_strict(unique, known, default=MISSING, return_dtype=pl.UInt64).to_numpy()
    return hashes


def _hash_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _mix(x: Hashes) -> Hashes:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
