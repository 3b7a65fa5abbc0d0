"""Compiles whole steps: they are traced once, and then each call runs machine code."""

import copy
import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from refit.engine.captured_steps import GRAPHS, capture, chain, has_same_bits
from refit.engine.machine_code import Program as Recordable
from refit.engine.machine_code import list_shapes, load_program, refusal
from refit.engine.operations import LIGHTER
from refit.engine.optimizer_updates import KNOWN, UpdateRule, build_update_rule, find_unknown
from refit.errors import SettingsError
from refit.runtime.accelerators import is_short_of_memory
from refit.runtime.devices import computing_on_one_thread
from refit.runtime.randomness import putting_generators_back, seed_everything
from refit.training.steps import Batch

GradientComputation = partial[tuple[list[Tensor], Tensor | None]]
"""`compute_gradients` with its options."""
Program = Callable[[Batch, Sequence[float]], Sequence[Tensor]]
"""Trains on the rows of several steps, each at its learning rate, and returns one vector, the mean loss of each batch."""

LONGEST_WAIT = 200_000
"""Steps that `auto` takes uncompiled, if they are tiny."""
HALF_WAIT = 1_250_000
"""Rows times parameters of a step on the CPU; of such steps, `auto` takes half as many uncompiled."""
SMALL_STEP = 2_000_000
"""Rows times parameters. A smaller step takes less than 100 µs, half of which would go to calling a program and gathering rows."""
MEDIUM_STEP = 8_000_000
"""From here on, calling a program takes a negligible part of a step."""
LARGE_STEP = 1_000_000_000
"""From here on, starting its operations takes a negligible part of a step on a GPU."""
STEPS_A_GRAPH = 16
"""Smaller steps on a GPU that one call takes."""
TRIAL_LR = 0.01
"""Learning rate of the steps by which machine code is compared with PyTorch's operations."""
TRIES = 5
"""Traces of a step until it counts as one that draws random numbers: another thread may draw meanwhile."""

_steps: WeakKeyDictionary[nn.Module, dict[str, tuple[Program, object]]] = WeakKeyDictionary()
"""Compiled steps, and what a recording of them does not keep: kernels, which Triton unloads with the program, and constants."""
_uncompilable: WeakSet[torch.optim.Optimizer] = WeakSet()


def count_steps_before(engine: str, parameters: Sequence[Tensor], num_rows: int) -> float:
    """How many steps on so many rows, counted over the whole run, are taken uncompiled: none if `compiled`, all if `eager`.

    `auto` compiles once compiling would have saved the ten seconds or so that it takes: a run that has come so far is likely to go
    on as long. On the CPU a compiled step saves 50 µs, and 40 ps for each row times parameter (measured: 56 µs of 66 with 48
    thousand of them, 0.2 ms of 0.3 with 3 million, 3 ms of 6 with 86 million, 50 ms of 98 with 2 billion). So `auto` compiles after
    200,000 steps or fewer, for the largest of these after 130; on a GPU after 50,000 (not measured). It ignores how long a step
    takes, and `training.num_epochs`: bits would depend on a measurement, or a longer run could not go on where a shorter one ended.
    """
    if engine != "auto":
        return 0 if engine == "compiled" else math.inf
    size = _measure(parameters, num_rows) if parameters[0].is_cpu else 3 * HALF_WAIT
    return LONGEST_WAIT / (1 + size / HALF_WAIT)


