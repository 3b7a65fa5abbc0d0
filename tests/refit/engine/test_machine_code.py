"""The comparison of a program with the steps that it stands for. Programs here are Python; `test_compilation` compiles some."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from refit.engine.machine_code import _is_right, load_program
from refit.errors import SettingsError
from refit.runtime.devices import autocast

CPU = torch.device("cpu")
Arguments = tuple[dict[str, Tensor], Tensor, Tensor]


def make_arguments(num_inputs: int = 5, num_units: int = 16, num_rows: int = 8) -> Arguments:
    """Weights of two layers for two classes, rows, classes."""
    torch.manual_seed(0)
    layers = nn.Linear(num_inputs, num_units), nn.Linear(num_units, 2)
    weights = {f"{number}.{name}": p.detach() for number, layer in enumerate(layers) for name, p in layer.named_parameters()}
    return weights, torch.rand(num_rows, num_inputs), torch.arange(num_rows) % 2


def trace(arguments: Arguments, precision: str = "fp32") -> GraphModule:
    """Two steps of gradient descent, with dropout."""

    def train(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor]:
        losses = []
        for step_x, step_y in zip(x.chunk(2), y.chunk(2), strict=True):
            leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
            with autocast(CPU, precision):
                hidden = nn.functional.linear(step_x, leaves["0.weight"], leaves["0.bias"]).relu()
                outputs = nn.functional.linear(nn.functional.dropout(hidden, 0.2), leaves["1.weight"], leaves["1.bias"])
                loss = nn.functional.cross_entropy(outputs, step_y)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            with torch.no_grad():
                for weight, gradient in zip(weights.values(), gradients, strict=True):
                    weight.sub_(0.01 * gradient)
            losses.append(loss.detach())
        return (torch.stack(losses),)

    return make_fx(train, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)


def build_program(
    graph: GraphModule,
    arguments: Arguments,
    change_loss: Callable[[Tensor], Tensor] = lambda losses: losses,
    change_update: Callable[[Tensor], Tensor] = lambda update: update,
) -> Callable[[list[Tensor]], list[Tensor]]:
    """The graph as a program, with errors."""
    names = list(arguments[0])

    def program(tensors: list[Tensor]) -> list[Tensor]:
        weights = dict(zip(names, tensors, strict=False))
        before = {name: weight.clone() for name, weight in weights.items()}
        (losses,) = graph(weights, *tensors[len(names) :])
        for name, weight in weights.items():
            weight.copy_(before[name] + change_update(weight - before[name]))
        return [change_loss(losses)]

    return program


def scale(share: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor * (1 + share)


@pytest.mark.parametrize("sizes", [(5, 16, 8), (1, 1, 2), (3, 40, 34), (200, 100, 128)])
def test_a_step_whose_sums_are_made_in_another_order_is_right_and_one_that_is_a_hundredth_off_is_not(sizes):
    arguments = make_arguments(*sizes)
    graph, leaves = trace(arguments), [tensor.clone() for tensor in tree_leaves(arguments)]

    def is_right(**changes) -> bool:
        return _is_right(build_program(graph, arguments, **changes), graph, arguments)

    assert is_right()
    assert is_right(change_update=lambda update: update * (1 + 1e-5 * torch.randn_like(update)), change_loss=scale(1e-6))
    assert not is_right(change_loss=scale(0.01))
    assert not is_right(change_update=scale(0.01))
    assert not is_right(change_update=scale(-0.01))
    assert all(map(torch.equal, leaves, tree_leaves(arguments))), "arguments are left as they are"


def test_a_step_in_bf16_is_right_up_to_the_rounding_of_bf16():
    arguments = make_arguments()
    graph = trace(arguments, "bf16")

    def is_right(**changes) -> bool:
        return _is_right(build_program(graph, arguments, **changes), graph, arguments)

    assert is_right(change_update=lambda update: update * (1 + 0.01 * torch.randn_like(update)), change_loss=scale(0.001))
    assert not is_right(change_loss=scale(0.01))
    assert not is_right(change_update=scale(0.1))


def test_where_factors_of_products_may_be_rounded_to_bf16_steps_are_right_up_to_that():
    arguments = make_arguments()
    graph = trace(arguments)
    program = build_program(graph, arguments, change_update=scale(0.01))
    torch.set_float32_matmul_precision("medium")
    try:
        assert _is_right(program, graph, arguments)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("num_odd", "is_right"), [(1, True), (3, False)])
def test_a_number_that_rounding_takes_across_a_kink_counts_in_one_trial_and_not_in_the_next(num_odd, is_right):
    arguments, odd = make_arguments(), [0.1] * num_odd
    graph = trace(arguments)

    def change_weights(tensors: list[Tensor]) -> list[Tensor]:
        losses = graph(dict(zip(arguments[0], tensors, strict=False)), *tensors[-2:])
        tensors[0].add_(odd.pop() if odd else 0.0)
        return [*losses]

    assert _is_right(change_weights, graph, arguments) is is_right


def test_a_program_that_draws_otherwise_is_not_right():
    arguments = make_arguments()
    graph = trace(arguments)
    program = build_program(graph, arguments)
    assert not _is_right(lambda tensors: (torch.rand(1), program(tensors))[1], graph, arguments)


def test_a_compiler_that_does_not_know_all_instructions_is_asked_which_it_knows(monkeypatch, tmp_path):
    from torch._inductor.exc import CppCompileError

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    errors, asked = [CppCompileError(["g++"], "unrecognized option -mamx-tile"), RuntimeError("asked twice")], []

    def fail(*_, inductor_configs, **__):
        asked.append("cpp.vec_isa_ok" not in inductor_configs)
        raise errors[len(asked) - 1]

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    arguments = make_arguments()
    with pytest.raises(SettingsError, match="RuntimeError: asked twice"):
        load_program(trace(arguments), arguments, CPU)
    assert asked == [False, True]
