"""How often the gate's bounds err, and how often they notice: simulated candidates called better, and slices called worse.

Run as `python benchmarks/gate.py --trials 2000`; it takes about ten minutes. The stated confidence is 95 %, so at most one in 20
candidates that are no better may be called better. Beside that share is the one of Student's test, which takes all rows for
independent and their mean for normal. Where rows come in clusters, copies of a row or rows of a customer, the bounds are told so.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from refit.promotion.bounds import Numbers, bound_accuracy, bound_mean, compute_sign_p_value, share_chance
from refit.promotion.decision import measure_lead
from refit.settings import PromotionSettings
from refit.training.influences import SPREAD
from refit.training.objective import MIN_PROBABILITY, score_probabilities

CHANCE = 0.05
SPANS = {"accuracy": 1.0, "log likelihood": -np.log(MIN_PROBABILITY), "brier": 1.0}
NUM_CUSTOMERS = 500
MAX_DROP = 0.05
NUM_SLICES = 20

Sample = tuple[Numbers, NDArray[np.intp]]
"""The difference of each row, candidate less champion, and its cluster."""


@dataclass(frozen=True)
class Setting:
    """A kind of candidate, as its score differences come out."""

    name: str
    score: str
    num_rows: int
    draw: Callable[[Generator], Sample]


def draw_rows(score: str, num_rows: int, generator: Generator, share: float | None = None) -> Numbers:
    """A small gain on most rows, about 0.1 in log likelihood, and the largest loss on this share of them.

    By default it is such that the mean is 0. For accuracy it is the share of rows that differ, half of them won and half lost.
    """
    if score == "accuracy":
        share = 0.3 if share is None else share
        return generator.choice([-1.0, 0.0, 1.0], num_rows, p=[share / 2, 1 - share, share / 2])
    span = SPANS[score]
    gain = span / 46
    return np.where(generator.random(num_rows) < (gain / (gain + span) if share is None else share), -span, gain)


def draw_left_skewed(score: str, num_rows: int, generator: Generator) -> Numbers:
    """A log-normal upside down, cut off where the largest difference ends, of mean 0."""
    span = SPANS[score]
    scale = 1.0 if score == "log likelihood" else 0.2
    cut = span / scale
    for _ in range(100):  # the mean of what is cut off at `cut`, which lies that mean above the largest difference
        mean = np.exp(0.5) * stats.norm.cdf(np.log(cut) - 1) + cut * stats.norm.sf(np.log(cut))
        cut = span / scale + mean
    return scale * (mean - np.minimum(generator.lognormal(0, 1, num_rows), cut))


def draw_models(score: str, num_rows: int, generator: Generator, noise: float = 1.0, rival_noise: float = 1.0) -> Numbers:
    """Two models of two classes, each of which knows the logits but for a noise of its own."""
    logits = generator.normal(0, 2, num_rows)
    signs = np.where(generator.random(num_rows) < 1 / (1 + np.exp(-logits)), 1, -1)
    shares = [1 / (1 + np.exp(-signs * (logits + generator.normal(0, scale, num_rows)))) for scale in (noise, rival_noise)]
    if score == "accuracy":
        scores = [(share > 0.5).astype(float) for share in shares]
    elif score == "log likelihood":
        scores = [np.log(np.maximum(share, MIN_PROBABILITY)) for share in shares]
    else:
        scores = [1 - (1 - share) ** 2 for share in shares]
    return scores[0] - scores[1]


def draw_independent(draw: Callable[..., Numbers], score: str, num_rows: int, generator: Generator, **options: float) -> Sample:
    """Each row is a cluster of its own."""
    return draw(score, num_rows, generator, **options), np.arange(num_rows)


def draw_copies(score: str, generator: Generator) -> Sample:
    """40 rows in ten copies each."""
    return np.repeat(draw_rows(score, 40, generator), 10), np.repeat(np.arange(40), 10)


def draw_customers(score: str, sizes: str, generator: Generator) -> Sample:
    """Four in five rows of a customer differ as the customer does, the others by themselves.

    Customers have 30 rows each; or from 1 to 300, log-normal; or 5 and, one in ten, 45, and those with many rows lose what the
    others win.
    """
    differences = draw_rows(score, NUM_CUSTOMERS, generator)
    num_rows = np.full(NUM_CUSTOMERS, 30)
    if sizes == "unequal":
        num_rows = np.minimum(np.ceil(generator.lognormal(3, 1, NUM_CUSTOMERS)), 300).astype(int)
    elif sizes == "telling":
        is_large = generator.random(NUM_CUSTOMERS) < 0.1
        num_rows = np.where(is_large, 45, 5)
        differences = np.where(is_large, -0.2, 0.2) * SPANS[score]
        if score == "accuracy":
            differences = np.where(generator.random(NUM_CUSTOMERS) < 0.2, np.sign(differences), 0)
    clusters = np.repeat(np.arange(NUM_CUSTOMERS), num_rows)
    is_own = generator.random(len(clusters)) < 0.2
    return np.where(is_own, draw_rows(score, len(clusters), generator), differences[clusters]), clusters


def list_null_settings() -> Iterator[Setting]:
    """Candidates that are no better."""
    for share in (0.02, 0.1, 0.5):
        for num_rows in (20, 100, 1000, 10_000):
            draw = partial(draw_independent, draw_rows, "accuracy", num_rows, share=share)
            yield Setting(f"rows, {share:.0%} differ", "accuracy", num_rows, draw)
    for score in ("log likelihood", "brier"):
        for num_rows in (50, 100, 200, 500):
            draw = partial(draw_independent, draw_rows, score, num_rows)
            yield Setting("rare confident errors", score, num_rows, draw)
        for num_rows in (20, 100, 3000):
            draw = partial(draw_independent, draw_left_skewed, score, num_rows)
            yield Setting("left-skewed log-normal", score, num_rows, draw)
        for num_rows in (100, 1000):
            draw = partial(draw_independent, draw_models, score, num_rows)
            yield Setting("two models", score, num_rows, draw)
    for score in SPANS:
        yield Setting("copies", score, 400, partial(draw_copies, score))
        for sizes in ("equal", "unequal", "telling"):
            yield Setting(f"customers, {sizes} sizes", score, NUM_CUSTOMERS * 30, partial(draw_customers, score, sizes))


def list_better_settings() -> Iterator[Setting]:
    """Candidates whose logits err less than the champion's, or that err so rarely that they gain more than they lose."""
    for num_rows in (50, 100, 200, 500):
        draw = partial(draw_independent, draw_rows, "log likelihood", num_rows, share=0.01)
        yield Setting("errors on 1 % of rows", "log likelihood", num_rows, draw)
    for score in SPANS:
        for num_rows in (100, 300, 1000, 3000):
            draw = partial(draw_independent, draw_models, score, num_rows, noise=0.7, rival_noise=1.2)
            yield Setting("noise 0.7 against 1.2", score, num_rows, draw)


