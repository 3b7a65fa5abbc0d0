"""Divides rows into train, val and test, before anything is learned from them. Rows keep their source order in every split."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refit.data.identities import Hashes, Rows, find_changes, find_known
from refit.errors import DataError

Size = float | int | str
"""Some of the rows: a share of all (float), a number (int), or those of a span of time such as `14d`; 0.0 for none."""

MICROSECONDS = {unit: seconds * 10**6 for unit, seconds in (("s", 1), ("min", 60), ("h", 3600), ("d", 86_400), ("w", 604_800))}
UNASSIGNED, TRAIN, VAL, TEST = -1, 0, 1, 2


class RareClassesError(DataError):
    """Classes have too few rows to be where they are needed; `places` are their indices among all classes."""

    def __init__(self, message: str, places: Rows) -> None:
        super().__init__(message)
        self.places = places


@dataclass(frozen=True)
class Sizes:
    """How large splits are. Only a split by time uses spans, a window of train rows, and gaps before val and test."""

    val: Size
    test: Size
    window: Size | None = None
    gap: Size = 0.0

    @property
    def splits(self) -> list[str]:
        """Those that are to have rows, oldest first."""
        return ["train", *(name for name, size in (("val", self.val), ("test", self.test)) if size)]


def split_randomly(units: Hashes, y: Rows, classes: Sequence[Any], sizes: Sizes, where: str) -> dict[str, Rows]:
    """Divide the units of each class by their hashes, so that a unit stays where it is when others come or go.

    Classes take turns, from the rarest to the most frequent. In the order of hashes, the units of a class go to the test until that
    has enough rows of it, then to validation likewise, the rest to train; units that an earlier class has placed stay there and
    count.

    Args:
        units: Hash of what stays together with each of N rows: the row alone, its features or its group.
        y: Index of each row's class.
        classes: The classes, for messages.
        sizes: Of val and test, by rows; from each class come one row or more.
        where: Source and target column, for messages.

    Returns:
        Indices of the rows of each split that has any.

    Raises:
        RareClassesError: Classes have too few rows or units to be in every split.
    """
    hashes, unit = np.unique(units, return_inverse=True)  # (U,), (N,): a unit is known by its place in the order of hashes
    class_sizes = np.bincount(y, minlength=len(classes))
    if len(hashes) == len(y):
        _check_classes(class_sizes, classes, sizes, where)
    wanted = np.stack([_allot(size, class_sizes) for size in (0.0, sizes.val, sizes.test)])  # (side, class)
    members = np.split(unit[np.argsort(y, kind="stable")], np.cumsum(class_sizes)[:-1])
    sides = np.full(len(hashes), UNASSIGNED)
    for index in np.argsort(class_sizes, kind="stable"):
        _assign(sides, members[index], wanted[:, index])
    parts = {name: np.flatnonzero(sides[unit] == side) for side, name in enumerate(("train", "val", "test"))}
    _check_units(parts, members, y, classes, sizes, where)
    return {name: parts[name] for name in sizes.splits}


def split_by_time(
    times: NDArray[Any], y: Rows, classes: Sequence[Any], sizes: Sizes, where: str, units: Hashes | None = None
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Take the newest rows for the test and those before them for validation; rows of one time are never divided.

    A span counts back from the newest row that is left. A gap counts back from the first row of the split after it: if labels
    become known a gap later, all that is learned from was known by then.

    Args:
        times: When each of N rows was: microseconds where sizes are spans, else any numbers.
        y: As for `split_randomly`.
        classes: Likewise.
        sizes: Of all splits. If given in rows, a split begins at the nearest time, and a gap has at least as many.
        where: As for `split_randomly`.
        units: Likewise; rows of a unit that is in a later split too are left out. None keeps all.

    Returns:
        Indices of the rows of each split that has any, and how many rows `gap`, `window` and `units` left out, where they did.

    Raises:
        DataError: There are too few times, or no rows are left for a split.
        RareClassesError: There are no rows of some classes to train on.
    """
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    starts = np.flatnonzero(find_changes(ordered))  # (T,): the first row of each time
    if len(starts) < len(sizes.splits):
        raise DataError(
            f"{where}: expected {len(sizes.splits)} different times or more, as rows of one time stay together, found"
            f" {len(starts)}; add rows of other times, or set data.split to `random`"
        )
    parts, end = dict[str, Rows](), len(order)
    left_out = {"gap": 0}
    for num_before, name in reversed([*enumerate(sizes.splits)][1:]):
        start = _find_start(ordered, starts, end, getattr(sizes, name), num_before)
        parts[name] = order[start:end]
        end = _go_back(ordered, starts, start, sizes.gap)
        left_out["gap"] += start - end
    start = 0 if sizes.window is None else _find_start(ordered, starts, end, sizes.window, 0)
    parts["train"], left_out["window"] = order[start:end], start
    if units is not None:
        parts, left_out["units"] = _keep_apart(parts, units)
    _check_parts(parts, y, classes, sizes, where)
    return {name: np.sort(parts[name]) for name in sizes.splits}, {name: number for name, number in left_out.items() if number}


