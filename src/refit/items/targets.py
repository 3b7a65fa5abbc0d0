"""Finds what the targets of items are: classes, with their names, or numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from refit.data.own_dataset import BadItem, ItemReader, OwnSource, describe_part, type_targets
from refit.data.profiles import Profile, profile_counts, profile_numbers
from refit.data.signature import Target
from refit.errors import DataError
from refit.texts import list_names

NUM_COMPARED = 3
MAX_PROFILED = 100
"""Most numbers or labels of a target whose distribution is kept."""


def read_targets(reader: ItemReader, part: str) -> Tensor | None:
    """Take the targets that a data set has as `targets`, torchvision's word; None if it has none, or its items have others."""
    dataset = reader.datasets[part]
    found = getattr(dataset, "targets", None)
    if found is None or not reader.source.has_targets or len(found) != len(dataset):
        return None
    try:
        y = found if isinstance(found, Tensor) else torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    for index in range(min(NUM_COMPARED, len(dataset))):
        item = reader.try_item(part, index)
        if isinstance(item, BadItem):  # which reading them all tells
            continue
        if (
            not isinstance(item, tuple | list)
            or len(item) != 2
            or not torch.equal(default_collate([item[1]])[0].to(y.dtype), y[index])
        ):
            return None
    return type_targets(y, reader.source)


@dataclass(frozen=True)
class BadTargets:
    """Targets that no model could learn, by their rows `(B,)`."""

    rows: Tensor
    expected: str
    remedy: str


def find_bad_targets(y: Tensor, num_classes: int | None, loss: str | None) -> BadTargets | None:
    """Find targets that are not finite, or neither the number of a class nor zeros and ones where they should be."""
    values = y.reshape(len(y), -1)
    is_bad, expected, remedy = ~values.isfinite(), "a finite target", "mend it"
    if loss == "binary" and y.dim() == 2:
        is_bad, expected = (values != 0) & (values != 1), "zeros and ones as the target, as training.loss is `binary`"
    elif not y.is_floating_point() and y.dim() == 1:
        is_bad = values < 0 if num_classes is None else (values < 0) | (values >= num_classes)
        known = "classes from 0 on" if num_classes is None else f"{num_classes} `classes`"
        expected, remedy = f"one of {known} as the target", "number classes from 0"
    rows = is_bad.any(dim=1).nonzero().flatten()
    return BadTargets(rows, expected, f"{remedy}, or leave such items out by data.max_bad_items") if len(rows) else None


def find_target(dataset: Any, ys: Mapping[str, Tensor], source: OwnSource, loss: str | None) -> Target:
    """Find what the targets of each split are: whole numbers are classes, others are numbers, unless the loss says otherwise.

    Args:
        dataset: The train data set, which may have `classes`, the names of classes or labels.
        ys: The targets of each split.
        source: Where they come from.
        loss: As `training.loss` names it.

    Raises:
        DataError: A target does not fit the others or the loss, or train items of a class are missing.
    """
    y = ys["train"]
    if not source.has_targets:
        return Target(name="loss", kind="none")
    centers = y.double().mean(dim=0).flatten().tolist()
    if loss == "binary":
        return _find_labels(dataset, ys, source, centers)
    if y.is_floating_point():
        if loss == "cross_entropy":
            raise DataError(
                f"training.loss: expected targets of {source.factory} that are whole numbers, found {y.dtype}; return classes as"
                " integers, or set it to `squared`"
            )
        return Target(name="target", kind="numbers", centers=centers)
    if y.dim() > 1:
        raise DataError(
            f"data.factory: expected one class for each item of {source.factory}, found {tuple(y.shape[1:])} whole numbers;"
            " return the class as one number, set training.loss to `binary` for several labels at once, or return numbers to"
            " predict as floats"
        )
    return _find_classes(dataset, ys, source)


def profile_targets(target: Target, y: Tensor) -> list[Profile]:
    """Profile targets `(N, …)`: the shares of classes, of each label, or each number, of many the first ones."""
    if target.kind == "none":
        return []
    if target.kind == "classes":
        counts = torch.bincount(y, minlength=len(target.classes)).tolist()
        return [profile_counts(target.name, dict(zip(map(str, target.classes), counts, strict=True)))]
    columns = y.reshape(len(y), -1).double().numpy().T[:MAX_PROFILED]
    if target.kind == "labels":
        sums = [int(column.sum()) for column in columns]
        pairs = zip(target.classes, sums, strict=False)
        return [profile_counts(str(label), {"true": count, "false": len(y) - count}) for label, count in pairs]
    names = [target.name if len(columns) == 1 else f"{target.name} {place}" for place in range(1, len(columns) + 1)]
    return [profile_numbers(name, column) for name, column in zip(names, columns, strict=True)]


def _find_labels(dataset: Any, ys: Mapping[str, Tensor], source: OwnSource, shares: list[float]) -> Target:
    for split, part in ys.items():
        if part.dim() != 2:
            raise DataError(
                f"training.loss: expected a vector of zeros and ones for each item of {source.factory}, as it is `binary`, found"
                f" targets of {tuple(part.shape[1:])} of the {split} split; return one number for each label"
            )
    named = getattr(dataset, "classes", None)
    classes = [str(name) for name in named] if named is not None else list(range(len(shares)))
    if len(classes) != len(shares):
        raise DataError(
            f"data.factory: expected as many `classes` as labels of {source.factory}, {len(shares)}, found {len(classes)}; name"
            " each"
        )
    return Target(name="target", kind="labels", classes=classes, centers=shares)


def _find_classes(dataset: Any, ys: Mapping[str, Tensor], source: OwnSource) -> Target:
    named = getattr(dataset, "classes", None)
    most = max(int(part.max()) for part in ys.values())
    classes = [str(name) for name in named] if named is not None else list(range(most + 1))
    if len(classes) < 2:
        raise DataError(
            f"data.factory: expected items of at least two classes from {source.factory}, found one; add items of others, or return"
            " numbers to predict as floats"
        )
    lost = [str(label) for place, label in enumerate(classes) if not bool((ys["train"] == place).any())]
    if lost and named is None:
        raise DataError(
            f"{describe_part('train')} of {source.factory}: expected items of every class, found none of {list_names(lost)};"
            " number classes from 0 without gaps, or add items"
        )
    return Target(name="target", classes=classes)
