"""Scores candidate and champion on the same raw rows, except those that either has learned from, and decides."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refit.data.drifts import Drift
from refit.data.examples import Examples
from refit.data.inputs import Mask
from refit.data.live_items import build_ordered_loader
from refit.data.own_dataset import check_source
from refit.data.profiles import Profile
from refit.errors import DataError, RefitError, StoreError
from refit.promotion import decision
from refit.promotion.answers import find_answer_drifts, profile_answers
from refit.promotion.decision import Decision, decide, find_collapse
from refit.promotion.fair_rows import (
    Rival,
    explain_incomparable,
    explain_unfair,
    find_fair_rows,
    find_rival,
    tell_left_out,
)
from refit.promotion.neighbours import OURS, Comparison, find_better, find_reason, tell_better
from refit.promotion.news import find_lead
from refit.promotion.worst import WorstItem, find_worst
from refit.refs import Alarm, Handle, Ref, SavedModel
from refit.registry.ledger import record_opening
from refit.registry.saving import FROZEN
from refit.registry.versions import read_record, version_folder
from refit.runtime.accelerators import CPU
from refit.serving.saved_model import DEFAULTS, Model, load_version
from refit.settings import PromotionSettings, SettingsTree, TrainingSettings
from refit.store.store import Store
from refit.texts import say_score
from refit.training.evaluation import compute_outputs, refuse_non_finite_outputs
from refit.training.loop import EpochLog
from refit.training.metrics import Metrics, NumberBin
from refit.training.neighbours import TITLES, load_outputs
from refit.training.objective import Classification, Objective, RowScores, Score, Scores, score_majority
from refit.training.objectives import OwnStep, StandardizedNumber, build_objective, score_without_inputs
from refit.training.tuning import Tuning

TIMES_TIMED = 30
LATENCY, SIZE = "milliseconds a row", "megabytes"
SCORES_OF_MAJORITY: dict[str, Score] = {"accuracy": "accuracy", "log likelihood": "log_likelihood"}


class Verdict(Handle):
    """The result of comparing a candidate with the champion."""

    decision: Decision
    reason: str
    """The decision's reason, and what else a reader must know."""
    alarm: Alarm | None
    """Set if a person should look at the champion."""
    judged_by: int | None
    """The version that the candidate was compared with: the champion, or an earlier one if the champion is damaged."""
    num_left_out: int
    """Test rows that the champion or the candidate has learned from."""
    earlier_looks: int
    """Number of versions that the same test rows had judged before."""
    scores: dict[str, dict[str, float | None]]
    """Metrics by model: the candidate, the version that it was compared with, and the majority class."""
    labels: list[str]
    confusion: list[list[int]]
    """The candidate's rows by true class (first index) and predicted class (second index)."""
    curve: list[tuple[float, float]]
    """Recall and precision of a rare class, of the candidate."""
    bins: list[NumberBin]
    """The candidate's rows by predicted number."""
    rows_before: dict[str, int] | None
    """Rows of each split of the champion's data set."""
    rows_now: dict[str, int]
    drifts: list[Drift]
    """How far columns or targets, and the champion's answers, have moved since the champion's data set."""
    worst: list[WorstItem]
    """Items that the candidate is worst on; none of a table."""
    worst_picture: str
    """A PNG of them in base64; empty if they are no images."""

    @property
    def figures(self) -> str:
        """The reason without the decision at its beginning, as a person may decide otherwise."""
        return self.reason.partition(": ")[2]


