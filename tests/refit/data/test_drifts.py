import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2, hypergeom

from refit.data.drifts import MIN_SHARE, Drift, compare_profiles
from refit.data.profiles import Profile
from refit.tables.profiles import profile_columns
from refit.tables.schema import find_reading

Generator = np.random.Generator
Draw = Callable[[Generator, int], Any]


def profile(values: Any, groups: Any = None) -> Profile:
    column, kind = pl.Series("x", values, strict=False), "categorical"
    if column.dtype != pl.String:  # whose reading takes longer than all the rest
        reading, column = find_reading(column, [], str)
        kind = reading.kind
    return profile_columns(pl.DataFrame([column]), {"x": kind}, groups=groups)[0]


def compare(before: Any, now: Any) -> Drift:
    return compare_profiles([profile(before)], [profile(now)])[0]


def plain_psi(before: Any, now: Any) -> float:
    """The index of shares, one bin at a time."""
    pairs = [(max(p, MIN_SHARE), max(q, MIN_SHARE)) for p, q in zip(before, now, strict=True)]
    return sum((p - q) * math.log(p / q) for p, q in pairs)


def raw_psi(before: np.ndarray, now: np.ndarray) -> float:
    """The index over the deciles of both together, or over their values where they are few, counted on all rows."""
    together = np.concatenate([before, now])
    if len(np.unique(together)) < 20:
        return plain_psi(*([(values == level).mean() for level in np.unique(together)] for values in (before, now)))
    edges = [-np.inf, *np.quantile(together, np.arange(1, 10) / 10), np.inf]
    return plain_psi(*(np.histogram(values, edges)[0] / len(values) for values in (before, now)))


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


def test_categories_that_are_rare_in_both_together_share_a_bin() -> None:
    before = ["a"] * 91 + [f"old{number}" for number in range(9)]
    now = ["a"] * 91 + [f"new{number}" for number in range(9)]
    assert compare(before, now).psi == 0
    assert compare(before, now).new_categories == now[91:]
    drift = compare(before, ["a"] * 82 + now[91:] * 2)
    assert drift.psi == pytest.approx(plain_psi([0.91, 0.09], [0.82, 0.18]))


@pytest.mark.parametrize("num_now", [500, 20000])
@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (0.1, 1), (0.5, 1), (1, 1), (0, 2), (0, 0.5), (-2, 0.3)])
def test_the_index_of_numbers_from_their_marks_is_near_that_of_all_rows(mean: float, deviation: float, num_now: int) -> None:
    generator = np.random.default_rng(0)
    before, now = generator.normal(size=5000), generator.normal(mean, deviation, num_now)
    assert compare(before, now).psi == pytest.approx(raw_psi(before, now), rel=0.1, abs=0.01)


@pytest.mark.parametrize(
    ("before", "now"), [(0.5, 0.5), (0.5, 0.6), (0.5, 0.8), (0.15, 0.3), (0.95, 0.8), (0.02, 0.05), (0.02, 0.3)]
)
def test_the_index_of_zeros_and_ones_is_that_of_all_rows(before: float, now: float) -> None:
    generator = np.random.default_rng(0)
    old, new = ((generator.random(3000) < share).astype(float) for share in (before, now))
    assert compare(old, new).psi == pytest.approx(raw_psi(old, new))


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
    "extreme": [-np.finfo(float).max, -1.7e308, 0.0, 5e-324, 1.0, 1.7e308, np.finfo(float).max] * 7,
    "gaps": [*range(70), *[None] * 30],
    "many": np.random.default_rng(0).normal(size=3000).tolist(),
    "none": [None] * 9,
    "one": [2.0],
}
TEXTS = {"few": ["a", "b", "b", None] * 10, "one": ["a"], "none": [None], "ids": [str(number) for number in range(300)]}


@pytest.mark.parametrize(("kind", "before", "now"), [
    *(("numeric", *pair) for pair in itertools.product(COLUMNS, repeat=2)),
    *(("categorical", *pair) for pair in itertools.product(TEXTS, repeat=2)),
])  # fmt: skip
def test_the_index_of_any_two_columns_is_finite_and_the_same_from_either_side(kind: Any, before: str, now: str) -> None:
    columns, dtype = (COLUMNS, pl.Float64) if kind == "numeric" else (TEXTS, pl.String)
    old, new = (profile_columns(pl.DataFrame({"x": pl.Series(columns[name], dtype=dtype)}), {"x": kind}) for name in (before, now))
    drift, back = compare_profiles(old, new)[0], compare_profiles(new, old)[0]
    assert drift.psi is not None
    assert drift.noise is not None
    assert 0 <= drift.psi < 20
    assert 0 <= drift.noise < 20
    assert drift.psi == pytest.approx(back.psi)
    if before == now:
        assert (drift.psi, drift.extent, drift.new_categories) == (0, "stable", [])


