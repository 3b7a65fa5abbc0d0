"""`refit train` and `refit retrain` by the command line on a device that is not the CPU, killed within an epoch; see `stand_in`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stand_in
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

REFIT = [sys.executable, "-c", "from refit.commands.cli import main; main()"]
SETTINGS = """
name = "classes"
preset = "plain"
[data]
source = "rows.csv"
[model]
dropout = 0.3
[loader]
batch_size = 4
[training]
baseline = "none"
num_epochs = 2
[checkpoint]
every_seconds = 0.05
[compute]
device = "standin"
"""


def write_rows(num_rows: int) -> None:
    y = torch.arange(num_rows) % 3
    x = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(1)) + 2 * y[:, None]
    lines = [",".join(map(str, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    Path("rows.csv").write_text("\n".join(["a,b,c,d,y", *lines]) + "\n")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Processes that have the device as they would have one of another maker."""
    from prefect.settings import PREFECT_API_URL

    paths = [stand_in.as_package(tmp_path / "site"), *sys.path]
    return {**os.environ, "PYTHONPATH": ":".join(filter(None, paths)), "PREFECT_API_URL": PREFECT_API_URL.value()}


def run(environment: dict[str, str], *command: str) -> dict:
    finished = subprocess.run([*REFIT, *command, "--json"], env=environment, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout)


def test_training_and_retraining_on_an_accelerator_survive_a_kill_with_the_same_bits(environment):
    write_rows(1000)
    Path("refit.toml").write_text(SETTINGS)
    whole = run(environment, "train", "--store.url", "whole")
    partials = Path("refit-store", "partial")
    with subprocess.Popen([*REFIT, "train"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and not (partials.is_dir() and any(partials.iterdir())):
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
    found = run(environment, "train")
    assert found["weights_digest"] == whole["weights_digest"]
    assert '"device": "standin"' in Path(found["path"], "settings.json").read_text()
    write_rows(1100)
    assert run(environment, "retrain")["candidate"] == "classes@v2"
