from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.draft import Draft, draft_dataset, remark

N = 240
MANY = [str(7 * row % 101) for row in range(N)]


@pytest.fixture(autouse=True)
def work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draft(y: list[Any], x: list[Any] | None = None, separator: str = ",", **settings: Any) -> Draft:
    cells = x or [f"{row / 7 % 3:.2f}" for row in range(len(y))]
    pl.DataFrame({"x": cells, "y": y}).write_csv("rows.csv", separator=separator)
    return draft_dataset(DataSettings(source="rows.csv", **settings), 0)


def name(value: Any) -> str:
    return str(value)[:30]


def repeat(cells: list[str]) -> list[str]:
    return (cells * N)[:N]


@pytest.mark.parametrize(
    ("cells", "first", "reason"),
    [
        (repeat(["1.5", "2", "3.25"]), 1.5, "it holds fractions such as 1.5"),
        (repeat(["1,5", "2", "3,25"]), 1.5, "it holds fractions such as 1.5"),
        (repeat(["50286306739293.375", "2", "3"]), 50286306739293.375, "it holds fractions such as 50286306739293.375"),
        (["-3 kg", *[f"{row % 90} kg" for row in range(N - 1)]], -3.0, "it holds whole numbers of 91 different values"),
        (["$1,234.50", *[f"${row},100.00" for row in range(1, N)]], 1234.5, "it holds fractions such as 1234.5"),
        (["5000", *MANY[1:]], 5000.0, "it holds whole numbers of 102 different values"),
        ([str(row % 20) for row in range(40)], 0.0, "it holds whole numbers of 20 different values in 40 rows"),
    ],
    ids=name,
)
def test_numbers_are_predicted_as_numbers_and_the_reason_is_said(cells: list[str], first: float, reason: str) -> None:
    found = draft(cells, separator=";")
    assert (found.target_reading.is_number, found.target[0], found.target.dtype) == (True, first, pl.Float64)
    assert found.signed.classes == []
    (told,) = [line for line in remark(DataSettings(source="rows.csv"), found) if line.startswith("column `y`")]
    assert told.startswith(f"column `y`: predicted as numbers, as {reason}")
    assert "; add --data.task classification if each value is a class" in told


@pytest.mark.parametrize(
    "cells",
    [
        repeat(["1", "2", "7"]),
        repeat([str(code) for code in range(24)]),
        [str(row % 40) for row in range(10 * 40)],
        repeat(["1 kg", "2 kg", "5 kg"]),
        repeat(["08:30", "16:30", "9:15"]),
        repeat(["01.02.2024", "15.02.2024"]),
        repeat(["007", "011"]),
        [str(2**60 + row % 60) for row in range(N)],
        repeat(["a", "b", "1", "2"]),
        repeat(["true", "false"]),
        repeat(["a1", "b2"]),
    ],
    ids=name,
)
def test_few_whole_numbers_codes_and_texts_stay_classes_that_are_what_the_cells_hold(cells: list[str]) -> None:
    found = draft(cells)
    assert not found.target_reading.is_number
    assert {str(label).lower() for label in found.signed.classes} == {*cells}


def test_of_whole_numbers_that_are_classes_the_other_task_is_named() -> None:
    found = draft(repeat(["3", "4", "5"]))
    told = "column `y`: each of its 3 whole numbers is a class; add --data.task regression to predict numbers"
    assert told in remark(DataSettings(source="rows.csv"), found)


def test_the_task_that_is_named_is_taken() -> None:
    numbers = draft(repeat(["3", "4", "5"]), task="regression")
    assert (numbers.target_reading.is_number, numbers.target_reading.remark) == (True, None)
    assert numbers.signed.centers == [pytest.approx(numbers.target[numbers.parts["train"]].mean())]
    assert draft(repeat(["0.5", "1", "2"]), task="classification").signed.classes == ["0.5", "1", "2"]
    assert draft(repeat(["0.5", "1", "2"]), kinds={"y": "category"}).signed.classes == ["0.5", "1", "2"]
    assert draft([f"{row % 5}:30" for row in range(N)], task="regression").target[1] == 1.5


@pytest.mark.parametrize(
    ("cells", "settings", "message"),
    [
        (["12.5", "oops", *MANY[2:]], {}, r"row 2 of .*rows\.csv, line 3, column `y`: expected a number, found 'oops'; correct"),
        (
            ["12.5", "?", "-", *MANY[3:]],
            {},
            r"column `y`: .* found '\?' \(and 1 more such rows\), also `-`; .*(.|\n)*--data\.null_val",
        ),
        (["inf", *MANY[1:]], {}, r"row 1 of .*column `y`: expected a finite number, found inf"),
        (["red", *MANY[1:]], {"task": "regression"}, r"row 1 of .*column `y`: expected a number, found 'red'"),
        (
            repeat(["2.5"]),
            {},
            r"column `y`: expected two classes or more|expected numbers that differ in the train rows, found only 2\.5",
        ),
        (
            ["0.5", *repeat(["0", "1"])[1:]],
            {},
            r"row 1 of .*found 0\.5, which looks continuous; correct the value if it is a mistake",
        ),
        (["1e308", "-1e308"] * 20, {"task": "regression"}, r"column `y`: expected numbers whose mean and deviation fit float64"),
        (["1.5", "2.5"], {}, r"column `y`: expected rows enough to have some in every split, found 2 with a number; add rows"),
        (MANY, {"task": "regression", "kinds": {"y": "category"}}, r"expected `number` for the target, found `category`; drop it"),
        (["2024-01-01"] * 20, {"task": "regression"}, r"column `y`: expected a number, found '2024-01-01'"),
    ],
    ids=name,
)
def test_a_target_that_cannot_be_predicted_is_refused(cells: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draft(cells, **settings)


def test_rows_without_a_number_are_in_no_split() -> None:
    found = draft(["", "NA", *MANY[2:]])
    assert sum(map(len, found.parts.values())) == N - 2


def test_one_number_of_two_readings_is_settled_by_the_neighbours() -> None:
    ambiguous = [f"{1 + row % 90}.{row % 10}00" for row in range(N)]
    assert draft(ambiguous, x=[f"{row},25" for row in range(N)], separator=";").target[1] == 2100.0
    assert draft(ambiguous, x=[f"{row}.25" for row in range(N)]).target[1] == 2.1


def test_a_column_that_gives_the_number_away_is_told() -> None:
    y = np.random.default_rng(0).normal(size=N)
    pl.DataFrame({"x": 2 * y + 1, "z": np.arange(N) % 7, "y": y}).write_csv("rows.csv")
    settings = DataSettings(source="rows.csv")
    told = [line for line in remark(settings, draft_dataset(settings, 0)) if "column `x`" in line]
    assert told == [
        "column `x`: its correlation with the target is 1, like that of a copy; leave it out with data.exclude unless it is known"
        " before the target is"
    ]
