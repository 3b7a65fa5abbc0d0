"""How sure a difference of scores is: lower bounds of its mean, exact tests, and one chance of error shared by many tests.

Knows only numbers, no models and no decisions. The upper bound of a mean is minus the lower bound of the negated differences. The
order of the rows changes the results by rounding at most.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

SEED = 0
NUM_RESAMPLES = 9999
NODE_DISTANCE = 0.25
"""Distance of the nodes of the trapezoidal rule, which then errs by less than 1e-6 of a p-value."""
LANES = 4096

Numbers = NDArray[np.float64]


def bound_accuracy(differences: Numbers, chance: float) -> float:
    """Find a bound that the mean difference exceeds with confidence 1 - `chance`: the lower of two bounds.

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) errs if few rows differ. So the second bound is the exact one
    for the share of wins among the rows that differ (Clopper and Pearson 1934). It is above 0 exactly if the exact sign test
    rejects (McNemar 1947).

    Args:
        differences: -1, 0 or 1 for each of N independent rows.
        chance: Probability that the bound is too high.

    Shape:
        differences: (N,).
    """
    from scipy.special import betaincinv  # imported here and below, so that only a run that decides waits for it

    num_rows, wins, losses = len(differences), (differences > 0).sum(), (differences < 0).sum()
    shares = np.array([wins, losses, num_rows - wins - losses]) / num_rows
    resampled = np.random.default_rng(SEED).multinomial(num_rows, shares, NUM_RESAMPLES)
    percentile = np.quantile((resampled[:, 0] - resampled[:, 1]) / num_rows, chance, method="lower")
    share = betaincinv(wins, losses + 1, chance) if wins else 0.0
    exact = (2 * share - 1) * (wins + losses) / num_rows
    return float(min(percentile, exact))


def bound_mean(sums: Numbers, sizes: Numbers, span: float, chance: float) -> float:
    """Find a bound that the mean difference of a row exceeds with confidence 1 - `chance`.

    It is the largest mean whose p-value is at most `chance`, for any number of rows and any distribution. The docstring of
    `compute_mean_p_value` states the conditions under which it holds.

    Args:
        sums: Sum of the differences of the rows in each cluster. Independent rows are clusters of one row.
        sizes: Number of rows in each cluster.
        span: The largest absolute value that a row's difference can have.
        chance: Probability that the bound is too high, less than 0.5.

    Returns:
        The bound, at least -`span`. Few rows give a low one; it cannot be above 0 if `find_least_p_value` is above `chance`.

    Shape:
        sums and sizes: (K,).
    """
    normal, num_rows = NormalDist(), sizes.sum()
    mean = sums.sum() / num_rows
    error = math.sqrt(((sums - mean * sizes) ** 2).sum()) / num_rows

    def find_excess(mean: float) -> float:
        p_value = compute_mean_p_value(sums, sizes, span, mean)
        return normal.inv_cdf(min(max(p_value, 1e-300), 1 - 1e-15)) - normal.inv_cdf(chance)  # nearly linear in the mean

    guess, step = mean + normal.inv_cdf(chance) * error, error + span * sizes.max() / num_rows
    return max(float(_find_last(find_excess, guess, step)), -span)


def compute_mean_p_value(sums: Numbers, sizes: Numbers, span: float, mean: float = 0.0) -> float:
    """Compute Gaffke's p-value of the hypothesis that the mean difference of a row is at most `mean`.

    One more cluster is added, as large as the largest, in which each row differs by -`span`. Then all clusters get random weights,
    each set of weights being equally likely. The p-value is the chance that the weighted mean is at most `mean`. If independent
    rows differ by -`span`, 0 or `span`, and `mean` is 0, it is that of the exact sign test.

    It holds if the clusters are independent, none can be larger than the largest one given, and the expected sum of each is at most
    `mean` times its expected size. The last condition is met if all clusters are drawn from the same distribution, even if large
    clusters have another mean than small ones; or if the sizes are fixed and each cluster has the same expected mean.

    Shape:
        sums and sizes: (K,).

    Source:
        Gaffke, Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable (2005), who
        conjectured that it holds for any distribution; no counterexample is known. A proof is stated by Vlassis and Thomas, An
        exact distribution-free test for means of nonnegative random variables (2026, arXiv:2607.08415, Theorem 1).
        `benchmarks/gate.py` simulates how often it errs.
    """
    if mean <= -span:
        return 0.0
    gains = np.maximum((sums - mean * sizes) / (sizes.max() * (span + mean)), -1.0)  # less than -1 by rounding alone
    return _compute_tail(gains)


def find_least_p_value(sums: Numbers, sizes: Numbers) -> float:
    """Find the p-value of a mean of 0 if every cluster that differs from 0 gains as much as it can.

    It is 1 / 2^n for independent rows of which n differ, as in the sign test.

    Shape:
        sums and sizes: (K,).
    """
    return math.exp(-np.log1p(sizes[sums != 0] / sizes.max()).sum())


def compute_sign_p_value(wins: int, losses: int) -> float:
    """Compute the p-value of the exact one-sided sign test: the chance of at least `wins` heads in `wins` + `losses` fair tosses.

    Source:
        McNemar, Note on the sampling error of the difference between correlated proportions or percentages (1947).
    """
    from scipy.special import bdtrc

    return float(bdtrc(wins - 1, wins + losses, 0.5))


def share_chance(least_p_values: Sequence[float] | Numbers, chance: float) -> float:
    """Divide a chance of error among the tests that can reject at all, and return the share of each.

    Tests whose least p-value is above the share cannot reject, and cost the others nothing.

    Args:
        least_p_values: The least p-value that each test can have, given only facts that say nothing about its outcome, such as how
            many rows differ.
        chance: Probability that at least one of the tests rejects by noise.

    Source:
        Tarone, A modified Bonferroni method for discrete data (1990).
    """
    least, num_tests = np.asarray(least_p_values), 1
    while (least <= chance / num_tests).sum() > num_tests:
        num_tests += 1
    return chance / num_tests


def _compute_tail(gains: Numbers) -> float:
    """Compute the chance that `gains` (K,), each at least -1, times exponential weights sum to at most one more such weight.

    The characteristic function is inverted: exp(log_peak) / product(1 - s f) is integrated along the hyperbola
    s = scale (i sinh(x) + bend (cosh(x) - 1)), which leaves the real axis where the integrand is least on it, and then bends to the
    side where it falls off faster.
    """
    stake, factors = _find_stake(gains)
    log_peak = -np.log1p(stake * gains).sum() - math.log1p(-stake) - math.log(stake)
    scale = 1 / math.sqrt(factors @ factors)
    bend = 2 / 3 * scale**3 * (factors**3).sum()
    x, area, height = 0.0, 0.5, 1 + 0j
    while abs(height) > 1e-12:
        x += NODE_DISTANCE
        sinh, cosh = math.sinh(x), math.cosh(x)
        height = complex(cosh, -bend * sinh) / _multiply(factors, scale * complex(bend * (cosh - 1), sinh))
        area += height.real
    return min(1.0, math.exp(log_peak) * area * NODE_DISTANCE * scale / math.pi)


def _find_stake(gains: Numbers) -> tuple[float, Numbers]:
    """Find nearly where in (0, 1) the integrand is least, and the factors f there: of each gain, the added weight, the pole at 0.

    A gambler who stakes this much on each gain would have won most. The damped steps of Newton's method stay in (0, 1) (Nesterov,
    Lectures on Convex Optimization, 2018, section 5.2).
    """
    total, squares = gains.sum() - 1, gains @ gains + 1
    stake = min(0.9, (total + math.sqrt(total**2 + 4 * squares)) / (2 * squares))
    while True:
        factors = np.append(gains / (1 + stake * gains), [-1 / (1 - stake), 1 / stake])
        slope, norm = factors.sum(), math.sqrt(factors @ factors)
        if abs(slope) <= 0.01 * norm:
            return stake, factors
        stake += slope / (norm * (norm + abs(slope)))


def _multiply(factors: Numbers, s: complex) -> complex:
    """Multiply all 1 - s f, in parallel lanes, which is ten times as fast as one after the other."""
    lanes = np.ones(min(LANES, len(factors)), complex)
    for start in range(0, len(factors), LANES):
        part = factors[start : start + LANES]
        lanes[: len(part)] *= 1 - s * part
    return complex(lanes.prod())


def _find_last(function: Callable[[float], float], guess: float, step: float) -> float:
    """Find where an increasing function is between -1e-5 and 0, by the Illinois method of false position."""
    low = high = guess
    at_low = at_high = function(guess)
    while at_low > 0:
        high, at_high, low = low, at_low, low - step
        at_low, step = function(low), 2 * step
    while at_high <= 0:
        low, at_low, high = high, at_high, high + step
        at_high, step = function(high), 2 * step
    last = 0.0
    for _ in range(100):
        middle = low + (high - low) * at_low / (at_low - at_high)
        at_middle = function(middle)
        if -1e-5 <= at_middle <= 0:
            return middle
        if at_middle > 0:
            high, at_high, at_low = middle, at_middle, at_low / (1 + (last > 0))  # halved weight for an end that stays (Illinois)
        else:
            low, at_low, at_high = middle, at_middle, at_high / (1 + (last < 0))
        last = at_middle
    return low
