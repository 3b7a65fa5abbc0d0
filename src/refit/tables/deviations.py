"""How rows to score deviate from the train rows, counted by column, so that a changed source is not scored in silence."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.profiles import Profile
from refit.refs import Deviation
from refit.tables.conversion import Numbers
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, Inputs, Mask, NumericColumn, Scale, TextColumn
from refit.texts import show

MORE_ROWS = 0.1
"""A deviation is reported if it is in this share of the rows more than in the train rows, and chance does not explain it."""
SIGMAS = 3.0
"""Standard deviations of the number of rows that chance explains."""
MANY_TIMES = 100.0
"""A number this many times smaller than the train rows' median looks as if it had another unit."""


@dataclass
class _Count:
    """Rows with something unusual."""

    before: float
    """Share of the train rows that had it."""
    what: str
    has_it: Callable[[pl.Series, Inputs], Mask] | None = None
    """Which rows have it, by their cells and inputs; None counts missing values."""
    rows: int = 0
    example: str | None = None

    def add(self, values: pl.Series, chosen: Mask) -> None:
        """Count the chosen rows, and keep the first as an example."""
        num_chosen = int(np.count_nonzero(chosen))
        if num_chosen and self.example is None:
            self.example = show(values[int(chosen.argmax())])
        self.rows += num_chosen


class Deviations:
    """Counts over all rows of a source, however they are batched.

    Args:
        profiles: Of the train rows.
    """

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._counts: dict[str, list[_Count]] = {}
        self._num_rows: dict[str, int] = {}

    def count(self, column: AnyColumn, values: pl.Series, inputs: Inputs, is_missing: Mask) -> None:
        """Count some rows of a column.

        Args:
            column: As it was fitted to the train rows.
            values: The rows as they were read, N of them.
            inputs: The F inputs that they became, without the indicator.
            is_missing: Which have no value.

        Shape:
            inputs: (N, F); is_missing: (N,).
        """
        self._num_rows[column.name] = self._num_rows.get(column.name, 0) + len(is_missing)
        if column.name not in self._counts:
            self._counts[column.name] = list(_start(column, self._profiles.get(column.name)))
        for count in self._counts[column.name]:
            count.add(values, is_missing if count.has_it is None else count.has_it(values, inputs) & ~is_missing)

    def find(self) -> list[Deviation]:
        """List what at least `MORE_ROWS` of the rows have more than the train rows had, in the order of columns."""
        found = []
        for name, counts in self._counts.items():
            num_rows = self._num_rows[name]
            for count in counts:
                excess = count.rows - num_rows * count.before
                noise = SIGMAS * math.sqrt(num_rows * count.before * (1 - count.before))
                if num_rows and excess >= MORE_ROWS * num_rows and excess > noise:
                    what = f"{count.what.format(example=count.example)} ({count.before:.0%} of the train rows)"
                    found.append(Deviation(column=name, rows=count.rows, of=num_rows, what=what))
        return found


def _start(column: AnyColumn, profile: Profile | None) -> Iterator[_Count]:
    """Start the counts of a column: missing values, then what its kind may have."""
    yield _Count(profile.missing if profile else 0.0, "have no value")
    if profile is None or column.is_constant:
        return
    if isinstance(column, CategoricalColumn) and column.categories:
        known = sum(profile.counts.get(category, 0) for category in column.categories)
        unknown = (profile.num_rows - profile.num_missing - known) / profile.num_rows
        what = "hold a category that the model does not know, such as `{example}`"
        other = len(column.categories) if column.is_coded else None
        yield _Count(unknown, what, partial(_find_unknown, other))
    elif isinstance(column, TextColumn):
        what = "hold texts of which the model knows few words, such as `{example}`"
        yield _Count(column.share_unlike * (1 - profile.missing), what, partial(_find_unlike, column.few_known))
    elif isinstance(column, NumericColumn) and profile.marks:
        yield from _start_numbers(column.scale, profile)


def _find_unknown(other: int | None, _: pl.Series, inputs: Inputs) -> Mask:
    """Which categories share the last input, or the code of all others."""
    unknown: Mask = inputs[:, -1] > 0 if other is None else inputs[:, 0] == other
    return unknown


def _find_unlike(few_known: float, values: pl.Series, inputs: Inputs) -> Mask:
    """Which texts have few known n-grams for their length; those that fill their inputs may have more."""
    num_letters = values.cast(pl.String).str.len_chars().fill_null(0).to_numpy()
    unlike: Mask = (np.count_nonzero(inputs, axis=1) < few_known * num_letters) & (inputs[:, -1] == 0)
    return unlike


def _start_numbers(scale: Scale, profile: Profile) -> Iterator[_Count]:
    """Count numbers farther from the train rows' range than that range is wide, and numbers much smaller than usual."""

    def read(inputs: Inputs) -> NDArray[np.floating[Any]]:
        return inputs[:, 0] * scale.std + scale.mean

    least, greatest = profile.marks[0], profile.marks[-1]
    low, high = least - (greatest - least), greatest + (greatest - least)
    what = f"hold numbers far outside the range from {least:.4g} to {greatest:.4g}, such as `{{example}}`"
    yield _Count(0.0, what, lambda _, inputs: (read(inputs) < low) | (read(inputs) > high))
    sizes, rows = _list_sizes(profile)
    usual = _find_median(sizes, rows)
    small = usual / MANY_TIMES
    what = f"hold numbers more than {MANY_TIMES:g} times smaller than usual ({usual:.4g}), such as `{{example}}`"
    yield _Count(float(rows[sizes < small].sum()) / profile.num_rows, what, lambda _, inputs: np.abs(read(inputs)) < small)


def _find_median(sizes: Numbers, rows: Numbers) -> float:
    """The median of `sizes`, each of which so many `rows` have."""
    order = np.argsort(sizes)
    return float(sizes[order][np.searchsorted(np.cumsum(rows[order]), rows.sum() / 2)])


def _list_sizes(profile: Profile) -> tuple[Numbers, Numbers]:
    """Numbers without their sign and the rows of each: the marks, and for the rows between two marks their middle."""
    marks, below, equal = (np.array(values, float) for values in (profile.marks, profile.below, profile.equal))
    between, num_between = (marks[1:] + marks[:-1]) / 2, np.diff(below) - equal[:-1]
    return np.abs(np.concatenate([marks, between])), np.concatenate([equal, num_between])