@dataclass(frozen=True)
class ScoredRows:
    """A model's outputs for N raw rows. Classes that it does not know are added to its C classes.

    Shape: truth, of classes, `(N,)`, outputs `(N, …)`, of classes `(N, C)`, y `(N, …)`.
    """

    model: Model
    truth: NDArray[np.object_] | None
    outputs: Tensor
    y: Tensor
    labels: list[str]
    objective: Objective

    def score_one(self, row: Any) -> None:
        """Do what scoring a raw row takes."""
        if isinstance(self.objective, OwnStep):  # of which the model alone may not know what to take
            self.objective.compute(self.model.module, *next(iter(build_ordered_loader(row.x, row.y))))
        else:
            self.model.predict_logits(row)

    def measure(self, rows: Mask) -> Metrics:
        """Compute the metrics of some of the rows."""
        chosen = torch.from_numpy(rows)
        return self.objective.measure(self.outputs[chosen], self.y[chosen])

    def score(self, score: Score, rows: Mask) -> RowScores:
        """Score some of the rows."""
        chosen = torch.from_numpy(rows)
        return self.objective.score_rows(self.outputs[chosen], self.y[chosen], score)

    def score_baseline(self, score: Score, rows: Mask) -> Scores | None:
        """Score some of the rows as a model would that knows the train targets alone, such as how many rows each class has."""
        truth = self.y[torch.from_numpy(rows)] if self.truth is None else self.truth[rows]
        return _score_baseline(self.model.manifest, self.objective, truth, score)


