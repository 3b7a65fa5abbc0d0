"""Machine code of a graph: compiled once, kept on disk by its digest, and compared with the graph before it is used."""

import hashlib
import secrets
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from refit.engine.operations import list_functions
from refit.errors import SettingsError
from refit.runtime.accelerators import CPU, is_short_of_memory
from refit.runtime.devices import describe_processor
from refit.runtime.interruption import deliver_signal
from refit.runtime.randomness import seed_everything

Program = Callable[[list[Tensor]], Sequence[Tensor]]
"""Takes all tensors of its steps, changes parameters, buffers and optimizer state in place, and returns the losses."""

# Without Inductor's patterns, one of which drops the `alpha` of a sum with a matrix product (PyTorch 2.13); with PyTorch's draws.
OPTIONS: dict[str, Any] = {"pattern_matcher": False, "fallback_random": True}

FP32_TOLERANCE = 1e-3
"""How much an update may differ when it is compiled, relative to its length; losses may differ by a tenth of it.

Sums in another order cause 1e-7 to 1e-5 (measured, from 2 inputs and 2 rows to 784 and 1,024, and six layers of 512 units), and
3e-5 where the update is tiny.
"""
BF16_TOLERANCE = 5e-2
"""The same where numbers of 8 binary digits take part: rounding at other places causes up to 1e-2, and 7e-4 in losses."""
TRIALS = 3
"""Trials with other numbers each, until one agrees."""


def load_program(graph: GraphModule, arguments: tuple[Any, ...], device: torch.device) -> Program:
    """Compile a graph, or on the CPU load its program from PyTorch's cache folder, and compare it with the graph.

    Args:
        graph: What it computes.
        arguments: Of the graph, the parameters first; left as they are.
        device: Where it computes.

    Raises:
        SettingsError: The graph cannot be compiled, or gives other results when it is.
        OSError: The folder cannot be written, or the device's memory is used by others, either of which may be temporary.
    """
    try:
        program = _load_from_disk(graph, arguments) if device.type == "cpu" else _compile_for_accelerator(graph, arguments)
        is_right = _is_right(program, graph, arguments)
    except Exception as error:
        deliver_signal()  # Ctrl-C ends the C++ compiler too
        if isinstance(error, OSError) or is_short_of_memory(error):
            raise
        raise refusal(error) from error
    if not is_right:
        raise refusal("one whose losses or weights differ when it is compiled, through a fault of PyTorch's compiler")
    return program


def _load_from_disk(graph: GraphModule, arguments: tuple[Any, ...]) -> Program:
    from torch._inductor.exc import CppCompileError  # here, as it loads the compiler, which few need
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    options = {**OPTIONS, "aot_inductor.custom_ops_to_c_shims": list_functions()}
    folder = Path(cache_dir()) / "refit"
    path = folder / f"{_digest(graph, arguments, options)}.pt2"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        unfinished = folder / f"{secrets.token_hex(8)}.pt2"
        compile_graph = partial(torch._inductor.aoti_compile_and_package, package_path=str(unfinished))
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            exported = torch.export.export(graph, arguments)
            try:  # to ask the C++ compiler first for each kind of instruction that the processor has takes 10 seconds
                compile_graph(exported, inductor_configs={**options, "cpp.vec_isa_ok": True})
            except CppCompileError:  # an old one does not know all of them
                compile_graph(exported, inductor_configs=options)
        unfinished.replace(path)
    # The package itself would flatten its arguments again in every call.
    program: Program = torch._inductor.aoti_load_package(str(path)).loader.run
    return program


def _compile_for_accelerator(graph: GraphModule, arguments: tuple[Any, ...]) -> Program:
    """Compile a graph with `torch.compile`, which does so when it is first called.

    Its choices between kernels depend on their shapes alone, not on measured times, so that all processes compute the same bits.
    """
    compiled = torch.compile(graph, fullgraph=True, options={**OPTIONS, "deterministic": True})
    structure = tree_structure(arguments)
    return lambda tensors: compiled(*tree_unflatten(tensors, structure))


def _is_right(program: Program, graph: GraphModule, arguments: tuple[Any, ...]) -> bool:
    """Whether compiled and uncompiled steps, on copies, do the same up to rounding.

    One trial that agrees is enough: if rounding takes a number across the kink of a ReLU, an update differs by more than rounding,
    but not with other numbers. A fault of the compiler shows with all numbers.
    """
    has_few_digits = torch.get_float32_matmul_precision() != "highest" or any(
        isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
        for node in graph.graph.nodes
        for value in tree_leaves(node.meta.get("val"))
    )
    tolerance = BF16_TOLERANCE if has_few_digits else FP32_TOLERANCE
    return any(_agrees(program, graph, arguments, trial, tolerance) for trial in range(TRIALS))


def _agrees(program: Program, graph: GraphModule, arguments: tuple[Any, ...], trial: int, tolerance: float) -> bool:
    """Whether losses and the change of all parameters, each as a vector, differ by no more than the tolerance of their length."""
    results, num_parameters = [], len(tree_leaves(arguments[0]))
    for run in (program, lambda tensors: graph(*tree_unflatten(tensors, tree_structure(arguments)))):
        seed_everything(trial)
        tensors = [_vary(tensor) if trial and tensor.is_floating_point() else tensor for tensor in tree_leaves(arguments)]
        copies = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            losses = torch.cat(list(run(copies)))
        changes = [(copy - tensor).flatten() for copy, tensor in zip(copies[:num_parameters], tensors, strict=False)]
        results.append((losses, torch.cat(changes)))
    (losses, change), (plain_losses, plain_change) = results
    if not plain_losses.isfinite().all():
        return trial == 0
    is_loss_close = (losses - plain_losses).norm() <= 0.1 * tolerance * plain_losses.norm()
    return bool(is_loss_close and (change - plain_change).norm() <= tolerance * plain_change.norm())


def _vary(tensor: Tensor) -> Tensor:
    """Numbers near those of a tensor, at most a tenth larger."""
    return tensor * (1 + 0.1 * torch.rand_like(tensor))


def _digest(graph: GraphModule, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What a program depends on: operations, constants, shapes and types, the processor, its threads, PyTorch."""
    here = [torch.__version__, describe_processor(CPU, torch.get_num_threads()), options]
    digest = hashlib.sha256(f"{here} {list_shapes(arguments)} {graph.print_readable(print_output=False)}".encode())
    for node in graph.graph.find_nodes(op="get_attr"):
        constant = getattr(graph, node.target)
        if isinstance(constant, Tensor):
            digest.update(constant.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def list_shapes(tensors: object) -> list[object]:
    """Shape, strides and type of each tensor."""
    return [(tuple(tensor.shape), tensor.stride(), str(tensor.dtype)) for tensor in tree_leaves(tensors)]


def refusal(found: str | Exception) -> SettingsError:
    """The error for a model that cannot be compiled."""
    if isinstance(found, Exception):
        found = f"{type(found).__name__}: {str(found).strip().partition(chr(10))[0]}"
    return SettingsError(f"compute.engine: expected a model whose step can be compiled whole, found {found}; use `eager`")
