import gzip
import os
import zipfile
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.sources import csv_files, file_source, files
from refit.tables.sources.located_rows import join_parts
from refit.tables.sources.opening import open_source


@pytest.mark.parametrize(
    "content",
    [b"a,y\n 1,x\n,z\n", b"\xef\xbb\xbfa,y\n 1,x\n,z\n", b"a,y\r\n 1,x\r\n,z\r\n", gzip.compress(b"a,y\n 1,x\n,z\n")],
    ids=["plain", "byte order mark", "carriage returns", "gzip"],
)
def test_a_csv_file_is_read_as_text_with_or_without_byte_order_mark_and_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("rows.csv.gz" if content[:2] == b"\x1f\x8b" else "rows.csv")
    path.write_bytes(content)
    assert open_source(str(path)).read().frame.to_dict(as_series=False) == {"a": [" 1", None], "y": ["x", "z"]}


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_files_and_loops(tmp_path: Path) -> None:
    for name, cell in {"b.csv": "3", "a/z.csv": "1", "a/z2.csv.gz": "2", ".c.csv": "9", ".d/e.csv": "9", "notes.txt": "9"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = f"x\n{cell}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    table = open_source(str(tmp_path)).read()
    assert table.frame["x"].to_list() == ["1", "2", "3"]
    assert table.locate(2) == f"row 1 of {tmp_path}/b.csv, line 2"
    assert open_source(f"{tmp_path}/**/*.csv*").read().frame["x"].to_list() == ["1", "2", "3"]
    assert open_source(f"{tmp_path}/[b]*.csv").read().frame["x"].to_list() == ["3"]


def test_a_part_with_a_header_alone_is_no_mistake_and_the_order_of_columns_is_the_first_part_s(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n")
    (tmp_path / "2.csv").write_text("b,a\n1,2\n")
    assert open_source(str(tmp_path)).read().frame.to_dict(as_series=False) == {"a": ["2"], "b": ["1"]}


def test_the_digest_covers_the_bytes_and_not_names_or_times(tmp_path: Path) -> None:
    for name, content in {"1.csv": "a\n1\n", "2.csv": "a\n1\n", "3.csv": "a\n2\n"}.items():
        (tmp_path / name).write_text(content)
    os.utime(tmp_path / "2.csv", (0, 0))
    first, second, third = (open_source(f"{tmp_path}/{number}.csv").read().digest for number in (1, 2, 3))
    assert first == second != third


def test_the_digest_is_that_of_a_file_which_was_written_to_before_it_was_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    iterate_csv = csv_files.iterate_csv

    def write_and_read(*args) -> Iterator[pl.DataFrame]:
        path.write_text("a\n1\n2\n")
        return iterate_csv(*args)

    monkeypatch.setattr(csv_files, "iterate_csv", write_and_read)
    table = open_source(str(path)).read()
    assert (table.frame.height, table.digest) == (2, open_source(str(path)).digest())


def test_remote_files_are_read_through_fsspec() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/folder/1.csv", b"a,b\n1,2\n")
    system.pipe_file("/folder/2.csv", b"a,b\n3,\n")
    for source in ("memory://folder", "memory://folder/*", "memory://f*r"):
        assert open_source(source).read().frame.to_dict(as_series=False) == {"a": ["1", "3"], "b": ["2", None]}
    with pytest.raises(DataError, match=r"memory://nowhere: expected a file, folder or glob, found nothing there"):
        open_source("memory://nowhere").read()


def test_parquet_keeps_its_types_and_parts_may_mix_integers_and_floats(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1, 2]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"a": [0.5]}).write_parquet(tmp_path / "2.parquet")
    assert open_source(str(tmp_path)).read().frame.to_dict(as_series=False) == {"a": [1.0, 2.0, 0.5]}


def test_a_nameless_index_of_pandas_is_no_column_and_parts_may_lack_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3, 4]})
    frame.to_parquet(tmp_path / "1.parquet")
    frame[frame["a"] != 2].to_parquet(tmp_path / "2.parquet")
    assert "__index_level_0__" in pl.read_parquet_schema(tmp_path / "2.parquet")
    assert open_source(str(tmp_path)).read().frame.to_dict(as_series=False) == {"a": [1, 2, 3, 4, 1, 3, 4]}
    assert open_source(f"{tmp_path}/2.parquet").names() == ["a"]


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
    table = open_source(str(tmp_path)).read()
    assert table.frame.equals(expected)
    assert open_source(str(tmp_path)).names() == expected.columns
    assert open_source(f"{tmp_path}/day=*26/**/*.{end}").read().frame.equals(expected[1:3])
    assert open_source(f"{tmp_path}/day=2026-11-25/in=a%2Fb/part.{end}").read().frame.equals(expected[:1])
    for columns in (["in", "a"], ["day"]):
        batches = [batch.frame for batch in open_source(str(tmp_path)).iterate(columns, [], 3)]
        assert [batch.height for batch in batches] == [3, 1]
        assert pl.concat(batches).equals(expected.select(columns))
    assert open_source(str(tmp_path)).digest() == table.digest
    os.rename(tmp_path / "day=2026-11-25", tmp_path / "day=2026-11-24")
    assert open_source(str(tmp_path)).digest() != table.digest


