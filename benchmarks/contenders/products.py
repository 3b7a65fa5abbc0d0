"""The machine's limit: only the matrix products of an epoch's steps, of the same shapes, by PyTorch, into buffers that are there.

Small products are made one a call or many a call, on one thread or all, by MKL or oneDNN, whichever is fastest: of the smallest,
one call each would measure Python.
"""

import time
from collections.abc import Callable
from itertools import product

import torch
from limits import Library, find_libraries
from torch import Tensor
from work import Array, Labels, Layers, Work, race

from refit.runtime.devices import computing_on_one_thread

PRODUCTS_PER_CALL = (1, 16, 64)
LARGEST_IN_MANY = 10_000_000
"""Multiplications; larger products are made one a call."""
CALLS_TO_CHOOSE = 5

Product = tuple[Callable[[], Tensor], int, Library]
"""A call that multiplies, how many products it makes, and what makes them."""


def build_product(m: int, k: int, n: int) -> Product:
    """The fastest call for products of `(m, k)` and `(k, n)`."""
    counts = PRODUCTS_PER_CALL if m * k * n <= LARGEST_IN_MANY else (1,)
    libraries = [*find_libraries(), computing_on_one_thread]
    return min(((_batch_product(m, k, n, count), count, library) for count, library in product(counts, libraries)), key=_measure)


def _batch_product(m: int, k: int, n: int, count: int) -> Callable[[], Tensor]:
    a, b, out = torch.randn(count, m, k), torch.randn(count, k, n), torch.empty(count, m, n)
    if count == 1:
        return lambda: torch.mm(a[0], b[0], out=out[0])
    return lambda: torch.bmm(a, b, out=out)


def _measure(product: Product) -> float:
    """Seconds of one product, at best."""
    multiply, count, library = product
    times = []
    with library():
        for _ in range(CALLS_TO_CHOOSE):
            started = time.perf_counter()
            multiply()
            times.append((time.perf_counter() - started) / count)
    return min(times)


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None]) -> Layers:  # noqa: ARG001
    """Multiply; nothing is trained."""
    products = [build_product(*shape) for shape in work.products]
    lap()
    for _ in range(num_epochs):
        for multiply, count, library in products:
            with library():
                for _ in range(-(-work.num_steps // count)):
                    multiply()
        lap()
    return []


if __name__ == "__main__":
    race(train)
