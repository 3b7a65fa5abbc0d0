from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2

from refit.data.profiles import MAX_CATEGORIES, NUM_BUCKETS, Profile, find_95th, find_bucket
from refit.tables import profiles
from refit.tables.profiles import profile_columns
from refit.tables.schema import find_reading

COLUMNS = {
    "few": [3.0, 1.0, 2.0],
    "constant": [7.0] * 50,
    "tied": [0.0] * 60 + [1.0] * 30 + [2.5] * 10,
    "half tied": [*np.linspace(-5, 5, 57).tolist(), *[0.25] * 43],
    "extreme": [-np.finfo(float).max, -1.7e308, 0.0, 5e-324, 1.0, 1.7e308, np.finfo(float).max] * 7,
    "gaps": [*range(70), *[None] * 30],
    "none": [None] * 9,
    "negative": (-np.random.default_rng(0).lognormal(size=3000)).tolist(),
    "normal": np.random.default_rng(0).normal(size=3000).tolist(),
    "texts": ["a", "b", "b", None] * 10,
    "ids": [str(number) for number in range(300)],
    "booleans": [True, False, None, True] * 10,
    "dates": [datetime(2026, 1, 1) + timedelta(hours=hours) for hours in range(200)],
}


def profile(values: Any, groups: Any = None) -> Profile:
    reading, converted = find_reading(pl.Series("x", values, strict=False), [], str)
    groups = None if groups is None else np.asarray(groups, np.uint64)
    return profile_columns(pl.DataFrame([converted]), {"x": reading.kind}, groups=groups)[0]


@pytest.mark.parametrize("name", ["few", "constant", "tied", "half tied", "extreme", "negative", "normal"])
def test_the_marks_of_numbers_are_counted_exactly_and_a_fiftieth_of_the_rows_apart_or_less(name: str) -> None:
    numbers, found = np.array(COLUMNS[name]), profile(COLUMNS[name])
    assert found.below == [(numbers < mark).sum() for mark in found.marks]
    assert found.equal == [(numbers == mark).sum() for mark in found.marks]
    assert (found.marks[0], found.marks[-1]) == (numbers.min(), numbers.max())
    between = np.diff(found.below) - found.equal[:-1]
    assert between.max(initial=0) <= 2 * len(numbers) / 100
    assert len(found.marks) <= 102


@pytest.mark.parametrize("draw", ["normal", "lognormal", "uniform"])
def test_the_marks_of_similar_columns_are_mostly_the_same(draw: str) -> None:
    generator = np.random.default_rng(0)
    one, other = (profile(getattr(generator, draw)(size=20000)).marks for _ in range(2))
    assert len(np.intersect1d(one, other)) > 70


def test_a_mark_parts_an_atom_from_the_numbers_beside_it() -> None:
    found = profile([0.0] * 70 + [0.3] * 25 + [-1e-300] * 5)
    assert dict(zip(found.marks, found.equal, strict=True))[0.0] == 70
    assert dict(zip(found.marks, found.equal, strict=True))[0.3] == 25


def test_minus_zero_is_zero_whatever_the_order_of_rows() -> None:
    assert profile([0.0, -0.0, 1.5]) == profile([-0.0, 1.5, 0.0])
    assert str(profile([-0.0, 1.5]).marks[0]) == "0.0"


def test_date_times_are_seconds_since_1970() -> None:
    found = profile(["1970-01-02", "1970-01-01T00:00:00.5Z"])
    assert found.kind == "datetime"
    assert (found.marks[0], found.marks[-1]) == (0.5, 86400.0)


def test_categories_have_their_rows_the_most_frequent_first() -> None:
    assert profile(["b", "a", "c", "b", None]).counts == {"b": 2, "a": 1, "c": 1}
    assert list(profile(["b", "a", "c", "b", None]).counts) == ["b", "a", "c"]
    assert profile([True, False, True]).counts == {"true": 2, "false": 1}
    assert profile(["a", None]).missing == 0.5


def test_of_many_categories_the_most_frequent_are_listed_and_all_are_in_buckets() -> None:
    names = [f"{number:03}x" for number in range(MAX_CATEGORIES + 2)]
    found = profile([*names, names[-1], None])
    assert list(found.counts) == [names[-1], *names[: MAX_CATEGORIES - 1]]
    assert found.counts[names[-1]] == 2
    expected = [0] * NUM_BUCKETS
    for name in [*names, names[-1]]:
        expected[find_bucket(name)] += 1
    assert found.buckets == expected
    assert profile(names[:MAX_CATEGORIES]).buckets == []


