"""Decides from scores of rows whether a candidate beats the champion by more than noise, and whether the champion has collapsed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from refit.data.inputs import Mask
from refit.errors import DataError
from refit.promotion.bounds import bound_accuracy, bound_mean, compute_sign_p_value, share_chance
from refit.refs import Handle
from refit.settings import PromotionSettings
from refit.texts import say_score
from refit.training.influences import SPREAD
from refit.training.objective import SPANS, Labels, RowScores, Score, Scores

FEW_ROWS = 30
"""With fewer test rows, the reason of a decision begins with their number."""
ROUNDING = 1e-9
MANY_DIGITS = 10_000
LEAD_LOST = 0.5
"""A champion has collapsed if it has lost this share of its lead over the majority class."""

Rows = Mask | NDArray[np.intp]
Clusters = NDArray[np.integer]


class WorseSlice(Handle):
    """A class or slice in which the candidate is right on fewer rows than the champion, or has a lower score."""

    name: str
    num_rows: int
    candidate: float
    """Share of the rows on which the candidate is right; for a class, this is the recall. Without classes, the mean score."""
    champion: float
    is_refused: bool
    """Whether the drop is larger than allowed, and larger than noise explains."""


class Lead(Handle):
    """By how much a model beats the majority class on the rows of one split."""

    split: str
    score: Score
    num_rows: int
    model: float
    majority: float
    bound: float
    """Lower bound of the lead, with the confidence of the settings."""
    baseline: str | None = "majority class"
    """What is compared with; None if there is nothing."""

    def warn(self) -> str | None:
        """Say that the model does not beat the majority class by more than noise, with the figures; None if it does."""
        objection = _object_to_lead(self.model, self.majority, self.bound, self.baseline)
        if objection is None:
            return None
        only = "only " if self.num_rows < FEW_ROWS else ""
        figures = f"{say_score(self.score)} {round_score(self.model)} on {only}{self.num_rows:,} {self.split} rows"
        return f"the model {objection}: {figures}, where the {self.baseline} has {round_score(self.majority)}"


class Decision(Handle):
    """Whether to promote the candidate, and the figures behind it."""

    is_better: bool
    reason: str
    """One sentence for people, with its figures."""
    score: Score
    num_rows: int
    num_clusters: int | None
    """Number of groups of dependent rows; None if all rows count as independent."""
    candidate: float
    champion: float
    """The champion's score; without one, that of the majority class."""
    majority: float
    difference: float
    bound: float
    """Lower bound of the difference, with the confidence of the settings."""
    lead: float
    """Lower bound of the candidate's lead over the majority class, with the same confidence."""
    worse: list[WorseSlice]
    """The refused ones first, then the largest drops first."""
    not_judged: list[str]
    """Classes and slices with too few rows to show any drop."""
    baseline: str | None = "majority class"
    """What a model must beat anyway; None if there is nothing."""

    def warn(self) -> str | None:
        """Return `Lead.warn` for the candidate."""
        lead = Lead(
            split="test",
            score=self.score,
            num_rows=self.num_rows,
            model=self.candidate,
            majority=self.majority,
            bound=self.lead,
            baseline=self.baseline,
        )
        return lead.warn()

    @property
    def summary(self) -> str:
        """The figures, without names from the data."""
        scores = f"{round_score(self.candidate)} against {round_score(self.champion)}"
        return f"{say_score(self.score)} {scores} on {self.num_rows:,} row{'s' * (self.num_rows != 1)}"

    def refuse(self) -> "Decision":
        """Return the same figures without a promotion."""
        return self.model_copy(update={"is_better": False, "reason": f"not {self.reason}"})


