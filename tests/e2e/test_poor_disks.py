"""Stores on file systems without hard links, without locks, or whose folders cannot be synced, as network shares are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refit.registry.ledger import load_ledger
from refit.registry.versions import read_alias
from refit.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")]

REFIT = Path(sys.executable).with_name("refit")
TIMEOUT_SECONDS = 180


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> str:
    library = tmp_path_factory.mktemp("shim") / "poor_disk.so"
    source = Path(__file__).with_name("poor_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)


@pytest.fixture
def refit(prefect_home, shim):
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "REFIT_", "COV_"))}

    def run(poor: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**mine, "PREFECT_HOME": prefect_home, "LD_PRELOAD": shim, "POOR_DISK": poor}
        return subprocess.run([REFIT, *arguments], env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)

    return run


@pytest.mark.parametrize("poor", ["links sync", "locks sync"])
def test_a_store_on_a_poor_disk_is_trained_retrained_promoted_and_collected(refit, poor):
    for command in (("train",), ("retrain", "--seed", "1"), ("promote", "model@v1"), ("gc",), ("status", "model")):
        finished = refit(poor, *command)
        assert finished.returncode == 0, finished.stderr
        assert "Traceback" not in finished.stderr
    store = Store("refit-store")
    assert read_alias(store, "model") == 1
    assert [entry.number for entry in load_ledger(store, "model")] == [*range(1, len(load_ledger(store, "model")) + 1)]
    assert store.names("tmp") == []


def test_a_store_that_can_neither_link_nor_lock_is_refused_before_anything_is_trained(refit):
    finished = refit("links locks", "train")
    assert finished.returncode == 1
    assert "error: " in finished.stderr
    assert "expected a file system with hard links, or with locks, found neither" in finished.stderr
    assert not Path("refit-store/objects").exists()
