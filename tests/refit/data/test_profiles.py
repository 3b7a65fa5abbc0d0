import itertools
import math
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.data.profiles import MAX_CATEGORIES, MIN_SHARE, Drift, Profile, compare_profiles, profile_columns
from refit.data.schema import find_kind


def profile(values: Any) -> Profile:
    kind, converted = find_kind(pl.Series("x", values, strict=False), [], str)
    return profile_columns(pl.DataFrame([converted]), {"x": kind})[0]


def compare(before: Any, now: Any) -> Drift:
    return compare_profiles([profile(before)], [profile(now)])[0]


def plain_psi(before: list[float], now: list[float]) -> float:
    """The index of shares, one bin at a time."""
    pairs = [(max(p, MIN_SHARE), max(q, MIN_SHARE)) for p, q in zip(before, now, strict=True)]
    return sum((p - q) * math.log(p / q) for p, q in pairs)


def raw_psi(before: np.ndarray, now: np.ndarray) -> float:
    """The index over the deciles of `before`, or over its values where they are few, counted on all rows."""
    if len(np.unique(before)) < 20:
        levels = np.union1d(before, now)
        return plain_psi(*([float((values == level).mean()) for level in levels] for values in (before, now)))
    edges = [-np.inf, *np.quantile(before, np.arange(1, 10) / 10), np.inf]
    return plain_psi(*((np.histogram(values, edges)[0] / len(values)).tolist() for values in (before, now)))


def test_the_index_of_categories_is_the_sum_that_a_hand_computes() -> None:
    drift = compare(["a"] * 50 + ["b"] * 50, ["a"] * 25 + ["b"] * 75)
    assert drift.psi == pytest.approx(0.25 * math.log(2) + 0.25 * math.log(1.5))  # 0.2747
    assert drift.extent == "shifted"
    assert drift.new_categories == []


def test_missing_values_are_a_bin_of_their_own() -> None:
    drift = compare([1.0] * 80 + [None] * 20, [1.0] * 60 + [None] * 40)
    assert drift.psi == pytest.approx(0.2 * math.log(0.8 / 0.6) + 0.2 * math.log(2))
    assert (drift.missing_before, drift.missing_now) == (0.2, 0.4)


def test_an_empty_bin_counts_as_if_it_had_a_small_share() -> None:
    drift = compare(["a"] * 100, ["a"] * 90 + ["b"] * 10)
    assert drift.psi == pytest.approx(0.1 * math.log(1 / 0.9) + (0.1 - MIN_SHARE) * math.log(0.1 / MIN_SHARE))
    assert drift.new_categories == ["b"]


@pytest.mark.parametrize("num_now", [500, 20000])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (0.1, 1), (0.5, 1), (1, 1), (0, 2), (0, 0.5), (-2, 0.3)])
def test_the_index_of_numbers_from_their_percentiles_is_that_of_all_rows(mean: float, deviation: float, num_now: int) -> None:
    generator = np.random.default_rng(0)
    before, now = generator.normal(size=5000), generator.normal(mean, deviation, num_now)
    assert compare(before, now).psi == pytest.approx(raw_psi(before, now), rel=0.1, abs=0.005)


@pytest.mark.parametrize(
    ("before", "now"), [(0.5, 0.5), (0.5, 0.6), (0.5, 0.8), (0.15, 0.3), (0.95, 0.8), (0.02, 0.05), (0.02, 0.3)]
)
def test_the_index_of_zeros_and_ones_is_near_that_of_all_rows(before: float, now: float) -> None:
    generator = np.random.default_rng(0)
    old, new = ((generator.random(3000) < share).astype(float) for share in (before, now))
    assert compare(old, new).psi == pytest.approx(raw_psi(old, new), rel=0.1, abs=0.01)


@pytest.mark.parametrize("rate", [1.0, 1.2, 1.5, 2.0])
def test_the_index_of_counts_is_near_that_of_all_rows(rate: float) -> None:
    generator = np.random.default_rng(0)
    before, now = (np.minimum(generator.poisson(mean, 4000), 5.0) for mean in (1.0, rate))
    assert compare(before, now).psi == pytest.approx(raw_psi(before, now), rel=0.2, abs=0.01)


