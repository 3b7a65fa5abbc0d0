from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rows import write_dated

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import Manifest, load_test_rows
from refit.tables.row_identities import convert_rows
from refit.tables.table_examples import load_manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


@pytest.mark.parametrize("split", ["random", "time"])
def test_a_row_is_known_again_by_another_data_set(store: Store, tmp_path: Path, split: str) -> None:
    rows = write_dated(tmp_path / "more.csv", 160)
    rows[:120].write_csv(tmp_path / "rows.csv")
    rows.select(pl.lit("column").alias("new"), *reversed(rows.columns)).write_csv(tmp_path / "more.csv")
    before = build(store, source=str(tmp_path / "rows.csv"), split=split, time_column="t")
    raw = load_test_rows(build(store, source=str(tmp_path / "more.csv"), split=split, time_column="t"), store)
    truth, hashes, known_by = convert_rows(before, raw)
    assert truth.to_list() == raw["y"].to_list()
    assert set(known_by.columns) == {"when", "x", "k", "y", "time t"} if split == "time" else {"when", "x", "k", "t", "y"}
    is_old = raw["when"].is_in(rows["when"][:120].to_list()).to_list()
    assert 0 < sum(is_old) < len(is_old) or split == "time"
    known = {name: np.isin(hashes, before.load_identities(name, store).hashes) for name in before.splits}
    assert (known["train"] | known["val"] | known["test"]).tolist() == is_old
    assert sum(map(sum, known.values())) == sum(is_old)
    if split == "time":
        assert not known["train"].any(), "the newest rows were never among the oldest"


def test_a_row_is_told_from_its_copies_by_its_number(store: Store, tmp_path: Path) -> None:
    once = pl.DataFrame({"x": range(40), "y": [0, 1, 1, 0] * 10})
    pl.concat([once, once[:20], once[:10], once[30:].with_columns(y=None)]).write_parquet(tmp_path / "rows.parquet")
    once[:5].write_parquet(tmp_path / "test.parquet")
    manifest = build(store, source=str(tmp_path / "rows.parquet"))
    splits = [manifest.load_identities(name, store) for name in manifest.splits]
    numbers = np.concatenate([identities.numbers for identities in splits])
    assert np.bincount(numbers).tolist() == [40, 20, 10]
    assert len(set(np.concatenate([identities.keys for identities in splits]))) == 70
    assert len(set(np.concatenate([identities.hashes for identities in splits]))) == 40
    alone = build(store, source=str(tmp_path / "rows.parquet"), test_source=str(tmp_path / "test.parquet"))
    found = alone.load_identities("test", store)
    assert found.numbers.tolist() == [0] * 5, "in its own table"
    learned = np.concatenate([alone.load_identities(name, store).keys for name in ("train", "val")])
    assert np.isin(found.keys, learned).all()


@pytest.mark.parametrize(
    ("split", "changed", "is_known"),
    [
        ("random", "nothing", True),
        ("random", "x", False),
        ("random", "y", False),
        ("random", "t", True),
        ("time", "t", False),
        ("random", "unused", True),
    ],
)
def test_a_row_is_the_same_if_features_class_and_the_time_of_a_split_are(
    store: Store, tmp_path: Path, split: str, changed: str, is_known: bool
) -> None:
    numbers = range(40)
    rows = pl.DataFrame({"x": numbers, "t": numbers, "unused": numbers, "y": [number % 2 for number in numbers]})
    rows.write_csv(tmp_path / "rows.csv")
    settings = {"source": str(tmp_path / "rows.csv"), "features": ["x"], "split": split, "time_column": "t"}
    manifest = build(store, **settings)
    others = rows if changed == "nothing" else rows.with_columns(((1 if changed == "y" else 100) - pl.col(changed)).alias(changed))
    known = np.concatenate([manifest.load_identities(name, store).hashes for name in manifest.splits])
    assert set(np.isin(convert_rows(manifest, others)[1], known)) == {is_known}


def test_a_column_that_is_gone_is_named_when_rows_are_to_be_known_again(store: Store, tmp_path: Path) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    manifest = build(store, source=str(tmp_path / "rows.csv"))
    with pytest.raises(DataError, match=r"expected a column of the table, found no `k` among `when`, `x`, `t`, `y`"):
        convert_rows(manifest, rows.drop("k"))
