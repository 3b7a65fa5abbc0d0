import re
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.remarks import find_stand_ins
from refit.tables.table_examples import load_manifest


def build_lines(store: Store, columns: dict[str, Any], end: str = "csv", **settings: Any) -> list[str]:
    """What is said of a table, whose rows are of two classes in turn."""
    num_rows = len(next(iter(columns.values())))
    frame = pl.DataFrame({**columns, "y": ["a", "b"] * (num_rows // 2)})
    frame.write_csv("rows.csv") if end == "csv" else frame.write_parquet("rows.parquet")
    manifest = load_manifest(build_dataset(DataSettings(source=f"rows.{end}", **settings), 0, store), store)
    assert manifest.describe()[len(manifest.describe()) - len(manifest.remarks) :] == manifest.remarks
    return manifest.remarks


def test_a_line_a_column_says_how_text_was_read_and_plain_columns_have_none(store: Store) -> None:
    columns = {"price": [f"${1000 + n:,}" for n in range(20)], "x": list(range(20)), "k": ["u", "v", "u"] * 6 + ["u", "v"]}
    assert build_lines(store, columns) == ["column `price`: `$1,000` is read as 1000"]
    (line,) = build_lines(store, columns, kinds={"price": "category"})
    assert re.match(r"column `price`: 1\d texts in the train rows, none of them twice, so that nothing is learned from it", line)


def test_columns_of_which_nothing_is_learned_are_named(store: Store) -> None:
    columns = {
        "x": list(range(200)),
        "name": [f"person {n}" for n in range(200)],
        "five": [5] * 200,
        "some": ["u" if n % 3 else None for n in range(200)],
    }
    name, *others = build_lines(store, columns)
    assert re.match(
        r"column `name`: 1\d\d texts in the train rows, none of them twice, .*; leave it out with data\.exclude, or", name
    )
    assert others == [
        "column `five`: `5` in all train rows, so that nothing is learned from it",
        "column `some`: `u` in all train rows that have a value, so that the model learns only from its absence",
    ]


def test_a_mark_that_may_be_a_category_is_told(store: Store) -> None:
    assert build_lines(store, {"country": ["NA", "DE", "FR", ""] * 25, "x": list(range(0, 200, 2))}) == [
        "column `country`: `NA` counts as a missing value in 25 rows; take it out of data.null_values if it is a category"
    ]


def test_categories_that_share_an_input_are_counted(store: Store) -> None:
    table = {"level": [f"level {n % 300}" for n in range(3000)], "x": list(range(3000))}
    assert build_lines(store, table) == [], "each has a code"
    (line,) = build_lines(store, table, max_one_hot=None)
    assert re.match(
        r"column `level`: 300 categories in the train rows, of which the 100 most frequent are told apart;"
        r" all others, in [56]\d% of the rows, count as one",
        line,
    )


def test_numbers_that_become_one_float_are_counted(store: Store) -> None:
    whole = [2**53 + n for n in range(20)]
    long = [f"0.{'1' * 22}{n:02}" for n in range(20)]
    ending = (
        "have more digits than a float keeps, and become equal to others; make the column a category in data.kinds if they are"
        " codes"
    )
    assert build_lines(store, {"id": whole, "x": list(range(20))}, "parquet") == [
        f"column `id`: 9 of its values, such as `{2**53 + 19}`, {ending}"
    ]
    assert build_lines(store, {"id": whole, "x": list(range(20))}) == [
        f"column `id`: 9 of its values, such as `{2**53 + 19}`, {ending}"
    ]
    (line,) = build_lines(store, {"decimal": long, "x": list(range(20))})
    assert f"19 of its values, such as `{long[0]}`, {ending}" in line


def test_texts_that_are_numbers_but_may_be_codes_are_told(store: Store) -> None:
    ending = "; make the column a category in data.kinds if they are codes or versions"
    versions = {"version": ["1.1", "1.10", "1.2", "2.0", "2"] * 4, "x": list(range(20))}
    assert build_lines(store, versions) == [f"column `version`: `1.1` and `1.10` are read as the same number{ending}"]
    assert build_lines(store, versions, kinds={"version": "category"}) == []
    assert build_lines(store, {"part": ["1001", "1002", "10E0", "1e5", "NA"] * 4, "x": list(range(20))}) == [
        f"column `part`: `10E0` is read as 10, and 8 rows hold such texts{ending}"
    ]
    plain = ["1.50", "2", "-0.00", "0.00", "1.0", "1", "1e-05", "1E+05", "1e-07", "7.25"] * 2
    assert build_lines(store, {"plain": plain, "x": list(range(20))}) == []


def test_categories_that_differ_only_in_how_they_are_written_are_told(store: Store) -> None:
    columns = {"town": ["Berlin", "berlin", "M\u00fcnchen", "Mu\u0308nchen", "Bonn "] * 40, "x": list(range(200))}
    assert build_lines(store, columns) == [
        "column `town`: `Berlin` and `berlin` differ only in letter case or Unicode form, and 1 more of its texts; write them alike"
        " if they are one category"
    ]
    assert build_lines(store, {"town": ["Bonn", "Bonn ", " Bonn", "Ulm"] * 5, "x": list(range(20))}) == [
        "column `town`: blanks around texts do not count: `' Bonn'` is the same category as another text, and 1 more of its texts"
    ]
    assert build_lines(store, {"town": [" Bonn", " Ulm", " Bonn ", " Ulm", " Bonn"] * 4, "x": list(range(20))}, "parquet") == [
        "column `town`: blanks around texts do not count: `' Bonn'` is the same category as another text"
    ]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_numbers_and_dates_that_may_stand_for_missing_values_are_told_until_they_are_named(store: Store, end: str) -> None:
    days = [date(2024, 1, 1) + timedelta(n) for n in range(200)]
    columns = {
        "level": [-999 if n % 10 == 7 else n / 7 for n in range(200)],
        "until": [date(9999, 12, 31) if n % 3 else days[n] for n in range(200)],
        "x": list(range(200)),
    }
    level, until = build_lines(store, columns, end)
    for line, name, text in ((level, "level", "-999.0"), (until, "until", "9999-12-31")):
        assert re.fullmatch(
            rf"column `{name}`: `{text}` in \d+ train rows, though all others are far from it; add --data\.null_values"
            rf" '\[\"\", .*, \"{text}\"\]' if a missing value is meant, in any column",
            line,
        )
    assert build_lines(store, columns, end, null_values=["", "-999.0", "9999-12-31"]) == []


ORDINARY = np.random.default_rng(0)


@pytest.mark.parametrize(
    "numbers",
    [
        np.repeat([0.0, 1.0], 500),
        np.repeat([-1.0, 0.0, 1.0], 500),
        np.repeat([1.0, 10.0, 100.0, 1000.0], 100),
        ORDINARY.poisson(0.3, 1000).astype(float),
        ORDINARY.poisson(8, 1000) - 1.0,
        np.maximum(ORDINARY.normal(size=1000), 0),
        np.floor(ORDINARY.lognormal(3, 2, 1000)),
        np.where(ORDINARY.random(1000) < 0.9, 0, ORDINARY.lognormal(9, 1, 1000)),
        np.array([*range(1000), 1e9]),
        np.arange(-9.0, 20),
        np.arange(-1.0, 200),
        np.array([20.0, 35, 60, 99]),
        np.arange(100.0),
        np.full(50, 3.0),
    ],
    ids=range(14),
)
def test_ordinary_numbers_stand_for_nothing_else(numbers: Any) -> None:
    assert find_stand_ins(numbers) == []


@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ([-1.0] * 40 + [*range(18, 90)], [(-1, 40)]),
        ([-999.0] * 5 + [9999.0] * 4 + [*range(100)], [(-999, 5), (9999, 4)]),
        ([1e6 + 5] * 5 + [*range(100)], [(1e6 + 5, 5)]),
        ([99.0] * 5 + [0.0, 1.0] * 50, [(99, 5)]),
        ([999.0, *[99.0] * 4, *range(20, 60)], [(999, 1), (99, 4)]),
        ([-9.0, -9.0, *range(1, 30)], [(-9, 2)]),
        ([-9.0] * 3 + [-8.0] * 2 + [*range(1, 30)], [(-9, 3), (-8, 2)]),
        ([-1.0] * 5 + [0.0] * 20 + [*range(1000, 9000, 80)], [(-1, 5)]),
        ([], []),
    ],
)
def test_a_number_far_from_all_others_that_repeats_may_stand_for_a_missing_value(
    numbers: list[float], found: list[tuple[float, int]]
) -> None:
    assert find_stand_ins(np.array(numbers, float)) == found


def test_dates_without_an_end_are_found_though_they_come_once() -> None:
    days = [datetime(2020, 1, 1) + timedelta(n) for n in range(50)]
    times = pl.Series([datetime(1, 1, 1), datetime(9999, 12, 31), *days]).dt.epoch("us").cast(pl.Float64).to_numpy()
    assert [num_rows for _, num_rows in find_stand_ins(times, True)] == [1, 1]
    assert find_stand_ins(times[2:], True) == []
    assert find_stand_ins(pl.Series([datetime(1900, 1, 1)] * 3 + days).dt.epoch("us").cast(pl.Float64).to_numpy(), True) != []


def test_times_of_day_in_parquet_are_told(store: Store) -> None:
    assert build_lines(store, {"at": [time(n, 30) for n in range(20)], "x": list(range(20))}, "parquet") == [
        "column `at`: times of day are read as hours, so that `7:45` is 7.75"
    ]


@pytest.mark.parametrize("column", [["a", "b"] * 20, [1.5, -7] * 20, [True, False] * 20, [None, "late"] * 20])
def test_a_column_that_gives_the_class_away_is_told(store: Store, column: list[Any]) -> None:
    told = (
        "one value for each class in all train rows, like a copy of the target; leave it out with data.exclude unless it is known"
        " before the class is"
    )
    for end in ("csv", "parquet"):
        (line,) = build_lines(store, {"k": column, "x": list(range(40))}, end)
        assert line.endswith(told)
    column = [*column[:-2], *column[:-3:-1]]
    assert told not in str(build_lines(store, {"k": column, "x": list(range(40))}, "parquet", val=0.0, test=0.0))


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([None, "moved", None, "price"] * 30, "each of its values goes with one class, so that it gives the class away"),
        (["u", "moved", "v", "price"] * 30, "each of its values goes with one class, so that it gives the class away"),
        ([5, 1, 5, 2] * 30, "each of its values goes with one class, so that it gives the class away"),
        ([f"why {n}" if n % 2 else None for n in range(120)], "filled in the rows of one class alone, so that it gives"),
        ([None, "moved", None, "price"] * 29 + ["price", "moved", None, "price"], ""),
        ([f"why {n}" for n in range(120)], ""),
        ([n % 40 for n in range(120)], ""),
    ],
    ids=range(7),
)
def test_a_column_whose_values_each_go_with_one_class_is_told(store: Store, column: list[Any], told: str) -> None:
    for end in ("csv", "parquet"):
        lines = build_lines(store, {"k": column, "x": [n % 7 for n in range(120)]}, end, test=0.0, val=0.0)
        about = " ".join(line for line in lines if "gives the class away" in line)
        assert (told in about) if told else not about


