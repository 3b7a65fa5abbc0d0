"""A flow run in this process, with a server of its own where none is set.

Quiet: a progress bar on a terminal, plain lines elsewhere, all on stderr.
"""

import atexit
import ctypes
import importlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Prefect reads these on import. Its telemetry floods stderr; its console log would say everything twice.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # else every event that a lost server does not take

import httpx
import prefect
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    temporary_settings,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.server import SECONDS_TO_ANSWER, ServerError, await_server
from flows.terminal import FAILED
from refit.store import Store

FLOORS = ("flows", "tasks", "refit")
SECONDS_TO_START = 60
NUM_RETRIES = 3
"""Of a call to a server that has gone: 14 seconds in all."""
SECONDS_TO_STOP = 8
"""From a signal to the end of the process, whatever Prefect still waits for: what was trained is kept by then."""


def run_locally(flow: str, *arguments: Any, when_stopped: str = "what was trained is kept, go on with") -> Any:
    """Run a flow here and return its result, or what it failed of.

    Args:
        flow: Where it is, as deployments write it: `flows.training:train`.
        arguments: Its parameters.
        when_stopped: What to say after a signal, in front of the command.
    """
    logging.raiseExceptions = False  # else every batch of lines that a lost server does not take
    module, _, name = flow.partition(":")
    with _stopping_soon(when_stopped):
        with _starting_server() as url:
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)  # while the server starts
        changes = {PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_CLIENT_MAX_RETRIES: NUM_RETRIES}
        try:
            with temporary_settings(changes), _report_progress():
                return found(*arguments, return_state=True).result(raise_on_failure=False)
        except httpx.TransportError as error:
            _leave_soon()
            return ServerError(
                f"PREFECT_API_URL: expected the Prefect server at {url} to be there to the end, found {error};"
                " what was done is kept: start the server, and give the same command again"
            )


@contextmanager
def _starting_server() -> Iterator[str]:
    """Give the API to report to: the one that is set, or else that of a server for the time of this process.

    The server starts while the block runs, and answers after it. Of several processes each waits for the server of the one before:
    two that make Prefect's database at once break one another.
    """
    if PREFECT_API_URL.value():
        url = str(PREFECT_API_URL.value())
        await_server(url, SECONDS_TO_ANSWER)
        yield url
        return
    with Store(str(PREFECT_HOME.value())).lock("refit server", lambda: None):
        url, server = _start_server()
        yield url
        await_server(url, SECONDS_TO_START, server)


def _start_server() -> tuple[str, subprocess.Popen[bytes]]:
    """Start a server; return its API and its process.

    Prefect's own temporary server starts only once it is asked for, dies of signals meant for us, and outlives us if we are
    killed; otherwise this is the same.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
    server = subprocess.Popen(
        [*command, "--app-dir", str(Path(prefect.__file__).parents[1]), "--port", port, "--log-level", "error"],
        env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    atexit.register(_stop_server, server)  # runs after the exit steps that Prefect registers later, which still send logs
    return f"http://127.0.0.1:{port}/api", server


def _stop_server(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=SECONDS_TO_STOP / 2)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _leave_soon() -> None:
    """End the process in time, though Prefect waits on its way out for a server to take every event."""
    timer = threading.Timer(SECONDS_TO_STOP, os._exit, [FAILED])
    timer.daemon = True
    timer.start()


@contextmanager
def _stopping_soon(advice: str) -> Iterator[None]:
    """Say how to go on when a signal comes, let it raise, and end the process if that takes too long."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        signums = reader.recv(1)
        if not signums or signums[0] not in (signal.SIGTERM, signal.SIGINT):
            return
        name = signal.Signals(signums[0]).name
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        print(f"stopped by {name}; {advice}: {command}", file=sys.stderr, flush=True)
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
    """Moves the bar on lines that say how far it is, prints the others above it; without a terminal prints every line."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(logging.INFO)
        self.bar = bar
        self.task: TaskID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if Path(record.pathname).parent.name not in FLOORS:
            return  # Prefect's own
        if hasattr(record, "progress") and not self.bar.disable:
            (completed, total), (position, _, figures) = record.progress, record.getMessage().partition(": ")
            if self.task is None:
                self.task = self.bar.add_task("", total=None, figures="")
            self.bar.update(self.task, completed=completed, total=total, description=position, figures=figures)
        else:
            self.bar.console.print(record.getMessage(), markup=False, highlight=False)