def decide(
    classes: Labels | None,
    candidate: RowScores,
    champion: RowScores | None,
    majority: Scores | None,
    settings: PromotionSettings,
    *,
    baseline: str | None = "majority class",
    clusters: Clusters | None = None,
    slices: Mapping[str, Mask] | None = None,
    latency_ms: float = 0.0,
    size_mb: float = 0.0,
    better: str | None = None,
) -> Decision:
    """Decide whether the candidate beats the champion and the majority class and stays within all limits.

    Args:
        classes: True class of each row; None if rows have none.
        candidate: The candidate's score of each row.
        champion: The champion's score of each row; None in a first run. Classes and slices are not compared then, as the majority
            class is always right on its own rows.
        majority: As `score_majority` returns it, or the scores of another baseline; None if there is none.
        settings: The rule and its limits.
        baseline: Its name.
        clusters: Rows with the same number depend on one another; None treats all rows as independent.
        slices: The rows of each named slice. Classes are compared anyway.
        latency_ms: Time that the candidate takes to score a row.
        size_mb: Size of the candidate's weights.
        better: Says which other model the candidate would have to beat, and does not.

    Raises:
        DataError: There are no rows.

    Shape:
        classes, scores, clusters and each of slices: (N,).
    """
    num_rows = len(candidate.scores)
    if not num_rows:
        raise DataError("expected test rows to compare models on, found none; raise data.test")
    score, chance = settings.score, 1 - settings.confidence
    is_alone = champion is None and majority is None
    rival = champion.scores if champion is not None else candidate.scores if majority is None else majority
    difference = float((candidate.scores - rival).mean())
    bound = _bound(candidate.scores, rival, score, chance, clusters)
    lead = bound if champion is None or majority is None else _bound(candidate.scores, majority, score, chance, clusters)
    has_gain, gain = _describe_gain(difference, bound, settings, is_first=champion is None)
    if is_alone:
        has_gain, gain = True, "the first of its name, with nothing to compare it with"
    worse, not_judged = list[WorseSlice](), list[str]()
    if champion is not None:
        parts = [*([] if classes is None else _list_classes(classes)), *(slices or {}).items()]
        one, other = (found.scores if classes is None else found.is_right.astype(float) for found in (candidate, champion))
        worse, not_judged = _find_worse(parts, one, other, clusters, settings, is_relative=classes is None)
    mean = float(candidate.scores.mean())
    average = mean if majority is None else float(majority.mean())
    objection = None if majority is None else _object_to_lead(mean, average, lead, baseline)
    objections = [
        *([f"it {objection} ({round_score(average)})"] if objection and champion else ()),
        *filter(None, [better]),
        *_object_to_score(mean, settings.min_score),
        *_object_to_drops(worse, "share of right rows" if classes is not None else say_score(score)),
        *_object_to_cost("a row takes", latency_ms, settings.max_latency_ms, "ms"),
        *_object_to_cost("the weights take", size_mb, settings.max_size_mb, "MB"),
    ]
    is_better = has_gain and not objections
    against = f" against {round_score(float(rival.mean()))}{f' of the {baseline}' * (champion is None)}" * (not is_alone)
    figures = f"{_describe_scores(score, f'{round_score(mean)}{against}', num_rows, clusters)}, {gain}"
    return Decision(
        is_better=is_better,
        reason="; ".join([f"{'promoted' if is_better else 'not promoted'}: {figures}", *objections]),
        score=score,
        num_rows=num_rows,
        num_clusters=None if clusters is None else len(np.unique(clusters)),
        candidate=mean,
        champion=float(rival.mean()),
        majority=average,
        difference=difference,
        bound=bound,
        lead=lead,
        worse=worse,
        not_judged=not_judged,
        baseline=None if majority is None else baseline,
    )


def measure_lead(
    model: RowScores,
    majority: Scores,
    settings: PromotionSettings,
    split: str,
    clusters: Clusters | None = None,
    baseline: str | None = "majority class",
) -> Lead:
    """Measure by how much a model beats the majority class or another baseline; `decide` uses the same bound.

    Args:
        model: The model's score of each row.
        majority: As `score_majority` returns it.
        settings: Score and confidence.
        split: The split that the rows are from.
        clusters: As in `decide`.
        baseline: Its name.
    """
    return Lead(
        split=split,
        score=settings.score,
        num_rows=len(majority),
        model=float(model.scores.mean()),
        majority=float(majority.mean()),
        bound=_bound(model.scores, majority, settings.score, 1 - settings.confidence, clusters),
        baseline=baseline,
    )


