"""Pictures, tables, and the report of a run as Markdown and HTML; knows numbers and names, not where they come from."""

import base64
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt

from refit.texts import escape_controls, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELLED_CLASSES = 20
MAX_EPOCHS_SHOWN = 20
MAX_COLUMNS_SHOWN = 20
MAX_SLICES_SHOWN = 20
MAX_CATEGORIES_SHOWN = 5
MAX_NAME_LENGTH = 60
MAX_LABEL_LENGTH = 24

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #d0d7de; --shade: #f3f5f7; --link: #0969da }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #3d444d; --shade: #1f242b; --link: #6cb6ff }} }}
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif }}
h1, h2 {{ line-height: 1.25; overflow-wrap: anywhere }}
h2 {{ margin-top: 2.2rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }}
a {{ color: var(--link) }}
table {{ display: block; overflow-x: auto; width: max-content; max-width: 100%; border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; border: 1px solid var(--line); text-align: left; font-variant-numeric: tabular-nums }}
th {{ background: var(--shade); white-space: nowrap }}
code {{ padding: .1rem .3rem; border-radius: 4px; background: var(--shade); font-size: 90%; overflow-wrap: break-word }}
@media (max-width: 30rem) {{
  th, td {{ padding: .2rem .35rem; font-size: 80% }}
  th {{ white-space: normal }}
  td:first-child {{ min-width: 6rem; overflow-wrap: anywhere }}
}}
img {{ max-width: 100%; border-radius: 6px; background: white }}
</style>
</head>
<body>
{body}</body>
</html>
"""


@dataclass(frozen=True)
class EpochRow:
    """What a report shows of an epoch."""

    epoch: int
    train_loss: float
    val_loss: float | None
    val_score: float | None
    seconds: float


@dataclass(frozen=True)
class DriftRow:
    """What a report shows of a column: how far it has moved, what chance could explain of that, and the two in a word."""

    column: str
    psi: float | None
    noise: float | None
    extent: str
    missing_before: float | None
    missing_now: float | None
    new_categories: Sequence[str] = ()


@dataclass(frozen=True)
class SliceRow:
    """A class or slice, its number of rows, and the share of them on which each of two models is right."""

    name: str
    num_rows: int
    candidate: float
    champion: float


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run has to tell; what is None or empty is left out. Texts may have code spans, and no other Markdown."""

    headline: str
    context: str | None = None
    """When it was, and which run."""
    reason: str | None = None
    caution: str | None = None
    """Why the candidate is of little use, whatever was decided."""
    scores: Mapping[str, Mapping[str, float | None]] | None = None
    """Metrics by model, the candidate first, then what it was compared with: `{"penguins@v8": {"accuracy": 0.97}}`."""
    num_scored: int | None = None
    """Rows that the scores are of."""
    is_refitted: bool = False
    """Whether the candidate predicts with other weights than the scores are of: trained anew on all rows."""
    scored_on: str = "test"
    """Split that the scores, the slices and the confusion matrix are of."""
    worse_slices: Sequence[SliceRow] = ()
    """Where the candidate is right on fewer rows than the champion."""
    not_judged: Sequence[str] = ()
    """Classes and slices with too few rows to show a drop."""
    epochs: Sequence[EpochRow] = ()
    best_epoch: int | None = None
    """Epoch whose weights were kept, counted from 1."""
    confusion: Sequence[Sequence[int]] | None = None
    """Rows by true class (first index) and predicted class (second index)."""
    labels: Sequence[str] = ()
    """Names of the classes."""
    rows_before: Mapping[str, int] | None = None
    """Rows of each split of the champion's data set."""
    rows_now: Mapping[str, int] | None = None
    drifts: Sequence[DriftRow] = ()
    """Columns, those that moved farthest first."""
    versions: Mapping[str, str] | None = None
    """Where each version is: a path or a URL."""
    earlier_looks: int | None = None
    """How many candidates the same test rows have judged before."""


