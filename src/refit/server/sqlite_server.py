"""Prefect's server, made to hold on SQLite: a script for a process of its own, which starts sooner by importing nothing of ours.

`sqlite_server.py own PORT` serves a local run; `sqlite_server.py start …` does what `prefect server start …` does.
"""

import gc
import logging
import runpy
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

gc.disable()  # before Prefect is imported, as its objects stay

SECONDS_BETWEEN_COLLECTIONS = 5


def main(arguments: list[str]) -> None:
    """Serve until a signal."""
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_API_BASE_PATH, temporary_settings

    if arguments[0] == "own":
        with temporary_settings(restore_defaults={PREFECT_SERVER_API_AUTH_STRING, PREFECT_SERVER_API_BASE_PATH}):
            write_first()
            serve(int(arguments[1]))
    else:
        write_first()
        collect_aside()
        sys.argv = ["prefect", "server", *arguments]
        runpy.run_module("prefect", run_name="__main__")


def serve(port: int) -> None:
    """Serve on the loopback interface, for a local run."""
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), port=port, lifespan="on", log_level="error"))
    # If Prefect is stopped while it starts, it prints a traceback, which would hide why it was stopped.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
    collect_aside()
    server.run()
    sys.exit(0 if server.started else 3)


def collect_aside() -> None:
    """Collect garbage in a thread of its own.

    To free a cursor, the thread may have to wait for SQLite, and SQLite for a transaction of the thread that serves. If that
    thread did it, Prefect would stand still until SQLite gave up, after 60 seconds.
    """

    def collect() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_COLLECTIONS)
            gc.collect()

    gc.freeze()
    threading.Thread(target=collect, daemon=True).start()


def write_first() -> None:
    """Have every transaction of SQLite take its turn to write when it begins.

    Prefect's transactions begin by reading. If another one writes before such a transaction does, SQLite refuses it at once,
    whatever its timeout, and Prefect answers 503.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import set_database_config
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    class WritingFirst(AioSqliteConfiguration):
        @asynccontextmanager
        async def begin_transaction(
            self, session: AsyncSession, with_for_update: bool = False
        ) -> AsyncGenerator[AsyncSessionTransaction, None]:
            del with_for_update
            async with super().begin_transaction(session, with_for_update=True) as transaction:
                yield transaction

    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if url.startswith("sqlite"):
        set_database_config(WritingFirst(url))


if __name__ == "__main__":
    main(sys.argv[1:])
