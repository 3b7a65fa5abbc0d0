"""Each network, trained by a plain loop and by a run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.models.building import build_model
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.loop import build_training_state, train_epoch
from refit.training.objectives import build_objective

CPU = torch.device("cpu")


def lose_by_member(outputs: Tensor, target: Tensor) -> Tensor:
    """The mean of the members' losses."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), target.repeat_interleave(3))


def lose_smoothly(outputs: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, target, label_smoothing=0.1)


def group_of_realmlp(network: nn.Module) -> list[dict[str, Any]]:
    """The groups of the paper: scales, biases, activations, and all other weights."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        lr = 0.06 if name == "scales" else 0.001 if name.endswith("bias") or name.startswith("activations") else 0.01
        groups.setdefault((lr, 0.0 if name.endswith("bias") else 0.02), []).append(parameter)
    return [{"params": found, "lr": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


@pytest.mark.parametrize(
    ("given", "compute_loss", "group", "smoothing"),
    [
        ({"architecture": "tabm", "num_members": 3}, lose_by_member, None, 0.0),
        ({"architecture": "realmlp", "activation": "selu"}, lose_smoothly, group_of_realmlp, 0.1),
        ({"architecture": "resnet"}, nn.functional.cross_entropy, None, 0.0),
        ({"num_members": 3}, lose_by_member, None, 0.0),
    ],
    ids=["tabm", "realmlp", "resnet", "an ensemble"],
)
def test_a_run_has_the_bits_of_a_plain_loop(
    given: dict[str, Any],
    compute_loss: Callable[[Tensor, Tensor], Tensor],
    group: Callable[[nn.Module], list[dict[str, Any]]] | None,
    smoothing: float,
) -> None:
    generator, signature = torch.Generator().manual_seed(11), Signature.of_numbers(4, 3)
    y = torch.randint(3, (50,), generator=generator)
    x = torch.randn(50, 4, generator=generator) + y[:, None]
    model = ModelSettings(hidden_sizes=[8, 6], dropout=0.2, **given)

    torch.manual_seed(0)
    plain = build_model(model, signature)
    update = torch.optim.AdamW(group(plain) if group else plain.parameters(), lr=0.01, weight_decay=0.02)
    losses = []
    for _ in range(5):
        for inputs, target in DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True):
            update.zero_grad()
            loss = compute_loss(plain(inputs), target)
            loss.backward()
            update.step()
            losses.append(loss.item())

    optimizer, objective = OptimizerSettings(lr=0.01, weight_decay=0.02), build_objective(signature.target, smoothing=smoothing)
    state = build_training_state(model, optimizer, signature, seed=0, device=CPU, objective=objective)
    logs = [train_epoch(state, build_train_loader(x, y, 16, False), lambda _: 0.01, device=CPU) for _ in range(5)]
    assert [loss for log in logs for loss in log.batch_losses] == losses
    weights = state.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