def _check_classes(class_sizes: Rows, classes: Sequence[Any], sizes: Sizes, where: str) -> None:
    """Raise RareClassesError for the classes with too few rows to be in every split, if each row is a unit."""
    shares = [size / class_sizes.sum() if isinstance(size, int) else float(size) for size in (sizes.val, sizes.test)]
    rare = np.flatnonzero([_hold_out(shares, size) >= size for size in class_sizes.tolist()])
    if len(rare):
        first = int(rare[0])
        size = int(class_sizes[first])
        needed = next(more for more in count(size + 1) if _hold_out(shares, more) < more)
        raise RareClassesError(
            f"{where}: expected {needed} rows or more of every class, to have it in every split, found {size} of class"
            f" {classes[first]!r}; add rows of it, leave its rows out, or lower data.val and data.test",
            rare,
        )


def _check_units(
    parts: dict[str, Rows], members: Sequence[Rows], y: Rows, classes: Sequence[Any], sizes: Sizes, where: str
) -> None:
    """Raise RareClassesError for the classes whose units did not suffice for every split."""
    for name in sizes.splits:
        absent = np.flatnonzero(np.bincount(y[parts[name]], minlength=len(classes)) == 0)
        if len(absent):
            num_units = len(np.unique(members[absent[0]]))
            raise RareClassesError(
                f"{where}: expected every class in every split, found none of class {classes[absent[0]]!r} for `{name}`, as its"
                f" rows are in too few groups that stay together ({num_units}); add groups of it, leave its rows out, or lower"
                " data.val and data.test",
                absent,
            )


def _hold_out(shares: Sequence[float], num_rows: int) -> int:
    """Rows of a class for val and test together: at least 1 for each that is to have some."""
    return sum(max(1, round(share * num_rows)) if share else 0 for share in shares)


def _allot(size: Size, class_sizes: Rows) -> Rows:
    """Rows of each class for a split, `(C,)`: at least 1 if the split has any; they add up to a `size` that is a number."""
    if not size:
        return np.zeros_like(class_sizes)
    if isinstance(size, int):
        rows = np.diff(np.rint(np.cumsum(class_sizes) * (size / class_sizes.sum())), prepend=0)
    else:
        rows = np.rint(float(size) * class_sizes)
    allotted: Rows = np.maximum(1, rows).astype(np.int64)
    return allotted


