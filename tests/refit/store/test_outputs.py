import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from refit.errors import RefitError
from refit.store.outputs import replacing

KILLED = """
import os, signal, sys
from refit.store.outputs import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_there_is_replaced_once_the_block_is_done():
    Path("out.txt").write_text("old")
    with replacing("out.txt") as path:
        path.write_text("new")
        assert Path("out.txt").read_text() == "old"
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [("out.txt", "new")]


def test_a_writer_that_is_killed_leaves_what_was_there_and_the_next_removes_its_remains():
    Path("out.txt").write_text("old")
    finished = subprocess.run([sys.executable, "-c", KILLED, "out.txt"])
    assert finished.returncode == -9
    assert Path("out.txt").read_text() == "old"
    (left,) = (path for path in Path().iterdir() if path.name != "out.txt")
    assert left.name.startswith(f".{socket.gethostname()}-")
    spared = [f".{socket.gethostname()}-{os.getpid()}-00000000-out.txt", ".elsewhere-1-00000000-out.txt", left.name + "x"]
    for name in spared:
        Path(name).write_text("another's")
    with replacing("out.txt") as path:
        path.write_text("new")
    assert sorted(path.name for path in Path().iterdir()) == sorted(["out.txt", *spared])
    assert Path("out.txt").read_text() == "new"


def test_a_place_that_cannot_be_written_is_named():
    Path("file").write_text("")
    message = r"--output: expected a place that can be written, found file/out\.txt: .*; free space"
    with pytest.raises(RefitError, match=message), replacing("file/out.txt") as path:
        path.write_text("new")
