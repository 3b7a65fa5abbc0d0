from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

import refit
from refit.data.signature import Signature, Target
from refit.errors import SettingsError
from refit.models.building import build_model
from refit.models.ensemble import Ensemble
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.optimizers import group_parameters

REALMLP = ModelSettings(architecture="realmlp", hidden_sizes=[8], activation="selu", num_members=3)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_answers_are_those_of_the_members_averaged(kind):
    signature = Signature.of_numbers(4, 3).model_copy(
        update={"target": Target(name="y", kind=kind, classes=[0, 1, 2], centers=[0.0])}
    )
    torch.manual_seed(0)
    ensemble = build_model(REALMLP, signature)
    torch.manual_seed(0)
    members = [build_model(REALMLP.model_copy(update={"num_members": None}), signature) for _ in range(3)]
    x = torch.randn(20, 4)
    outputs = torch.stack([member(x) for member in members], dim=1)
    assert torch.equal(ensemble.train()(x), outputs)
    averaged = ensemble.eval()(x)
    if kind == "classes":
        averaged, outputs = averaged.softmax(dim=1), outputs.softmax(dim=2)
    assert torch.allclose(averaged, outputs.mean(dim=1), atol=1e-6)


def test_rates_of_a_network_are_those_of_each_member():
    groups = group_parameters(OptimizerSettings(lr=0.1), build_model(REALMLP, Signature.of_numbers(4, 3)))
    alone = group_parameters(
        OptimizerSettings(lr=0.1), build_model(REALMLP.model_copy(update={"num_members": 1}), Signature.of_numbers(4, 3))
    )
    assert [(len(it["params"]), it["lr"]) for it in groups] == [(3 * len(it["params"]), it["lr"]) for it in alone]


def test_what_cannot_be_averaged_is_refused():
    signature = Signature.of_numbers(4, 3).model_copy(update={"target": Target(name="y", kind="labels")})
    with pytest.raises(SettingsError, match=r"model\.num_members: expected 1 .* found 3"):
        build_model(REALMLP, signature)


def test_networks_of_ones_own_may_take_names_and_give_a_number_for_each_row():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x, shift):
            return self.layer(x)[:, 0] + shift

    ensemble, x = Ensemble([Named(), Named()], has_classes=False), torch.randn(5, 4)
    assert ensemble.train()(x=x, shift=1.0).shape == (5, 2, 1)
    expected = torch.stack([member(x, 1.0) for member in ensemble.members]).mean(dim=0)
    assert torch.equal(ensemble.eval()(x=x, shift=1.0)[:, 0], expected)


NETWORKS = """
from torch import nn

once = nn.Linear(2, 3)


def build(num_inputs, num_outputs):
    return nn.Sequential(nn.Linear(num_inputs, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, num_outputs))


def build_once(num_inputs, num_outputs):
    return once
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETWORKS)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 2, generator=generator)
    table = pl.DataFrame({"a": x[:, 0].tolist(), "b": x[:, 1].tolist(), "number": (x.sum(dim=1) * 1.5).tolist()})
    table.with_columns(label=(pl.col("a") * 2).round().clip(-1, 1).cast(int)).write_csv("rows.csv")

    def run(target: str, factory: str):
        data = {"source": "rows.csv", "target": target, "features": ["a", "b"]}
        model = {"factory": f"nets:{factory}", "num_members": 3}
        result = refit.train(
            {"data": data, "model": model, "training": {"num_epochs": 3, "baseline": "none"}}, report=lambda _: None
        )
        return refit.load_model(result.model.path, trust=True)

    return run


@pytest.mark.parametrize(("target", "shape"), [("label", (90, 3)), ("number", (90,))])
def test_networks_of_ones_own_are_trained_together(train, target, shape):
    model, rows = train(target, "build"), pl.read_csv("rows.csv")
    scores = model.predict_proba(rows) if target == "label" else model.predict(rows)
    assert scores.shape == shape
    assert len(model.module.members) == 3


def test_a_function_that_gives_one_network_again_is_refused(train):
    with pytest.raises(SettingsError, match=r"model\.factory: expected nets:build_once to build another network in each call"):
        train("label", "build_once")
