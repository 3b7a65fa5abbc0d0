import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.tables.schema import Reading, find_reading

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
        (["2024-01-31T10:00:00.000+0000"], "datetime", [datetime(2024, 1, 31, 10)]),
        (["a", "b", "1"], "categorical", ["a", "b", "1"]),
        (["yes", "no"], "categorical", ["yes", "no"]),
        ([None, None], "categorical", [None, None]),
    ],
)
def test_the_kind_is_what_all_values_are(cells: list[Any], kind: str, values: list[Any]) -> None:
    reading, converted = find_reading(pl.Series("c", cells), ["NA"], locate)
    assert (reading.kind, reading.format, converted.to_list()) == (kind, None, values)


@pytest.mark.parametrize(
    ("cells", "kind", "values", "remark"),
    [
        (["3,750", "950", "NA"], "numeric", [3750, 950, None], r"`3,750` is read as 3750"),
        (
            ["31.01.2020", " 1.2.2020"],
            "datetime",
            [datetime(2020, 1, 31), datetime(2020, 2, 1)],
            r"`31.01.2020` is read as 2020-01-31",
        ),
        (["20240131", "20231201"], "datetime", [datetime(2024, 1, 31), datetime(2023, 12, 1)], r"`20240131` is read as 2024-01-31"),
        (["7:45", "12:30"], "numeric", [7.75, 12.5], r"`12:30` is read as 12.5"),
        (["01067", "80331"], "categorical", ["01067", "80331"], r"read as categories, .* would lose the leading zeros of `01067`"),
        (
            ["31.01.63", "01.02.71"],
            "datetime",
            [datetime(1963, 1, 31), datetime(1971, 2, 1)],
            r"`31.01.63` is read as 1963-01-31, as",
        ),
        (
            ["3750", "-", "-", "?"],
            "categorical",
            ["3750", "-", "-", "?"],
            r"read as categories, though 25% of its values look like numbers or dates, such as `3750`, and others do not, such as"
            r" `-`; correct these, add them to data\.null_values .*, or make the column a category in data\.kinds",
        ),
        (
            ["31.01.2020", "02/13/99"],
            "categorical",
            ["31.01.2020", "02/13/99"],
            r"read as categories, though 100% of its values look like numbers or dates, .* in no single format",
        ),
        (
            ["31.01.2020", "2020-02-01", "13/2/99"],
            "datetime",
            [datetime(2020, 1, 31), datetime(2020, 2, 1), datetime(1999, 2, 13)],
            r"dates in 3 formats are read: `13/2/99` as 1999-02-13, `2020-02-01` as 2020-02-01, `31.01.2020` as 2020-01-31$",
        ),
        (["18.7%", "0.3", "0.4", "0.5"], "categorical", ["18.7%", "0.3", "0.4", "0.5"], None),
    ],
)
def test_what_was_made_of_text_is_said_in_a_line(cells: list[str], kind: str, values: list[Any], remark: str | None) -> None:
    if remark is None:
        with pytest.raises(
            DataError, match=r"row 1 of rows\.csv, column `c`: expected a number, found '18.7%'; correct the value, add"
        ):
            find_reading(pl.Series("c", cells), [], locate)
        return
    reading, converted = find_reading(pl.Series("c", cells), ["NA"], locate)
    assert (reading.kind, converted.to_list()) == (kind, values)
    assert re.match(remark, reading.remark or "")


def test_text_among_most_that_is_written_as_numbers_is_refused_by_row() -> None:
    message = (
        r"row 3 of rows\.csv, column `c`: expected a number written as `1,234\.5` with `\$`, found 'n\.a\.'; correct the value, add"
    )
    with pytest.raises(DataError, match=message):
        find_reading(pl.Series("c", ["$1,200", "$3", "n.a."]), [], locate)