def compare(
    candidate: SavedModel,
    champion: int | None,
    settings: PromotionSettings,
    store: Store,
    local: SettingsTree = DEFAULTS,
) -> Verdict:
    """Score both on the candidate's test rows, each through its own preparation of columns, and decide.

    If the champion is damaged, the last earlier champion that is whole stands in for it. If it cannot be compared, it stays, unless
    the settings say otherwise.

    Args:
        candidate: A version whose data set is whole.
        champion: Number of the version to beat; None takes the majority class.
        settings: Rule and limits of the decision.
        store: Where both are.
        local: Settings of this machine, which name the factory or trust all; see `load_model`.

    Raises:
        DataError: There is no test row that neither has learned from, or a column of `promotion.slices` is missing.
        RefitError: The candidate cannot score its own test rows.
    """
    model = load_version(store, candidate.name, candidate.version, local, held_back=True)
    manifest = model.manifest
    check_source(manifest.source, local)
    rows = manifest.load_test_rows(store)
    manifest.check_slices(settings.slices, rows)
    earlier_looks = record_opening(store, candidate.name, candidate.version, cast(Ref, manifest.test_ref).digest)
    settings = settings.model_copy(update={"score": choose_score(manifest, settings)})
    scored = score_rows(model, rows, local.training)
    rival, rival_scored = find_rival(candidate.name, champion, manifest, rows, store, local), None
    if rival.model is not None:
        try:
            rival_scored = score_rows(rival.model, rows, local.training)
        except RefitError as error:
            rival = Rival(problem=explain_incomparable(candidate.name, rival.number, error))
    is_fair, left_out = find_fair_rows(manifest, rival, rows, store)
    if not is_fair.any():
        raise DataError(explain_unfair(left_out, len(is_fair)))
    clusters = manifest.find_clusters(rows, store)
    clusters = None if clusters is None else clusters[is_fair]
    own = scored.score(settings.score, is_fair)
    scores = {candidate.reference: _list_scores(scored, own, settings.score, is_fair, rows, candidate.version, store)}
    baseline, of_champion, collapse = scored.score_baseline(settings.score, is_fair), None, None
    drifts: list[Drift] = []
    if rival_scored is not None and rival.number is not None:
        of_champion, lead = rival_scored.score(settings.score, is_fair), find_lead(store, candidate.name, rival.number)
        named = f"{candidate.name}@v{rival.number}"
        scores[named] = _list_scores(rival_scored, of_champion, settings.score, is_fair, rows, rival.number, store)
        said = rival_scored.outputs[torch.from_numpy(is_fair)]
        drifts = find_answer_drifts(store, candidate.name, rival.number, rival_scored.objective, said)
        collapse = find_collapse(
            of_champion, baseline, settings, lead_before=lead, clusters=clusters, name=scored.objective.baseline
        )
    others = _find_others(candidate, scored, settings.must_beat_baseline, store)
    found_better = find_better(
        {kind: other.score(settings.score, is_fair) for kind, other in others.items()},
        own,
        settings,
        "test",
        clusters,
    )
    measured, of_others = scored.measure(is_fair), {kind: other.measure(is_fair) for kind, other in others.items()}
    beaten = tell_better(found_better, of_others[found_better[0]] if found_better else None, measured)
    decision = decide(
        None if scored.truth is None else scored.truth[is_fair],
        own,
        of_champion,
        baseline,
        settings,
        baseline=scored.objective.baseline,
        clusters=clusters,
        slices={name: mask[is_fair] for name, mask in manifest.find_slices(rows, settings.slices)},
        latency_ms=scores[candidate.reference][LATENCY] or 0.0,
        size_mb=scores[candidate.reference][SIZE] or 0.0,
        better=beaten if settings.must_beat_baseline else None,
    )
    if baseline is not None and scored.objective.baseline is not None:
        others_of_majority = SCORES_OF_MAJORITY if scored.truth is not None else {}
        found: dict[str, Scores | None] = {say_score(settings.score): baseline}
        found |= {name: scored.score_baseline(score, is_fair) for name, score in others_of_majority.items()}
        scores[scored.objective.baseline] = {name: float(part.mean()) for name, part in found.items() if part is not None}
    scores |= {TITLES[kind]: found.list_scores() for kind, found in of_others.items()}
    alarm = _find_alarm(champion, of_champion is not None, collapse, rival.is_damaged)
    remedies = [] if decision.is_better and settings.when_incomparable == "promote" else [rival.remedy]
    if champion is not None and of_champion is None and decision.is_better and settings.when_incomparable == "keep":
        decision, remedies = decision.refuse(), [*remedies, "promotion.when_incomparable is `keep`"]
    fallen = f"{candidate.name}@v{rival.number} has collapsed: {collapse}" if collapse else None
    useless = manifest.explain_useless_slices(rows.filter(is_fair), settings.slices)
    remarks = [None if settings.must_beat_baseline else beaten, manifest.tell_rare_classes()]
    notes = [tell_left_out(left_out), *remarks, rival.problem, *remedies, fallen, useless]
    worst, picture = find_worst(manifest, scored.objective, scored.outputs, scored.y, rows, np.flatnonzero(is_fair), own, store)
    return Verdict(
        decision=decision,
        reason="; ".join(filter(None, [decision.reason, *notes])),
        alarm=alarm,
        judged_by=rival.number,
        num_left_out=(~is_fair).sum(),
        earlier_looks=earlier_looks,
        scores=scores,
        labels=scored.labels,
        confusion=getattr(measured, "confusion", []),
        curve=getattr(measured, "curve", []),
        bins=getattr(measured, "bins", []),
        rows_before=None if rival.model is None else _count_rows(rival.model.manifest),
        rows_now=_count_rows(manifest),
        drifts=[] if rival.model is None else [*manifest.find_drifts(rival.model.manifest), *drifts],
        worst=worst,
        worst_picture=picture,
    )


class Judgement(NamedTuple):
    """How good a network is on the rows that it is judged on."""

    lead: dict[str, Any] | None
    """By how much it beats the baseline; None without one."""
    comparison: Comparison | None
    """Beside its neighbours, if there are any."""
    answers: list[Profile]
    """What it says of items, which have no columns to tell when they drift."""


