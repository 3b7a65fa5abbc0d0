from itertools import combinations

import numpy as np
import polars as pl
import pytest

from refit.data.identities import identify, number_copies
from refit.data.splits import Size, Sizes, read_span, split_by_time, split_randomly
from refit.errors import DataError
from refit.tables.hashes import hash_rows

DAY = 86_400_000_000


def split(frame: pl.DataFrame, seed: int = 0, val: Size = 0.15, test: Size = 0.15) -> dict[str, np.ndarray]:
    hashes = hash_rows(frame, seed)
    units = identify(hashes, number_copies(hashes))
    return split_randomly(units, frame["y"].to_numpy(), ["a", "b"], Sizes(val, test), "rows.csv")


def split_plainly(hashes: np.ndarray, y: np.ndarray, val: float, test: float) -> dict[str, list[int]]:
    """The rule for rows without copies: of each class, in the order of hashes, first the test's share, then validation's."""
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in set(y):
        rows = sorted(np.flatnonzero(y == label).tolist(), key=lambda row: hashes[row])
        num_val, num_test = max(1, round(val * len(rows))), max(1, round(test * len(rows)))
        parts["test"] += rows[:num_test]
        parts["val"] += rows[num_test : num_test + num_val]
        parts["train"] += rows[num_test + num_val :]
    return {name: sorted(rows) for name, rows in parts.items()}


def as_lists(parts: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in parts.items()}


@pytest.fixture
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    return pl.DataFrame({"x": generator.normal(size=200), "c": ["k", None] * 100, "y": generator.permutation([0] * 140 + [1] * 60)})


