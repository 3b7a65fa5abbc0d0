"""What differs between the CPU, CUDA, MPS and PyTorch's other devices: names, memory, generators, turns. Nothing else asks."""

import fcntl
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

CPU = torch.device("cpu")
PINNING = ("cuda", "xpu")
"""Kinds to which rows are sent from pinned memory, so that the CPU need not wait until they have arrived."""
NO_MEMORY = (
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "busy or unavailable"),
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # which is how it says that its handle found no room
)
"""Parts of the messages of a device whose memory, or which itself, others use at the moment."""
SECONDS_BETWEEN_LOOKS = 0.1
NVIDIA = Path("/proc/driver/nvidia/gpus")
"""A folder of the driver, with an entry for each NVIDIA GPU of the machine, whether PyTorch can use it or not."""


def list_accelerators() -> list[torch.device]:
    """List the devices besides the CPU that PyTorch can use now, the best first."""
    current = torch.accelerator.current_accelerator(check_available=True)
    kinds = [*(["cuda"] if torch.cuda.is_available() else []), *([current.type] if current else [])]
    return [torch.device(kind, index) for kind in dict.fromkeys(kinds) for index in range(_get_module(kind).device_count())]


def find_missing() -> str | None:
    """Say which accelerator the machine has and PyTorch cannot use, and why; None if there is none."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or is_hidden or not NVIDIA.is_dir() or not any(NVIDIA.iterdir()):
        return None
    if not torch.backends.cuda.is_built():
        return f"an NVIDIA GPU, and a PyTorch {torch.__version__} that was built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"an NVIDIA GPU that does not work: {str(error).partition(chr(10))[0]}"
    return "an NVIDIA GPU that does not work; run nvidia-smi"


def name_accelerator(device: torch.device) -> str:
    """Name the model of a device, as in `NVIDIA H100` or `Apple M3`, or else its kind."""
    module = _get_module(device.type)
    if device.type == "mps":
        return torch.backends.mps.get_name()
    if device.type == "cuda" and len(models := _list_nvidia_models()) == 1:
        return models.pop()  # asking CUDA would take seconds and memory of a GPU that the run may not need
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def _list_nvidia_models() -> set[str]:
    """Name the models of the machine's NVIDIA GPUs, as the driver's files do, if there are any."""
    files = (path.read_text() for path in NVIDIA.glob("*/information"))
    return {match[1] for text in files if (match := re.search(r"^Model:\s*(\S.*?)\s*$", text, re.MULTILINE))}


def measure_free_memory(device: torch.device) -> int:
    """Measure the bytes that can be allocated on a device, with those that PyTorch keeps for itself and does not use."""
    module = _get_module(device.type)
    if device.type == "mps":
        return int(module.recommended_max_memory() - module.current_allocated_memory())
    if not hasattr(module, "mem_get_info"):
        return 0
    return int(module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device))


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device's memory and does not use."""
    if device.type != "cpu":
        _get_module(device.type).empty_cache()


def is_short_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the memory of a device, or the device itself, is used by others."""
    return isinstance(error, RuntimeError) and any(part in str(error) for part in NO_MEMORY)


def emulates_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 only by converting to fp32 and back."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch's compiler finds Triton, which it needs for a GPU of NVIDIA, AMD or Intel."""
    return device.type not in PINNING or importlib.util.find_spec("triton") is not None


def get_generator_state(device: torch.device) -> Tensor:
    """Return the state of a device's generator, as bytes on the CPU."""
    module = _get_module(device.type)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Bring a device's generator to a state, of this or of another device of the same kind."""
    module = _get_module(device.type)
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


@contextmanager
def taking_turns(
    device: torch.device, is_alone: bool, on_wait: Callable[[], object], while_waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Use a device together with the other runs of this user on this machine, or alone.

    Args:
        device: On the CPU, nobody waits.
        is_alone: Whether to wait until no other run uses it, and to make others wait.
        on_wait: Called if there is one to wait for.
        while_waiting: Called again and again until then; it may raise.
    """
    if device.type == "cpu":
        yield
        return
    path = Path(tempfile.gettempdir()) / f"refit-{os.getuid()}-{_identify(device)}.lock"
    with path.open("a") as file:  # a process that dies lets go
        kind = fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH
        if not _lock(file, kind):
            on_wait()
            while not _lock(file, kind):
                while_waiting()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        yield


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _identify(device: torch.device) -> str:
    """Identify a device among those of the machine; CUDA's numbers depend on `CUDA_VISIBLE_DEVICES`."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else f"{device.type}-{device.index}"


def _get_module(kind: str) -> Any:
    return torch.get_device_module(kind)
