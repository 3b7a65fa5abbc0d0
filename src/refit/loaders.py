"""Data loaders whose rows come in the order that PyTorch's own would give, gathered by batch instead of row by row."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from refit.errors import SettingsError

EVALUATION_BATCH_SIZE = 8192

Batches = DataLoader[tuple[Tensor, Tensor]]


class ShuffledBatches(Sampler[Tensor]):
    """Yield the index tensor of each batch, `(batch_size,)`, in a new random order every epoch.

    Draws from the global generator what `RandomSampler` draws and permutes as it does, so that the batches hold the rows of
    `DataLoader(shuffle=True)`.

    Source: `torch.utils.data.RandomSampler.__iter__`, PyTorch 2.13.
    """

    def __init__(self, num_rows: int, batch_size: int, drop_last: bool) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_batches = num_rows // batch_size if drop_last else -(-num_rows // batch_size)
        self.first_batch = 0
        """Where the next epoch begins; more than 0 leaves out batches that were trained before a pause."""

    def __iter__(self) -> Iterator[Tensor]:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(seed))
        yield from order.split(self.batch_size)[self.first_batch : self.num_batches]

    def __len__(self) -> int:
        return self.num_batches


class OrderedBatches(Sampler[Tensor]):
    """Yield the index tensor of each batch in the order of the rows, drawing nothing."""

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.order = torch.arange(num_rows).split(batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def build_train_loader(x: Tensor, y: Tensor, batch_size: int, drop_last: bool) -> Batches:
    """Build the loader of an epoch's shuffled batches: `x` `(N, F)`, `y` `(N,)`.

    Its draws come from the global generator: one base seed and one shuffle seed each time it is iterated over.
    """
    return DataLoader(_rows(x, y), batch_size=None, sampler=ShuffledBatches(len(y), batch_size, drop_last))


def build_evaluation_loader(x: Tensor, y: Tensor) -> Batches:
    """Build a loader of large ordered batches that leaves the global generator alone."""
    # A DataLoader draws a base seed even where nothing is shuffled; its own generator keeps that out of the training stream.
    sampler = OrderedBatches(len(y), EVALUATION_BATCH_SIZE)
    return DataLoader(_rows(x, y), batch_size=None, sampler=sampler, generator=torch.Generator())


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
