import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from refit.engine.operations import LIGHTER, write_out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight": torch.tensor([1.0, 2.0, 3.0])},
        {"ignore_index": 1},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"label_smoothing": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(6, 3), (3,), (6, 3, 2)], ids=str)
def test_losses_and_gradients_are_those_of_pytorch_whatever_the_options_of_the_loss(options, shape):
    torch.manual_seed(0)
    outputs, target = torch.randn(shape), torch.randint(3, (*shape[:-1],) if len(shape) < 3 else (shape[0], shape[2]))

    def compute(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().requires_grad_()
        loss = functional.cross_entropy(leaf, target, **options)
        return loss, torch.autograd.grad(loss.sum(), leaf)[0]

    graph = make_fx(compute, LIGHTER)(outputs, target)
    for found, expected in zip(graph(outputs, target), compute(outputs, target), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    operations = {node.target for node in graph.graph.nodes}
    is_lighter = options in ({}, {"label_smoothing": 0.1}) and len(shape) == 2
    is_another = len(shape) == 3
    assert (torch.ops.aten.nll_loss_forward.default not in operations) == (is_lighter or is_another)


def test_a_matrix_of_one_column_lies_row_by_row_as_the_product_by_blocks_takes_it():
    column = torch.randn(1, 64).T
    assert column.stride() != (1, 1)
    assert write_out(column).stride() == (1, 1)
    assert torch.equal(write_out(column), column)
