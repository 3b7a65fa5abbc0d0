"""Finds the test items that a candidate is worst on, for people to look at."""

import base64
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refit.data.examples import Examples, RawItems
from refit.data.identities import Rows
from refit.data.live_items import build_ordered_loader
from refit.data.signature import Signature
from refit.refs import Handle
from refit.reports import figures
from refit.store.store import Store
from refit.training.objective import Classification, Objective, RowScores
from refit.training.objectives import Labels, Numbers

MAX_WORST = 12
MIN_SIDE, MAX_SIDE = 4, 64
"""Smaller tensors are no images; of larger ones, pixels are left out."""
MAX_NUMBERS = 3
IMAGE_TYPES = ("float16", "float32", "float64", "uint8")


class WorstItem(Handle):
    """An item with a low score, what is true of it, and what is predicted, in words."""

    item: str
    truth: str | None
    predicted: str | None
    score: float
    """Of a class, the probability of the true one; else the negative loss."""


def find_worst(
    manifest: Examples,
    objective: Objective,
    outputs: Tensor,
    y: Tensor,
    rows: Any,
    fair: Rows,
    scored: RowScores,
    store: Store,
) -> tuple[list[WorstItem], str]:
    """Find the fair test items with the lowest scores, the lowest first, and draw them if they are images.

    Args:
        manifest: The data set.
        objective: What outputs say.
        outputs: Of the candidate, `(N, …)`.
        y: Targets, `(N, …)`.
        rows: The N test examples.
        fair: The numbers of M of them.
        scored: The scores of these, `(M,)`.
        store: Where the data set is.

    Returns:
        Nothing for a table; the picture is a PNG in base64, or empty.
    """
    if manifest.maker != "items":
        return [], ""
    scores = scored.scores
    if isinstance(objective, Classification):
        scores = outputs[fair].double().softmax(dim=1)[torch.arange(len(fair)), y[fair]].numpy()
    order = np.argsort(scores, kind="stable")[:MAX_WORST]
    worst = fair[order]
    names = manifest.name_examples("test", worst.tolist(), store)
    words = [(_tell(objective, y[row : row + 1]), _tell_prediction(objective, outputs[row : row + 1])) for row in worst]
    found = [
        WorstItem(item=name, truth=truth, predicted=predicted, score=float(score))
        for name, (truth, predicted), score in zip(names, words, scores[order], strict=True)
    ]
    if not is_image(manifest.signature):
        return found, ""
    captions = [" → ".join(filter(None, pair)) or name for name, pair in zip(names, words, strict=True)]
    png = figures.draw_images(_read_images(rows[worst]), captions)
    return found, base64.b64encode(png).decode()


def is_image(signature: Signature) -> bool:
    """Whether items look like images: one tensor `(H, W)`, `(1, H, W)` or `(3, H, W)`."""
    if [*signature.tensors] != ["x"]:
        return False
    spec = signature.tensors["x"]
    *channels, height, width = spec.shape if len(spec.shape) in (2, 3) else (0, 0, 0)
    sides = [size for size in (height, width) if size is not None]
    return spec.dtype in IMAGE_TYPES and channels in ([], [1], [3]) and min(sides, default=MIN_SIDE) >= MIN_SIDE


def _tell(objective: Objective, y: Tensor) -> str | None:
    """Say what the target of one item is; None if it has none."""
    if isinstance(objective, Classification):
        return str(objective.classes[int(y)])
    if isinstance(objective, Labels):
        return ", ".join(str(label) for label, is_so in zip(objective.classes, y[0] > 0.5, strict=True) if is_so) or "none"
    return _list_numbers(y) if isinstance(objective, Numbers) else None


def _tell_prediction(objective: Objective, outputs: Tensor) -> str | None:
    if isinstance(objective, Classification):
        return str(objective.classes[int(outputs.argmax())])
    if isinstance(objective, Labels):
        return _tell(objective, objective.answer(outputs)[0].float())
    return _list_numbers(objective.answer(outputs)[0]) if isinstance(objective, Numbers) else None


def _list_numbers(values: Tensor) -> str:
    numbers = values.flatten()
    return ", ".join(f"{number:.4g}" for number in numbers[:MAX_NUMBERS].tolist()) + ", …" * (len(numbers) > MAX_NUMBERS)


def _read_images(items: RawItems) -> list[NDArray[np.float64]]:
    x, _ = next(iter(build_ordered_loader(items.x, items.y)))
    return [scale_image(image) for image in x]


def scale_image(image: Tensor) -> NDArray[np.float64]:
    """Return an image as `(H, W)` or `(H, W, 3)`, from 0 to 1, thinned out if it is large."""
    pixels = image.double().numpy()
    pixels = np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels
    step = -(-max(pixels.shape[:2]) // MAX_SIDE)
    pixels = (pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)[::step, ::step]
    low, high = pixels.min(), pixels.max()
    if image.dtype == torch.uint8 or (low >= 0 and high <= 1):
        low, high = 0, 255 if image.dtype == torch.uint8 else 1
    scaled: NDArray[np.float64] = (pixels - low) / (high - low or 1)
    return scaled
