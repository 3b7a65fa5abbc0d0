from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables import freezing
from refit.tables.dataset import build_dataset
from refit.tables.manifest import Manifest
from refit.tables.table_examples import load_manifest

PENGUINS = Path(__file__).parents[3] / "examples" / "penguins.csv"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


def test_splits_are_the_files_that_safetensors_writes_and_do_not_depend_on_the_size_of_blocks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(store, source=str(PENGUINS), target="species")
    for info in whole.splits.values():
        data = store.get(info.digest)
        assert safetensors.torch.save(safetensors.torch.load(data)) == data
    monkeypatch.setattr(freezing, "ROWS_A_BLOCK", 7)
    assert build(store, source=str(PENGUINS), target="species") == whole


def test_a_number_too_large_is_named_by_its_row_in_whatever_block(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [*map(float, range(50)), 1e300]
    pl.DataFrame({"x": numbers, "y": [0, 1] * 25 + [0]}).write_csv(tmp_path / "rows.csv")
    pl.DataFrame({"x": numbers[:50], "y": [0, 1] * 25}).write_csv(tmp_path / "train.csv")
    monkeypatch.setattr(freezing, "ROWS_A_BLOCK", 7)
    with pytest.raises(DataError, match=r"row 51 of .*rows\.csv, line 52, column `x`: expected a number that fits float32"):
        build(store, source=f"{tmp_path}/train.csv", test_source=f"{tmp_path}/rows.csv")
