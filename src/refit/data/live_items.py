"""Items of the user's data sets that are read when they are needed, here or in loader processes, with the same bits."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pickle import PicklingError
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from refit.data.inputs import Inputs, join_inputs, list_tensors, map_tensors
from refit.data.loaders import Batches, build_evaluation_loader, draw_rows
from refit.data.own_dataset import (
    PARTS,
    WHOLE,
    BadItem,
    ItemReader,
    NoRoom,
    OwnSource,
    describe_kind,
    describe_part,
    name_item,
    name_odd,
    refuse_open_files,
)
from refit.errors import DataError, SettingsError, TrainingError, first_line
from refit.runtime.accelerators import CPU, PINNING
from refit.runtime.forks import leave_at_once

LIVE_EVALUATION_SIZE = 64
"""Items that are evaluated at once."""
TRIES = 3
"""How often loader processes are started for a batch, if they are killed each time."""


@dataclass(frozen=True)
class LoaderOptions:
    """Who reads items; no bit depends on it."""

    num_workers: int = 0
    prefetch_factor: int = 2
    pin_memory: bool = False
    persistent_workers: bool = False


@dataclass(frozen=True)
class LiveItems:
    """The inputs of N items that are not read yet.

    Shape: parts, the places in `PARTS` of their data sets, and indices there: `(N,)`.
    """

    source: OwnSource
    parts: Tensor
    indices: Tensor
    datasets: Mapping[str, Any] | None = None
    """The data sets; None opens those of the source."""

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, rows: Tensor) -> "LiveItems":
        """Return some of the items."""
        return replace(self, parts=self.parts[rows], indices=self.indices[rows])

    def join(self, other: "LiveItems") -> "LiveItems":
        """Put other items of the same source after these."""
        return replace(self, parts=torch.cat([self.parts, other.parts]), indices=torch.cat([self.indices, other.indices]))

    def list_places(self, rows: Tensor) -> list[tuple[str, int]]:
        """List data set and index of some of the items."""
        return [(PARTS[part], index) for part, index in zip(self.parts[rows].tolist(), self.indices[rows].tolist(), strict=True)]


LOST = (RuntimeError, OSError, EOFError)
"""What PyTorch raises if a loader process has died, maybe while its tensors were on their way."""


def note_death(error: Exception, attempt: int, how_long: str) -> None:
    """Tell of loader processes that have died and are started anew; raise TrainingError if it was the last of the attempts.

    An error of another kind is raised as it is. What items raise is none: it comes as a BadItem.
    """
    is_named = "DataLoader worker" in str(error)
    if isinstance(error, RuntimeError) and not is_named:
        raise error
    problem = first_line(error) if is_named else f"what one sent did not arrive: {type(error).__name__}: {first_line(error)}"
    if attempt == TRIES - 1:
        raise TrainingError(
            f"loader.num_workers: expected loader processes that live {how_long}, found {TRIES} times that {problem};"
            " they may be short of memory, of shared memory (/dev/shm) or of open files (ulimit -n): lower loader.num_workers,"
            " loader.prefetch_factor or loader.batch_size; the same command goes on from here"
        ) from error
    warnings.warn(f"starting the loader processes anew: {problem}", stacklevel=3)


def begin(loader: DataLoader[Any], factory: str) -> Iterator[Any]:
    """Begin to read; raise SettingsError if processes that are started, not forked, cannot be sent the data sets."""
    try:
        return iter(loader)
    except (AttributeError, TypeError, PicklingError) as error:
        raise SettingsError(
            f"loader.num_workers: expected data sets of {factory} that can be sent to loader processes, found"
            f" {type(error).__name__}: {first_line(error)}; define functions and classes at the top of a module, not inside others"
            " or as a lambda, open files where an item is read, or set loader.num_workers to 0"
        ) from error


class ItemLoader(Batches):
    """Batches of items in any order, read ahead by loader processes if there are any, and sent to `device`.

    Args:
        items: Their inputs.
        batch_size: Items in a batch.
        drop_last: Whether a shorter last batch is left out.
        device: Where batches go.
        options: Who reads them.
        weights: Chance of each item to be drawn, `(N,)`; None shuffles.
    """

    def __init__(
        self,
        items: LiveItems,
        batch_size: int,
        drop_last: bool,
        device: torch.device,
        options: LoaderOptions,
        weights: Tensor | None = None,
    ) -> None:
        self.items, self.device, self.options, self.weights = items, device, options, weights
        self._epoch = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._reader = ItemReader(items.source, items.datasets)
        if options.num_workers:
            refuse_open_files(self._reader.datasets, items.source.factory)
        self._keys: list[tuple[int, list[tuple[str, int]]]] = []
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] | None = None
        self._next = -1
        self._usual: tuple[list[tuple[torch.Size, torch.dtype]], str, str] | None = None
        super().__init__(cast(Any, range(len(items))), batch_size=batch_size, drop_last=drop_last)

    def draw_order(self, epoch: int = 0) -> Tensor:
        """Draw the items of an epoch in the order of training, `(N,)` or fewer, with the draws of PyTorch's loader."""
        order = draw_rows(len(self.items), self.weights)[: len(self) * cast(int, self.batch_size)]
        self._turn_to(order, epoch)
        return self._order

    def _turn_to(self, order: Tensor, epoch: int) -> None:
        """Read in this order from now on; what was read ahead in the same one stays."""
        if epoch != self._epoch or not torch.equal(order, self._order):
            self._epoch, self._order, self._next = epoch, order, -1

    def gather_at(self, order: Tensor, first: int) -> tuple[Inputs, Tensor]:
        """Return the batch that begins at place `first` of an order; those after it are read ahead.

        Raises:
            DataError: An item cannot be read.
            TrainingError: Loader processes were killed again and again, or have no room to send what they read.
        """
        batch = self._read(order, first)
        if not isinstance(batch, BadItem) and self.items.source.collate is None:
            batch = self._find_odd(batch, order, first)
        if isinstance(batch, BadItem):
            self._stop()
            if self.items.source.max_bad_items:
                batch = replace(batch, remedy="it could be used when the data set was built: look for what changes it")
            raise self._reader.explain(batch)
        self._next = first + cast(int, self.batch_size)
        is_pinned = self.options.pin_memory and self.device.type in PINNING
        x, y = map_tensors(lambda part: part.to(self.device, non_blocking=is_pinned), batch)
        return x, y

    def _find_odd(self, batch: tuple[Inputs, Tensor], order: Tensor, first: int) -> tuple[Inputs, Tensor] | BadItem:
        """Return a batch, or what is odd about its items if they are of another kind than those of the first one."""
        shapes = [(part.shape[1:], part.dtype) for part in list_tensors(batch[0])]
        if self._usual is not None and shapes == self._usual[0]:  # in a twentieth of the time of what follows
            return batch
        kind = describe_kind(map_tensors(lambda part: part[0], batch[0]))
        ((part, index),) = self.items.list_places(order[first : first + 1])
        if self._usual is not None:
            return name_odd(part, index, kind, self._usual[2], self._usual[1])
        self._usual = shapes, kind, name_item(self._reader.datasets[part], index)
        return batch

    def name_non_finite(self, number: int) -> str | None:
        """Name an item of a batch of the epoch, counted from 1, that has inputs which are not finite, if there is one."""
        rows = self._order.split(cast(int, self.batch_size))[number - 1]
        for part, index in self.items.list_places(rows):
            item = self._reader.read_item(part, index, self._epoch)
            if not all(tensor.isfinite().all() for tensor in list_tensors(item)):
                return f"{name_item(self._reader.datasets[part], index)} of {describe_part(part)}"
        return None

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:  # type: ignore[override]
        """All items in order, as evaluation reads them; draws nothing."""
        order = torch.arange(len(self.items))
        self._turn_to(order, 0)
        self._next = -1
        for first in range(0, len(order), cast(int, self.batch_size)):
            yield self.gather_at(order, first)

    def _read(self, order: Tensor, first: int) -> Any:
        attempt = 0
        while True:
            if self._next != first or attempt:
                self._start(order[first:])
            try:
                found = next(cast(Iterator[Any], self._batches))
                break
            except LOST as error:
                self._stop()
                note_death(error, attempt, "as long as the epoch")
                attempt += 1
        if isinstance(found, NoRoom):
            self._stop()
            raise found.explain()
        return found

    def _start(self, order: Tensor) -> None:
        """Begin to read the batches of an order."""
        self._keys[:] = [(self._epoch, self.items.list_places(rows)) for rows in order.split(cast(int, self.batch_size))]
        if self._loader is None:
            workers = self.options.num_workers
            more: dict[str, Any] = {
                "prefetch_factor": self.options.prefetch_factor,
                "persistent_workers": self.options.persistent_workers,
            }
            self._loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=cast(Any, self._keys),
                collate_fn=_as_is,
                num_workers=workers,
                worker_init_fn=leave_at_once,
                pin_memory=self.options.pin_memory and self.device.type in PINNING,
                generator=torch.Generator(),  # the base seed, which nothing depends on, must not come from the global generator
                **(more if workers else {}),
            )
        self._batches = begin(self._loader, self.items.source.factory)

    def _stop(self) -> None:
        """End the loader processes, if there are any."""
        self._batches = self._loader = None
        self._next = -1


