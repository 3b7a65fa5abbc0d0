"""What a column held, small enough for a manifest; `refit.tables.drift` says how far two such profiles are apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from refit.data.identities import Rows
from refit.data.signature import Kind
from refit.tables.columns import index_rows, take_column, take_rows
from refit.tables.ngrams import find_longest_words

MAX_CATEGORIES = 100
"""At most so many categories of a column are counted by name: the most frequent; ties go by name."""
NUM_BUCKETS = 64
"""Columns with more categories are counted by a hash of the category, too."""
MIN_ROWS = 5
"""Categories in fewer rows are taken together, as each by itself says little (Cochran 1954)."""
FEW_GROUPS = 20
"""Fewer groups cannot show how alike their rows are, so that a group counts as one row."""
GROUPS_A_BLOCK = 65_536
"""Counted at once, so that the counts of all groups need not be in memory."""

Numbers = NDArray[np.float64]
Groups = NDArray[np.int64] | NDArray[np.uint64]


class Profile(BaseModel):
    """What a column held. All counts are of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    kind: Kind
    num_rows: int
    num_missing: int
    """Rows without a value."""
    design_effect: float = 1.0
    """How many rows say as much as one independent row: 1, or more where rows of a group are alike."""
    marks: list[float] = []
    """Numbers from the least to the greatest, such that no more than a fiftieth of the rows lies between two of them. They have few
    binary digits, so that profiles of similar columns share most marks. Date-times are in seconds since 1970."""
    below: list[int] = []
    """How many numbers are less than each mark."""
    equal: list[int] = []
    """How many numbers equal each mark."""
    counts: dict[str, int] = {}
    """Rows of the most frequent categories, largest first; booleans are `true` and `false`, texts count by their longest word."""
    buckets: list[int] = []
    """Rows of all categories by `find_bucket`; empty where `counts` has every category."""

    @property
    def missing(self) -> float:
        """Share of the rows without a value."""
        return self.num_missing / self.num_rows


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


def find_bucket(category: str) -> int:
    """The index of a category in `Profile.buckets`, the same on any machine."""
    return blake2b(category.encode(), digest_size=1).digest()[0] % NUM_BUCKETS


def find_95th(degrees: float) -> float:
    """The 95th percentile of a chi-square distribution, to 3 % for one degree of freedom, and better for more.

    Source: Wilson and Hilferty, The Distribution of Chi-Square (1931).
    """
    variance = 2 / (9 * degrees)
    return float(degrees * (1 - variance + 1.645 * variance**0.5) ** 3)


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
        content, bins = _describe_numbers(values), _bin_numbers
    else:
        values = find_longest_words(values) if kind == "text" else values.cast(pl.String)
        content, bins = _describe_categories(values), _bin_categories
    design_effect = 1.0 if clusters is None else _estimate_design_effect(bins(values), clusters)
    return Profile(name=name, kind=kind, num_rows=num_rows, num_missing=num_missing, design_effect=design_effect, **content)


def _describe_numbers(values: pl.Series) -> dict[str, Any]:
    ordered = np.sort((values.drop_nulls() if values.has_nulls() else values).to_numpy()) + 0.0  # so that -0.0 is 0.0
    if not len(ordered):
        return {}
    percentiles = ordered[np.maximum(-(-np.arange(101) * len(ordered) // 100) - 1, 0)]  # at least n % are no greater than the nth
    marks = np.unique(np.append(_round_between(percentiles[:-1], percentiles[1:]), ordered[[0, -1]]))
    below, up_to = np.searchsorted(ordered, marks), np.searchsorted(ordered, marks, "right")
    return {"marks": marks.tolist(), "below": below.tolist(), "equal": (up_to - below).tolist()}


def _round_between(low: Numbers, high: Numbers) -> Numbers:
    """A number from `low` to `high` with as few binary digits as tell the two apart."""
    near, far = np.sort(np.abs([low, high]), axis=0).view(np.uint64)
    digits = near ^ far
    for shift in (1, 2, 4, 8, 16, 32):
        digits |= digits >> np.uint64(shift)  # the first digit that differs, and all after it
    rounded = (far & ~(digits >> np.uint64(1))).view(np.float64)
    return np.where((low < 0) & (high > 0), 0.0, np.where(low < 0, -rounded, rounded))


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
