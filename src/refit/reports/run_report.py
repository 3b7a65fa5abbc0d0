"""Renders the report of a run as Markdown, with tables and pictures. Knows only numbers and names, not where they come from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from refit.reports.figures import Bin, draw_confusion, draw_curve, draw_losses, draw_predictions, embed_png, find_share
from refit.reports.markdown import quote, render_caution, render_name, render_table, render_text

if TYPE_CHECKING:
    pass

MAX_EPOCHS_SHOWN = 20
MAX_COLUMNS_SHOWN = 20
MAX_SLICES_SHOWN = 20
MAX_CATEGORIES_SHOWN = 5


@dataclass(frozen=True)
class EpochRow:
    """An epoch in a report."""

    epoch: int
    train_loss: float
    val_loss: float | None
    val_score: float | None
    seconds: float


@dataclass(frozen=True)
class DriftRow:
    """A column in a report: how far it has moved, how much of that chance could explain, and the verdict in a word."""

    column: str
    psi: float | None
    noise: float | None
    extent: str
    missing_before: float | None
    missing_now: float | None
    new_categories: Sequence[str] = ()


@dataclass(frozen=True)
class SliceRow:
    """A class or slice, its number of rows, and the share of them on which each of two models is right, or its mean score."""

    name: str
    num_rows: int
    candidate: float
    champion: float


@dataclass(frozen=True)
class WorstRow:
    """An item that the candidate is bad at, what is true of it, what is predicted, and how good that is by a measure."""

    item: str
    truth: str | None
    predicted: str | None
    score: float
    measure: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Content of a run's report. Empty fields are left out. Texts may have code spans, but no other Markdown."""

    headline: str
    context: str | None = None
    """When it was, and which run."""
    reason: str | None = None
    caution: str | None = None
    """Why the candidate is of little use, regardless of the decision."""
    scores: Mapping[str, Mapping[str, float | None]] | None = None
    """Metrics by model, the candidate first, then the models to compare with: `{"penguins@v8": {"accuracy": 0.97}}`."""
    num_scored: int | None = None
    """Number of rows behind the scores."""
    is_refitted: bool = False
    """Whether the candidate predicts with weights retrained on all rows, and the scores are of the weights before."""
    scored_on: str = "test"
    """Split of the scores, the slices and the confusion matrix."""
    worse_slices: Sequence[SliceRow] = ()
    """Classes and slices in which the candidate is right on fewer rows than the champion, or has a lower score."""
    not_judged: Sequence[str] = ()
    """Classes and slices with too few rows to show a drop."""
    epochs: Sequence[EpochRow] = ()
    best_epoch: int | None = None
    """Epoch whose weights were kept, counted from 1."""
    confusion: Sequence[Sequence[int]] | None = None
    """Rows by true class (first index) and predicted class (second index)."""
    labels: Sequence[str] = ()
    """Names of the classes."""
    curve: Sequence[tuple[float, float]] = ()
    """Recall and precision of a rare class."""
    bins: Sequence[Bin] = ()
    """The candidate's rows by predicted number."""
    worst: Sequence[WorstRow] = ()
    """Items, the worst first."""
    worst_png: bytes | None = None
    """Their picture."""
    rows_before: Mapping[str, int] | None = None
    """Rows of each split of the champion's data set."""
    rows_now: Mapping[str, int] | None = None
    drifts: Sequence[DriftRow] = ()
    """Columns, the ones that moved farthest first."""
    versions: Mapping[str, str] | None = None
    """Path or URL of each version."""
    earlier_looks: int | None = None
    """How many candidates the same test rows have judged before."""


