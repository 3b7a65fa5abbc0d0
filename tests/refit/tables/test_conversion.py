from datetime import datetime, time
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.tables.conversion import convert_column
from refit.tables.formats import ClockFormat
from refit.tables.schema import Reading, find_reading

NOON = datetime(2020, 5, 17, 12)


def locate(index: int) -> str:
    return f"row {index + 1} of rows.csv"


@pytest.mark.parametrize("values", [["1", "2"], [1, 2], [1.0, 2.0], ["1.0", "2.0"]])
def test_a_category_is_the_same_from_text_integer_and_float(values: list[Any]) -> None:
    assert convert_column(pl.Series("c", values), "categorical", [], locate).to_list() == ["1", "2"]


def test_a_boolean_is_the_same_from_text_number_and_boolean() -> None:
    for values in (["TRUE", "false", None], [1.0, 0.0, None], [1, 0, None], [True, False, None]):
        assert convert_column(pl.Series("c", values), "boolean", [], locate).to_list() == [True, False, None]


def test_a_time_of_day_is_the_same_from_text_and_as_a_type() -> None:
    cells = pl.Series("c", [time(7, 45), time(12, 30, 36, 500_000), None])
    reading, values = find_reading(cells, [], locate)
    assert reading == Reading("numeric", ClockFormat(), "times of day are read as hours, so that `7:45` is 7.75")
    texts = pl.Series("c", ["7:45", "12:30:36.5", None])
    assert values.to_list() == [7.75, 12 + 30 / 60 + 36.5 / 3600, None]
    assert convert_column(texts, "numeric", [], locate, reading.format).equals(values)
    assert convert_column(cells, "numeric", [], locate, find_reading(texts, [], locate)[0].format).equals(values)
    assert convert_column(cells, "categorical", [], locate).to_list() == ["07:45:00", "12:30:36.500", None]
    with pytest.raises(DataError, match=r"expected an ISO date or date-time, found '07:45:00'"):
        convert_column(cells, "datetime", [], locate)


@pytest.mark.parametrize("value", ["x", float("inf"), "inf", "1e400", NOON, True])
def test_a_known_number_refuses_infinities_text_and_dates_by_row(value: Any) -> None:
    cells = pl.Series("c", [value])
    if value is True:  # a number in any language of data frames
        assert convert_column(cells, "numeric", [], locate).to_list() == [1.0]
        return
    with pytest.raises(DataError, match=r"row 1 of rows.csv, column `c`: expected a (finite )?number, found .*; correct"):
        convert_column(cells, "numeric", [], locate)
