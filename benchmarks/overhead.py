"""What orchestration and checkpoints cost: a run that is all done beside an empty flow, and epochs beside the bare loop.

Run as `python benchmarks/overhead.py`; everything is measured side by side in one run, interleaved, and printed as medians.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.training import train
from refit.data.dataset import build_dataset, load_manifest, load_split
from refit.settings import SettingsTree
from refit.store import Store

REPEATS = 5
NUM_DONE_EPOCHS = 100
NUM_EPOCHS = 20


@flow
def empty() -> None:
    """Nothing."""


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def train_bare(x: torch.Tensor, y: torch.Tensor, settings: SettingsTree, num_outputs: int) -> None:
    """The notebook's loop, over batches gathered as Refit gathers them."""
    torch.manual_seed(settings.seed)
    layers, width = [], x.shape[1]
    for size in settings.model.hidden_sizes:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    model = nn.Sequential(*layers, nn.Linear(width, num_outputs))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.optimizer.lr)
    dataset, batch_size = TensorDataset(x, y), settings.loader.batch_size
    for _ in range(settings.training.num_epochs):
        for rows in DataLoader(range(len(y)), batch_size=batch_size, shuffle=True, drop_last=True, collate_fn=torch.tensor):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(dataset[rows][0]), dataset[rows][1]).backward()
            optimizer.step()


def main() -> None:
    """Measure and print."""
    folder = Path(tempfile.mkdtemp())
    with prefect_test_harness(server_startup_timeout=90), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        console = Console()
        done = SettingsTree.model_validate({"training": {"num_epochs": NUM_DONE_EPOCHS}, "store": {"url": str(folder / "done")}})
        train(done)
        pairs = [(seconds_of(empty), seconds_of(lambda: train(done))) for _ in range(REPEATS)]
        bare, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
        console.print(f"empty flow {bare:.3f} s; {NUM_DONE_EPOCHS} epochs, all done before: {ours:.3f} s")

        torch.manual_seed(0)
        pl.DataFrame({**{f"x{i}": torch.randn(2048).numpy() for i in range(64)}, "y": [0, 1] * 1024}).write_parquet(
            folder / "t.parquet"
        )
        wide = {"data": {"source": str(folder / "t.parquet"), "val_fraction": 0}, "model": {"hidden_sizes": [1500, 1500]}}
        works = {"notebook": {}, "10 MB model": {**wide, "loader": {"batch_size": 64}, "optimizer": {"lr": 0.01}}}
        table = Table("model", "bare loop, s/epoch", "Refit, s/epoch", "difference, s/epoch")
        for name, given in works.items():
            measured = []
            for repeat in range(REPEATS):
                store = Store(str(folder / f"{name}-{repeat}"))
                both = {**given, "training": {"num_epochs": NUM_EPOCHS}, "store": {"url": store.url}}
                settings = SettingsTree.model_validate(both)
                manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
                x, y = load_split(manifest, "train", store)
                bare = seconds_of(lambda x=x, y=y, settings=settings: train_bare(x, y, settings, 2)) / NUM_EPOCHS
                measured.append((bare, train(settings).seconds["train"] / NUM_EPOCHS))
            bare, ours = (statistics.median(values) for values in zip(*measured, strict=True))
            table.add_row(name, f"{bare:.4f}", f"{ours:.4f}", f"{ours - bare:.4f}")
        console.print(table)


if __name__ == "__main__":
    main()
