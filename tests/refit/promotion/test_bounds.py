import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from gate import (
    SPANS,
    Setting,
    count_better,
    draw_slices,
    find_dropped,
    is_better,
    is_better_to_student,
    list_better_settings,
    list_null_settings,
)
from scipy import stats

from refit.promotion import bounds
from refit.promotion.bounds import (
    Numbers,
    bound_accuracy,
    bound_mean,
    compute_mean_p_value,
    compute_sign_p_value,
    find_least_p_value,
    share_chance,
)

CHANCE = 0.05


def make_rows(wins: int, losses: int, ties: int = 0, size: float = 1.0) -> tuple[Numbers, Numbers]:
    """Sums and sizes of independent rows that differ by `size`, minus `size` and 0."""
    return size * np.repeat([1.0, -1.0, 0.0], [wins, losses, ties]), np.ones(wins + losses + ties)


def draw_clusters(num_clusters: int, seed: int, span: float = 1.0) -> tuple[Numbers, Numbers]:
    """Sums and sizes of clusters of one to nine rows, no two alike."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 10, num_clusters).astype(float)
    return np.clip(generator.normal(0.2, 0.4, num_clusters), -1, 1) * span * sizes, sizes


def integrate_by_fractions(sums: Numbers, sizes: Numbers, span: float, mean: float) -> float:
    """Gaffke's p-value without rounding, from the partial fractions of a sum of exponential weights; no two may be alike."""
    weights = [Fraction(total) - Fraction(mean) * Fraction(size) for total, size in zip(sums, sizes, strict=True)]
    weights.append(-Fraction(sizes.max()) * (Fraction(span) + Fraction(mean)))
    p_value = Fraction(0)
    for index, weight in enumerate(weights):
        if weight < 0:
            p_value += math.prod(1 / (1 - other / weight) for at, other in enumerate(weights) if at != index)
    return float(p_value)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(1, 0, 0), (5, 0, 9), (3, 1, 0), (20, 10, 3), (560, 500, 100), (3, 40, 0)])
@pytest.mark.parametrize("span", [1.0, 4.6])
def test_the_p_value_of_rows_that_differ_by_the_span_is_that_of_the_sign_test(wins, losses, ties, span):
    expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    assert compute_mean_p_value(*make_rows(wins, losses, ties, size=span), span) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_clusters", [1, 2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize("mean", [-0.5, 0.0, 0.1])
def test_the_p_value_of_clusters_is_exact(num_clusters, mean):
    for seed in range(5):
        clusters = draw_clusters(num_clusters, seed, span=2.0)
        expected = integrate_by_fractions(*clusters, 2.0, mean)
        assert compute_mean_p_value(*clusters, 2.0, mean) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("mean", [-0.5, 0.0])
def test_the_p_value_is_exact_where_one_cluster_outweighs_all_others(mean):
    sums, sizes = (np.append(found, [600.0]) for found in draw_clusters(12, seed=0))
    expected = integrate_by_fractions(sums, sizes, 1.0, mean)
    assert compute_mean_p_value(sums, sizes, 1.0, mean) == pytest.approx(expected, rel=1e-6)


def test_the_bound_is_a_quantile_of_the_mean_under_random_weights():
    sums, sizes = draw_clusters(30, seed=0)
    weights = np.random.default_rng(0).exponential(size=(200_000, 31))
    worst = sizes.max() * weights[:, -1]
    means = (weights[:, :-1] @ sums - worst) / (weights[:, :-1] @ sizes + worst)
    assert bound_mean(sums, sizes, 1.0, CHANCE) == pytest.approx(np.quantile(means, CHANCE), abs=0.002)


@pytest.mark.parametrize("chance", [0.4, 0.05, 1e-6])
@pytest.mark.parametrize("num_clusters", [25, 300])
def test_the_bound_is_the_last_mean_that_its_p_value_refuses(num_clusters, chance):
    clusters = draw_clusters(num_clusters, seed=1)
    bound = bound_mean(*clusters, 1.0, chance)
    assert compute_mean_p_value(*clusters, 1.0, bound) <= chance < compute_mean_p_value(*clusters, 1.0, bound + 1e-5)


@pytest.mark.parametrize("num_rows", [5, 100, 20_000])
def test_the_bound_of_equal_differences_leaves_room_for_a_loss_that_was_not_seen(num_rows):
    """So large a share of worst rows has this chance to be missed."""
    share = 1 - CHANCE ** (1 / num_rows)
    bound = bound_mean(np.full(num_rows, 0.3), np.ones(num_rows), 2.0, CHANCE)
    assert bound == pytest.approx(0.3 - share * (0.3 + 2.0), abs=1e-4 * share)


