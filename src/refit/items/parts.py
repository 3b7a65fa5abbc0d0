"""Reads one of the user's data sets as far as training needs to know it, and finds the items that cannot be used."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from refit.data.identities import Hashes, number_copies
from refit.data.inputs import Inputs, list_tensors, map_tensors
from refit.data.own_dataset import (
    WHOLE,
    BadItem,
    ItemReader,
    describe_part,
    find_odd,
    name_item,
    name_odd,
    type_targets,
)
from refit.errors import DataError
from refit.items.digests import BAD, FIRST_PASS, find_digest
from refit.items.kept import NOTHING, Kept
from refit.items.reading import Fact, hash_ids, hash_item, read_facts
from refit.items.targets import find_bad_targets, read_targets
from refit.runtime.limits import find_free_memory
from refit.settings import SettingsTree

NUM_COMPARED = 16
Report = Callable[[str], object]


@dataclass(frozen=True)
class Part:
    """The N items of a data set that can be used, of M.

    Args:
        name: Its split, or `all`.
        indices: Their indices in the data set, `(N,)`.
        hashes: What identifies each, `(N,)`.
        y: Their targets, `(N, …)`.
        contents: Hashes of what all items hold, `(M,)`; None if not all were read.
        x: Their inputs, if they are to be frozen.
        keys: Hashes of what each depends on, `(N,)`, if they are kept for the next data set.
        kind: What their inputs are.
    """

    name: str
    indices: Tensor
    hashes: Hashes
    y: Tensor
    contents: Hashes | None = None
    x: Inputs | None = None
    keys: Hashes | None = None
    kind: str = ""


class LeftOut:
    """Collects the items of all data sets that cannot be used: the first is an error, unless some may be left out."""

    def __init__(self, reader: ItemReader) -> None:
        self.reader, self.most = reader, reader.source.max_bad_items
        self.items: list[BadItem] = []

    def add(self, item: BadItem) -> None:
        """Leave an item out; raise DataError if none may be."""
        if not self.most:
            raise self.reader.explain(item)
        self.items.append(item)

    def check(self) -> None:
        """Raise DataError if there are too many."""
        if len(self.items) > self.most:
            raise DataError(
                f"{self.reader.explain(self.items[0])}; {len(self.items)} of {self._count()} items cannot be used, and"
                f" data.max_bad_items, which is {self.most}, leaves out no more than that"
            )

    def describe(self) -> list[str]:
        """A line for all, and one for each."""
        if not self.items:
            return []
        lines = [f"left out {len(self.items)} of {self._count()} items, which cannot be used (data.max_bad_items: {self.most})"]
        for item in self.items:
            named = name_item(self.reader.datasets[item.part], item.index)
            lines.append(f"left out: {named} of {describe_part(item.part)}, found {item.reason}")
        return lines

    def _count(self) -> int:
        return sum(map(len, self.reader.datasets.values()))


def read_part(
    reader: ItemReader,
    name: str,
    settings: SettingsTree,
    report: Report,
    warn: Report,
    left_out: LeftOut,
    kept: Kept = NOTHING,
    keys: Hashes | None = None,
) -> Part:
    """Read what a data set does not tell by itself: its items, if they are frozen or checked, or nothing else says what they hold.

    Args:
        reader: Opens and reads the data sets.
        name: The data set.
        settings: Of the run.
        report: Receives lines about progress.
        warn: Receives lines about odd items.
        left_out: Takes the items that cannot be used.
        kept: Items that an earlier data set has kept.
        keys: What each item depends on, if that is known, `(M,)`.

    Raises:
        DataError: An item cannot be used, and none may be left out, or items cannot be kept for `data.cache`.
    """
    dataset, targets, ids = reader.datasets[name], read_targets(reader, name), hash_ids(reader.datasets[name])
    if ids is not None:
        _tell_equal_ids(ids, name, reader, warn)
    is_given = bool(settings.data.inputs) or find_digest(dataset) is not None
    is_frozen = settings.data.cache or (not is_given and settings.loader.collate is None)
    loss = settings.training.loss
    if is_given and not is_frozen and not left_out.most and targets is not None and ids is not None:
        return _drop_bad_targets(Part(name, torch.arange(len(ids)), ids, targets), reader, loss, left_out)
    known = kept.take(reader, name, keys)
    if known:
        report(f"data.cache: {len(known):,} of {len(dataset):,} items of {describe_part(name)} are kept, reading the others")
    facts, items = _read_all(reader, name, settings, report, is_frozen, known)
    contents = np.array([BAD if isinstance(fact, BadItem) else fact.hash for fact in facts], np.uint64)
    good = _find_good(facts, name, reader, left_out, warn)
    found = [cast(Fact, facts[index]) for index in good]
    indices = torch.tensor(good, dtype=torch.int64)
    y = _stack_targets(found, indices, name, reader, warn) if targets is None else targets[indices]
    hashes = (contents if ids is None else ids)[indices.numpy()]
    x = _stack([items[index] for index in good], reader) if len(items) == len(facts) else None
    keys = None if keys is None or x is None else keys[indices.numpy()]
    kind = found[0].kind if found else ""
    part = _drop_bad_targets(Part(name, indices, hashes, y, contents, x, keys, kind), reader, loss, left_out)
    if settings.data.cache:
        _refuse_uncached(reader, part, known)
    return part


def _read_all(
    reader: ItemReader, name: str, settings: SettingsTree, report: Report, keep: bool, known: Mapping[int, Fact]
) -> tuple[list[Fact | BadItem], list[Any]]:
    """Read the facts of all items, and, to keep, the items; none if they take more than a quarter of the free memory."""
    facts, items = list[Fact | BadItem](), list[Any]()
    room = find_free_memory() // 4 if keep else -1
    indices = [index for index in range(len(reader.datasets[name])) if index not in known]
    new = read_facts(reader, name, report, num_workers=settings.loader.num_workers, keep=keep, indices=indices)
    for index in range(len(reader.datasets[name])):
        fact = known[index] if index in known else next(new)
        item = None if isinstance(fact, BadItem) else fact.item
        item = _as_tensors(item, reader) if known and index not in known else item
        room -= sum(part.nbytes for part in list_tensors(item))
        if room >= 0:
            items.append(item)
        else:
            items.clear()
        facts.append(fact if isinstance(fact, BadItem) else replace(fact, item=None))
    return facts, items


def _find_good(facts: Sequence[Fact | BadItem], name: str, reader: ItemReader, left_out: LeftOut, warn: Report) -> list[int]:
    """List the items that can be used, and leave out the others."""
    bad = {index: fact for index, fact in enumerate(facts) if isinstance(fact, BadItem)}
    known = {index: fact for index, fact in enumerate(facts) if isinstance(fact, Fact)}
    places = list(known)
    if reader.source.collate is None and places:
        usual, odd = find_odd([fact.kind for fact in known.values()])
        for place in odd:
            index, other = places[place], places[usual]
            bad[index] = name_odd(name, index, known[index].kind, f"item {other}", known[other].kind)
    shapes = [() if fact.target is None else tuple(fact.target.shape) for fact in known.values()]
    usual, odd = find_odd(shapes) if shapes else (0, [])
    for place in odd:
        index, expected = places[place], f"a target of {shapes[usual]}, as of item {places[usual]}"
        bad[index] = BadItem(name, index, str(shapes[place]), "make targets of one shape, or set training.step", expected)
    infinite = [index for index, fact in known.items() if not fact.is_finite and index not in bad]
    if infinite and left_out.most:
        bad |= {index: BadItem(name, index, "NaN or infinite numbers") for index in infinite}
    elif infinite:  # which may be meant; later, nobody knows which item they are of
        found = f"{len(infinite)} of {len(facts)} items, first in {name_item(reader.datasets[name], infinite[0])}"
        warn(f"{describe_part(name)}: NaN or infinite numbers in the inputs of {found}")
    for index in sorted(bad):
        left_out.add(bad[index])
    return [index for index in places if index not in bad]


def _tell_equal_ids(ids: Hashes, name: str, reader: ItemReader, warn: Report) -> None:
    numbers = number_copies(ids)
    copies = np.flatnonzero(numbers)
    if len(copies):
        first = name_item(reader.datasets[name], int(copies[0]))
        warn(
            f"{describe_part(name)}: {len(copies)} of {len(ids)} items have the id of an earlier one, first {first}: those of"
            " one id go to one side, and count as copies of one item"
        )


def _drop_bad_targets(part: Part, reader: ItemReader, loss: str | None, left_out: LeftOut) -> Part:
    """Leave out the items whose targets are out of line."""
    if not reader.source.has_targets:
        return part
    named: Any = getattr(reader.datasets["train" if part.name != WHOLE else WHOLE], "classes", None)
    bad = find_bad_targets(part.y, None if named is None else len(named), loss)
    if bad is None:
        return part
    for row in bad.rows.tolist():
        found = f"the target {part.y[row].tolist()}"
        left_out.add(BadItem(part.name, int(part.indices[row]), found, bad.remedy, bad.expected))
    rows = torch.from_numpy(np.setdiff1d(np.arange(len(part.y)), bad.rows.numpy()))
    return replace(
        part,
        indices=part.indices[rows],
        hashes=part.hashes[rows.numpy()],
        y=part.y[rows],
        keys=None if part.keys is None else part.keys[rows.numpy()],
        x=None if part.x is None else map_tensors(lambda tensor: tensor[rows], part.x),
    )


def _as_tensors(item: Any, reader: ItemReader) -> Any:
    """Turn the inputs of an item into tensors, as those of kept items are."""
    has_targets = reader.source.has_targets and item is not None
    with contextlib.suppress(TypeError, ValueError, RuntimeError):
        x = map_tensors(lambda part: part[0], default_collate([item[0] if has_targets else item]))
        return (x, None) if has_targets else x
    return item


def _stack(items: Sequence[Any], reader: ItemReader) -> Inputs | None:
    """Make one batch of the inputs of all items; None if they do not have the same shapes."""
    try:
        x = default_collate([item[0] for item in items] if reader.source.has_targets else [*items])
    except (RuntimeError, TypeError, ValueError):
        return None
    x = tuple(x) if isinstance(x, list) else x
    return x if list_tensors(x) else None


def _stack_targets(facts: Sequence[Fact], indices: Tensor, name: str, reader: ItemReader, warn: Report) -> Tensor:
    """Stack targets of one shape; zeros stand for those that items do not have."""
    if not reader.source.has_targets:
        return torch.zeros(len(facts), dtype=torch.int64)
    ys = [cast(Tensor, fact.target) for fact in facts]
    fractions = [place for place, y in enumerate(ys) if y.is_floating_point()]
    if 0 < len(fractions) < len(ys) and not reader.source.has_numbers:
        first = name_item(reader.datasets[name], int(indices[fractions[0]]))
        warn(
            f"{describe_part(name)}: {len(fractions)} of {len(ys)} targets are fractions, first that of {first}, the others whole"
            " numbers: all are numbers to predict; for classes, return whole numbers alone"
        )
    return type_targets(torch.stack(ys), reader.source)


def _refuse_uncached(reader: ItemReader, part: Part, known: Mapping[int, Fact]) -> None:
    """Refuse items that cannot be kept as tensors: they differ in shape, do not fit into memory, or are random."""
    what = describe_part(part.name)
    if part.x is None:
        raise DataError(
            f"data.cache: expected items of one shape, which fit into memory together, in {what}, found others; set it to false"
        )
    indices = [index for index in part.indices.tolist() if index not in known]
    for index in indices[:: max(1, len(indices) // NUM_COMPARED)]:
        if hash_item(reader.read_item(part.name, index, FIRST_PASS)) != cast(Hashes, part.contents)[index]:
            raise DataError(
                f"data.cache: expected items that are the same whenever they are read, found that"
                f" {name_item(reader.datasets[part.name], index)} of {what} is random; set it to false"
            )
