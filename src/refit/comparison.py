"""Scores candidate and champion on the same raw rows, without those that only the champion has learned from, and decides."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from refit.data.dataset import Manifest, convert_rows, load_identities, load_test_rows
from refit.data.hashes import Hashes
from refit.data.profiles import Drift, compare_profiles
from refit.data.schema import check_columns
from refit.data.sources import read_names
from refit.errors import DataError, RefitError
from refit.evaluation import Metrics, compute_metrics, refuse_non_finite_logits
from refit.inference import Model, load_model
from refit.ledger import record_opening
from refit.promotion import Decision, Score, Scores, decide, score_majority
from refit.refs import Handle, Ref, SavedModel
from refit.registry import check_version, version_folder
from refit.settings import DataSettings, PromotionSettings
from refit.store import Store

LEARNED_FROM = ("train", "val")
TIMES_TIMED = 30
LATENCY, SIZE = "milliseconds a row", "megabytes"

Mask = NDArray[np.bool_]


class Verdict(Handle):
    """What comparing a candidate with the champion gave."""

    decision: Decision
    reason: str
    """The decision's, and what a reader must know besides."""
    num_left_out: int
    """Test rows that the champion has learned from."""
    earlier_looks: int
    """Versions that the same test rows had judged before."""
    scores: dict[str, dict[str, float | None]]
    """Metrics by model, the candidate first."""
    labels: list[str]
    confusion: list[list[int]]
    """The candidate's rows by true class (first index) and predicted class (second index)."""
    rows_before: dict[str, int] | None
    """Rows of each split of the champion's data set."""
    rows_now: dict[str, int]
    drifts: list[Drift]
    """How far columns have moved since the champion's data set."""

    @property
    def figures(self) -> str:
        """The reason without the decision that it begins with, as that may be a person's."""
        return self.reason.partition(": ")[2]


@dataclass(frozen=True)
class ScoredRows:
    """What a model gave for N raw rows. A class that it does not know is one more of its C classes.

    Shape: truth and hashes `(N,)`, logits `(N, C)`, y `(N,)`.
    """

    model: Model
    truth: pl.Series
    hashes: Hashes
    logits: Tensor
    y: Tensor
    labels: list[str]

    def measure(self, rows: Mask) -> Metrics:
        """Compute the metrics of some of the rows."""
        chosen = torch.from_numpy(rows)
        return compute_metrics(self.logits[chosen], self.y[chosen], self.labels)

    def score(self, score: Score) -> Scores:
        """Score each row: 1 for right and 0 for wrong, or the log probability of the true class."""
        if score == "accuracy":
            return (self.logits.argmax(dim=1) == self.y).double().numpy()
        return self.logits.double().log_softmax(dim=1).gather(1, self.y[:, None])[:, 0].numpy()

    def score_majority(self, score: Score) -> Scores:
        """Score each row as a model would that knows only how many train rows each class has."""
        counts = dict(zip(self.labels, self.model.manifest.splits["train"].class_counts, strict=True))
        return score_majority(self.truth.to_numpy(), counts, score)

    def find_learned(self, store: Store) -> Mask:
        """Find the rows that the model has learned from; raises StoreError if what it has learned from is gone."""
        manifest = self.model.manifest
        hashes = [load_identities(manifest, split, store).hashes for split in LEARNED_FROM if split in manifest.splits]
        return np.isin(self.hashes, np.concatenate(hashes))


def check_slices(promotion: PromotionSettings, data: DataSettings) -> None:
    """Raise DataError for what `compare` would find of `promotion.slices` only once the candidate is trained."""
    if promotion.slices:
        source = data.test_source or data.source
        check_columns("promotion.slices", promotion.slices, read_names(source), source)


def compare(candidate: SavedModel, champion: int | None, settings: PromotionSettings, store: Store) -> Verdict:
    """Score both on the candidate's test rows, each through its own preparation of columns, and decide.

    A champion that is damaged, or cannot score these rows, is no champion: the candidate must then beat the majority class.

    Args:
        candidate: A version whose data set is whole.
        champion: Number of the version to beat; None takes the majority class.
        settings: What decides.
        store: Where both are.

    Raises:
        DataError: There are no test rows that the champion has not learned from, or no such column as a slice names.
        RefitError: The candidate cannot score its own test rows.
    """
    model = load_model(candidate.path)
    rows = load_test_rows(model.manifest, store)
    check_columns("promotion.slices", settings.slices, rows.columns, "the table")
    test_rows = cast(Ref, model.manifest.test_rows)
    earlier_looks = record_opening(store, candidate.name, candidate.version, test_rows.digest)
    scored = score_rows(model, rows)
    rival, manifest, problem = _score_champion(candidate.name, champion, rows, store)
    is_fair = np.ones(rows.height, bool) if rival is None else find_fair_rows(scored, rival, store)
    num_left_out = int((~is_fair).sum())
    left_out = f"without {num_left_out} row{'s' * (num_left_out > 1)} that the champion has learned from" if num_left_out else None
    scores = {candidate.reference: _list_scores(scored, is_fair, rows, candidate.version, store)}
    if rival is not None and champion is not None:
        scores[f"{candidate.name}@v{champion}"] = _list_scores(rival, is_fair, rows, champion, store)
    decision = _decide(scored, rival, rows, is_fair, scores[candidate.reference], settings)
    return Verdict(
        decision=decision,
        reason="; ".join(filter(None, [decision.reason, left_out, problem])),
        num_left_out=num_left_out,
        earlier_looks=earlier_looks,
        scores=scores,
        labels=scored.labels,
        confusion=scored.measure(is_fair).confusion,
        rows_before=None if manifest is None else _count_rows(manifest),
        rows_now=_count_rows(model.manifest),
        drifts=[] if manifest is None else compare_profiles(manifest.profiles, model.manifest.profiles),
    )


