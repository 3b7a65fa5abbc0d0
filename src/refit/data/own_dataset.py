"""The user's own data sets: opened by the factory that the settings name, and read in batches of items."""

import io
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from refit.code import importing_from_here
from refit.data.inputs import Inputs, list_tensors
from refit.data.own_functions import convert_options, import_function
from refit.data.seeded import Seeding
from refit.errors import DataError, RefitError, SettingsError, TrainingError, first_line
from refit.runtime.randomness import putting_generators_back, seed_everything
from refit.settings import SettingsTree
from refit.texts import list_names

T = TypeVar("T")
SPLITS = ("train", "val", "test")
WHOLE = "all"
"""Stands for the one data set that a factory returns, which is divided."""
PARTS = (*SPLITS, WHOLE)


class OwnSource(BaseModel):
    """What opens the user's data sets, and how their items become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str
    options: dict[str, Any]
    seed: int
    """With epoch and index, it seeds each item."""
    collate: str | None = None
    has_targets: bool = True
    """Whether an item is `(inputs, target)`; a step of the user's own may take other items."""
    has_numbers: bool = False
    """Whether whole numbers among the targets are numbers to predict, not classes."""
    max_bad_items: int = 0
    """Items that are left out if they cannot be used, at most; with 1 or more, all are read when the data set is built."""

    def open(self) -> dict[str, Any]:
        """Open the data sets by split; the last ones opened are kept, as opening may take long.

        Raises:
            SettingsError: The factory cannot be called, or does not return map-style data sets.
            DataError: One of them has no items.
        """
        return _open(self.model_dump_json())


def check_source(source: OwnSource | None, settings: SettingsTree) -> None:
    """Raise SettingsError for functions of a stored record that settings do not name: whoever can write there could name any."""
    if source is None or settings.store.trust:
        return
    named = {"data.factory": settings.data.factory, "loader.collate": settings.loader.collate}
    for setting, function in {"data.factory": source.factory, "loader.collate": source.collate}.items():
        if function is not None and function != named[setting]:
            raise SettingsError(
                f"{setting}: expected `{named[setting]}`, as set here, found a stored data set of `{function}`, which would be"
                " called; set it to that if you know it, or trust the store by store.trust"
            )


given_digests: dict[int, str | None] = {}
"""What the methods `digest` of the opened data sets have returned, by the identity of the data set."""


@lru_cache(maxsize=1)
def _open(source_json: str) -> dict[str, Any]:
    given_digests.clear()
    source = OwnSource.model_validate_json(source_json)
    factory = import_function(source.factory, "data.factory")
    options = convert_options(factory, source.factory, source.options, "data.options")
    with importing_from_here(), putting_generators_back():
        seed_everything(source.seed)  # a factory that divides at random does so alike in each process
        try:
            found = factory(**options)
        except RefitError:
            raise
        except Exception as error:
            named = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise SettingsError(
                f"data.factory: expected {source.factory}({named}) to return a data set, found {type(error).__name__}: {error};"
                " correct the function, or give its arguments by data.options"
            ) from error
    return _check(found, source.factory)


def forget_datasets() -> None:
    """Open data sets anew when they are next asked for, as the files that they read may have changed."""
    _open.cache_clear()
    given_digests.clear()


def _check(found: Any, name: str) -> dict[str, Any]:
    """Return data sets by split, and a single one as `all`."""
    datasets = dict(found) if isinstance(found, Mapping) else {WHOLE: found}
    if isinstance(found, tuple | list) and any(isinstance(part, Dataset) for part in found):
        raise SettingsError(
            f"data.factory: expected {name} to return one data set, or a mapping of `train`, `test` and, if there is one, `val`,"
            f" found a {type(found).__name__} of {len(found)}; say which is which"
        )
    if WHOLE not in datasets and not {"train"} <= datasets.keys() <= {*SPLITS}:
        raise SettingsError(
            f"data.factory: expected {name} to return one data set, or a mapping of `train`, `test` and, if there is one, `val`,"
            f" found {list_names(map(str, datasets)) or 'an empty mapping'}; rename them"
        )
    for split, dataset in datasets.items():
        is_iterable = isinstance(dataset, IterableDataset)
        if is_iterable or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            kind = "an IterableDataset" if is_iterable else f"a {type(dataset).__name__}"
            raise SettingsError(
                f"data.factory: expected a map-style data set, with `__len__` and `__getitem__`, from {name}, found {kind}"
                f"{'' if split == WHOLE else f' as {split}'}; give each item by its index, so that items can be shuffled and an"
                " interrupted epoch can go on"
            )
        if _count(dataset, describe_part(split), name) == 0:
            raise DataError(f"{describe_part(split)} of {name}: expected items, found none; look at its files and options")
    return {split: datasets[split] for split in PARTS if split in datasets}