def is_better(sample: Sample, score: str) -> bool:
    """Whether the bound that fits is above 0."""
    differences, clusters = sample
    sizes = np.bincount(clusters)
    if score == "accuracy" and sizes.max() == 1:
        return bound_accuracy(differences, CHANCE) > 0
    return bound_mean(np.bincount(clusters, differences), sizes.astype(float), SPANS[score], CHANCE) > 0


def is_better_to_student(sample: Sample, score: str) -> bool:  # noqa: ARG001 -- called as `is_better` is
    """Whether Student's test of the rows rejects."""
    differences = sample[0]
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return bool(differences.mean() > stats.t.isf(CHANCE, len(differences) - 1) * error)


def count_better(setting: Setting, num_trials: int, *tests: Callable[[Sample, str], bool]) -> list[int]:
    """In how many trials each test calls the candidate better."""
    generator = np.random.default_rng(0)
    counts = np.zeros(len(tests), int)
    for _ in range(num_trials):
        sample = setting.draw(generator)
        counts += [test(sample, setting.score) for test in tests]
    return counts.tolist()


def draw_slices(
    num_rows: int, champion: float, candidate: float, is_paired: bool, generator: Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Wins and losses of each slice. Both models are right on 90 % of the rows, but in the first slice on these shares.

    Paired models err on the same rows, as far as they can; others independently.
    """
    was_likely, is_likely = np.full((2, NUM_SLICES, 1), 0.9)
    was_likely[0], is_likely[0] = champion, candidate
    draws = generator.random((2, NUM_SLICES, num_rows))
    was_right, is_right = draws[0] < was_likely, draws[0 if is_paired else 1] < is_likely
    return (is_right & ~was_right).sum(axis=1), (was_right & ~is_right).sum(axis=1)


def find_dropped(wins: NDArray[np.intp], losses: NDArray[np.intp], num_rows: int) -> NDArray[np.bool_]:
    """Which slices drop by more than is allowed, and more than noise explains."""
    chance = share_chance(0.5 ** (wins + losses), CHANCE)
    p_values = np.array([compute_sign_p_value(lost, won) for won, lost in zip(wins.tolist(), losses.tolist(), strict=True)])
    return (p_values <= chance) & (losses - wins > MAX_DROP * num_rows)


def count_better_of_rare(score: str, num_rows: int, num_trials: int, *noises: float) -> int:
    """In how many trials the first of two models is called better by a metric of all rows, of which 7 % are positive."""
    generator, settings, count = np.random.default_rng(0), PromotionSettings(score=score, confidence=1 - CHANCE), 0
    for _ in range(num_trials):
        logits = generator.normal(-4, 2, num_rows)
        y = (generator.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(int)
        shares = [1 / (1 + np.exp(-(logits + generator.normal(0, noise, num_rows)))) for noise in noises]
        one, other = (score_probabilities(np.stack([1 - share, share], axis=1), y, score) for share in shares)
        count += measure_lead(one, other.scores, settings, "test").bound > 0
    return count


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    num_trials = parser.parse_args().trials
    console = Console(width=100)
    for title, settings in (("No better", list_null_settings()), ("Better", list_better_settings())):
        table = Table("candidates", "score", "rows", "called better", "by Student's test", title=title)
        for setting in settings:
            counts = count_better(setting, num_trials, is_better, is_better_to_student)
            shares = [f"{count / num_trials:.3f}" for count in counts]
            table.add_row(setting.name, setting.score, f"{setting.num_rows:,}", *shares)
        console.print(table)
    table = Table("score", "rows", "no better, called better", "better, called better", title="Two models, 7 % positive rows")
    for score in SPREAD:
        for num_rows in (100, 300, 1000, 3000):
            counts = [count_better_of_rare(score, num_rows, num_trials, *noises) for noises in ((1, 1), (0.7, 1.5))]
            table.add_row(score, f"{num_rows:,}", *(f"{count / num_trials:.3f}" for count in counts))
    console.print(table)
    table = Table("rows of each slice", "from", "to", "errors", "first refused", "another refused", title=f"{NUM_SLICES} slices")
    for num_rows, champion, candidate in ((20, 0.9, 0.9), (20, 0.9, 0.6), (100, 0.9, 0.9), (100, 0.9, 0.75)):
        for is_paired in (False, True):
            generator = np.random.default_rng(0)
            draws = [draw_slices(num_rows, champion, candidate, is_paired, generator) for _ in range(num_trials)]
            dropped = np.stack([find_dropped(*draw, num_rows) for draw in draws])
            shares = (dropped[:, 0].mean(), dropped[:, 1:].any(axis=1).mean())
            kind = "on the same rows" if is_paired else "independent"
            table.add_row(str(num_rows), str(champion), str(candidate), kind, *(f"{share:.3f}" for share in shares))
    console.print(table)


if __name__ == "__main__":
    main()
