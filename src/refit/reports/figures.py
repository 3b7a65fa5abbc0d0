"""Pictures: losses by epoch, the confusion matrix, precision and recall, predictions and residuals of numbers."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from refit.reports.markdown import render_text
from refit.texts import escape_controls, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELLED_CLASSES = 20
MAX_LABEL_LENGTH = 24
IMAGES_A_LINE = 4


def embed_png(png: bytes, alt: str) -> str:
    """Return a Markdown image with the PNG embedded."""
    return f"![{render_text(alt)}](data:image/png;base64,{base64.b64encode(png).decode()})"


@dataclass(frozen=True)
class Bin:
    """Rows of which about the same number is predicted: mean prediction, mean true number, and quantiles of true less predicted."""

    predicted: float
    true: float
    low: float
    median: float
    high: float


def draw_losses(
    train_losses: Sequence[float],
    val_losses: Sequence[float | None],
    best_epoch: int | None = None,
    loss: str = "cross-entropy (nats)",
) -> bytes:
    """Draw mean train and validation loss by epoch, and a line at the best epoch, counted from 1; return a PNG."""
    from matplotlib.ticker import MaxNLocator

    figure = _build_figure(6, 3.5)
    axes = figure.add_subplot(xlabel="epoch", ylabel=loss)
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


def draw_curve(curve: Sequence[tuple[float, float]], share: float, split: str) -> bytes:
    """Draw precision over recall, and the share of the class as what chance would give; return a PNG."""
    figure = _build_figure(4.5, 3.5)
    axes = figure.add_subplot(xlabel="recall", ylabel="precision", title=f"rows of {split}", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.step([recall for recall, _ in curve], [precision for _, precision in curve], where="pre")
    axes.axhline(share, color="gray", linestyle="--", linewidth=1)
    return _to_png(figure)


def find_share(confusion: Sequence[Sequence[int]]) -> float:
    """Return the share of the rarest class."""
    counts = [sum(row) for row in confusion]
    return min(counts) / sum(counts)


def draw_predictions(bins: Sequence[Bin], split: str) -> bytes:
    """Draw mean true numbers over predictions, and residuals, with their middle nine tenths, over predictions; return a PNG."""
    figure = _build_figure(8, 3.5)
    left, right = figure.subplots(1, 2)
    predicted, medians = [part.predicted for part in bins], [part.median for part in bins]
    left.set(title=f"rows of {split}", xlabel="predicted", ylabel="true, mean")
    left.axline((predicted[0], predicted[0]), slope=1, color="gray", linestyle="--", linewidth=1)
    left.plot(predicted, [part.true for part in bins], marker="o")
    right.set(title=f"rows of {split}", xlabel="predicted", ylabel="true less predicted")
    right.axhline(0, color="gray", linestyle="--", linewidth=1)
    spans = [[part.median - part.low for part in bins], [part.high - part.median for part in bins]]
    right.errorbar(predicted, medians, yerr=spans, marker="o", linestyle="", capsize=3)
    return _to_png(figure)


def draw_images(images: Sequence[NDArray[np.float64]], captions: Sequence[str]) -> bytes:
    """Draw images, `(H, W)` or `(H, W, 3)` from 0 to 1, in rows of four with their captions; return a PNG."""
    num_lines = -(-len(images) // IMAGES_A_LINE)
    figure = _build_figure(6, 1.7 * num_lines)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        axes = figure.add_subplot(num_lines, IMAGES_A_LINE, place)
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(escape_controls(shorten(caption, MAX_LABEL_LENGTH)), fontsize=8, parse_math=False)
        axes.set_axis_off()
    return _to_png(figure)


def _build_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # 30 MB, loaded only if something is drawn

    return Figure(figsize=(width, height), layout="constrained")


def _to_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # a class name may use a script that the font lacks
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
