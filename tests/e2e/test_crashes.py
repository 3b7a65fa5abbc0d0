"""Runs that die under a real worker: the server starts them again, and they end with the bits of a run that lived."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from kill_campaign import REFIT, comparable, run_once, running_server, write_work

pytestmark = pytest.mark.slow

PREFECT = Path(sys.executable).with_name("prefect")
TIMEOUT_SECONDS = 400
SUICIDAL = """
import os
import signal


def build(num_inputs, num_outputs):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def site(tmp_path) -> Iterator["Site"]:
    """A server with Refit's deployments and automations, and a worker that runs them in this test's folder."""
    with running_server(tmp_path) as url:
        site = Site(url, tmp_path)
        subprocess.run([REFIT, "deploy"], cwd=tmp_path, env=site.environment, check=True, capture_output=True)
        site.start_worker()
        try:
            yield site
        finally:
            site.worker.terminate()
            site.worker.wait(timeout=60)


@dataclass
class Site:
    """Where runs are."""

    url: str
    folder: Path
    worker: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PROJECT_FOLDER": str(self.folder),
        }

    def start_worker(self) -> None:
        command = [PREFECT, "worker", "start", "--pool", "refit-pool"]
        with (self.folder / "worker.log").open("a") as log:
            self.worker = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


def start_run(url: str, settings: dict) -> str:
    deployment = httpx.get(f"{url}/deployments/name/train/train").json()["id"]
    while True:
        run = httpx.post(f"{url}/deployments/{deployment}/create_flow_run", json={"parameters": {"settings": settings}}, timeout=30)
        if run.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # its database is busy
            return run.raise_for_status().json()["id"]
        time.sleep(1)


def wait_for(find: Callable[[], object]) -> object:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def read_run(url: str, run: str) -> dict:
    return httpx.get(f"{url}/flow_runs/{run}", timeout=60).json()


def find_processes(run: str) -> list[int]:
    """The processes that execute a flow run: their environment names it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"PREFECT__FLOW_RUN_ID={run}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def find_training(run: str) -> int | None:
    """The one of them that has loaded torch."""
    for process in find_processes(run):
        with contextlib.suppress(OSError):
            if "libtorch" in Path(f"/proc/{process}/maps").read_text():
                return process
    return None


def test_a_killed_run_is_started_again_and_ends_with_the_same_bits(site, tmp_path):
    """Killed by itself, twice, and then together with its worker, so that nobody reports it."""
    write_work(tmp_path)
    settings = (tmp_path / "refit.toml").read_text()  # more epochs, as runs are to be killed before they end
    (tmp_path / "refit.toml").write_text(
        settings.replace("num_epochs = 10", "num_epochs = 60").replace("patience = 2", "patience = 60")
    )
    expected = comparable(run_once(tmp_path, tmp_path / "straight", site.url).output)
    run = start_run(site.url, {})
    results = tmp_path / "refit-store" / "results"
    for num_results in (4, 12, 20):
        wait_for(lambda n=num_results: results.exists() and len(list(results.iterdir())) >= n and find_training(run))
        if num_results == 20:
            processes = [site.worker.pid, *find_processes(run)]
            for signum in (signal.SIGSTOP, signal.SIGKILL):  # so that none of them sees another die
                for process in processes:
                    os.kill(process, signum)
            site.worker.wait()
        else:
            os.kill(find_training(run), signal.SIGKILL)
        wait_for(lambda: find_training(run) is None)
    site.start_worker()

    wait_for(lambda: read_run(site.url, run)["state_type"] in ("COMPLETED", "FAILED"))
    assert read_run(site.url, run)["state_type"] == "COMPLETED"
    states = httpx.get(f"{site.url}/flow_run_states/", params={"flow_run_id": run}).json()
    names = [state["name"] for state in states]
    assert names.count("AwaitingRetry") >= 3, names  # more on a slow machine, where the second report of a crash comes late
    assert "No heartbeat for 90 seconds." in [state["message"] for state in states]
    again = run_once(tmp_path, tmp_path / "refit-store", site.url)
    assert json.loads(again.output)["is_new"] is False
    assert comparable(again.output) == expected


def test_a_run_that_dies_at_the_same_place_again_and_again_gives_up(site, tmp_path):
    (tmp_path / "suicidal.py").write_text(SUICIDAL)
    run = start_run(site.url, {"model": {"factory": "suicidal:build"}})
    wait_for(lambda: read_run(site.url, run)["state_type"] in ("COMPLETED", "FAILED"))
    state = read_run(site.url, run)["state"]
    assert state["type"] == "FAILED"
    assert "3 of them died after" in state["message"]
