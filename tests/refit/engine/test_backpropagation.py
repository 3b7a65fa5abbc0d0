import copy

import pytest
import torch
from torch import nn

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.engine import backpropagation
from refit.engine.backpropagation import backpropagate_all, build_backpropagation
from refit.models.mlp import ACTIVATIONS, build_mlp
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import Classification
from refit.training.steps import compute_gradients

CPU = torch.device("cpu")


ONLY_AUTOGRAD = ("selu", "mish")
ARITHMETIC = {"objective": Classification(()), "device": CPU, "precision": "fp32", "max_grad_norm": 0.1}


@pytest.mark.parametrize("batch_sizes", [(32, 5), (1,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("hidden_sizes", [[], [1], [16, 16], [300, 7, 64]], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ONLY_AUTOGRAD])
def test_gradients_losses_and_draws_are_those_of_autograd(activation, dropout, hidden_sizes, batch_sizes):
    torch.manual_seed(0)
    ours = build_mlp(Signature.of_numbers(5, 37), ModelSettings(hidden_sizes=hidden_sizes, activation=activation, dropout=dropout))
    plain = copy.deepcopy(ours)
    batches = [(torch.randn(size, 5), torch.randint(37, (size,))) for size in batch_sizes]
    backpropagate = build_backpropagation(ours, batch_sizes, ARITHMETIC)
    assert backpropagate is not None
    found = []
    for model in (ours, plain):
        torch.manual_seed(1)
        for _ in range(2):  # gradients of the step before do not count
            if model is ours:
                losses, norm = backpropagate_all(backpropagate, [*model.parameters()], batches, max_grad_norm=0.1)
            else:
                losses, norm = compute_gradients(model, [*model.parameters()], batches, **ARITHMETIC)
        found.append([*losses, norm, *(parameter.grad for parameter in model.parameters()), torch.get_rng_state()])
    assert all(map(torch.equal, *found))


def test_on_two_threads_they_are_those_of_autograd_on_two_threads():
    torch.set_num_threads(2)
    test_gradients_losses_and_draws_are_those_of_autograd("relu", 0.0, [300, 7, 64], (32, 5))


@pytest.mark.parametrize(
    ("model", "device", "precision"),
    [
        (nn.Sequential(nn.Linear(5, 3)), "cpu", "fp32"),
        (build_mlp(Signature.of_numbers(5, 3), ModelSettings(hidden_sizes=[4], activation="relu", dropout=0.0)), "cuda", "fp32"),
        (build_mlp(Signature.of_numbers(5, 3), ModelSettings(hidden_sizes=[4], activation="relu", dropout=0.0)), "cpu", "bf16"),
    ],
    ids=["another model", "a GPU", "bf16"],
)
def test_other_steps_are_left_to_autograd(model, device, precision):
    arithmetic = {**ARITHMETIC, "device": torch.device(device), "precision": precision}
    assert build_backpropagation(model, [2], arithmetic) is None


def test_where_bits_are_not_those_of_autograd_it_is_autograd_that_computes(monkeypatch):
    monkeypatch.setattr(backpropagation, "_tried", {})
    monkeypatch.setitem(backpropagation.BY_OUTPUT, nn.Tanh, lambda slope, y: slope * (1 - y * y) * (1 + 1e-7))
    torch.manual_seed(0)
    model = build_mlp(Signature.of_numbers(5, 3), ModelSettings(hidden_sizes=[16], activation="tanh", dropout=0.0))
    state = torch.get_rng_state()
    assert build_backpropagation(model, [4, 2], ARITHMETIC) is None
    assert torch.equal(torch.get_rng_state(), state), "trying draws nothing"


def test_the_steps_of_an_mlp_need_no_autograd():
    loader = build_train_loader(torch.randn(10, 4), torch.arange(10) % 3, 4, False)
    first, other = (
        build_training_state(ModelSettings(), OptimizerSettings(), Signature.of_numbers(4, 3), 0, CPU) for _ in range(2)
    )
    train_epoch(first, loader, lambda _: 0.1, device=CPU)  # which has tried whether they may do without
    with torch.no_grad():
        train_epoch(first, loader, lambda _: 0.1, device=CPU)
    other.model = nn.Sequential(*other.model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        train_epoch(other, loader, lambda _: 0.1, device=CPU)
