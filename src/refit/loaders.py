"""Data loaders whose rows come in the order that PyTorch's own would give, gathered by batch instead of row by row."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from refit.errors import SettingsError

EVALUATION_BATCH_SIZE = 8192
CPU = torch.device("cpu")

Batches = DataLoader[tuple[Tensor, Tensor]]


class ShuffledBatches(Sampler[Tensor]):
    """Yield the index tensor of each batch, `(batch_size,)`, in a new random order every epoch.

    Draws from the global generator what `RandomSampler` draws and permutes as it does, so that the batches hold the rows of
    `DataLoader(shuffle=True)`.

    Source: `torch.utils.data.RandomSampler.__iter__`, PyTorch 2.13.
    """

    def __init__(self, num_rows: int, batch_size: int, drop_last: bool, device: torch.device = CPU) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.device = device
        self.num_batches = num_rows // batch_size if drop_last else -(-num_rows // batch_size)
        self.first_batch = 0
        """Where the next epoch begins; more than 0 leaves out batches that were trained before a pause."""

    def __iter__(self) -> Iterator[Tensor]:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(seed)).to(self.device)
        yield from order.split(self.batch_size)[self.first_batch : self.num_batches]

    def __len__(self) -> int:
        return self.num_batches


class ShuffledLoader(Batches):
    """The batches of `ShuffledBatches`, each gathered by one call, on `device`: no row passes through Python.

    On a GPU that has twice the memory that the rows take they all lie there; else batches are copied while it computes.
    Gathering a whole epoch at once was measured too: it takes as long as batch by batch, and twice the memory.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, drop_last: bool, device: torch.device) -> None:
        self.x, self.y = _move_all(x, y, device)
        self.device = device
        sampler = ShuffledBatches(len(y), batch_size, drop_last, self.x.device)
        super().__init__(_rows(x, y), batch_size=None, sampler=sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        torch.empty((), dtype=torch.int64).random_()  # the base seed that every iteration over a DataLoader draws
        for rows in self.sampler:
            yield _send(self.x.index_select(0, rows), self.device), _send(self.y.index_select(0, rows), self.device)


class OrderedLoader(Batches):
    """Large batches in the order of the rows, views of them all; draws nothing, where PyTorch's own loader draws a base seed."""

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self.x, self.y = _move_all(x, y, device)
        super().__init__(_rows(x, y), batch_size=EVALUATION_BATCH_SIZE)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        return zip(self.x.split(EVALUATION_BATCH_SIZE), self.y.split(EVALUATION_BATCH_SIZE), strict=True)


def build_train_loader(x: Tensor, y: Tensor, batch_size: int, drop_last: bool, device: torch.device = CPU) -> Batches:
    """Build the loader of an epoch's shuffled batches on `device`: `x` `(N, F)`, `y` `(N,)`.

    Its draws come from the global generator: one base seed and one shuffle seed each time it is iterated over.
    """
    return ShuffledLoader(x, y, batch_size, drop_last, device)


def build_evaluation_loader(x: Tensor, y: Tensor, device: torch.device = CPU) -> Batches:
    """Build a loader of large ordered batches, for a model on `device`, that leaves the global generator alone."""
    return OrderedLoader(x, y, device)


def count_batches(num_rows: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch of `num_rows` rows.

    Raises:
        SettingsError: There would be none.
    """
    num_batches = len(ShuffledBatches(num_rows, batch_size, drop_last))
    if num_batches == 0:
        raise SettingsError(
            f"loader.batch_size: expected at most the {num_rows} train rows, as loader.drop_last leaves shorter batches out, "
            f"found {batch_size}; lower it, or set loader.drop_last to false"
        )
    return num_batches


def _rows(x: Tensor, y: Tensor) -> Dataset[tuple[Tensor, Tensor]]:
    """A data set that gathers a whole batch when it is asked for an index tensor."""
    return cast(Dataset[tuple[Tensor, Tensor]], TensorDataset(x, y))


def _move_all(x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """All rows on a GPU that has room for them twice, else where they are."""
    if device.type == "cuda" and 2 * (x.nbytes + y.nbytes) <= torch.cuda.mem_get_info(device)[0]:
        return x.to(device), y.to(device)
    return x, y


def _send(batch: Tensor, device: torch.device) -> Tensor:
    """A batch on its way to a GPU, if it is not there; nothing waits for it to arrive."""
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not batch.is_cuda else batch
