"""A Prefect server with workers, as a user has them: deployed from one folder, run in another, by the code in a third."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from kill_campaign import REFIT, write_work

from refit.server.project import name_pool
from refit.store.store import Store

ROOT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")
TIMEOUT_SECONDS = 400
SELDOM = 0.5
"""Seconds between two looks for what stays once it is there: the server needs a processor to answer."""
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Site:
    """The processes and folders of one user.

    Attributes:
        desk: Where `refit deploy` is given; of all settings, its `refit.toml` names the source alone.
        project: Where runs find `refit.toml`, the table and the store.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.project, self.desk, clone = folder, folder / "project", folder / "desk", folder / "clone"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        shutil.copytree(ROOT / "src", clone, ignore=shutil.ignore_patterns("__pycache__"))  # links become folders
        for place in (self.project, self.desk):
            place.mkdir()
        write_work(self.project)
        (self.desk / "refit.toml").write_text('[data]\nsource = "digits.parquet"\n')
        self.store = Store(str(self.project / "refit-store"))
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_", "COV_"))}
        self.environment = {
            **mine,
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": make_home(folder, database),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        self.of_worker = {"PROJECT_FOLDER": str(self.project), "PYTHONPATH": str(clone)}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.server = self.start_server()

    def start_server(self) -> subprocess.Popen[bytes]:
        server = self.start("server", [REFIT, "server", "--host", "127.0.0.1", "--port", str(self.port)], self.desk)
        wait_for(self.is_ready)
        return server

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [PREFECT, "worker", "start", "--pool", name_pool(self.desk), "--type", "process"]
        self.workers.append(self.start("worker", command, self.desk, self.of_worker))
        return self.workers[-1]

    def start(
        self, log: str, command: Sequence[str | Path], cwd: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with self.log(log).open("ab") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**self.environment, **(environment or {})},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def cut_power(self) -> None:
        """Kill server, workers and runs, which outlive them, so that none sees another die."""
        for signum in (signal.SIGSTOP, signal.SIGKILL):
            for process in find_processes("PREFECT_HOME", self.environment["PREFECT_HOME"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signum)
        for process in self.processes:
            process.wait()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """With all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def is_ready(self) -> bool:
        """Whether the server answers from its database; that it is healthy it says before."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.post(f"{self.url}/flow_runs/count", json={}, timeout=30).is_success
        return False

    def refit(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command, place = [REFIT, *arguments], cwd or self.desk
        return subprocess.run(command, cwd=place, env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    def read(self, path: str) -> Any:
        return self.request("GET", path).raise_for_status().json()

    def ask(self, path: str, **body: Any) -> httpx.Response:
        return self.request("POST", path, json=body)

    def request(self, method: str, path: str, **fields: Any) -> httpx.Response:
        """Asked again while the server is busy, as Prefect's client does."""
        while (answer := httpx.request(method, f"{self.url}{path}", timeout=TIMEOUT_SECONDS, **fields)).status_code == 503:
            time.sleep(0.2)
        return answer

    def start_run(self, deployment: str, parameters: dict[str, Any]) -> httpx.Response:
        number = self.read(f"/deployments/name/{deployment}")["id"]
        return self.ask(f"/deployments/{number}/create_flow_run", parameters=parameters)

    def list_runs(self, deployment: str) -> list[dict[str, Any]]:
        """Those that came to an end, the earliest first."""
        number = self.read(f"/deployments/name/{deployment}")["id"]
        runs = self.ask("/flow_runs/filter", deployments={"id": {"any_": [number]}}, sort="EXPECTED_START_TIME_ASC").json()
        return [run for run in runs if run["state_type"] in FINAL]


def make_home(folder: Path, database: Path) -> str:
    """Make a `PREFECT_HOME` in the folder, with a database that is there already."""
    home = folder / "prefect"
    home.mkdir()
    shutil.copy(database, home)
    return str(home)


def find_processes(variable: str, value: str) -> list[int]:
    """Those that have this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{variable}={value}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def wait_for(find: Callable[[], Any], seconds_between: float = 0.1) -> Any:
    give_up_at = time.monotonic() + TIMEOUT_SECONDS
    while not (found := find()):
        assert time.monotonic() < give_up_at
        time.sleep(seconds_between)
    return found
