"""Counts the rows that equal one among others, and estimates how many would by chance; does not divide rows."""

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from refit.data.identities import Rows, find_known
from refit.tables.columns import take_column
from refit.tables.hashes import hash_rows

Numbers = NDArray[np.float64]

RARE = 0.001
MIN_SHARE = 0.01
"""Copies up to this share of a large table matter little."""


class Copies(BaseModel):
    """How many test rows have the features of a train row, and how many would by chance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    by_chance: float
    is_more_than_chance: bool


def count_copies(features: pl.DataFrame, train: Rows, test: Rows) -> Copies:
    """Count the rows `test` of a table that equal one of its rows `train`, and how many would if all were drawn independently.

    The estimate takes the other rows that share a row's rarest value. By chance, each has the row's remaining values as often as
    these occur, and is a train row as often as any row. So the number of train rows that equal the row is binomial.
    """
    hashes = hash_rows(features)
    num_rows = find_known(hashes[test], hashes[train]).sum()
    likelihoods, fewest = _estimate_likelihoods(features, test)
    with np.errstate(invalid="ignore"):
        chances = 1 - (1 - np.nan_to_num(len(train) * likelihoods / fewest)) ** fewest
    return Copies(
        rows=num_rows,
        by_chance=round(chances.sum(), 2),  # the last bits depend on the processor
        is_more_than_chance=is_more_than_chance(num_rows, chances),
    )


def estimate_chances(frame: pl.DataFrame, numbers: Rows, num_others: int) -> Numbers:
    """Estimate how likely each of N rows is to have equals among other rows, if rows and columns are independent.

    The number of a row's equals is taken to be Poisson.

    Args:
        frame: The rows, and none of the others; a missing value is a value.
        numbers: How many equals each row must exceed, `(N,)`: 0 asks for one or more.
        num_others: How many others there are.

    Shape:
        Returns (N,).
    """
    likelihoods, _ = _estimate_likelihoods(frame, np.arange(frame.height))
    chances: Numbers = torch.special.gammainc(torch.from_numpy(numbers + 1.0), torch.from_numpy(num_others * likelihoods)).numpy()
    return chances


def is_more_than_chance(num_observed: int, chances: Numbers, min_share: float = MIN_SHARE) -> bool:
    """Whether more rows have equals than `chances` explain, by more than `min_share` of the rows.

    If rows are equal by chance alone, the answer is wrong once in 1,000 times.
    A sum of independent events varies less than the Poisson distribution of the same mean, which is used in its place.
    """
    expected = torch.tensor(chances.sum(), dtype=torch.float64)
    chance = torch.special.gammainc(torch.tensor(float(num_observed), dtype=torch.float64), expected)
    return bool(chance < RARE and num_observed - chances.sum() > min_share * len(chances))


def _estimate_likelihoods(frame: pl.DataFrame, rows: Rows) -> tuple[Numbers, Rows]:
    """Estimate for each of `rows` how likely another row is to equal it; count the others that share its rarest value."""
    likelihoods, fewest = np.ones(len(rows)), np.full(len(rows), frame.height)
    for name in frame.columns:
        if not likelihoods.any():
            break
        values = take_column(frame, name)
        values = values.fill_nan(None) if values.dtype.is_float() else values
        others = values.to_frame("value").select(pl.len().over("value")).to_series()[rows].to_numpy().astype(np.int64) - 1
        likelihoods *= others / max(1, frame.height - 1)
        fewest = np.minimum(fewest, others)
    return likelihoods, fewest
