"""What orchestration and checkpoints cost: runs beside the same work without Prefect, and one all done beside an empty flow.

Run as `python benchmarks/overhead.py`, while nothing else runs; all is measured side by side, in turns, and printed as medians.
Prefect's server is started before: `footprint.py` measures what starting costs. `--quick` only tries whether everything works.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.flows.training import train
from refit.models.building import build_model
from refit.runtime.accelerators import CPU
from refit.runtime.devices import prepare_compute
from refit.server.api import await_own_server
from refit.server.own_server import starting_server
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import Manifest
from refit.tables.table_examples import load_manifest
from refit.training.evaluation import evaluate
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import Classification
from refit.training.optimizers import build_optimizer

REPEATS = 3
NUM_DONE_EPOCHS = 100
SECONDS_TO_SETTLE = 15
NUM_MEDIUM_ROWS = round(330_000 / 0.7)
"""So that 330,000 are train rows, as in `speed.py`."""


@flow
def empty() -> None:
    """Nothing."""


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def write_table(path: Path, num_rows: int, num_columns: int, num_classes: int) -> str:
    """Write normal numbers, and classes that a linear teacher gives them."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((num_rows, num_columns), np.float32)
    y = (x @ generator.standard_normal((num_columns, num_classes), np.float32)).argmax(axis=1)
    pl.DataFrame({**{f"x{column}": x[:, column] for column in range(num_columns)}, "y": y}).write_parquet(path)
    return str(path)


def describe_works(folder: Path, is_quick: bool) -> dict[str, dict[str, Any]]:
    """Settings by name."""
    small = write_table(folder / "small.parquet", 2048, 64, 2)
    medium = write_table(folder / "medium.parquet", 5000 if is_quick else NUM_MEDIUM_ROWS, 60, 10)
    return {
        "notebook": {"training": {"num_epochs": 20 if is_quick else 1000}},
        "10 MB model": {
            "data": {"source": small, "val": 0},
            "model": {"hidden_sizes": [1500, 1500]},
            "loader": {"batch_size": 64},
            "optimizer": {"name": "sgd", "lr": 0.01},
            "training": {"num_epochs": 2 if is_quick else 20},
        },
        "medium": {
            "data": {"source": medium},
            "model": {"hidden_sizes": [256, 256]},
            "loader": {"batch_size": 1024},
            "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
            "training": {"num_epochs": 10},
        },
    }


def train_plainly(manifest: Manifest, store: Store, settings: SettingsTree) -> None:
    """The notebook's loop, over batches gathered as Refit gathers them, without validation."""
    x, y = manifest.load_split("train", store)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, manifest.signature)
    optimizer = build_optimizer(settings.optimizer, model.parameters())
    dataset, batch_size = TensorDataset(x, y), settings.loader.batch_size
    for _ in range(settings.training.num_epochs):
        for rows in DataLoader(range(len(y)), batch_size=batch_size, shuffle=True, drop_last=True, collate_fn=torch.tensor):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(dataset[rows][0]), dataset[rows][1]).backward()
            optimizer.step()


def train_alone(manifest: Manifest, store: Store, settings: SettingsTree) -> nn.Module:
    """Refit's epochs with their validation, without Prefect and checkpoints."""
    prepare_compute(settings.compute)
    state = build_training_state(settings.model, settings.optimizer, manifest.signature, settings.seed, CPU)
    loader = build_train_loader(*manifest.load_split("train", store), settings.loader.batch_size, settings.loader.drop_last)
    val_loader = build_evaluation_loader(*manifest.load_split("val", store)) if "val" in manifest.splits else None
    for _ in range(settings.training.num_epochs):
        train_epoch(state, loader, lambda _: settings.optimizer.lr, device=CPU, val_loader=val_loader)
    return state.model


