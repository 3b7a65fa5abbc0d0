"""A retraining that is killed at one step after the other, each time by SIGKILL."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from prefect.settings import PREFECT_API_URL

from refit.registry.ledger import load_ledger
from refit.registry.versions import check_version, list_versions, move_alias, read_alias
from refit.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

SERVE = """
import importlib, json, os, signal, sys, traceback
from refit.flows import candidates
from refit.flows.retraining import retrain
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from refit.reports import figures
from refit.settings import SettingsTree

def wrap(module, name, before=lambda: None, after=lambda: None):
    part = importlib.import_module(module)
    function = getattr(part, name)

    def wrapped(*given, **named):
        before()
        result = function(*given, **named)
        after()
        return result

    setattr(part, name, wrapped)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def note():
    with open("epochs", "a") as file:
        file.write("epoch\\n")

figures.draw_losses = figures.draw_confusion = lambda *_: b""  # other tests draw
for line in sys.stdin:
    settings, step = json.loads(line)
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    try:
        wrap("refit.training.loop", "train_epoch", after=note)
        if step:
            wrap(*step[:2], **{step[2]: die})
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            state = retrain(SettingsTree.model_validate(settings), return_state=True)
        with open("result.json", "w") as file:
            json.dump([state.name, state.result().model_dump()], file)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""
STEPS = [
    ("refit.tables.dataset", "build_dataset", "after"),
    ("refit.registry.saving", "save_version", "before"),
    ("refit.registry.versions", "add_version", "after"),
    ("refit.promotion.comparison", "compare", "before"),
    ("refit.promotion.comparison", "compare", "after"),
    ("refit.registry.versions", "check_version", "before"),
    ("refit.registry.versions", "_write_alias", "before"),
    ("refit.promotion.retraining_report", "write_report", "before"),
]


@pytest.fixture
def retrain() -> Iterator[Callable[..., list | int]]:
    """What a retraining comes to, or the signal that it dies of; each is forked from a process that has imported all."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(optimizer: dict, *step: str) -> list | int:
        settings = {
            "preset": "plain",
            "data": {"source": "rows.csv"},
            "loader": {"batch_size": 10},
            "model": {"hidden_sizes": [16, 16]},
            "optimizer": {"name": "sgd", **optimizer},
            "training": {"num_epochs": 3, "baseline": "none"},
        }
        process.stdin.write(json.dumps([settings, step]) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return json.loads(Path("result.json").read_text()) if status == 0 else status

    yield run
    process.stdin.close()
    process.stdout.close()
    process.wait()


def write_table(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(num_rows) % 2
    x = torch.randn(num_rows, 2, generator=generator, dtype=torch.float64) / 2 + y[:, None]
    pl.DataFrame({"x0": x[:, 0].tolist(), "x1": x[:, 1].tolist(), "y": y.tolist()}).write_csv("rows.csv")


def test_whatever_step_is_killed_nothing_is_trained_twice_and_one_whole_version_is_champion(retrain):
    store = Store("refit-store")
    write_table(150)
    assert retrain({"lr": 1e-6})[0] == "Kept"
    move_alias(store, "model", 1, expected=None, why="by hand")
    Path("epochs").unlink()
    write_table(300)
    for step in STEPS:
        before = read_alias(store, "model")
        assert retrain({"lr": 0.1}, *step) == signal.SIGKILL, step
        entries = load_ledger(store, "model")
        moves = [entry for entry in entries if entry.action == "promote"]
        assert read_alias(store, "model") == moves[-1].after
        check_version(store, "model", moves[-1].after)
        assert (before, moves[-1].after) in {(1, 1), (1, 2), (2, 2)}, step

    name, result = retrain({"lr": 0.1})
    assert (name, result["champion"]) == ("Promoted", "model@v2")
    assert retrain({"lr": 0.1})[0] == "Skipped"
    assert Path("epochs").read_text().count("epoch") == 3
    assert list_versions(store, "model") == [1, 2], "also the one whose saving was killed before anybody knew"
    moves = [entry for entry in load_ledger(store, "model") if entry.action == "promote"]
    assert [(entry.before, entry.after) for entry in moves] == [(None, 1), (1, 2)]
    assert "model@v2 is the champion now" in Path(result["report"]).read_text()
    assert list(Path("refit-store/tmp").glob("*")) == []
