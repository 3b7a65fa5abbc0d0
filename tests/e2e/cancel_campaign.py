"""Cancel runs of real deployments at every stage, watch that they stay cancelled, and that flows of others are left alone.

python tests/e2e/cancel_campaign.py --minutes 5

All are started side by side, and watched once. It takes about four minutes more than it watches.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from servers import PREFECT, TIMEOUT_SECONDS, Site, find_processes, wait_for

RUN = "PREFECT__FLOW_RUN_ID"
OVER = {"Cancelling", "Cancelled"}
SETTINGS = """
name = "slow"
[data]
source = "rows.parquet"
target = "label"
[loader]
batch_size = 8
[model]
factory = "slow:build"
[training]
num_epochs = 500
patience = 500
[compute]
num_threads = 1
"""
SLOW = """
import time

from torch import nn


class Slow(nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layer = nn.Linear(num_inputs, num_outputs)

    def forward(self, inputs):
        if self.training:
            time.sleep(0.2)
        return self.layer(inputs)


def build(num_inputs, num_outputs):
    return Slow(num_inputs, num_outputs)
"""
QUICK = {
    "name": "asked",
    "model": {"factory": None, "hidden_sizes": [16]},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "training": {"num_epochs": 20},
    "promotion": {"mode": "ask"},
}
"""Settings of a retraining that soon asks a person."""
THEIRS = """
import os
import time
from pathlib import Path

from prefect import flow


def work(name):
    with Path(__file__).with_name("started.txt").open("a") as file:
        print(name, file=file)
    time.sleep(3600)


@flow(name="train")
def train():
    work("train")


@flow(name="retrain")
def retrain():
    work("retrain")


@flow(name="predict")
def predict():
    work("predict")


@flow(name="nightly")
def nightly():
    work("nightly")


if __name__ == "__main__":
    folder = str(Path(__file__).parent)
    for function in (train, retrain, predict, nightly):
        tags = ["refit"] if function is nightly else []
        place = flow.from_source(folder, f"theirs.py:{function.__name__}")
        place.deploy("theirs", work_pool_name="theirs", tags=tags, print_next_steps=False)
"""


@dataclass
class Case:
    """A run, and what was done to it."""

    name: str
    run: str
    did: str
    is_ours: bool = True


class Campaign:
    """A server with runs at every stage.

    Attributes:
        workers: By the name of the model that they take runs of.
    """

    def __init__(self, site: Site) -> None:
        self.site, self.workers = site, dict[str, subprocess.Popen[bytes]]()
        site.project.joinpath("refit.toml").write_text(SETTINGS)
        site.project.joinpath("slow.py").write_text(SLOW)
        numbers = range(400)
        columns = {"size": [number % 2 * 3.0 + number / 500 for number in numbers], "label": [f"l{n % 2}" for n in numbers]}
        pl.DataFrame(columns).write_parquet(site.project / "rows.parquet")
        for model in ("slow", "later", "gone"):
            deployed = site.refit("deploy", "--name", model, "--pool", model)
            assert deployed.returncode == 0, deployed.stderr
            self.start_worker(model)

    def start_worker(self, pool: str) -> None:
        command = [PREFECT, "worker", "start", "--pool", pool, "--type", "process"]
        self.workers[pool] = self.site.start(f"worker-{pool}", command, self.site.desk, self.site.of_worker)

    def start_theirs(self) -> dict[str, str]:
        """Ids of runs of the flows of somebody else, by the flows' names."""
        folder = self.site.folder / "theirs"
        folder.mkdir()
        folder.joinpath("theirs.py").write_text(THEIRS)
        self.prefect("work-pool", "create", "theirs", "--type", "process")
        subprocess.run([sys.executable, "theirs.py"], cwd=folder, env=self.site.environment, check=True, capture_output=True)
        self.start_worker("theirs")
        return {name: self.start(f"{name}/theirs") for name in ("train", "retrain", "predict", "nightly")}

    def start(self, deployment: str, after: timedelta | None = None, **settings: Any) -> str:
        """Start a run, now or later; its id."""
        number = self.site.read(f"/deployments/name/{deployment}")["id"]
        body: dict[str, Any] = {"parameters": {"settings": settings} if settings else {}}
        if after is not None:
            at = (datetime.now(UTC) + after).isoformat()
            body["state"] = {"type": "SCHEDULED", "state_details": {"scheduled_time": at}}
        answer = self.site.ask(f"/deployments/{number}/create_flow_run", **body)
        return answer.raise_for_status().json()["id"]

    def prefect(self, *arguments: str) -> None:
        command = [PREFECT, "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.site.environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr

    def cancel(self, run: str) -> None:
        """As the button in Prefect's UI does."""
        state = {"type": "CANCELLING", "name": "Cancelling", "message": "by the campaign"}
        self.site.ask(f"/flow_runs/{run}/set_state", state=state, force=False).raise_for_status()

    def kill(self, run: str) -> None:
        for process in find_processes(RUN, run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def await_name(self, run: str, *names: str) -> None:
        wait_for(lambda: self.list_states(run)[-1]["name"] in names)

    def await_epoch(self, run: str) -> None:
        """Until a task that trains is at work."""
        training = {"name": {"like_": "train epoch"}, "state": {"type": {"any_": ["RUNNING"]}}}
        self.await_name(run, "Running")
        wait_for(lambda: self.site.ask("/task_runs/count", flow_runs={"id": {"any_": [run]}}, task_runs=training).json())
        time.sleep(2)

    def list_states(self, run: str) -> list[dict[str, Any]]:
        return sorted(self.site.read(f"/flow_run_states/?flow_run_id={run}"), key=lambda state: state["timestamp"])

    def cancel_all(self) -> list[Case]:
        """Runs that were cancelled, a stage each, and those of others that were killed."""
        site = self.site
        theirs = self.start_theirs()
        seeds = iter(range(1, 100))  # else one would wait for another, which trains the same
        planned = self.start("train/slow", timedelta(hours=1), seed=next(seeds))
        asked = self.start("retrain/slow", **QUICK)
        names = ("running", "again", "suspended")
        slow = {name: self.start("train/slow", seed=next(seeds)) for name in names}
        awaiting, silent = (self.start("train/later", seed=next(seeds)) for _ in range(2))
        orphan = self.start("train/gone", seed=next(seeds))

        self.prefect("flow-run", "cancel", planned)
        cases = [Case("planned", planned, "`prefect flow-run cancel`")]

        for name in theirs:
            self.await_name(theirs[name], "Running")
        wait_for(lambda: len((site.folder / "theirs" / "started.txt").read_text().split()) == 4)
        time.sleep(5)  # as long as a heartbeat takes to the server
        for name in ("train", "nightly"):
            self.kill(theirs[name])
            self.await_name(theirs[name], "Crashed")
        for process in find_processes(RUN, theirs["predict"]):
            os.kill(process, signal.SIGSTOP)
        site.kill(self.workers["theirs"])
        self.kill(theirs["retrain"])
        self.start_worker("theirs")
        for name, did in {"train": "killed", "retrain": "killed with its worker", "predict": "stopped, its worker killed"}.items():
            cases.append(Case(f"another's {name}", theirs[name], did, is_ours=False))
        cases.append(Case("another's, tagged refit", theirs["nightly"], "killed", is_ours=False))

        for run in (slow["again"], awaiting):
            self.await_epoch(run)
            self.kill(run)
        for run in (silent, orphan):
            self.await_epoch(run)
        self.await_name(awaiting, "Crashed")
        worker = self.workers["later"]
        site.kill(worker)
        self.kill(silent)
        self.cancel(silent)
        os.kill(self.workers["gone"].pid, signal.SIGKILL)  # alone
        self.cancel(orphan)
        cases.append(Case("running, killed with its worker", silent, "the UI"))
        cases.append(Case("running, its worker killed", orphan, "the UI"))

        self.await_epoch(slow["running"])
        self.prefect("flow-run", "cancel", slow["running"])
        cases.append(Case("running", slow["running"], "`prefect flow-run cancel`"))

        pending = self.start("train/slow", seed=next(seeds))
        self.await_name(pending, "Pending", "Submitting", "InfrastructurePending")
        self.cancel(pending)
        cases.append(Case("pending", pending, "the UI"))

        self.await_epoch(slow["suspended"])
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        details = {"pause_timeout": later, "pause_reschedule": True}
        state = {"type": "PAUSED", "name": "Suspended", "state_details": details}
        site.ask(f"/flow_runs/{slow['suspended']}/set_state", state=state, force=False).raise_for_status()
        wait_for(lambda: not find_processes(RUN, slow["suspended"]))
        self.cancel(slow["suspended"])
        cases.append(Case("suspended", slow["suspended"], "the UI"))

        self.await_name(asked, "Paused", "Suspended")
        self.cancel(asked)
        cases.append(Case("waiting for a person", asked, "the UI"))

        self.await_name(awaiting, "AwaitingRetry")
        self.cancel(awaiting)
        self.start_worker("later")
        cases.append(Case("awaiting retry after a crash", awaiting, "the UI"))

        wait_for(lambda: len([s for s in self.list_states(slow["again"]) if s["type"] == "RUNNING"]) == 2)
        self.await_epoch(slow["again"])
        self.prefect("flow-run", "cancel", slow["again"])
        cases.append(Case("running again after a crash", slow["again"], "`prefect flow-run cancel`"))
        return cases

    def judge(self, case: Case) -> str | None:
        """What is wrong with it."""
        states = [state["name"] for state in self.list_states(case.run)]
        if not case.is_ours:
            again = "AwaitingRetry" in states
            return None if again == ("tagged" in case.name) else f"{'' if again else 'not '}started again"
        if states[-1] != "Cancelled":
            return f"ended {states[-1]}"
        first = min(states.index(state) for state in OVER if state in states)
        if {*states[first:]} - OVER:
            return f"{', '.join(states[first:])} after it was cancelled"
        return "its process lives" if find_processes(RUN, case.run) else None

    def describe(self, case: Case) -> str:
        states = self.list_states(case.run)
        start = datetime.fromisoformat(states[0]["timestamp"])
        seconds = [(datetime.fromisoformat(state["timestamp"]) - start).total_seconds() for state in states]
        told = ", ".join(f"{state['name']} {second:.0f} s" for state, second in zip(states, seconds, strict=True))
        return f"{case.name} ({case.did}): {told}: {self.judge(case) or 'as it should be'}"


def run_campaign(folder: Path, minutes: float) -> int:
    """The number of runs that are not as they should be."""
    home = folder / "home"
    home.mkdir(parents=True)
    upgrade = [PREFECT, "server", "database", "upgrade", "--yes"]
    subprocess.run(upgrade, env={**os.environ, "PREFECT_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
    site = Site(folder / "site", home / "prefect.db")
    try:
        campaign = Campaign(site)
        cases = campaign.cancel_all()
        print(f"watching for {minutes:g} minutes", file=sys.stderr, flush=True)
        time.sleep(60 * minutes)
        for case in cases:
            print(campaign.describe(case), flush=True)
        log = site.log("server").read_text()
        for trouble in ("database is locked", "Action failed", "Traceback"):
            print(f"server log, {trouble!r}: {log.count(trouble)}")
        return len([case for case in cases if campaign.judge(case)])
    finally:
        site.cut_power()


def main() -> None:
    """Run a campaign and print the histories of its runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.5, help="of watching; a run is called silent after five")
    parser.add_argument("--folder", type=Path, help="of the server, its logs and the runs; one that is removed, if not given")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(run_campaign(given.folder or Path(temporary), given.minutes) > 0)


if __name__ == "__main__":
    main()