@pytest.mark.parametrize("now", [4.0, 6.0, -1e300])
def test_another_constant_is_a_large_shift_to_either_side(now: float) -> None:
    drift = compare([5.0] * 100, [now] * 100)
    assert drift.psi == pytest.approx(2 * (1 - MIN_SHARE) * math.log(1 / MIN_SHARE))
    assert drift.extent == "shifted"


@pytest.mark.parametrize(
    ("psi", "noise", "extent"),
    [
        (0.09, 0.01, "stable"),
        (0.1, 0.01, "shifted a little"),
        (0.25, 0.01, "shifted"),
        (0.2, 0.3, "stable"),
        (0.3, 0.3, "stable"),
        (0.24, 0.2, "shifted a little"),
    ],
)
def test_the_index_is_put_in_a_word_and_chance_is_no_shift(psi: float, noise: float, extent: str) -> None:
    assert Drift(column="x", psi=psi, noise=noise, missing_before=0, missing_now=0, new_categories=[]).extent == extent


def test_columns_that_cannot_be_compared_come_first_and_the_others_by_their_index() -> None:
    rows = {"same": [1.0, 2.0] * 20, "moved": [1.0, 1.0] * 20, "retyped": [1.0, 2.0] * 20, "left": [1.0, 2.0] * 20}
    before = pl.DataFrame(rows)
    now = pl.DataFrame({"came": [True, False], "same": [1.0, 2.0], "retyped": ["a", "b"], "moved": [9.0, 9.0]})
    kinds = {"came": "boolean", "same": "numeric", "retyped": "categorical", "moved": "numeric"}
    drifts = compare_profiles(
        profile_columns(before, dict.fromkeys(rows, "numeric")), profile_columns(pl.concat([now] * 20), kinds)
    )
    assert [(drift.column, drift.extent) for drift in drifts] == [
        ("came", "added"),
        ("left", "gone"),
        ("retyped", "of another kind"),
        ("moved", "shifted"),
        ("same", "stable"),
    ]
    assert [drift.psi is None for drift in drifts] == [True, True, True, False, False]
    assert (drifts[0].missing_before, drifts[1].missing_now) == (None, None)


def test_a_category_that_an_incomplete_list_lacks_is_not_called_new() -> None:
    names = [f"c{number}" for number in range(101)]
    assert compare(names, ["new"] * 10).new_categories == []
    assert compare(names[:100], ["new"] * 10).new_categories == ["new"]


def test_the_noise_of_a_boolean_is_the_percentile_of_the_hypergeometric_distribution() -> None:
    values = np.arange(400) < 120
    noise = compare(values[::2], values[1::2]).noise
    drawn = np.arange(121)
    psi = np.array([plain_psi([k / 200, 1 - k / 200], [(120 - k) / 200, 1 - (120 - k) / 200]) for k in drawn])
    chances = hypergeom(400, 120, 200).pmf(drawn)
    assert 0.02 < chances[psi > noise].sum() < 0.08
    assert noise == pytest.approx(chi2.ppf(0.95, 1) * 2 / 200, rel=0.3)


@pytest.mark.parametrize(("num_before", "num_now"), [(2000, 2000), (100_000, 5000)])
def test_the_noise_of_many_rows_is_the_percentile_of_chi_square(num_before: int, num_now: int) -> None:
    generator = np.random.default_rng(0)
    noise = compare(generator.normal(size=num_before), generator.normal(size=num_now)).noise
    assert noise == pytest.approx(chi2.ppf(0.95, 9) * (1 / num_before + 1 / num_now), rel=0.01)


def test_the_noise_is_that_of_rows_dealt_out_anew() -> None:
    generator = np.random.default_rng(0)
    rows = generator.choice(8, 300, p=ZIPF[:8] / ZIPF[:8].sum())
    dealt = []
    for _ in range(2000):
        generator.shuffle(rows)
        dealt.append(plain_psi(*(np.bincount(part, minlength=8) / len(part) for part in (rows[:100], rows[100:]))))
    noises = []
    for _ in range(20):
        generator.shuffle(rows)
        noises.append(compare([*map("c{}".format, rows[:100])], [*map("c{}".format, rows[100:])]).noise)
    assert np.mean(noises) == pytest.approx(np.quantile(dealt, 0.95), rel=0.1)