def test_the_bucket_of_a_category_never_changes_and_names_that_count_up_are_spread_as_if_at_random() -> None:
    assert [find_bucket(name) for name in ("", "a", "é", "10001")] == [46, 30, 45, 27]
    found = np.bincount([find_bucket(f"{number:05}") for number in range(6400)], minlength=NUM_BUCKETS)
    statistic = ((found - 100) ** 2 / 100).sum()
    assert chi2.ppf(0.001, NUM_BUCKETS - 1) < statistic < chi2.ppf(0.999, NUM_BUCKETS - 1)


def test_a_target_of_whole_numbers_is_profiled_as_categories() -> None:
    found = profile_columns(pl.DataFrame({"y": [0, 1, 1, 2]}), {"y": "categorical"})[0]
    assert found.counts == {"1": 2, "0": 1, "2": 1}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_profile_is_the_same_after_json_in_any_order_of_rows_and_small(name: str) -> None:
    found = profile(COLUMNS[name])
    written = found.model_dump_json()
    assert Profile.model_validate_json(written) == found == profile(COLUMNS[name][::-1])
    assert len(written) < 4096


@pytest.mark.parametrize("degrees", [1, 1.7, 2, 5, 9, 63])
def test_the_95th_percentile_is_that_of_chi_square(degrees: float) -> None:
    assert find_95th(degrees) == pytest.approx(chi2.ppf(0.95, degrees), rel=0.03)


GROUPS = np.repeat(np.random.default_rng(1).permutation(200), 30)
"""6,000 rows of 200 groups."""


def draw_column(kind: str, likeness: str) -> Any:
    generator = np.random.default_rng(0)
    rows = {"alike": generator.integers(0, 2**62, 200)[GROUPS], "independent": generator.integers(0, 2**62, len(GROUPS))}[likeness]
    if kind == "numbers":
        return rows / 2**62
    return rows % 2 == 0 if kind == "booleans" else [str(value) for value in (rows % 40 if kind == "texts" else rows)]


@pytest.mark.parametrize("kind", ["numbers", "booleans", "texts", "ids"])
def test_rows_that_are_all_alike_in_a_group_count_as_one(kind: str) -> None:
    assert profile(draw_column(kind, "alike"), GROUPS).design_effect == pytest.approx(30)


@pytest.mark.parametrize("kind", ["numbers", "booleans", "texts", "ids"])
def test_rows_of_a_group_that_have_nothing_in_common_count_one_each(kind: str) -> None:
    assert 1 <= profile(draw_column(kind, "independent"), GROUPS).design_effect < 1.1
    assert profile(draw_column(kind, "alike"), np.arange(len(GROUPS))).design_effect == 1
    assert profile(draw_column(kind, "alike")).design_effect == 1


def test_the_design_effect_of_a_boolean_follows_from_the_correlation_within_groups() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), generator.integers(1, 40, 80))
    values = generator.random(len(groups)) < np.where(generator.random(80) < 0.5, 0.2, 0.7)[groups]
    within = sum(((values[groups == group] - values[groups == group].mean()) ** 2).sum() for group in range(80))
    correlation = 1 - within / (len(values) - 80) / values.var()
    size = (np.bincount(groups) ** 2).sum() / len(values)
    assert profile(values, groups).design_effect == pytest.approx(1 + (size - 1) * correlation)


def test_few_groups_count_as_one_row_each_as_they_do_not_tell_how_alike_their_rows_are() -> None:
    values = np.random.default_rng(0).normal(size=600)
    assert profile(values, np.repeat(np.arange(19), [*[30] * 18, 60])).design_effect == (18 * 30**2 + 60**2) / 600
    assert profile(values, np.repeat(np.arange(20), 30)).design_effect < 2


@pytest.mark.parametrize("values", [[None] * 60, [1.0] * 60, ["a"] * 60, [1.0, None] * 30])
def test_a_column_that_says_little_has_a_design_effect_too(values: Any) -> None:
    for groups in (np.zeros(60), np.arange(60), np.repeat(np.arange(30), 2)):
        assert 1 <= profile(values, groups).design_effect <= 60


def test_groups_are_those_of_the_chosen_rows_in_any_order_and_counted_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=200)[GROUPS] + generator.normal(size=len(GROUPS))
    rows = generator.permutation(len(GROUPS))[:2000]
    whole = profile(values[rows], GROUPS[rows])
    assert 1.5 < whole.design_effect < 6
    frame = pl.DataFrame({"x": values})
    assert profile_columns(frame, {"x": "numeric"}, rows, GROUPS.astype(np.int64)) == [whole]
    assert profile(values[np.sort(rows)], GROUPS[np.sort(rows)]) == whole
    monkeypatch.setattr(profiles, "GROUPS_A_BLOCK", 7)
    assert profile(values[rows], GROUPS[rows]).design_effect == pytest.approx(whole.design_effect)