def run_alone(settings: SettingsTree) -> tuple[dict[str, float], Manifest]:
    """Seconds of each step of a run without Prefect, checkpoints and a saved version, and its data set."""
    store, clock = Store(settings.store.url), [time.perf_counter()]
    manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
    clock.append(time.perf_counter())
    model = train_alone(manifest, store, settings)
    clock.append(time.perf_counter())
    for split in manifest.splits:
        loader = build_evaluation_loader(*manifest.load_split(split, store))
        evaluate(
            model,
            loader,
            Classification((*list(map(str, manifest.classes)),)),
            CPU,
            settings.compute.precision,
        )
    clock.append(time.perf_counter())
    steps = (after - before for before, after in pairwise(clock))
    seconds = dict(zip(("build_dataset", "train", "evaluate"), steps, strict=True))
    return {**seconds, "all": clock[-1] - clock[0]}, manifest


def run_flow(settings: SettingsTree) -> dict[str, float]:
    """Seconds of each step of the flow, and of all of it."""
    started = time.perf_counter()
    seconds = train(settings).seconds
    return {**seconds, "all": time.perf_counter() - started}


def seconds_once_settled(run: Callable[[], object]) -> float:
    """Seconds of a run that begins when the server has done with what a run of a hundred tasks before told it."""
    time.sleep(SECONDS_TO_SETTLE)
    return seconds_of(run)


def measure_done(folder: Path, console: Console) -> None:
    """A run that is all done, beside an empty flow."""
    done, _ = resolve_settings({"training": {"num_epochs": NUM_DONE_EPOCHS}, "store": {"url": str(folder / "done")}})
    train(done)
    empty()
    pairs = [(seconds_once_settled(empty), seconds_once_settled(lambda: train(done))) for _ in range(REPEATS)]
    bare, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    console.print(f"empty flow {bare:.3f} s; {NUM_DONE_EPOCHS} epochs, all done before: {ours:.3f} s")


def measure_runs(name: str, given: dict[str, Any], folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each step of a run, without Prefect and checkpoints and in the flow; `plain` is the notebook's loop."""
    alone, flowing = list[dict[str, float]](), list[dict[str, float]]()
    for repeat in range(REPEATS):
        urls = (str(folder / f"{name}-{repeat}-{kind}") for kind in ("alone", "flow"))
        apart, ours = (resolve_settings({**given, "store": {"url": url}})[0] for url in urls)
        seconds, manifest = run_alone(apart)
        flowing.append(run_flow(ours))
        plain = seconds_of(lambda apart=apart, manifest=manifest: train_plainly(manifest, Store(apart.store.url), apart))
        alone.append({**seconds, "plain": plain})
    return take_medians(alone), take_medians(flowing)


def take_medians(measured: list[dict[str, float]]) -> dict[str, float]:
    """Of each step."""
    return {step: statistics.median(seconds[step] for seconds in measured) for step in measured[0]}


def build_tables(folder: Path, is_quick: bool) -> tuple[Table, Table]:
    """Measure all works: a table of seconds per epoch, and one of the steps of a run."""
    epochs = Table("model", "epochs", "plain loop, s/epoch", "train_epoch alone, s/epoch", "flow, s/epoch", "difference", "ratio")
    steps = Table("model", "step", "without Prefect and checkpoints, s", "flow, s", "ratio")
    for name, given in describe_works(folder, is_quick).items():
        alone, flowing = measure_runs(name, given, folder)
        num_epochs = given["training"]["num_epochs"]
        plain, bare, ours = (seconds / num_epochs for seconds in (alone["plain"], alone["train"], flowing["train"]))
        figures = (f"{seconds:.5f}" for seconds in (plain, bare, ours, ours - bare))
        epochs.add_row(name, f"{num_epochs:,}", *figures, f"{ours / bare:.3f}")
        for step, seconds in flowing.items():
            beside = (f"{alone[step]:.3f}", f"{seconds / alone[step]:.3f}") if step in alone else ("", "")
            steps.add_row(name, step, beside[0], f"{seconds:.3f}", beside[1])
    return epochs, steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows each, to see whether everything works")
    given = parser.parse_args()
    console = Console(width=132)
    with starting_server() as (url, server):
        await_own_server(url, server)
    settings = {PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with tempfile.TemporaryDirectory() as name, temporary_settings(settings):
        measure_done(Path(name), console)
        console.print(*build_tables(Path(name), given.quick))


if __name__ == "__main__":
    main()
