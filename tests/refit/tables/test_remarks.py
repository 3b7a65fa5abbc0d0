import re
from pathlib import Path
from typing import Any

import polars as pl

from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset, load_manifest


def build_lines(store: Store, columns: dict[str, Any], end: str = "csv", **settings: Any) -> list[str]:
    """What is said of a table, whose rows are of two classes in turn."""
    num_rows = len(next(iter(columns.values())))
    frame = pl.DataFrame({**columns, "y": ["a", "b"] * (num_rows // 2)})
    frame.write_csv("rows.csv") if end == "csv" else frame.write_parquet("rows.parquet")
    manifest = load_manifest(build_dataset(DataSettings(source=f"rows.{end}", **settings), 0, store), store)
    assert manifest.describe()[len(manifest.describe()) - len(manifest.remarks) :] == manifest.remarks
    return manifest.remarks


def test_a_line_a_column_says_how_text_was_read_and_plain_columns_have_none(store: Store) -> None:
    columns = {"price": [f"${1000 + n:,}" for n in range(20)], "x": list(range(20)), "k": ["u", "v"] * 10}
    assert build_lines(store, columns) == ["column `price`: `$1,000` is read as 1000"]
    (line,) = build_lines(store, columns, categorical=["price"])
    assert re.match(r"column `price`: 1\d texts in the train rows, none of them twice, so that nothing is learned from it", line)


def test_columns_of_which_nothing_is_learned_are_named(store: Store) -> None:
    columns = {
        "x": list(range(200)),
        "name": [f"person {n}" for n in range(200)],
        "five": [5] * 200,
        "some": ["u" if n % 3 else None for n in range(200)],
    }
    name, *others = build_lines(store, columns)
    assert re.match(r"column `name`: 1\d\d texts in the train rows, none of them twice, .*; leave it out with data\.features", name)
    assert others == [
        "column `five`: `5` in all train rows, so that nothing is learned from it",
        "column `some`: `u` in all train rows that have a value, so that only its absence is learned from",
    ]


def test_a_mark_that_may_be_a_category_is_told(store: Store) -> None:
    assert build_lines(store, {"country": ["NA", "DE", "FR", ""] * 5, "x": list(range(20))}) == [
        "column `country`: `NA` counts as a missing value, in 5 rows; take it out of data.null_values if it is a category"
    ]


def test_categories_that_share_an_input_are_counted(store: Store) -> None:
    (line,) = build_lines(store, {"level": [f"level {n % 300}" for n in range(3000)], "x": list(range(3000))})
    assert re.match(
        r"column `level`: 300 categories in the train rows, of which the 100 most frequent have inputs of their own;"
        r" all others, in [56]\d% of the rows, share one",
        line,
    )


def test_numbers_that_become_one_float_are_counted(store: Store) -> None:
    whole = [2**53 + n for n in range(20)]
    long = [f"0.{'1' * 22}{n:02}" for n in range(20)]
    ending = (
        "have more digits than a float keeps, and become one with others; name the column in data.categorical if they are codes"
    )
    assert build_lines(store, {"id": whole, "x": list(range(20))}, "parquet") == [
        f"column `id`: 9 of its values, such as `{2**53 + 19}`, {ending}"
    ]
    assert build_lines(store, {"id": whole, "x": list(range(20))}) == [
        f"column `id`: 9 of its values, such as `{2**53 + 19}`, {ending}"
    ]
    (line,) = build_lines(store, {"decimal": long, "x": list(range(20))})
    assert f"19 of its values, such as `{long[0]}`, {ending}" in line


def test_folders_above_the_source_are_no_columns_but_where_they_are_asked_for(store: Store, tmp_path: Path) -> None:
    (folder := tmp_path / "run=5").mkdir()
    pl.DataFrame({"x": range(20), "y": [0, 1] * 10}).write_csv(folder / "rows.csv")
    source = str(folder / "rows.csv")
    manifest = load_manifest(build_dataset(DataSettings(source=source), 0, store), store)
    assert manifest.signature.input_names == ["x"]
    assert manifest.remarks == [
        f"left out: column `run`, as a folder above {source} says the same of all rows; name it in data.features to learn from it"
    ]
    asked = load_manifest(build_dataset(DataSettings(source=source, features=["x", "run"]), 0, store), store)
    assert asked.input_names == ["x", "run"]


def test_of_many_lines_the_log_shows_some(store: Store) -> None:
    columns = {f"c{place}": [place] * 20 for place in range(40)} | {"x": list(range(20))}
    pl.DataFrame({**columns, "y": ["a", "b"] * 10}).write_csv("rows.csv")
    manifest = load_manifest(build_dataset(DataSettings(source="rows.csv"), 0, store), store)
    assert len(manifest.remarks) == 40
    assert manifest.describe()[-2:] == [manifest.remarks[29], "10 more such lines are in the version's manifest.json"]
