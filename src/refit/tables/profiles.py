"""Profiles the columns of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Rows
from refit.data.profiles import (
    MAX_CATEGORIES,
    MIN_ROWS,
    NUM_BUCKETS,
    Numbers,
    Profile,
    describe_numbers,
    find_95th,
    find_bucket,
)
from refit.data.signature import Kind
from refit.tables.columns import index_rows, take_column, take_rows
from refit.tables.ngrams import find_longest_words

FEW_GROUPS = 20
"""Fewer groups cannot show how alike their rows are, so that a group counts as one row."""
GROUPS_A_BLOCK = 65_536
"""Counted at once, so that the counts of all groups need not be in memory."""

Groups = NDArray[np.int64] | NDArray[np.uint64]


def profile_columns(
    frame: pl.DataFrame, kinds: Mapping[str, Kind], rows: Rows | None = None, groups: Groups | None = None
) -> list[Profile]:
    """Profile the columns in `kinds`, in that order; they are converted as for `fit_columns`.

    Args:
        frame: N rows.
        kinds: What each column holds.
        rows: Which rows to profile, one or more; None takes all.
        groups: A hash of the group of each row of `frame`, `(N,)`, where rows of a group depend on one another.
    """
    clusters = None if groups is None else _Clusters.find(groups if rows is None else groups[rows])
    index = index_rows(rows)
    return [_profile(name, take_rows(take_column(frame, name), index, kind), kind, clusters) for name, kind in kinds.items()]


@dataclass(frozen=True)
class _Clusters:
    """The numbers of N rows in the order of their groups, and the sizes of the G groups."""

    order: Rows  # (N,)
    sizes: NDArray[np.int64]  # (G,)

    @classmethod
    def find(cls, groups: Groups) -> "_Clusters":
        return cls(np.argsort(groups, kind="stable"), np.unique_counts(groups).counts)


def _profile(name: str, values: pl.Series, kind: Kind, clusters: _Clusters | None) -> Profile:
    num_rows, num_missing = values.len(), values.null_count()
    if kind in ("numeric", "datetime"):
        values = values.dt.epoch("us") / 1e6 if kind == "datetime" else values
        content, bins = describe_numbers((values.drop_nulls() if values.has_nulls() else values).to_numpy()), _bin_numbers
    else:
        values = find_longest_words(values) if kind == "text" else values.cast(pl.String)
        content, bins = _describe_categories(values), _bin_categories
    design_effect = 1.0 if clusters is None else _estimate_design_effect(bins(values), clusters)
    return Profile(name=name, kind=kind, num_rows=num_rows, num_missing=num_missing, design_effect=design_effect, **content)


def _describe_categories(values: pl.Series) -> dict[str, Any]:
    tally = _tally(values)
    content: dict[str, Any] = {"counts": dict(tally.head(MAX_CATEGORIES).iter_rows())}
    if tally.height > MAX_CATEGORIES:
        places = np.array([find_bucket(category) for category in tally["category"]])
        content["buckets"] = np.bincount(places, tally["rows"].to_numpy(), NUM_BUCKETS).astype(np.int64).tolist()
    return content


def _tally(values: pl.Series) -> pl.DataFrame:
    tally = values.drop_nulls().alias("category").value_counts(name="rows")
    return tally.sort("rows", "category", descending=[True, False])


def _bin_numbers(values: pl.Series) -> Rows:
    """The tenth that each row is in, `(N,)`; equal numbers share one, missing ones have a bin of their own."""
    num_present = values.len() - values.null_count()
    return ((values.rank("min") - 1) * 10 // num_present).fill_null(-1).cast(pl.Int64).to_numpy()


def _bin_categories(values: pl.Series) -> Rows:
    """The category of each row, `(N,)`, the rare ones together, or the bucket where there are many."""
    tally = _tally(values)
    if tally.height > MAX_CATEGORIES:
        places = [find_bucket(category) for category in tally["category"]]
    else:
        places = [place if rows >= MIN_ROWS else tally.height for place, rows in enumerate(tally["rows"])]
    return values.replace_strict(tally["category"], places, default=-1, return_dtype=pl.Int64).to_numpy()


def _estimate_design_effect(bins: Rows, clusters: _Clusters) -> float:
    """Estimate by what factor likeness within groups raises the 95th percentile of a chi-square statistic over `bins`, `(N,)`.

    Rows of a group are taken to be as alike in large groups as in small ones.

    Source:
        Rao and Scott, On Chi-Squared Tests for Multiway Contingency Tables with Cell Proportions Estimated from Survey Data
        (1984): the statistic is a sum of squares, each times an eigenvalue of the matrix of design effects. Its percentile takes
        their mean and spread (Satterthwaite's correction, there too).
    """
    num_rows, sizes = len(bins), clusters.sizes
    _, places, totals = np.unique(bins, return_inverse=True, return_counts=True)
    degrees = len(totals) - 1
    mean_size = float((sizes**2).sum() / num_rows)  # of the group that a row is in
    if len(sizes) == num_rows or not degrees:
        return 1.0
    if num_rows < FEW_GROUPS * mean_size:
        return mean_size
    shares = totals / num_rows
    within = (np.diag(totals) - _sum_group_products(places[clusters.order], len(totals), sizes)) / (num_rows - len(sizes))
    between = np.diag(shares) - np.outer(shares, shares) - within
    alike = between / np.sqrt(np.outer(shares, shares))  # (K, K), its eigenvalues 0 to 1: correlations within groups
    more = mean_size - 1
    mean = max(1.0, 1 + more * np.trace(alike) / degrees)
    mean_square = 1 + (2 * more * np.trace(alike) + more**2 * (alike**2).sum()) / degrees
    spread = float(np.clip(mean_square / mean**2, 1, degrees))
    return float(mean * spread * find_95th(degrees / spread) / find_95th(degrees))


def _sum_group_products(places: Rows, num_bins: int, sizes: NDArray[np.int64]) -> Numbers:
    """Sum over all groups: the rows in one bin times those in another, divided by the size of the group, `(K, K)`.

    Args:
        places: The bin of each row, in the order of groups, `(N,)`.
        num_bins: K.
        sizes: Rows of each group, `(G,)`.
    """
    products, start = np.zeros((num_bins, num_bins)), 0
    for first in range(0, len(sizes), GROUPS_A_BLOCK):
        block = sizes[first : first + GROUPS_A_BLOCK]
        end = start + int(block.sum())
        cells = np.repeat(np.arange(len(block)), block) * num_bins + places[start:end]
        counts = np.bincount(cells, minlength=len(block) * num_bins).reshape(-1, num_bins)
        products += counts.T @ (counts / block[:, None])
        start = end
    return products
