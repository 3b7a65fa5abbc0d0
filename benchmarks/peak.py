"""Runs `refit` with the arguments given, or, without any, imports torch and prefect; prints the peak memory in MB last."""

import atexit
import sys
from pathlib import Path


def print_peak() -> None:
    """On Linux. Not `ru_maxrss`, which a process inherits from the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)


if __name__ == "__main__":
    atexit.register(print_peak)
    if len(sys.argv) > 1:
        from refit.commands.cli import main

        main()
    else:
        import prefect  # noqa: F401
        import torch  # noqa: F401