def can_compile(engine: str, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the next step can be compiled: not before the first step has made the optimizer's state; `auto` tries only once."""
    is_left_out = engine == "auto" and optimizer in _uncompilable
    return not is_left_out and (bool(optimizer.state) or optimizer.param_groups[0].get("momentum") == 0)


def count_steps_a_call(parameters: Sequence[Tensor], num_rows: int, num_steps: int) -> int:
    """How many steps of so many rows one call takes: on the CPU 4 small ones or 2 medium ones, on a GPU 16, else 1.

    With more steps a call, an epoch may take longer, as its last steps that do not fill a call are eager; so a call on a GPU takes
    at most a quarter of the epoch's `num_steps`.
    """
    size = _measure(parameters, num_rows)
    if not parameters[0].is_cpu:
        return min(STEPS_A_GRAPH, max(1, num_steps // 4)) if size < LARGE_STEP else 1
    if size >= MEDIUM_STEP:
        return 1
    return 4 if size < SMALL_STEP else 2


def _measure(parameters: Sequence[Tensor], num_rows: int) -> int:
    """How large a step is: rows times parameters."""
    return num_rows * sum(parameter.numel() for parameter in parameters)


def _choose_context(parameters: Sequence[Tensor], num_rows: int) -> Callable[[], AbstractContextManager[None]]:
    """Choose the context of a step on so many rows: one thread if it is small, as threads would wait longer than they compute."""
    is_small = parameters[0].is_cpu and _measure(parameters, num_rows) < SMALL_STEP
    return computing_on_one_thread if is_small else nullcontext


def compile_steps(
    engine: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Batch,
    num_steps: int,
    batch_size: int,
    compute: GradientComputation,
    report: Callable[[str], object],
) -> Program | None:
    """Compile `num_steps` steps that train `model` on rows of these shapes, if they are not compiled yet.

    The steps that run otherwise are traced: gradients and the update rule, including dropout's draws from the global generator. On
    the CPU, all steps are one program; a call costs about 2 µs, while one by `torch.compile` costs 130. On an accelerator, one step
    is compiled, and on CUDA a graph repeats it.

    Args:
        engine: `compiled`, or `auto`, which goes on without compiling if the model cannot be compiled.
        model: Its parameters and buffers are changed in place.
        optimizer: Its state is changed in place.
        rows: The rows of all steps.
        num_steps: The number of steps; each takes the same number of rows.
        batch_size: Rows of a batch; a step on more of them accumulates gradients.
        compute: `compute_gradients` with its options.
        report: Receives a line about how long compiling took, or why it failed.

    Returns:
        The steps, or None if `auto` goes on without compiling.

    Raises:
        SettingsError: The optimizer is not supported, the model cannot be traced or compiled, or its compiled steps give other
            results.
        OSError: The compiler's folder cannot be written.
    """
    before = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    try:
        return _find_program(model, optimizer, rows, num_steps, batch_size, compute, report)
    except SettingsError as error:
        if engine == "compiled":
            raise
        for parameter, state in before.items():
            optimizer.state[parameter].update(state)  # plain Adam would wait for a device to read its count of steps
        report(f"going on without compiling: {error}")
        _uncompilable.add(optimizer)
        return None


def _find_program(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Batch,
    num_steps: int,
    batch_size: int,
    compute: GradientComputation,
    report: Callable[[str], object],
) -> Program:
    """The steps, compiled if they are not yet."""
    _refuse_unknown(model, optimizer)
    (group,) = optimizer.param_groups
    device = group["params"][0].device
    states = [_move_state(optimizer.state.get(parameter, {}), device) for parameter in model.parameters()]
    tensors = (dict(model.named_parameters()), dict(model.named_buffers()), states)
    options = {name: value for name, value in group.items() if name not in ("params", "lr")}
    places = [id(tensor) for tensor in tree_leaves(tensors)]
    sizes = [num_steps, batch_size, list_shapes(rows)]
    key = repr([type(optimizer), options, compute.keywords, sizes, places, torch.get_num_threads()])
    programs = _steps.setdefault(model, {})
    if key in programs:
        return programs[key][0]
    running = _choose_context(group["params"], len(rows[1]) // num_steps)
    started = time.perf_counter()
    rates = [torch.zeros((), device=device, requires_grad=True) for _ in range(num_steps)]
    fixed = tree_map(Tensor.detach, (*tensors, rates))
    inputs, rates_before = tree_leaves(fixed), [0.0] * num_steps
    num_traced = num_steps if device.type == "cpu" else 1
    x, y = (part[: len(part) // num_steps * num_traced] for part in rows)
    with putting_generators_back(), running():
        graph = _trace(
            model, partial(_train, compute, build_update_rule(optimizer), batch_size), (*tensors, rates[:num_traced], x, y)
        )
        program = load_program(graph, _make_trial((*fixed[:-1], fixed[-1][:num_traced]), (x, y)), device)
        if num_traced < num_steps:
            program = chain(program, num_steps)
        run = _record(program, [*inputs, *rows]) if device.type in GRAPHS else program
    report(f"compiled the training step in {time.perf_counter() - started:.1f} seconds")

    def take_steps(rows: Batch, lrs: Sequence[float]) -> Sequence[Tensor]:
        nonlocal rates_before
        if lrs != rates_before:
            for rate, lr in zip(fixed[-1], lrs, strict=True):
                rate.fill_(lr)
            rates_before = [*lrs]
        group["lr"] = lrs[-1]
        with running():
            return run([*inputs, *rows])

    programs[key] = take_steps, program
    return take_steps


def _record(program: Recordable, tensors: list[Tensor]) -> Recordable:
    """Record compiled steps as a CUDA graph.

    Raises:
        SettingsError: They do something that cannot be recorded, or have other bits when they are.
    """
    try:
        with torch.no_grad():
            recording = capture(program, tensors)
            is_free = not torch.are_deterministic_algorithms_enabled()
            is_right = is_free or has_same_bits(recording, program, tensors[:-2], tensors[-2:])
    except RuntimeError as error:
        if is_short_of_memory(error):
            raise
        raise refusal(error) from error
    if not is_right:
        raise refusal("one whose recorded steps have other bits than its steps")
    return recording


def _refuse_unknown(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise SettingsError for an optimizer whose compiled steps would give other results."""
    unknown = find_unknown(optimizer)
    if unknown is None and {*map(id, optimizer.param_groups[0]["params"])} != {*map(id, model.parameters())}:
        unknown = f"{type(optimizer).__name__} of some of the model's parameters"
    if unknown is not None:
        kinds = ", ".join(kind.__name__ for kind in KNOWN)
        raise SettingsError(
            f"compute.engine: expected an optimizer whose step can be compiled ({kinds}), found {unknown}; use `eager`"
        )


def _train(
    compute: GradientComputation,
    rule: UpdateRule,
    batch_size: int,
    model: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    states: list[dict[str, Tensor]],
    rates: list[Tensor],
    x: Tensor,
    y: Tensor,
) -> tuple[Tensor]:
    """The steps, as a function of all their tensors."""
    leaves, num_rows, losses = list(parameters.values()), len(y) // len(rates), list[Tensor]()
    for lr, step_x, step_y in zip(rates, x.split(num_rows), y.split(num_rows), strict=True):
        batches = list(zip(step_x.split(batch_size), step_y.split(batch_size), strict=True))
        losses += compute(lambda x: functional_call(model, {**parameters, **buffers}, (x,)), leaves, batches)[0]
        used = [number for number, leaf in enumerate(leaves) if leaf.grad is not None]
        state = {name: [states[number][name] for number in used] for name in states[used[0]]}
        with torch.no_grad():
            rule([leaves[number] for number in used], [cast(Tensor, leaves[number].grad) for number in used], state, lr)
    return (torch.stack(losses),)


def _make_trial(fixed: tuple[Any, ...], rows: Batch) -> tuple[Any, ...]:
    """Arguments that do not depend on the state of training, and do not amplify rounding as those of Adam's first steps would."""
    seed_everything(0)
    (parameters, buffers, states, rates), (x, y) = fixed, rows
    steady = {"step": 1e4, "exp_avg_sq": 1e-4}
    trial_states = [{name: torch.full_like(it, steady.get(name, 0.0)) for name, it in state.items()} for state in states]
    trial_rates = [torch.full_like(rate, TRIAL_LR) for rate in rates]
    target = (torch.arange(len(y), device=y.device) % 2).to(y.dtype)
    return parameters, buffers, trial_states, trial_rates, torch.rand_like(x), target.view(-1, *[1] * (y.dim() - 1)).expand_as(y)


def _trace(model: nn.Module, train: Callable[..., tuple[Tensor, ...]], arguments: tuple[Any, ...]) -> GraphModule:
    """Trace the operations of steps, without running them.

    Raises:
        SettingsError: They cannot be traced, or would differ the next time.
    """
    for _ in range(TRIES):
        try:
            twin = copy.deepcopy(model)  # tracing may leave marks on it
            attributes, generators = _read_attributes(twin), _read_generators()
            steps = make_fx(partial(train, twin), LIGHTER, tracing_mode="fake", _allow_non_fake_inputs=True)
            # oneDNN's recurrent layers cannot be compiled, PyTorch's own can.
            with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
                graph: GraphModule = steps(*arguments)
        except Exception as error:
            raise refusal(error) from error
        if _read_attributes(twin) != attributes or _changes_constants(graph):
            break
        if _read_generators() == generators:
            return graph
    raise refusal("one that changes state other than buffers from call to call, or draws from Python's or NumPy's generator")


def _read_attributes(model: nn.Module) -> object:
    """Read what a forward pass may change besides buffers; a decision that depends on it would be made once, in the trace."""
    plain = (bool, int, float, str, tuple, type(None))
    return [
        (name, id(value) if isinstance(value, Tensor) else value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, (*plain, Tensor))
    ]


def _read_generators() -> object:
    """Read the state that draws of Python and NumPy change, in this thread or in another."""
    return random.getstate(), str(np.random.get_state())


def _changes_constants(graph: GraphModule) -> bool:
    """Whether a step writes to a tensor that is neither parameter nor buffer, or to a view of one."""
    constants = set[Node]()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            constants.add(node)
        if not isinstance(node.target, OpOverload):
            continue
        for value, argument in zip(node.args, node.target._schema.arguments, strict=False):
            if isinstance(value, Node) and value in constants and argument.alias_info is not None:
                if argument.alias_info.is_write:
                    return True
                constants.add(node)
    return False


def _move_state(state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move the state of one parameter to its device, in place; Adam's count of steps is usually elsewhere."""
    for name, tensor in state.items():
        state[name] = tensor.to(device)
    return dict(state)
