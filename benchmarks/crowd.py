"""Runs at once on one server with SQLite, for minutes: how many are lost, and how long the server takes to answer.

`python benchmarks/crowd.py --seconds 600 --server refit` starts a server, two workers, and as many runs as were asked for, each on
a seed of its own; where one ends, the next begins. `--beside` trains at a terminal meanwhile, with a server of its own on the same
PREFECT_HOME.
"""

import argparse
import collections
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from refit.server.project import name_pool

sys.path.append(str(Path(__file__).parents[1] / "tests" / "e2e"))
from kill_campaign import REFIT, SETTINGS, write_work

PREFECT = str(Path(sys.executable).with_name("prefect"))
PORT = 4311
URL = f"http://127.0.0.1:{PORT}/api"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
SERVERS = {"refit": [REFIT, "server"], "prefect": [PREFECT, "server", "start"]}


@contextlib.contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: str) -> Iterator[None]:
    """A process while the context is open."""
    with (folder / log).open("ab") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def ask(method: str, path: str, waits: list[float], **body: Any) -> Any:
    """The answer, asked for until there is one; how long that took is added to `waits`."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.request(method, f"{URL}{path}", timeout=120, json=body or None)
            if answer.is_success:
                waits.append(time.monotonic() - began)
                return answer.json()
        time.sleep(0.5)


def crowd(seconds: float, num_runs: int, waits: list[float]) -> dict[str, str]:
    """Keep so many runs going for so long, then wait for the last; the final state of each by its id."""
    deployment = ask("GET", "/deployments/name/train/digits", waits)["id"]
    states, seed, give_up_at = dict[str, str](), 0, time.monotonic() + seconds
    while True:
        open_runs = [run for run, state in states.items() if state not in FINAL]
        for run in open_runs:
            states[run] = ask("GET", f"/flow_runs/{run}", waits)["state_type"]
        open_runs = [run for run in open_runs if states[run] not in FINAL]
        if time.monotonic() < give_up_at:
            for _ in range(num_runs - len(open_runs)):
                seed += 1
                given = {"settings": {"seed": seed}}
                run = ask("POST", f"/deployments/{deployment}/create_flow_run", waits, parameters=given)["id"]
                states[run] = "SCHEDULED"
        elif not open_runs or time.monotonic() > give_up_at + 900:
            return states
        time.sleep(1)


def main() -> None:
    """Print what became of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--server", choices=SERVERS, default="refit")
    parser.add_argument("--beside", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crowd-"))
    write_work(folder)
    (folder / "refit.toml").write_text(SETTINGS.replace("num_epochs = 10", "num_epochs = 3"))
    alone = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment = {**alone, "PREFECT_API_URL": URL, "PREFECT_WORKER_QUERY_SECONDS": "2", "PROJECT_FOLDER": str(folder)}
    worker = [PREFECT, "worker", "start", "--pool", name_pool(folder), "--type", "process"]
    train = f"n=0; while true; do n=$((n+1)); {REFIT} train --name beside --seed $n >/dev/null; done"
    waits: list[float] = []
    with contextlib.ExitStack() as stack:
        server = [*SERVERS[given.server], "--host", "127.0.0.1", "--port", str(PORT)]
        stack.enter_context(running(server, folder, alone, "server.log"))
        subprocess.run([REFIT, "deploy"], cwd=folder, env=environment, check=True)
        for _ in range(2):
            stack.enter_context(running(worker, folder, environment, "worker.log"))
        if given.beside:
            stack.enter_context(running(["sh", "-c", train], folder, alone, "beside.log"))
        states = crowd(given.seconds, given.runs, waits)
    log = (folder / "server.log").read_text(errors="replace")
    print(f"server: {given.server}, {given.runs} runs at once for {given.seconds:g} seconds, in {folder}")
    print(f"runs: {dict(collections.Counter(states.values()))}")
    print(f"slowest answers: {', '.join(f'{wait:.1f} s' for wait in sorted(waits)[-5:])}")
    print(f"in the server's log: 'database is locked' {log.count('database is locked')}, tracebacks {log.count('Traceback')}")
    sys.exit(any(state != "COMPLETED" for state in states.values()))


if __name__ == "__main__":
    main()
