import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables import freezing
from refit.tables.dataset import build_dataset, check_data
from refit.tables.manifest import Manifest, load_manifest, load_test_rows
from refit.tables.preprocessing import apply_columns, fit_columns
from refit.tables.row_identities import convert_rows
from refit.tables.schema import find_reading
from refit.tables.sources.opening import open_source

PENGUINS = Path(__file__).parents[3] / "examples" / "penguins.csv"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


def test_the_notebook_s_tensors_are_taken_as_they_are(store: Store) -> None:
    manifest = build(store)
    x, y = manifest.load_split("train", store)
    assert torch.equal(x, torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]))
    assert torch.equal(y, torch.tensor([0, 0, 0, 1, 1]))
    x, y = manifest.load_split("test", store)
    assert torch.equal(x, torch.tensor([[-0.8, 2.8], [2.6, -1.6]]))
    assert torch.equal(y, torch.tensor([0, 1]))
    assert sorted(manifest.splits) == ["test", "train"]


def test_penguins_are_split_by_class_and_every_row_is_counted(store: Store) -> None:
    manifest = build(store, source=str(PENGUINS), target="sex")
    assert manifest.classes == ["female", "male"]
    assert (manifest.rows, manifest.rows_without_target) == (333, 11)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [115, 118],
        "val": [25, 25],
        "test": [25, 25],
    }
    x, y = manifest.load_split("train", store)
    assert (x.dtype, y.dtype, tuple(x.shape)) == (torch.float32, torch.int64, (233, len(manifest.signature.input_names)))
    assert y.bincount().tolist() == [115, 118]


def prepare_plainly(numbers: dict[str, list[float | None]], categories: dict[str, list[str | None]]) -> np.ndarray:
    """The inputs of columns, in that order, as a few lines of numpy make them of all rows."""
    inputs = []
    for values in numbers.values():
        x = np.array([np.nan if value is None else value for value in values])
        filled = np.where(np.isnan(x), np.nanmedian(x), x)
        inputs.append((filled - filled.mean()) / (filled.std() or 1.0))
        if np.isnan(x).any():
            inputs.append(np.isnan(x))
    for texts in categories.values():
        inputs += [[text == name for text in texts] for name in sorted({text for text in texts if text is not None})]
        inputs.append([False] * len(texts))
        if None in texts:
            inputs.append([text is None for text in texts])
    return np.array(inputs, dtype=np.float64).T.astype(np.float32, order="C")


def test_plain_tables_give_the_bits_that_plain_numpy_gives(tmp_path: Path) -> None:
    with PENGUINS.open() as file:
        penguins = pl.DataFrame(
            [{name: None if cell == "NA" else cell for name, cell in row.items()} for row in csv.DictReader(file)]
        )
    digits = pl.DataFrame(load_digits().data, schema=[f"p{place}" for place in range(64)])
    digits.write_csv(tmp_path / "digits.csv")
    digits.cast(pl.Int64).write_parquet(tmp_path / "digits.parquet")
    measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "year"]
    for source, table, names in (
        (str(PENGUINS), penguins, [*measures, "island", "sex"]),
        (f"{tmp_path}/digits.csv", digits, digits.columns),
        (f"{tmp_path}/digits.parquet", digits, digits.columns),
    ):
        numbers = {name: table[name].cast(pl.Float64).to_list() for name in names if name not in ("island", "sex")}
        expected = prepare_plainly(numbers, {name: table[name].to_list() for name in names if name not in numbers})
        read = {name: find_reading(open_source(source).read().frame[name], ["NA"], str) for name in names}
        frame = pl.DataFrame([values for _, values in read.values()])
        columns = fit_columns(frame, {name: reading.kind for name, (reading, _) in read.items()}, ["NA"])
        for rows in (frame, open_source(source).read().frame):
            assert apply_columns(columns, rows).numpy().tobytes() == expected.tobytes()


