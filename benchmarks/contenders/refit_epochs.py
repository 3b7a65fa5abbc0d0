"""Refit's epochs: `refit.training.loop.train_epoch`, without the flow around it (`overhead.py` measures that).

Its argument is `compute.engine`; all settings but those of the work are left as they are.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch_parts import copy_layers
from work import NUM_CLASSES, WEIGHT_DECAY, Array, Labels, Layers, Work, race

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.runtime.accelerators import CPU
from refit.runtime.devices import prepare_compute
from refit.settings import ComputeSettings, ModelSettings, OptimizerSettings
from refit.training.loop import build_training_state, train_epoch


def build_epoch(
    work: Work,
    x: Array,
    y: Labels,
    seed: int,
    engine: str,
    num_threads: int | None = None,
    device: torch.device = CPU,
) -> tuple[nn.Module, Callable[[], object]]:
    """The network, and what trains it for an epoch."""
    weight_decay = 0.0 if work.optimizer == "sgd" else WEIGHT_DECAY
    optimizer = OptimizerSettings(name=work.optimizer, lr=work.lr, weight_decay=weight_decay)
    model = ModelSettings(hidden_sizes=list(work.hidden_sizes))
    prepare_compute(ComputeSettings(engine=engine, num_threads=num_threads), device)
    state = build_training_state(model, optimizer, Signature.of_numbers(work.num_inputs, NUM_CLASSES), seed, device)
    loader = build_train_loader(torch.from_numpy(x), torch.from_numpy(y), work.batch_size, drop_last=True, device=device)
    return state.model, lambda: train_epoch(state, loader, lambda _: work.lr, device=device, engine=engine)


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None], engine: str) -> Layers:
    """Train."""
    network, train_once = build_epoch(work, x, y, seed, engine)
    lap()
    for _ in range(num_epochs):
        train_once()
        lap()
    return copy_layers(network)


if __name__ == "__main__":
    race(train)
