"""How fast files are scored, and in how much memory: 0.5 and 5 million rows of 8 numbers, 2 categories and a date-time.

Run as `python benchmarks/prediction.py`; each file is scored in a process of its own, on Linux.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.registry.saving import save_version
from refit.serving.saved_model import load_model
from refit.serving.scoring import score_files
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training.checkpoints import save_state
from refit.training.evaluation import evaluate
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import Classification

NUM_ROWS = (500_000, 5_000_000)
NUM_TRAIN_ROWS = 20_000
CPU = torch.device("cpu")


def make_rows(num_rows: int) -> pl.DataFrame:
    """Rows of every kind, some numbers missing."""
    generator = np.random.default_rng(0)
    numbers = {f"x{i}": generator.normal(size=num_rows).round(4) for i in range(8)}
    names = {
        "colour": generator.choice(np.array(["red", "green", "blue", "black"]), num_rows),
        "city": generator.choice(np.array([f"city {i}" for i in range(60)]), num_rows),
    }
    seconds = generator.integers(0, 10**8, num_rows).astype("timedelta64[s]")
    frame = pl.DataFrame({**numbers, **names, "seen": (np.datetime64("2020-01-01T00:00:00") + seconds).astype("datetime64[us]")})
    gone = pl.when(pl.col("x1") > 1.5).then(None).otherwise(pl.col("x1"))
    return frame.with_columns(gone.alias("x1"), (pl.col("x0") + pl.col("x2") > 0).alias("y"))


def train_model(frame: pl.DataFrame, folder: Path) -> str:
    """Train for an epoch and save; the version's folder."""
    frame.write_parquet(folder / "train.parquet")
    given = {"data": {"source": str(folder / "train.parquet")}, "loader": {"batch_size": 256}, "model": {"hidden_sizes": [64, 64]}}
    settings, store = SettingsTree.model_validate(given), Store(str(folder / "store"))
    manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
    state = build_training_state(settings.model, settings.optimizer, manifest.signature, seed=0, device=CPU)
    loader = build_train_loader(*manifest.load_split("train", store), settings.loader.batch_size, settings.loader.drop_last)
    logs = [train_epoch(state, loader, lambda _: settings.optimizer.lr, device=CPU)]
    val = build_evaluation_loader(*manifest.load_split("val", store))
    metrics = {"val": evaluate(state.model, val, Classification((*["no", "yes"],)), CPU, "fp32")}
    return save_version(save_state(state, store), settings, manifest, logs, metrics, store).path


def score(version: str, source: str, output: str) -> None:
    """Score one file, and print rows, seconds and peak memory in MB."""
    model = load_model(version)
    started = time.perf_counter()
    num_rows = score_files(model, source, output, "benchmark@v1").num_rows
    seconds = time.perf_counter() - started
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(num_rows, seconds, int(peak.split()[1]) / 1024)


def main() -> None:
    """Measure and print."""
    table = Table("rows", "file", "seconds", "rows per second", "peak memory (MB)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = make_rows(max(NUM_ROWS))
        version = train_model(frame.head(NUM_TRAIN_ROWS), folder)
        for num_rows in NUM_ROWS:
            frame.head(num_rows).write_parquet(folder / f"{num_rows}.parquet")
            frame.head(num_rows).write_csv(folder / f"{num_rows}.csv")
        for suffix in ("parquet", "csv"):
            for num_rows in NUM_ROWS:
                arguments = [version, str(folder / f"{num_rows}.{suffix}"), str(folder / "scored.parquet")]
                finished = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
                scored, seconds, megabytes = map(float, finished.stdout.split())
                table.add_row(f"{scored:,.0f}", suffix, f"{seconds:.2f}", f"{scored / seconds:,.0f}", f"{megabytes:.0f}")
    Console().print(table)


if __name__ == "__main__":
    score(*sys.argv[1:]) if len(sys.argv) > 1 else main()
