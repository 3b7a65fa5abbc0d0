"""Where Refit's eager epochs spend their time, by PyTorch's profiler: share of each kind of operation in the works of `speed.py`.

Run as `python benchmarks/hotspots.py --works medium wide`; needs PyTorch alone.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

CONTENDERS = Path(__file__).parent / "contenders"
sys.path.append(str(CONTENDERS))
from refit_epochs import build_epoch  # noqa: E402
from work import WORKS, Work, save_rows  # noqa: E402

NUM_STEPS = 20
REPEATS = 9
KINDS = {
    "matrix products": ("addmm", "mm"),
    "activations and loss": (
        "clamp_min",
        "relu",
        "threshold_backward",
        "_log_softmax",
        "_log_softmax_backward_data",
        "nll_loss_forward",
        "nll_loss_backward",
    ),
    "biases, added and summed": ("copy_", "sum"),
    "optimizer": ("mul_", "lerp_", "addcmul_", "sqrt", "div", "add_", "addcdiv_", "_fused_adamw_", "_fused_sgd_"),
    "gathering rows": ("index", "index_select"),
}
"""PyTorch's operations by what they are for here."""


def measure(work: Work, folder: Path, num_threads: int) -> tuple[float, dict[str, float]]:
    """Seconds of the fastest of some epochs, and of each kind of operation in it."""
    save_rows(work, folder)
    x, y = (np.load(folder / f"{work.name}-{name}.npy") for name in "xy")
    _, train = build_epoch(work, x, y, seed=0, engine="eager", num_threads=num_threads)
    train()
    return min((profile_once(train) for _ in range(REPEATS)), key=lambda measured: measured[0])


def profile_once(train: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Seconds of a call, and of each kind of operation in it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        train()
        seconds = time.perf_counter() - started
    kinds = {f"aten::{operation}": kind for kind, operations in KINDS.items() for operation in operations}
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            spent[kinds.get(event.key, "other operations")] += event.self_cpu_time_total / 1e6
    return seconds, {**spent, "Python and dispatch": seconds - sum(spent.values())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", choices=WORKS, nargs="+", default=["medium", "wide"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    table = Table("work", "threads", "ms/step", *KINDS, "other operations", "Python and dispatch")
    for threads in given.threads:
        for name in given.works:
            work = replace(WORKS[name], num_rows=NUM_STEPS * WORKS[name].batch_size)
            with tempfile.TemporaryDirectory() as folder:
                seconds, spent = measure(work, Path(folder), threads)
            shares = [f"{spent.get(column.header, 0) / seconds:.1%}" for column in table.columns[3:]]
            table.add_row(name, str(threads), f"{seconds / NUM_STEPS * 1e3:.2f}", *shares)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
