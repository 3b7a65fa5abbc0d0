"""Reads items to the end: what identifies each, and its target."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from refit.data.identities import Hashes
from refit.data.inputs import list_tensors
from refit.data.live_items import LOST, begin, note_death
from refit.data.own_dataset import (
    BadItem,
    ItemReader,
    NoRoom,
    describe_kind,
    describe_part,
    find_id,
    find_no_room,
    name_item,
    refuse_open_files,
    share,
)
from refit.errors import first_line
from refit.runtime.forks import leave_at_once
from refit.texts import show

SECONDS_BETWEEN_LINES = 10.0
ITEMS_A_RUN = 16


@dataclass(frozen=True)
class Fact:
    """What is known of an item: a hash of its content, its target, `(…)`, if it has one, and what its inputs are."""

    hash: int
    target: Tensor | None
    item: Any
    kind: str
    is_finite: bool


class _Facts(Dataset[Any]):
    """The facts of items, read with the seeds of an epoch."""

    def __init__(self, reader: ItemReader, part: str, epoch: int, keep: bool) -> None:
        self.reader, self.part, self.epoch, self.keep = reader, part, epoch, keep

    def __len__(self) -> int:
        return len(self.reader.datasets[self.part])

    def __getitem__(self, index: int) -> Fact | BadItem | NoRoom:
        fact = self.reader.hold(lambda: self._read(index))
        try:
            if isinstance(fact, Fact):
                share([fact.item, fact.target])
        except RuntimeError as error:
            return find_no_room(error) or NoRoom(first_line(error))
        return fact

    def read_here(self, indices: Sequence[int]) -> Iterator[Fact | BadItem]:
        """Read items in runs, as to hold the generators for each would take longer than many items do."""
        for first in range(0, len(indices), ITEMS_A_RUN):
            run = indices[first : first + ITEMS_A_RUN]
            yield from self.reader.hold(lambda run=run: [self._read(index) for index in run])  # type: ignore[misc]

    def _read(self, index: int) -> Fact | BadItem:
        item, target = self.reader.draw_item(self.part, index, self.epoch), None
        if isinstance(item, BadItem):
            return item
        inputs = item
        if self.reader.source.has_targets:
            if not isinstance(item, tuple | list) or len(item) != 2:
                return self._refuse(index, _describe(item), "return both, or set training.step")
            inputs = item[0]
            with contextlib.suppress(TypeError, ValueError, KeyError):
                target = default_collate([item[1]])[0]
            if not isinstance(target, Tensor):
                found, is_text = f"the target {show(repr(item[1]))}", isinstance(item[1], str)
                return self._refuse(index, found, f"return {'the number of its class' if is_text else 'one'}, or set training.step")
        try:
            return Fact(hash_item(item), target, item if self.keep else None, describe_kind(inputs), is_finite(inputs))
        except (TypeError, RuntimeError, NotImplementedError) as error:  # of sparse tensors, or those of the device `meta`
            odd = (part for part in list_tensors(item) if part.is_meta or part.layout != torch.strided)
            kinds = (f"a {str(part.layout).removeprefix('torch.')} tensor on {part.device}" for part in odd)
            found = next(kinds, first_line(error))
            return BadItem(self.part, index, found, "return dense tensors that hold numbers, such as `x.to_dense()`")

    def _refuse(self, index: int, found: str, remedy: str) -> BadItem:
        return BadItem(self.part, index, found, remedy, "(inputs, target), the target a number or a tensor")


def read_facts(
    reader: ItemReader,
    part: str,
    report: Callable[[str], object],
    epoch: int = 0,
    num_workers: int = 0,
    keep: bool = False,
    indices: Sequence[int] | None = None,
) -> Iterator[Fact | BadItem]:
    """Read items of a data set in order.

    Args:
        reader: Opens and reads them.
        part: Which of the data sets.
        report: Receives a line now and then.
        epoch: With whose seeds they are read.
        num_workers: Processes that read them.
        keep: Whether facts have the items, their inputs as tensors.
        indices: Which items; None reads all.

    Raises:
        DataError: An item cannot be read, and none may be left out.
        TrainingError: Loader processes die again and again, or have no room to send what they read.
    """
    if num_workers:
        refuse_open_files(reader.datasets, reader.source.factory)
    facts = _Facts(reader, part, epoch, keep)
    indices = range(len(facts)) if indices is None else indices
    told = time.monotonic()
    found = _read_through(facts, indices, num_workers) if num_workers else facts.read_here(indices)
    for number, fact in enumerate(found, start=1):
        if isinstance(fact, BadItem) and not reader.source.max_bad_items:
            raise reader.explain(fact)
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            report(f"read {number:,} of {len(indices):,} items of {describe_part(part)}")
        yield fact


def _read_through(facts: _Facts, indices: Sequence[int], num_workers: int) -> Iterator[Fact | BadItem]:
    """Read facts in order; if a loader process dies, go on at the item that it did not give."""
    done = attempt = 0
    while done < len(indices):
        loader = DataLoader(
            facts,
            sampler=cast(Any, indices[done:]),
            batch_size=None,
            collate_fn=_as_is,
            num_workers=num_workers,
            worker_init_fn=leave_at_once,
            generator=torch.Generator(),
        )
        try:
            for fact in begin(loader, facts.reader.source.factory):
                if isinstance(fact, NoRoom):
                    raise fact.explain()
                yield fact
                done, attempt = done + 1, 0
        except LOST as error:
            named = name_item(facts.reader.datasets[facts.part], indices[done])
            note_death(error, attempt, f"until {named} of {describe_part(facts.part)} and those soon after it are read")
            attempt += 1


def is_finite(item: Any) -> bool:
    """Whether all numbers of an item are finite, however nested."""
    if isinstance(item, dict | tuple | list):
        return all(map(is_finite, item.values() if isinstance(item, dict) else item))
    if isinstance(item, float):
        return math.isfinite(item)
    item = torch.from_numpy(item) if isinstance(item, np.ndarray) and item.dtype.kind == "f" else item
    return not isinstance(item, Tensor) or bool(item.isfinite().all())


def hash_ids(dataset: Any) -> Hashes | None:
    """Hash what the data set calls each item; None if it does not."""
    if find_id(dataset, 0) is None:
        return None
    return np.array([hash_bytes(str(find_id(dataset, index)).encode()) for index in range(len(dataset))], np.uint64)


def hash_item(item: Any) -> int:
    """Hash the content of an item, however nested."""
    digest = hashlib.blake2b(digest_size=8)
    _add(digest, item)
    return int.from_bytes(digest.digest(), "little")


def hash_bytes(data: bytes) -> int:
    """Hash bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _add(digest: Any, item: Any) -> None:
    if isinstance(item, Tensor):
        item = item.detach().cpu().contiguous()
        item = (item.view(torch.int16) if item.dtype == torch.bfloat16 else item).numpy()
    if isinstance(item, np.ndarray):
        digest.update(f"{item.dtype}{item.shape}".encode())
        digest.update(np.ascontiguousarray(item).data)
    elif isinstance(item, dict):
        for name, value in item.items():
            digest.update(f"{name}:".encode())
            _add(digest, value)
    elif isinstance(item, tuple | list):
        digest.update(f"[{len(item)}".encode())
        for value in item:
            _add(digest, value)
    else:
        digest.update(f"{type(item).__name__} {item!r}".encode())


def _describe(item: Any) -> str:
    tensors = list_tensors(item)
    if isinstance(item, tuple | list):
        return f"{len(item)} parts"
    return f"a tensor of {tuple(tensors[0].shape)}" if tensors and isinstance(item, Tensor) else f"a {type(item).__name__}"


def _as_is(fact: Any) -> Any:
    return fact
