"""A device that PyTorch takes for an accelerator: `standin:0`, with a memory and generators of its own, computed by the CPU.

It refuses what a GPU refuses (tensors of two devices in one operation), and counts what a GPU waits for. `standin:1` is there too,
but PyTorch's autograd knows only the first device of a kind that is written in Python. Processes get it as they would get any
device of another maker, through PyTorch's entry points: see `as_package`.
"""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
NUM_DEVICES = 2
FIRST, SECOND = (torch.device(torch._C._get_privateuse1_backend_name(), index) for index in range(NUM_DEVICES))
ops = torch.ops.aten
CROSSING = (ops.copy_.default, ops._to_copy.default)
"""Operations that may read from one device and write to another."""


class _Backend:
    """What `torch.standin` has, as `torch.cuda` would."""

    is_on = True
    num_waits = 0
    """How often a number or a tensor went to the CPU, for which a GPU has to finish all that it was given."""
    num_operations = 0
    memory = 1 << 30
    used = 0
    full_after: int | None = None
    """Operations after which the memory is full."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.is_on

    def device_count(self) -> int:
        return NUM_DEVICES if self.is_on else 0

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_device_name(self, _: object = None) -> str:
        return "Stand-in"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        self.states = [torch.Generator().manual_seed(seed).get_state() for _ in range(NUM_DEVICES)]

    def get_rng_state(self, device: torch.device) -> Tensor:
        return self.states[device.index].clone()

    def set_rng_state(self, state: Tensor, device: torch.device) -> None:
        self.states[device.index] = state.clone()

    def mem_get_info(self, _: object = None) -> tuple[int, int]:
        return self.memory - self.used, self.memory

    def empty_cache(self) -> None:
        pass

    def memory_reserved(self, _: object = None) -> int:
        return 0

    memory_allocated = memory_reserved


backend = _Backend()
backend.manual_seed_all(0)


class StandInTensor(Tensor):
    """A tensor of the device; `raw` holds its numbers."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor, index: int) -> "StandInTensor":
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = Tensor._make_wrapper_subclass(cls, raw.shape, device=torch.device(NAME, index), **layout)
        made.raw = raw
        return made

    def __init__(self, *_: object) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, op: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"StandInTensor({self.raw!r})"


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute an operation of which an argument or the result lies on the device."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    target = torch.device(kwargs.pop("device", None) or _find_target(op, args, given))
    index = target.index or 0
    backend.num_operations += 1
    is_full = backend.full_after is not None and backend.num_operations > backend.full_after
    if is_full and threading.current_thread() is threading.main_thread():  # PyTorch would abort in the thread of a backward pass
        raise torch.OutOfMemoryError("stand-in out of memory")
    if op not in CROSSING and any(x.device != target and x.dim() for x in given):
        raise RuntimeError(f"{op}: Expected all tensors to be on the same device, found {[str(x.device) for x in given]}")
    if target.type == "cpu" or op is ops._local_scalar_dense.default:
        backend.num_waits += 1
    if target.type != "cpu" and any(x.device.type == "cpu" for x in given) and backend.used + given[-1].nbytes > backend.memory:
        raise torch.OutOfMemoryError("stand-in out of memory")
    raw_args, raw_kwargs = tree_map_only(StandInTensor, lambda x: x.raw, (args, kwargs))
    if any(argument.name == "device" for argument in op._schema.arguments):
        raw_kwargs = {**raw_kwargs, "device": "cpu", "pin_memory": False}
        raw_kwargs = {name: raw_kwargs[name] for name in raw_kwargs if any(name == it.name for it in op._schema.arguments)}
    made = _draw(op, index, raw_args, raw_kwargs) if torch.Tag.nondeterministic_seeded in op.tags else op(*raw_args, **raw_kwargs)
    if target.type == "cpu":
        return args[0] if op is ops.copy_.default else made
    mine = {id(x.raw): x for x in given if isinstance(x, StandInTensor)}
    return tree_map_only(Tensor, lambda x: mine[id(x)] if id(x) in mine else StandInTensor(x, index), made)


def _find_target(op: Any, args: Any, given: list[Tensor]) -> torch.device:
    """Where the result of an operation lies: where the first tensor does that is no single number of the CPU."""
    if op in CROSSING:
        return args[0].device
    return next((x.device for x in given if isinstance(x, StandInTensor)), torch.device("cpu"))


def _draw(op: Any, index: int, args: Any, kwargs: Any) -> Any:
    before = torch.get_rng_state()
    torch.set_rng_state(backend.states[index])
    try:
        return op(*args, **kwargs)
    finally:
        backend.states[index] = torch.get_rng_state()
        torch.set_rng_state(before)


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return backend.is_on

    def has_primary_context(self, _: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


def _cast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer under automatic mixed precision."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        low = [None if part is None else part.to(torch.bfloat16) for part in (x, weight, bias)]
        return torch.nn.functional.linear(*low)


_libraries: list[torch.library.Library] = []


def register() -> None:
    """Make the device known to PyTorch, once a process."""
    if _libraries:
        return
    _setup_privateuseone_for_python_backend(NAME, backend, _Hooks())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(_run, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten.impl("linear", _cast_linear, "AutocastPrivateUse1")
    _libraries.extend([everything, aten])


def as_package(folder: Path) -> str:
    """Write what makes PyTorch register the device in each process that has the returned folder on its path."""
    described = folder / "stand_in_device-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in-device\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[torch.backends]\n{NAME} = stand_in:register\n")
    (folder / "stand_in.py").symlink_to(Path(__file__).resolve())
    return str(folder)