ZIPF = 1 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()
CATEGORIES = np.array([f"c{number:03}" for number in range(400)])


def choose(shares: Any) -> Draw:
    shares = np.asarray(shares)
    return lambda generator, rows: CATEGORIES[generator.choice(len(shares), rows, p=shares / shares.sum())]


def draw_ids(generator: Generator, rows: int) -> Any:
    return [f"id {number}" for number in generator.integers(0, 2**62, rows)]


def draw_amounts(zeros: float) -> Draw:
    return lambda generator, rows: np.where(generator.random(rows) < zeros, 0.0, generator.lognormal(size=rows))


def draw_gaps(share: float) -> Draw:
    return lambda generator, rows: np.where(generator.random(rows) < share, np.nan, generator.normal(size=rows))


def draw_dates(generator: Generator, rows: int) -> Any:
    return pl.Series(generator.integers(0, 10**15, rows)).cast(pl.Datetime("us"))


def draw_normal(mean: float = 0.0) -> Draw:
    return lambda generator, rows: generator.normal(mean, 1, rows)


UNCHANGED: dict[str, tuple[Draw, int, int]] = {
    "50 Zipf categories": (choose(ZIPF), 200, 200),
    "50 Zipf categories, many rows now": (choose(ZIPF), 200, 2000),
    "50 Zipf categories, few rows now": (choose(ZIPF), 2000, 200),
    "60 ids": (draw_ids, 60, 60),
    "200 ids": (draw_ids, 200, 200),
    "400 categories, 200 rows": (choose(np.ones(400)), 200, 200),
    "400 categories, 1,000 rows": (choose(np.ones(400)), 1000, 1000),
    "400 categories, 5,000 rows": (choose(np.ones(400)), 5000, 5000),
    "102 categories": (choose(np.ones(102)), 500, 1000),
    "50 % zeros": (draw_amounts(0.5), 200, 200),
    "80 % zeros": (draw_amounts(0.8), 200, 200),
    "95 % zeros": (draw_amounts(0.95), 200, 200),
    "95 % zeros, 50 rows": (draw_amounts(0.95), 50, 50),
    "99 % zeros, 20,000 rows": (draw_amounts(0.99), 20000, 20000),
    "normal": (draw_normal(), 200, 200),
    "normal, 20 rows": (draw_normal(), 20, 20),
    "normal, 5,000 rows": (draw_normal(), 5000, 5000),
    "normal, few rows now": (draw_normal(), 1000, 200),
    "booleans, 1 %": (lambda generator, rows: generator.random(rows) < 0.01, 200, 200),
    "booleans, 1 %, 2,000 rows": (lambda generator, rows: generator.random(rows) < 0.01, 2000, 2000),
    "2 % missing": (draw_gaps(0.02), 200, 200),
    "few-valued integers": (lambda generator, rows: generator.poisson(1, rows).astype(float), 200, 200),
    "300 integers, 20,000 rows": (lambda generator, rows: generator.integers(0, 300, rows).astype(float), 20000, 20000),
    "date-times": (draw_dates, 300, 300),
}


def count_shifts(before: Draw, now: Draw, num_before: int, num_now: int, trials: int) -> tuple[float, float]:
    """How large a share of drifts is beyond chance, and how large a share is not called stable."""
    generator = np.random.default_rng(2)
    drifts = [compare(before(generator, num_before), now(generator, num_now)) for _ in range(trials)]
    beyond = [drift.psi > drift.noise for drift in drifts]
    return float(np.mean(beyond)), float(np.mean([drift.extent != "stable" for drift in drifts]))


@pytest.mark.parametrize("name", ["50 Zipf categories", "200 ids", "95 % zeros, 50 rows"])
def test_few_unchanged_columns_are_beyond_chance(name: str) -> None:
    draw, num_before, num_now = UNCHANGED[name]
    beyond, called_shifted = count_shifts(draw, draw, num_before, num_now, 200)
    assert called_shifted <= beyond <= 0.1  # 0.05, and 3 standard errors


@functools.cache
def count_unchanged(name: str) -> tuple[float, float]:
    draw, num_before, num_now = UNCHANGED[name]
    shares = count_shifts(draw, draw, num_before, num_now, 1000)
    print("{}: beyond chance {:.3f}, called shifted {:.3f}".format(name, *shares))
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("name", UNCHANGED)
def test_19_of_20_unchanged_columns_or_more_are_within_chance(name: str) -> None:
    beyond, called_shifted = count_unchanged(name)
    assert called_shifted <= beyond <= 0.07  # 0.05, and 3 standard errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50 Zipf categories", "200 ids", "50 % zeros", "normal", "normal, 5,000 rows", "date-times"])
