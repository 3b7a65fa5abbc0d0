"""Random number generators: seeded, captured and restored, so that an epoch needs no history."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_held = threading.RLock()


@contextmanager
def holding_generators() -> Iterator[None]:
    """Let no other thread of this process draw from the generators, or put them back, that holds them too; it waits."""
    with _held:
        yield


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and accelerators), numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def capture_random_state() -> dict[str, Any]:
    """The state of every generator, as tensors and primitives that `torch.load(weights_only=True)` takes."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"])
    version, python_words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "numpy": numpy_state,
        "python": [version, list(python_words), gauss_next],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `capture_random_state` found it; generators of devices that are not here are left."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])
    mersenne_twister = {**state["numpy"]["state"], "key": state["numpy"]["state"]["key"].numpy()}
    np.random.set_state({**state["numpy"], "state": mersenne_twister})
    version, python_words, gauss_next = state["python"]
    random.setstate((version, tuple(python_words), gauss_next))


@contextmanager
def putting_generators_back() -> Iterator[None]:
    """Hold every generator, and leave it as the block found it."""
    with _held:
        state = capture_random_state()
        try:
            yield
        finally:
            restore_random_state(state)
