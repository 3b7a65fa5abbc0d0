"""Random items that are the same whoever reads them: their generators are seeded by seed, epoch and index."""

import hashlib
import random
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from refit.runtime.randomness import putting_generators_back


class Seeded(Dataset[Any]):
    """A map-style data set whose items draw from generators that are seeded by (seed, epoch, index) before each.

    So neither the number of loader processes nor an interruption changes an item. The generators are those of torch on the CPU, of
    numpy and of random, which are put back afterwards. Set `epoch`, which training counts from 1, before each pass of a loader.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        items = []
        with keeping_generators():
            for index in indices:
                seed_item(self.seed, self.epoch, index)
                items.append(self.dataset[index])
        return items


def seeded(dataset: Any, seed: int) -> Seeded:
    """Wrap a map-style data set so that its random items depend on seed, epoch and index alone; see `Seeded`."""
    return Seeded(dataset, seed)


def seed_item(seed: int, epoch: int, index: int) -> None:
    """Seed torch's generator of the CPU, numpy's and python's for one item, in a few microseconds."""
    mixed = hashlib.blake2b(struct.pack("<QQq", seed, epoch, index), digest_size=8).digest()
    number = int.from_bytes(mixed, "little")
    torch.default_generator.manual_seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    random.seed(number)


def keeping_generators() -> AbstractContextManager[None]:
    """Put the generators back after the block; those of a loader process belong to nobody else."""
    return putting_generators_back() if get_worker_info() is None else nullcontext()
