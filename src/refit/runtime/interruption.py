"""Holds back SIGTERM and Ctrl-C until the current batch is done and its checkpoint written."""

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
    """Hold back the first signal until the block ends or `deliver_signal` is called. A second signal takes effect at once.

    Python delivers signals to the main thread only, so in other threads this does nothing.
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
    """Whether a signal is held back."""
    return _held is not None


def deliver_signal() -> None:
    """Deliver the held signal, which usually raises an exception here; do nothing if there is none."""
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
