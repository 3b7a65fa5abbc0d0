"""What Refit uses of Prefect beyond its documentation; `server/sqlite_server.py`, which imports nothing of ours, has the rest.

Each has a row in CONTRIBUTING and a test that says when a release changes it.
"""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.util import Finalize
from typing import Any

from prefect.client.schemas import schedules
from prefect.context import get_settings_context
from prefect.exceptions import Abort
from prefect.filesystems import WritableFileSystem
from prefect.results import get_result_store
from prefect.settings import PREFECT_API_URL
from pydantic import TypeAdapter

RUN_COUNT = "prefect.run-count"
"""The label of a run's events that says how often it has begun."""


class PlainKeys(WritableFileSystem):
    """A place for results whose paths are their keys."""

    def _resolve_path(self, _: str) -> None:
        """Prefect asks for this where a file system is no saved block."""


def pack_result(result: Any, key: str) -> bytes:
    """A result with Prefect's record around it, as Prefect reads it where the flow at work keeps results."""
    return get_result_store().create_result_record(result, key).serialize()


def unpack_result(content: bytes, key: str) -> bytes:
    """What the flow's serializer made of the result in such a record."""
    return type(get_result_store().create_result_record(None, key)).deserialize(content).serialize_result()


class RunKeepsState(Abort):
    """Raised in a flow, it ends the run in the state that the server has it in."""


@contextmanager
def asking_once() -> Iterator[None]:
    """Have Prefect's client ask a server that does not answer no second time.

    As `temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})` does, which takes a twentieth of a second to read all settings again.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 0})
    with context.model_copy(update={"settings": context.settings.model_copy(update={"client": client})}):
        yield


def plan_runs(schedule: schedules.SCHEDULE_TYPES, count: int) -> list[datetime]:
    """When the next runs of a schedule are due, as the server plans them."""
    from prefect.server.schemas.schedules import SCHEDULE_TYPES  # for 14 ms, which no run needs

    planned = TypeAdapter(SCHEDULE_TYPES).validate_python(schedule.model_dump())
    return list(asyncio.run(planned.get_dates(count)))


def stop_server_with_process() -> None:
    """Let a forked process of `multiprocessing`, which skips the exit steps of `atexit`, stop the server that Prefect started."""
    if multiprocessing.parent_process() is not None and not PREFECT_API_URL.value():
        from prefect.server.api.server import SubprocessASGIServer  # which is there by now, and takes long elsewhere

        Finalize(None, SubprocessASGIServer().stop, exitpriority=0)