@pytest.fixture
def copies() -> pl.DataFrame:
    """2,000 rows of three binary columns, whose majority is a class."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2, (2000, 3))
    y = (bits.sum(1) + generator.normal(size=2000) > 1.5).astype(int)
    return pl.DataFrame({**{f"b{i}": bits[:, i] for i in range(3)}, "y": y})


def test_splits_are_disjoint_complete_and_stratified(frame: pl.DataFrame) -> None:
    parts = split(frame)
    assert all(not set(one) & set(other) for one, other in combinations(parts.values(), 2))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(200))
    for name, counts in {"train": [98, 42], "val": [21, 9], "test": [21, 9]}.items():
        assert np.bincount(frame["y"].to_numpy()[parts[name]]).tolist() == counts
        assert np.all(np.diff(parts[name]) > 0), "rows keep their source order"


@pytest.mark.parametrize(("seed", "val", "test"), [(0, 0.15, 0.15), (1, 0.15, 0.15), (2, 0.01, 0.6), (3, 0.5, 0.07)])
def test_rows_without_copies_are_ranked_by_their_hashes(frame: pl.DataFrame, seed: int, val: float, test: float) -> None:
    expected = split_plainly(hash_rows(frame, seed), frame["y"].to_numpy(), val, test)
    assert as_lists(split(frame, seed, val, test)) == expected


def test_the_copies_of_a_row_are_spread_over_the_splits(copies: pl.DataFrame) -> None:
    parts = split(copies)
    for cell in copies.unique().iter_rows():
        is_copy = (copies.to_numpy() == cell).all(1)
        share = is_copy[parts["test"]].sum() / is_copy.sum()
        assert abs(share - 0.15) < 4 * np.sqrt(0.15 * 0.85 / is_copy.sum())
    assert np.bincount(copies["y"].to_numpy()[parts["test"]]).tolist() == [round(0.15 * n) for n in np.bincount(copies["y"])]


def test_rows_stay_in_their_split_when_rows_move_or_columns_change_their_type(frame: pl.DataFrame) -> None:
    order = np.random.default_rng(1).permutation(200)
    for name, rows in split(frame[order].select("y", "c", "x").with_columns(pl.col("y").cast(pl.Int8))).items():
        assert sorted(order[rows]) == split(frame)[name].tolist()


@pytest.mark.parametrize("name", ["frame", "copies"])
def test_few_rows_change_their_split_when_rows_are_appended(name: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(name)
    longer = pl.concat([rows, rows[:2] if name == "copies" else rows[:2].with_columns(x=pl.Series([9.0, 8.0]))])
    moved = {part: len(set(before) - set(split(longer)[part])) for part, before in split(rows).items()}
    assert sum(moved.values()) <= 4


def test_seeds_give_other_splits(frame: pl.DataFrame) -> None:
    assert split(frame, seed=0)["test"].tolist() != split(frame, seed=1)["test"].tolist()


def test_a_split_without_a_share_is_left_out(frame: pl.DataFrame) -> None:
    assert list(split(frame, val=0.0, test=0.0)) == ["train"]


@pytest.mark.parametrize(("val", "test"), [(20, 50), (1, 3), (0.1, 33)])
def test_a_number_of_rows_is_divided_among_the_classes_exactly(frame: pl.DataFrame, val: Size, test: int) -> None:
    parts = split(frame, val=val, test=test)
    assert len(parts["test"]) == test
    shares = np.bincount(frame["y"].to_numpy()[parts["test"]])
    assert np.abs(shares - test * np.array([0.7, 0.3])).max() <= 1
    assert len(parts["val"]) == (20 if isinstance(val, float) else max(2, val)), "each class gives a row or more"


@pytest.mark.parametrize(
    ("num_rows", "val", "test", "needed"), [(2, 0.15, 0.15, 3), (1, 0.15, 0.0, 2), (4, 0.45, 0.45, 5), (1, 5, 5, 3)]
)
def test_a_class_must_reach_every_split(num_rows: int, val: Size, test: Size, needed: int) -> None:
    frame = pl.DataFrame({"x": np.arange(50.0), "y": [1] * num_rows + [0] * (50 - num_rows)})
    with pytest.raises(
        DataError, match=f"expected {needed} rows or more of every class, .* found {num_rows} of class 'b'; add rows"
    ):
        split(frame, val=val, test=test)


def assign_plainly(units: np.ndarray, y: np.ndarray, val: float, test: float) -> dict[int, str]:
    """The rule for groups, a row at a time."""
    side: dict[int, str] = {}
    for label in sorted(set(y), key=lambda label: ((y == label).sum(), label)):
        num_rows = int((y == label).sum())
        mine = {unit: int(((units == unit) & (y == label)).sum()) for unit in sorted(set(units[y == label]))}
        held = {name: sum(mine[unit] for unit in mine if side.get(unit) == name) for name in ("test", "val", "train")}
        free = [unit for unit in mine if unit not in side]
        for name, share, later in (("test", test, ["val", "train"]), ("val", val, ["train"])):
            kept_back = sum(held[other] == 0 for other in later)
            while held[name] < max(1, round(share * num_rows)) and len(free) > kept_back:
                side[free[0]] = name
                held[name] += mine[free.pop(0)]
        side |= dict.fromkeys(free, "train")
    return side


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_divided_by_the_rule(seed: int) -> None:
    generator = np.random.default_rng(seed)
    units = generator.integers(0, 2**62, 30, np.uint64)[generator.integers(0, 30, 300)]
    y = generator.choice(3, 300, p=[0.7, 0.25, 0.05])
    expected = assign_plainly(units, y, 0.15, 0.2)
    if all({expected[unit] for unit in units[y == label]} == {"train", "val", "test"} for label in range(3)):
        parts = split_randomly(units, y, ["a", "b", "c"], Sizes(0.15, 0.2), "rows.csv")
        assert sum(map(len, parts.values())) == 300
        assert {unit: name for name, rows in parts.items() for unit in units[rows]} == expected
    else:
        with pytest.raises(DataError, match="expected every class in every split"):
            split_randomly(units, y, ["a", "b", "c"], Sizes(0.15, 0.2), "rows.csv")


@pytest.mark.parametrize("seed", [2, 5])
def test_of_many_classes_that_are_as_large_the_first_takes_its_turn_first(seed: int) -> None:
    generator = np.random.default_rng(seed)
    units = generator.integers(0, 2**62, 80, np.uint64)[generator.integers(0, 80, 1600)]
    y = generator.permutation(np.repeat(np.arange(40), generator.choice([30, 50], 40))[:1600])
    parts = split_randomly(units, y, [str(label) for label in range(40)], Sizes(0.15, 0.2), "rows.csv")
    assert {unit: name for name, rows in parts.items() for unit in units[rows]} == assign_plainly(units, y, 0.15, 0.2)


def test_a_group_stays_on_its_side_when_others_come() -> None:
    generator = np.random.default_rng(0)
    units = np.repeat(generator.integers(0, 2**62, 200, np.uint64), 10)
    y = generator.integers(0, 2, 2000)
    before, after = (split_randomly(units[:size], y[:size], "ab", Sizes(0.15, 0.15), "rows.csv") for size in (1900, 2000))
    moved = {name: len(set(units[rows]) - set(units[after[name]])) for name, rows in before.items()}
    assert sum(moved.values()) <= 6, "of 190 groups"


def test_a_class_needs_a_group_for_every_split() -> None:
    units, y = np.array([1, 1, 2, 2, 3, 3, 3], np.uint64), np.array([0, 1, 0, 1, 0, 0, 0])
    message = r"expected every class in every split, found none of class 'b' for `test`, as its rows are in too few groups that"
    with pytest.raises(DataError, match=message):
        split_randomly(units, y, ["a", "b"], Sizes(0.15, 0.15), "rows.csv")


def test_a_group_is_left_for_train_and_validation_however_small_the_others_are() -> None:
    units = np.array([1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3], np.uint64)
    parts = split_randomly(units, np.zeros(20, np.int64), ["a"], Sizes(0.3, 0.3), "rows.csv")
    assert as_lists(parts) == {"train": list(range(2, 20)), "val": [1], "test": [0]}


def split_times(
    times: list[float],
    val: Size = 0.2,
    test: Size = 0.2,
    window: Size | None = None,
    gap: Size = 0.0,
    units: list[int] | None = None,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """The times in each split, and what is left out; the classes take turns."""
    rows, y = np.array(times), np.arange(len(times)) % 2
    groups = None if units is None else np.array(units, np.uint64)
    parts, left_out = split_by_time(rows, y, ["a", "b"], Sizes(val, test, window, gap), "rows.csv", groups)
    return {name: sorted(rows[part].tolist()) for name, part in parts.items()}, left_out


def test_the_newest_rows_are_test_and_those_before_them_validation() -> None:
    times = [5, 1, 9, 3, 7, 0, 2, 4, 6, 8]
    parts, left_out = split_by_time(np.array(times), np.array([0, 1] * 5), ["a", "b"], Sizes(0.2, 0.2), "rows.csv")
    assert as_lists(parts) == {"train": [0, 1, 3, 5, 6, 7], "val": [4, 8], "test": [2, 9]}, "rows keep their source order"
    assert left_out == {}


@pytest.mark.parametrize(
    ("counts", "test"),
    [
        ([4, 3, 2, 1], [2, 3]),  # the wanted 3 rows are two days
        ([4, 1, 2, 3], [3]),
        ([3, 1, 1, 5], [3]),  # 5 rows are nearer than 6
        ([5, 1, 2, 2], [2, 3]),  # 2 and 4 are as near: the earlier day is in the test too
        ([2, 1, 7], [2]),  # a day for each split
    ],
)
def test_rows_of_one_time_stay_together_and_the_cut_is_the_nearest(counts: list[int], test: list[int]) -> None:
    times = [float(day) for day, number in enumerate(counts) for _ in range(number)]
    parts, _ = split_times(times, val=0.1, test=0.3)
    assert sorted(set(parts["test"])) == test
    assert all(not set(one) & set(other) for one, other in combinations(parts.values(), 2))
    assert sum(map(len, parts.values())) == 10


def test_too_few_times_are_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.csv: expected 3 different times or more, as rows of one time .* found 2; add rows"):
        split_times([1, 1, 1, 2, 2, 2])


def days(*numbers: int) -> list[float]:
    return [number * DAY for number in numbers]


def test_a_span_counts_back_from_the_newest_row_that_is_left() -> None:
    times = days(*range(30), 29, 14, 14)
    parts, left_out = split_times(times, val="3d", test="1w")
    assert parts["test"] == days(*range(23, 30), 29)
    assert parts["val"] == days(20, 21, 22)
    assert parts["train"] == days(*range(14), 14, 14, 14, *range(15, 20))
    assert left_out == {}


def test_a_window_takes_the_newest_train_rows() -> None:
    for window in ("5d", 5, 5 / 30):
        parts, left_out = split_times(days(*range(30)), val="3d", test="7d", window=window)
        assert parts["train"] == days(*range(15, 20))
        assert left_out == {"window": 15}
    assert split_times(days(*range(30)), window=1000)[0] == split_times(days(*range(30)))[0]


def test_a_gap_leaves_out_what_was_not_known_when_the_next_split_began() -> None:
    for gap in ("3d", 2, 2 / 30):
        parts, left_out = split_times(days(*range(30)), val=5, test=5, gap=gap)
        assert parts == {"train": days(*range(16)), "val": days(*range(18, 23)), "test": days(*range(25, 30))}
        assert left_out == {"gap": 4}
    parts, _ = split_times(days(0, 1, 2, 3, 3, 3, 4, 5), val=0.0, test=1, gap=2)
    assert parts["train"] == days(0, 1, 2), "a gap has as many rows or more, and divides no day"
    assert split_times(days(0, 1, 2, 3, 3, 3, 4, 5), val=0.0, test=1, gap="2d")[0]["train"] == days(0, 1, 2, 3, 3, 3)


def test_rows_of_a_group_that_is_in_a_later_split_are_left_out() -> None:
    parts, left_out = split_times([*range(10)], units=[1, 2, 3, 4, 5, 6, 1, 2, 1, 9])
    assert parts == {"train": [2, 3, 4, 5], "val": [7], "test": [8, 9]}
    assert left_out == {"units": 3}


@pytest.mark.parametrize(
    ("sizes", "split"),
    [
        ({"test": "99d"}, "train"),
        ({"val": "99d"}, "train"),
        ({"gap": "99d"}, "train"),
        ({"gap": 99}, "train"),
        ({"val": 5, "test": 5, "gap": 2}, "train"),
        ({"units": [1] * 10}, "train"),
    ],
)
def test_a_split_that_is_left_without_rows_is_named(sizes: dict, split: str) -> None:
    with pytest.raises(
        DataError, match=rf"expected rows for every split by time, found none left for `{split}` among 10 rows; add rows, or lower"
    ):
        split_times(days(*range(10)), **sizes)


def test_a_gap_that_leaves_a_single_time_leaves_none_to_train_on() -> None:
    with pytest.raises(DataError, match="found none left for `train`"):
        split_times(days(0, 0, 0, 0, 0, 1, 2, 3), val=1, test=1, gap=2)


@pytest.mark.parametrize("seed", range(100))
def test_splits_by_time_follow_one_another_and_what_they_leave_out_is_counted(seed: int) -> None:
    generator = np.random.default_rng(seed)
    times = generator.integers(0, 40, 300) * DAY
    val, test, window = ([0.1, 30, "5d"][index] for index in generator.integers(3, size=3))
    gap = [0.0, 0.05, 7, "3d"][generator.integers(4)]
    units = generator.integers(0, 100, 300, np.uint64) if seed % 2 else None
    parts, left_out = split_by_time(times, generator.integers(0, 2, 300), "ab", Sizes(val, test, window, gap), "rows.csv", units)
    for before, after in (("train", "val"), ("val", "test")):
        last, first = times[parts[before]].max(), times[parts[after]].min()
        num_between = ((times > last) & (times < first)).sum()
        assert last < first
        assert first - last >= (read_span(gap) if isinstance(gap, str) else 0)
        assert units is not None or num_between >= (gap if isinstance(gap, int) else 0)
        assert units is None or not set(units[parts[before]]) & set(units[parts[after]])
    assert sum(map(len, parts.values())) + sum(left_out.values()) == 300


def test_a_class_that_is_only_new_cannot_be_learned() -> None:
    message = r"expected every class among the 3 train rows, which are the oldest, found none of class 'b'; add older rows"
    with pytest.raises(DataError, match=message):
        split_by_time(np.array([1, 2, 3, 4]), np.array([0, 0, 0, 1]), ["a", "b"], Sizes(0.0, 0.25), "rows.csv")


def test_spans_are_read_in_their_units() -> None:
    assert [read_span(text) for text in ("30s", "90min", "12h", "14d", "8w")] == [
        30 * 10**6,
        90 * 60 * 10**6,
        DAY // 2,
        14 * DAY,
        56 * DAY,
    ]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.93])
def test_a_group_that_is_larger_than_a_split_is_trained_on_and_the_others_share_the_rest(share: float) -> None:
    num_large = int(share * 600)
    groups = np.concatenate([np.zeros(num_large), 1 + np.arange(600 - num_large) % 100]).astype(np.uint64)
    y = np.arange(600) % 2
    for seed in range(5):
        units = hash_rows(pl.DataFrame({"group": groups}), seed)
        parts = split_randomly(units, y, ["a", "b"], Sizes(0.15, 0.15), "rows.csv")
        assert set(range(num_large)) <= set(parts["train"].tolist())
        held_out = [len(parts[name]) for name in ("val", "test")]
        wanted = min(90, (600 - num_large) / 2)
        assert all(0.6 * wanted <= rows <= 1.4 * wanted for rows in held_out), held_out
