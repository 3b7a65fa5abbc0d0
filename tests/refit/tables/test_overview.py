import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables import overview
from refit.tables.dataset import build_dataset
from refit.tables.overview import Overview, look_at_table
from refit.tables.table_examples import load_manifest

KINDS = {
    "text": "text",
    "number": "numeric",
    "time": "numeric",
    "date": "datetime",
    "boolean": "boolean",
    "category": "categorical",
}
N = 80


def make_columns() -> dict[str, list[Any]]:
    pick = random.Random(0)
    return {
        "nr": list(range(N)),
        "price": [f"{pick.randint(1, 9)},{pick.randint(10, 99)} €" for _ in range(N)],
        "seen": [f"{pick.randint(1, 28)}.{pick.randint(1, 12)}.2024" for _ in range(N)],
        "opens": [f"{pick.randint(6, 9)}:30" for _ in range(N)],
        "city": [pick.choice(["Köln", "Bonn", ""]) for _ in range(N)],
        "note": [f"see {pick.random()}" for _ in range(N)],
        "paid": [pick.choice(["true", "false"]) for _ in range(N)],
        "land": ["DE"] * N,
        "gone": [""] * N,
        "y": [pick.choice(["yes", "no"]) for _ in range(N)],
    }


def look(columns: dict[str, list[Any]], is_target_given: bool = True, **settings: Any) -> Overview:
    pl.DataFrame(columns).write_csv("rows.csv", separator=";")
    return look_at_table(DataSettings(source="rows.csv", **settings), 0, is_target_given)


@pytest.fixture(autouse=True)
def work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_column_is_said_with_its_kind_and_how_it_is_read() -> None:
    found = {column.name: column for column in look(make_columns()).columns}
    assert {name: (column.kind, column.inputs) for name, column in found.items()} == {
        "nr": ("row number", 0),
        "price": ("number", 1),
        "seen": ("date", 4),
        "opens": ("time", 1),
        "city": ("category", 4),
        "note": ("category", 1),
        "paid": ("boolean", 1),
        "land": ("constant", 2),
        "gone": ("empty", 0),
        "y": ("target", 0),
    }
    assert found["price"].how == "a number written as `1234,5` with `€`"
    assert found["seen"].how == "a date written as `31.12.2026`"
    assert found["city"].missing == make_columns()["city"].count("")
    assert (found["city"].distinct, found["city"].categories, set(found["city"].examples)) == (2, 2, {"Köln", "Bonn"})
    assert found["nr"].how == "from 0 on"


@pytest.mark.parametrize("settings", [{}, {"features": ["price", "city"]}, {"exclude": ["note"], "kinds": {"opens": "category"}}])
def test_it_says_what_training_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = look(make_columns(), **settings)
    store = Store(f"{tmp_path}/store")
    manifest = load_manifest(build_dataset(DataSettings(source="rows.csv", **settings), 0, store), store)
    made = {column.name: (column.kind, len(column.inputs)) for column in manifest.signature.columns}
    said = {column.name: (column.kind, column.inputs) for column in found.columns if column.inputs}
    assert {name: inputs for name, (_, inputs) in said.items()} == {name: inputs for name, (_, inputs) in made.items()}
    assert {name: KINDS[kind] for name, (kind, _) in said.items() if kind in KINDS} == {
        name: kind for name, (kind, _) in made.items() if said[name][0] in KINDS
    }
    assert (found.remarks, found.dialect) == (manifest.remarks, manifest.dialect)
    assert sum(found.classes.values()) == manifest.rows
    assert found.faults == []


def test_rows_that_are_left_out_are_said_with_where_they_are() -> None:
    columns = make_columns()
    columns["y"][6], columns["y"][9] = "yse", ""
    assert look(columns).remarks[:2] == [
        "dropped: 1 row without a value of y; fill in a name if an empty cell is a class",
        "left out: 1 row of classes of y that have too few rows to be in every split: yse (1, in row 7 of"
        f" {Path.cwd()}/rows.csv, line 8); add rows of these, or correct them if they are mistyped",
    ]


def test_without_a_target_columns_of_few_values_are_proposed() -> None:
    columns = make_columns()
    columns["churn"] = columns.pop("y")
    found = look(columns, is_target_given=False)
    assert found.targets == ["churn", "paid", "city"]
    assert (found.classes, found.faults) == ({}, [])
    assert {column.name: column.kind for column in found.columns}["churn"] == "category"


def test_what_training_would_refuse_is_said_beside_all_that_it_would_not() -> None:
    columns = make_columns() | {"size": ["1", "2", "big"] * 26 + ["1", "2"], "cost": ["1", "two"] * (N // 2)}
    found = look(columns)
    assert {column.name: column.kind for column in found.columns if column.kind in ("unreadable", "target")} == {
        "size": "unreadable",
        "cost": "unreadable",
        "y": "target",
    }
    assert [fault.partition(": ")[0].rpartition("/")[2] for fault in found.faults] == [
        "rows.csv, line 4, column `size`",
        "rows.csv, line 3, column `cost`",
    ]
    with pytest.raises(DataError, match=r"data\.target: expected a column of .*, found no `z`"):
        look(make_columns(), target="z")


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_of_a_large_table_rows_from_all_over_are_looked_at(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    n = 400_000
    frame = pl.DataFrame({"nr": range(n), "x": pl.int_range(n, eager=True) % 1000 / 7, "y": pl.int_range(n, eager=True) // 200_000})
    frame.write_csv("rows.csv") if end == "csv" else frame.write_parquet("rows.parquet")
    monkeypatch.setattr(overview, "MAX_BYTES", 2_000_000)
    found = look_at_table(DataSettings(source=f"rows.{end}"), 0, True)
    assert found.rows == n
    assert 20_000 < found.rows_looked_at < n / 2
    assert [column.kind for column in found.columns] == ["row number", "number", "target"]
    assert {*found.classes} == {"0", "1"}
    monkeypatch.setattr(overview, "MAX_BYTES_READ", 4_000_000)
    assert look_at_table(DataSettings(source=f"rows.{end}"), 0, True).rows < n


def test_texts_are_said_to_be_read_by_their_words() -> None:
    columns = {"note": [f"call me at {n} when you can" for n in range(200)], "y": ["no", "yes"] * 100}
    found = look(columns)
    assert found.columns[0].kind == "text"
    assert found.columns[0].how.startswith("for its words: ")
    assert any(
        line.startswith("column `note`: read as text, for its words, as 200 of its values differ;") for line in found.remarks
    )
    assert look(columns, kinds={"note": "category"}).columns[0].kind == "category"
