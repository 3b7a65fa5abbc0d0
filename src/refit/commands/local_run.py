"""Runs a flow in this process, with a server of its own if none is set.

Output is a progress bar on a terminal and plain lines elsewhere, all on stderr.
"""

import contextlib
import gc
import importlib
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

import refit
from refit.code import digest_code
from refit.commands.terminal import FAILED
from refit.errors import SettingsError, first_line
from refit.makers import find_maker
from refit.runs.keys import TRAINING_CODE
from refit.runtime.limits import check_address_space
from refit.server.own_server import is_server_named, starting_server
from refit.settings import DataSettings
from refit.texts import show_line

# Prefect reads these on import. Its telemetry floods stderr; its console log would repeat every line.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # or it would log every event that a lost server does not take

OURS = f"{Path(refit.__file__).parent}{os.sep}"
"""Log lines are shown only from code in this folder."""
NUM_RETRIES = 3
"""Retries of a call to a server that does not answer: 14 seconds in all."""
NEEDED_LATER = ("torchmetrics.functional", "fastapi.encoders")
"""Modules that a run needs later. Importing them takes half a second, and the process would only wait for its server."""
SECONDS_TO_STOP = 8
"""Seconds from a signal to the end of the process, whatever Prefect still waits for. All checkpoints are written by then."""


def run_locally(
    flow: str,
    *arguments: Any,
    when_stopped: str = "the training so far is kept, continue with",
    check: Callable[[], object] = lambda: None,
) -> Any:
    """Run a flow here and return its result, or the error that it failed with.

    Args:
        flow: Its entry point, as deployments write it: `refit.flows.training:train`.
        arguments: Its parameters.
        when_stopped: Printed after a signal, before the command.
        check: Called while the server starts; raises what the flow would raise for bad input.
    """
    _check_clock()
    check_address_space()
    logging.raiseExceptions = False  # or it would print a traceback for every batch of lines that a lost server does not take
    module, _, name = flow.partition(":")
    with _stopping_soon(when_stopped):
        with _importing(), _awaiting_server() as url:  # slow imports run while the server starts
            check()
            import httpx
            from prefect import settings

            from refit.server.api import ServerError

            found: Any = getattr(importlib.import_module(module), name)
        changes = {
            settings.PREFECT_API_URL: url,
            settings.PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            settings.PREFECT_CLIENT_MAX_RETRIES: NUM_RETRIES,
        }
        try:
            with settings.temporary_settings(changes), _report_progress():
                unkept = found.with_options(persist_result=False)  # the caller has it
                return unkept(*arguments, return_state=True).result(raise_on_failure=False)
        except httpx.HTTPError as error:
            _leave_soon()
            return ServerError(
                f"PREFECT_API_URL: expected the Prefect server at {url} to answer until the end, found {first_line(error)};"
                " finished work is kept: check that the server runs and has disk space, then run the same command again"
            )


def _check_clock() -> None:
    """Raise SettingsError for an impossible time zone, such as TZ=UTC+99, which would crash Prefect."""
    try:
        datetime.now().astimezone()
    except ValueError as error:
        found = os.environ.get("TZ")
        raise SettingsError(f"TZ: expected a zone such as Europe/Berlin, found {found!r}, too far from UTC; correct it") from error


@contextmanager
def _importing() -> Iterator[None]:
    """Exclude the imported modules from garbage collection: they stay in use, and scanning them takes a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _awaiting_server() -> Iterator[str]:
    """Give the URL of the API to report to: the one that is set, or that of our own server. It answers after the block."""
    if is_server_named():
        from prefect.settings import PREFECT_API_URL

        if url := PREFECT_API_URL.value():
            from refit.server.api import SECONDS_TO_ANSWER, await_server

            await_server(SECONDS_TO_ANSWER)
            yield url
            return
    with starting_server() as (url, server):
        yield url
        from refit.server.api import await_own_server

        for module in NEEDED_LATER:
            importlib.import_module(module)
        digest_code([*find_maker(DataSettings()).list_code(), *TRAINING_CODE])  # cached for the run
        await_own_server(url, server)


def _leave_soon() -> None:
    """End the process soon, although Prefect waits on exit until a server has taken every event."""
    timer = threading.Timer(SECONDS_TO_STOP, os._exit, [FAILED])
    timer.daemon = True
    timer.start()


@contextmanager
def _stopping_soon(advice: str) -> Iterator[None]:
    """Say how to go on when a signal comes, let it raise, and end the process if that takes too long."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        signums = b""
        with contextlib.suppress(OSError):  # the socket is closed at the end
            signums = reader.recv(1)
        if not signums or signums[0] not in (signal.SIGTERM, signal.SIGINT):
            return
        name = signal.Signals(signums[0]).name
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        print(show_line(f"stopped by {name}; {advice}: {command}"), file=sys.stderr, flush=True)
        time.sleep(SECONDS_TO_STOP)
        os._exit(128 + signums[0])

    def leave(signum: int, _: object) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave), signal.signal(signal.SIGINT, leave), signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        signal.set_wakeup_fd(before[2])
        writer.close()
        reader.close()


@contextmanager
def _report_progress() -> Iterator[None]:
    """Show what our own flows and tasks log while the context is open."""
    console = Console(stderr=True, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        handler = _ProgressHandler(bar)
        loggers = [logging.getLogger(name) for name in ("prefect.flow_runs", "prefect.task_runs")]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)


class _ProgressHandler(logging.Handler):
    """Moves the bar on lines that report progress and prints the others above it; without a terminal, prints every line."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(logging.INFO)
        self.bar = bar
        self.task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if not record.pathname.startswith(OURS):
            return  # Prefect's own
        if hasattr(record, "progress") and not self.bar.disable:
            (completed, total), (position, _, figures) = record.progress, record.getMessage().partition(": ")
            if self.task is None:
                self.task = self.bar.add_task("", total=None, figures="")
            self.bar.update(self.task, completed=completed, total=total, description=position, figures=figures)
        else:
            self.bar.console.print(show_line(record.getMessage()), markup=False, highlight=False)
