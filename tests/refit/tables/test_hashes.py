import numpy as np
import polars as pl
import pytest

from refit.data.identities import Identities, find_changes, find_known, identify, number_copies
from refit.tables.hashes import hash_rows

HASHES = [4158796544690821667, 9245742865333553100, 8024193046659868477]


def test_hashes_of_rows_are_the_same_wherever_they_are_computed() -> None:
    rows = pl.DataFrame({"x": [1.5, None, -0.0], "k": ["a", "ä", None], "y": [0, 1, 1]})
    assert hash_rows(rows).tolist() == HASHES
    assert hash_rows(rows[::-1].select("y", "x", "k")).tolist() == HASHES[::-1]
    assert hash_rows(rows.with_columns(pl.col("x").fill_null(float("nan")), pl.col("y").cast(pl.Float64))).tolist() == HASHES
    assert hash_rows(rows.with_columns(pl.col("x").replace(-0.0, 0.0))).tolist() == HASHES
    assert hash_rows(rows, rows_a_block=2).tolist() == HASHES


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt64, pl.Int128, pl.Float32, pl.Decimal(38, 2)], ids=str)
def test_a_number_has_one_hash_whatever_its_type(dtype: pl.DataType) -> None:
    numbers = pl.DataFrame({"^x$": [3.0, None, 64.0]})
    assert hash_rows(numbers.cast(dtype)).tolist() == hash_rows(numbers).tolist()


def test_any_change_of_a_row_its_column_names_or_the_seed_gives_another_hash() -> None:
    rows = pl.DataFrame({"x": [1, 1, 2, None], "k": ["a", None, "a", "a"], "z": [12, 12, 11, 11]})
    assert len(set(hash_rows(rows))) == 4
    others = [rows.rename({"x": "z", "z": "x"}), rows.drop("z"), rows.rename({"k": "l"})]
    assert not any(set(hash_rows(rows)) & set(hash_rows(other)) for other in others)
    assert not set(hash_rows(rows)) & set(hash_rows(rows, seed=1))


def test_a_moment_has_one_hash_wherever_its_clock_hangs() -> None:
    moments = pl.DataFrame({"t": pl.Series([0, 86_400_000_000]).cast(pl.Datetime("us", "UTC"))})
    in_tokyo = moments.with_columns(pl.col("t").dt.convert_time_zone("Asia/Tokyo"))
    assert len(set(hash_rows(moments))) == 2
    assert hash_rows(in_tokyo).tolist() == hash_rows(moments).tolist()


def test_changes_are_the_values_that_differ_from_the_one_before() -> None:
    assert find_changes(np.array([3, 3, 5, 3])).tolist() == [True, False, True, True]
    assert find_changes(np.array([])).tolist() == []


def test_hashes_are_spread_evenly() -> None:
    spread = hash_rows(pl.DataFrame({"x": range(100_000)}))
    assert len(set(spread)) == 100_000
    counts = np.bincount((spread >> np.uint64(60)).astype(int), minlength=16)
    assert np.abs(counts - 6250).max() < 5 * np.sqrt(6250)


def test_copies_are_numbered_in_the_order_of_their_rows() -> None:
    assert number_copies(np.array([7, 3, 7, 7, 9, 3], np.uint64)).tolist() == [0, 0, 1, 2, 0, 1]
    assert number_copies(np.array([], np.uint64)).tolist() == []


def test_a_first_row_keeps_its_hash_and_every_copy_gets_another() -> None:
    equal = np.repeat(np.append(hash_rows(pl.DataFrame({"x": range(99)})), np.uint64(0)), 100)
    numbers = number_copies(equal)
    keys = identify(equal, numbers)
    assert (keys[numbers == 0] == equal[numbers == 0]).all()
    assert len(set(keys)) == 10_000
    assert Identities(equal, numbers, None).keys.tolist() == keys.tolist()


def test_the_hashes_of_copies_are_spread_evenly() -> None:
    keys = identify(np.full(100_000, HASHES[0], np.uint64), np.arange(100_000))
    counts = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16)
    assert np.abs(counts - 6250).max() < 5 * np.sqrt(6250)


@pytest.mark.parametrize("size", [0, 1, 500])
def test_known_hashes_are_those_that_numpy_finds(size: int) -> None:
    generator = np.random.default_rng(0)
    some, others = generator.integers(0, 1000, 300, np.uint64), generator.integers(0, 900, size, np.uint64)
    assert find_known(some, others).tolist() == np.isin(some, others).tolist()
    assert find_known(others[:0], others).tolist() == []
