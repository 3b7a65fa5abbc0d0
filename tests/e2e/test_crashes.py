"""Runs that die under a real worker: the server starts them again, and they end with the bits of a run that lived."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import polars as pl
import pytest
from kill_campaign import SETTINGS, comparable, run_once
from servers import SELDOM, find_processes, wait_for

pytestmark = pytest.mark.slow

RUN = "PREFECT__FLOW_RUN_ID"
NUM_COPIES = 100
"""Of the table, so that scoring takes seconds."""
SECONDS_OUT = 310
"""Of the power cut. A crash in a run's first five minutes, by a server that has not seen it begin, Prefect puts off for 15."""
SUICIDAL = """
import os
import signal


def build(num_inputs, num_outputs):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def runs(site) -> dict[str, str]:
    """The ids of three runs, as a power cut leaves them: one at work, the others killed shortly before, `doomed` by itself."""
    settings = SETTINGS.replace("num_epochs = 10", "num_epochs = 60").replace("patience = 2", "patience = 60")
    (site.project / "refit.toml").write_text(settings)
    (site.project / "suicidal.py").write_text(SUICIDAL)
    assert site.refit("deploy", "--name", "digits").returncode == 0
    assert site.refit("train", "--name", "scorer", "--training.num_epochs", "1", cwd=site.project).returncode == 0
    rows = pl.read_parquet(site.project / "digits.parquet")
    pl.concat([rows] * NUM_COPIES).write_parquet(site.project / "large.parquet")
    site.start_worker()
    given = {"model": "scorer@v1", "source": "large.parquet", "output": "scores.parquet"}
    scoring = site.start_run("predict/digits", given).json()["id"]
    await_state(site, scoring, "RUNNING")
    os.kill(wait_for(lambda: find_training(scoring)), signal.SIGKILL)
    await_state(site, scoring, "CRASHED")
    num_before = len(site.store.names("results"))
    doomed = site.start_run("train/digits", {"changes": {"model": {"factory": "suicidal:build"}}}).json()["id"]
    training = site.start_run("train/digits", {}).json()["id"]
    await_state(site, doomed, "CRASHED")
    wait_for(lambda: len(site.store.names("results")) >= num_before + 4)
    assert find_training(training)
    site.cut_power()
    time.sleep(SECONDS_OUT)
    site.server = site.start_server()
    site.start_worker()
    return {"scoring": scoring, "doomed": doomed, "training": training}


def find_training(run: str) -> int | None:
    """The process that executes a flow run and has loaded torch."""
    for process in find_processes(RUN, run):
        with contextlib.suppress(OSError):
            if "libtorch" in Path(f"/proc/{process}/maps").read_text():
                return process
    return None


def await_state(site, run: str, *types: str, seconds_between: float = 0.1) -> dict:
    wait_for(lambda: site.read(f"/flow_runs/{run}")["state_type"] in types, seconds_between)
    return site.read(f"/flow_runs/{run}")


def await_end(site, run: str) -> dict:
    return await_state(site, run, "COMPLETED", "FAILED", seconds_between=SELDOM)


def test_training_goes_on_after_a_power_cut_and_a_kill_and_ends_with_the_same_bits(site, runs):
    """The kill its worker reports, while the doomed run beside it dies thrice; the power cut nobody could."""
    run, num_before = runs["training"], len(site.store.names("results"))
    wait_for(lambda: len(site.store.names("results")) >= num_before + 8 and find_training(run))
    os.kill(find_training(run), signal.SIGKILL)
    expected = comparable(run_once(site.project, site.project / "straight", site.url).output)

    await_end(site, run)
    states = site.read(f"/flow_run_states/?flow_run_id={run}")
    names, messages = [state["name"] for state in states], [state["message"] for state in states]
    assert messages.count("No heartbeat for 300 seconds.") == 1, "not of an attempt that its worker reported"
    assert (names[-1], names.count("AwaitingRetry")) == ("Completed", 2)
    again = run_once(site.project, site.project / "refit-store", site.url)
    assert json.loads(again.output)["is_new"] is False
    assert comparable(again.output) == expected


def test_a_run_that_dies_at_the_same_place_again_and_again_gives_up(site, runs):
    state = await_end(site, runs["doomed"])["state"]
    assert state["type"] == "FAILED"
    assert "3 of them died after" in state["message"]


def test_scoring_that_was_killed_is_done_again(site, runs):
    run = await_end(site, runs["scoring"])
    assert (run["state_type"], run["run_count"]) == ("COMPLETED", 2)
    num_rows = pl.scan_parquet(site.project / "scores.parquet").select(pl.len()).collect().item()
    assert num_rows == pl.scan_parquet(site.project / "large.parquet").select(pl.len()).collect().item()
