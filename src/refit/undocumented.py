"""Parts of Prefect that Refit uses and Prefect does not document; those of `server/sqlite_server.py` are there.

Each has a row in CONTRIBUTING and a test that fails if a release changes it.
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
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort
from prefect.filesystems import WritableFileSystem
from prefect.logging.handlers import APILogWorker
from prefect.results import get_result_store
from prefect.settings import PREFECT_API_URL
from pydantic import TypeAdapter

RUN_COUNT = "prefect.run-count"
"""The label of a run's events that says how often it has begun."""


class PlainKeys(WritableFileSystem):
    """A place that keeps results under their keys as paths."""

    def _resolve_path(self, _: str) -> None:
        """Prefect calls this if a file system is not a saved block."""


def pack_result(result: Any, key: str) -> bytes:
    """Return a result with Prefect's record around it, in the form that the flow at work reads."""
    return get_result_store().create_result_record(result, key).serialize()


def unpack_result(content: bytes, key: str) -> bytes:
    """Return the result in such a record, as the flow's serializer wrote it."""
    return type(get_result_store().create_result_record(None, key)).deserialize(content).serialize_result()


class RunKeepsState(Abort):
    """Raised in a flow, it ends the run in the state that the run already has on the server."""


@contextmanager
def asking_once() -> Iterator[None]:
    """Have Prefect's client not ask again if a server does not answer.

    `temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})` does the same, but reads all settings again, which takes 50 ms.
    """
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 0})
    with context.model_copy(update={"settings": context.settings.model_copy(update={"client": client})}):
        yield


def plan_runs(schedule: schedules.SCHEDULE_TYPES, count: int) -> list[datetime]:
    """Return when the next runs of a schedule are due, as the server plans them."""
    from prefect.server.schemas.schedules import SCHEDULE_TYPES  # takes 14 ms, and runs do not need it

    planned = TypeAdapter(SCHEDULE_TYPES).validate_python(schedule.model_dump())
    return list(asyncio.run(planned.get_dates(count)))


def stop_server_with_process() -> None:
    """Let a forked process of `multiprocessing`, which skips the exit steps of `atexit`, stop the server that Prefect started."""
    if multiprocessing.parent_process() is not None and not PREFECT_API_URL.value():
        Finalize(None, _stop_server, exitpriority=0)


def _stop_server() -> None:
    """Stop the server once it has all events and log lines; later the process would try for a minute to send them."""
    from prefect.server.api.server import SubprocessASGIServer  # loaded by now; elsewhere, the import would be slow

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all()
    SubprocessASGIServer().stop()
