"""The examples of the user's own data sets, each run as a user runs it, by `python FILE` in an empty folder."""

import importlib
import json
import runpy
import shutil
import sys
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import refit
from refit.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("toy", "images", "names", "labels", "autoencoder", "brackets", "tones")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def run(name: str) -> tuple[refit.Model, dict]:
    """The model, and its metrics of the test split."""
    runpy.run_path(f"{name}.py", run_name="__main__")
    folder = Path("refit-store", "models", name, "v1")
    return refit.load_model(folder, trust=True), json.loads((folder / "metrics.json").read_text())["test"]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short(name):
    assert len(Path(f"{name}.py").read_text().splitlines()) <= 60


def test_the_cells_of_a_notebook_give_its_losses_and_weights():
    model, _ = run("toy")
    toy = importlib.import_module("toy")
    torch.manual_seed(0)
    network, losses = toy.NeuralNetwork(2, 2), []
    optimizer = torch.optim.SGD(network.parameters(), lr=1)
    loader = DataLoader(toy.load_datasets()["train"], batch_size=2, shuffle=True, drop_last=True)
    for _ in range(3):
        for features, labels in loader:
            loss = torch.nn.functional.cross_entropy(network(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [f"{loss:.2f}" for loss in losses] == ["0.80", "0.82", "0.30", "0.22", "0.00", "0.00"]
    log = json.loads(Path("refit-store/models/toy/v1/log.json").read_text())
    assert [loss for epoch in log for loss in epoch["batch_losses"]] == losses
    assert all(torch.equal(weights, network.state_dict()[name]) for name, weights in model.module.state_dict().items())


def test_images_that_move_at_random_give_equal_weights_whoever_reads_them():
    model, test = run("images")
    images = importlib.import_module("images")
    alone = refit.train({**images.SETTINGS, "store": {"url": "other"}}, report=lambda _: None).model
    weights = refit.load_model(alone.path, trust=True).module.state_dict()
    assert all(torch.equal(found, weights[name]) for name, found in model.module.state_dict().items())
    assert test["accuracy"] > 0.8


def test_names_of_any_length_are_told_apart():
    model, test = run("names")
    names = importlib.import_module("names")
    assert test["accuracy"] > 0.6
    found = model.predict(names.pad([(torch.tensor([ord(letter) - 96 for letter in "kowalewski"]), 0)])[0])
    assert found.tolist() == ["Polish"]
    assert model.predict([torch.tensor([ord(letter) - 96 for letter in "kowalewski"])]).tolist() == ["Polish"]
    known = names.Names()
    assert (model.predict(known) == np.array(known.classes)[known.targets]).mean() > 0.8


def test_files_of_a_web_server_are_fetched_once_and_changed_ones_again(monkeypatch):
    tones = importlib.import_module("tones")
    tones.write_tones()
    fetched, do_get = [], SimpleHTTPRequestHandler.do_GET
    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", lambda self: fetched.append(self.path) or do_get(self))
    url = tones.serve()
    settings = {**tones.make_settings(url), "training": {"num_epochs": 20}}
    first = refit.train(settings, report=lambda _: None)
    assert json.loads(Path(first.model.path, "metrics.json").read_text())["test"]["accuracy"] > 0.9
    fetched.clear()
    assert not refit.train(settings, report=lambda _: None).is_new
    assert {*fetched} == {"/tones/"}
    tones.write_tones(first=80, num_tones=4)
    shutil.copy("tones/low-000.npy", "tones/low-002.npy")
    lines = []
    assert refit.train(settings, report=lines.append).is_new
    assert "data.cache: 79 of 84 items of the data set are kept, reading the others" in lines
    assert len({*fetched}) < 20
    with pytest.raises(DataError, match=r"data\.inputs: expected files in http://127.* found none, as Cannot connect to"):
        refit.train(tones.make_settings("http://127.0.0.1:1/"), report=lambda _: None)


def test_several_labels_are_learned_at_once(capsys):
    model, test = run("labels")
    assert test["figures"]["label accuracy"] > 0.9
    assert "['even' 'above four' 'has a loop'] [[ True False  True]" in capsys.readouterr().out
    assert model.predict_proba(torch.zeros(2, 64)).shape == (2, 3)


def test_an_auto_encoder_restores_what_it_has_not_seen():
    model, test = run("autoencoder")
    pixels = importlib.import_module("autoencoder").Pictures().pixels
    assert test["loss"] < 0.5 * (pixels - pixels.mean(dim=0)).square().mean().item()
    assert model.predict(pixels[:3]).shape == (3, 64)


def test_a_transformer_reads_dictionaries():
    model, test = run("brackets")
    assert test["accuracy"] > 0.8
    assert set(model.predict(importlib.import_module("brackets").Texts(20))) <= {"open", "balanced"}
