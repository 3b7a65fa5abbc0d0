import gzip
import os
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import polars as pl
import pytest

from refit.data.batches import read_batches
from refit.data.sources import digest_source, read_names, read_table
from refit.errors import DataError


@pytest.mark.parametrize(
    "content",
    [b"a,y\n 1,x\n,z\n", b"\xef\xbb\xbfa,y\n 1,x\n,z\n", b"a,y\r\n 1,x\r\n,z\r\n", gzip.compress(b"a,y\n 1,x\n,z\n")],
    ids=["plain", "byte order mark", "carriage returns", "gzip"],
)
def test_a_csv_file_is_read_as_text_with_or_without_byte_order_mark_and_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("rows.csv.gz" if content[:2] == b"\x1f\x8b" else "rows.csv")
    path.write_bytes(content)
    assert read_table(str(path)).frame.to_dict(as_series=False) == {"a": [" 1", None], "y": ["x", "z"]}


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_files_and_loops(tmp_path: Path) -> None:
    for name, cell in {"b.csv": "3", "a/z.csv": "1", "a/z2.csv.gz": "2", ".c.csv": "9", ".d/e.csv": "9", "notes.txt": "9"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = f"x\n{cell}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    table = read_table(str(tmp_path))
    assert table.frame["x"].to_list() == ["1", "2", "3"]
    assert table.locate(2) == f"row 1 of {tmp_path}/b.csv"
    assert read_table(f"{tmp_path}/**/*.csv*").frame["x"].to_list() == ["1", "2", "3"]
    assert read_table(f"{tmp_path}/[b]*.csv").frame["x"].to_list() == ["3"]


def test_a_part_with_a_header_alone_is_no_mistake_and_the_order_of_columns_is_the_first_part_s(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n")
    (tmp_path / "2.csv").write_text("b,a\n1,2\n")
    assert read_table(str(tmp_path)).frame.to_dict(as_series=False) == {"a": ["2"], "b": ["1"]}


def test_the_digest_covers_the_bytes_and_not_names_or_times(tmp_path: Path) -> None:
    for name, content in {"1.csv": "a\n1\n", "2.csv": "a\n1\n", "3.csv": "a\n2\n"}.items():
        (tmp_path / name).write_text(content)
    os.utime(tmp_path / "2.csv", (0, 0))
    first, second, third = (read_table(f"{tmp_path}/{number}.csv").digest for number in (1, 2, 3))
    assert first == second != third


def test_the_digest_is_that_of_a_file_which_was_written_to_before_it_was_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    read_csv = pl.read_csv

    def write_and_read(*args, **options) -> pl.DataFrame:
        path.write_text("a\n1\n2\n")
        return read_csv(*args, **options)

    monkeypatch.setattr(pl, "read_csv", write_and_read)
    table = read_table(str(path))
    assert (table.frame.height, table.digest) == (2, digest_source(str(path)))


def test_remote_files_are_read_through_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe_file("/folder/1.csv", b"a,b\n1,2\n")
    files.pipe_file("/folder/2.csv", b"a,b\n3,\n")
    for source in ("memory://folder", "memory://folder/*", "memory://f*r"):
        assert read_table(source).frame.to_dict(as_series=False) == {"a": ["1", "3"], "b": ["2", None]}
    with pytest.raises(DataError, match=r"memory://nowhere: expected a file, folder or glob, found nothing there"):
        read_table("memory://nowhere")


def test_parquet_keeps_its_types_and_parts_may_mix_integers_and_floats(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": [0.5]}).write_parquet(tmp_path / "2.parquet")
    assert read_table(str(tmp_path)).frame.to_dict(as_series=False) == {"a": [1.0, 2.0, 0.5]}


def test_a_nameless_index_of_pandas_is_no_column_and_parts_may_lack_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4]})
    frame.to_parquet(tmp_path / "1.parquet")
    frame[frame["a"] != 2].to_parquet(tmp_path / "2.parquet")
    assert "__index_level_0__" in pl.read_parquet_schema(tmp_path / "2.parquet")
    assert read_table(str(tmp_path)).frame.to_dict(as_series=False) == {"a": [1, 2, 3, 4, 1, 3, 4]}
    assert read_names(f"{tmp_path}/2.parquet") == ["a"]


def test_quoted_cells_may_hold_commas_and_line_ends_and_blank_lines_are_rows_without_values(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('a,b\n"x,\ny",1\n\n2,\n')
    assert read_table(f"{tmp_path}/rows.csv").frame.rows() == [("x,\ny", "1"), (None, None), ("2", None)]


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_folders_named_after_a_column_are_read_as_one(tmp_path: Path, end: str) -> None:
    rows = pd.DataFrame(
        {"a": [1, 2, 3, 4], "day": ["2026-11-25", "2026-11-26", "2026-11-26", None], "in": ["a/b", "a/b", "c d", "e"]}
    )
    for (day, place), part in rows.groupby(["day", "in"], dropna=False):
        folder = tmp_path / f"day={'__HIVE_DEFAULT_PARTITION__' if pd.isna(day) else day}" / f"in={quote(place, safe='')}"
        folder.mkdir(parents=True)
        if end == "parquet":
            part[["a"]].to_parquet(folder / "part.parquet")
        else:
            part[["a"]].to_csv(folder / "part.csv", index=False)
    expected = pl.from_pandas(rows).with_columns(pl.col("a").cast(pl.String if end == "csv" else pl.Int64))
    table = read_table(str(tmp_path))
    assert table.frame.equals(expected)
    assert read_names(str(tmp_path)) == expected.columns
    assert read_table(f"{tmp_path}/day=*26/**/*.{end}").frame.equals(expected[1:3])
    assert read_table(f"{tmp_path}/day=2026-11-25/in=a%2Fb/part.{end}").frame.equals(expected[:1])
    for columns in (["in", "a"], ["day"]):
        batches = [batch.frame for batch in read_batches(str(tmp_path), columns, [], 3)]
        assert [batch.height for batch in batches] == [3, 1]
        assert pl.concat(batches).equals(expected.select(columns))
    assert digest_source(str(tmp_path)) == table.digest
    os.rename(tmp_path / "day=2026-11-25", tmp_path / "day=2026-11-24")
    assert digest_source(str(tmp_path)) != table.digest


def test_the_folder_that_the_work_is_done_in_is_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project := tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(project)
    (project / "day=1").mkdir()
    (project / "day=1" / "rows.csv").write_text("a\n2\n")
    for source in ("day=1/rows.csv", "day=*/*", "day=*", str(project)):
        assert read_table(source).frame.to_dict(as_series=False) == {"a": ["2"], "day": ["1"]}
    monkeypatch.chdir("day=1")
    assert read_table("rows.csv").frame.to_dict(as_series=False) == {"a": ["2"]}


def test_a_column_of_a_file_is_taken_before_a_folder_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "a=1").mkdir()
    (tmp_path / "a=1" / "rows.csv").write_text("a,y\n2,x\n")
    assert read_table(str(tmp_path)).frame.to_dict(as_series=False) == {"a": ["2"], "y": ["x"]}
    assert [batch.frame.rows() for batch in read_batches(str(tmp_path), ["y", "a"], [], 9)] == [[("x", "2")]]
