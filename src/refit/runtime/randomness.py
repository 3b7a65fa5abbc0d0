"""Seeds, captures and restores the random number generators, so that an epoch needs no history. One thread holds them at a time."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from refit.runtime.accelerators import get_generator_state, set_generator_state


class _Turns:
    """A reentrant lock, whose holder can see whether another thread waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entrance = threading.Lock()  # held by the thread that waits for the lock, so that none overtakes it
        self._holder: int | None = None

    @property
    def are_mine(self) -> bool:
        return self._holder == threading.get_ident()

    def is_anyone_waiting(self) -> bool:
        return self._entrance.locked()

    def take(self) -> None:
        with self._entrance:
            self._lock.acquire()
        self._holder = threading.get_ident()

    def let_go(self) -> None:
        if self.are_mine:  # false if an exception came while others had their turn
            self._holder = None
            self._lock.release()


_turns = _Turns()
_epochs = threading.Lock()
_device: torch.device | None = None


def get_device() -> torch.device | None:
    """Return the accelerator whose generator belongs to the state, if there is one."""
    return _device


def set_device(device: torch.device | None) -> None:
    """Say on which accelerator the model of the run at work draws; None is the CPU."""
    global _device
    _device = device


@contextmanager
def holding_generators(for_an_epoch: bool = False) -> Iterator[None]:
    """Wait until no other thread of this process holds the generators, then hold them. Blocks of one thread may be nested.

    Args:
        for_an_epoch: Whether the block is long and calls `give_way` in between. Such blocks of different threads run one after
            another.
    """
    if _turns.are_mine:
        yield
        return
    with _epochs if for_an_epoch else nullcontext():
        _turns.take()
        try:
            yield
        finally:
            _turns.let_go()


def give_way() -> None:
    """Let a waiting thread use the generators, then take them back in their former state; takes 0.1 µs if none waits."""
    if _turns.is_anyone_waiting() and _turns.are_mine:
        state = capture_random_state()
        _turns.let_go()
        _turns.take()
        restore_random_state(state)


def seed_everything(seed: int) -> None:
    """Seed torch (CPU and accelerators), numpy and python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def capture_random_state() -> dict[str, Any]:
    """Return the state of every generator, as tensors and primitives that `torch.load(weights_only=True)` accepts."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"])
    version, python_words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "accelerator": None if _device is None else get_generator_state(_device),
        "numpy": numpy_state,
        "python": [version, list(python_words), gauss_next],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore every generator to a captured state.

    That of an accelerator goes to the one at work, whichever number it had or has.
    """
    torch.set_rng_state(state["torch"])
    if _device is not None and state["accelerator"] is not None:
        set_generator_state(_device, state["accelerator"])
    mersenne_twister = {**state["numpy"]["state"], "key": state["numpy"]["state"]["key"].numpy()}
    np.random.set_state({**state["numpy"], "state": mersenne_twister})
    version, python_words, gauss_next = state["python"]
    random.setstate((version, tuple(python_words), gauss_next))


@contextmanager
def putting_generators_back() -> Iterator[None]:
    """Hold every generator for the block, and restore its state afterwards."""
    with holding_generators():
        state = capture_random_state()
        try:
            yield
        finally:
            restore_random_state(state)
