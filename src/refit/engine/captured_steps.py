"""Several steps as one CUDA graph: recorded once, then each call starts all their operations at once, with the same bits.

A small step has some twenty operations, each of which takes a GPU less time than the CPU needs to start it.
"""

from collections.abc import Sequence
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from refit.engine.machine_code import Program
from refit.engine.optimizer_updates import find_unknown
from refit.models.mlp import MLP
from refit.runtime.randomness import putting_generators_back
from refit.training.objective import Classification, Objective

GRAPHS = ("cuda",)
"""Kinds of devices that can record operations."""
WARM_UPS = 3
"""Calls before the recording, as PyTorch's notes on CUDA graphs ask for: libraries set themselves up in the first ones."""

_recorded: WeakKeyDictionary[nn.Module, dict[str, Program | None]] = WeakKeyDictionary()


def chain(take_step: Program, num_steps: int) -> Program:
    """Make a program of several steps, with a learning rate and a part of the rows each, of a program of one."""

    def take_steps(tensors: list[Tensor]) -> list[Tensor]:
        *inputs, x, y = tensors
        inputs, rates = inputs[:-num_steps], inputs[-num_steps:]
        num_rows = len(y) // num_steps
        parts = zip(rates, x.split(num_rows), y.split(num_rows), strict=True)
        return [loss for rate, *rows in parts for loss in take_step([*inputs, rate, *rows])]

    return take_steps


def capture(program: Program, tensors: list[Tensor]) -> Program:
    """Record what a program does with tensors, the last two of which are the rows, as one CUDA graph.

    The graph reads and writes the same memory in each call; only the rows are copied to where it expects them. It does not keep the
    program's kernels and constants: whoever compiled them does. Whatever happens, the tensors are left as they were.

    Source: PyTorch 2.13, "CUDA semantics", whole-network capture.
    """
    kept, rows = tensors[:-2], [part.clone() for part in tensors[-2:]]
    before, graph = [tensor.clone() for tensor in kept], torch.cuda.CUDAGraph()
    here, aside = torch.cuda.current_stream(kept[0].device), _open_stream(kept[0].device)
    aside.wait_stream(here)
    try:
        with torch.cuda.stream(aside):  # on its device, which need not be the current one; left even if the recording fails
            for _ in range(WARM_UPS):
                program([*kept, *rows])
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):  # others may use the GPU meanwhile
                losses = torch.cat([loss.reshape(-1) for loss in program([*kept, *rows])])
    finally:
        here.wait_stream(aside)
        restore(kept, before)

    def replay(tensors: list[Tensor]) -> list[Tensor]:
        for place, part in zip(rows, tensors[-2:], strict=True):
            place.copy_(part)
        graph.replay()
        return [losses.clone()]  # the next call overwrites them

    return replay


@cache
def _open_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a device records; always the same, as cuBLAS keeps 32 MB for each that it has met."""
    return torch.cuda.Stream(device)


def restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give tensors back what they held."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def may_capture(model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, device: torch.device) -> bool:
    """Whether plain steps can be recorded with the bits that they have otherwise.

    The networks are our own, as others may decide something anew in each step. Adam's corrections are numbers that change from step
    to step, and a graph would repeat those of its first.
    """
    is_known = type(model) is MLP and type(objective) is Classification and type(optimizer) is torch.optim.SGD
    return device.type in GRAPHS and is_known and find_unknown(optimizer) is None


def find_captured(
    model: nn.Module, optimizer: torch.optim.Optimizer, key: str, program: Program, rows: list[Tensor]
) -> Program | None:
    """Return the recording of a program that changes a model and its optimizer; record it first if it is not there.

    Args:
        model: Its parameters and buffers are changed in place.
        optimizer: Its state is changed in place.
        key: What the program depends on besides them.
        program: Takes plain steps on the two tensors that it is given last.
        rows: Inputs and targets of all steps.

    Returns:
        The recording, or None if it failed or its bits are not those of the program.
    """
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    kept = [tensor.detach() for tensor in (*model.parameters(), *model.buffers(), *states)]
    recorded, key = _recorded.setdefault(model, {}), f"{key} {[tensor.data_ptr() for tensor in kept]}"
    if key not in recorded:
        try:
            with putting_generators_back():
                replay = capture(program, [*kept, *rows])
            recorded[key] = replay if has_same_bits(replay, program, kept, rows) else None
        except RuntimeError:  # such as too little memory; plain steps need less
            recorded[key] = None
    return recorded[key]


def has_same_bits(replay: Program, program: Program, kept: list[Tensor], rows: list[Tensor]) -> bool:
    """Whether both give the same losses and leave the same tensors, which are then as before."""
    before, results = [tensor.clone() for tensor in kept], []
    for run in (replay, program):
        with putting_generators_back():
            losses = torch.cat([loss.reshape(-1) for loss in run([*kept, *rows])])
        results.append([losses, *(tensor.clone() for tensor in kept)])
        restore(kept, before)
    return all(map(torch.equal, *results))