def _assign(sides: Rows, members: Rows, wanted: Rows) -> None:
    """Give sides to the units of one class that have none yet.

    A unit is left for each later split that the class would not reach otherwise. Units larger than a split go to train, if there
    are others for the test and validation, which then share these.

    Args:
        sides: Of all units, changed in place.
        members: The unit of each row of the class.
        wanted: Rows of the class for each side.
    """
    units, num_rows = np.unique(members, return_counts=True)
    held = np.bincount(sides[units] + 1, weights=num_rows, minlength=4)[1:]
    is_free = sides[units] == UNASSIGNED
    is_large = num_rows > max(wanted[TEST], wanted[VAL])
    order = np.flatnonzero(is_free)[np.argsort(is_large[is_free], kind="stable")]
    units, num_rows, room = units[order], num_rows[order], num_rows[is_free & ~is_large].sum()
    missing = np.maximum(wanted - held, 0)
    missing = missing * min(1.0, room / max(1, missing[TEST] + missing[VAL])) if room else missing
    needs_unit = held == 0
    needs_unit[VAL] &= wanted[VAL] > 0
    start = 0
    for side in (TEST, VAL):
        before = np.cumsum(num_rows[start:]) - num_rows[start:]  # rows of the units before each
        enough = int(np.searchsorted(before, missing[side]))
        end = start + max(0, min(enough, len(units) - start - needs_unit[:side].sum()))
        sides[units[start:end]] = side
        start = end
    sides[units[start:]] = TRAIN


def _find_start(ordered: NDArray[Any], starts: Rows, end: int, size: Size, num_before: int) -> int:
    """Find where a split that ends before row `end` begins, with `num_before` times or more before it."""
    if isinstance(size, str):
        return int(np.searchsorted(ordered[:end], ordered[end - 1] - read_span(size), side="right"))
    target = end - _count_rows(size, len(ordered))
    candidates = starts[num_before : np.searchsorted(starts, end)]
    if target <= 0 or not len(candidates):
        return 0
    return int(candidates[np.argmin(np.abs(candidates - target))])  # the earlier one, if two are as near


def _go_back(ordered: NDArray[Any], starts: Rows, start: int, gap: Size) -> int:
    """Find the end of what comes before a gap that ends before row `start`."""
    if not gap or not start:
        return start
    if isinstance(gap, str):
        return int(np.searchsorted(ordered[:start], ordered[start] - read_span(gap), side="right"))
    target = max(0, start - _count_rows(gap, len(ordered)))
    return int(starts[np.searchsorted(starts, target, side="right") - 1])


def _count_rows(size: float | int, num_rows: int) -> int:
    return size if isinstance(size, int) else max(1, round(size * num_rows))


def read_span(text: str) -> int:
    """Microseconds of a span such as `14d`."""
    unit = text.lstrip("0123456789")
    return int(text.removesuffix(unit)) * MICROSECONDS[unit]


def _keep_apart(parts: dict[str, Rows], units: Hashes) -> tuple[dict[str, Rows], int]:
    """Leave out the rows whose unit is in a later split; count them."""
    kept, taken, num_left_out = dict[str, Rows](), units[:0], 0
    for name, rows in parts.items():  # newest first
        is_apart = ~find_known(units[rows], taken)
        kept[name], num_left_out = rows[is_apart], num_left_out + int((~is_apart).sum())
        taken = np.concatenate([taken, units[rows]])
    return kept, num_left_out


def _check_parts(parts: dict[str, Rows], y: Rows, classes: Sequence[Any], sizes: Sizes, where: str) -> None:
    for name in sizes.splits:
        if not len(parts[name]):
            raise DataError(
                f"{where.partition(', column')[0]}: expected rows for every split by time, found none left for `{name}` among"
                f" {len(y)} rows; add rows, or lower data.val, data.test and data.gap"
            )
    absent = np.flatnonzero(np.bincount(y[parts["train"]], minlength=len(classes)) == 0)
    if len(absent):
        raise RareClassesError(
            f"{where}: expected every class among the {len(parts['train'])} train rows, which are the oldest, found none of class"
            f" {classes[absent[0]]!r}; add older rows of it, leave its rows out, or set data.split to `random`",
            absent,
        )
