import subprocess
import sys

import pytest
import torch
from torch import nn

from refit.data.loaders import build_train_loader
from refit.engine import compilation, optimizer_updates
from refit.engine.optimizer_updates import build_update
from refit.errors import SettingsError
from refit.settings import OptimizerSettings
from refit.training.checkpoints import digest_weights
from refit.training.loop import TrainingState, train_epoch
from refit.training.objective import Classification
from refit.training.optimizers import build_optimizer
from refit.training.steps import compute_gradients

CPU = torch.device("cpu")
OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"name": "adam", "lr": 0.01},
    {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
    {"name": "adamw", "lr": 0.01},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


ARITHMETIC = {"objective": Classification(()), "device": CPU, "precision": "fp32", "max_grad_norm": None}


class Network(nn.Module):
    """Layers of odd sizes, and a factor that the loss depends on always, in two of three calls or never."""

    def __init__(self, is_used: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 17), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(17, 3))
        self.factor = nn.Parameter(torch.ones(3))
        self.is_used = is_used
        self.num_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        is_used = self.is_used == "always" or (self.is_used == "sometimes" and self.num_calls % 3)
        return self.layers(x) * self.factor if is_used else self.layers(x)


@pytest.mark.parametrize("is_used", ["always", "sometimes", "never"])
@pytest.mark.parametrize(
    ("may_rearrange", "longest_copy"), [(False, 0), (True, 0), (True, 1000)], ids=["one by one", "in blocks", "copies in blocks"]
)
@pytest.mark.parametrize("given", OPTIMIZERS, ids=str)
def test_updates_give_the_bits_of_pytorchs_own_steps_in_weights_and_state(given, may_rearrange, longest_copy, is_used, monkeypatch):
    monkeypatch.setattr(optimizer_updates, "LONGEST_COPY", longest_copy)
    # The first layer's weight of 85 numbers lies in three blocks, or, with two threads, in two.
    monkeypatch.setattr(optimizer_updates, "BLOCK", 30)
    settings = OptimizerSettings(**{"lr": 0.1, **given})
    found = []
    for is_ours in (True, False):
        torch.manual_seed(0)
        model = Network(is_used)
        optimizer = build_optimizer(settings, model.parameters())
        update = build_update(optimizer, may_rearrange)
        for step in range(8):
            x, y, lr = torch.randn(6, 5), torch.randint(3, (6,)), settings.lr / (1 + step)
            if is_ours:
                compute_gradients(model, [*model.parameters()], [(x, y)], **ARITHMETIC)
                update(lr)
                continue
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        content = optimizer.state_dict()
        state = {f"{number} {name}": value for number, values in content["state"].items() for name, value in values.items()}
        found.append((digest_weights(model.state_dict()), digest_weights(state), content["param_groups"]))
    assert found[0] == found[1]


class Slower(torch.optim.SGD):
    """A known optimizer's child, which may do anything."""


@pytest.mark.parametrize(
    ("build", "found"),
    [
        (lambda weight, _: torch.optim.RMSprop(weight), "RMSprop"),
        (lambda weight, _: Slower(weight, momentum=0.0), "Slower"),
        (lambda weight, _: torch.optim.Adam(weight, amsgrad=True), "Adam with amsgrad"),
        (lambda weight, _: torch.optim.AdamW(weight, maximize=True), "AdamW with maximize"),
        (lambda weight, bias: torch.optim.SGD([{"params": weight}, {"params": bias}]), "SGD of 2 groups of parameters"),
    ],
)
def test_optimizers_that_are_not_known_take_their_own_steps_and_are_not_compiled(build, found, monkeypatch):
    monkeypatch.setattr(compilation, "LONGEST_WAIT", 0)
    loader = build_train_loader(torch.randn(23, 5), torch.arange(23) % 3, 4, False)

    def train(engine: str) -> str:
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        state = TrainingState(model, build([model.weight], [model.bias]), Classification(()))
        for _ in range(2):
            train_epoch(state, loader, lambda _: 0.1, device=CPU, engine=engine, report=lines.append)
        return digest_weights(model.state_dict())

    model = nn.Linear(5, 3)
    lines: list[str] = []
    assert build_update(build([model.weight], [model.bias]), may_rearrange=True) is None
    assert train("auto") == train("eager")
    message = rf"compute\.engine: expected an optimizer whose step can be compiled \(SGD, Adam, AdamW\), found {found}; use `eager`"
    assert [line.startswith("going on without compiling: compute.engine") for line in lines] == [True]
    with pytest.raises(SettingsError, match=message):
        train("compiled")


def test_an_optimizer_of_some_parameters_is_not_compiled_to_one_of_all():
    model, loader = nn.Linear(5, 3), build_train_loader(torch.randn(23, 5), torch.arange(23) % 3, 4, False)
    state = TrainingState(model, torch.optim.SGD([model.bias]), Classification(()))
    with pytest.raises(SettingsError, match="found SGD of some of the model's parameters; use `eager`"):
        train_epoch(state, loader, lambda _: 0.1, device=CPU, engine="compiled")


def test_training_does_not_load_the_compiler():
    code = (
        "import sys, torch\n"
        "from refit.data.signature import Signature\n"
        "from refit.data.loaders import build_train_loader\n"
        "from refit.settings import ModelSettings, OptimizerSettings\n"
        "from refit.training.loop import build_training_state, train_epoch\n"
        "from refit.training.optimizers import take_step\n"
        "cpu = torch.device('cpu')\n"
        "loader = build_train_loader(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]), 2, drop_last=True)\n"
        "for name in ('sgd', 'adam', 'adamw'):\n"
        "    state = build_training_state(ModelSettings(), OptimizerSettings(name=name), Signature.of_numbers(2, 2), 0, cpu)\n"
        "    assert train_epoch(state, loader, lambda _: 0.1, device=cpu, max_grad_norm=1.0)\n"
        "    state.optimizer.load_state_dict(state.optimizer.state_dict())\n"
        "    for parameter in state.model.parameters():\n"
        "        parameter.grad = torch.ones_like(parameter)\n"
        "    take_step(state.optimizer)\n"
        "assert state.optimizer.state, 'nothing was trained'\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules), 'the compiler is loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
