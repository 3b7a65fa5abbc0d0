"""The loop of a notebook: a `DataLoader` that collates row by row, and PyTorch's optimizers as they are by default."""

from collections.abc import Callable

import torch
from torch.nn import functional
from torch_parts import build_loader, build_network, build_optimizer, copy_layers
from work import Array, Labels, Layers, Work, race


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None]) -> Layers:
    """Train as the tutorials do."""
    torch.manual_seed(seed)
    network = build_network(work)
    optimizer = build_optimizer(work, network, fused=False)
    loader = build_loader(torch.from_numpy(x), torch.from_numpy(y), work.batch_size, is_gathered=False)
    lap()
    for _ in range(num_epochs):
        for inputs, classes in loader:
            loss = functional.cross_entropy(network(inputs), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        lap()
    return copy_layers(network)


if __name__ == "__main__":
    race(train)
