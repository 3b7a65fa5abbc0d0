from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.tables.targets import convert_target, remark_on_target


def locate(index: int) -> str:
    return f"row {index + 1} of rows.csv"


def test_a_typed_number_that_means_a_missing_value_is_no_class_and_that_is_told() -> None:
    cells = pl.Series("y", [-1, 0, 1, -1])
    target = convert_target(cells, None, ["-1"], locate)[1]
    assert target.to_list() == [None, 0, 1, None]
    told = ["column `y`: `-1` counts as a missing value in 2 rows; take it out of data.null_values if it is a class"]
    assert remark_on_target(cells, target) == told


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["b", "a"], ["b", "a"]),
        (["0", "1", ""], [0, 1, None]),
        (["9007199254740993"], [9007199254740993]),
        ([1.0, 2.0, float("nan")], [1, 2, None]),
        (["true", "false"], [True, False]),
        (["True", "False"], [True, False]),
        (["1.0", "2.0", ""], ["1.0", "2.0", None]),
        (["18446744073709551615", "1"], [2**64 - 1, 1]),
        (["true", "TRUE"], ["true", "TRUE"]),
        (["1E2", "2E3", "100"], ["1E2", "2E3", "100"]),
        (["01067", "1067"], ["01067", "1067"]),
        (["7", "07", "007"], ["7", "07", "007"]),
        (["1.0", "1"], ["1.0", "1"]),
        (["1", "2", "two"], ["1", "2", "two"]),
        (["a ", "a", " a"], ["a ", "a", " a"]),
        ([" a", " b ", " NA"], ["a", "b ", None]),
        ([2**64 - 1, 1], [2**64 - 1, 1]),
    ],
)
def test_a_target_becomes_text_integers_or_booleans(cells: list[Any], values: list[Any]) -> None:
    is_large = isinstance(cells[0], int) and cells[0] > 2**63
    converted = convert_target(pl.Series("y", cells, pl.UInt64 if is_large else None), None, ["NA"], locate)[1].to_list()
    assert converted == values
    assert list(map(type, converted)) == list(map(type, values))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["0.5", "1", "2"],
            r"row 1 of .*found 0\.5, which looks continuous; .* set data\.task to `regression` .* a category in data\.kinds",
        ),
        (["x", "0.5", "1.5"], r"row 2 of .*found 0\.5, which looks continuous"),
        ([1.0, 1.5], r"row 2 of .*found 1\.5, which looks continuous"),
        (["2020-01-01"], r"found date-times; name another column in data\.target"),
        ([[1], [2]], r"row 1 of rows\.csv, column `y`: .* found List\(Int64\); name another column in data\.target"),
    ],
)
def test_a_target_that_is_no_class_is_refused(cells: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert_target(pl.Series("y", cells), None, [], locate)


def test_numbers_are_classes_where_the_target_is_named_a_category() -> None:
    assert convert_target(pl.Series("y", ["0.5", "1"]), "categorical", [], locate)[1].to_list() == ["0.5", "1"]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["1", "1.0", "01", "x"], "`01`, `1`, `1.0`"),
        (["5", "5,0", "x"], "`5`, `5,0`"),
        (["caf\u00e9", "cafe\u0301", "x"], "`'cafe\\u0301'`, `caf\u00e9`"),
    ],
)
def test_classes_that_are_one_number_or_look_alike_are_told(labels: list[str], named: str) -> None:
    cells = pl.Series("y", labels)
    told = [f"column `y`: {named} are different classes; write them alike if they are the same class"]
    assert remark_on_target(cells, convert_target(cells, None, [], locate)[1]) == told


def test_of_classes_that_may_not_be_meant_people_are_told() -> None:
    cells = pl.Series("y", ["NA", "NA", "", "None", "-", "b", "B", "b "])
    assert remark_on_target(cells, convert_target(cells, None, ["NA"], locate)[1]) == [
        "column `y`: `NA` counts as a missing value in 2 rows; take it out of data.null_values if it is a class",
        "column `y`: the classes include `-`, `None`; add texts that mean a missing value to data.null_values",
        "column `y`: `B`, `b`, `'b '` are different classes; write them alike if they are the same class",
    ]
