"""The device of a run, and the precision, determinism and threads of its arithmetic."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch

from refit.errors import SettingsError
from refit.runtime import randomness
from refit.runtime.accelerators import CPU, can_compile, emulates_bf16, find_missing, list_accelerators, name_accelerator
from refit.runtime.limits import count_processors
from refit.settings import DEVICE, PATTERNS, ComputeSettings

NUM_THREADS = min(torch.get_num_threads(), count_processors())
"""PyTorch's default for this process, or fewer if a container has a quota, which PyTorch ignores. Runs may change it later."""
LARGE_STEP = 4_000_000
"""Rows of a batch times parameters. An uncompiled step takes 60 µs on the CPU, and 60 ps more for each of them (measured on two
cores); on a GPU it takes 200 to 300 µs to start its operations, whatever their size."""
LARGE_EPOCH = 1_000_000_000
"""Train rows times parameters: 0.06 seconds of the CPU. Below it, a run is over before a GPU is set up, which takes seconds."""
WORKSPACE = ":4096:8"
"""Memory of cuBLAS with which its products have the same bits each time, as PyTorch's notes on randomness give it."""


class Work(NamedTuple):
    """How much a training computes."""

    num_parameters: int
    batch_size: int
    num_rows: int
    """Of the train split."""


def _set_workspace(value: str | None) -> None:
    if value is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    else:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = value


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, or None where PyTorch's newer switches for fp32 say what the older ones cannot, for which it raises."""
    try:
        return question()
    except RuntimeError:
        return None


def _get_matmul_precision() -> tuple[Any, ...]:
    """What the older switch says, and the newer ones, which may contradict it."""
    backends: Any = torch.backends
    return _ask(torch.get_float32_matmul_precision), backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision


def _set_matmul_precision(values: tuple[Any, ...]) -> None:
    backends: Any = torch.backends
    torch.set_float32_matmul_precision(values[0] or "highest")
    backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision = values[1:]


def _get_cudnn_precision() -> tuple[Any, ...]:
    return _ask(lambda: cudnn.allow_tf32), cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


def _set_cudnn_precision(values: tuple[Any, ...]) -> None:
    cudnn.allow_tf32 = bool(values[0])
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = values[1:]


