"""Divides rows into train, val and test, before anything is learned from them. Rows keep their source order in every split."""

import hashlib
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.schema import Rows
from refit.errors import DataError

Hashes = NDArray[np.uint64]

MISSING = np.uint64(0x9E3779B97F4A7C15)
"""The hash of no value."""
ROWS_A_BLOCK = 262_144
"""Hashed at once: what is computed in between stays in the processor's cache, and takes little memory."""


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


def split_randomly(
    hashes: Hashes, y: Rows, classes: Sequence[Any], val_fraction: float, test_fraction: float, where: str
) -> dict[str, Rows]:
    """Divide each class by the rows' hashes, so that a row stays where it is when others come or move.

    Args:
        hashes: Of what the rows hold, N of them; another seed of theirs gives another split.
        y: Index of each row's class.
        classes: The classes, for messages.
        val_fraction: Share for validation; where above 0, each class gives a row or more.
        test_fraction: Share for the test, likewise.
        where: Source and target column, for messages.

    Returns:
        Indices of the rows of each split that has any.

    Raises:
        DataError: A class has too few rows to be in every split.
    """
    order = np.lexsort((hashes, y))
    sizes = np.bincount(y, minlength=len(classes))
    for index, size in enumerate(sizes.tolist()):
        if sum(_held_out(size, val_fraction, test_fraction)) >= size:
            needed = next(more for more in count(size + 1) if sum(_held_out(more, val_fraction, test_fraction)) < more)
            raise DataError(
                f"{where}: expected {needed} rows or more of every class, to have it in every split, found {size} of class"
                f" {classes[index]!r}; add rows of it, leave its rows out, or lower data.val_fraction and data.test_fraction"
            )
    parts: dict[str, list[Rows]] = {"train": [], "val": [], "test": []}
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        num_val, num_test = _held_out(len(rows), val_fraction, test_fraction)
        parts["test"].append(rows[:num_test])
        parts["val"].append(rows[num_test : num_test + num_val])
        parts["train"].append(rows[num_test + num_val :])
    joined = {split: np.sort(np.concatenate(rows)) for split, rows in parts.items()}
    return {split: rows for split, rows in joined.items() if len(rows)}


def split_by_time(
    times: pl.Series, y: Rows, classes: Sequence[Any], val_fraction: float, test_fraction: float, where: str
) -> dict[str, Rows]:
    """Take the newest rows for the test and those before them for validation; arguments and result as `split_randomly`.

    Raises:
        DataError: A class has no row to train on.
    """
    order = np.argsort(times.to_physical().to_numpy(), kind="stable")
    num_val, num_test = _held_out(len(order), val_fraction, test_fraction)
    num_train = max(0, len(order) - num_val - num_test)
    bounds = {"train": (0, num_train), "val": (num_train, num_train + num_val), "test": (len(order) - num_test, len(order))}
    absent = np.flatnonzero(np.bincount(y[order[:num_train]], minlength=len(classes)) == 0)
    if len(absent):
        raise DataError(
            f"{where}: expected every class among the {num_train} oldest rows, to train on, found none of class"
            f" {classes[absent[0]]!r}; add older rows of it, leave its rows out, or split by `random`"
        )
    return {split: np.sort(order[start:end]) for split, (start, end) in bounds.items() if end > start}


def _held_out(num_rows: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Rows for val and test: at least 1 where there is to be one."""
    num_val, num_test = (max(1, round(share * num_rows)) if share else 0 for share in (val_fraction, test_fraction))
    return num_val, num_test


def _hash_values(values: pl.Series) -> Hashes:
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        physical = values.to_physical() if values.dtype.is_temporal() else values
        numbers = physical.cast(pl.Float64).fill_null(np.nan).to_numpy() + 0.0  # so that -0.0 is 0.0
        return np.where(np.isnan(numbers), MISSING, numbers.view(np.uint64))
    texts = values.cast(pl.String)
    unique = texts.drop_nulls().unique()
    known = pl.Series([int(_hash_text(text)) for text in unique], dtype=pl.UInt64)
    hashes: Hashes = texts.replace_strict(unique, known, default=int(MISSING), return_dtype=pl.UInt64).to_numpy()
    return hashes


def _hash_text(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))


def _mix(x: Hashes) -> Hashes:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
