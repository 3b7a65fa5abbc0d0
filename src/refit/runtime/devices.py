"""The device, precision and threads of the arithmetic."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from refit.errors import SettingsError
from refit.runtime.limits import count_processors
from refit.settings import ComputeSettings

NUM_THREADS = min(torch.get_num_threads(), count_processors())
"""PyTorch's default for this process, or fewer if a container has a quota, which PyTorch ignores. Runs may change it later."""
DEFAULTS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_default_dtype, torch.set_default_dtype),
)
"""Getter and setter of each process-wide default that runs and users' factories may change."""


def choose_device(name: str) -> torch.device:
    """Return the device that `compute.device` names; `auto` prefers CUDA to MPS to the CPU.

    Raises:
        SettingsError: The device is not on this machine.
    """
    cuda_names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    available = ["cpu", *cuda_names, *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "auto":
        return torch.device("cuda:0" if cuda_names else available[-1])
    device = torch.device("cuda:0" if name == "cuda" else name)
    if str(device) not in available:
        here = "only the CPU is" if available == ["cpu"] else f"{', '.join(available)} are"
        raise SettingsError(
            f"compute.device: expected a device of this machine, found {name!r}, but {here} here; use `auto` or `{available[-1]}`"
        )
    return device


def check_compute(settings: ComputeSettings) -> torch.device:
    """Return the chosen device.

    Raises:
        SettingsError: The device is not on this machine, or there is no compiler for `compute.engine`.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as PyTorch chooses it
    if settings.engine != "eager" and shutil.which(compiler) is None:
        raise SettingsError(
            f"compute.engine: expected a C++ compiler for {settings.engine!r}, found no {compiler}; install it, or use `eager`"
        )
    return choose_device(settings.device)


def prepare_compute(settings: ComputeSettings) -> torch.device:
    """Set CPU threads, precision of matrix products and handling of freed memory; return the chosen device.

    Everything is set again for each run, so that earlier runs of the process have no effect. Raises as `check_compute` does.
    """
    device = check_compute(settings)
    if torch.get_float32_matmul_precision() != settings.matmul_precision:
        torch.set_float32_matmul_precision(settings.matmul_precision)
    if torch.get_num_threads() != (num_threads := choose_num_threads(settings)):
        torch.set_num_threads(num_threads)
    _keep_freed_memory()
    return device


def choose_num_threads(settings: ComputeSettings) -> int:
    """Return the number of CPU threads of a run."""
    return settings.num_threads or NUM_THREADS


@contextmanager
def putting_defaults_back() -> Iterator[None]:
    """Restore the process's threads, precision of matrix products and default type after the block."""
    before = [(get, put, get()) for get, put in DEFAULTS]
    try:
        yield
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)


def describe_device(device: torch.device) -> str:
    """Describe the device, as in `cpu (2 threads)` or `cuda:0 (NVIDIA H100)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def describe_processor(device: torch.device, num_threads: int) -> str:
    """Describe what the last bits depend on: the kind and model of the processor, and a CPU's instruction set and threads."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {_name_cpu()}, {torch.backends.cpu.get_cpu_capability()}, {num_threads} threads"


def _name_cpu() -> str:
    """Name the CPU, as in `AMD EPYC`, or else its architecture."""
    capabilities = torch.cpu.get_capabilities()
    return str(capabilities.get("cpu_name") or capabilities["architecture"])


@contextmanager
def computing_on_one_thread() -> Iterator[None]:
    """Use one CPU thread within the block."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context of a forward pass: none for `fp32`, automatic mixed precision for `bf16`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@cache
def _keep_freed_memory() -> None:
    """Let the GNU C library keep up to 64 MB of freed memory for later allocations.

    At first it returns the memory of a step's tensors to the system, which hands it out again page by page, zeroed, in the next
    step. With two layers of 1,024 units, this takes up to a tenth of the time. By itself it raises its limits to the largest block
    that was freed, up to 32 MB, so freeing one block is enough. This changes no setting and touches no memory.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
