"""Finds what the targets of items are: classes, with their names, or numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from refit.data.own_dataset import ItemReader, OwnSource, describe_part
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
    return y.float() if y.is_floating_point() else y.long()


def find_target(dataset: Any, ys: Mapping[str, Tensor], source: OwnSource) -> Target:
    """Find what the targets of each split are.

    Args:
        dataset: The train data set, which may have `classes`, their names.
        ys: The targets of each split.
        source: Where they come from.

    Raises:
        DataError: A target is none of the classes, or train items of a class are missing.
    """
    y = ys["train"]
    if y.is_floating_point() or y.dim() > 1:
        raise DataError(
            f"data.factory: expected targets of {source.factory} that are classes, a whole number each, found {y.dtype} of"
            f" {tuple(y.shape[1:])}"
        )
    named = getattr(dataset, "classes", None)
    most = max(int(part.max()) for part in ys.values())
    classes = [str(name) for name in named] if named is not None else list(range(most + 1))
    for split, part in ys.items():
        odd = ((part < 0) | (part >= len(classes))).nonzero()
        if len(odd):
            known = f"{len(classes)} `classes`" if named is not None else "classes from 0 on"
            raise DataError(
                f"item {int(odd[0])} of the {split} split of {source.factory}: expected one of {known}, found"
                f" {int(part[odd[0]])}; number classes from 0"
            )
    lost = [str(label) for place, label in enumerate(classes) if not bool((y == place).any())]
    if lost and named is None:
        raise DataError(
            f"{describe_part('train')} of {source.factory}: expected items of every class, found none of {list_names(lost)};"
            " number classes from 0 without gaps, or add items"
        )
    return Target(name="target", classes=classes)
