"""Draws the losses so far as a small SVG, which is cheap enough to draw during training."""

import base64
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 640, 240, 28
MAX_POINTS = 200
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12"
  fill="#555">
<rect width="100%" height="100%" fill="white"/>
<path d="M{margin} {margin}V{bottom}H{right}" fill="none" stroke="#999"/>
<text x="4" y="16">{top:.3g}</text><text x="4" y="{foot}">0</text>
<text x="{margin}" y="{foot}">epoch 1</text><text x="{right}" y="{foot}" text-anchor="end">epoch {last}</text>
{lines}
</svg>"""
LINE = (
    '<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/><text x="{x}" y="16" fill="{colour}">{name}</text>'
)


def draw_curve(train_losses: Sequence[float], val_losses: Sequence[float | None]) -> str:
    """Draw the losses of epochs 1, 2, …; return a Markdown image with the picture embedded."""
    curves = [("train loss", "#1f77b4", [*train_losses])]
    if None not in val_losses:
        curves.append(("val loss", "#d95f02", [loss for loss in val_losses if loss is not None]))
    top = max(max(losses) for _, _, losses in curves) or 1.0
    lines = [
        LINE.format(points=_place(losses, top), colour=colour, x=WIDTH / 2 + 90 * number, name=name)
        for number, (name, colour, losses) in enumerate(curves)
    ]
    places = {"bottom": HEIGHT - MARGIN, "right": WIDTH - MARGIN, "foot": HEIGHT - 8}
    sizes = {"width": WIDTH, "height": HEIGHT, "margin": MARGIN}
    svg = SVG.format(**sizes, **places, top=top, last=len(train_losses), lines="\n".join(lines))
    return f"![loss by epoch](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _place(losses: Sequence[float], top: float) -> str:
    """List the points of a curve. Many epochs are thinned to evenly spaced ones and the last; a single epoch becomes a dash."""
    step = -(-len(losses) // MAX_POINTS)
    chosen = sorted({*range(0, len(losses), step), len(losses) - 1})
    across, up = (WIDTH - 2 * MARGIN) / max(1, len(losses) - 1), (HEIGHT - 2 * MARGIN) / top
    points = [f"{MARGIN + across * place:.1f},{HEIGHT - MARGIN - up * losses[place]:.1f}" for place in chosen]
    return " ".join(points if len(points) > 1 else [*points, f"{MARGIN + 8},{points[0].split(',')[1]}"])