def test_all_is_fitted_on_train_rows_only(store: Store, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=200)
    values[160:] = 1e6  # the newest rows, so val and test
    kinds = ["a", "b"] * 80 + ["new"] * 40
    pl.DataFrame({"x": values, "k": kinds, "t": range(200), "y": [0, 1] * 100}).write_csv(tmp_path / "rows.csv")
    manifest = build(store, source=f"{tmp_path}/rows.csv", split="time", time_column="t", val=0.1, test=0.1)
    assert manifest.signature.input_names == ["x", "k=a", "k=b", "k is other"]
    oracle = StandardScaler().fit(values[:160, None])
    for split, rows in {"train": slice(0, 160), "val": slice(160, 180), "test": slice(180, 200)}.items():
        x = manifest.load_split(split, store)[0]
        np.testing.assert_allclose(x[:, 0], oracle.transform(values[rows, None])[:, 0], rtol=1e-6)
        assert bool((x[:, 3] == (split != "train")).all())


def test_raw_rows_scored_later_give_the_frozen_inputs(store: Store, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    start = datetime(2024, 1, 1)
    frame = pl.DataFrame(
        {
            "n": [
                None if hidden else float(value)
                for hidden, value in zip(generator.random(90) < 0.2, generator.normal(size=90), strict=True)
            ],
            "c": [
                None if hidden else "abc"[value]
                for hidden, value in zip(generator.random(90) < 0.2, generator.integers(0, 3, 90), strict=True)
            ],
            "b": (generator.random(90) < 0.5).tolist(),
            "t": [start + timedelta(minutes=int(value)) for value in generator.integers(0, 10**6, 90)],
            "order": range(90),
            "y": ["no", "yes"] * 45,
        }
    )
    frame.write_csv(tmp_path / "rows.csv", null_value="NA")
    frame.write_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        manifest = build(store, source=f"{tmp_path}/{name}", split="time", time_column="order")
        x = torch.cat([manifest.load_split(split, store)[0] for split in ("train", "val", "test")])
        assert torch.equal(apply_columns(manifest.columns, frame), x)
        assert torch.equal(apply_columns(manifest.columns, pl.read_csv(tmp_path / "rows.csv", infer_schema=False)), x)


def test_the_same_bytes_and_settings_give_the_same_digest_wherever_they_are(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(PENGUINS.read_bytes())
    os.utime(copy, (0, 0))
    refs = [build_dataset(DataSettings(source=str(path), target="species"), 0, store) for path in (PENGUINS, copy)]
    other = build_dataset(DataSettings(source=str(copy), target="species"), 1, store)
    assert refs[0] == refs[1] != other
    assert refs[0].size == len(store.get(refs[0].digest))


@pytest.mark.parametrize(
    ("cells", "classes"),
    [(["b", "a"], ["a", "b"]), (["10", "9"], [9, 10]), (["true", "false"], [False, True]), (["1.0", "0.0"], ["0.0", "1.0"])],
)
def test_classes_keep_their_type_through_the_store(store: Store, tmp_path: Path, cells: list[str], classes: list[Any]) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{row},{cells[row % 2]}\n" for row in range(20)))
    found = build(store, source=f"{tmp_path}/rows.csv").classes
    assert found == classes
    assert list(map(type, found)) == list(map(type, classes))


def test_test_rows_may_come_from_files_of_their_own(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(20)))
    (tmp_path / "test.csv").write_text("y,x,more\n1,3,a\n,4,a\n0,5,a\n")
    manifest = build(store, source=f"{tmp_path}/rows.csv", test_source=f"{tmp_path}/test.csv", val=0.0)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 20, "test": 2}
    assert (manifest.rows, manifest.rows_without_target) == (22, 1)
    assert manifest.load_split("test", store)[1].tolist() == [1, 0]
    assert manifest.test_source_digest