cudnn: Any = torch.backends.cudnn
filling: Any = torch.utils.deterministic
Defaults = tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...]
"""Getter and setter of each of some process-wide defaults."""
DEFAULTS: Defaults = (
    (torch.get_num_threads, torch.set_num_threads),
    (_get_matmul_precision, _set_matmul_precision),
    (torch.get_default_dtype, torch.set_default_dtype),
    (randomness.get_device, randomness.set_device),
)
"""What runs and users' factories may change."""
DETERMINISM: Defaults = (
    # 0, 1 (warn) or 2. `use_deterministic_algorithms` forgets the 1, and loads PyTorch's compiler, which takes seconds.
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (lambda: filling.fill_uninitialized_memory, lambda value: setattr(filling, "fill_uninitialized_memory", value)),
    (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
    (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
    (_get_cudnn_precision, _set_cudnn_precision),
    (lambda: os.environ.get("CUBLAS_WORKSPACE_CONFIG"), _set_workspace),
)
"""What training on an accelerator sets, and nothing that runs on the CPU may notice."""


def list_candidates(settings: ComputeSettings) -> list[torch.device]:
    """List the devices that a run may train on: the one that is named, or for `auto` the CPU and the best accelerator.

    Raises:
        SettingsError: The device is not on this machine, or PyTorch cannot use it, and `compute.when_missing` is not `cpu`.
    """
    name, accelerators = settings.device, list_accelerators()
    if name == "auto":
        missing = None if accelerators else find_missing()
        if missing and settings.when_missing == "fail":
            raise SettingsError(
                f"compute.device: expected an accelerator that PyTorch can use, as compute.when_missing is `fail`, found {missing};"
                " mend it, or use `cpu`"
            )
        return [CPU, *accelerators[:1]]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"compute.device: expected {PATTERNS[DEVICE]}, found {name!r}") from error
    device = CPU if device.type == "cpu" else torch.device(device.type, device.index or 0)
    if device in (CPU, *accelerators):
        return [device]
    if settings.when_missing == "cpu":
        return [CPU]
    here = f"{', '.join(map(str, (CPU, *accelerators)))} are" if accelerators else "only the CPU is"
    found = find_missing() if device.type == "cuda" else None
    raise SettingsError(
        f"compute.device: expected a device of this machine, found {name!r}, but {found or f'{here} here'};"
        f" use `auto` or `{accelerators[0] if accelerators else CPU}`, or set compute.when_missing to `cpu`"
    )


def choose_device(settings: ComputeSettings, work: Work) -> torch.device:
    """Choose the device of a training: the one that is named, or for `auto` an accelerator where it pays.

    It pays if a step has at least `LARGE_STEP` rows times parameters, and an epoch `LARGE_EPOCH`. The rule asks no clock, so that
    the same data and settings always train on the same device of a machine.

    Raises:
        SettingsError: As `list_candidates`.
    """
    is_large = work.batch_size * work.num_parameters >= LARGE_STEP and work.num_rows * work.num_parameters >= LARGE_EPOCH
    return list_candidates(settings)[-1 if is_large else 0]


def describe_choice(settings: ComputeSettings, work: Work) -> str:
    """Describe the chosen device, and for `auto` the reason."""
    described = describe_device(choose_device(settings, work))
    if len(list_candidates(settings)) == 1:
        return described
    step, epoch = (rows * work.num_parameters / 1e6 for rows in (work.batch_size, work.num_rows))
    return (
        f"{described}, as a step has {step:,.1f} and an epoch {epoch:,.0f} million rows times parameters;"
        f" an accelerator pays from {LARGE_STEP / 1e6:.0f} and {LARGE_EPOCH / 1e6:,.0f} on"
    )


def check_compute(settings: ComputeSettings) -> list[str]:
    """Return what to tell the user about the devices.

    Raises:
        SettingsError: The device is not on this machine, or there is no compiler for `compute.engine`.
    """
    remarks, candidates = [], list_candidates(settings)
    if settings.device == "auto" and len(candidates) == 1 and (missing := find_missing()):
        remarks.append(f"compute.device: training on the CPU, found {missing}")
    if settings.device not in ("auto", "cpu") and candidates == [CPU]:
        remarks.append(f"compute.device: {settings.device} is not here; training on the CPU, as compute.when_missing is `cpu`")
    if settings.precision == "bf16" and emulates_bf16(candidates[-1]):
        remarks.append(f"compute.precision: {describe_device(candidates[-1])} emulates bf16, which is slower than fp32")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as PyTorch chooses it
    if settings.engine != "eager" and CPU in candidates and shutil.which(compiler) is None:
        raise SettingsError(
            f"compute.engine: expected a C++ compiler for {settings.engine!r}, found no {compiler}; install it, or use `eager`"
        )
    if settings.engine == "compiled" and not can_compile(candidates[-1]):
        raise SettingsError(
            f"compute.engine: expected Triton for 'compiled' on {candidates[-1]}, found no package `triton`; install it, or"
            " use `eager`"
        )
    return remarks


def prepare_compute(settings: ComputeSettings, device: torch.device = CPU) -> None:
    """Set CPU threads, precision of matrix products, handling of freed memory, and whose generator is kept beside the CPU's.

    Everything is set again for each run, so that earlier runs of the process have no effect.

    Raises:
        SettingsError: As `check_compute`.
    """
    check_compute(settings)
    if _ask(torch.get_float32_matmul_precision) != settings.matmul_precision:
        torch.set_float32_matmul_precision(settings.matmul_precision)
    if torch.get_num_threads() != (num_threads := choose_num_threads(settings)):
        torch.set_num_threads(num_threads)
    _keep_freed_memory()
    randomness.set_device(None if device.type == "cpu" else device)


@contextmanager
def computing_on(device: torch.device, settings: ComputeSettings) -> Iterator[None]:
    """Have an accelerator compute the same bits each time within the block, and with the precision of the settings."""
    if device.type == "cpu":
        yield
        return
    with putting_defaults_back(DETERMINISM):
        _set_workspace(os.environ.get("CUBLAS_WORKSPACE_CONFIG", WORKSPACE))  # read when the first product is computed
        torch.set_deterministic_debug_mode(2 if settings.deterministic else 0)
        filling.fill_uninitialized_memory = False  # no operation reads it, and writing it takes a kernel, or a copy of the rows
        cudnn.deterministic, cudnn.benchmark = settings.deterministic, False
        is_rounded = settings.matmul_precision != "highest"
        _set_cudnn_precision((is_rounded, *(["tf32" if is_rounded else "ieee"] * 2)))
        yield


def choose_num_threads(settings: ComputeSettings) -> int:
    """Return the number of CPU threads of a run."""
    return settings.num_threads or NUM_THREADS


@contextmanager
def putting_defaults_back(defaults: Defaults = DEFAULTS) -> Iterator[None]:
    """Restore the process's threads, precision and default type after the block, or other defaults."""
    before = [(get, put, get()) for get, put in defaults]
    try:
        yield
    finally:
        for get, put, value in before:
            if get() != value:
                put(value)


def describe_device(device: torch.device) -> str:
    """Describe the device, as in `cpu (2 threads)` or `cuda:0 (NVIDIA H100)`."""
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else f"{device} ({name_accelerator(device)})"


def describe_processors(settings: ComputeSettings) -> str:
    """Describe what the last bits depend on: the processor, or for `auto` the two between which the size of a step decides.

    Raises:
        SettingsError: As `check_compute`.
    """
    check_compute(settings)
    candidates, num_threads = list_candidates(settings), choose_num_threads(settings)
    described = " or ".join(describe_processor(device, num_threads) for device in candidates)
    return described if settings.deterministic or candidates == [CPU] else f"{described}, not deterministic"


def describe_processor(device: torch.device, num_threads: int) -> str:
    """Describe the kind and model of a processor, and a CPU's instruction set and threads."""
    if device.type != "cpu":
        return f"{device.type} {name_accelerator(device)}"
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