def test_the_bound_of_many_rows_is_the_normal_one():
    differences = np.random.default_rng(0).normal(0.02, 0.2, 200_000)
    error = differences.std() / math.sqrt(len(differences))
    bound = bound_mean(differences, np.ones(len(differences)), 1.0, CHANCE)
    assert bound == pytest.approx(differences.mean() + stats.norm.ppf(CHANCE) * error, abs=0.05 * error)


@pytest.mark.parametrize("values", [(-1, 0, 1), (-1, 0.1, 1), (-1, 0.05, 0.5), (-1, -0.2, 1), (-0.3, 0.01, 0.9)])
@pytest.mark.parametrize("num_rows", [6, 10])
def test_no_distribution_of_three_values_exceeds_the_stated_chance(values, num_rows):
    """Every sample is listed, with its chance under shares that make the mean 0."""
    counts = [(a, b, num_rows - a - b) for a, b in itertools.product(range(num_rows + 1), repeat=2) if a + b <= num_rows]
    p_values = [compute_mean_p_value(np.repeat(values, count), np.ones(num_rows), 1.0) for count in counts]
    for middle in (0.01, 0.3, 0.8):
        largest = (-(1 - middle) * values[0] - middle * values[1]) / (values[2] - values[0])
        if 0 < largest < 1 - middle:
            chances = stats.multinomial.pmf(counts, num_rows, [1 - middle - largest, middle, largest])
            for chance in (0.01, 0.05, 0.3):
                assert chances[np.array(p_values) <= chance].sum() <= chance


def test_copies_of_all_rows_tell_nothing_new():
    differences = np.random.default_rng(0).normal(0.1, 0.2, 60)
    bound = bound_mean(differences, np.ones(60), 1.0, CHANCE)
    assert bound_mean(10 * differences, np.full(60, 10.0), 1.0, CHANCE) == pytest.approx(bound)


def test_neither_the_unit_nor_the_order_matters():
    sums, sizes = draw_clusters(60, seed=2)
    order = np.random.default_rng(0).permutation(60)
    bound = bound_mean(sums, sizes, 1.0, CHANCE)
    assert bound_mean(5 * sums, sizes, 5.0, CHANCE) == pytest.approx(5 * bound)
    assert bound_mean(sums[order], sizes[order], 1.0, CHANCE) == pytest.approx(bound)


@pytest.mark.parametrize("num_rows", range(1, 11))
def test_the_bound_is_above_0_where_a_fair_coin_could_not_win_all_rows_that_differ(num_rows):
    clusters = make_rows(wins=num_rows, losses=0, ties=20)
    assert find_least_p_value(*clusters) == pytest.approx(0.5**num_rows)
    assert compute_mean_p_value(*clusters, 1.0) == pytest.approx(0.5**num_rows)
    assert (bound_mean(*clusters, 1.0, CHANCE) > 0) == (0.5**num_rows <= CHANCE)


@pytest.mark.parametrize("num_rows", [1, 100, 3000])
def test_rows_that_do_not_differ_bound_how_much_worse_the_mean_can_be(num_rows):
    expected = -(1 - CHANCE ** (1 / num_rows))
    assert bound_mean(*make_rows(wins=0, losses=0, ties=num_rows), 1.0, CHANCE) == pytest.approx(expected, rel=1e-4)


def test_the_least_p_value_of_clusters_is_that_of_the_largest_sums():
    _, sizes = draw_clusters(12, seed=0)
    assert find_least_p_value(sizes, sizes) == pytest.approx(compute_mean_p_value(sizes, sizes, 1.0))


def test_a_cluster_that_outweighs_all_others_proves_nothing():
    sizes = np.append(np.ones(200), 1000.0)
    assert bound_mean(sizes, sizes, 1.0, CHANCE) < 0
    assert bound_mean(np.ones(200), np.ones(200), 1.0, CHANCE) > 0.9