def _count(dataset: Any, what: str, name: str) -> int:
    """Count the items of a data set and their ids, which must be as many."""
    try:
        num_items = len(dataset)
    except Exception as error:
        raise DataError(
            f"{what} of {name}: expected a number of items from `__len__`, found {type(error).__name__}: {error}; correct it"
        ) from error
    ids: Any = getattr(dataset, "ids", None)
    if hasattr(ids, "__len__") and len(ids) != num_items:
        raise DataError(f"{what} of {name}: expected `ids` of each of its {num_items} items, found {len(ids)}; name each item")
    return num_items


HANDLES = {
    *(("h5py", name) for name in ("File", "Group", "Dataset")),
    ("builtins", "Environment"),  # lmdb's
    ("netCDF4", "Dataset"),
    ("sqlite3", "Connection"),
    ("tarfile", "TarFile"),
    ("zipfile", "ZipFile"),
}
"""Open files of other packages, by package and class."""


def refuse_open_files(datasets: Mapping[str, Any], name: str) -> None:
    """Raise SettingsError for an open file, whose place the loader processes would share: one reads where another has moved to."""
    for split, dataset in datasets.items():
        for attribute, value in getattr(dataset, "__dict__", {}).items():
            kind = type(value).__module__.partition(".")[0], type(value).__name__
            if (isinstance(value, io.IOBase) or kind in HANDLES) and not getattr(value, "closed", False):
                raise SettingsError(
                    f"loader.num_workers: expected data sets that loader processes can share, found the open file `{attribute}`"
                    f" in {describe_part(split)} of {name}; open it where an item is read, or set loader.num_workers to 0"
                )


def describe_part(part: str) -> str:
    """Name one of the user's data sets."""
    return "the data set" if part == WHOLE else f"the {part} data set"


def name_item(dataset: Any, index: int) -> str:
    """Name an item by its index and, if the data set tells it, its id or file."""
    found = find_id(dataset, index)
    return f"item {index}" if found is None else f"item {index} ({found})"


def find_id(dataset: Any, index: int) -> str | None:
    """Find what the data set calls an item: its entry of `ids`, or the path in `samples` below `root`, as torchvision has them.

    What else attributes of these names may hold, such as texts or tensors, tells no items apart.
    """
    ids: Any = getattr(dataset, "ids", None)
    if hasattr(ids, "__len__"):
        return str(ids[index]) if isinstance(ids[index], str | Integral | PathLike) else None
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    sample = None if samples is None else samples[index]
    if not isinstance(sample, tuple | list) or not sample or not isinstance(sample[0], str | PathLike):
        return None
    path = str(sample[0])
    return path if root is None else path.removeprefix(str(root)).lstrip("/")


TO_COLLATE = "return tensors of one shape and type, or set loader.collate"


@dataclass(frozen=True)
class BadItem:
    """Why an item, or a batch that begins with it, cannot be used."""

    part: str
    index: int
    reason: str
    remedy: str = "mend its file or the data set, or leave such items out by data.max_bad_items"
    expected: str = "inputs and target"


@dataclass(frozen=True)
class NoRoom:
    """Why a loader process cannot send what it has read."""

    reason: str

    def explain(self) -> TrainingError:
        """Make the error for it."""
        return TrainingError(
            f"loader.num_workers: expected room to send items from loader processes, found {self.reason}; give more shared memory"
            " (/dev/shm, --shm-size of a container) or more open files (ulimit -n), or lower loader.num_workers,"
            " loader.prefetch_factor or loader.batch_size; the same command goes on from here"
        )


def find_no_room(error: Exception) -> NoRoom | None:
    """Find out whether an error says that there is no room to send tensors."""
    signs = ("shared memory", "(shm)", "Too many open files")
    return NoRoom(first_line(error)) if any(sign in str(error) for sign in signs) else None


def share(x: Any) -> None:
    """Move the tensors that a loader process is to send to where it sends them from, as sending them does.

    If that fails later, in a thread, nobody is told, and who reads waits forever (torch 2.13).
    """
    if get_worker_info() is not None:
        for part in list_tensors(x):
            if part.layout == torch.strided and part.device.type == "cpu":
                part.share_memory_()


