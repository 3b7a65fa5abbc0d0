"""SIGTERM and Ctrl-C, held back until the batch at work is done and its checkpoint written."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_handlers: dict[int, Any] = {}
_held: int | None = None


@contextmanager
def holding_signals() -> Iterator[None]:
    """Hold back the first signal until the block ends or `deliver_signal` is called; a second one has its effect at once.

    Python hands signals to the main thread alone, so in another thread nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _handlers.update({signum: signal.signal(signum, _hold) for signum in SIGNALS})
    try:
        yield
    finally:
        _stop_holding()
        deliver_signal()


def is_signal_held() -> bool:
    """Whether a signal waits to be delivered."""
    return _held is not None


def deliver_signal() -> None:
    """Let a signal that is held have its effect, which as a rule is an exception raised here; without one, do nothing."""
    global _held
    if _held is not None:
        _stop_holding()
        held, _held = _held, None
        os.kill(os.getpid(), held)


def _stop_holding() -> None:
    for signum, handler in _handlers.items():
        signal.signal(signum, handler)
    _handlers.clear()


def _hold(signum: int, _: FrameType | None) -> None:
    global _held
    if _held is not None:
        deliver_signal()
    _held = signum