def score_rows(model: Model, rows: pl.DataFrame) -> ScoredRows:
    """Score raw rows; a class that the model does not know is as likely as if one of its n train rows more had been of it.

    Raises:
        RefitError: A row cannot be scored.
    """
    truth, hashes, _ = convert_rows(model.manifest, rows)
    logits = model.predict_logits(rows)
    refuse_non_finite_logits(logits, "test")
    known = pl.Series(model.manifest.classes).cast(pl.String).to_list()
    unknown = sorted(set(truth) - set(known))
    if unknown:
        share = logits.logsumexp(dim=1, keepdim=True) - math.log(model.manifest.splits["train"].rows)
        logits = torch.cat([logits, share.expand(-1, len(unknown))], dim=1)
    labels = [*known, *unknown]
    y = truth.replace_strict(labels, range(len(labels)), return_dtype=pl.Int64)
    return ScoredRows(model, truth, hashes, logits, torch.tensor(y.to_numpy()), labels)


def find_fair_rows(candidate: ScoredRows, champion: ScoredRows, store: Store) -> Mask:
    """Find the rows that the champion has not learned from, or that both have, as a row can be in a table twice.

    Raises:
        DataError: There are none.
        StoreError: What the champion has learned from is gone.
    """
    is_fair = ~(champion.find_learned(store) & ~candidate.find_learned(store))
    if not is_fair.any():
        raise DataError(
            f"expected test rows that the champion has not learned from, found none among {len(is_fair)};"
            " add rows, or divide them as before, by the same seed and settings of data"
        )
    return is_fair


def find_slices(rows: pl.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, Mask]]:
    """Name the rows of each value of each column."""
    for column in columns:
        values = rows[column].cast(pl.String)
        for value in values.unique().sort():
            name = f"{column} is missing" if value is None else f"{column} = {value}"
            yield name, values.eq_missing(value).to_numpy()


def time_row(model: Model, rows: pl.DataFrame) -> float:
    """Median time to score one raw row, in milliseconds."""
    seconds = []
    for _ in range(TIMES_TIMED):
        started = time.perf_counter()
        model.predict_proba(rows[:1])
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def _score_champion(
    name: str, number: int | None, rows: pl.DataFrame, store: Store
) -> tuple[ScoredRows | None, Manifest | None, str | None]:
    """What the champion gives for the rows, its data set, and what is wrong with it; None for what there is not."""
    if number is None:
        return None, None, None
    manifest = None
    try:
        check_version(store, name, number)
        model = load_model(store.location(version_folder(name, number)))
        manifest = model.manifest
        scored = score_rows(model, rows)
        scored.find_learned(store)
    except RefitError as error:
        return None, manifest, f"{name}@v{number} is no match, as it cannot score these rows: {error}"
    return scored, manifest, None


def _decide(
    scored: ScoredRows,
    rival: ScoredRows | None,
    rows: pl.DataFrame,
    is_fair: Mask,
    costs: Mapping[str, float | None],
    settings: PromotionSettings,
) -> Decision:
    baseline = scored.score_majority(settings.score) if rival is None else rival.score(settings.score)
    return decide(
        scored.truth.filter(is_fair).to_numpy(),
        scored.score(settings.score)[is_fair],
        baseline[is_fair],
        score=settings.score,
        confidence=settings.confidence,
        min_effect=settings.min_effect,
        max_drop=settings.max_drop,
        latency_ms=costs[LATENCY] or 0.0,
        size_mb=costs[SIZE] or 0.0,
        max_latency_ms=settings.max_latency_ms,
        max_size_mb=settings.max_size_mb,
        slices={name: mask[is_fair] for name, mask in find_slices(rows, settings.slices)},
        is_first=rival is None,
    )


def _list_scores(scored: ScoredRows, is_fair: Mask, rows: pl.DataFrame, number: int, store: Store) -> dict[str, float | None]:
    """Metrics on the fair rows, and what the model costs."""
    metrics = scored.measure(is_fair)
    folder = version_folder(scored.model.settings.name, number)
    return {
        "accuracy": metrics.accuracy,
        "log likelihood": -metrics.loss,
        "ROC AUC": metrics.roc_auc,
        "calibration error": metrics.calibration_error,
        LATENCY: time_row(scored.model, rows),
        SIZE: store.list_files([folder])[f"{folder}/model.pt"][0] / 1e6,
    }


def _count_rows(manifest: Manifest) -> dict[str, int]:
    return {split: info.rows for split, info in manifest.splits.items()}
