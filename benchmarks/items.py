"""Items a second of training on a data set of one's own, beside the plain loop over the same `DataLoader`, in turns in one run.

python benchmarks/items.py
"""

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from refit.runs.recipes import build_recipe
from refit.settings import resolve_settings
from refit.store.store import Store
from refit.training import trainer

NUM_EPOCHS, BATCH_SIZE = 3, 32


class Pictures(Dataset[Any]):
    """PNG files, decoded, scaled and flipped at random: reading takes longest."""

    def __init__(self, num_items: int = 1500) -> None:
        rng = np.random.default_rng(0)
        self.targets = [index % 10 for index in range(num_items)]
        self.ids = [f"{index}.png" for index in range(num_items)]
        self.files = []
        for target in self.targets:
            noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) // 2 + 12 * target
            Image.fromarray(noise.astype(np.uint8)).save(buffer := io.BytesIO(), "PNG")
            self.files.append(buffer.getvalue())

    def digest(self) -> str:
        """Vouch for the items, so that they are read in every epoch."""
        return "the same"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(self.files[index])).resize((32, 32)))).permute(2, 0, 1) / 255
        return (image.flip(2) if torch.rand(()) < 0.5 else image), self.targets[index]


def pictures() -> dict[str, Dataset[Any]]:
    """Items that take long to read."""
    return {"train": Pictures()}


def tensors() -> dict[str, Dataset[Any]]:
    """Items that are rows of tensors."""
    generator = torch.Generator().manual_seed(0)
    return {"train": TensorDataset(torch.randn(20_000, 20, generator=generator), torch.arange(20_000) % 10)}


def images() -> dict[str, Dataset[Any]]:
    """Items that take long to compute with."""
    generator = torch.Generator().manual_seed(0)
    return {"train": TensorDataset(torch.randn(1500, 3, 32, 32, generator=generator), torch.arange(1500) % 10)}


class Small(nn.Sequential):
    """A network that takes little time."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10))


class Large(nn.Sequential):
    """A network that takes much time."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(64 * 256, 10))


class Flat(nn.Sequential):
    """A network of rows."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))


def time_plainly(factory: str, model: str, num_workers: int) -> list[float]:
    """Seconds of each epoch of the plain loop."""
    dataset, network = globals()[factory]()["train"], globals()[model]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    seconds = []
    for _ in range(NUM_EPOCHS):
        started = time.perf_counter()
        for x, y in DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=num_workers):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def time_refit(factory: str, model: str, num_workers: int, folder: str) -> list[float]:
    """Seconds of each epoch, with its checkpoint."""
    given = {
        "data": {"factory": f"items:{factory}"},
        "model": {"factory": f"items:{model}"},
        "loader": {"batch_size": BATCH_SIZE, "num_workers": num_workers},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "training": {"num_epochs": NUM_EPOCHS, "patience": None},
        "store": {"url": folder, "trust": True},
    }
    settings, _ = resolve_settings(given)
    recipe, store = build_recipe(settings), Store(folder)
    from refit.makers import find_maker

    snapshot = find_maker(settings.data).build_snapshot(settings, recipe.source_digests, store, lambda _: None, lambda _: None)
    loaders, checkpoint, seconds = trainer.build_loaders(snapshot, settings), trainer.start(snapshot, settings, print, print), []
    for epoch, key in enumerate(recipe.epoch_keys, start=1):
        started = time.perf_counter()
        checkpoint = trainer.train_epoch(epoch, key, checkpoint, loaders, settings, print).checkpoint
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Print a line for each data set."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.path.insert(0, os.path.dirname(__file__))
    torch.set_num_threads(1)
    print("data set, loader processes: items a second of the plain loop, of Refit with its checkpoints, ratio")
    for factory, model, num_workers in [
        ("pictures", "Small", 0),
        ("pictures", "Small", 1),
        ("images", "Large", 0),
        ("tensors", "Flat", 0),
    ]:
        plain, ours = list[float](), list[float]()
        for _ in range(3):
            plain += time_plainly(factory, model, num_workers)
            with tempfile.TemporaryDirectory() as folder:
                ours += time_refit(factory, model, num_workers, str(Path(folder, "store")))
        num_items = len(globals()[factory]()["train"])
        rates = num_items / median(plain), num_items / median(ours)
        print(f"{factory}, {num_workers}: {rates[0]:,.0f}, {rates[1]:,.0f}, {rates[1] / rates[0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
