"""Free memory and processors within the limits of machine, container and process. Data that cannot fit can be refused clearly."""

import contextlib
import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from refit.errors import SettingsError

LEAST_ADDRESS_SPACE = 2_500_000 * 1024
"""Bytes that PyTorch, Prefect and polars map. With a fifth less, imports stood still in half of the tries (measured)."""
ROOT = Path("/")
"""Root of the system's `proc` and `sys` folders."""


def check_address_space() -> None:
    """Raise SettingsError where the process may not map what the libraries need; they would stand still instead of failing."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise SettingsError(
            f"ulimit -v: expected at least {LEAST_ADDRESS_SPACE // 1024} kB of address space, found {limit // 1024}; raise it,"
            " or limit the memory itself, by a container"
        )


def find_free_memory(root: Path = ROOT) -> int:
    """Return the free memory in bytes: the least of what the machine, the container and the limit of the process leave.

    Without this information, as outside of Linux, there is no limit.
    """
    return max(0, min(_find_free_on_machine(root), *map(_find_free_in_container, _list_groups(root)), _find_free_in_process(root)))


def count_processors(root: Path = ROOT) -> int:
    """Return how many processors the process may use at a time: those it may run on, or fewer if the container has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    return max(1, min(len(affinity(0)) if affinity else os.cpu_count() or 1, *map(_find_quota, _list_groups(root))))


def _list_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the process's control groups (version 2), its own first, the outermost last."""
    own = ""
    with contextlib.suppress(OSError, LookupError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    top = root / "sys/fs/cgroup"
    folder = top / own
    yield from (group for group in (folder, *folder.parents) if group.is_relative_to(top))


def _find_quota(group: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # `max` is not a number
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return math.ceil(quota / period)
    return sys.maxsize


def _find_free_on_machine(root: Path) -> int:
    with contextlib.suppress(OSError, LookupError, ValueError):
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    return sys.maxsize


def _find_free_in_container(group: Path) -> int:
    with contextlib.suppress(OSError, LookupError, ValueError):  # `max` is not a number
        used, limit = (int((group / f"memory.{name}").read_text()) for name in ("current", "max"))
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(fields["inactive_file"])  # the system frees this file cache on demand
    return sys.maxsize


def _find_free_in_process(root: Path) -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, LookupError, ValueError):
        if limit != resource.RLIM_INFINITY:
            return limit - resource.getpagesize() * int((root / "proc/self/statm").read_text().split()[0])
    return sys.maxsize
