from itertools import combinations

import numpy as np
import polars as pl
import pytest

from refit.data.splits import split_by_time, split_randomly
from refit.errors import DataError


def split(frame: pl.DataFrame, seed: int = 0, val: float = 0.15, test: float = 0.15) -> dict[str, np.ndarray]:
    return split_randomly(frame, frame["y"].to_numpy(), ["a", "b"], val, test, seed, "rows.csv")


@pytest.fixture
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    return pl.DataFrame({"x": generator.normal(size=200), "c": ["k", None] * 100, "y": generator.permutation([0] * 140 + [1] * 60)})


def test_splits_are_disjoint_complete_and_stratified(frame: pl.DataFrame) -> None:
    parts = split(frame)
    assert all(not set(one) & set(other) for one, other in combinations(parts.values(), 2))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(200))
    for name, counts in {"train": [98, 42], "val": [21, 9], "test": [21, 9]}.items():
        assert np.bincount(frame["y"].to_numpy()[parts[name]]).tolist() == counts
        assert np.all(np.diff(parts[name]) > 0), "rows keep their source order"


def test_rows_stay_in_their_split_when_rows_move_or_columns_change_their_type(frame: pl.DataFrame) -> None:
    order = np.random.default_rng(1).permutation(200)
    for name, rows in split(frame[order].select("y", "c", "x").with_columns(pl.col("y").cast(pl.Int8))).items():
        assert sorted(order[rows]) == split(frame)[name].tolist()


def test_few_rows_change_their_split_when_rows_are_appended(frame: pl.DataFrame) -> None:
    longer = pl.concat([frame, pl.DataFrame({"x": [9.0, 8.0], "c": ["k", "k"], "y": [0, 1]})])
    moved = {name: len(set(rows) - set(split(longer)[name])) for name, rows in split(frame).items()}
    assert sum(moved.values()) <= 4


def test_seeds_give_other_splits(frame: pl.DataFrame) -> None:
    assert split(frame, seed=0)["test"].tolist() != split(frame, seed=1)["test"].tolist()


def test_a_split_without_a_share_is_left_out(frame: pl.DataFrame) -> None:
    assert list(split(frame, val=0, test=0)) == ["train"]


@pytest.mark.parametrize(("num_rows", "val", "test", "needed"), [(2, 0.15, 0.15, 3), (1, 0.15, 0, 2), (4, 0.45, 0.45, 5)])
def test_a_class_must_reach_every_split(num_rows: int, val: float, test: float, needed: int) -> None:
    frame = pl.DataFrame({"x": np.arange(50.0), "y": [1] * num_rows + [0] * (50 - num_rows)})
    with pytest.raises(
        DataError, match=f"expected {needed} rows or more of every class, .* found {num_rows} of class 'b'; add rows"
    ):
        split(frame, val=val, test=test)


def test_the_newest_rows_are_test_and_those_before_them_validation() -> None:
    times = pl.Series([5, 1, 9, 3, 7, 0, 2, 4, 6, 8])
    parts = split_by_time(times, np.array([0, 1] * 5), ["a", "b"], 0.2, 0.2, "rows.csv")
    assert {name: sorted(times[rows]) for name, rows in parts.items()} == {
        "train": [0, 1, 2, 3, 4, 5],
        "val": [6, 7],
        "test": [8, 9],
    }


def test_equal_times_keep_their_source_order() -> None:
    parts = split_by_time(pl.Series([1] * 4), np.array([0, 1, 0, 1]), ["a", "b"], 0.25, 0.25, "rows.csv")
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0, 1], "val": [2], "test": [3]}


def test_a_class_that_is_only_new_cannot_be_learned() -> None:
    with pytest.raises(DataError, match=r"expected every class among the 3 oldest rows, to train on, found none of class 'b'; add"):
        split_by_time(pl.Series([1, 2, 3, 4]), np.array([0, 0, 0, 1]), ["a", "b"], 0, 0.25, "rows.csv")
