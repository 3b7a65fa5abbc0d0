"""Prints how fast this machine multiplies large matrices and copies memory, by PyTorch, as JSON."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

REPEATS = 5
SIZE = 2048
NUM_BYTES = 2**29

Library = Callable[[], AbstractContextManager[None]]


@contextmanager
def multiplying_by_onednn() -> Iterator[None]:
    """Let oneDNN compute fp32 products, and not MKL."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def find_libraries() -> list[Library]:
    """What may make fp32 products: MKL, and oneDNN where it is not let round to bf16, for which it takes matrix units."""
    return [nullcontext] if torch.cpu.get_capabilities().get("amx_tile") else [nullcontext, multiplying_by_onednn]


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
    gflops = 0.0
    for library in find_libraries():
        with library():
            gflops = max(gflops, 2 * SIZE**3 / seconds_of(lambda: torch.mm(a, b, out=out)) / 1e9)
    source, target = torch.ones(NUM_BYTES // 4), torch.ones(NUM_BYTES // 4)
    print(json.dumps({"gflops": gflops, "gb_per_second": 2 * NUM_BYTES / seconds_of(lambda: target.copy_(source)) / 1e9}))


if __name__ == "__main__":
    main()
