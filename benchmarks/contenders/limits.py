"""Prints how fast this machine multiplies large matrices and copies memory, by PyTorch, as JSON."""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from refit.devices import is_onednn_faster, multiplying_by_onednn

REPEATS = 5
SIZE = 2048
NUM_BYTES = 2**29


def seconds_of(run: Callable[[], object]) -> float:
    """Median over a few calls, after one more."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print."""
    a, b, out = (torch.ones(SIZE, SIZE) for _ in range(3))
    with multiplying_by_onednn() if is_onednn_faster() else nullcontext():
        gflops = 2 * SIZE**3 / seconds_of(lambda: torch.mm(a, b, out=out)) / 1e9
    source, target = torch.ones(NUM_BYTES // 4), torch.ones(NUM_BYTES // 4)
    print(json.dumps({"gflops": gflops, "gb_per_second": 2 * NUM_BYTES / seconds_of(lambda: target.copy_(source)) / 1e9}))


if __name__ == "__main__":
    main()