def join_splits(parts: Sequence[tuple[Inputs | LiveItems, Tensor]]) -> tuple[Inputs | LiveItems, Tensor]:
    """Put the examples of several splits one after the other."""
    xs, ys = zip(*parts, strict=True)
    if len(parts) == 1:
        return parts[0]
    x = reduce(LiveItems.join, xs) if isinstance(xs[0], LiveItems) else join_inputs(xs)
    return x, torch.cat(ys)


def build_ordered_loader(
    x: Inputs | LiveItems,
    y: Tensor,
    device: torch.device = CPU,
    is_crowded: bool = False,
    options: LoaderOptions = LoaderOptions(),
) -> Batches:
    """Build a loader of batches in the order of the examples, for a model on `device`, that leaves the global generator alone."""
    if isinstance(x, LiveItems):
        return ItemLoader(x, LIVE_EVALUATION_SIZE, drop_last=False, device=device, options=options)
    return build_evaluation_loader(x, y, device, is_crowded)


def as_items(rows: Any, source: OwnSource | None) -> Inputs | LiveItems:
    """Return a batch of inputs as it is, and a map-style data set of items, or of pairs of inputs and target, as its inputs.

    A `loader.collate` gets pairs, as in training; where an item has no target, 0 stands for it.

    Raises:
        DataError: It is neither, or has no items.
    """
    if isinstance(rows, Tensor | tuple | dict) or source is None:
        return rows
    if isinstance(rows, str) or not (hasattr(rows, "__getitem__") and hasattr(rows, "__len__")) or len(rows) == 0:
        found = "none" if hasattr(rows, "__len__") and len(rows) == 0 else f"a {type(rows).__name__}"
        raise DataError(f"expected items to predict, in a data set, or a batch of inputs as tensors, found {found}; give some")
    indices = torch.arange(len(rows))
    takes_pairs = source.has_targets and source.collate is not None
    return LiveItems(
        source.model_copy(update={"has_targets": takes_pairs}),
        torch.full_like(indices, PARTS.index(WHOLE)),
        indices,
        {WHOLE: _ToPredict(rows, takes_pairs)},
    )


class _ToPredict:
    """Items to predict: inputs alone, or with targets that nobody looks at."""

    def __init__(self, dataset: Any, takes_pairs: bool) -> None:
        self.dataset, self.takes_pairs = dataset, takes_pairs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        is_pair = isinstance(item, tuple | list) and len(item) == 2
        if self.takes_pairs:
            return item if is_pair else (item, 0)
        return item[0] if is_pair else item


def _as_is(batch: Any) -> Any:
    return batch