@pytest.mark.parametrize(
    ("clusters", "most"),
    [
        (make_rows(9, 1, 10), 6),
        (make_rows(0, 0, 100), 7),
        (make_rows(300, 200, 5000), 6),
        (make_rows(1, 0), 15),
        (draw_clusters(25, seed=1), 6),
        (draw_clusters(300, seed=1), 6),
    ],
    ids=["few", "ties", "many", "one", "25 clusters", "300 clusters"],
)
def test_a_bound_takes_few_p_values_as_each_passes_over_all_rows(monkeypatch, clusters, most):
    means = []
    monkeypatch.setattr(bounds, "compute_mean_p_value", lambda *given: means.append(given[-1]) or compute_mean_p_value(*given))
    bound_mean(*clusters, 1.0, CHANCE)
    assert 3 <= len(means) <= most


@pytest.mark.parametrize("difference", [-1.0, 1.0])
def test_the_bound_stays_within_the_span(difference):
    clusters = make_rows(wins=30, losses=0, size=difference)
    assert -1 <= bound_mean(*clusters, 1.0, CHANCE) < 1


def test_where_few_rows_differ_the_sign_test_decides_on_accuracy():
    for wins in range(13):
        for losses in range(7):
            expected = wins + losses > 0 and stats.binomtest(wins, wins + losses, alternative="greater").pvalue <= CHANCE
            assert (bound_accuracy(make_rows(wins, losses, ties=180)[0], CHANCE) > 0) == expected, (wins, losses)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(9, 1, 10), (30, 12, 8), (300, 0, 700), (200, 160, 640)])
def test_the_bound_of_accuracy_is_the_lower_of_the_exact_and_the_bootstraps(wins, losses, ties):
    differences, sizes = make_rows(wins, losses, ties)
    share = stats.binomtest(wins, wins + losses, alternative="greater").proportion_ci(1 - CHANCE).low
    exact = (2 * share - 1) * (wins + losses) / len(sizes)
    options = {"confidence_level": 1 - CHANCE, "n_resamples": 4999, "method": "percentile", "rng": 1}
    resampled = stats.bootstrap((differences,), np.mean, alternative="greater", **options)
    expected = min(exact, resampled.confidence_interval.low)
    assert bound_accuracy(differences, CHANCE) == pytest.approx(expected, abs=1 / len(sizes) + 0.05 * resampled.standard_error)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 7), (7, 0), (8, 2), (500, 450), (40_000, 39_500)])
def test_the_sign_test_is_that_of_scipy(wins, losses):
    expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    assert compute_sign_p_value(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_gives_no_chance_above_1():
    assert max(compute_sign_p_value(0, losses) for losses in range(300)) == 1


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        ([], 0.05),
        ([0.5, 1.0], 0.05),
        ([0.03], 0.05),
        ([0.03, 0.03], 0.05 / 2),
        ([0.03, 0.02], 0.05 / 2),
        ([0.001] * 3 + [0.02] * 17, 0.05 / 3),
        ([0.001] * 20, 0.05 / 20),
    ],
)
def test_a_chance_is_shared_among_those_tests_alone_that_can_reject(least, expected):
    share = share_chance(least, 0.05)
    assert share == expected
    assert share * sum(p_value <= share for p_value in least) <= 0.05


def list_names(settings: list[Setting]) -> list[str]:
    return [f"{setting.name}, {setting.score}, {setting.num_rows} rows" for setting in settings]


@pytest.mark.slow
@pytest.mark.parametrize("setting", settings := list(list_null_settings()), ids=list_names(settings))
def test_candidates_that_are_no_better_are_called_better_no_more_often_than_stated(setting):
    num_trials = 500
    (num_better,) = count_better(setting, num_trials, is_better)
    assert num_better / num_trials <= CHANCE + 3 * math.sqrt(CHANCE * (1 - CHANCE) / num_trials)


@pytest.mark.slow
def test_better_candidates_are_noticed_nearly_as_often_as_by_students_test_once_there_are_1000_rows():
    settings = [setting for setting in list_better_settings() if setting.num_rows >= 1000]
    assert {setting.score for setting in settings} == set(SPANS)
    for setting in settings:
        num_better, num_to_student = count_better(setting, 300, is_better, is_better_to_student)
        assert num_better >= 0.9 * num_to_student > 150


@pytest.mark.slow
@pytest.mark.parametrize(("is_paired", "expected"), [(False, 0.25), (True, 0.65)])
def test_a_small_slice_that_falls_is_noticed(is_paired, expected):
    generator = np.random.default_rng(0)
    dropped = np.stack([find_dropped(*draw_slices(20, 0.9, 0.6, is_paired, generator), 20) for _ in range(500)])
    assert dropped[:, 0].mean() > expected
    assert dropped[:, 1:].any(axis=1).mean() <= CHANCE