def test_the_noise_is_no_larger_than_it_must_be(name: str) -> None:
    assert count_unchanged(name)[0] >= 0.03


SHIFTED: dict[str, tuple[Draw, Draw, int, float]] = {
    "mean by 0.5 deviations": (draw_normal(), draw_normal(0.5), 500, 0.95),
    "a category from 10 % to 20 %": (choose([10, 40, 30, 20]), choose([20, 36, 26, 18]), 500, 0.3),
    "a category from 10 % to 25 %": (choose([10, 40, 30, 20]), choose([25, 33, 25, 17]), 500, 0.9),
    "zeros from 50 % to 65 %": (draw_amounts(0.5), draw_amounts(0.65), 500, 0.5),
    "zeros from 50 % to 70 %": (draw_amounts(0.5), draw_amounts(0.7), 500, 0.9),
    "half of 400 categories": (choose(np.ones(400)), choose(np.ones(200)), 1000, 0.95),
    "one of 400 categories from 10 % to 30 %": (choose([44, *np.ones(399)]), choose([171, *np.ones(399)]), 1000, 0.9),
    "missing from 2 % to 10 %": (draw_gaps(0.02), draw_gaps(0.1), 500, 0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIFTED)
def test_shifts_are_beyond_chance_and_called_shifts_where_the_index_is_large_enough(name: str) -> None:
    before, now, num_rows, least = SHIFTED[name]
    beyond, called_shifted = count_shifts(before, now, num_rows, num_rows, 300)
    print(f"{name}: beyond chance {beyond:.3f}, called shifted {called_shifted:.3f}")
    assert beyond >= 0.9
    assert called_shifted >= least


def draw_grouped(kind: str, sizes: np.ndarray, generator: Generator) -> Any:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    own, shared = generator.normal(size=len(groups)), generator.normal(size=len(sizes))[groups]
    columns = {
        "numbers of the group": shared,
        "numbers of the row": own,
        "numbers of both": own + shared,
        "categories of the group": CATEGORIES[generator.choice(50, len(sizes), p=ZIPF)][groups],
        "categories of the row": CATEGORIES[generator.choice(50, len(groups), p=ZIPF)],
        "booleans of the group": (shared < -1),
        "ids of the group": np.array(draw_ids(generator, len(sizes)))[groups],
        "missing by group": np.where(shared < -0.5, np.nan, own),
    }
    return profile(columns[kind], groups.astype(np.uint64))


KINDS = ["numbers of the group", "numbers of the row", "numbers of both", "categories of the group", "categories of the row",
         "booleans of the group", "ids of the group", "missing by group"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("num_groups", [30, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_19_of_20_unchanged_columns_or_more_are_within_chance_where_rows_depend_on_groups(kind: str, num_groups: int) -> None:
    generator = np.random.default_rng(2)
    beyond = []
    for _ in range(600):
        before, now = (draw_grouped(kind, 1 + generator.poisson(15, num_groups), generator) for _ in range(2))
        drift = compare_profiles([before], [now])[0]
        beyond.append(drift.psi > drift.noise)
    print(f"{kind}, {num_groups} groups: beyond chance {np.mean(beyond):.3f}")
    assert np.mean(beyond) <= 0.08  # 0.05, and 3 standard errors


def test_many_rows_of_few_groups_are_no_evidence() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20, dtype=np.uint64), 50)
    before, now = (generator.normal(size=20)[groups] for _ in range(2))
    assert compare(before, now).extent != "stable"
    assert compare_profiles([profile(before, groups)], [profile(now, groups)])[0].extent == "stable"


def test_texts_of_other_words_are_a_shift_and_others_of_the_same_words_are_none() -> None:
    pick = random.Random(0)
    spam, ham = ["win", "prize", "call", "now", "free", "cash"], ["lunch", "see", "you", "later", "report", "thanks"]

    def profile(words: list[str]) -> list[Profile]:
        texts = [" ".join(pick.choices(words, k=6)) for _ in range(400)]
        return profile_columns(pl.DataFrame({"note": texts}), {"note": "text"})

    (same,), (other,) = (compare_profiles(profile(spam), profile(words)) for words in (spam, ham))
    assert (same.extent, other.extent) == ("stable", "shifted")
    assert set(other.new_categories) <= {*ham}
