"""The plain loop is the oracle: a flow run gives its bits, losses and weights alike."""

import copy
import json
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load as load_tensors
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flows.training import train
from refit.settings import SettingsTree

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"
NUM_EPOCHS = 5

pytestmark = pytest.mark.usefixtures("prefect_server")


def train_plainly(rows, val_rows, num_outputs, hidden_sizes, activation, dropout, make_optimizer, batch_size, seed):
    """What a user's notebook does, with nothing of ours: all losses, and the weights with the lowest loss on validation rows."""
    (x, y), (val_x, val_y) = rows, val_rows
    torch.manual_seed(seed)
    layers, width = [], x.shape[1]
    for size in hidden_sizes:
        layers += [nn.Linear(width, size), activation(), nn.Dropout(dropout)]
        width = size
    model = nn.Sequential(*layers, nn.Linear(width, num_outputs))
    optimizer = make_optimizer(model.parameters())
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True)
    losses, lowest, kept = [], math.inf, {}
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
            val_loss = nn.functional.cross_entropy(model(val_x), val_y).item()
        if val_loss < lowest:
            lowest, kept = val_loss, copy.deepcopy(model.state_dict())
    return losses, kept


def load_rows(saved, store):
    """The frozen inputs and classes of each split of a version."""
    rows = {}
    for split, info in json.loads((saved / "manifest.json").read_text())["splits"].items():
        arrays = load_tensors((store / "objects" / info["digest"][:2] / info["digest"][2:]).read_bytes())
        rows[split] = arrays["x"], arrays["y"]
    return rows


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
    losses, weights = train_plainly(
        rows["train"], rows["val"], len(manifest["classes"]), [30, 20], nn.Sigmoid, 0.25, make_optimizer, batch_size=33, seed=7
    )
    log = json.loads((saved / "log.json").read_text())
    assert [loss for epoch in log for loss in epoch["batch_losses"]] == losses
    ours = torch.load(saved / "model.pt", weights_only=True)
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)
