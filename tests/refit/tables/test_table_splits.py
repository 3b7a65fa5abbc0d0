import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.data.identities import Rows
from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.sources.located_rows import Part
from refit.tables.sources.table_source import Table
from refit.tables.table_splits import TypedTable, choose_sides, read_groups


def make_table(columns: dict[str, Any], settings: DataSettings) -> TypedTable:
    """A table whose features are `x…` and whose target is `y`."""
    frame = pl.DataFrame(columns)
    table = Table(frame, (Part("rows.csv", 0, frame.height),), "rows.csv", digest="")
    return TypedTable(table, frame.select("^x.*$"), frame["y"], frame["y"], read_groups(settings, table, frame["y"]))


def choose(
    columns: dict[str, Any], seed: int = 0, test_rows: dict[str, Any] | None = None, **given: Any
) -> tuple[dict[str, Rows], dict[str, int]]:
    settings = DataSettings(source="rows.csv", **given)
    test_table = None if test_rows is None else make_table(test_rows, settings)
    return choose_sides(settings, seed, make_table(columns, settings), test_table, [0, 1])


@pytest.fixture
def columns() -> dict[str, Any]:
    """Four rows of each of 50 customers; the first ten rows have no class."""
    generator = np.random.default_rng(0)
    y = [None] * 10 + generator.integers(0, 2, 190).tolist()
    return {"x1": generator.integers(0, 20, 200), "x2": generator.integers(0, 5, 200), "customer": [*range(50)] * 4, "y": y}


def as_lists(parts: dict[str, Rows]) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in parts.items()}


@pytest.mark.parametrize(
    "given", [{}, {"split_by": "features"}, {"group_column": "customer"}, {"split": "time", "time_column": "x1"}]
)
def test_rows_without_a_class_are_in_no_split(columns: dict[str, Any], given: dict[str, Any]) -> None:
    parts, left_out = choose(columns, **given)
    assert sorted(np.concatenate([*parts.values()])) == list(range(10, 200))
    assert left_out == {}


@pytest.mark.parametrize(
    ("given", "names"), [({"split_by": "features"}, ["x1", "x2"]), ({"group_column": "customer"}, ["customer"])]
)
def test_what_must_stay_together_is_on_one_side(columns: dict[str, Any], given: dict[str, Any], names: list[str]) -> None:
    parts, _ = choose(columns, **given)
    units = {name: set(pl.DataFrame(columns)[rows].select(names).rows()) for name, rows in parts.items()}
    assert not units["train"] & units["val"] | units["train"] & units["test"] | units["val"] & units["test"]
    for name in ("val", "test"):
        assert 0.15 * 190 <= len(parts[name]) < 0.15 * 190 + 8
    assert as_lists(parts) != as_lists(choose(columns, seed=1, **given)[0])


def test_rows_that_belong_to_a_test_row_of_its_own_table_are_left_out(columns: dict[str, Any]) -> None:
    test = {"x1": [3, 3, 99], "x2": [1, 4, 1], "customer": [7, 8, 99], "y": [1, 0, 1]}
    frame = pl.DataFrame(columns).with_row_index()[10:]
    for given, apart in (
        ({"split_by": "features"}, frame.filter(x1=3, x2=1)["index"].to_list() + frame.filter(x1=3, x2=4)["index"].to_list()),
        ({"group_column": "customer"}, frame.filter(pl.col("customer").is_in([7, 8]))["index"].to_list()),
    ):
        for split in ({}, {"split": "time", "time_column": "customer"}):
            parts, left_out = choose(columns, test_rows=test, **given, **split)
            chosen = np.concatenate([*parts.values()])
            assert apart
            assert not set(chosen) & set(apart)
            assert len(chosen) + left_out["units"] == 190
            assert split or left_out["units"] == len(apart)


def test_a_group_is_the_same_whatever_the_type_of_its_column(columns: dict[str, Any]) -> None:
    settings = DataSettings(source="rows.csv", group_column="customer")
    as_text = columns | {"customer": [f" {value}" for value in columns["customer"]]}
    as_float = columns | {"customer": [float(value) for value in columns["customer"]]}
    groups = [make_table(table, settings).groups for table in (columns, as_text, as_float)]
    assert len(set(groups[0])) == 50
    assert groups[0].tolist() == groups[1].tolist() == groups[2].tolist()


def test_only_rows_with_a_class_need_a_group(columns: dict[str, Any]) -> None:
    missing = pl.Series(columns["customer"]).set(pl.int_range(200, eager=True) == 9, None)
    assert choose(columns | {"customer": missing}, group_column="customer")[0].keys() == {"train", "val", "test"}
    missing[10] = None
    with pytest.raises(
        DataError, match=r"row 11 of rows\.csv, column `customer`: expected the row's group, found none; fill it in"
    ):
        choose(columns | {"customer": missing}, group_column="customer")


@pytest.mark.parametrize("given", [{"val": 100, "test": 90}, {"val": 0.5, "test": 95}, {"val": 0.9}])
@pytest.mark.parametrize("split", [{}, {"split": "time", "time_column": "customer"}])
def test_rows_to_train_on_must_be_left(columns: dict[str, Any], given: dict[str, Any], split: dict[str, Any]) -> None:
    sizes = " + ".join(str(given.get(name, 0.15)) for name in ("val", "test"))
    with pytest.raises(
        DataError, match=rf"data\.val \+ data\.test: expected less than all 190 rows, .* found {re.escape(sizes)}; lower one"
    ):
        choose(columns, **given, **split)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "a `random` split has no times"),
        ({"split": "time", "time_column": "customer"}, "column `customer` holds no date-times"),
    ],
)
def test_a_span_of_time_needs_times(columns: dict[str, Any], given: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"data\.test: expected a share or a number of rows, as {reason}, found 5d; give either"):
        choose(columns, test="5d", **given)


def test_window_and_gap_are_left_out_of_a_split_by_time(columns: dict[str, Any]) -> None:
    parts, left_out = choose(columns, split="time", time_column="customer", val=20, test=20, gap=8, window=50)
    assert left_out.keys() == {"gap", "window"}
    assert 16 <= left_out["gap"] < 24
    assert 46 < len(parts["train"]) < 54


def test_a_span_is_that_of_the_newest_rows(columns: dict[str, Any]) -> None:
    days = pl.Series(columns["customer"]).cast(pl.Date)
    parts, _ = choose(columns | {"day": days}, split="time", time_column="day", val="10d", test="5d")
    assert sorted(set(days[parts["test"]].to_physical())) == [*range(45, 50)]
    assert sorted(set(days[parts["val"]].to_physical())) == [*range(35, 45)]


def test_a_column_of_groups_that_is_not_there_is_named(columns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.group_column: expected a column of rows\.csv, found no `client`"):
        choose(columns, group_column="client")


def test_a_column_of_times_that_is_not_there_is_named(columns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.time_column: expected a column of rows\.csv, found no `day`"):
        choose(columns, split="time", time_column="day")


def test_of_a_table_without_a_class_no_row_is_left_to_train_on(columns: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected less than all 0 rows"):
        choose(columns | {"y": pl.Series([None] * 200, dtype=pl.Int64)}, val=10)


def test_a_table_that_comes_as_it_is_has_no_validation_unless_it_is_asked_for(columns: dict[str, Any]) -> None:
    for val, splits in ((None, ["train", "test"]), (0.2, ["train", "val", "test"])):
        settings = DataSettings(source="rows.csv", val=val)
        typed = make_table(columns, settings)
        raw = replace(typed, table=replace(typed.table, is_raw=True))
        assert list(choose_sides(settings, 0, raw, None, [0, 1])[0]) == splits