def find_collapse(
    champion: RowScores,
    majority: Scores | None,
    settings: PromotionSettings,
    *,
    lead_before: float | None = None,
    clusters: Clusters | None = None,
    name: str | None = "majority class",
) -> str | None:
    """Say how the champion has collapsed.

    It has collapsed if it is worse than the majority class by more than noise, has surely lost half of its lead over that class, or
    surely scores below `settings.min_score`.

    Args:
        champion: The champion's score of each row that it has not learned from.
        majority: As `score_majority` returns it, or the scores of another baseline; None if there is none.
        settings: Score, confidence, and the lowest score.
        lead_before: Lower bound of its lead over the majority class when it was promoted; None if that is not known.
        clusters: As in `decide`.
        name: Name of the baseline.

    Returns:
        A clause with its figures; None if it has not collapsed.
    """
    score, chance = settings.score, 1 - settings.confidence
    least = max(lead_before or 0.0, 0.0)
    figures = _describe_scores(score, round_score(float(champion.scores.mean())), len(champion.scores), clusters)
    if majority is not None and -_bound(majority, champion.scores, score, chance, clusters) < (LEAD_LOST * least if least else 0):
        before = f"; it was ahead by at least {_show(least)} when it was promoted" if least else ""
        return f"{figures}, where the {name} has {round_score(float(majority.mean()))}{before}"
    if settings.min_score is not None:
        missing = _bound_mean(settings.min_score, champion.scores, score, chance, clusters)
        if missing > 0:
            return f"{figures}, less than the promotion.min_score of {settings.min_score:g}"
    return None


def _bound(scores: Scores, others: Scores, score: Score, chance: float, clusters: Clusters | None) -> float:
    """Bound from below by how much the mean of one model's scores (N,) exceeds that of another's, with this chance of error."""
    if score == "accuracy" and clusters is None:
        return bound_accuracy(scores - others, chance)
    return _bound_mean(scores, others, score, chance, clusters)


def _bound_mean(scores: Scores | float, others: Scores, score: Score, chance: float, clusters: Clusters | None) -> float:
    values = scores - others
    # Losses and spread metrics have no largest value: none is taken to exceed those that are seen.
    seen = [scores, others] if score in SPREAD else [values]
    span = SPANS[score] if score in SPANS else max(float(np.abs(part).max()) for part in seen) or 1.0
    if clusters is None:
        return bound_mean(values, np.ones(len(values)), span, chance)
    _, indices = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(indices, values), np.bincount(indices).astype(np.float64)
    return bound_mean(sums.astype(np.float64), sizes, span, chance)


def _list_classes(classes: Labels) -> Iterator[tuple[str, Rows]]:
    names, indices, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rows = np.split(np.argsort(indices), counts.cumsum()[:-1])
    return zip((f"class {name}" for name in names), rows, strict=True)


def _find_worse(
    parts: Sequence[tuple[str, Rows]],
    candidate: Scores,
    champion: Scores,
    clusters: Clusters | None,
    settings: PromotionSettings,
    is_relative: bool,
) -> tuple[list[WorseSlice], list[str]]:
    """Find the parts in which the candidate is right less often, and the names of those with too few rows to show it.

    Without classes, mean scores are compared, and a drop is a share of the champion's.

    An exact sign test distinguishes a drop from noise. The chance of error is shared among the parts in which enough rows differ to
    show a drop at all (Tarone, A modified Bonferroni method for discrete data, 1990).
    """
    counts = [_count_signs(champion[rows], candidate[rows], None if clusters is None else clusters[rows]) for _, rows in parts]
    chance = share_chance([0.5 ** (losses + wins) for losses, wins, _ in counts], 1 - settings.confidence)
    worse = []
    for (name, rows), (losses, wins, _) in zip(parts, counts, strict=True):
        shares = [float(scores[rows].mean()) if scores[rows].size else 0.0 for scores in (candidate, champion)]
        if shares[0] < shares[1]:
            unit = abs(shares[1]) if is_relative else 1.0
            is_large = shares[1] - shares[0] > (settings.max_drop + ROUNDING) * unit
            is_refused = is_large and compute_sign_p_value(losses, wins) <= chance
            num_rows = int(candidate[rows].size)
            worse.append(WorseSlice(name=name, num_rows=num_rows, candidate=shares[0], champion=shares[1], is_refused=is_refused))
    not_judged = [name for (name, _), (_, _, num_units) in zip(parts, counts, strict=True) if 0.5**num_units > chance]
    return sorted(worse, key=lambda entry: (not entry.is_refused, entry.candidate - entry.champion)), not_judged


