import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.draft import check_data, draft_dataset
from refit.tables.manifest import Manifest
from refit.tables.table_examples import load_manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


def rows(header: str = "x,y", *extra: str, count: int = 20) -> bytes:
    """Good rows of numbers, 0 and 1 in the last column, then `extra`."""
    width = header.count(",")
    return "\n".join([header, *(",".join([*[str(row)] * width, str(row % 2)]) for row in range(count)), *extra, ""]).encode()


CSV, BOTH = "rows.csv", {"test_source": "{}/test.csv"}

BROKEN: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "no file": ({}, {}, r"/rows\.csv: expected a file, folder or glob, found nothing there; check"),
    "no match": ({}, {"source": "{}/*.csv"}, r"/\*\.csv: expected files ending in .*found none"),
    "no table": ({"rows.bin": b"\0\1"}, {"source": "{}/rows.bin"}, r"rows\.bin: expected CSV or Parquet, found bytes that are no"),
    "unknown protocol": ({}, {"source": "nope://x/y.csv"}, r"nope://x/y.csv: expected files that can be read, found .*nope"),
    "CSV and Parquet": (
        {"d/a.csv": b"x,y\n", "d/b.parquet": b""},
        {"source": "{}/d"},
        r"expected either CSV or Parquet, found .*/d/a\.csv and",
    ),
    "empty file": ({CSV: b""}, {}, r"/rows\.csv: expected a header and rows, found an empty file"),
    "header alone": ({CSV: b"x,y\n"}, {}, r"/rows\.csv: expected rows, found an empty table with columns `x`, `y`"),
    "empty part": ({"d/1.csv": rows(), "d/2.csv": b""}, {"source": "{}/d"}, r"/d/2\.csv: expected a header and rows"),
    "column of one part": (
        {"d/1.csv": rows(), "d/2.csv": rows("z,y")},
        {"source": "{}/d"},
        r"2\.csv: expected the same columns as in .*1\.csv, found no column `x`",
    ),
    "extra column of one part": (
        {"d/1.csv": rows(), "d/2.csv": rows("x,z,y")},
        {"source": "{}/d"},
        r"1\.csv: expected .* found no column `z`",
    ),
    "duplicate column": ({CSV: rows("x,x,y")}, {}, r"rows\.csv: expected each column once, found `x` as columns 1 and 2; rename"),
    "duplicate column but for spaces": ({CSV: rows("x, x,y")}, {}, r"expected each column once, found `x`"),
    "short row": (
        {CSV: rows("x,y", "7")},
        {},
        r"row 21 of .*rows\.csv, line 22: expected 2 cells as in the header, found 1; correct",
    ),
    "short row after a blank one": (
        {CSV: rows("x,y", "", "7")},
        {},
        r"row 21 of .*rows\.csv, line 23: expected 2 cells .* found 1",
    ),
    "long row": (
        {CSV: rows("x,y", "7,1,2")},
        {},
        r"row 21 of .*rows\.csv, line 22: expected 2 cells as in the header, found 3; correct",
    ),
    "open quote": ({CSV: rows("x,y", '"7,1')}, {}, r"row 21 of .*rows\.csv, line 22: expected quotes in pairs, found .*; correct"),
    "not UTF-8": (
        {CSV: rows("x,y", "7,1") + b"\xff,1\n"},
        {"encoding": "utf-8"},
        r"row 22 of .*rows\.csv, line 23, column `x`: expected text in UTF-8, found the bytes",
    ),
    "UTF-16": (
        {CSV: rows().decode().encode("utf-16")},
        {"encoding": "utf-8"},
        r"rows\.csv: expected text in UTF-8, found other bytes in the header",
    ),
    "torn gzip": (
        {"rows.csv.gz": b"\x1f\x8b\x08\x00\x00"},
        {"source": "{}/rows.csv.gz"},
        r"rows\.csv\.gz: expected .*; write it again",
    ),
    "torn Parquet": (
        {"a.parquet": b"PAR1\x00\x01"},
        {"source": "{}/a.parquet"},
        r"a\.parquet: expected a whole Parquet file, found a damaged",
    ),
    "no target": (
        {CSV: rows("x,yy")},
        {},
        r"data\.target: expected a column of .*rows\.csv, found no `y` among `x`, `yy`; did you mean `yy`\?",
    ),
    "no feature": (
        {CSV: rows()},
        {"features": ["q"]},
        r"data\.features: .* found no `q` among `x`, `y`; set data\.features to one",
    ),
    "no category": ({CSV: rows()}, {"kinds": {"q": "text"}}, r"data\.kinds: .* found no `q` among `x`, `y`"),
    "target as feature": ({CSV: rows()}, {"features": ["x", "y"]}, r"data\.features: .* found the target `y`; take it out"),
    "target alone": ({CSV: b"y\n0\n1\n"}, {}, r"rows\.csv: expected a column to learn from, found `y`"),
    "another class is a mark": (
        {CSV: b"x,y\n" + b"1,ZA\n2,NA\n" * 9},
        {},
        r"found only `ZA`.*\n.*`NA` counts as a missing value in 9 rows; take it out of data\.null_values if it is a class",
    ),
    "CSV called Parquet": (
        {"a.parquet": b"x,y\n1,a\n2,b\n"},
        {"source": "{}/a.parquet"},
        r"expected a Parquet file, found something else; .* to end in \.csv",
    ),
    "one class": ({CSV: b"x,y\n" + b"1,a\n" * 9}, {}, r"column `y`: expected two classes or more, found only `a`; add rows"),
    "no class": ({CSV: b"x,y\n" + b"1,\n" * 9}, {}, r"column `y`: expected two classes or more, found none; add rows"),
    "a small class": (
        {CSV: rows("x,y", "7,2", "8,3", "9,4")},
        {},
        r"column `y`: expected 3 rows or more of every class, .* found 1 of class 2; add",
    ),
    "a class a row": ({CSV: b"x,y\n" + b"".join(b"1,k%d\n" % row for row in range(2000))}, {}, r"found 1 of class 'k0'"),
    "text among numbers": (
        {CSV: rows("x,y", '"3,750",1', "?,1")},
        {},
        r"row 21 of .*rows\.csv, line 22, column `x`: expected a number, found '3,750' \(and 1 more such rows\), also `\?`; "
        r"correct the value, add it to data\.null_values, or make the column a category in data\.kinds",
    ),
    "text among dates": (
        {CSV: b"x,y\n" + b"2020-01-01,0\n2020-01-02,1\n" * 9 + b"soon,1\n"},
        {},
        r"row 19 of .* column `x`: expected an ISO date .* found 'soon'",
    ),
    "text in the second file": (
        {"d/1.csv": rows(), "d/2.csv": b"x,y\n3,1\nq,1\n"},
        {"source": "{}/d"},
        r"row 2 of .*/d/2\.csv, line 3, column `x`: .* found 'q'",
    ),
    "infinity": (
        {CSV: rows("x,y", "-inf,1")},
        {},
        r"row 21 of .*rows\.csv, line 22, column `x`: expected a finite number, found -inf; correct",
    ),
    "beyond float64": ({CSV: rows("x,y", "1e999,1")}, {}, r"row 21 of .* column `x`: expected a finite number, found inf"),
    "statistics beyond float64": (
        {CSV: b"x,y\n" + b"1e308,0\n-1e308,0\n1e308,1\n-1e308,1\n" * 5},
        {},
        r"/rows\.csv, column `x`: expected numbers whose mean and deviation fit float64, found values up to 1e\+308; divide",
    ),
    "continuous target": (
        {CSV: rows("x,y", "1,0.5")},
        {},
        r"row 21 of .* column `y`: expected strings, integers or booleans as the target, found 0\.5, which looks continuous",
    ),
    "test label written otherwise": (
        {CSV: rows(), "test.csv": b"x,y\n1,1\n2,01\n"},
        BOTH,
        r"row 2 of .*test\.csv, line 3, column `y`: expected a whole number as the class, found '01'; correct",
    ),
    "dates as target": (
        {CSV: b"x,y\n1,2020-01-01\n2,2020-01-02\n"},
        {},
        r"column `y`: expected strings, integers or booleans .* found date-times",
    ),
    "text in target": ({CSV: rows("x,y", "1,?", "2,!", "3,-")}, {}, r"column `y`: expected 3 rows or more .* 1 of class '!'"),
    "no values": ({CSV: b"x,y\n" + b",0\n,1\n" * 9}, {}, r"expected a column with values in the train rows, found none"),
    "sizes": (
        {CSV: rows()},
        {"test": 0.9},
        r"data\.val \+ data\.test: expected less than all 20 rows, .* found 0\.15 \+ 0\.9; lower one",
    ),
    "no time column": ({CSV: rows()}, {"split": "time", "time_column": "t"}, r"data\.time_column: .* found no `t` among"),
    "text as time": (
        {CSV: b"t,x,y\n" + b"a,1,0\nb,2,1\n" * 9},
        {"split": "time", "time_column": "t"},
        r"column `t`: expected date-times or numbers .* found text such as 'a'; write dates as 2026-12-31",
    ),
    "missing time": (
        {CSV: rows("t,x,y", ",2,1")},
        {"split": "time", "time_column": "t"},
        r"row 21 of .* column `t`: expected a time, found none",
    ),
    "no old row of a class": (
        {CSV: rows("t,x,y", "30,2,2", "30,3,2", "30,4,2")},
        {"split": "time", "time_column": "t"},
        r"expected every class among the 17 train rows.* found none of class 2",
    ),
    "spans of numbers": (
        {CSV: rows("t,x,y")},
        {"split": "time", "time_column": "t", "test": "14d"},
        r"data\.test: expected a share or a number of rows, as column `t` holds no date-times, found 14d; give either",
    ),
    "spans without times": ({CSV: rows()}, {"val": "14d"}, r"data\.val: .* as a `random` split has no times, found 14d"),
    "no group column": ({CSV: rows()}, {"group_column": "g"}, r"data\.group_column: .* found no `g` among `x`, `y`"),
    "group column as feature": (
        {CSV: rows("g,x,y")},
        {"group_column": "g", "features": ["g", "x"]},
        r"data\.group_column: expected a column that is neither learned from nor the target, found `g`; take it out",
    ),
    "target as group column": ({CSV: rows()}, {"group_column": "y"}, r"data\.group_column: .* nor the target, found `y`"),
    "missing group": (
        {CSV: rows("g,x,y", "7,2,", ",2,1")},
        {"group_column": "g"},
        r"row 22 of .*rows\.csv, line 23, column `g`: expected the row's group, found none; fill it in .* or drop the row",
    ),
    "test time column": (
        {CSV: rows("t,x,y"), "test.csv": b"x,y\n1,1\n"},
        {**BOTH, "split": "time", "time_column": "t"},
        r"data\.test_source: expected column `t` in .*test\.csv as in data\.source, found `x`, `y`",
    ),
    "test group column": (
        {CSV: rows("g,x,y"), "test.csv": b"x,y\n1,1\n"},
        {**BOTH, "group_column": "g"},
        r"data\.test_source: expected column `g` in .*test\.csv as in data\.source, found `x`, `y`; add what is missing$",
    ),
    "test class": (
        {CSV: rows(), "test.csv": b"x,y\n1,1\n2,5\n"},
        BOTH,
        r"row 2 of .*test\.csv, line 3, column `y`: expected a class that data\.source has too, `0`, `1`, found 5",
    ),
    "test column": (
        {CSV: rows(), "test.csv": b"X,y\n1,1\n"},
        BOTH,
        r"data\.test_source: expected column `x` in .*test\.csv as in data\.source, found `X`, `y`; add .*, or leave it out",
    ),
    "test text": (
        {CSV: rows(), "test.csv": b"x,y\na,1\n"},
        BOTH,
        r"row 1 of .*test\.csv, line 2, column `x`: expected a number, found 'a'",
    ),
    "test without classes": ({CSV: rows(), "test.csv": b"x,y\n1,\n"}, BOTH, r"test\.csv, column `y`: expected a class in some row"),
    "the same test rows": (
        {CSV: rows(), "test.csv": rows()},
        BOTH,
        r"test\.csv: expected other rows than those of data.source, found the same bytes",
    ),
    "both test rows": (
        {CSV: rows(), "test.csv": b"x,y\n1,1\n"},
        {**BOTH, "test": 0.2},
        r"data\.test: expected none, .* found 0\.2",
    ),
    "notebook target": (
        {},
        {"source": "notebook", "target": "species"},
        r"data\.target: expected a column of notebook, found no `species` among `x1`, `x2`, `y`",
    ),
    "notebook test": (
        {},
        {"source": "notebook", "test": 0.2},
        r"data\.test: expected none, as the test rows are given separately",
    ),
    "notebook test source": (
        {},
        {"source": "notebook", "test_source": "a.csv"},
        r"data\.test_source: expected none, as notebook brings its own test rows",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_is_refused_by_file_column_and_row_and_leaves_nothing(name: str, store: Store, tmp_path: Path) -> None:
    files, settings, message = BROKEN[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    settings = {"source": f"{tmp_path}/rows.csv"} | {
        key: value.replace("{}", str(tmp_path)) if isinstance(value, str) else value for key, value in settings.items()
    }
    with pytest.raises(DataError, match=message):
        build_dataset(DataSettings(**settings), 0, store)
    assert not Path(store.root).exists()


@pytest.mark.parametrize("name", ["empty file", "no target", "a small class", "text among numbers"])
def test_a_table_is_refused_before_a_run_as_in_it(name: str, tmp_path: Path) -> None:
    files, settings, message = BROKEN[name]
    (tmp_path / CSV).write_bytes(files[CSV])
    with pytest.raises(DataError, match=message):
        check_data(DataSettings(source=f"{tmp_path}/rows.csv", **settings), 0)


def test_of_large_files_only_the_header_is_read_before_a_run(tmp_path: Path) -> None:
    (tmp_path / CSV).write_bytes(rows("x,y", "?,1"))
    check_data(DataSettings(source=f"{tmp_path}/rows.csv"), 0, max_bytes=10)
    with pytest.raises(DataError, match=r"data\.target: expected a column of .*rows\.csv, found no `z`"):
        check_data(DataSettings(source=f"{tmp_path}/rows.csv", target="z"), 0, max_bytes=10)
    for name, value in (("features", ["x", "z"]), ("kinds", {"z": "date"}), ("group_column", "z"), ("time_column", "z")):
        with pytest.raises(DataError, match=rf"data\.{name}: expected a column of .*rows\.csv, found no `z`"):
            check_data(DataSettings.model_validate({"source": f"{tmp_path}/rows.csv", name: value}), 0, max_bytes=10)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"x": [[1], [2]]},
            r"row 1 of .*rows\.parquet, column `x`: expected .* found List\(Int64\); leave it out with data\.exclude",
        ),
        ({"x": [b"a", b"b"]}, r"column `x`: .* found Binary"),
        ({"x": [{"a": 1}, {"a": 2}]}, r"column `x`: .* found Struct"),
        ({"x": [1.0, float("inf")]}, r"row 2 of .*rows\.parquet, column `x`: expected a finite number, found inf"),
        ({"x": ["1", "x"]}, r"row 2 of .*rows\.parquet, column `x`: expected a number, found 'x'"),
    ],
)
def test_parquet_columns_that_no_input_can_be_made_of_are_refused(
    columns: dict[str, Any], message: str, store: Store, tmp_path: Path
) -> None:
    pl.DataFrame({**columns, "y": [0, 1]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        build(store, source=f"{tmp_path}/rows.parquet")
    assert not Path(store.root).exists()


def test_parquet_parts_of_other_types_and_torn_ones_are_refused(store: Store, tmp_path: Path) -> None:
    pl.DataFrame({"x": [1, 2], "y": [0, 1]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"x": ["1", "2"], "y": [0, 1]}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(
        DataError, match=r"2\.parquet, column `x`: expected Int64 as in .*1\.parquet, found String; convert the column"
    ):
        build(store, source=str(tmp_path))
    whole = (tmp_path / "1.parquet").read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "2.parquet").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"2\.parquet: expected a whole Parquet file, found a damaged one"):
            build(store, source=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "num_rare"),
    [
        ({}, 1),
        ({"split_by": "features"}, 2),
        ({"group_column": "t"}, 3),
        ({"split": "time", "time_column": "t"}, 3),
        ({"test_source": "test.csv"}, 1),
    ],
)
def test_rows_of_a_class_too_rare_for_every_split_are_left_out_as_if_they_were_not_there(
    store: Store, tmp_path: Path, settings: dict[str, Any], num_rare: int
) -> None:
    without = rows("t,x,y", count=80)
    Path("test.csv").write_bytes(rows("t,x,y", count=81))
    (tmp_path / CSV).write_bytes(without)
    expected = build(store, source=str(tmp_path / CSV), **settings)
    (tmp_path / CSV).write_bytes(without + b"90,5,7\n" * num_rare)
    manifest = build(store, source=str(tmp_path / CSV), **settings)
    assert (expected.rare_classes, manifest.rare_classes) == ({}, {"7": num_rare})
    assert (expected.classes, manifest.classes) == ([0, 1], [0, 1])
    assert manifest.splits == expected.splits
    assert (manifest.rows, manifest.rows_without_target) == (expected.rows, 0)
    told = (
        rf"left out: {num_rare} rows? of classes of y that have too few rows to be in every split: 7 \({num_rare}, (first )?in row"
        rf" 81 of .*{CSV}, line 82\); add rows of these, or correct them if they are mistyped"
    )
    assert re.fullmatch(told, manifest.list_warnings()[0])


def test_a_file_that_seems_to_have_one_column_is_refused_with_what_that_may_mean(store: Store) -> None:
    Path(CSV).write_text("Report of May\n" + "5^x\n" * 20)
    with pytest.raises(DataError, match=r"found no `y` among `.*`; set data\.separator if .*, or remove the lines above"):
        build(store, source=CSV)


@pytest.mark.parametrize(("notation", "newest"), [("%d/%m/%Y", 0), ("%m/%d/%Y", 1)])
def test_the_settings_say_how_the_times_that_order_rows_are_written(notation: str, newest: int) -> None:
    times = ["01/12/2024", "12/01/2024", *(f"02/{2 + row % 2:02}/2024" for row in range(18))]
    pl.DataFrame({"t": times, "x": range(20), "y": [0, 1] * 10}).write_csv(CSV)
    by_time: dict[str, Any] = {"source": CSV, "split": "time", "time_column": "t", "test": 1, "val": 0}
    with pytest.raises(DataError, match=r"column `t`: expected date-times .*, say in data\.formats how they are"):
        draft_dataset(DataSettings(**by_time), 0)
    assert draft_dataset(DataSettings(**by_time, formats={"t": notation}), 0).parts["test"].tolist() == [newest]
