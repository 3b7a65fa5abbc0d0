"""A network with embeddings, added to Refit by a file and an entry, as CONTRIBUTING says, and given as a factory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import refit
from refit.serving.export import export_model
from refit.settings import SettingsTree

ROOT = Path(__file__).parents[3]
RESNET = ROOT / "tests" / "examples" / "resnet.py"
ADDED = {
    "from refit.models.mlp import build_mlp\n": "from refit.models.resnet import build_resnet\n",
    '    "mlp": build_mlp,\n': '    "resnet": build_resnet,\n',
}
"""To `refit/models/architectures.py`: a line of it, and what comes after."""
SCRIPT = """
import json, sys
from test_worked_example import export, try_out

print(json.dumps(try_out({"architecture": "resnet"})))
assert max(export()) < 1e-5
assert "prefect" not in sys.modules
"""


def try_out(model: dict) -> dict:
    """Train it, load the version and score with it; what came of it."""
    data = {"source": "penguins.csv", "target": "species"}
    given = {"name": "birds", "data": data, "training": {"num_epochs": 6}, "model": model}
    result = refit.train(SettingsTree.model_validate(given), report=lambda _: None)
    rows = pl.read_csv("penguins.csv", null_values="NA")
    loaded = refit.load_model(result.model.path, trust=True)
    probabilities = loaded.predict_proba(rows)
    return {
        "network": [type(loaded.module).__name__, *(embedding.num_embeddings for embedding in loaded.module.embeddings)],
        "accuracy": np.mean(loaded.classes[probabilities.argmax(axis=1)] == rows["species"].to_numpy()),
        "probabilities": probabilities.tolist(),
        "is_new": result.is_new,
    }


def export() -> list[float]:
    """How far probabilities of the exported files are from those of the model."""
    model, rows = refit.load_model("refit-store/models/birds/v1", trust=True), pl.read_csv("penguins.csv", null_values="NA")
    return [export_model(model, "birds.onnx", "onnx", rows), export_model(model, "birds.pt2", "torch", rows)]


def check(found: dict, again: dict) -> None:
    assert found["network"] == ["ResNet", 4, 4]  # three islands and others; male, female, others and missing
    assert found["accuracy"] > 0.97
    assert again == found | {"is_new": False}
    assert found["is_new"]


@pytest.fixture(autouse=True)
def _table() -> None:
    shutil.copy(ROOT / "examples" / "penguins.csv", ".")


def test_a_factory_of_the_signature_embeds_categories():
    shutil.copy(RESNET, "embedding_networks.py")
    try:
        check(*(try_out({"factory": "embedding_networks:build"}) for _ in range(2)))
    finally:
        sys.modules.pop("embedding_networks", None)


@pytest.mark.slow
def test_it_is_exported():
    shutil.copy(RESNET, "embedding_networks.py")
    try:
        try_out({"factory": "embedding_networks:build"})
        assert max(export()) < 1e-5
    finally:
        sys.modules.pop("embedding_networks", None)


@pytest.mark.slow
def test_a_file_and_an_entry_add_an_architecture(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    models = tmp_path / "code" / "refit" / "models"
    shutil.copy(RESNET, models)
    text = (models / "architectures.py").read_text()
    for line, added in ADDED.items():
        assert text.count(line) == 1
        text = text.replace(line, line + added)
    (models / "architectures.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'code'}:{Path(__file__).parent}"}
    done = [subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, stdout=subprocess.PIPE) for _ in range(2)]
    check(*(json.loads(process.stdout) for process in done))
