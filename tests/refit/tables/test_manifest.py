from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rows import write_visits

from refit.errors import DataError
from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import Manifest
from refit.tables.table_examples import load_manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


@pytest.mark.parametrize(
    ("cells", "classes"),
    [(["b", "a"], ["a", "b"]), (["10", "9"], [9, 10]), (["true", "false"], [False, True]), (["1.0", "0.0"], ["0.0", "1.0"])],
)
def test_classes_keep_their_type_through_the_store(store: Store, tmp_path: Path, cells: list[str], classes: list[Any]) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{row},{cells[row % 2]}\n" for row in range(20)))
    found = build(store, source=f"{tmp_path}/rows.csv").classes
    assert found == classes
    assert list(map(type, found)) == list(map(type, classes))


def test_a_split_that_is_not_there_cannot_be_loaded(store: Store) -> None:
    with pytest.raises(DataError, match=r"expected a split of the data set, found no `val` among `train`, `test`"):
        build(store).load_split("val", store)


def test_what_the_data_says_is_shown_in_one_short_line(store: Store, tmp_path: Path) -> None:
    long, lines = "x" * 1_000_000, "two\nlines\x1b[31m"
    pl.DataFrame({"a": ["1", "2", long, "3"], "y": ["u", "v"] * 2}).write_csv(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"row 3 of .*: expected a number, found 'x+…x+'; correct") as refused:
        build(store, source=f"{tmp_path}/rows.csv")
    assert len(str(refused.value)) < 500
    pl.DataFrame({lines: range(20), "y": [long, lines] * 10}).write_csv(tmp_path / "rows.csv")
    told = build(store, source=f"{tmp_path}/rows.csv").describe()
    assert any(rf"two\nlines\x1b[31m (10), {long[:53]}…{long[:26]} (10)" in line for line in told)
    assert all(len(line) < 500 and line.isprintable() for line in told)
    with pytest.raises(DataError, match=r"found no `z` among `two\\nlines\\x1b\[31m`, `y`"):
        build(store, source=f"{tmp_path}/rows.csv", target="z")


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
    assert f"left out: {left_out['units']} rows whose customer equals that of a row in a later split" in told


def test_test_rows_that_look_like_train_rows_are_counted_and_more_than_chance_is_a_warning(store: Store, tmp_path: Path) -> None:
    visits = write_visits(tmp_path / "visits.csv")
    settings: dict[str, Any] = {"source": str(tmp_path / "visits.csv"), "features": ["x0", "x1", "x2"]}
    manifest = build(store, **settings)
    count = "59 of 60 test rows have the features of a train row (about 0 would by chance)"
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


def test_a_data_set_is_described_in_lines_that_move_no_terminal_and_break_no_log(store: Store, tmp_path: Path) -> None:
    labels = ["\x1b[2Ja\nb", "c" * 200_000]
    frame = pl.DataFrame({"x\x1b[2J": range(40), "no\nne": [None] * 40, "y": labels * 20})
    frame.write_parquet(tmp_path / "rows.parquet")
    lines = build(store, source=str(tmp_path / "rows.parquet")).describe()
    assert r"classes of y: \x1b[2Ja\nb (20), ccccc" in "".join(lines)
    assert any(line.startswith(r"dropped: column no\nne, ") for line in lines)
    assert not [line for line in lines if len(line) > 200 or "\x1b" in line or "\n" in line]


def test_the_first_columns_are_described_a_line_each_unless_all_are_plain_numbers(store: Store, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "price": [f"{n},5 €" if n % 9 else None for n in range(80)],
        "seen": [f"{n % 28 + 1}.12.2024" for n in range(80)],
        "land": ["DE"] * 80,
        **{f"x{n}": [(n + m) % 7 for m in range(80)] for n in range(1, 30)},
        "town": ["Bonn", "Ulm"] * 40,
    }
    pl.DataFrame({**columns, "y": ["a", "b", "b", "a"] * 20}).write_csv(tmp_path / "rows.csv")
    manifest = build(store, source=f"{tmp_path}/rows.csv")
    lines = [line for line in manifest.describe() if line.startswith("- ")]
    missing = manifest.profiles[0].num_missing
    assert lines[:4] == [
        f"- price: number, a number written as `1234,5` with `€`, missing in {missing} train rows, 2 inputs",
        "- seen: date, a date written as `31.12.2026`, 4 inputs",
        "- land: constant, 2 inputs",
        "- x1: number, 1 input",
    ]
    assert lines[30:] == ["- and 2 number, 1 category columns more"]
    plain = build(store, source=f"{tmp_path}/rows.csv", features=["x1", "x2"]).describe()
    assert not [line for line in plain if line.startswith("- ")]
