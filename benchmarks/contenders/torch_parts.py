"""What the PyTorch contenders share: network, optimizer, batches."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset
from work import WEIGHT_DECAY, Layers, Work


def build_network(work: Work) -> nn.Sequential:
    """Logits `(B, 10)` of rows `(B, F)`, as `refit.models.mlp` builds them."""
    pairs = zip(work.widths, work.widths[1:-1], strict=False)
    hidden = [layer for fan_in, fan_out in pairs for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(*work.widths[-2:]))


def build_optimizer(work: Work, network: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """PyTorch's own; `fused` makes one kernel of a step of AdamW. That of SGD is no faster on the CPU."""
    if work.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=work.lr)
    return torch.optim.AdamW(network.parameters(), lr=work.lr, weight_decay=WEIGHT_DECAY, fused=fused)


class Rows(TensorDataset):
    """Rows and their classes; by an index tensor, a whole batch."""

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        """`index_select` takes half the time of indexing by a tensor."""
        if isinstance(index, int):
            return super().__getitem__(index)
        x, y = self.tensors
        return x.index_select(0, index), y.index_select(0, index)


class ShuffledIndices(Sampler[Tensor]):
    """Yield the index tensor of each batch, in a new order every epoch."""

    def __init__(self, num_rows: int, batch_size: int) -> None:
        self.num_rows = num_rows
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randperm(self.num_rows).split(self.batch_size))

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)


def build_loader(x: Tensor, y: Tensor, batch_size: int, is_gathered: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """Build a loader that gathers each batch by an index tensor, or collates it row by row, as `DataLoader` does by itself."""
    if is_gathered:
        return DataLoader(Rows(x, y), batch_size=None, sampler=ShuffledIndices(len(y), batch_size))
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


def copy_layers(network: nn.Module) -> Layers:
    """The weights and biases of the linear layers."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [(linear.weight.detach().numpy(), linear.bias.detach().numpy()) for linear in linears]