@pytest.mark.parametrize("unit", ["", "years"])
def test_ranges_are_categories_though_most_rows_are_numbers(unit: str) -> None:
    cells = [f"{text}{unit}" for text in ["12"] * 6 + ["16"] * 3 + ["9-11", "13-15", ">16", "<9"]]
    reading, converted = find_reading(pl.Series("c", cells), [], locate)
    assert (reading.kind, converted.to_list()) == ("categorical", cells)
    assert "read as categories, though 69% of its values look like numbers or dates" in (reading.remark or "")


@pytest.mark.parametrize(
    ("cells", "kind", "notations"),
    [
        (["01/02/2020", "03/04/2020"], "categorical", ["%d/%m/%Y", "%m/%d/%Y"]),
        (["3,750", "1234"], "categorical", ["1234,5", "1,234.5"]),
        (["3,750", "950"], "numeric", ["1,234.5", "1234,5"]),
        (["3.750", "950"], "numeric", ["1234.5", "1.234,5"]),
        (["3.750", " -12.125", "NA"], "numeric", ["1234.5", "1.234,5"]),
        (["3.750", "12.5"], "numeric", []),
        (["3.750", "1234"], "numeric", []),
        (["0.750", "1.250"], "numeric", []),
        (["3,750", "7,250,000"], "numeric", []),
        (["$3,750", "$950"], "numeric", []),
        (["3", "950"], "numeric", []),
    ],
)
def test_what_may_be_read_in_two_ways_has_choices(cells: list[str], kind: str, notations: list[str]) -> None:
    reading, _ = find_reading(pl.Series("c", cells), ["NA"], locate)
    assert (reading.kind, [choice.notation for choice in reading.choices]) == (kind, notations)


@pytest.mark.parametrize("cells", [["20240131", "20241301"], ["20240131", "2024013"], ["20240131"] * 3, ["20240131", "5"]])
def test_whole_numbers_that_are_no_dates_stay_numbers(cells: list[str]) -> None:
    assert find_reading(pl.Series("c", cells), [], locate)[0] == Reading("numeric")


def test_a_number_that_means_a_missing_value_is_one() -> None:
    assert find_reading(pl.Series("c", ["-999", "1"]), ["-999"], locate)[1].to_list() == [None, 1.0]


@pytest.mark.parametrize(
    ("cells", "null_value", "values"),
    [
        ([-999, 1, None], "-999", [None, 1.0, None]),
        ([-999.0, float("nan")], "-999", [None, None]),
        ([Decimal("1.50"), Decimal("2.00")], "1.5", [None, 2.0]),
        ([date(9999, 12, 31), date(2020, 5, 17)], "9999-12-31", [None, datetime(2020, 5, 17)]),
        ([NOON.replace(tzinfo=UTC)], "2020-05-17 12:00", [None]),
    ],
)
def test_typed_cells_that_mean_a_missing_value_are_one_as_their_text_is(
    cells: list[Any], null_value: str, values: list[Any]
) -> None:
    assert find_reading(pl.Series("c", cells), ["NA", null_value], locate)[1].to_list() == values


def test_codes_stay_categories_when_one_with_a_letter_comes() -> None:
    codes = pl.Series("c", ["01", "02", "13"] * 30 + ["2A"])
    reading, values = find_reading(codes, [], locate)
    assert (reading.kind, values.to_list()) == ("categorical", codes.to_list())
    assert reading.remark == "read as categories, as numbers would lose the leading zeros of `01`"


def test_times_of_which_some_name_no_zone_are_told() -> None:
    times = pl.Series("c", ["2026-01-01T10:00:01", "2026-01-02T10:01:01Z"] * 5)
    told = "times without a zone, such as `2026-01-01T10:00:01`, are taken as UTC; others name their zone"
    assert find_reading(times, [], locate)[0] == Reading("datetime", remark=told)
    assert find_reading(times[:1], [], locate)[0] == find_reading(times[1:2], [], locate)[0] == Reading("datetime")