COLUMNS = {
    "few": [3.0, 1.0, 2.0],
    "constant": [7.0] * 50,
    "tied": [0.0] * 60 + [1.0] * 30 + [2.5] * 10,
    "half tied": [*np.linspace(-5, 5, 57).tolist(), *[0.25] * 43],
    "extreme": [-1.7e308, 0.0, 5e-324, 1.0, 1.7e308] * 7,
    "gaps": [*range(70), *[None] * 30],
    "none": [None] * 9,
    "texts": ["a", "b", "b", None] * 10,
    "booleans": [True, False, None, True] * 10,
    "dates": [datetime(2026, 1, 1) + timedelta(hours=hours) for hours in range(200)],
}
NUMBERS = ["few", "constant", "tied", "half tied", "extreme", "gaps", "none"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_stable_beside_itself_and_beside_its_rows_in_another_order(name: str) -> None:
    values = COLUMNS[name]
    assert profile(values) == profile(values[::-1])
    drift = compare(values, values[::-1])
    assert (drift.psi, drift.extent, drift.new_categories) == (0, "stable", [])


@pytest.mark.parametrize(("before", "now"), [*itertools.permutations(NUMBERS, 2)])
def test_the_index_of_any_two_columns_is_finite_and_not_negative(before: str, now: str) -> None:
    old, new = (
        profile_columns(pl.DataFrame({"x": pl.Series(COLUMNS[name], dtype=pl.Float64)}), {"x": "numeric"}) for name in (before, now)
    )
    psi = compare_profiles(old, new)[0].psi
    assert psi is not None
    assert 0 <= psi < 20


@pytest.mark.parametrize("now", [4.0, 6.0, -1e300])
def test_another_constant_is_a_large_shift_to_either_side(now: float) -> None:
    drift = compare([5.0] * 100, [now] * 100)
    assert drift.psi == pytest.approx(2 * (1 - MIN_SHARE) * math.log(1 / MIN_SHARE))
    assert drift.extent == "shifted"


def test_19_of_20_unchanged_columns_stay_below_what_is_called_noise() -> None:
    generator = np.random.default_rng(0)
    for draw in (lambda rows: generator.normal(size=rows), lambda rows: generator.choice(list("abcd"), rows)):
        drifts = [compare(draw(240), draw(280)) for _ in range(400)]
        share = np.mean([drift.psi < drift.noise for drift in drifts])
        assert 0.91 < share < 0.99
        assert max(drift.noise for drift in drifts) < 0.15


@pytest.mark.parametrize(
    ("psi", "noise", "extent"),
    [
        (0.09, 0.01, "stable"),
        (0.1, 0.01, "shifted a little"),
        (0.25, 0.01, "shifted"),
        (0.2, 0.3, "stable"),
        (0.24, 0.2, "shifted a little"),
    ],
)
def test_the_index_is_put_in_a_word_and_chance_is_no_shift(psi: float, noise: float, extent: str) -> None:
    assert Drift(column="x", psi=psi, noise=noise, missing_before=0, missing_now=0, new_categories=[]).extent == extent


def test_columns_that_cannot_be_compared_come_first_and_the_others_by_their_index() -> None:
    rows = {"same": [1.0, 2.0], "moved": [1.0, 1.0], "retyped": [1.0, 2.0], "left": [1.0, 2.0]}
    before = pl.DataFrame(rows)
    now = pl.DataFrame({"came": [True, False], "same": [1.0, 2.0], "retyped": ["a", "b"], "moved": [9.0, 9.0]})
    kinds = {"came": "boolean", "same": "numeric", "retyped": "categorical", "moved": "numeric"}
    drifts = compare_profiles(profile_columns(before, dict.fromkeys(rows, "numeric")), profile_columns(now, kinds))
    assert [(drift.column, drift.extent) for drift in drifts] == [
        ("came", "added"),
        ("left", "gone"),
        ("retyped", "of another kind"),
        ("moved", "shifted"),
        ("same", "stable"),
    ]
    assert [drift.psi is None for drift in drifts] == [True, True, True, False, False]
    assert (drifts[0].missing_before, drifts[1].missing_now) == (None, None)


def test_percentiles_are_numbers_of_the_column() -> None:
    found = profile([*range(1000), None]).quantiles
    assert found == [0, *range(9, 1000, 10)]
    assert profile([5.0, 3.0]).quantiles == [3.0] * 51 + [5.0] * 50


def test_date_times_are_seconds_since_1970() -> None:
    found = profile(["1970-01-02", "1970-01-01T00:00:00.5Z"])
    assert found.kind == "datetime"
    assert (found.quantiles[0], found.quantiles[100]) == (0.5, 86400.0)


def test_categories_have_their_shares_the_most_frequent_first_and_the_rest_together() -> None:
    names = [f"{number:03}x" for number in range(MAX_CATEGORIES + 2)]
    found = profile([*names, names[-1], None])
    assert list(found.shares) == [names[-1], *names[: MAX_CATEGORIES - 1]]
    assert found.shares[names[-1]] == 2 / found.num_rows
    assert found.other == 2 / found.num_rows
    assert found.missing + sum(found.shares.values()) + found.other == pytest.approx(1)
    assert compare([*names, names[-1]], ["new"] * 10).new_categories == []  # it may have been among the others


def test_a_target_of_whole_numbers_is_profiled_as_categories() -> None:
    found = profile_columns(pl.DataFrame({"y": [0, 1, 1, 2]}), {"y": "categorical"})[0]
    assert found.shares == {"1": 0.5, "0": 0.25, "2": 0.25}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_profile_is_the_same_after_json_and_small(name: str) -> None:
    found = profile(COLUMNS[name])
    written = found.model_dump_json()
    assert Profile.model_validate_json(written) == found
    assert len(written) < 4096