def render_run_report(report: RunReport) -> str:
    """Render the report of a run as one Markdown text, its pictures inside."""
    sections = [
        f"# {_render_text(report.headline)}",
        _render_text(report.context or ""),
        _render_text(report.reason or ""),
        render_caution(report.caution),
        _render_scores(report),
        _render_slices(report.worse_slices),
        _render_not_judged(report.not_judged),
        _render_confusion(report),
        _render_data(report),
        _render_versions(report.versions),
        _render_looks(report.earlier_looks),
        _render_epochs(report.epochs, report.best_epoch),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def render_html(markdown: str, title: str) -> str:
    """Render Markdown as one page that needs no other file; HTML in it is shown as text."""
    return PAGE.format(title=html.escape(title), body=MarkdownIt("js-default").render(markdown))


def embed_png(png: bytes, alt: str) -> str:
    """Return a Markdown image that holds the PNG itself."""
    return f"![{_render_text(alt)}](data:image/png;base64,{base64.b64encode(png).decode()})"


def render_name(name: object, max_length: int = MAX_NAME_LENGTH) -> str:
    """Render a name from data as a code span, shortened: no link, picture or tag in it becomes one."""
    return _quote(shorten(str(name), max_length))


def render_caution(text: str | None) -> str:
    """Render a warning as one sentence; nothing where there is none."""
    return f"**Caution:** {_render_text(text)}." if text else ""


def draw_losses(train_losses: Sequence[float], val_losses: Sequence[float | None], best_epoch: int | None = None) -> bytes:
    """Draw mean train and validation loss by epoch, and a line at the best, counted from 1; return a PNG."""
    from matplotlib.ticker import MaxNLocator

    figure = _build_figure(6, 3.5)
    axes = figure.add_subplot(xlabel="epoch", ylabel="cross-entropy (nats)")
    epochs = range(1, len(train_losses) + 1)
    axes.plot(epochs, train_losses, marker="o", markersize=3, label="train")
    if None not in val_losses:
        axes.plot(epochs, val_losses, marker="o", markersize=3, label="val")  # type: ignore[arg-type]
    if best_epoch is not None:
        axes.axvline(best_epoch, color="gray", linestyle="--", linewidth=1, label=f"epoch {best_epoch}, kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
    return _to_png(figure)


def draw_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], split: str) -> bytes:
    """Draw a confusion matrix, true classes downwards; return a PNG."""
    size = 2.5 + 0.35 * min(len(labels), MAX_LABELLED_CLASSES)
    figure = _build_figure(size + 0.5, size)
    axes = figure.add_subplot(xlabel="predicted", ylabel="true", title=f"rows of {split}")
    axes.imshow(confusion, cmap="Blues")
    if len(labels) <= MAX_LABELLED_CLASSES:
        shown = [escape_controls(shorten(label, MAX_LABEL_LENGTH)) for label in labels]
        axes.set_xticks(range(len(labels)), shown, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), shown, parse_math=False)
        darkest = max(map(max, confusion))
        for i, row in enumerate(confusion):
            for j, count in enumerate(row):
                axes.text(j, i, str(count), ha="center", va="center", color="white" if count > darkest / 2 else "black")
    return _to_png(figure)


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Render a Markdown table; floats with four decimals."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_render_cell(cell) for cell in line)} |" for line in lines)


def render_fields(fields: Mapping[str, object]) -> str:
    """Render a Markdown list of names and values."""
    return "\n".join(f"- **{name}**: {_render_cell(value)}" for name, value in fields.items())


def _render_scores(report: RunReport) -> str:
    if not report.scores:
        return ""
    models = list(report.scores.values())
    names = [*map(render_name, report.scores)]
    header = ["metric", *["difference"] * (len(models) > 1), *names]
    metrics = dict.fromkeys(metric for scores in models for metric in scores)
    rows = [[metric, *_with_difference([scores.get(metric) for scores in models])] for metric in metrics]
    what = "" if report.num_scored is None else f"{report.num_scored:,} "
    both = f" The difference is that of {' and '.join(map(render_name, list(report.scores)[:2]))}." if len(models) > 1 else ""
    table = f"## Scores\n\nOn the same {what}rows of {_render_text(report.scored_on)}.{both}\n\n{render_table(header, rows)}"
    refitted = "\n\nThe candidate predicts with other weights than these scores are of: trained anew on all rows."
    return table + refitted * report.is_refitted