class ItemReader(Dataset[Any]):
    """Reads batches: for epoch, part and indices, the collated items, each with generators seeded for it.

    In place of inputs and targets, it returns a BadItem, or in a loader process NoRoom, where it cannot give them. Collating
    draws from seeded generators, too, so that a batch does not depend on who makes it.
    """

    def __init__(self, source: OwnSource, datasets: Mapping[str, Any] | None = None) -> None:
        self.source, self.datasets = source, source.open() if datasets is None else datasets
        self.collate = default_collate if source.collate is None else import_function(source.collate, "loader.collate")
        self._seeding = Seeding(source.seed)

    def __getitem__(self, key: tuple[int, Sequence[tuple[str, int]]]) -> Any:
        return self.hold(lambda: self._read_batch(*key))

    def hold(self, read: Callable[[], T]) -> T:
        """Return what `read` does, which draws items, and put the generators back afterwards; it may be called twice."""
        return self._seeding.read(read)

    def _read_batch(self, epoch: int, places: Sequence[tuple[str, int]]) -> Any:
        items = []
        for part, index in places:
            item = self.draw_item(part, index, epoch)
            if isinstance(item, BadItem):
                return item
            items.append(item)
        usual, odd = find_odd([_find_kind(item) for item in items]) if self.source.collate is None else (0, [])
        if odd:
            part, index = places[odd[0]]
            other = f"item {places[usual][1]}"
            return name_odd(part, index, describe_kind(items[odd[0]]), other, describe_kind(items[usual]))
        try:
            batch = as_batch(self.collate(items), len(items), self.source)
            share(batch)
            return batch
        except Exception as error:
            if no_room := find_no_room(error):
                return no_room
            reason = f"a batch of {len(items)} items from this one on cannot be made: {type(error).__name__}: {error}"
            return BadItem(*places[0], reason, TO_COLLATE)

    def try_item(self, part: str, index: int, epoch: int = 0) -> Any:
        """Read one item as the data set gives it, or return the BadItem that says why it cannot be read."""
        return self.hold(lambda: self.draw_item(part, index, epoch))

    def read_item(self, part: str, index: int, epoch: int = 0) -> Any:
        """Read one item as the data set gives it.

        Raises:
            DataError: It cannot be read.
        """
        item = self.try_item(part, index, epoch)
        if isinstance(item, BadItem):
            raise self.explain(item)
        return item

    def draw_item(self, part: str, index: int, epoch: int) -> Any:
        """Do what `try_item` does, while the generators are held."""
        self._seeding.seed_item(epoch, index)
        try:
            return self.datasets[part][index]
        except Exception as error:
            counted = f", where `__len__` counts {len(self.datasets[part])} items" if isinstance(error, IndexError) else ""
            return BadItem(part, index, f"{type(error).__name__}: {error}{counted}")

    def explain(self, bad: BadItem) -> DataError:
        """Make the error for an item that cannot be used."""
        named = name_item(self.datasets[bad.part], bad.index)
        return DataError(
            f"{named} of {describe_part(bad.part)} of {self.source.factory}: expected {bad.expected}, found {bad.reason};"
            f" {bad.remedy}"
        )


def find_odd(kinds: Sequence[Hashable]) -> tuple[int, list[int]]:
    """Find the first item of the kind that most items have, and all items of other kinds."""
    if all(kind == kinds[0] for kind in kinds):
        return 0, []
    most, _ = Counter(kinds).most_common(1)[0]
    return kinds.index(most), [place for place, kind in enumerate(kinds) if kind != most]


def name_odd(part: str, index: int, kind: str, usual: str, usual_kind: str) -> BadItem:
    """Say how an item differs from a usual one."""
    return BadItem(part, index, f"{kind}, where {usual} is {usual_kind}", TO_COLLATE)


def _find_kind(item: Any) -> Hashable:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], int):
        return ((item[0].shape, item[0].dtype),)  # as below, in half the time
    return tuple((part.shape, part.dtype) if isinstance(part, Tensor | np.ndarray) else len(part) for part in _list_parts(item))


def describe_kind(item: Any) -> str:
    """Name type and shape of each tensor, array or list of an item, which those of one batch must have in common."""
    kinds = [
        f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
        if isinstance(part, Tensor | np.ndarray)
        else f"a {type(part).__name__} of {len(part)}"
        for part in _list_parts(item)
    ]
    return ", ".join(kinds) or ("a number" if isinstance(item, int | float) else f"a {type(item).__name__}")


def list_arrays(item: Any) -> list[Any]:
    """List the tensors and arrays of an item, however nested."""
    return [part for part in _list_parts(item) if isinstance(part, Tensor | np.ndarray)]


def _list_parts(item: Any) -> list[Any]:
    """List tensors and arrays, and lists and tuples that hold none."""
    if isinstance(item, Tensor | np.ndarray):
        return [item]
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, tuple | list) else []
    nested = [found for part in parts for found in _list_parts(part)]
    return nested or ([item] if isinstance(item, tuple | list) else [])


def as_batch(batch: Any, num_items: int, source: OwnSource) -> tuple[Inputs, Tensor]:
    """Return inputs and targets of a collated batch; zeros stand for targets that items do not have."""
    if not source.has_targets:
        return batch, torch.zeros(num_items, dtype=torch.int64)
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        kind = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise TypeError(f"expected pairs of inputs and target, found {kind}")
    x, y = batch
    if not isinstance(y, Tensor):
        raise TypeError(f"expected targets that are numbers or tensors, found {type(y).__name__}")
    return tuple(x) if isinstance(x, list) else x, type_targets(y, source)


def type_targets(y: Tensor, source: OwnSource) -> Tensor:
    """Return targets as float32, or, if they are classes, as int64."""
    return y.float() if y.is_floating_point() or source.has_numbers else y.long()
