"""Runs that die under a real worker: the server starts them again, and they end with the bits of a run that lived."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
def api(tmp_path) -> Iterator[str]:
    """A server with Refit's deployments and automation, and a worker that runs them in this test's folder."""
    with running_server(tmp_path) as url:
        environment = {
            **os.environ,
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PROJECT_FOLDER": str(tmp_path),
        }
        subprocess.run([REFIT, "deploy"], cwd=tmp_path, env=environment, check=True, capture_output=True)
        with (tmp_path / "worker.log").open("w") as log:
            worker = subprocess.Popen([PREFECT, "worker", "start", "--pool", "refit-pool"], env=environment, stdout=log, stderr=log)
            try:
                yield url
            finally:
                worker.terminate()
                worker.wait(timeout=60)


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


def find_process(run: str) -> int | None:
    """The process that executes a flow run: its environment names the run, and it has loaded torch."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_of_run = f"PREFECT__FLOW_RUN_ID={run}".encode() in path.read_bytes()
            if is_of_run and "libtorch" in (path.parent / "maps").read_text():
                return int(path.parent.name)
        except OSError:
            continue
    return None


def test_a_killed_run_is_started_again_and_ends_with_the_same_bits(api, tmp_path):
    write_work(tmp_path)
    expected = comparable(run_once(tmp_path, tmp_path / "straight", api).output)
    run = start_run(api, {})
    results = tmp_path / "refit-store" / "results"
    for num_results in (4, 8):
        wait_for(lambda n=num_results: results.exists() and len(list(results.iterdir())) >= n and find_process(run))
        os.kill(find_process(run), signal.SIGKILL)
        wait_for(lambda: find_process(run) is None)

    wait_for(lambda: read_run(api, run)["state_type"] in ("COMPLETED", "FAILED"))
    assert read_run(api, run)["state_type"] == "COMPLETED"
    states = httpx.get(f"{api}/flow_run_states/", params={"flow_run_id": run}).json()
    names = [state["name"] for state in states]
    assert names.count("AwaitingRetry") >= 2, names  # more on a slow machine, where the second report of a crash comes late
    again = run_once(tmp_path, tmp_path / "refit-store", api)
    assert json.loads(again.output)["is_new"] is False
    assert comparable(again.output) == expected


def test_a_run_that_dies_at_the_same_place_again_and_again_gives_up(api, tmp_path):
    (tmp_path / "suicidal.py").write_text(SUICIDAL)
    run = start_run(api, {"model": {"factory": "suicidal:build"}})
    wait_for(lambda: read_run(api, run)["state_type"] in ("COMPLETED", "FAILED"))
    state = read_run(api, run)["state"]
    assert state["type"] == "FAILED"
    assert "3 of them died after" in state["message"]