def test_the_folder_that_the_work_is_done_in_is_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project := tmp_path / "lr=0.1").mkdir()
    monkeypatch.chdir(project)
    (project / "day=1").mkdir()
    (project / "day=1" / "rows.csv").write_text("a\n2\n")
    for source in ("day=1/rows.csv", "day=*/*", "day=*", str(project)):
        assert open_source(source).read().frame.to_dict(as_series=False) == {"a": ["2"], "day": ["1"]}
    monkeypatch.chdir("day=1")
    assert open_source("rows.csv").read().frame.to_dict(as_series=False) == {"a": ["2"]}


@pytest.mark.parametrize("own", ["2020", " 2020", "2020.0", 2020])
def test_a_folder_named_after_a_column_of_its_files_must_say_the_same(tmp_path: Path, own: str | int) -> None:
    (tmp_path / "year=2020").mkdir()
    write = pl.DataFrame.write_csv if isinstance(own, str) else pl.DataFrame.write_parquet
    end = "csv" if isinstance(own, str) else "parquet"
    write(pl.DataFrame({"year": [own] * 3, "y": list("abc")}), tmp_path / "year=2020" / f"rows.{end}")
    assert open_source(str(tmp_path)).read().frame["year"].to_list() == [own] * 3
    write(pl.DataFrame({"year": [own, own, None], "y": list("abc")}), tmp_path / "year=2020" / f"rows.{end}")
    message = r"row 3 of .*year=2020/rows\.\w+(, line 4)?, column `year`: expected 2020, as its folder says, found None; rename"
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path)).read()
    with pytest.raises(DataError, match=message):
        list(open_source(str(tmp_path)).iterate(["y", "year"], [], 9))


def test_only_folders_right_above_a_file_stand_for_columns(tmp_path: Path) -> None:
    (folder := tmp_path / "run=5" / "rows" / "day=1").mkdir(parents=True)
    (folder / "rows.csv").write_text("a\n2\n")
    for source, outer in {
        "run=5/rows": (),
        "run=5/rows/day=1": ("day",),
        "run=5/*/day=*": (),
        "run=5/rows/day=1/*": ("day",),
    }.items():
        table = open_source(f"{tmp_path}/{source}").read()
        assert table.frame.to_dict(as_series=False) == {"a": ["2"], "day": ["1"]}
        assert table.outer == outer


