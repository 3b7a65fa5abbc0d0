"""What tells examples apart: a hash of what each holds, and its number among equal ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]
"""Numbers of rows, from 0."""


@dataclass(frozen=True)
class Identities:
    """What tells N rows apart, and which belong together.

    Args:
        hashes: Hash of each row: of the columns learned from, its class and its time.
        numbers: Each row's number among those of its table with the same hash, from 0 on; rows without a class do not count.
        groups: Hash of each row's group; None where there are no groups.
    """

    hashes: Hashes
    numbers: Rows
    groups: Hashes | None

    @property
    def keys(self) -> Hashes:
        """One hash for each row, its number included."""
        return identify(self.hashes, self.numbers)


def number_copies(hashes: Hashes) -> Rows:
    """Number the rows of each hash in their order: 0 for the first of them, 1 for its first copy.

    Shape:
        hashes: (N,); returns (N,).
    """
    order = np.argsort(hashes, kind="stable")
    places = np.arange(len(order))
    numbers = np.empty_like(places)
    numbers[order] = places - np.maximum.accumulate(np.where(find_changes(hashes[order]), places, 0))
    return numbers


def identify(hashes: Hashes, numbers: Rows) -> Hashes:
    """Hash each row's hash with its number among equal ones; number 0 leaves the hash as it is.

    Shape:
        hashes, numbers: (N,); returns (N,).
    """
    return np.where(numbers == 0, hashes, mix(hashes ^ mix(numbers.astype(np.uint64))))


def find_known(hashes: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Mark the hashes that are among others too, as `np.isin` does, in a tenth of its time.

    Shape:
        hashes: (N,); others: (M,); returns (N,).
    """
    if not len(others):
        return np.zeros(len(hashes), bool)
    ordered = np.sort(others)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    known: NDArray[np.bool_] = ordered[places] == hashes
    return known


def find_changes(ordered: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Mark the values that differ from the one before them, and the first, `(N,)`."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def mix(x: Hashes) -> Hashes:
    """Mix the bits of each number.

    Source: `splitmix64` (Steele, Lea and Flood, 2014, figure 16).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
