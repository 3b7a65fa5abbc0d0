"""What a column held, small enough for a manifest, and how far two such profiles are apart; does not judge models."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from refit.data.schema import Kind, Rows, take_rows

MAX_CATEGORIES = 100
"""Categories of a column with a share of their own: the most frequent, by name where equally frequent."""

LITTLE_PSI = 0.1
"""Below it a column counts as stable (Siddiqi 2006): a rule of thumb."""
LARGE_PSI = 0.25
"""From it on a column counts as shifted (Siddiqi 2006): a rule of thumb."""
MIN_SHARE = 0.0001
"""Stands for the share of an empty bin, whose logarithm would be infinite."""

Extent = Literal["stable", "shifted a little", "shifted", "added", "gone", "of another kind"]
Numbers = NDArray[np.float64]


class Profile(BaseModel):
    """What a column held. All shares are of all rows: `missing`, `shares` and `other` add up to 1 where there are no quantiles."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    kind: Kind
    num_rows: int
    missing: float
    """Share of the rows without a value."""
    quantiles: list[float] = []
    """Percentiles 0 to 100 of the numbers that are there, each one of them; date-times in seconds since 1970."""
    shares: dict[str, float] = {}
    """Shares of the most frequent categories, largest first; booleans are `true` and `false`."""
    other: float = 0.0
    """Share of all other categories."""


