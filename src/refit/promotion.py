"""Whether a candidate is better than the champion by more than noise, decided from their scores on the same rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refit.errors import DataError
from refit.refs import Handle

SEED = 0
NUM_RESAMPLES = 9999
MAX_ROWS_RESAMPLED = 2000
"""For more rows the quantile of studentized means is computed, by the expansion that resampling agrees with."""
CELLS_AT_ONCE = 2**20
MIN_LOG_LIKELIHOOD = math.log(1e-15)
"""What a row scores at least, so that the mean is finite where a model gives the true class no probability."""

Score = Literal["accuracy", "log_likelihood"]
Labels = NDArray[np.str_] | NDArray[np.object_] | Sequence[str]
Scores = NDArray[np.float64]
Rows = NDArray[np.bool_] | NDArray[np.intp]


class WorseSlice(Handle):
    """A class or slice on which the candidate scores lower than the champion."""

    name: str
    num_rows: int
    candidate: float
    champion: float
    is_refused: bool
    """Whether the drop is more than is allowed, and more than noise explains."""


class Decision(Handle):
    """Whether the candidate is to be promoted, and the figures that say so."""

    is_better: bool
    reason: str
    """One sentence for people, with its figures."""
    score: Score
    num_rows: int
    candidate: float
    champion: float
    """The champion's score; without one, that of the majority class."""
    difference: float
    bound: float | None
    """What the difference exceeds with the stated confidence; None where too few rows differ to tell."""
    worse: list[WorseSlice]
    """Those that are refused first, then by drop, largest first."""


def decide(
    classes: Labels,
    candidate: Scores,
    champion: Scores,
    *,
    score: Score,
    confidence: float,
    min_effect: float,
    max_drop: float,
    latency_ms: float,
    size_mb: float,
    max_latency_ms: float | None = None,
    max_size_mb: float | None = None,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    is_first: bool = False,
) -> Decision:
    """Decide whether the candidate scores higher than the champion by more than noise, and nothing speaks against it.

    Args:
        classes: True class of each row.
        candidate: Its score of each row: 1 for right and 0 for wrong, or the log probability of the true class.
        champion: The champion's; in a first run, what `score_majority` returns.
        score: What the scores are.
        confidence: How sure it must be that the difference is above 0, in (0.5, 1).
        min_effect: The least difference that counts.
        max_drop: The largest drop allowed on a class or slice. A larger one counts unless noise explains it; that noise alone makes
            any of them count has a chance of at most 1 - `confidence`.
        latency_ms: Time that the candidate takes to score a row.
        size_mb: Size of its weights.
        max_latency_ms: None sets no limit.
        max_size_mb: None sets no limit.
        slices: The rows of each named slice, besides the classes.
        is_first: Whether there is no champion yet. Classes and slices are not compared then, for the majority class is always
            right on its own rows.

    Raises:
        DataError: There are no rows.

    Shape:
        classes, candidate, champion and each of slices: (N,).

    Source:
        Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004): rows are resampled with the scores of both.
    """
    if not len(classes):
        raise DataError("expected test rows to compare models on, found none; raise data.test")
    candidate, champion = (np.fmax(scores, MIN_LOG_LIKELIHOOD) for scores in (candidate, champion))  # for NaN, too
    difference, bound = float((candidate - champion).mean()), _find_bound(candidate - champion, score, confidence)
    has_gain, gain = _describe_gain(difference, bound, confidence, min_effect)
    parts = [] if is_first else [*_list_classes(classes), *(slices or {}).items()]
    worse = _find_worse(parts, candidate, champion, score, confidence, max_drop)
    objections = [
        *_object_to_drops(worse),
        *_object_to_cost("a row takes", latency_ms, max_latency_ms, "ms"),
        *_object_to_cost("the weights take", size_mb, max_size_mb, "MB"),
    ]
    is_better = has_gain and not objections
    rival = " of the majority class" if is_first else ""
    rows = f"{len(classes):,} row{'s' if len(classes) > 1 else ''}"
    figures = f"{score.replace('_', ' ')} {candidate.mean():.4f} against {champion.mean():.4f}{rival} on {rows}, {gain}"
    return Decision(
        is_better=is_better,
        reason="; ".join([f"{'promoted' if is_better else 'not promoted'}: {figures}", *objections]),
        score=score,
        num_rows=len(classes),
        candidate=float(candidate.mean()),
        champion=float(champion.mean()),
        difference=difference,
        bound=bound,
        worse=worse,
    )


def score_majority(classes: Labels, class_counts: Mapping[str, int], score: Score) -> Scores:
    """Score each row as a model would that knows nothing but how many train rows each class has.

    For accuracy it gives all rows the largest class; for log likelihood it takes the classes' shares, with one row more of each.

    Shape:
        classes: (N,); returns (N,).
    """
    names, indices = np.unique(classes, return_inverse=True)
    if score == "accuracy":
        largest = max(class_counts, key=lambda name: class_counts[name])
        values = (names == largest).astype(float)
    else:
        counts = np.array([class_counts.get(str(name), 0) + 1 for name in names])
        values = np.log(counts / (sum(class_counts.values()) + len(class_counts)))
    scores: Scores = values[indices]
    return scores


def _list_classes(classes: Labels) -> Iterator[tuple[str, Rows]]:
    names, indices, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(indices, kind="stable"), counts.cumsum()[:-1])
    return zip((f"class {name}" for name in names), rows, strict=True)