def test_columns_without_a_value_are_dropped_with_the_reason(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,empty,y\n" + "".join(f"{row},,{row % 2}\n" for row in range(20)))
    assert build(store, source=f"{tmp_path}/rows.csv").dropped_columns == {"empty": "no value in the train rows"}


def test_a_split_that_is_not_there_cannot_be_loaded(store: Store) -> None:
    with pytest.raises(DataError, match=r"expected a split of the data set, found no `val` among `train`, `test`"):
        build(store).load_split("val", store)


def rows(header: str = "x,y", *extra: str, count: int = 20) -> bytes:
    """Good rows of numbers, 0 and 1 in the last column, then `extra`."""
    width = header.count(",")
    return "\n".join([header, *(",".join([*[str(row)] * width, str(row % 2)]) for row in range(count)), *extra, ""]).encode()


CSV, BOTH = "rows.csv", {"test_source": "{}/test.csv"}
BROKEN: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "no file": ({}, {}, r"/rows\.csv: expected a file, folder or glob, found nothing there; check"),
    "no match": ({}, {"source": "{}/*.csv"}, r"/\*\.csv: expected files ending in .*found none"),
    "another ending": ({"rows.txt": b"x,y\n1,2\n"}, {"source": "{}/rows.txt"}, r"rows\.txt: expected a file ending in \.csv"),
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
    "nameless column": ({CSV: rows("x,,y")}, {}, r"expected a name for every column, found none for column 2; name or remove it"),
    "semicolons": ({CSV: b"x;y\n1,5;a\n"}, {}, r"rows\.csv: expected commas between columns, found `x;y` as the header; write"),
    "short row": ({CSV: rows("x,y", "7")}, {}, r"row 21 of .*rows\.csv, line 22: expected 2 cells as in the header, found 1; mend"),
    "short row after a blank one": (
        {CSV: rows("x,y", "", "7")},
        {},
        r"row 21 of .*rows\.csv, line 23: expected 2 cells .* found 1",
    ),
    "long row": (
        {CSV: rows("x,y", "7,1,2")},
        {},
        r"row 21 of .*rows\.csv, line 22: expected 2 cells as in the header, found 3; mend",
    ),
    "open quote": ({CSV: rows("x,y", '"7,1')}, {}, r"row 21 of .*rows\.csv, line 22: expected quotes in pairs, found .*; mend"),
    "not UTF-8": (
        {CSV: rows("x,y", "7,1") + b"\xff,1\n"},
        {},
        r"row 22 of .*rows\.csv, line 23: expected UTF-8 text, found other bytes",
    ),
    "UTF-16": ({CSV: rows().decode().encode("utf-16")}, {}, r"rows\.csv: expected UTF-8 text, found other bytes in the header"),
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
    "no category": ({CSV: rows()}, {"categorical": ["q"]}, r"data\.categorical: .* found no `q` among `x`, `y`"),
    "target as feature": ({CSV: rows()}, {"features": ["x", "y"]}, r"data\.features: .* found the target `y`; take it out"),
    "target alone": ({CSV: b"y\n0\n1\n"}, {}, r"rows\.csv: expected a column to learn from, found `y`"),
    "another class is a mark": (
        {CSV: b"x,y\n" + b"1,ZA\n2,NA\n" * 9},
        {},
        r"found only `ZA`.*\n.*`NA` counts as a missing value, in 9 rows; take it out of data\.null_values if it is a class",
    ),
    "CSV called Parquet": (
        {"a.parquet": b"x,y\n1,a\n2,b\n"},
        {"source": "{}/a.parquet"},
        r"expected a Parquet file, found another; .* to end in \.csv",
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
        r"row 21 of .*rows\.csv, line 22, column `x`: expected a number, found '3,750' \(and 1 more such rows\); "
        r"mend the value, add it to data\.null_values, or name the column in data\.categorical",
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
        r"row 21 of .*rows\.csv, line 22, column `x`: expected a finite number, found -inf; mend",
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
        r"row 21 of .* column `y`: expected strings, integers or booleans as the target, found 0\.5, as if it were continuous",
    ),
    "test label written otherwise": (
        {CSV: rows(), "test.csv": b"x,y\n1,1\n2,01\n"},
        BOTH,
        r"row 2 of .*test\.csv, line 3, column `y`: expected a whole number as the class, found '01'; mend",
    ),
    "dates as target": (
        {CSV: b"x,y\n1,2020-01-01\n2,2020-01-02\n"},
        {},
        r"column `y`: expected strings, integers or booleans .* found date-times",
    ),
    "text in target": ({CSV: rows("x,y", "1,?", "2,!", "3,-")}, {}, r"column `y`: expected 3 rows or more .* 1 of class '!'"),
    "no values": ({CSV: b"x,y\n" + b",0\n,1\n" * 9}, {}, r"expected a column to learn from, found no value in any"),
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
        r"data\.test: expected a share or a number of rows, as column `t` holds no date-times, found 14d; give one of them",
    ),
    "spans without times": ({CSV: rows()}, {"val": "14d"}, r"data\.val: .* as a `random` split knows no times, found 14d"),
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
        r"row 22 of .*rows\.csv, line 23, column `g`: expected the row's group, found none; fill it in, .* or drop the row",
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
        r"test\.csv: expected test rows of their own, found the same bytes",
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
        r"data\.test: expected none, as test rows come on their own",
    ),
    "notebook test source": (
        {},
        {"source": "notebook", "test_source": "a.csv"},
        r"data\.test_source: expected none, as notebook brings test rows",
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
    for name, value in (("features", ["x", "z"]), ("categorical", ["z"]), ("group_column", "z"), ("time_column", "z")):
        with pytest.raises(DataError, match=rf"data\.{name}: expected a column of .*rows\.csv, found no `z`"):
            check_data(DataSettings.model_validate({"source": f"{tmp_path}/rows.csv", name: value}), 0, max_bytes=10)


FULL = """
import resource, sys
from refit.tables.dataset import build_dataset
from refit.errors import StoreError
from refit.settings import DataSettings
from refit.store.store import Store

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    build_dataset(DataSettings(source=sys.argv[2], target="sex"), 0, Store(sys.argv[1]))
except StoreError as error:
    print(type(error.__cause__).__name__, error)
"""


def test_the_work_to_prepare_columns_grows_with_their_number_and_not_with_its_square(
    store: Store, tmp_path: Path, count_listed: Callable[..., int]
) -> None:
    def prepare(num_columns: int) -> None:
        numbers = np.random.default_rng(0).normal(size=(60, num_columns))
        frame = pl.DataFrame(numbers, schema=[f"c{place}" for place in range(num_columns)])
        frame.with_columns(y=pl.Series(["a", "b", "c"] * 20)).write_csv(tmp_path / "rows.csv")
        manifest = build(store, source=f"{tmp_path}/rows.csv")
        (batch,) = open_source(f"{tmp_path}/rows.csv").iterate([column.name for column in manifest.columns], [], 100)
        assert apply_columns(manifest.columns, batch.frame).shape == (60, num_columns)

    assert count_listed(prepare, 100) <= 11 * count_listed(prepare, 10)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_names_that_look_like_patterns_are_names(store: Store, tmp_path: Path, end: str) -> None:
    source, random = f"{tmp_path}/rows.{end}", np.random.default_rng(0)
    cells = [
        random.normal(size=40),
        ["NA", "red", "Red ", "\u00fc"] * 10,
        [date(2026, 1, 1) + timedelta(day) for day in range(40)],
        [True, False, None, True] * 10,
        ["1.1", "1.10", "2", "$3"] * 10,
        range(40),
        ["u", "v"] * 20,
    ]
    strange, plain = ["*", "^a.*$", "^.*$", "^b$", "^($", "^t$", "^.$"], ["a", "b", "c", "d", "e", "t", "y"]
    found = []
    for *names, time_column, target in (strange, plain):
        frame = pl.DataFrame(dict(zip([*names, time_column, target], cells, strict=True)))
        frame.write_csv(source) if end == "csv" else frame.write_parquet(source)
        split = {"split": "time", "time_column": time_column}
        manifest = build(store, source=source, target=target, features=names, categorical=names[-1:], **split)
        assert ([column.name for column in manifest.columns], manifest.profiles[-1].name) == (names, target)
        (batch,) = open_source(source).iterate(names, [], 100)
        truth, *_ = convert_rows(manifest, load_test_rows(manifest, store))
        tensors = [*manifest.load_split("train", store), apply_columns(manifest.columns, batch.frame)]
        remarks = [remark.partition(": ")[2] for remark in manifest.remarks]
        found.append(([tensor.numpy().tobytes() for tensor in tensors], truth.to_list(), remarks))
    assert found[0] == found[1]


def test_what_the_data_says_is_shown_in_one_short_line(store: Store, tmp_path: Path) -> None:
    long, lines = "x" * 1_000_000, "two\nlines\x1b[31m"
    pl.DataFrame({"a": ["1", "2", long, "3"], "y": ["u", "v"] * 2}).write_csv(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"row 3 of .*: expected a number, found 'x+…x+'; mend") as refused:
        build(store, source=f"{tmp_path}/rows.csv")
    assert len(str(refused.value)) < 500
    pl.DataFrame({lines: range(20), "y": [long, lines] * 10}).write_csv(tmp_path / "rows.csv")
    told = build(store, source=f"{tmp_path}/rows.csv").describe()
    assert any(rf"two\nlines\x1b[31m (10), {long[:53]}…{long[:26]} (10)" in line for line in told)
    assert all(len(line) < 500 and line.isprintable() for line in told)
    with pytest.raises(DataError, match=r"found no `z` among `two\\nlines\\x1b\[31m`, `y`"):
        build(store, source=f"{tmp_path}/rows.csv", target="z")


def test_a_disk_that_takes_no_more_is_an_error_that_can_be_tried_again_and_no_file_is_left(store: Store) -> None:
    command = [sys.executable, "-B", "-c", FULL, store.root, str(PENGUINS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.match(rf"OSError {store.root}/tmp/.*: expected a store .*, found: .*too large.*; free space", printed)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []


def test_splits_are_the_files_that_safetensors_writes_and_do_not_depend_on_the_size_of_blocks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(store, source=str(PENGUINS), target="species")
    for info in whole.splits.values():
        data = store.get(info.digest)
        assert safetensors.torch.save(safetensors.torch.load(data)) == data
    monkeypatch.setattr(freezing, "ROWS_A_BLOCK", 7)
    assert build(store, source=str(PENGUINS), target="species") == whole


def test_a_number_too_large_is_named_by_its_row_in_whatever_block(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [*map(float, range(50)), 1e300]
    pl.DataFrame({"x": numbers, "y": [0, 1] * 25 + [0]}).write_csv(tmp_path / "rows.csv")
    pl.DataFrame({"x": numbers[:50], "y": [0, 1] * 25}).write_csv(tmp_path / "train.csv")
    monkeypatch.setattr(freezing, "ROWS_A_BLOCK", 7)
    with pytest.raises(DataError, match=r"row 51 of .*rows\.csv, line 52, column `x`: expected a number that fits float32"):
        build(store, source=f"{tmp_path}/train.csv", test_source=f"{tmp_path}/rows.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"x": [[1], [2]]},
            r"row 1 of .*rows\.parquet, column `x`: expected .* found List\(Int64\); leave it out with data\.features",
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


def write_dated(path: Path, num_rows: int = 120) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    start = datetime(2024, 1, 1)
    rows = pl.DataFrame(
        {
            "when": [str(start + timedelta(hours=7 * n)) for n in range(num_rows)],
            "x": [f"{value:.6f}" if n % 9 else "NA" for n, value in enumerate(generator.normal(size=num_rows))],
            "k": [text or None for text in generator.choice(["a", "b", ""], num_rows).tolist()],
            "t": [f"2024-02-{1 + n // 10:02}" for n in range(num_rows)],
            "y": ["yes" if n % 3 else "no" for n in range(num_rows)],
        }
    )
    rows.write_csv(path)
    return rows


@pytest.mark.parametrize("split", ["random", "time"])
def test_the_test_rows_are_kept_with_all_their_cells_as_they_were_read(store: Store, tmp_path: Path, split: str) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    manifest = build(store, source=str(tmp_path / "rows.csv"), split=split, time_column="t", features=["when", "x", "k"])
    kept = load_test_rows(manifest, store)
    assert kept.columns == rows.columns
    assert kept.height == manifest.splits["test"].rows == (20 if split == "time" else 18), "no day is divided"
    assert set(kept.rows()) <= set(rows.rows())
    x, y = manifest.load_split("test", store)
    assert torch.equal(apply_columns(manifest.columns, kept), x)
    assert [manifest.classes[index] for index in y] == kept["y"].to_list()


@pytest.mark.parametrize("split", ["random", "time"])
def test_a_row_is_known_again_by_another_data_set(store: Store, tmp_path: Path, split: str) -> None:
    rows = write_dated(tmp_path / "more.csv", 160)
    rows[:120].write_csv(tmp_path / "rows.csv")
    rows.select(pl.lit("column").alias("new"), *reversed(rows.columns)).write_csv(tmp_path / "more.csv")
    before = build(store, source=str(tmp_path / "rows.csv"), split=split, time_column="t")
    raw = load_test_rows(build(store, source=str(tmp_path / "more.csv"), split=split, time_column="t"), store)
    truth, hashes, known_by = convert_rows(before, raw)
    assert truth.to_list() == raw["y"].to_list()
    assert set(known_by.columns) == {"when", "x", "k", "y", "time t"} if split == "time" else {"when", "x", "k", "t", "y"}
    is_old = raw["when"].is_in(rows["when"][:120].to_list()).to_list()
    assert 0 < sum(is_old) < len(is_old) or split == "time"
    known = {name: np.isin(hashes, before.load_identities(name, store).hashes) for name in before.splits}
    assert (known["train"] | known["val"] | known["test"]).tolist() == is_old
    assert sum(map(sum, known.values())) == sum(is_old)
    if split == "time":
        assert not known["train"].any(), "the newest rows were never among the oldest"


def write_visits(path: Path, num_rows: int = 400) -> pl.DataFrame:
    """Rows of 40 customers, of whom each looks the same every day."""
    generator = np.random.default_rng(0)
    customer = generator.integers(0, 40, num_rows)
    looks = generator.normal(size=(40, 3))[customer]
    day = [datetime(2024, 1, 1) + timedelta(days=int(n) // 4) for n in range(num_rows)]
    rows = pl.DataFrame(
        {"customer": customer, **{f"x{i}": looks[:, i] for i in range(3)}, "day": day, "y": [0, 1] * (num_rows // 2)}
    )
    rows.write_csv(path)
    return rows


@pytest.mark.parametrize("split", ["random", "time"])
def test_rows_of_a_customer_stay_on_one_side_and_that_column_is_not_learned_from(store: Store, tmp_path: Path, split: str) -> None:
    visits = write_visits(tmp_path / "visits.csv")
    settings = {"source": str(tmp_path / "visits.csv"), "split": split, "time_column": "day", "features": ["x0", "x1", "x2"]}
    apart = build(store, **settings)
    manifest = build(store, **settings, group_column="customer")
    assert [column.name for column in manifest.columns] == ["x0", "x1", "x2"]
    assert (apart.group_column, manifest.group_column) == (None, "customer")
    groups = {name: manifest.load_identities(name, store).groups for name in manifest.splits}
    assert all(not set(one) & set(other) for one, other in combinations(groups.values(), 2))
    kept = load_test_rows(manifest, store)["customer"].to_list()
    assert len({*zip(kept, groups["test"], strict=True)}) == len({*kept}) == len({*groups["test"]})
    assert manifest.rows == visits.height - sum(manifest.rows_left_out.values())
    assert apart.load_identities("test", store).groups is None


def test_a_group_column_is_no_feature_by_default(store: Store, tmp_path: Path) -> None:
    write_visits(tmp_path / "visits.csv")
    manifest = build(store, source=str(tmp_path / "visits.csv"), group_column="customer")
    assert [column.name for column in manifest.columns] == ["x0", "x1", "x2", "day"]


def test_a_row_is_told_from_its_copies_by_its_number(store: Store, tmp_path: Path) -> None:
    once = pl.DataFrame({"x": range(40), "y": [0, 1, 1, 0] * 10})
    pl.concat([once, once[:20], once[:10], once[30:].with_columns(y=None)]).write_parquet(tmp_path / "rows.parquet")
    once[:5].write_parquet(tmp_path / "test.parquet")
    manifest = build(store, source=str(tmp_path / "rows.parquet"))
    splits = [manifest.load_identities(name, store) for name in manifest.splits]
    numbers = np.concatenate([identities.numbers for identities in splits])
    assert np.bincount(numbers).tolist() == [40, 20, 10]
    assert len(set(np.concatenate([identities.keys for identities in splits]))) == 70
    assert len(set(np.concatenate([identities.hashes for identities in splits]))) == 40
    alone = build(store, source=str(tmp_path / "rows.parquet"), test_source=str(tmp_path / "test.parquet"))
    found = alone.load_identities("test", store)
    assert found.numbers.tolist() == [0] * 5, "in its own table"
    learned = np.concatenate([alone.load_identities(name, store).keys for name in ("train", "val")])
    assert np.isin(found.keys, learned).all()


def test_rows_that_are_left_out_are_counted_and_said(store: Store, tmp_path: Path) -> None:
    write_visits(tmp_path / "visits.csv")
    by_time = {"source": str(tmp_path / "visits.csv"), "split": "time", "time_column": "day", "group_column": "customer"}
    manifest = build(store, **by_time, test="7d", val="7d", gap="3d", window=200)
    left_out = manifest.rows_left_out
    assert (left_out["gap"], left_out["window"]) == (16, 400 - 28 - 28 - 16 - 200)
    assert manifest.splits["test"].rows == 28
    assert manifest.rows + sum(left_out.values()) == 400
    told = manifest.describe()
    assert "left out: 16 rows in the gaps before validation and test" in told
    assert "left out: 128 rows older than the window" in told
    assert f"left out: {left_out['units']} rows whose customer is that of a row in a later split" in told


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
    told = rf"left out: {num_rare} rows? of classes of y with too few to be in every split: 7 \({num_rare}\); add rows of them"
    assert re.fullmatch(told, manifest.list_warnings()[0])


def test_test_rows_that_look_like_train_rows_are_counted_and_more_than_chance_is_a_warning(store: Store, tmp_path: Path) -> None:
    visits = write_visits(tmp_path / "visits.csv")
    settings: dict[str, Any] = {"source": str(tmp_path / "visits.csv"), "features": ["x0", "x1", "x2"]}
    manifest = build(store, **settings)
    count = "59 of 60 test rows with the features of a train row (by chance it would be about 0)"
    assert f"copies: {count}" in manifest.describe()
    (warning,) = manifest.list_warnings()
    assert count in warning
    assert 'data.split_by = "features"' in warning
    assert "data.group_column" in warning
    for remedy in ({"split_by": "features"}, {"group_column": "customer"}):
        mended = build(store, **settings, **remedy)
        assert mended.list_warnings() == []
        assert mended.describe()[3].startswith(f"copies: 0 of {mended.splits['test'].rows} test rows")
    pl.concat([visits[:50], visits[:10].with_columns(pl.col("x0") + 1)]).write_csv(tmp_path / "test.csv")
    apart = build(store, **settings, test_source=str(tmp_path / "test.csv"))
    assert (apart.test_copies.rows, apart.test_copies.is_more_than_chance) == (50, True)
    for remedy in ({"split_by": "features"}, {"group_column": "customer"}):
        mended = build(store, **settings, **remedy, test_source=str(tmp_path / "test.csv"))
        assert mended.list_warnings() == []
        assert mended.rows_left_out["units"] > 100


def test_a_table_of_few_values_has_as_many_copies_as_by_chance(store: Store) -> None:
    manifest = build(store, source=str(PENGUINS), target="sex", features=["island", "species"])
    assert manifest.test_copies.model_dump() == {"rows": 50, "by_chance": 50.0, "is_more_than_chance": False}
    assert manifest.list_warnings() == []


@pytest.mark.parametrize(
    ("split", "changed", "is_known"),
    [
        ("random", "nothing", True),
        ("random", "x", False),
        ("random", "y", False),
        ("random", "t", True),
        ("time", "t", False),
        ("random", "unused", True),
    ],
)
def test_a_row_is_the_same_if_features_class_and_the_time_of_a_split_are(
    store: Store, tmp_path: Path, split: str, changed: str, is_known: bool
) -> None:
    numbers = range(40)
    rows = pl.DataFrame({"x": numbers, "t": numbers, "unused": numbers, "y": [number % 2 for number in numbers]})
    rows.write_csv(tmp_path / "rows.csv")
    settings = {"source": str(tmp_path / "rows.csv"), "features": ["x"], "split": split, "time_column": "t"}
    manifest = build(store, **settings)
    others = rows if changed == "nothing" else rows.with_columns(((1 if changed == "y" else 100) - pl.col(changed)).alias(changed))
    known = np.concatenate([manifest.load_identities(name, store).hashes for name in manifest.splits])
    assert set(np.isin(convert_rows(manifest, others)[1], known)) == {is_known}


def test_a_column_that_is_gone_is_named_when_rows_are_to_be_known_again(store: Store, tmp_path: Path) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    manifest = build(store, source=str(tmp_path / "rows.csv"))
    with pytest.raises(DataError, match=r"expected a column of the table, found no `k` among `when`, `x`, `t`, `y`"):
        convert_rows(manifest, rows.drop("k"))


def test_the_profiles_are_those_of_the_train_rows_and_the_target(store: Store, tmp_path: Path) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    settings = {"source": str(tmp_path / "rows.csv"), "split": "time", "time_column": "t"}
    manifest = build(store, **settings)
    profiles = {profile.name: profile for profile in manifest.profiles}
    kinds = {"when": "datetime", "x": "numeric", "k": "categorical", "y": "categorical"}
    assert {name: profile.kind for name, profile in profiles.items()} == kinds
    train = rows[: manifest.splits["train"].rows]
    numbers = train["x"].cast(pl.Float64, strict=False).drop_nulls()
    assert (profiles["x"].marks[0], profiles["x"].marks[-1]) == (numbers.min(), numbers.max())
    assert profiles["x"].missing == pytest.approx(1 - numbers.len() / train.height)
    assert profiles["y"].counts == {"yes": 53, "no": 27}
    assert {profile.num_rows for profile in manifest.profiles} == {80} == {train.height}


def test_a_data_set_is_described_in_lines_that_move_no_terminal_and_break_no_log(store: Store, tmp_path: Path) -> None:
    labels = ["\x1b[2Ja\nb", "c" * 200_000]
    frame = pl.DataFrame({"x\x1b[2J": range(40), "no\nne": [None] * 40, "y": labels * 20})
    frame.write_parquet(tmp_path / "rows.parquet")
    lines = build(store, source=str(tmp_path / "rows.parquet")).describe()
    assert r"classes of y: \x1b[2Ja\nb (20), ccccc" in "".join(lines)
    assert any(line.startswith(r"dropped: column no\nne, ") for line in lines)
    assert not [line for line in lines if len(line) > 200 or "\x1b" in line or "\n" in line]
