import csv
import gzip
import io
import random
from pathlib import Path

import polars as pl
import pytest

from refit.errors import DataError
from refit.tables.sources import csv_files
from refit.tables.sources.csv_files import iterate_csv, read_header

PIECES = [
    "1",
    "2.5",
    "a b",
    " x ",
    "",
    "",
    '"quoted"',
    '"a, b"',
    '"two\nlines"',
    '"blank\n\nline"',
    '"say ""hi"""',
    '""',
    "é",
    '5" pipe',
    'x"',
]


def read(content: bytes) -> list[tuple[str | None, ...]]:
    return [row for frame in iterate_csv(content, "rows.csv") for row in frame.rows()]


def read_by_csv(content: bytes) -> list[tuple[str | None, ...]]:
    """What Python's `csv` reads, without blank lines."""
    _, *rows = filter(None, csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    return [tuple(cell or None for cell in row) for row in rows]


@pytest.mark.parametrize("seed", range(60))
def test_rows_are_those_of_python_s_csv_wherever_blocks_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(seed)
    pieces = generator.sample(PIECES, 4)
    width, end = generator.choice([1, 2, 5]), generator.choice(["\n", "\n", "\r\n"] if seed % 10 else ["\r"])
    lines = [",".join(f"c{place}" for place in range(width))]
    for _ in range(generator.choice([0, 1, 30])):
        line = ",".join(generator.choice(pieces) for _ in range(width))
        lines += [line or '""', *[""] * (generator.random() < 0.1 * (seed % 3))]
    content = end.join(lines).encode() + end.encode() * generator.choice([0, 1, 1, 2])
    for block_bytes in (2, 10, 40, 100, 300, 10_000):
        monkeypatch.setattr(csv_files, "BLOCK_BYTES", block_bytes)
        assert read(content) == read_by_csv(content)
        assert read(gzip.compress(b"\xef\xbb\xbf" + content)) == read_by_csv(content)


def test_a_line_without_a_sign_is_no_row_but_one_of_commas_is() -> None:
    assert read(b'\n\na,b\n\n"x,\n\ny",1\n\n\r\n2,\n,\n\n\n') == [("x,\n\ny", "1"), ("2", None), (None, None)]
    assert read(b"a,b\r\r\n1,2\r\r\n3,4\r\r\n") == [("1", "2"), ("3", "4")]
    assert read(b'a\n1\n\n""\n2\n\n') == [("1",), (None,), ("2",)]


def test_quotes_within_unquoted_cells_are_kept() -> None:
    assert read(b'a,b\n5" pipe,3\n6" pipe,"x, y"\n7",4\n') == [('5" pipe', "3"), ('6" pipe', "x, y"), ('7"', "4")]


def test_excel_s_line_that_names_the_comma_is_skipped() -> None:
    assert read(b"\xef\xbb\xbfsep=,\r\na,b\r\n1,2\r\n") == [("1", "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'a,b\n1,x\n2,"say \\"hi\\" now"\n',
            r'row 2 of rows\.csv, line 3: expected quotes .* to be doubled, found \\"; write them as ""',
        ),
        (
            b'a,b\n1,"x" y\n',
            r"row 1 of rows\.csv, line 2: expected quotes in pairs, found a cell that goes on after its closing quote",
        ),
        (b'a,b\n1,x\n\n"2\n,x\n', r"row 2 of rows\.csv, line 4: expected quotes in pairs, found one that is never closed; correct"),
        (b'a,b\n"two\nlines",x\n\n7\n', r"row 2 of rows\.csv, line 5: expected 2 cells as in the header, found 1; correct the row"),
        (b'a,b\n"1",\n"2"\n', r"row 2 of rows\.csv, line 3: expected 2 cells as in the header, found 1; correct the row"),
        (
            "a,b\né,2\nü,".encode() + b"\xff\n",
            r"row 2 of rows\.csv, line 3, column `b`: expected text in UTF-8, found the bytes '\\xff'; correct the row",
        ),
        (
            b"a,b\n\xe9,2\n\x81,2\n",
            r"row 2 of rows\.csv, line 3, column `a`: expected text in Windows-1252, found the bytes '\\x81'; correct",
        ),
        (
            b"# made on Monday\na,b\n1,2\n3,4\n",
            r"expected a header with a name for each of the 2 cells of the rows, .* `# made on Monday`",
        ),
        (
            b"a,b\nx,1,2\ny,1,2\n",
            r"each of the 3 cells of the rows, found 2 in `a,b`; remove the lines above the header, or name all",
        ),
        (b"# by us\n# on Monday\na,b\nx,1\ny,1\n", r"cells of the rows, found 1 in `# by us`; remove the lines above the header"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_of_its_row_and_line(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content)


def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"a,b\n" + b"1,2\n" * 100_000))
    data[len(data) // 2] ^= 255
    (tmp_path / "rows.csv.gz").write_bytes(data)
    with pytest.raises(
        DataError, match=r"rows\.csv\.gz: expected a CSV file, found one that cannot be read \(.*\); write it again"
    ):
        pl.concat(iterate_csv(str(tmp_path / "rows.csv.gz"), "rows.csv.gz"))


def test_the_header_is_stripped_and_shortened_where_it_is_shown() -> None:
    assert read_header(b" a , b\n1,2\n", "rows.csv").names == ["a", "b"]
    with pytest.raises(DataError, match=r"found 1 in `\\x1b\[31mx+…x+`; remove the lines above the header") as refused:
        read_header(b"\x1b[31m" + b"x" * 10_000 + b"\n1,2\n", "rows.csv")
    assert len(str(refused.value)) < 300