def judge(
    network: nn.Module,
    manifest: Examples,
    settings: SettingsTree,
    store: Store,
    logs: Sequence[EpochLog],
    best_epoch: int,
    outputs: Ref | None = None,
    tuning: Tuning | None = None,
) -> Judgement:
    """Measure how good a network is on the rows that it is judged on, as `compare` would, beside the baseline and its neighbours.

    Of items, which have no columns to tell when they drift, also profile what it says of them.

    Args:
        network: The network, on the CPU.
        manifest: The data set that it learned from.
        settings: Score and confidence are taken from `promotion`.
        store: Where the data set is.
        logs: Of its epochs.
        best_epoch: The one that its weights are of.
        outputs: Those of the neighbours.
        tuning: How the network's outputs are read.

    Returns:
        The lead over the baseline, with a warning and its likely reason, if there is a baseline; and the comparison, if there are
        neighbours.
    """
    split = list(manifest.splits)[-1]
    x, y = manifest.load_split(split, store)
    objective = _build_judge(manifest, settings.training)
    own, y = compute_outputs(network, build_ordered_loader(x, y), CPU, settings.compute.precision, objective.compute)
    promotion = settings.promotion.model_copy(update={"score": choose_score(manifest, settings.promotion)})
    answers = profile_answers(objective, own) if manifest.maker == "items" else []
    labels, is_class = manifest.list_labels(), manifest.signature.target.kind == "classes"
    score_baseline = partial(_score_baseline, manifest, objective, [labels[index] for index in y.tolist()] if is_class else y)
    baseline = score_baseline(promotion.score)
    if baseline is None:
        return Judgement(None, None, answers)
    clusters = (
        manifest.find_clusters(manifest.load_test_rows(store), store)
        if split == "test"
        else manifest.load_identities(split, store).groups
    )
    measure = partial(
        decision.measure_lead, majority=baseline, settings=promotion, split=split, clusters=clusters, baseline=objective.baseline
    )
    reader = objective if tuning is None else build_objective(manifest.signature.target, tuning=tuning)
    scored, others = reader.score_rows(own, y, promotion.score), {} if outputs is None else load_outputs(outputs, store)
    scored_others = {kind: objective.score_rows(found, y, promotion.score) for kind, found in others.items()}
    lead, warning, reason = measure(scored), None, None
    if warning := lead.warn():
        leads = {kind: measure(found) for kind, found in scored_others.items()}
        reason = find_reason(lead, logs, best_epoch, settings.training, manifest.splits["train"].class_counts, leads)
    told = lead.model_dump() | {"warning": "; ".join(filter(None, [warning, reason])) or None, "reason": reason}
    if outputs is None:
        return Judgement(told, None, answers)
    of_baseline: dict[str, float | None] = (
        {"accuracy": _average(score_baseline("accuracy")), "loss": -_average(score_baseline("log_likelihood"))}
        if is_class
        else objective.measure(torch.zeros_like(y), y).list_figures()
    )
    metrics, of_others = reader.measure(own, y), {kind: objective.measure(found, y) for kind, found in others.items()}
    listed = {TITLES[kind]: found.list_figures() for kind, found in of_others.items()}
    figures = {str(objective.baseline): of_baseline, **listed, OURS: metrics.list_figures()}
    found = find_better(scored_others, scored, promotion, split, clusters)
    better = tell_better(found, of_others[found[0]] if found else None, metrics)
    return Judgement(told, Comparison(split=split, num_rows=len(y), figures=figures, better=better, outputs=outputs), answers)


def _score_baseline(manifest: Examples, objective: Objective, truth: Any, score: Score) -> Scores | None:
    """Score what knows the train targets alone: of classes their frequencies, given their names as the truth, else their mean."""
    if manifest.signature.target.kind != "classes":
        return score_without_inputs(objective, truth)
    return score_majority(truth, dict(zip(manifest.list_labels(), manifest.splits["train"].class_counts, strict=True)), score)


def _average(scores: Scores | None) -> float:
    return math.nan if scores is None else float(scores.mean())


def choose_score(manifest: Examples, settings: PromotionSettings) -> Score:
    """Choose how rows are scored: of classes as the settings say, of all else by the negative loss."""
    return settings.score if manifest.signature.target.kind == "classes" else "negative_loss"


def _build_judge(manifest: Examples, training: TrainingSettings) -> Objective:
    """Build what judges a model: classes by their probabilities, all else by the loss that it is trained by."""
    target = manifest.signature.target
    if target.kind == "classes":
        return Classification(tuple(manifest.list_labels()))
    return build_objective(target, training.loss, training.step)


