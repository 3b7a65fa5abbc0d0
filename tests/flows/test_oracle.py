"""The plain loop is the oracle: a flow run gives its bits, losses and weights alike."""

import copy
import json
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load as load_tensors
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from refit.flows.training import train
from refit.settings import SettingsTree

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"
NUM_EPOCHS = 5

pytestmark = pytest.mark.usefixtures("prefect_server")


def train_plainly(rows, val_rows, num_outputs, hidden_sizes, activation, dropout, make_optimizer, batch_size, seed):
    """What a user's notebook does, with nothing of ours: all losses, and after each epoch validation loss and weights."""
    (x, y), (val_x, val_y) = rows, val_rows
    torch.manual_seed(seed)
    layers, width = [], x.shape[1]
    for size in hidden_sizes:
        layers += [nn.Linear(width, size), activation(), nn.Dropout(dropout)]
        width = size
    model = nn.Sequential(*layers, nn.Linear(width, num_outputs))
    optimizer = make_optimizer(model.parameters())
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)
    losses, val_losses, weights = [], [], []
    for _ in range(NUM_EPOCHS):
        model.train()
        for features, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            val_losses.append(nn.functional.cross_entropy(model(val_x), val_y).item())
        weights.append(copy.deepcopy(model.state_dict()))
    return losses, val_losses, weights


def load_rows(saved, store):
    """The frozen inputs and classes of each split of a version."""
    rows = {}
    for split, info in json.loads((saved / "manifest.json").read_text())["splits"].items():
        arrays = load_tensors((store / "objects" / info["digest"][:2] / info["digest"][2:]).read_bytes())
        rows[split] = arrays["x"], arrays["y"]
    return rows


def assert_weights(file, expected):
    """Equal names and bits."""
    found = torch.load(file, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(params=["penguins", "digits"])
def table(request, tmp_path):
    if request.param == "penguins":
        return {"source": str(PENGUINS), "target": "species"}
    digits = load_digits(as_frame=True).frame
    path = tmp_path / "digits.parquet"
    pl.DataFrame({name: digits[name].to_numpy() for name in digits}).write_parquet(path)
    return {"source": str(path), "target": "target"}


@pytest.mark.parametrize(
    ("optimizer", "make_optimizer"),
    [
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4),
        ),
        (
            {"name": "adamw", "lr": 0.01, "weight_decay": 0.02},
            lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.02),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_a_flow_run_gives_the_bits_of_a_plain_loop_with_dropout_and_a_last_short_batch(table, optimizer, make_optimizer, tmp_path):
    settings = {
        "name": "oracle",
        "preset": "plain",
        "seed": 7,
        "data": {**table, "val": 0.1},
        "loader": {"batch_size": 33, "drop_last": False},
        "model": {"hidden_sizes": [30, 20], "activation": "sigmoid", "dropout": 0.25},
        "optimizer": optimizer,
        "training": {"num_epochs": NUM_EPOCHS},
        "store": {"url": str(tmp_path / "store")},
    }

    saved = Path(train(SettingsTree.model_validate(settings)).model.path)

    manifest = json.loads((saved / "manifest.json").read_text())
    rows = load_rows(saved, tmp_path / "store")
    assert len(rows["train"][1]) % 33 != 0
    losses, val_losses, weights = train_plainly(
        rows["train"],
        rows["val"],
        len(manifest["signature"]["target"]["classes"]),
        [30, 20],
        nn.Sigmoid,
        0.25,
        make_optimizer,
        batch_size=33,
        seed=7,
    )
    log = json.loads((saved / "log.json").read_text())
    assert [loss for epoch in log for loss in epoch["batch_losses"]] == losses
    assert_weights(saved / "model.pt", weights[val_losses.index(min(val_losses))])


def test_a_last_fit_gives_the_bits_of_a_plain_loop_over_all_rows_that_ends_where_validation_chose():
    generator, y = torch.Generator().manual_seed(5), torch.arange(200) % 2
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64) + y[:, None] / 2
    pl.DataFrame({"time": range(200), **{f"x{i}": x[:, i].tolist() for i in range(4)}, "y": y.tolist()}).write_csv("rows.csv")
    settings = {
        "preset": "plain",
        "seed": 7,
        "data": {"source": "rows.csv", "split": "time", "time_column": "time"},
        "loader": {"batch_size": 33, "drop_last": False},
        "model": {"hidden_sizes": [30, 20], "activation": "tanh", "dropout": 0.25},
        "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9},
        "training": {"num_epochs": NUM_EPOCHS, "refit_on_all": True},
    }

    result = train(SettingsTree.model_validate(settings))

    saved = Path(result.model.path)
    rows = load_rows(saved, Path("refit-store"))
    assert list(rows) == ["train", "val", "test"]
    every_row = [torch.cat(parts) for parts in zip(*rows.values(), strict=True)]
    network = 2, [30, 20], nn.Tanh, 0.25, lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    _, val_losses, weights = train_plainly(rows["train"], rows["val"], *network, batch_size=33, seed=7)
    _, _, weights_on_all = train_plainly(every_row, rows["val"], *network, batch_size=33, seed=7)
    best = val_losses.index(min(val_losses))
    assert result.best_epoch == best + 1 < NUM_EPOCHS
    assert_weights(saved / "held_back.pt", weights[best])
    assert_weights(saved / "model.pt", weights_on_all[best])
