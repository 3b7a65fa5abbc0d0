"""What a column or a target held, small enough for a record; `refit.data.drifts` says how far two such profiles are apart."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from refit.data.signature import Kind

MAX_CATEGORIES = 100
"""At most so many categories of a column are counted by name: the most frequent; ties go by name."""
NUM_BUCKETS = 64
"""Columns with more categories are counted by a hash of the category, too."""
MIN_ROWS = 5
"""Categories in fewer rows are taken together, as each by itself says little (Cochran 1954)."""

Numbers = NDArray[np.float64]


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


def profile_numbers(name: str, values: Numbers) -> Profile:
    """Profile finite numbers, `(N,)`."""
    return Profile(name=name, kind="numeric", num_rows=len(values), num_missing=0, **describe_numbers(values))


def profile_counts(name: str, counts: Mapping[str, int]) -> Profile:
    """Profile categories by the rows of each."""
    ordered = dict(sorted(((it, rows) for it, rows in counts.items() if rows), key=lambda pair: (-pair[1], pair[0])))
    buckets = np.zeros(NUM_BUCKETS, np.int64)
    for category, rows in ordered.items():
        buckets[find_bucket(category)] += rows
    return Profile(
        name=name,
        kind="categorical",
        num_rows=sum(ordered.values()),
        num_missing=0,
        counts=dict([*ordered.items()][:MAX_CATEGORIES]),
        buckets=buckets.tolist() if len(ordered) > MAX_CATEGORIES else [],
    )


def find_bucket(category: str) -> int:
    """The index of a category in `Profile.buckets`, the same on any machine."""
    return blake2b(category.encode(), digest_size=1).digest()[0] % NUM_BUCKETS


def find_95th(degrees: float) -> float:
    """The 95th percentile of a chi-square distribution, to 3 % for one degree of freedom, and better for more.

    Source: Wilson and Hilferty, The Distribution of Chi-Square (1931).
    """
    variance = 2 / (9 * degrees)
    return float(degrees * (1 - variance + 1.645 * variance**0.5) ** 3)


def describe_numbers(values: Numbers) -> dict[str, Any]:
    """Return `marks`, `below` and `equal` of a profile of finite numbers, `(N,)`; nothing if there are none."""
    ordered = np.sort(values) + 0.0  # so that -0.0 is 0.0
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