def test_rows_with_an_empty_class_are_counted(store: Store) -> None:
    pl.DataFrame({"x": range(20), "y": ["a", "b", " ", None] * 5}).write_csv("rows.csv")
    lines = load_manifest(build_dataset(DataSettings(source="rows.csv"), 0, store), store).describe()
    assert "dropped: 10 rows without a value of y; fill in a name if an empty cell is a class" in lines


def test_folders_above_the_source_are_no_columns_but_where_they_are_asked_for(store: Store, tmp_path: Path) -> None:
    (folder := tmp_path / "run=5").mkdir()
    pl.DataFrame({"x": range(20), "y": [0, 1] * 10}).write_csv(folder / "rows.csv")
    source = str(folder / "rows.csv")
    manifest = load_manifest(build_dataset(DataSettings(source=source), 0, store), store)
    assert manifest.signature.input_names == ["x"]
    assert manifest.remarks == [
        f"left out: column `run`, which a folder above {source} names and which has one value in all rows; name it in"
        " data.features to learn from it"
    ]
    asked = load_manifest(build_dataset(DataSettings(source=source, features=["x", "run"]), 0, store), store)
    assert asked.signature.input_names == ["x", "run"]


def test_of_many_lines_the_log_shows_some(store: Store) -> None:
    columns = {f"c{place}": [place] * 20 for place in range(40)} | {"x": list(range(20))}
    pl.DataFrame({**columns, "y": ["a", "b"] * 10}).write_csv("rows.csv")
    manifest = load_manifest(build_dataset(DataSettings(source="rows.csv"), 0, store), store)
    assert len(manifest.remarks) == 40
    assert manifest.describe()[-2:] == [manifest.remarks[29], "10 more such lines are in the version's manifest.json"]


