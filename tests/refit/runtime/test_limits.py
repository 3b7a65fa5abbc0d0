import os
import resource
import sys
from pathlib import Path

import pytest

from refit.errors import SettingsError
from refit.runtime.limits import check_address_space, count_processors, find_free_memory


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """The files in which a system with 8 GB free says so, without limits."""
    (tmp_path / "sys/fs/cgroup/system.slice/refit.service").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n")
    return tmp_path


def test_free_is_what_the_machine_says(system):
    assert find_free_memory(system) == 8_192_000_000
    (system / "proc/meminfo").unlink()
    assert find_free_memory(system) == sys.maxsize


@pytest.mark.parametrize(("limit", "free"), [("2000000000", 1_500_000_000), ("max", 8_192_000_000), ("100", 0)])
@pytest.mark.parametrize("group", ["", "system.slice/refit.service"])
def test_a_container_may_have_less(system, limit, free, group):
    (system / "proc/self/cgroup").write_text("0::/system.slice/refit.service\n")
    folder = system / "sys/fs/cgroup" / group
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text("700000000\n")
    (folder / "memory.stat").write_text("anon 500000000\ninactive_file 200000000\n")
    assert find_free_memory(system) == free


def test_a_process_may_have_less(system, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    (system / "proc/self/statm").write_text("1000 200 30 4 0 5 0\n")
    assert find_free_memory(system) == 10**9 - 1000 * resource.getpagesize()


@pytest.mark.parametrize(("quota", "processors"), [("100000 100000", 1), ("150000 100000", 2), ("max 100000", 4)])
@pytest.mark.parametrize("group", ["", "system.slice"])
def test_a_container_may_have_a_quota_of_processors(system, monkeypatch, quota, processors, group):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    (system / "proc/self/cgroup").write_text("0::/system.slice/refit.service\n")
    assert count_processors(system) == 4
    (system / "sys/fs/cgroup" / group / "cpu.max").write_text(f"{quota}\n")
    assert count_processors(system) == processors


def test_this_machine_tells():
    assert 1 <= count_processors() <= (os.cpu_count() or 1)
    assert 0 < find_free_memory() < sys.maxsize


def test_too_little_address_space_is_refused_before_libraries_stand_still_over_it(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2_000_000 * 1024, resource.RLIM_INFINITY))
    with pytest.raises(SettingsError, match=r"ulimit -v: expected at least 2500000 kB of address space, found 2000000; raise it"):
        check_address_space()
    monkeypatch.undo()
    check_address_space()
