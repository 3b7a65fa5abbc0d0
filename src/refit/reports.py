"""Pictures and the model card; knows numbers and names, not where they come from."""

import io
import warnings
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MAX_LABELLED_CLASSES = 20


def draw_losses(train_losses: Sequence[float], val_losses: Sequence[float | None]) -> bytes:
    """Draw mean train and validation loss by epoch; return a PNG."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="cross-entropy (nats)")
    epochs = range(1, len(train_losses) + 1)
    axes.plot(epochs, train_losses, marker="o", markersize=3, label="train")
    if None not in val_losses:
        axes.plot(epochs, val_losses, marker="o", markersize=3, label="val")  # type: ignore[arg-type]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.legend()
    return _to_png(figure)


def draw_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], split: str) -> bytes:
    """Draw a confusion matrix, true classes downwards; return a PNG."""
    size = 2.5 + 0.35 * min(len(labels), MAX_LABELLED_CLASSES)
    figure = Figure(figsize=(size + 0.5, size), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true", title=f"rows of {split}")
    axes.imshow(confusion, cmap="Blues")
    if len(labels) <= MAX_LABELLED_CLASSES:
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
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


def _render_cell(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # a class name may use a script that the font lacks
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