def _find_worse(
    parts: Sequence[tuple[str, Rows]], candidate: Scores, champion: Scores, score: Score, confidence: float, max_drop: float
) -> list[WorseSlice]:
    """The slices with a lower score; the chance of noise is shared among all that are compared (Bonferroni)."""
    worse = []
    for name, rows in parts:
        drops = champion[rows] - candidate[rows]
        if not len(drops) or drops.mean() <= 0:
            continue
        is_large = drops.mean() > max_drop
        bound = _find_bound(drops, score, 1 - (1 - confidence) / len(parts)) if is_large else None
        worse.append(
            WorseSlice(
                name=name,
                num_rows=len(drops),
                candidate=float(candidate[rows].mean()),
                champion=float(champion[rows].mean()),
                is_refused=bound is not None and bound > 0,
            )
        )
    return sorted(worse, key=lambda entry: (not entry.is_refused, entry.candidate - entry.champion))


def _describe_gain(difference: float, bound: float | None, confidence: float, min_effect: float) -> tuple[bool, str]:
    """Whether the difference counts, and what it is in words."""
    if difference <= 0:
        return False, f"worse by {_show(-difference)}" if difference else "no better"
    gain = f"better by {_show(difference)}"
    if bound is None:
        return False, f"{gain}, which so few rows cannot prove"
    sure = f"({100 * confidence:g} % sure of at least {_show(bound)})"
    if bound <= 0:
        return False, f"{gain}, which noise can explain {sure}"
    if difference < min_effect:
        return False, f"{gain} {sure}, less than the {_show(min_effect)} asked for"
    return True, f"{gain} {sure}"


def _object_to_drops(worse: Sequence[WorseSlice]) -> Iterator[str]:
    refused = [entry for entry in worse if entry.is_refused]
    if refused:
        first = refused[0]
        more = f", and {len(refused) - 1} more" if refused[1:] else ""
        yield f"{first.name!r} drops from {first.champion:.4f} to {first.candidate:.4f} on {first.num_rows:,} rows{more}"


def _object_to_cost(what: str, found: float, limit: float | None, unit: str) -> Iterator[str]:
    if limit is not None and found > limit:
        yield f"{what} {found:.4g} {unit}, more than the {limit:.4g} {unit} allowed"


def _show(figure: float) -> str:
    """Four decimals, or two digits where those would be zeros."""
    return f"{figure:.4f}" if figure == 0 or abs(figure) >= 0.001 else f"{figure:.2g}"


def _find_bound(differences: Scores, score: Score, confidence: float) -> float | None:
    """What the mean of `differences` (N,) exceeds with this confidence; None where too few differ from 0 to tell."""
    return (_bound_shares if score == "accuracy" else _bound_means)(differences, 1 - confidence)


def _bound_shares(differences: Scores, chance: float) -> float:
    """The lower of two bounds on the mean of differences that are -1, 0 or 1.

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) errs where few rows differ. So there is the exact bound for the
    share of wins among these (Clopper and Pearson 1934), which is above 0 just where the exact sign test rejects (McNemar 1947).
    """
    num_rows, wins, losses = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    shares = np.array([wins, losses, num_rows - wins - losses]) / num_rows
    resampled = np.random.default_rng(SEED).multinomial(num_rows, shares, NUM_RESAMPLES)
    percentile = np.quantile((resampled[:, 0] - resampled[:, 1]) / num_rows, chance, method="lower")
    exact = (2 * _bound_wins(wins, wins + losses, chance) - 1) * (wins + losses) / num_rows
    return float(min(percentile, exact))


def _bound_wins(wins: int, trials: int, chance: float) -> float:
    """The share at which so many wins or more have this chance."""
    if wins == 0:
        return 0.0
    log_factorials = np.append(0.0, np.log(np.arange(1, trials + 1)).cumsum())
    k = np.arange(wins, trials + 1)
    log_ways = log_factorials[trials] - log_factorials[k] - log_factorials[trials - k]
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        tail = np.exp(log_ways + k * math.log(share) + (trials - k) * math.log1p(-share)).sum()
        low, high = (share, high) if tail <= chance else (low, share)
    return low


def _bound_means(differences: Scores, chance: float) -> float | None:
    """The lower of Student's bound and that of the studentized bootstrap, which knows about skewness; None for very few rows.

    Source:
        Efron and Tibshirani (1993), section 12.5, for the bootstrap; Hall, The Bootstrap and Edgeworth Expansion (1992), for the
        expansion of the same quantile that stands in for it when there are many rows.
    """
    num_rows = len(differences)
    if 0.5 ** np.count_nonzero(differences) > chance:  # a fair coin could do that
        return None
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(num_rows)
    if error <= 1e-12 * abs(mean):
        return float(mean)
    z = NormalDist().inv_cdf(1 - chance)
    if num_rows > MAX_ROWS_RESAMPLED:
        skewness = ((differences - mean) ** 3).mean() / differences.std() ** 3
        quantile = z - skewness * (2 * z**2 + 1) / (6 * math.sqrt(num_rows))
    else:
        quantile = np.quantile(_resample_t(differences), 1 - chance, method="higher")
    bound = float(mean - max(quantile, _find_student_quantile(z, num_rows - 1)) * error)
    return bound if math.isfinite(bound) else None


def _resample_t(differences: Scores) -> Scores:
    """Student's t of each resample against the mean of all `differences`."""
    generator, num_rows, mean = np.random.default_rng(SEED), len(differences), differences.mean()
    ts = []
    for start in range(0, NUM_RESAMPLES, step := max(1, CELLS_AT_ONCE // num_rows)):
        num_resamples = min(step, NUM_RESAMPLES - start)
        resampled = differences[generator.integers(num_rows, size=(num_resamples, num_rows), dtype=np.int32)]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (resampled.mean(1) - mean) / resampled.std(1, ddof=1) * math.sqrt(num_rows)
        ts.append(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf))
    return np.concatenate(ts)


def _find_student_quantile(z: float, degrees: int) -> float:
    """Student's quantile from the normal one (Abramowitz and Stegun 1964, 26.7.5)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))