def _count_signs(champion: Scores, candidate: Scores, clusters: Clusters | None) -> tuple[int, int, int]:
    """Count the rows or clusters in which the champion is right more often, those in which the candidate is, and all."""
    drops = champion - candidate
    if clusters is not None:
        _, indices = np.unique(clusters, return_inverse=True)
        drops = np.bincount(indices, drops).astype(np.float64)
    return int((drops > 0).sum()), int((drops < 0).sum()), len(drops)


def _describe_gain(difference: float, bound: float, settings: PromotionSettings, is_first: bool) -> tuple[bool, str]:
    """Return whether the difference counts, and describe it in words."""
    gain = f"better by {_show(difference)}" if difference > 0 else f"worse by {_show(-difference)}" if difference else "no better"
    sure = f" ({100 * settings.confidence:g} % sure of at least {_show(bound)})"
    if settings.rule == "not_worse" and not is_first:
        margin = f"worse by more than the {_show(settings.margin)} allowed"
        if bound > -settings.margin:
            return True, f"{gain}{sure}, surely not {margin}"
        return False, f"{gain}{sure}, and may be {margin}"
    if difference <= 0:
        return False, gain
    if bound <= 0:
        return False, f"{gain}, which noise can explain{sure}"
    if bound < settings.min_effect:
        return False, f"{gain}{sure}, less than the {_show(settings.min_effect)} asked for"
    return True, f"{gain}{sure}"


def _object_to_lead(score: float, majority: float, bound: float, baseline: str | None) -> str | None:
    if bound > 0 or baseline is None:
        return None
    return f"does not beat the {baseline}" + " by more than noise" * (score > majority)


def _object_to_score(score: float, min_score: float | None) -> Iterator[str]:
    if min_score is not None and score < min_score:
        yield f"its score is less than the promotion.min_score of {min_score:g}"


def _object_to_drops(worse: Sequence[WorseSlice], what: str) -> Iterator[str]:
    refused = [entry for entry in worse if entry.is_refused]
    if refused:
        first = refused[0]
        more = f", and {len(refused) - 1} more" if refused[1:] else ""
        shares = f"from {round_score(first.champion)} to {round_score(first.candidate)}"
        yield f"the {what} in {first.name!r} drops {shares} on {first.num_rows:,} rows{more}"


def _object_to_cost(what: str, found: float, limit: float | None, unit: str) -> Iterator[str]:
    if limit is not None and found > limit:
        yield f"{what} {found:.4g} {unit}, more than the {limit:.4g} {unit} allowed"


def _describe_scores(score: Score, figures: str, num_rows: int, clusters: Clusters | None) -> str:
    """Describe the figures of a score and the number of rows, which comes first if it is small."""
    groups = "" if clusters is None else f" in {len(np.unique(clusters)):,} groups"
    rows = f"{num_rows:,} row{'s' * (num_rows != 1)}{groups}"
    name = say_score(score)
    return f"on only {rows}: {name} {figures}" if num_rows < FEW_ROWS else f"{name} {figures} on {rows}"


def _show(figure: float) -> str:
    """Show four decimals, or two significant digits if those would be zeros."""
    return round_score(figure) if figure == 0 or abs(figure) >= 0.001 else f"{figure:.2g}"


def round_score(score: float) -> str:
    """Show four decimals, or six digits of a loss that is large, or small, in the units of its column."""
    return f"{score:.4f}" if score == 0 or 0.0001 <= abs(score) < MANY_DIGITS else f"{score:.6g}"