def test_files_in_folders_of_spark_s_own_are_left_out_and_named(tmp_path: Path) -> None:
    for name in ("1.csv", "_temporary/0/2.csv", "_temporary/0/3.csv", "_SUCCESS"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    table = open_source(str(tmp_path)).read()
    assert table.frame.height == 1
    assert table.remarks == (
        f"left out: {tmp_path}/_temporary/0/2.csv and 1 more, as folders that begin with `_` are not read;"
        " move files that should be read",
    )


def test_types_that_mean_the_same_become_one_column(tmp_path: Path) -> None:
    noon = datetime(2020, 1, 1, 12)
    zoned = pl.Series([noon]).dt.replace_time_zone("UTC")
    columns = {
        "t": (pl.Series([noon], dtype=pl.Datetime("ns")), pl.Series([noon], dtype=pl.Datetime("us")), [noon] * 2),
        "d": (pl.Series([noon.date()]), pl.Series([noon]), [datetime(2020, 1, 1), noon]),
        "z": (zoned, zoned.dt.convert_time_zone("Europe/Berlin").cast(pl.Datetime("ns", "Europe/Berlin")), [zoned[0]] * 2),
        "s": (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"]), ["a", "b"]),
        "n": (pl.Series([1]), pl.Series([0.5]), [1.0, 0.5]),
        "none": (pl.Series([None]), pl.Series(["b"]), [None, "b"]),
    }
    for place in (0, 1):
        pl.DataFrame({name: both[place] for name, both in columns.items()}).write_parquet(tmp_path / f"{place}.parquet")
    found = open_source(str(tmp_path)).read().frame
    assert found.to_dict(as_series=False) == {name: both[2] for name, both in columns.items()}


def test_the_work_to_join_parts_grows_with_their_columns_and_not_with_the_square(count_listed) -> None:
    def join(num_columns: int) -> None:
        names = [f"c{place}" for place in range(num_columns)]
        parts = [pl.DataFrame({name: [cell] for name in order}) for order, cell in ((names, 0), (names[::-1], 0.5))]
        assert join_parts(["0.csv", "1.csv"], parts).width == num_columns

    assert count_listed(join, 100) <= 11 * count_listed(join, 10)


def test_a_first_column_without_a_name_is_an_index_in_any_format(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    frame.to_csv(tmp_path / "rows.csv")
    pl.DataFrame({"": [0, 1], "a": [1, 2]}).write_parquet(tmp_path / "rows.parquet")
    for end, cells in {"csv": ["1", "2"], "parquet": [1, 2]}.items():
        source = f"{tmp_path}/rows.{end}"
        table = open_source(source).read()
        assert table.frame.to_dict(as_series=False) == {"a": cells}
        assert table.remarks == (
            f"left out: the first column of {source}, which has no name, as when pandas and R write row numbers;"
            " name it to learn from it",
        )
        assert open_source(source).names() == ["a"]
        assert [batch.frame.columns for batch in open_source(source).iterate(["a"], [], 9)] == [["a"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([" x", "x "], r"expected each column once, found `x` as columns 1 and 2"),
        ([], r"expected columns with names, found none"),
    ],
)
def test_the_names_of_parquet_columns_are_checked_as_those_of_csv(tmp_path: Path, names: list[str], message: str) -> None:
    pq.write_table(pa.table([pa.array([1])] * len(names), names=names), tmp_path / "rows.parquet")
    source = open_source(f"{tmp_path}/rows.parquet")
    for read in (source.read, source.names, lambda: list(source.iterate(["x"], [], 9))):
        with pytest.raises(DataError, match=message):
            read()


def test_parquet_pages_are_compared_with_their_checksums(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    numbers = np.random.default_rng(0).normal(size=100)
    pq.write_table(pa.table({"x": numbers}), path, write_page_checksum=True, compression="none", use_dictionary=False)
    assert open_source(str(path)).read().frame["x"].to_list() == numbers.tolist()
    data = bytearray(path.read_bytes())
    data[data.index(numbers[50].tobytes())] ^= 1
    path.write_bytes(data)
    source = open_source(str(path))
    for read in (source.read, lambda: list(source.iterate(["x"], [], 9))):
        with pytest.raises(
            DataError, match=r"rows\.parquet: expected a whole Parquet file, found a damaged one \(.*CRC.*\); write"
        ):
            read()


def test_decimals_of_256_bits_are_numbers(tmp_path: Path) -> None:
    values = pa.array([Decimal("1.5"), None], pa.decimal256(50, 2))
    pq.write_table(pa.table({"x": values}), tmp_path / "rows.parquet")
    assert open_source(f"{tmp_path}/rows.parquet").read().frame["x"].to_list() == [1.5, None]


def test_what_is_no_table_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    os.symlink(tmp_path / "gone.csv", tmp_path / "link.csv")
    os.symlink(tmp_path / "loop.csv", tmp_path / "loop.csv")
    (tmp_path / "model.bin").write_bytes(b"\x01\0\x02\0")
    with zipfile.ZipFile(tmp_path / "rows.xlsx", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "book.csv").write_bytes((tmp_path / "rows.xlsx").read_bytes())
    (tmp_path / "page.csv").write_text("<!DOCTYPE html>\n<p>Not found, sorry</p>\n")
    expected = {
        "pipe.csv": r"expected a file, folder or glob, found a named pipe; write what comes from it to a file first",
        "/dev/null": r"expected a file, folder or glob, found a device; write what comes from it",
        "link.csv": r"expected a file, folder or glob, found a broken link to .*gone\.csv; correct the link",
        "loop.csv": r"found a broken link to .*loop\.csv; correct the link",
        "rows.xlsx": r"expected CSV or Parquet, found a zip archive; unpack it",
        "book.csv": r"expected CSV or Parquet, found a zip archive; unpack it",
        "page.csv": r"expected CSV or Parquet, found HTML; save its table as CSV",
        "model.bin": r"expected CSV or Parquet, found bytes that are no text; save the table as CSV or Parquet",
        "gone.csv": r"expected a file, folder or glob, found nothing there; check the path",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / name)).read()
    with pytest.raises(DataError, match=r"expected the path or URL of a file, folder or glob, found an empty text; name one"):
        open_source("").read()


def write_zeros(path: Path) -> str:
    """A million rows of zeros: 4 MB of text in 4 kB of gzip or Parquet."""
    if path.suffix == ".parquet":
        zeros = pl.repeat(0, 1_000_000, eager=True)
        pl.DataFrame({"x": zeros, "y": zeros.cast(pl.String)}).write_parquet(path)
    else:
        text = b"x,y\n" + b"0,0\n" * 1_000_000
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def allow(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    for module in (file_source, files):
        monkeypatch.setattr(module, "find_free_memory", lambda: free)


@pytest.mark.parametrize("name", ["zeros.csv.gz", "zeros.csv", "zeros.parquet"])
def test_a_table_that_memory_cannot_hold_is_refused(tmp_path, monkeypatch, name):
    source = write_zeros(tmp_path / name)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1 << 20)
    allow(monkeypatch, 19_000_000)
    with pytest.raises(DataError, match=rf"{source}: expected a table that fits into memory, of which 0\.0 GB are free, found a"):
        open_source(source).read()
    allow(monkeypatch, 40_000_000)
    assert open_source(source).read().frame.height == 1_000_000


def test_a_file_far_away_that_memory_cannot_hold_is_not_fetched(monkeypatch):
    fsspec.filesystem("memory").pipe_file("/bombs/rows.csv", b"x,y\n" + b"0,0\n" * 1000)
    allow(monkeypatch, 4000)
    with pytest.raises(DataError, match=r"/bombs/rows\.csv: expected a table that fits into memory"):
        open_source("memory://bombs/rows.csv").read()


def test_running_out_of_memory_names_the_source(monkeypatch):
    monkeypatch.setattr(file_source, "find_files", lambda _: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(DataError, match=r"rows\.csv: expected a table that fits into memory"):
        open_source("rows.csv").read()


@pytest.mark.parametrize("text", ["x,y\n{}\n", "{}", "x,y\n1,2\n3,{}", 'x,y\n1,"{}"\n'])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_row_that_never_ends_is_refused(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(csv_files, "MAX_ROW_BYTES", 10_000)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1000)
    data = text.format("z" * 20_000).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = open_source(str(path))
    for read in (source.read, lambda: list(source.iterate([], [], 9))):
        with pytest.raises(
            DataError, match=rf"{path}: expected rows of less than 10000 bytes, found a longer one; correct its quotes"
        ):
            read()


def test_rows_that_end_are_read_however_large_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_ROW_BYTES", 2000)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 1000)
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n" + f"1,{'z' * 1500}\n" * 20)
    assert open_source(str(path)).read().frame.height == 20


def test_a_header_that_is_repeated_among_the_rows_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n3,4\na, b \n5,6\na,b\n")
    table = open_source(str(path)).read()
    assert table.frame.rows() == [("1", "2"), ("3", "4"), ("5", "6")]
    assert [table.locate(row) for row in (1, 2)] == [f"row 2 of {path}, line 3", f"row 4 of {path}, line 5"]
    assert table.remarks == (f"left out: row 3 of {path}, line 4 and 1 more, where the header is repeated",)
    assert open_source(str(path)).sample(10**6, 10**6).frame.equals(table.frame)
    with pytest.raises(DataError, match=r"row 3 of .*rows\.csv, line 4: expected a row, found the header again; remove it"):
        list(open_source(str(path)).iterate(["a"], [], 10))


@pytest.mark.parametrize("content", ["a\n1\na\n", "a,b\n1,2\na,b\na,c\n", "a,b\n1,2\na,b\nc,b\n"])
def test_names_of_columns_may_be_values(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.csv").write_text(content)
    assert open_source(f"{tmp_path}/rows.csv").read().frame.height == content.count("\n") - 1


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_files_may_lack_columns_if_they_are_united(tmp_path: Path, end: str) -> None:
    frames = [pl.DataFrame({"a": [1, 2], "y": [0, 1]}), pl.DataFrame({"y": [1], "b": [5]}), pl.DataFrame({"a": [3], "y": [0]})]
    for number, frame in enumerate(frames):
        path = tmp_path / f"{number}.{end}"
        frame.write_csv(path) if end == "csv" else frame.write_parquet(path)
    source = open_source(str(tmp_path), DataSettings(union=True))
    table = source.read()
    expected = pl.concat(frames, how="diagonal")
    assert table.frame.equals(expected.cast(pl.String) if end == "csv" else expected)
    assert source.sample(10**6, 10**6).frame.equals(table.frame)
    assert source.names() == ["a", "y", "b"]
    assert table.remarks == (
        f"column `a`: {tmp_path}/1.{end} lacks it, so that its values are missing there",
        f"column `b`: {tmp_path}/0.{end} and 1 more lack it, so that its values are missing there",
    )
    message = r"1\.\w+: expected the same columns as in .*, found no column `a`; add it, or set data\.union to take its values"
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path)).read()
