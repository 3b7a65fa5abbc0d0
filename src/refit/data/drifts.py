"""How far a column has moved between two data sets, by its profiles, and how much of that is chance; does not judge models."""

from collections.abc import Sequence
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from refit.data.profiles import MAX_CATEGORIES, MIN_ROWS, NUM_BUCKETS, Numbers, Profile, find_95th, find_bucket

LITTLE_PSI = 0.1
"""Below it a column counts as stable (Siddiqi 2006): a rule of thumb."""
LARGE_PSI = 0.25
"""From it on a column counts as shifted (Siddiqi 2006): a rule of thumb."""
MIN_SHARE = 0.0001
"""Stands for the share of an empty bin, whose logarithm would be infinite."""
MAX_BINS = 10
"""Bins of numbers, where there are rows enough."""
ROWS_A_BIN = 10
"""Numbers and hashes are put into fewer bins where the smaller data set has fewer rows a bin."""
NUM_DRAWS = 199
"""In ascending order, the 190th of so many draws is exceeded by one more draw in 5 % of cases."""
MANY_ROWS = 100
"""If each bin can expect so many rows of each data set, the index has a chi-square distribution (Yurdakul 2018)."""
MAX_ROWS_DRAWN = 10**8
"""At most so many rows of a data set are drawn from; NumPy's limit is 10^9."""

Extent = Literal["stable", "shifted a little", "shifted", "added", "gone", "of another kind"]


