"""Processes that were forked: the threads of PyTorch and Prefect are not in the copy, but what waits for them is."""

import os
from multiprocessing.util import Finalize

from refit.errors import SettingsError

_trained_in: int | None = None
"""The process that has trained."""


def check_process() -> None:
    """Note that this process trains.

    Raises:
        SettingsError: It was forked from one that had trained, so that it would wait for threads that are not there.
    """
    global _trained_in
    if _trained_in not in (None, os.getpid()):
        raise SettingsError(
            f"process: expected a newly started one, found {os.getpid()}, forked from {_trained_in}, which had trained;"
            ' start it by `multiprocessing.get_context("spawn")`, or train in it first'
        )
    _trained_in = os.getpid()


def leave_at_once(_: int = 0) -> None:
    """Let this process of `multiprocessing` end without the exit steps of threads that its copy does not have.

    Prefect's wait for its threads, and fail, and with them a loader process of every flow run (Prefect 3.8).
    """
    Finalize(None, os._exit, args=(0,), exitpriority=-100)
