import polars as pl
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import refit
from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.checkpoints import digest_weights
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import OwnLoss
from refit.training.own_loss import check_loss

LOSSES = """
import torch
from torch.nn import functional

def smoothed(outputs, target):
    return functional.cross_entropy(outputs, target, label_smoothing=0.2)

def summed(outputs, target):
    return functional.cross_entropy(outputs, target, reduction="sum")

def by_row(outputs, target):
    return functional.cross_entropy(outputs, target, reduction="none")

def number(outputs, target):
    return functional.cross_entropy(outputs, target).item()

def detached(outputs, target):
    return functional.cross_entropy(outputs.detach(), target)

def failing(outputs, target):
    return functional.cross_entropy(outputs, target[:, 0])

def spread(outputs, target):
    return functional.cross_entropy(outputs, target) + outputs.var()
"""


@pytest.fixture(autouse=True)
def _losses(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))


def smoothed(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, target, label_smoothing=0.2)


def test_epochs_have_the_bits_of_the_plain_loop_with_that_loss():
    x, y = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 3
    settings = ModelSettings(hidden_sizes=[8]), OptimizerSettings(name="sgd", lr=0.1)
    cpu, signature = torch.device("cpu"), Signature.of_numbers(4, 3)
    state = build_training_state(*settings, signature, 0, cpu, OwnLoss((*signature.target.classes,), smoothed))
    logs = [train_epoch(state, build_train_loader(x, y, 8, False), lambda _: 0.1, device=cpu) for _ in range(2)]

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(2):
        for rows, classes in DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True):
            optimizer.zero_grad()
            loss = smoothed(model(rows), classes)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [loss for log in logs for loss in log.batch_losses] == losses
    assert digest_weights(state.model.state_dict()) == digest_weights(model.state_dict())


def test_a_run_learns_by_that_loss_and_is_scored_as_any_other():
    y = torch.arange(90) % 3
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(1)) + y[:, None]
    pl.DataFrame({"a": x[:, 0].tolist(), "b": x[:, 1].tolist(), "y": y.tolist()}).write_csv("rows.csv")
    given = {"data": {"source": "rows.csv"}, "training": {"num_epochs": 2}}
    plain = refit.train(given, report=lambda _: None)
    lines: list[str] = []
    own = refit.train({**given, "training": {"num_epochs": 2, "loss": "own_losses:smoothed"}}, report=lines.append)
    assert own.model.weights_digest != plain.model.weights_digest
    assert own.is_new
    assert any(line.startswith("epoch 2/2") for line in lines), "and not found among the epochs of another loss"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summed", "to return the mean over the rows of a batch, found twice as much for the same rows twice; divide"),
        ("by_row", r"to return a tensor of one number, found a tensor of \(6,\); return the mean"),
        ("number", "to return a tensor of one number, found float; return the mean"),
        ("detached", "that depends on the outputs by PyTorch's operations, found one without a gradient; use no detach"),
        ("failing", r"to return a loss for outputs of \(6, 3\) and classes of \(6,\), found IndexError: .*; correct the function"),
    ],
)
def test_a_loss_that_cannot_be_trained_with_is_refused(name, message):
    with pytest.raises(SettingsError, match=f"training.loss: expected own_losses:{name}.*{message}"):
        check_loss(f"own_losses:{name}", Signature.of_numbers(4, 3))


def test_a_loss_that_depends_on_the_rows_of_a_batch_together_is_taken():
    check_loss("own_losses:spread", Signature.of_numbers(4, 3))


@pytest.mark.parametrize("name", ["own_losses:nothing", "no_such_module:loss"])
def test_a_loss_that_is_not_there_is_refused_by_the_setting(name):
    with pytest.raises(SettingsError, match=f"training.loss: expected a function that can be imported, found '{name}'"):
        check_loss(name, Signature.of_numbers(4, 3))
