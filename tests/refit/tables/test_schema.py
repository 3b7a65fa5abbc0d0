import re
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.tables.conversion import convert_column
from refit.tables.formats import ClockFormat
from refit.tables.schema import Reading, find_reading
from refit.tables.targets import convert_target, remark_on_target

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
        (["7:45", "12:30"], "numeric", [7.75, 12.5], r"`12:30` is read as 12.5"),
        (["01067", "80331"], "categorical", ["01067", "80331"], r"categories, as numbers lose the zeros before `01067`"),
        (
            ["01/02/2020", "03/04/2020"],
            "categorical",
            ["01/02/2020", "03/04/2020"],
            r"categories, as `01/02/2020` may mean 2020-02-01 or 2020-01-02; write it in one of these .* data\.categorical",
        ),
        (
            ["3750", "-", "-", "?"],
            "categorical",
            ["3750", "-", "-", "?"],
            r"categories, though 25% of its values look like numbers or dates, such as `3750`, and others do not, such as `-`; mend"
            r" these, add them to data\.null_values .*, or name the column in data\.categorical",
        ),
        (["18.7%", "0.3", "0.4", "0.5"], "categorical", ["18.7%", "0.3", "0.4", "0.5"], None),
    ],
)
def test_what_was_made_of_text_is_said_in_a_line(cells: list[str], kind: str, values: list[Any], remark: str | None) -> None:
    if remark is None:
        with pytest.raises(
            DataError, match=r"row 1 of rows\.csv, column `c`: expected a number, found '18.7%'; mend the value, add"
        ):
            find_reading(pl.Series("c", cells), [], locate)
        return
    reading, converted = find_reading(pl.Series("c", cells), ["NA"], locate)
    assert (reading.kind, converted.to_list()) == (kind, values)
    assert re.match(remark, reading.remark or "")


def test_text_among_most_that_is_written_as_numbers_is_refused_by_row() -> None:
    message = (
        r"row 3 of rows\.csv, column `c`: expected a number written as `1,234\.5` and `\$`, found 'n\.a\.'; mend the value, add it"
    )
    with pytest.raises(DataError, match=message):
        find_reading(pl.Series("c", ["$1,200", "$3", "n.a."]), [], locate)


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


def test_a_typed_number_that_means_a_missing_value_is_no_class_and_that_is_told() -> None:
    cells = pl.Series("y", [-1, 0, 1, -1])
    target = convert_target(cells, None, ["-1"], locate)[1]
    assert target.to_list() == [None, 0, 1, None]
    told = ["column `y`: `-1` counts as a missing value, in 2 rows; take it out of data.null_values if it is a class"]
    assert remark_on_target(cells, target) == told


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
    with pytest.raises(DataError, match=r"row 1 of rows.csv, column `c`: expected a (finite )?number, found .*; mend"):
        convert_column(cells, "numeric", [], locate)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            ["0.5", "1", "2"],
            r"row 1 of .*found 0\.5, as if it were continuous; Refit classifies: bin .* or this one in data\.categorical",
        ),
        (["x", "0.5", "1.5"], r"row 2 of .*found 0\.5, as if it were continuous"),
        ([1.0, 1.5], r"row 2 of .*found 1\.5, as if it were continuous"),
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
    [(["1", "1.0", "01", "x"], "`01`, `1`, `1.0`"), (["caf\u00e9", "cafe\u0301", "x"], "`'cafe\\u0301'`, `caf\u00e9`")],
)
def test_classes_that_are_one_number_or_look_alike_are_told(labels: list[str], named: str) -> None:
    cells = pl.Series("y", labels)
    told = [f"column `y`: {named} are different classes; write them alike if they are one"]
    assert remark_on_target(cells, convert_target(cells, None, [], locate)[1]) == told


def test_codes_stay_categories_when_one_with_a_letter_comes() -> None:
    codes = pl.Series("c", ["01", "02", "13"] * 30 + ["2A"])
    reading, values = find_reading(codes, [], locate)
    assert (reading.kind, values.to_list()) == ("categorical", codes.to_list())
    assert reading.remark == "categories, as numbers lose the zeros before `01`"


def test_times_of_which_some_name_no_zone_are_told() -> None:
    times = pl.Series("c", ["2026-01-01T10:00:01", "2026-01-02T10:01:01Z"] * 5)
    told = "times without a zone, such as `2026-01-01T10:00:01`, are taken as UTC; others name theirs"
    assert find_reading(times, [], locate)[0] == Reading("datetime", remark=told)
    assert find_reading(times[:1], [], locate)[0] == find_reading(times[1:2], [], locate)[0] == Reading("datetime")


def test_of_classes_that_may_not_be_meant_people_are_told() -> None:
    cells = pl.Series("y", ["NA", "NA", "", "None", "-", "b", "B", "b "])
    assert remark_on_target(cells, convert_target(cells, None, ["NA"], locate)[1]) == [
        "column `y`: `NA` counts as a missing value, in 2 rows; take it out of data.null_values if it is a class",
        "column `y`: `-`, `None` counts as a class; add it to data.null_values if it means a missing value",
        "column `y`: `B`, `b`, `'b '` are different classes; write them alike if they are one",
    ]
