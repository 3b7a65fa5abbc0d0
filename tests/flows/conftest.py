"""The command line in this process, and a store with a saved version."""

import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from flows import cli
from refit.checkpoints import save_checkpoint, save_state
from refit.data.dataset import build_dataset, load_manifest, load_split
from refit.evaluation import evaluate
from refit.loaders import build_evaluation_loader, build_train_loader
from refit.settings import SettingsTree
from refit.store import Store
from refit.training import build_training_state, train_epoch

NUM_ROWS = 60


@pytest.fixture
def refit(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `refit ARGUMENTS` in this process: exit code, standard output, standard error."""

    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refit", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def rows() -> pl.DataFrame:
    """Rows of every kind of column; `label` follows `size`."""
    numbers = range(NUM_ROWS)
    return pl.DataFrame(
        {
            "number": numbers,
            "size": [None if number % 7 == 3 else number % 2 * 3.0 + number / 50 for number in numbers],
            "colour": ["red" if number % 3 else "green" for number in numbers],
            "is_new": [number % 5 == 0 for number in numbers],
            "seen": [datetime(2024, 1, 1) + timedelta(hours=37 * number) for number in numbers],
            "label": ["yes" if number % 2 else "no" for number in numbers],
        }
    )


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory, rows) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    rows.write_csv(folder / "rows.csv")
    features = ["size", "colour", "is_new", "seen"]
    given = {
        "name": "toy",
        "data": {"source": str(folder / "rows.csv"), "target": "label", "features": features},
        "model": {"hidden_sizes": [16, 16]},
    }
    settings, store, cpu = SettingsTree.model_validate(given), Store(str(folder / "store")), torch.device("cpu")
    manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
    state = build_training_state(settings.model, settings.optimizer, len(manifest.input_names), 2, seed=0, device=cpu)
    loader = build_train_loader(*load_split(manifest, "train", store), batch_size=8, drop_last=False)
    logs = [train_epoch(state, loader, lambda _: 0.1, device=cpu)]
    test = build_evaluation_loader(*load_split(manifest, "test", store))
    metrics = {"test": evaluate(state.model, test, ["no", "yes"], cpu, "fp32")}
    save_checkpoint(save_state(state, store), settings, manifest, logs, metrics, store)
    return folder / "store"


@pytest.fixture
def toy(trained_store) -> Store:
    """The store that commands find, with `toy@v1`, which no alias names."""
    shutil.copytree(trained_store, "refit-store")
    return Store("refit-store")
