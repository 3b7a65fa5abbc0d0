import resource
import sys
from pathlib import Path

import pytest

from refit import memory
from refit.memory import find_free_memory


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """The files in which a system with 8 GB free says so, without limits."""
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n")
    return tmp_path


def test_free_is_what_the_machine_says(system):
    assert find_free_memory() == 8_192_000_000
    (system / "meminfo").unlink()
    assert find_free_memory() == sys.maxsize


@pytest.mark.parametrize(("limit", "free"), [("2000000000", 1_500_000_000), ("max", 8_192_000_000), ("100", 0)])
def test_a_container_may_have_less(system, limit, free):
    (system / "memory.max").write_text(f"{limit}\n")
    (system / "memory.current").write_text("700000000\n")
    (system / "memory.stat").write_text("anon 500000000\ninactive_file 200000000\n")
    assert find_free_memory() == free


def test_a_process_may_have_less(system, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    (system / "self").mkdir()
    (system / "self/statm").write_text("1000 200 30 4 0 5 0\n")
    assert find_free_memory() == 10**9 - 1000 * resource.getpagesize()


def test_this_machine_tells():
    assert 0 < find_free_memory() < sys.maxsize
