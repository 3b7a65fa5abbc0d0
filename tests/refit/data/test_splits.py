from itertools import combinations

import numpy as np
import polars as pl
import pytest

from refit.data import splits
from refit.data.splits import hash_rows, split_by_time, split_randomly
from refit.errors import DataError

HASHES = [4158796544690821667, 9245742865333553100, 8024193046659868477]


def split(frame: pl.DataFrame, seed: int = 0, val: float = 0.15, test: float = 0.15) -> dict[str, np.ndarray]:
    return split_randomly(hash_rows(frame, seed), frame["y"].to_numpy(), ["a", "b"], val, test, "rows.csv")


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


def test_hashes_of_rows_are_the_same_wherever_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pl.DataFrame({"x": [1.5, None, -0.0], "k": ["a", "ä", None], "y": [0, 1, 1]})
    assert hash_rows(rows).tolist() == HASHES
    assert hash_rows(rows[::-1].select("y", "x", "k")).tolist() == HASHES[::-1]
    assert hash_rows(rows.with_columns(pl.col("x").fill_null(float("nan")), pl.col("y").cast(pl.Float64))).tolist() == HASHES
    assert hash_rows(rows.with_columns(pl.col("x").replace(-0.0, 0.0))).tolist() == HASHES
    monkeypatch.setattr(splits, "ROWS_A_BLOCK", 2)
    assert hash_rows(rows).tolist() == HASHES


def test_any_change_of_a_row_its_column_names_or_the_seed_gives_another_hash() -> None:
    rows = pl.DataFrame({"x": [1, 1, 2, None], "k": ["a", None, "a", "a"], "z": [12, 12, 11, 11]})
    assert len(set(hash_rows(rows))) == 4
    others = [rows.rename({"x": "z", "z": "x"}), rows.drop("z"), rows.rename({"k": "l"})]
    assert not any(set(hash_rows(rows)) & set(hash_rows(other)) for other in others)
    assert not set(hash_rows(rows)) & set(hash_rows(rows, seed=1))


def test_hashes_are_spread_evenly() -> None:
    hashes = hash_rows(pl.DataFrame({"x": range(100_000)}))
    assert len(set(hashes)) == 100_000
    counts = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
    assert np.abs(counts - 6250).max() < 5 * np.sqrt(6250)
