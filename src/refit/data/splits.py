"""Divides rows into train, val and test, before anything is learned from them. Rows keep their source order in every split."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.errors import DataError

Rows = NDArray[np.int64]


def split_randomly(
    frame: pl.DataFrame, y: Rows, classes: Sequence[Any], val_fraction: float, test_fraction: float, seed: int, where: str
) -> dict[str, Rows]:
    """Divide each class by a seeded hash of the rows' content, so that a row stays where it is when others come or move.

    Numbers are hashed as floats and all else as text, so that the type found for a column does not matter. The hash is stable
    within one version of polars.

    Args:
        frame: What the rows hold, N of them.
        y: Index of each row's class.
        classes: The classes, for messages.
        val_fraction: Share for validation; where above 0, each class gives a row or more.
        test_fraction: Share for the test, likewise.
        seed: Other seeds give other splits.
        where: Source and target column, for messages.

    Returns:
        Indices of the rows of each split that has any.

    Raises:
        DataError: A class has too few rows to be in every split.
    """
    as_text = [pl.col(name).cast(pl.Float64 if dtype.is_numeric() else pl.String) for name, dtype in sorted(frame.schema.items())]
    hashes = frame.select(as_text).hash_rows(seed).to_numpy()
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