def _render_slices(slices: Sequence[SliceRow]) -> str:
    if not slices:
        return ""
    header = ["class or slice", "difference", "candidate right", "champion right", "rows"]
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
    return f"## Confusion matrix\n\n{of}{embed_png(png, 'confusion matrix')}"


def _render_data(report: RunReport) -> str:
    parts = ["## Data"]
    if report.rows_now is not None:
        before = report.rows_before or {}
        rows = [(split, before.get(split), report.rows_now.get(split)) for split in {**before, **report.rows_now}]
        parts.append(_render_filled(["rows of", "before", "now"], rows))
    if report.drifts:
        header = ["column", "PSI", "by chance", "change", "missing", "new categories"]
        parts.append(
            "PSI, the population stability index, says how far a column has moved since the champion's data."
            " Of columns that have not changed, 19 in 20 or more stay within `by chance`."
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
        (render_name(name), f"<{place}>" if re.fullmatch(r"https?://[^\s<>|\\]+", place) else _quote(place))
        for name, place in versions.items()
    ]
    return f"## Versions\n\n{render_table(['version', 'place'], rows)}"


def _render_epochs(epochs: Sequence[EpochRow], best_epoch: int | None) -> str:
    if not epochs:
        return ""
    # Two places are left for the best and the last.
    step = 1 if len(epochs) <= MAX_EPOCHS_SHOWN else -(-len(epochs) // (MAX_EPOCHS_SHOWN - 2))
    shown = {*range(0, len(epochs), step), len(epochs) - 1}
    rows = [
        (f"{log.epoch}, kept" if is_best else log.epoch, log.train_loss, log.val_loss, log.val_score, f"{log.seconds:.2g}")
        for i, log in enumerate(epochs)
        if (is_best := log.epoch == best_epoch) or i in shown
    ]
    table = _render_filled(["epoch", "train loss", "val loss", "val score", "seconds"], rows)
    png = draw_losses([log.train_loss for log in epochs], [log.val_loss for log in epochs], best_epoch)
    some = f"{len(rows)} of {len(epochs)} epochs:\n\n" if len(rows) < len(epochs) else ""
    return f"## Epochs\n\n{embed_png(png, 'loss by epoch')}\n\n{some}{table}"


def _render_looks(earlier_looks: int | None) -> str:
    if earlier_looks is None:
        return ""
    times = {0: "no candidate", 1: "1 candidate"}.get(earlier_looks, f"{earlier_looks} candidates")
    advice = " The more they judge, the more often one wins by luck: fresh test rows help." if earlier_looks else ""
    return f"## Earlier looks at the test rows\n\nThese test rows have judged {times} before.{advice}"


def _render_filled(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without the columns that are empty."""
    is_filled = [any(cell is not None for cell in column) for column in zip(*rows, strict=True)]
    return render_table([*compress(header, is_filled)], [[*compress(row, is_filled)] for row in rows])


def _render_rest(num_more: int, what: str) -> str:
    return f"\n\nAnd {num_more} more {what}." if num_more else ""


def _with_difference(values: Sequence[float | None]) -> list[object]:
    """How much higher the first score is than the second, where a narrow screen shows it, and all scores."""
    if len(values) < 2:
        return list(values)
    candidate, champion, *_ = values
    return [None if candidate is None or champion is None else f"{candidate - champion:+.4f}", *values]


def _render_text(text: str) -> str:
    """One line of text, its code spans kept, all else that Markdown would act on escaped."""
    parts = re.split(r"(`[^`]+`)", escape_controls(" ".join(text.split())))
    return "".join(part if i % 2 else re.sub(r"[\\\[\]<*_`|]", r"\\\g<0>", part) for i, part in enumerate(parts))


def _quote(text: str) -> str:
    """A code span, with a fence longer than any in the text."""
    text = escape_controls(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if not text or "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _render_cell(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = text.replace("\\|", "\\ |")  # Markdown dialects read two backslashes before a bar in two ways
    return text.replace("|", "\\|").replace("\n", " ")


def _build_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # 30 MB, loaded only where something is drawn

    return Figure(figsize=(width, height), layout="constrained")


def _to_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # a class name may use a script that the font lacks
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
