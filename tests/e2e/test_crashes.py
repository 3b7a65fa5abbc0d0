"""Runs that die under a real worker: the server starts them again, and they end with the bits of a run that lived."""

import contextlib
import json
import os
import signal
from pathlib import Path

import polars as pl
import pytest
from kill_campaign import SETTINGS, comparable, run_once
from servers import find_processes, wait_for

pytestmark = pytest.mark.slow

RUN = "PREFECT__FLOW_RUN_ID"
NUM_COPIES = 100
"""Of the table, so that scoring takes seconds."""
SUICIDAL = """
import os
import signal


def build(num_inputs, num_outputs):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def worker(site):
    """In a project whose runs last long enough to be killed twice."""
    settings = SETTINGS.replace("num_epochs = 10", "num_epochs = 60").replace("patience = 2", "patience = 60")
    (site.project / "refit.toml").write_text(settings)
    (site.project / "suicidal.py").write_text(SUICIDAL)
    assert site.refit("deploy").returncode == 0
    return site.start_worker()


def find_training(run: str) -> int | None:
    """The process that executes a flow run and has loaded torch."""
    for process in find_processes(RUN, run):
        with contextlib.suppress(OSError):
            if "libtorch" in Path(f"/proc/{process}/maps").read_text():
                return process
    return None


@pytest.fixture(scope="module")
def killed_scoring(site, worker) -> str:  # noqa: ARG001
    """A run that was killed while it scored; its id."""
    quickly = ("--name", "scorer", "--training.num_epochs", "1")
    assert site.refit("train", *quickly, cwd=site.project).returncode == 0
    rows = pl.read_parquet(site.project / "digits.parquet")
    pl.concat([rows] * NUM_COPIES).write_parquet(site.project / "large.parquet")
    parameters = {"model": "scorer@v1", "source": "large.parquet", "output": "scores.parquet"}
    run = site.start_run("predict/predict", parameters).json()["id"]
    wait_for(lambda: site.read(f"/flow_runs/{run}")["state_type"] == "RUNNING")
    os.kill(wait_for(lambda: find_training(run)), signal.SIGKILL)
    return run


@pytest.fixture(scope="module")
def doomed_run(site, worker) -> str:  # noqa: ARG001
    """One that kills itself whenever it is started, beside the other; its id."""
    return site.start_run("train/train", {"settings": {"model": {"factory": "suicidal:build"}}}).json()["id"]


def test_a_killed_run_is_started_again_and_ends_with_the_same_bits(site, worker, killed_scoring, doomed_run):  # noqa: ARG001
    """Killed by itself, as the doomed run beside it is thrice, and then together with its worker, so that nobody reports it."""
    num_before = len(site.store.names("results"))
    run = site.start_run("train/train", {"settings": {}}).json()["id"]
    for num_results in (4, 12):
        wait_for(lambda n=num_before + num_results: len(site.store.names("results")) >= n and find_training(run))
        if num_results == 12:
            processes = [worker.pid, *find_processes(RUN, run)]
            for signum in (signal.SIGSTOP, signal.SIGKILL):  # so that none of them sees another die
                for process in processes:
                    os.kill(process, signum)
            worker.wait()
        else:
            os.kill(find_training(run), signal.SIGKILL)
        wait_for(lambda: find_training(run) is None)
    site.start_worker()
    expected = comparable(run_once(site.project, site.project / "straight", site.url).output)

    wait_for(lambda: site.read(f"/flow_runs/{run}")["state_type"] in {"COMPLETED", "FAILED"})
    states = site.read(f"/flow_run_states/?flow_run_id={run}")
    names, messages = [state["name"] for state in states], [state["message"] for state in states]
    assert messages.count("No heartbeat for 180 seconds.") == 1, "not of an attempt that its worker reported"
    assert (names[-1], names.count("AwaitingRetry")) == ("Completed", 2)
    again = run_once(site.project, site.project / "refit-store", site.url)
    assert json.loads(again.output)["is_new"] is False
    assert comparable(again.output) == expected


def test_a_run_that_dies_at_the_same_place_again_and_again_gives_up(site, doomed_run):
    wait_for(lambda: site.read(f"/flow_runs/{doomed_run}")["state_type"] in {"COMPLETED", "FAILED"})
    state = site.read(f"/flow_runs/{doomed_run}")["state"]
    assert state["type"] == "FAILED"
    assert "3 of them died after" in state["message"]


def test_scoring_that_was_killed_is_done_again(site, killed_scoring):
    wait_for(lambda: site.read(f"/flow_runs/{killed_scoring}")["state_type"] in {"COMPLETED", "FAILED"})
    run = site.read(f"/flow_runs/{killed_scoring}")
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    num_rows = pl.scan_parquet(site.project / "scores.parquet").select(pl.len()).collect().item()
    assert num_rows == pl.scan_parquet(site.project / "large.parquet").select(pl.len()).collect().item()
