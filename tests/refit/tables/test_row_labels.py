"""Columns that only tell rows apart; what each is was written down first."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.draft import draft_dataset

N = 60
GENERATOR = np.random.default_rng(0)
SHUFFLED = [int(number) for number in GENERATOR.permutation(N) * 7 + 100]
CODES, NAMED = "ids: all different, and codes of one pattern", "ids: all different, and named so"

LABELS: list[tuple[str, list[Any], str]] = [
    ("Unnamed: 0", list(range(N)), "row numbers, from 0 on"),
    ("PassengerId", list(range(1, N + 1)), "row numbers, from 1 on"),
    ("kunde", list(range(1000, 1000 + N)), "row numbers, from 1000 on"),
    ("customer_id", SHUFFLED, NAMED),
    ("CustomerId", SHUFFLED[::-1], NAMED),
    ("id number", SHUFFLED, NAMED),
    ("Kundennr", [f"C-{number:04}" for number in range(N)], CODES),
    ("customerID", [f"{number}-{'QRSTU'[number % 5]}HVEG" for number in SHUFFLED], CODES),
    ("token", [str(uuid.UUID(int=number << 64)) for number in SHUFFLED], CODES),
    ("RESID", SHUFFLED, NAMED),
    ("userid", SHUFFLED, NAMED),
    ("ID", [f"person {number}" for number in range(N)], NAMED),
]
FEATURES: list[tuple[str, list[Any]]] = [
    ("population", SHUFFLED),
    ("YEAR", list(range(1950, 1950 + N))),
    ("day_in_study", list(range(1, N + 1))),
    ("temperature", list(range(20, 20 + N))),
    ("paid", SHUFFLED),
    ("humid", SHUFFLED),
    ("width", list(range(20, 20 + N))),
    ("quarter", [f"{1960 + number // 4}-{number % 4 + 1}" for number in range(N)]),
    ("number_of_votes", SHUFFLED),
    ("id", [number % 50 for number in range(N)]),
    ("valid", [number / 2 for number in SHUFFLED]),
    ("plan", ["A-1", "B-2", "C-3"] * 20),
    ("row", [None, *range(1, N)]),
]


def draft(tmp_path: Path, columns: dict[str, list[Any]], **settings: Any):
    frame = pl.DataFrame({**columns, "x": GENERATOR.normal(size=N), "y": ["no", "yes"] * (N // 2)}, strict=False)
    frame.write_csv(tmp_path / "rows.csv")
    frame.write_parquet(tmp_path / "rows.parquet")
    drafts = [draft_dataset(DataSettings(source=f"{tmp_path}/rows.{end}", **settings), 0) for end in ("csv", "parquet")]
    assert drafts[0].labels == drafts[1].labels
    return drafts[0]


@pytest.mark.parametrize(("name", "values", "reason"), LABELS)
def test_row_numbers_and_ids_are_left_out_unless_they_are_asked_for(
    tmp_path: Path, name: str, values: list[Any], reason: str
) -> None:
    found = draft(tmp_path, {name: values})
    assert found.labels == {name: reason}
    assert [column.name for column in found.columns] == ["x"]
    kept = draft(tmp_path, {name: values}, features=[name, "x"])
    assert (kept.labels, [column.name for column in kept.columns]) == ({}, [name, "x"])


@pytest.mark.parametrize(("name", "values"), FEATURES)
def test_numbers_and_texts_that_mean_something_are_learned_from(tmp_path: Path, name: str, values: list[Any]) -> None:
    assert draft(tmp_path, {name: values}).labels == {}


def test_each_file_of_a_folder_may_count_its_own_rows(tmp_path: Path) -> None:
    for number in range(3):
        rows = {"nr": range(N), "x": GENERATOR.normal(size=N), "y": ["no", "yes"] * (N // 2)}
        pl.DataFrame(rows).write_csv(tmp_path / f"{number}.csv")
    assert draft_dataset(DataSettings(source=str(tmp_path)), 0).labels == {"nr": "row numbers, from 0 on"}


def test_a_table_with_nothing_else_keeps_them(tmp_path: Path) -> None:
    rows = {"nr": range(N), "gone": [None] * N, "y": ["no", "yes"] * (N // 2)}
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    found = draft_dataset(DataSettings(source=f"{tmp_path}/rows.csv"), 0)
    assert (found.labels, [column.name for column in found.columns]) == ({}, ["nr"])


def test_columns_can_be_left_out_by_name(tmp_path: Path) -> None:
    assert [column.name for column in draft(tmp_path, {"a": SHUFFLED, "b": SHUFFLED}, exclude=["a"]).columns] == ["b", "x"]
    with pytest.raises(DataError, match=r"data\.exclude: expected a column of .*, found no `c` among"):
        draft(tmp_path, {"a": SHUFFLED}, exclude=["c"])
    with pytest.raises(DataError, match=r"data\.exclude: expected columns that data\.features does not name, found `a`; drop"):
        draft(tmp_path, {"a": SHUFFLED}, exclude=["a"], features=["a", "x"])


@pytest.mark.parametrize(("name", "start", "is_told"), [("day", 1, True), ("width", 20, True), ("year", 1950, False)])
def test_a_column_that_counts_up_and_is_learned_from_is_told(tmp_path: Path, name: str, start: int, is_told: bool) -> None:
    found = draft(tmp_path, {name: list(range(start, start + N))})
    told = "counts up by one from row to row; leave it out with data.exclude if it only numbers the rows"
    assert (found.readings[name].remark == told) == is_told
