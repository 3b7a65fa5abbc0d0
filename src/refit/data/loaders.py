"""Data loaders whose rows come in the order that PyTorch's own would give, gathered by batch instead of row by row."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from refit.data.inputs import Inputs, count_examples, list_tensors, map_tensors
from refit.errors import SettingsError
from refit.runtime.accelerators import CPU, PINNING, is_short_of_memory, measure_free_memory
from refit.runtime.randomness import putting_generators_back

EVALUATION_BATCH_SIZE = 8192
MAX_EVALUATION_BYTES = 1 << 26
SMALL_TABLE, SMALL_BATCH, LARGE_BATCH = 5_000, 32, 256
"""With fewer train rows than the first, a training batch has the second number of rows, else the third, by default."""
ALIGNMENT = 64
"""In bytes. PyTorch places every tensor at a multiple of it in memory, and the widest instructions read as much at once."""

Batches = DataLoader[tuple[Tensor, Tensor]]


class ShuffledLoader(Batches):
    """The batches of `DataLoader(shuffle=True)`, each gathered by one call, on `device`: no row passes through Python.

    If an accelerator has twice the memory that the rows take, they all lie there; else batches are copied while it computes.
    Gathering a whole epoch at once takes as long as batch by batch (measured), and twice the memory.
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        batch_size: int,
        drop_last: bool,
        device: torch.device,
        is_crowded: bool = False,
        weights: Tensor | None = None,
    ) -> None:
        self.x, self.y = (x, y) if is_crowded else _move_all(x, y, device)
        self.device, self.weights = device, weights
        super().__init__(_rows(x, y), batch_size=batch_size, drop_last=drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        return map(self.gather, self.draw_order().split(cast(int, self.batch_size))[: len(self)])

    def draw_order(self, epoch: int = 0) -> Tensor:  # noqa: ARG002
        """Draw the rows of an epoch in the order of training, `(N,)` or fewer, with the draws of PyTorch's loader."""
        order = draw_rows(len(self.y), self.weights)
        return order[: len(self) * cast(int, self.batch_size)].to(self.y.device)

    def gather(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        """Return the rows of these numbers, on their way to the device."""
        if isinstance(self.x, Tensor):
            return _gather(self.x, rows, self.device), _gather(self.y, rows, self.device)
        return map_tensors(lambda part: _gather(part, rows, self.device), self.x), _gather(self.y, rows, self.device)

    def gather_at(self, order: Tensor, first: int) -> tuple[Inputs, Tensor]:
        """Return the batch that begins at place `first` of an order."""
        return self.gather(order[first : first + cast(int, self.batch_size)])

    def gather_groups(self, rows: Tensor, group_size: int, num_groups: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of these numbers in groups; on the CPU, a group is valid until the next is asked for.

        On the CPU, `num_groups` groups are gathered at once, always into the same memory, which stays in the processor's cache.
        If groups would be aligned differently there, which could change last bits, they are gathered one at a time.
        """
        if self.device.type != "cpu":
            yield from map(self.gather, rows.split(group_size))
            return
        is_aligned = group_size * self.x[0].nbytes % ALIGNMENT == 0
        size = min((num_groups if is_aligned else 1) * group_size, len(rows))
        x, y = self.x.new_empty(size, *self.x.shape[1:]), self.y.new_empty(size, *self.y.shape[1:])
        groups: list[tuple[Tensor, Tensor]] = []
        for block in rows.split(size):
            if not groups or len(block) < size:
                x, y = x[: len(block)], y[: len(block)]
                groups = list(zip(x.split(group_size), y.split(group_size), strict=True))
            torch.index_select(self.x, 0, block, out=x)
            torch.index_select(self.y, 0, block, out=y)
            yield from groups


def draw_rows(num_rows: int, weights: Tensor | None = None) -> Tensor:
    """Draw the order of an epoch, `(num_rows,)`, from the global generator; with weights, `(num_rows,)`, rows come repeatedly.

    Source: `WeightedRandomSampler.__iter__` of torch.utils.data, PyTorch 2.13, which draws after the loader's base seed.
    """
    _warn_of_other_order()
    if weights is None:
        return draw_permutation(num_rows)
    torch.empty((), dtype=torch.int64).random_()
    return torch.multinomial(weights, num_rows, replacement=True)


def draw_permutation(num_rows: int) -> Tensor:
    """Draw all rows in random order, `(num_rows,)`, from the global generator.

    Source: `torch.utils.data.RandomSampler.__iter__`, PyTorch 2.13.
    """
    torch.empty((), dtype=torch.int64).random_()  # the base seed that every iteration over a DataLoader draws
    seed = int(torch.empty((), dtype=torch.int64).random_().item())
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))


@cache
def _warn_of_other_order() -> None:
    """Compare, once a process, with the loader of the installed PyTorch; another version may draw in another way."""
    with putting_generators_back():
        before, rows = torch.get_rng_state(), cast(Dataset[int], range(100))
        expected, after = [*DataLoader(rows, batch_size=None, shuffle=True)], torch.get_rng_state()
        torch.set_rng_state(before)
        is_equal = draw_permutation(100).tolist() == expected and torch.equal(torch.get_rng_state(), after)
    if not is_equal:
        warnings.warn(
            f"rows are shuffled in another order than by the DataLoader of PyTorch {torch.__version__}, which no longer draws like"
            " that of PyTorch 2.13; results will not have the bits of a plain loop",
            stacklevel=3,
        )


class OrderedLoader(Batches):
    """Large batches in the order of the rows; draws nothing, while PyTorch's own loader draws a base seed.

    Inputs are copies, as rows from a file may lie anywhere in memory, and the last bits of a matrix product depend on alignment.
    Targets stay on the CPU, where the outputs go too.
    """

    def __init__(self, x: Inputs, y: Tensor, device: torch.device, is_crowded: bool = False) -> None:
        self.x, self.y = x if is_crowded else _move_all(x, y[:0], device)[0], y
        self.device = device
        super().__init__(_rows(x, y), batch_size=choose_evaluation_size(x))

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:  # type: ignore[override]
        size = cast(int, self.batch_size)
        for first in range(0, len(self.y) or 1, size):  # no rows are one batch, which has the shape of outputs
            rows = slice(first, first + size)
            yield map_tensors(lambda part, rows=rows: part[rows].clone().to(self.device), self.x), self.y[rows]  # type: ignore[misc]


def build_train_loader(
    x: Inputs,
    y: Tensor,
    batch_size: int,
    drop_last: bool,
    device: torch.device = CPU,
    is_crowded: bool = False,
    weights: Tensor | None = None,
) -> ShuffledLoader:
    """Build the loader of an epoch's shuffled batches on `device`: `x` `(N, …)`, `y` `(N, …)`, weights, if any, `(N,)`.

    Its draws come from the global generator: one base seed and one shuffle seed each time it is iterated over. If the device is
    crowded, only batches are sent there.
    """
    return ShuffledLoader(x, y, batch_size, drop_last, device, is_crowded, weights)


def build_evaluation_loader(x: Inputs, y: Tensor, device: torch.device = CPU, is_crowded: bool = False) -> Batches:
    """Build a loader of large ordered batches, for a model on `device`, that leaves the global generator alone."""
    return OrderedLoader(x, y, device, is_crowded)


def choose_batch_size(batch_size: int | None, num_rows: int) -> int:
    """Return the rows in a training batch; by default few for a small table, so that an epoch has many steps.

    Args:
        batch_size: What the settings ask for; None takes the default.
        num_rows: Rows of the train split.
    """
    return batch_size or (SMALL_BATCH if num_rows < SMALL_TABLE else LARGE_BATCH)


def choose_evaluation_size(x: Inputs) -> int:
    """Return the rows that are evaluated at once: many, but no more than `MAX_EVALUATION_BYTES` of images or the like."""
    if isinstance(x, Tensor) and x.dim() <= 2:
        return EVALUATION_BATCH_SIZE
    bytes_a_row = sum(part.nbytes for part in list_tensors(x)) // max(1, count_examples(x))
    return min(EVALUATION_BATCH_SIZE, max(1, MAX_EVALUATION_BYTES // max(1, bytes_a_row)))


def count_batches(num_rows: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch of `num_rows` rows.

    Raises:
        SettingsError: There would be none.
    """
    num_batches = num_rows // batch_size if drop_last else -(-num_rows // batch_size)
    if num_batches == 0:
        raise SettingsError(
            f"loader.batch_size: expected at most the {num_rows} train rows, as loader.drop_last leaves shorter batches out, "
            f"found {batch_size}; lower it, or set loader.drop_last to false"
        )
    return num_batches


def _rows(x: Inputs, y: Tensor) -> Dataset[tuple[Tensor, Tensor]]:
    """The data set that a loader says it loads."""
    return cast(Dataset[tuple[Tensor, Tensor]], TensorDataset(*list_tensors(x), y))


def _move_all(x: Inputs, y: Tensor, device: torch.device) -> tuple[Inputs, Tensor]:
    """All rows on an accelerator that has room for them twice, else where they are."""
    if device.type == "cpu" or 2 * sum(part.nbytes for part in [*list_tensors(x), y]) > measure_free_memory(device):
        return x, y
    try:
        return map_tensors(lambda part: part.to(device), x), y.to(device)
    except RuntimeError as error:
        if not is_short_of_memory(error):
            raise
        return x, y  # another process was faster


def _gather(values: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of these numbers, on their way to a device where they may not be yet; if memory is pinned, nothing waits for them.

    From other memory the CPU has to wait, as MPS would read it after it was freed.
    """
    if values.device == device:
        return values.index_select(0, rows)
    is_pinned = device.type in PINNING
    batch = torch.empty(len(rows), *values.shape[1:], dtype=values.dtype, pin_memory=is_pinned)
    return torch.index_select(values, 0, rows, out=batch).to(device, non_blocking=is_pinned)