class Drift(BaseModel):
    """How far a column has moved between two data sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str
    psi: float | None
    """Population stability index; None where only one data set has the column, or where it holds another kind now."""
    noise: float | None
    """The index is no larger than this in 19 of 20 unchanged columns, or more."""
    missing_before: float | None
    """Share of the rows without a value; None where the column was not there."""
    missing_now: float | None
    new_categories: list[str]
    """Categories that the column never held before, most frequent first; none are known where it held too many to list."""

    @property
    def extent(self) -> Extent:
        """The index in a word; a change that chance explains counts as stable."""
        if self.psi is None or self.noise is None:
            if self.missing_before is None:
                return "added"
            return "gone" if self.missing_now is None else "of another kind"
        if self.psi < LITTLE_PSI or self.psi <= self.noise:
            return "stable"
        return "shifted" if self.psi >= LARGE_PSI else "shifted a little"


def compare_profiles(before: Sequence[Profile], now: Sequence[Profile]) -> list[Drift]:
    """Compare two data sets column by column.

    The bins are chosen by the rows of both data sets together, so that chance favors neither. Numbers are divided near their
    deciles, and a value that fills a tenth of the rows is a bin of its own. Categories are binned by name, the rare ones together;
    where there are more than `MAX_CATEGORIES`, by a hash. Rows without a value are one more bin.

    Returns:
        One for each column of either; those without an index first, then by index, largest first.

    Source:
        Siddiqi, Credit Risk Scorecards (2006), for the index. A permutation test, which deals the rows of
        both data sets out again, finds what chance explains.
    """
    old, new = ({profile.name: profile for profile in profiles} for profiles in (before, now))
    drifts = [_compare(name, old.get(name), new.get(name)) for name in {**old, **new}]
    return sorted(drifts, key=lambda drift: (drift.psi is not None, -(drift.psi or 0.0), drift.column))


def _compare(name: str, before: Profile | None, now: Profile | None) -> Drift:
    psi, noise, new_categories = None, None, []
    if before is not None and now is not None and before.kind == now.kind:
        psi, noise = _measure(before, now)
        new_categories = [category for category in now.counts if category not in before.counts and not before.buckets]
    return Drift(
        column=name,
        psi=psi,
        noise=noise,
        missing_before=None if before is None else before.missing,
        missing_now=None if now is None else now.missing,
        new_categories=new_categories,
    )


def _measure(before: Profile, now: Profile) -> tuple[float, float]:
    """The index, and its 95th percentile by chance."""
    rows = np.array([before.num_rows, now.num_rows])
    design_effect = max(before.design_effect, now.design_effect)
    bins = _bin_numbers if before.kind in ("numeric", "datetime") else _bin_categories
    counts = np.column_stack([bins(before, now, rows.min() / design_effect), [before.num_missing, now.num_missing]])
    psi = _compute_psi(counts[0] / rows[0], counts[1] / rows[1])
    scale = min(max(1 / design_effect, 1 / rows.min()), MAX_ROWS_DRAWN / rows.max())
    return float(psi), _estimate_noise(scale * counts.sum(axis=0), scale * rows[0])


def _compute_psi(p: Numbers, q: Numbers) -> Numbers:
    """The index of the shares of K bins, `(..., K)`, one for each entry of the leading dimensions."""
    p, q = np.maximum(p, MIN_SHARE), np.maximum(q, MIN_SHARE)
    psi: Numbers = ((p - q) * np.log(p / q)).sum(axis=-1)
    return psi


def _estimate_noise(pooled: Numbers, rows_before: float) -> float:
    """The 95th percentile of the index where chance alone decides which of the pooled rows, by bin, were there before."""
    counts = np.diff(np.rint(pooled.cumsum()), prepend=0).astype(np.int64)  # whole numbers of the same sum
    counts = counts[counts > 0]
    num_rows = int(counts.sum())
    num_before = min(max(1, round(rows_before)), num_rows - 1)
    num_now = num_rows - num_before
    if counts.min() * min(num_before, num_now) >= MANY_ROWS * num_rows:
        return find_95th(len(counts) - 1) * (1 / num_before + 1 / num_now) if len(counts) > 1 else 0.0
    generator = np.random.default_rng(crc32(counts.tobytes()))
    drawn = generator.multivariate_hypergeometric(counts, num_before, NUM_DRAWS)
    psi = _compute_psi(drawn / num_before, (counts - drawn) / num_now)
    return float(np.sort(psi)[NUM_DRAWS * 95 // 100]) * (1 + 1e-9)  # a hair more, as sums in another order differ by rounding


def _bin_categories(before: Profile, now: Profile, least_rows: float) -> Numbers:
    """Rows of each bin in both data sets, `(2, K)`."""
    names = {**before.counts, **now.counts}
    if before.buckets or now.buckets or len(names) > MAX_CATEGORIES:
        num_bins = _limit_bins(least_rows, NUM_BUCKETS)
        return np.array([np.bincount(np.arange(NUM_BUCKETS) % num_bins, _count_buckets(profile)) for profile in (before, now)])
    counts = np.array([[profile.counts.get(name, 0) for name in names] for profile in (before, now)], np.float64)
    is_rare = counts.sum(axis=0) * least_rows < MIN_ROWS * (before.num_rows + now.num_rows)
    return np.column_stack([counts[:, ~is_rare], counts[:, is_rare].sum(axis=1)])


def _count_buckets(profile: Profile) -> Numbers:
    """Rows of each bucket, `(NUM_BUCKETS,)`, whether or not the profile lists all its categories."""
    if profile.buckets:
        return np.array(profile.buckets, np.float64)
    buckets = np.zeros(NUM_BUCKETS)
    for category, rows in profile.counts.items():
        buckets[find_bucket(category)] += rows
    return buckets


def _limit_bins(least_rows: float, most: int) -> int:
    return max(2, min(most, int(least_rows / ROWS_A_BIN)))


def _bin_numbers(before: Profile, now: Profile, least_rows: float) -> Numbers:
    """Rows of each bin in both data sets, `(2, K)`."""
    edges = np.union1d(_list_edges(before), _list_edges(now))
    below, is_known = zip(*(_cumulate(profile, edges) for profile in (before, now)), strict=True)
    present = np.array([[before.num_rows - before.num_missing], [now.num_rows - now.num_missing]])
    pooled, num_bins = np.add(*below), _limit_bins(least_rows, MAX_BINS)
    width = present.sum() / num_bins
    atoms = np.flatnonzero(np.diff(pooled) >= width)
    cuts = np.concatenate([atoms, atoms + 1])
    if len(edges):
        # A cut may be a quarter of a bin off if its counts are exact in both profiles.
        distance = np.abs(pooled - width * np.arange(1, num_bins)[:, None]) + width / 4 * ~np.logical_and(*is_known)
        cuts = np.append(cuts, distance.argmin(axis=1))
    return np.diff(np.array(below)[:, np.unique(cuts)], prepend=0, append=present)


def _list_edges(profile: Profile) -> Numbers:
    """Where the numbers of a profile can be divided: just below and just above each mark."""
    marks = np.array(profile.marks)
    with np.errstate(over="ignore"):  # infinity is just above the largest float
        return np.column_stack([marks, np.nextafter(marks, np.inf)]).ravel()


def _cumulate(profile: Profile, edges: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
    """How many numbers are below each edge, linear between the profile's own edges, and whether that is exact."""
    own, below = _list_edges(profile), np.array(profile.below)
    if not len(own):
        return np.zeros(len(edges)), np.ones(len(edges), bool)
    is_exact = np.isin(edges, own) | (edges < own[0]) | (edges > own[-1])
    return np.interp(edges, own, np.column_stack([below, below + profile.equal]).ravel()), is_exact
