"""What Refit uses of Prefect beyond its documentation; `server/sqlite_server.py`, which imports nothing of ours, has the rest.

Each has a row in CONTRIBUTING and a test that says when a release changes it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from prefect.context import get_settings_context
from prefect.exceptions import Abort
from prefect.filesystems import WritableFileSystem
from prefect.results import get_result_store
from prefect.server.schemas.schedules import CronSchedule

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
    """As `temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})`, which takes a twentieth of a second to read all settings again."""
    context = get_settings_context()
    client = context.settings.client.model_copy(update={"max_retries": 0})
    with context.model_copy(update={"settings": context.settings.model_copy(update={"client": client})}):
        yield


def plan_runs(cron: str, timezone: str, count: int) -> list[datetime]:
    """When the next runs of a schedule are due, as the server plans them."""
    return list(asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(count)))