class Drift(BaseModel):
    """How far a column has moved between two data sets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str
    psi: float | None
    """Population stability index; None where only one data set has the column, or where it holds another kind now."""
    noise: float | None
    """What the index of 19 in 20 unchanged columns stays below, by the number of rows and bins."""
    missing_before: float | None
    """Share of the rows without a value; None where the column was not there."""
    missing_now: float | None
    new_categories: list[str]
    """Categories that the column never held before, most frequent first; none are known where it held too many to list."""

    @property
    def extent(self) -> Extent:
        """The index in a word; what chance explains is stable."""
        if self.psi is None or self.noise is None:
            if self.missing_before is None:
                return "added"
            return "gone" if self.missing_now is None else "of another kind"
        if self.psi < max(LITTLE_PSI, self.noise):
            return "stable"
        return "shifted" if self.psi >= LARGE_PSI else "shifted a little"


def profile_columns(frame: pl.DataFrame, kinds: Mapping[str, Kind], rows: Rows | None = None) -> list[Profile]:
    """Profile the columns in `kinds`, in that order, over one row or more, or all; they are converted as for `fit_columns`."""
    return [_profile(take_rows(frame[name], rows, kind), kind) for name, kind in kinds.items()]


def compare_profiles(before: Sequence[Profile], now: Sequence[Profile]) -> list[Drift]:
    """Compare two data sets column by column.

    Numbers are binned by the deciles they had before, a value that fills a tenth of the rows being a bin of its own; categories are
    binned by name. Rows without a value are one more bin.

    Returns:
        One for each column of either; those without an index first, then by index, largest first.

    Source:
        Siddiqi, Credit Risk Scorecards (2006), for the index; Yurdakul, Statistical Properties of Population Stability Index
        (2018), for its distribution by chance.
    """
    old, new = ({profile.name: profile for profile in profiles} for profiles in (before, now))
    drifts = [_compare(name, old.get(name), new.get(name)) for name in {**old, **new}]
    return sorted(drifts, key=lambda drift: (drift.psi is not None, -(drift.psi or 0.0), drift.column))


def _profile(values: pl.Series, kind: Kind) -> Profile:
    num_rows, present = values.len(), values.drop_nulls()
    missing = values.null_count() / num_rows
    if kind in ("numeric", "datetime"):
        numbers = present.dt.epoch("us") / 1e6 if kind == "datetime" else present
        quantiles = _find_percentiles(numbers.to_numpy())
        return Profile(name=values.name, kind=kind, num_rows=num_rows, missing=missing, quantiles=quantiles)
    counts = present.cast(pl.String).alias("category").value_counts(name="rows")
    kept = counts.sort("rows", "category", descending=[True, False]).head(MAX_CATEGORIES)
    return Profile(
        name=values.name,
        kind=kind,
        num_rows=num_rows,
        missing=missing,
        shares=dict(zip(kept["category"], (kept["rows"] / num_rows).to_list(), strict=True)),
        other=(present.len() - int(kept["rows"].sum())) / num_rows,
    )


def _find_percentiles(numbers: Numbers) -> list[float]:
    """The least number that i percent or more of the numbers do not exceed, for i from 0 to 100."""
    if not numbers.size:
        return []
    ranks = -(-np.arange(101) * numbers.size // 100)
    percentiles: list[float] = np.sort(numbers)[np.maximum(ranks - 1, 0)].tolist()
    return percentiles


def _compare(name: str, before: Profile | None, now: Profile | None) -> Drift:
    psi, noise, new_categories = None, None, []
    if before is not None and now is not None and before.kind == now.kind:
        bins = _bin_numbers if before.kind in ("numeric", "datetime") else _bin_categories
        p, q = (np.append(bins(before, profile), profile.missing) for profile in (before, now))
        psi = _compute_psi(p, q)
        noise = _estimate_noise(int(((p > 0) | (q > 0)).sum()), before.num_rows, now.num_rows)
        new_categories = [category for category in now.shares if category not in before.shares and before.other == 0]
    return Drift(
        column=name,
        psi=psi,
        noise=noise,
        missing_before=None if before is None else before.missing,
        missing_now=None if now is None else now.missing,
        new_categories=new_categories,
    )


def _compute_psi(p: Numbers, q: Numbers) -> float:
    p, q = np.maximum(p, MIN_SHARE), np.maximum(q, MIN_SHARE)
    return float(((p - q) * np.log(p / q)).sum())


def _estimate_noise(num_bins: int, num_before: int, num_now: int) -> float:
    """The 95th percentile of the index of two samples of one population: chi-square with one degree less than bins, scaled."""
    degrees = num_bins - 1
    return float((degrees + np.sqrt(8 * degrees)) * (1 / num_before + 1 / num_now))  # mean and two deviations


def _bin_categories(before: Profile, profile: Profile) -> Numbers:
    """Shares of the categories that `before` lists, and of all others."""
    listed = [profile.shares.get(category, 0.0) for category in before.shares]
    rest = [share for category, share in profile.shares.items() if category not in before.shares]
    return np.array([*listed, sum(rest) + profile.other])


def _bin_numbers(before: Profile, profile: Profile) -> Numbers:
    """Shares between the deciles of `before`, the ends open."""
    deciles = np.array(before.quantiles[::10])
    cuts = np.unique(deciles[1:-1])
    atoms = np.unique(deciles[1:][deciles[1:] == deciles[:-1]])
    below, up_to = _cumulate(profile, atoms, "left"), _cumulate(profile, cuts, "right")
    cumulated = np.sort(np.concatenate([below, up_to]))  # shares grow with the edges, so this is the edges' order too
    return np.diff(cumulated, prepend=0.0, append=1.0) * (1.0 - profile.missing)


def _cumulate(profile: Profile, edges: Numbers, side: Literal["left", "right"]) -> Numbers:
    """Share of the numbers below (`left`) or up to (`right`) each edge, linear between percentiles."""
    percentiles = np.array(profile.quantiles)
    if not percentiles.size:
        return np.zeros(len(edges))
    passed = np.searchsorted(percentiles, edges, side)
    low, high = np.maximum(passed - 1, 0), np.minimum(passed, 100)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        part = np.nan_to_num((edges - percentiles[low]) / (percentiles[high] - percentiles[low]), nan=0.5)
    inside: Numbers = (low + part) / 100
    return np.select([passed == 0, passed == 101], [0.0, 1.0], inside)
