"""Finds what the targets of items are: classes, with their names, or numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from refit.data.own_dataset import ItemReader, OwnSource, describe_part, type_targets
from refit.data.signature import Target
from refit.errors import DataError
from refit.texts import list_names

NUM_COMPARED = 3


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
        item = reader.read_item(part, index)
        if (
            not isinstance(item, tuple | list)
            or len(item) != 2
            or not torch.equal(default_collate([item[1]])[0].to(y.dtype), y[index])
        ):
            return None
    return type_targets(y, reader.source)


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
    for split, part in ys.items():
        if not bool(torch.isfinite(part).all()):
            odd = int((~torch.isfinite(part.reshape(len(part), -1)).all(dim=1)).nonzero()[0])
            raise DataError(
                f"item {odd} of the {split} split of {source.factory}: expected a finite target, found {part[odd].tolist()};"
                " mend it or leave the item out"
            )
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


def _find_labels(dataset: Any, ys: Mapping[str, Tensor], source: OwnSource, shares: list[float]) -> Target:
    for split, part in ys.items():
        odd = ((part != 0) & (part != 1)).reshape(len(part), -1).any(dim=1).nonzero()
        if part.dim() != 2 or len(odd):
            found = (
                f"targets of {tuple(part.shape[1:])}" if part.dim() != 2 else f"{part[int(odd[0])].tolist()} as item {int(odd[0])}"
            )
            raise DataError(
                f"training.loss: expected a vector of zeros and ones for each item of {source.factory}, as it is `binary`, found"
                f" {found} of the {split} split; return one number for each label"
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
    if most >= 0 and len(classes) < 2:
        raise DataError(
            f"data.factory: expected items of at least two classes from {source.factory}, found one; add items of others, or return"
            " numbers to predict as floats"
        )
    for split, part in ys.items():
        odd = ((part < 0) | (part >= len(classes))).nonzero()
        if len(odd):
            known = f"{len(classes)} `classes`" if named is not None else "classes from 0 on"
            raise DataError(
                f"item {int(odd[0])} of the {split} split of {source.factory}: expected one of {known}, found"
                f" {int(part[odd[0]])}; number classes from 0"
            )
    lost = [str(label) for place, label in enumerate(classes) if not bool((ys["train"] == place).any())]
    if lost and named is None:
        raise DataError(
            f"{describe_part('train')} of {source.factory}: expected items of every class, found none of {list_names(lost)};"
            " number classes from 0 without gaps, or add items"
        )
    return Target(name="target", classes=classes)
