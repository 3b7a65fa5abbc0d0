"""The arithmetic that `benchmarks/speed.py` holds speeds against."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from work import WORKS, mean_loss


@pytest.mark.parametrize("work", WORKS.values(), ids=str)
def test_the_products_of_a_step_are_those_that_pytorch_counts(work):
    layers = [layer for sizes in zip(work.widths, work.widths[1:], strict=False) for layer in (nn.Linear(*sizes), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    x, y = torch.ones(work.batch_size, work.num_inputs), torch.zeros(work.batch_size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(x), y).backward()
    assert work.flops_per_row * work.batch_size == counter.get_total_flops()


def test_the_least_that_moves_is_the_row_its_class_and_the_parameters_of_each_step():
    work = WORKS["tiny"]
    num_parameters = 65 * 16 + 17 * 16 + 17 * 10
    assert work.bytes_per_row == pytest.approx(4 * 64 + 8 + 2 * 4 * num_parameters / 32)


def test_losses_are_pytorchs_mean_cross_entropy():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    layers = [(network[place].weight.detach().numpy(), network[place].bias.detach().numpy()) for place in (0, 2)]
    expected = nn.functional.cross_entropy(network(x), y).item()
    assert mean_loss(layers, x.numpy(), y.numpy()) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_great_logits_is_finite():
    layers = [(torch.full((2, 1), 1000.0).numpy() * [[1], [-1]], torch.zeros(2).numpy())]
    assert math.isclose(mean_loss(layers, torch.ones(1, 1).numpy(), torch.ones(1, dtype=torch.int64).numpy()), 2000)