def score_rows(model: Model, rows: Any, training: TrainingSettings = DEFAULTS.training) -> ScoredRows:
    """Score raw rows, those without classes by the loss or the step of the settings.

    A class that the model does not know is as likely as if one more train row had been of that class.

    Raises:
        RefitError: A row cannot be scored.
    """
    if model.manifest.signature.target.kind != "classes":
        objective = _build_judge(model.manifest, training)
        loader = build_ordered_loader(model.manifest.prepare(rows), model.manifest.read_target(rows))
        outputs, y = compute_outputs(model.module, loader, CPU, model.settings.compute.precision, objective.compute)
        refuse_non_finite_outputs(outputs, "test")
        return ScoredRows(model, None, outputs, y, model.manifest.list_labels(), objective)
    truth = np.array(model.manifest.read_truth(rows), object)
    logits = model.predict_logits(rows)
    refuse_non_finite_outputs(logits, "test")
    known = model.manifest.list_labels()
    labels = [*known, *sorted(set(truth) - set(known))]
    logits = _add_classes(logits, len(labels), model.manifest)
    places = {label: place for place, label in enumerate(labels)}
    objective = Classification((*labels,), tuning=model.tuning)
    return ScoredRows(model, truth, logits, torch.tensor([places[label] for label in truth]), labels, objective)


def _add_classes(logits: Tensor, num_classes: int, manifest: Examples) -> Tensor:
    """Add classes that no train row has."""
    share = logits.logsumexp(dim=1, keepdim=True) - math.log(manifest.splits["train"].rows)
    return torch.cat([logits, share.expand(-1, num_classes - logits.shape[1])], dim=1)


def _find_others(candidate: SavedModel, scored: ScoredRows, are_needed: bool, store: Store) -> dict[str, ScoredRows]:
    """Find what the candidate's neighbours gave for the test rows, by kind; raises StoreError if that is needed and lost."""
    content = read_record(store, candidate.name, candidate.version).get("neighbours")
    try:
        found = load_outputs(Comparison.model_validate(content).outputs, store) if content else {}
    except StoreError:
        if are_needed:
            raise
        return {}
    num_classes, manifest = len(scored.labels) if scored.truth is not None else 1, scored.model.manifest
    objective = scored.objective if scored.truth is None else Classification((*scored.labels,))
    return {
        kind: replace(scored, objective=objective, outputs=_add_classes(outputs, num_classes, manifest))
        for kind, outputs in found.items()
    }


def time_row(scored: ScoredRows, row: Any) -> float:
    """Measure the median time to score one raw row, in milliseconds."""
    seconds = []
    for _ in range(TIMES_TIMED):
        started = time.perf_counter()
        scored.score_one(row)
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def _find_alarm(champion: int | None, is_compared: bool, collapse: str | None, is_damaged: bool) -> Alarm | None:
    if champion is None:
        return None
    if is_damaged:
        return "damaged"
    return "collapsed" if collapse else None if is_compared else "incomparable"


def _list_scores(
    scored: ScoredRows, compared: RowScores, score: Score, is_fair: Mask, rows: Any, number: int, store: Store
) -> dict[str, float | None]:
    """List what is compared and the metrics on the fair rows, and the model's latency and size."""
    own, metrics = {say_score(score): float(compared.scores.mean())}, scored.measure(is_fair).list_scores()
    folder = version_folder(scored.model.settings.name, number)
    sizes = {path.removeprefix(f"{folder}/"): size for path, (size, _) in store.list_files([folder]).items()}
    return {
        # The loss of standardized numbers, as metrics have it, differs from model to model.
        **(metrics | own if isinstance(scored.objective, StandardizedNumber) else own | metrics),
        LATENCY: time_row(scored, rows[:1]),
        SIZE: (sizes["model.pt"] + sizes.get(FROZEN, 0)) / 1e6,
    }


def _count_rows(manifest: Examples) -> dict[str, int]:
    return {split: info.rows for split, info in manifest.splits.items()}