@pytest.mark.parametrize(
    ("name", "values", "is_code"),
    [
        ("zip", [77259, 69975, 51306] * 20, True),
        ("billToPhone", [*range(301, 661, 6)], True),
        ("barcode", [4303027418909 + 37 * n * n for n in range(60)], True),
        ("line", [8899687942 + 37 * n * n for n in range(60)], True),
        ("Vendor ID", [10016643 + n % 40 * 7 for n in range(60)], True),
        ("is_id", [n % 2 for n in range(60)], False),
        ("seen", [1706409899 + 371 * n * n for n in range(60)], False),
        ("population", [100 + 371_003 * n * n for n in range(60)], False),
        ("turnover", [100_000_000 * (n % 7 + 1) for n in range(60)], False),
        ("capacity", [n * n for n in range(60)], False),
        ("zip", [n / 7 for n in range(60)], False),
    ],
)
def test_whole_numbers_that_may_be_codes_are_told(store: Store, name: str, values: list[float], is_code: bool) -> None:
    told = 'may be codes, of which neither size nor order means anything; add --data.kinds \'{{"{}": "category"}}\' if they are'
    for end in ("csv", "parquet"):
        lines = build_lines(store, {name: values, "x": [n % 7 for n in range(60)]}, end)
        assert (told.format(name) in " ".join(lines)) == is_code