def render_run_report(report: RunReport) -> str:
    """Render the report of a run as one Markdown text, its pictures inside."""
    sections = [
        f"# {render_text(report.headline)}",
        render_text(report.context or ""),
        render_text(report.reason or ""),
        render_caution(report.caution),
        _render_scores(report),
        _render_slices(report.worse_slices, has_classes=not report.bins),
        _render_not_judged(report.not_judged),
        _render_confusion(report),
        _render_predictions(report),
        _render_worst(report.worst, report.worst_png, report.scored_on),
        _render_data(report),
        _render_versions(report.versions),
        _render_looks(report.earlier_looks),
        _render_epochs(report.epochs, report.best_epoch, has_classes=report.confusion is not None),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _render_scores(report: RunReport) -> str:
    if not report.scores:
        return ""
    models = list(report.scores.values())
    names = [*map(render_name, report.scores)]
    header = ["metric", *["difference"] * (len(models) > 1), *names]
    metrics = dict.fromkeys(metric for scores in models for metric in scores)
    rows = [[metric, *_with_difference([scores.get(metric) for scores in models])] for metric in metrics]
    what = "" if report.num_scored is None else f"{report.num_scored:,} "
    both = f" The difference is {' minus '.join(map(render_name, list(report.scores)[:2]))}." if len(models) > 1 else ""
    table = f"## Scores\n\nOn the same {what}rows of {render_text(report.scored_on)}.{both}\n\n{render_table(header, rows)}"
    refitted = "\n\nThe candidate predicts with weights retrained on all rows. These scores are of the weights before."
    return table + refitted * report.is_refitted


def _render_slices(slices: Sequence[SliceRow], has_classes: bool) -> str:
    if not slices:
        return ""
    right = " right" * has_classes
    header = ["class or slice", "difference", f"candidate{right}", f"champion{right}", "rows"]
    rows = [
        [render_name(entry.name), *_with_difference([entry.candidate, entry.champion]), entry.num_rows]
        for entry in slices[:MAX_SLICES_SHOWN]
    ]
    return f"## Worse than the champion\n\n{render_table(header, rows)}{_render_rest(len(slices) - len(rows), 'slices')}"


def _render_not_judged(names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(map(render_name, names[:MAX_SLICES_SHOWN]))
    rest = f" and {len(names) - MAX_SLICES_SHOWN} more" if len(names) > MAX_SLICES_SHOWN else ""
    return f"Too few rows to tell whether it is worse: {shown}{rest}."


def _render_confusion(report: RunReport) -> str:
    if report.confusion is None:
        return ""
    png = draw_confusion(report.confusion, report.labels, report.scored_on)
    of = f"Of {next(map(render_name, report.scores))}.\n\n" if report.scores else ""
    confusion = f"## Confusion matrix\n\n{of}{embed_png(png, 'confusion matrix')}"
    if not report.curve:
        return confusion
    png = draw_curve(report.curve, find_share(report.confusion), report.scored_on)
    return f"{confusion}\n\n## Precision and recall\n\n{of}{embed_png(png, 'precision and recall')}"


def _render_predictions(report: RunReport) -> str:
    if not report.bins:
        return ""
    of = f"Of {next(map(render_name, report.scores))}.\n\n" if report.scores else ""
    png = draw_predictions(report.bins, report.scored_on)
    return f"## Predictions and residuals\n\n{of}{embed_png(png, 'predictions and residuals')}"


def _render_worst(worst: Sequence[WorstRow], png: bytes | None, split: str) -> str:
    if not worst:
        return ""
    picture = f"{embed_png(png, 'the items of the table, in rows, with truth and prediction')}\n\n" if png else ""
    names = [[None if name is None else render_name(name) for name in (row.item, row.truth, row.predicted)] for row in worst]
    table = _render_filled(
        ["item", "truth", "predicted", worst[0].measure], [[*it, row.score] for it, row in zip(names, worst, strict=True)]
    )
    return f"## Worst items of {render_text(split)}\n\n{picture}{table}"


def _render_data(report: RunReport) -> str:
    parts = ["## Data"]
    if report.rows_now is not None:
        before = report.rows_before or {}
        rows = [(split, before.get(split), report.rows_now.get(split)) for split in {**before, **report.rows_now}]
        parts.append(_render_filled(["rows of", "before", "now"], rows))
    if report.drifts:
        header = ["column", "PSI", "by chance", "change", "missing", "new categories"]
        parts.append(
            "PSI, the population stability index, measures how far a column has moved since the champion's data."
            " At least 19 in 20 unchanged columns stay within `by chance`."
        )
        drifts = [_list_drift(drift) for drift in report.drifts[:MAX_COLUMNS_SHOWN]]
        parts.append(_render_filled(header, drifts) + _render_rest(len(report.drifts) - len(drifts), "columns"))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _list_drift(drift: DriftRow) -> list[object]:
    psi, noise = (None if value is None else f"{value:.3f}" for value in (drift.psi, drift.noise))
    before, now = ("-" if share is None else f"{share:.1%}" for share in (drift.missing_before, drift.missing_now))
    has_missing = drift.missing_before or drift.missing_now
    categories = [render_name(category) for category in drift.new_categories[:MAX_CATEGORIES_SHOWN]]
    num_more = len(drift.new_categories) - len(categories)
    new = ", ".join(categories) + (f" and {num_more} more" if num_more else "")
    return [
        render_name(drift.column),
        psi,
        noise,
        drift.extent,
        f"{before}\u00a0→\u00a0{now}" if has_missing else None,
        new or None,
    ]


def _render_versions(versions: Mapping[str, str] | None) -> str:
    if not versions:
        return ""
    rows = [
        (render_name(name), f"<{place}>" if re.fullmatch(r"https?://[^\s<>|\\]+", place) else quote(place))
        for name, place in versions.items()
    ]
    return f"## Versions\n\n{render_table(['version', 'place'], rows)}"


def _render_epochs(epochs: Sequence[EpochRow], best_epoch: int | None, has_classes: bool) -> str:
    if not epochs:
        return ""
    # Two rows are left for the best epoch and the last.
    step = 1 if len(epochs) <= MAX_EPOCHS_SHOWN else -(-len(epochs) // (MAX_EPOCHS_SHOWN - 2))
    shown = {*range(0, len(epochs), step), len(epochs) - 1}
    rows = [
        (f"{log.epoch}, kept" if is_best else log.epoch, log.train_loss, log.val_loss, log.val_score, f"{log.seconds:.2g}")
        for i, log in enumerate(epochs)
        if (is_best := log.epoch == best_epoch) or i in shown
    ]
    table = _render_filled(["epoch", "train loss", "val loss", "val score", "seconds"], rows)
    losses = [log.train_loss for log in epochs], [log.val_loss for log in epochs], best_epoch
    png = draw_losses(*losses) if has_classes else draw_losses(*losses, "loss")
    some = f"{len(rows)} of {len(epochs)} epochs:\n\n" if len(rows) < len(epochs) else ""
    return f"## Epochs\n\n{embed_png(png, 'loss by epoch')}\n\n{some}{table}"


def _render_looks(earlier_looks: int | None) -> str:
    if earlier_looks is None:
        return ""
    times = {0: "no candidate", 1: "1 candidate"}.get(earlier_looks, f"{earlier_looks} candidates")
    advice = " The more they judge, the more often one wins by luck: fresh test rows help." if earlier_looks else ""
    return f"## Earlier looks at the test rows\n\nThese test rows have judged {times} before.{advice}"


def _render_filled(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Render a table without its empty columns."""
    is_filled = [any(cell is not None for cell in column) for column in zip(*rows, strict=True)]
    return render_table([*compress(header, is_filled)], [[*compress(row, is_filled)] for row in rows])


def _render_rest(num_more: int, what: str) -> str:
    return f"\n\nAnd {num_more} more {what}." if num_more else ""


def _with_difference(values: Sequence[float | None]) -> list[object]:
    """List how much higher the first score is than the second, then all scores; a narrow screen shows the first columns."""
    if len(values) < 2:
        return list(values)
    candidate, champion, *_ = values
    return [None if candidate is None or champion is None else f"{candidate - champion:+.4f}", *values]
