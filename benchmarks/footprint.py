"""What a command costs besides training: seconds to start, and time and memory as the rows grow, each in a process of its own.

Run as `python benchmarks/footprint.py`, on Linux, while nothing else runs; commands take turns, and medians are printed. All is
warm: the file cache and the folder of Prefect's database, though each run has a server and a store of its own. `--quick` only
tries whether everything works.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

REPEATS = 5
REFIT = str(Path(sys.executable).with_name("refit"))
PEAK = str(Path(__file__).with_name("peak.py"))
NUM_COLUMNS = 60
HIDDEN = 256
TRAINING = ("--model.hidden_sizes", f"[{HIDDEN},{HIDDEN}]", "--loader.batch_size", "1024", "--training.num_epochs", "2")
OPTIMIZER = ("--optimizer.name", "adamw", "--optimizer.lr", "0.001")
STATE_PER_PARAMETER = 4 * 4
"""Bytes: the parameter, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Footprint:
    """One run of `refit train`."""

    seconds: float
    """Of the flow's steps, start-up left out."""
    peak_mb: float
    snapshot_mb: float


def seconds_of(*command: str, folder: Path) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    run(*command, folder=folder)
    return time.perf_counter() - started


def run(*command: str, folder: Path) -> list[str]:
    """Lines that a command prints; Prefect's database is in the folder."""
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit code 0, found {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()


def measure_starts(folder: Path, repeats: int) -> Table:
    """Seconds of short commands."""
    commands = {
        "python -c 'import torch, prefect'": (sys.executable, "-c", "import torch, prefect"),
        "refit train (the notebook's table)": (REFIT, "train"),
        "refit --help": (REFIT, "--help"),
        "refit models": (REFIT, "models"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            store = ("--store.url", str(folder / f"store-{repeat}")) if command[-1] in ("train", "models") else ()
            seconds[name].append(seconds_of(*command, *store, folder=folder))
    table = Table("command", "seconds", "lowest", "highest", "more than the first")
    first = statistics.median(next(iter(seconds.values()))[1:])
    for name, (_, *warm) in seconds.items():
        median = statistics.median(warm)
        table.add_row(name, f"{median:.2f}", f"{min(warm):.2f}", f"{max(warm):.2f}", f"{median - first:+.2f}")
    return table


def train(source: Path, store: Path, folder: Path) -> Footprint:
    """Run the command and look at what it left."""
    data = ("--data.source", str(source), "--store.url", str(store))
    *_, printed, peak = run(sys.executable, PEAK, "train", "--json", *data, *TRAINING, *OPTIMIZER, folder=folder)
    result = json.loads(printed)
    splits = json.loads(Path(result["path"], "manifest.json").read_text())["splits"]
    snapshot = sum(split["size"] for split in splits.values())
    return Footprint(sum(result["seconds"].values()), float(peak), snapshot / 2**20)


def measure_growth(folder: Path, num_rows: int, repeats: int) -> Table:
    """Time and memory per row, and the peak beside what must be held."""
    generator = np.random.default_rng(0)
    counts = [num_rows * factor for factor in (1, 10, 100)]
    for count in counts:
        columns = {f"x{column}": generator.standard_normal(count, np.float32) for column in range(NUM_COLUMNS)}
        pl.DataFrame({**columns, "y": generator.integers(0, 10, count)}).write_parquet(folder / f"{count}.parquet")
    runs: dict[int, list[Footprint]] = {count: [] for count in counts}
    for repeat in range(repeats):
        for count in counts:
            runs[count].append(train(folder / f"{count}.parquet", folder / f"grown-{count}-{repeat}", folder))
    interpreter = statistics.median(float(run(sys.executable, PEAK, folder=folder)[-1]) for _ in range(repeats))
    sizes = (NUM_COLUMNS, HIDDEN, HIDDEN, 10)
    parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
    state = parameters * STATE_PER_PARAMETER / 2**20
    table = Table("rows", "seconds", "µs/row", "peak (MB)", "KB/row", "snapshot (MB)", "peak ÷ must be held")
    table.caption = (
        f"KB/row: above the {interpreter:.0f} MB of Python with torch and prefect; "
        f"must be held: these, the snapshot, and {state:.1f} MB of model and optimizer"
    )
    for count, done in runs.items():
        seconds, peak, snapshot = (
            statistics.median(getattr(each, name) for each in done) for name in ("seconds", "peak_mb", "snapshot_mb")
        )
        table.add_row(
            f"{count:,}",
            f"{seconds:.2f}",
            f"{seconds / count * 1e6:.2f}",
            f"{peak:.0f}",
            f"{(peak - interpreter) * 1024 / count:.2f}",
            f"{snapshot:.0f}",
            f"{peak / (snapshot + state + interpreter):.2f}",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and runs, to see whether everything works")
    given = parser.parse_args()
    repeats, num_rows = (1, 2000) if given.quick else (REPEATS, 10_000)
    console = Console(width=132)
    with tempfile.TemporaryDirectory() as name:
        console.print(measure_starts(Path(name), repeats))
        console.print(measure_growth(Path(name), num_rows, repeats))


if __name__ == "__main__":
    main()
