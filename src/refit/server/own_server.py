"""A Prefect server for the lifetime of this process. It starts while this process imports Prefect, as both take equally long."""

import atexit
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from refit.errors import SettingsError, StoreError
from refit.store.store import Store

SQLITE_SERVER = str(Path(__file__).with_name("sqlite_server.py"))
SECONDS_TO_STOP = 4
HOST = "127.0.0.1"


def find_prefect_home() -> Path:
    """Return Prefect's folder; if the user has no home folder, set HOME to it, because Prefect and PyTorch need one.

    Raises:
        SettingsError: PREFECT_HOME is not set, and the user has no home folder.
    """
    folder = os.environ.get("PREFECT_HOME", "~/.prefect")
    try:
        Path.home()
    except RuntimeError as error:
        if folder.startswith("~"):
            raise SettingsError(
                "PREFECT_HOME: expected a folder for Prefect's database, found neither it nor HOME nor a home folder of user"
                f" {os.getuid()}; set it"
            ) from error
        os.environ["HOME"] = folder
    return Path(folder).expanduser()


HOME = find_prefect_home()


def is_server_named() -> bool:
    """Whether Prefect's settings may name a server: environment, profiles, `prefect.toml`, `.env`, `pyproject.toml`.

    Prefect itself is asked only then, because its settings import all of it, which takes 1.3 seconds of a processor. A run that
    needs a server of its own does that while the server starts.
    """
    variables = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH")
    words = {
        HOME / "profiles.toml": "",
        Path("prefect.toml"): "",
        Path(".env"): "prefect_",
        Path("pyproject.toml"): "[tool.prefect",
    }
    is_loaded = "prefect" in sys.modules  # then asking it costs nothing
    return (
        is_loaded
        or any(name in os.environ for name in variables)
        or any(path.is_file() and word in path.read_text(errors="replace").lower() for path, word in words.items())
    )


@contextmanager
def starting_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a server and yield its address and its process; other processes start theirs only after the block.

    Two servers that create Prefect's database at once break each other.

    Raises:
        StoreError: The folder for the database cannot be used.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(Store(str(HOME)).lock("refit server", lambda: None))
        except StoreError as error:
            raise StoreError(
                f"PREFECT_HOME: expected a folder where a Prefect server can keep its database, found: {error.__cause__};"
                " set PREFECT_HOME to another, or permit writing and free space there"
            ) from error
        _pass_proxies_by()
        yield _start_server()


def _start_server() -> tuple[str, subprocess.Popen[bytes]]:
    """Start a server like Prefect's temporary one, which would start later, die from signals to us, and outlive us."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-P", SQLITE_SERVER, "own", port],
        env={**os.environ, "PREFECT_UI_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    atexit.register(_stop_server, server)
    return f"http://{HOST}:{port}/api", server


def _pass_proxies_by() -> None:
    """Have this process reach its own server directly, whatever proxies the environment names."""
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = f"{others},{HOST}" if others else HOST


def _stop_server(server: subprocess.Popen[bytes]) -> None:
    """Stop it after the exit steps that Prefect registers later, which still send logs."""
    server.terminate()
    try:
        server.wait(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
