from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from refit.data.schema import convert_column, convert_target, find_kind
from refit.errors import DataError

NOON = datetime(2020, 5, 17, 12)


def locate(index: int) -> str:
    return f"row {index + 1} of rows.csv"


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        ([" 1", "2.5e1", "NA", None], "numeric", [1.0, 25.0, None, None]),
        ([1, None], "numeric", [1.0, None]),
        ([Decimal("1.5")], "numeric", [1.5]),
        ([1.0, float("nan")], "numeric", [1.0, None]),
        (["True", "false ", ""], "boolean", [True, False, None]),
        ([True, None], "boolean", [True, None]),
        (["2020-05-17 12:00", "2020-05-17T12:00:00Z", "2020-05-17T14:00:00+02:00"], "datetime", [NOON] * 3),
        (["2020-05-17"], "datetime", [datetime(2020, 5, 17)]),
        ([date(2020, 5, 17)], "datetime", [datetime(2020, 5, 17)]),
        ([NOON.replace(tzinfo=UTC)], "datetime", [NOON]),
        (["a", "b", "1"], "categorical", ["a", "b", "1"]),
        (["yes", "no"], "categorical", ["yes", "no"]),
        ([None, None], "categorical", [None, None]),
    ],
)
def test_the_kind_is_what_all_values_are(cells: list[Any], kind: str, values: list[Any]) -> None:
    found, converted = find_kind(pl.Series("c", cells), ["NA"], locate)
    assert (found, converted.to_list()) == (kind, values)


@pytest.mark.parametrize("values", [["1", "2"], [1, 2], [1.0, 2.0], ["1.0", "2.0"]])
def test_a_category_is_the_same_from_text_integer_and_float(values: list[Any]) -> None:
    assert convert_column(pl.Series("c", values), "categorical", [], locate).to_list() == ["1", "2"]


def test_a_boolean_is_the_same_from_text_number_and_boolean() -> None:
    for values in (["TRUE", "false", None], [1.0, 0.0, None], [1, 0, None], [True, False, None]):
        assert convert_column(pl.Series("c", values), "boolean", [], locate).to_list() == [True, False, None]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["b", "a"], ["b", "a"]),
        (["0", "1", ""], [0, 1, None]),
        (["9007199254740993"], [9007199254740993]),
        ([1.0, 2.0, float("nan")], [1, 2, None]),
        (["true", "False"], [True, False]),
    ],
)
def test_a_target_becomes_text_integers_or_booleans(cells: list[Any], values: list[Any]) -> None:
    converted = convert_target(pl.Series("y", cells), None, [], locate)[1].to_list()
    assert converted == values
    assert list(map(type, converted)) == list(map(type, values))


@pytest.mark.parametrize("value", ["x", float("inf"), "inf", "1e400", NOON, True])
def test_a_known_number_refuses_infinities_text_and_dates_by_row(value: Any) -> None:
    cells = pl.Series("c", [value])
    if value is True:  # a number in any language of data frames
        assert convert_column(cells, "numeric", [], locate).to_list() == [1.0]
        return
    with pytest.raises(DataError, match=r"row 1 of rows.csv, column `c`: expected a (finite )?number, found .*; mend"):
        convert_column(cells, "numeric", [], locate)
