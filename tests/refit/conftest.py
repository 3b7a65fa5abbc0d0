"""A saved version, made without Prefect."""

from collections.abc import Callable

import polars as pl
import pytest
import torch

from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.refs import SavedModel
from refit.registry import saving
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training.checkpoints import save_state
from refit.training.evaluation import evaluate
from refit.training.loop import EpochLog, TrainingState, build_training_state, train_epoch
from refit.training.objective import Classification


@pytest.fixture
def count_listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Count how many columns a call goes over, all frames that it lists or queries together."""
    widths: list[int] = []

    def watch(frame: pl.DataFrame, take: Callable[[pl.DataFrame], object]) -> object:
        widths.append(frame.width)
        return take(frame)

    for name in ("columns", "dtypes", "schema"):
        known = getattr(pl.DataFrame, name)
        monkeypatch.setattr(pl.DataFrame, name, property(lambda frame, take=known.fget: watch(frame, take), known.fset))
    lazy = pl.DataFrame.lazy
    monkeypatch.setattr(pl.DataFrame, "lazy", lambda frame: watch(frame, lazy))

    def count(function: Callable[..., object], *given: object) -> int:
        widths.clear()
        function(*given)
        return sum(widths)

    return count


@pytest.fixture
def save_version(store: Store) -> Callable[..., SavedModel]:
    """Train a linear model on rows whose column `y` is the target."""

    def save(
        rows: pl.DataFrame,
        num_epochs: int = 3,
        features=("x0", "x1", "x2"),
        hidden_sizes=(),
        seed: int = 0,
        lr: float = 0.1,
        num_epochs_on_all: int = 0,
        **data,
    ) -> SavedModel:
        rows.write_parquet("rows.parquet")
        settings = SettingsTree.model_validate(
            {
                "seed": seed,
                "data": {"source": "rows.parquet", "test": 0.3, "features": list(features), **data},
                "model": {"hidden_sizes": list(hidden_sizes)},
                "loader": {"batch_size": 10},
            }
        )
        manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
        signature, device = manifest.signature, torch.device("cpu")

        def train(num_epochs: int, *splits: str) -> tuple[TrainingState, list[EpochLog]]:
            state = build_training_state(settings.model, settings.optimizer, signature, seed=0, device=device)
            parts = zip(*(manifest.load_split(split, store) for split in splits), strict=True)
            loader = build_train_loader(*map(torch.cat, parts), 10, False)
            return state, [train_epoch(state, loader, lambda _: lr, device=device) for _ in range(num_epochs)]

        state, logs = train(num_epochs, "train")
        labels, loader = [str(label) for label in manifest.classes], build_evaluation_loader(*manifest.load_split("test", store))
        metrics = {"test": evaluate(state.model, loader, Classification((*labels,)), device, "fp32")}
        on_all = save_state(train(num_epochs_on_all, *manifest.splits)[0], store) if num_epochs_on_all else None
        return saving.save_version(save_state(state, store), settings, manifest, logs, metrics, store, refitted=on_all)

    return save
