"""`benchmarks/speed.py` on a few rows, with the contenders that need no package but Refit's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed.py"
NAMES = ["Refit eager", "notebook's loop", "tuned loop"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("speed") / "results.json"
    command = [sys.executable, str(SPEED), "--quick", "--threads", "1", "--works", "tiny", "small", "--json", str(path)]
    subprocess.run([*command, "--only", *NAMES, "products alone"], check=True, capture_output=True)
    return json.loads(path.read_text())


def losses_of(results, work):
    return {entry["contender"]: entry["loss"] for entry in results["entries"] if entry["work"] == work}


@pytest.mark.parametrize("work", ["tiny", "small"])
def test_all_do_the_same_work(results, work):
    losses = losses_of(results, work)
    assert losses["Refit eager"] == losses["notebook's loop"]  # to the bit
    assert losses["tuned loop"] == pytest.approx(losses["Refit eager"], rel=0.01)  # other rows first
    assert losses["products alone"] is None


def test_every_sample_but_the_first_is_counted(results):
    assert [entry["contender"] for entry in results["entries"]] == 2 * [*NAMES, "products alone"]
    assert all(len(entry["seconds"]) == 1 and entry["seconds"][0] > 0 for entry in results["entries"])
