"""How much memory the process may still take, so that what cannot fit is refused with a sentence instead of the process's end."""

import contextlib
import resource
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def find_free_memory() -> int:
    """Return the bytes that the machine has free, or the container, or the limit of the process leaves, whichever is least.

    Where the system does not tell, as outside of Linux, there is no limit.
    """
    return max(0, min(_find_free_on_machine(), _find_free_in_container(), _find_free_in_process()))


def _find_free_on_machine() -> int:
    with contextlib.suppress(OSError, LookupError, ValueError):
        fields = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    return sys.maxsize


def _find_free_in_container() -> int:
    with contextlib.suppress(OSError, LookupError, ValueError):  # `max` is no number
        used, limit = (int((CGROUP / f"memory.{name}").read_text()) for name in ("current", "max"))
        fields = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(fields["inactive_file"])  # what was read from files is given back
    return sys.maxsize


def _find_free_in_process() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, LookupError, ValueError):
        if limit != resource.RLIM_INFINITY:
            return limit - resource.getpagesize() * int((PROC / "self/statm").read_text().split()[0])
    return sys.maxsize
