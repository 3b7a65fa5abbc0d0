"""Files as people have them: how each is to be read was written down first."""

import gzip
import random
from pathlib import Path

import polars as pl
import pytest

from refit.errors import DataError
from refit.settings import DataSettings
from refit.tables.sources import encoded_text
from refit.tables.sources.data_file import Like
from refit.tables.sources.dialects import Dialect, sniff_dialect
from refit.tables.sources.encoded_text import open_text
from refit.tables.sources.opening import open_source
from refit.tables.sources.table_source import Table


def read(tmp_path: Path, content: str | bytes, name: str = "rows.csv", **settings: str | bool) -> Table:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return open_source(f"{tmp_path}/{name}", DataSettings(**settings)).read()


def repeat(row: str, end: str = "\n", num_rows: int = 20) -> str:
    """Rows with `{}` replaced by a number, and `[a/b]` by one of both."""
    generator, rows = random.Random(0), []
    for number in range(num_rows):
        cells = row.replace("{}", str(number))
        while "[" in cells:
            before, _, rest = cells.partition("[")
            choices, _, after = rest.partition("]")
            cells = before + generator.choice(choices.split("/")) + after
        rows.append(cells)
    return end.join(rows) + end


SEPARATED = [
    ("age;fare;y\n" + repeat("{};7,25;[yes/no]"), ("0", "7,25"), "with `;` between cells"),
    ('"a";"b";"y"\r\n' + repeat('"{}";"x; y, z";"[1/0]"', "\r\n"), ("0", "x; y, z"), "with `;` between cells"),
    ("sep=;\r\na;b;y\r\n" + repeat("{};1,5;[p/q]", "\r\n"), ("0", "1,5"), "with `;` between cells"),
    ("label\ttext\tn\n" + repeat("[ham/spam]\tsee you, at {}; ok?\t{}"), None, "with tabs between cells"),
    ("id\tname\ty\n" + repeat("{}\tSmith, John\t[0/1]"), ("0", "Smith, John"), "with tabs between cells"),
    ("a\tb\ty\n" + repeat("\t{}\t[0/1]"), (None, "0"), "with tabs between cells"),
    ("a|b|y\n" + repeat("{}|x,y|[0/1]"), ("0", "x,y"), "with `|` between cells"),
    ("|a|b|y|\n" + repeat("|{}|2|[0/1]|"), ("0", "2"), "with `|` between cells"),
    ("Name, first|n|y\n" + repeat("Ma, {}|{}|[a/b]"), ("Ma, 0", "0"), "with `|` between cells"),
    ("a b y\n" + repeat("{} 1.5 [yes/no]"), ("0", "1.5"), "with blanks between cells"),
]


@pytest.mark.parametrize(("content", "first", "told"), SEPARATED)
def test_semicolons_tabs_and_bars_are_seen_and_said(tmp_path: Path, content: str, first: tuple[str, ...] | None, told: str) -> None:
    table = read(tmp_path, content)
    assert table.frame.shape == (20, 3)
    assert first is None or table.frame.row(0)[:2] == first
    assert f"read {tmp_path}/rows.csv {told}; set data.separator if that is not meant" in table.remarks


@pytest.mark.parametrize(
    "content",
    [
        "id,genres,y\n" + repeat("{},Drama|Crime,[0/1]"),
        "note,y\n" + repeat('"a; b; {}",[0/1]'),
        "x\n" + repeat("{}"),
        "text of it\n" + repeat("two words [here/there]"),
    ],
)
def test_commas_stay_commas_and_nothing_is_said(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    assert (table.frame.columns, table.remarks) == (content.partition("\n")[0].split(","), ())
    assert table.dialect == Dialect(separator=",", encoding="ascii", header=True)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_files_whose_lines_end_in_carriage_returns_are_read(tmp_path: Path, separator: str) -> None:
    content = ("a,b,y\r" + repeat('{},"two\rlines",[0/1]', "\r")).replace(",", separator)
    table = read(tmp_path, content)
    assert table.frame.shape == (20, 3)
    assert table.frame.row(19)[:2] == ("19", "two\rlines")
    assert table.locate(1) == f"row 2 of {tmp_path}/rows.csv, line 4"


HEADLESS = [
    repeat("5.{},3.1,0.2,[Iris-setosa/Iris-virginica]"),
    repeat("[p/e],[x/b/s],[n/w],[t/f]"),
    repeat("84{},[M/B],17.{},?,1"),
    repeat("[vhigh/low],[2/4],[2/4/more],[acc/unacc]"),
    repeat("1,{};2,5{};[a/b]"),
    repeat("2024-01-0[1/2/3],{},[x/y]"),
]


@pytest.mark.parametrize("content", HEADLESS)
def test_a_header_that_is_not_there_is_missed_and_said(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    separator = ";" if ";" in content else ","
    names = [f"column_{place}" for place in range(1, content.partition("\n")[0].count(separator) + 2)]
    assert (table.frame.height, table.frame.columns) == (20, names)
    assert table.frame.row(0) == tuple(content.partition("\n")[0].split(separator))
    assert f"without a header, so that columns are named `column_1` to `{names[-1]}`; set" in table.remarks[0]
    assert table.locate(0) == f"row 1 of {tmp_path}/rows.csv, line 1"
    named = read(tmp_path, content, header=True)
    assert (named.frame.height, [remark for remark in named.remarks if "without a header" in remark]) == (19, [])


@pytest.mark.parametrize(
    "content",
    [
        "name,2010,2011,2012\n" + repeat("n{},{},3,5"),
        "country,2010,2011\n" + repeat("n{},{},3"),
        "0,1,2,3,target\n" + repeat("1.{},3,2.5,4,[a/b]"),
        "color,shape,y\n" + repeat("[red/blue],[round/flat],[p/q]"),
        "y,x\n" + repeat("[y/n],[red/blue]"),
        "Q1,Q2\n" + repeat("A{},B{}"),
        "2019-1,2019-2,y\n" + repeat("{},5,[p/q]"),
    ],
)
def test_a_header_of_numbers_or_above_texts_is_seen(tmp_path: Path, content: str) -> None:
    table = read(tmp_path, content)
    assert (table.frame.height, table.frame.columns, table.remarks) == (20, content.partition("\n")[0].split(","), ())


NAMELESS = [
    (",a,y\n" + repeat("{},5,[0/1]"), "the first column of {}, which has no name, as when pandas and R write row numbers; name"),
    (
        ',"a","y"\n' + repeat('"{}","5","[a/y]"'),
        "the first column of {}, which has no name, as when pandas and R write row numbers",
    ),
    ("a,y,\n" + repeat("5,[0/1],"), "column 3 of {}, without a name; name what to learn from"),
    ("a,y\n" + repeat("5,[0/1],"), "column 3 of {}, without a name; name what to learn from"),
    ('"a","y"\n' + repeat('"{}",5,[0/1]'), "the first column of {}, which has no name, as when pandas and R write row numbers"),
    ("a,,y, ,\n" + repeat("5,7,[0/1],,x"), "columns 2, 4, 5 of {}, without a name; name what to learn from"),
]


@pytest.mark.parametrize(("content", "told"), NAMELESS)
def test_columns_without_a_name_are_left_out_and_said(tmp_path: Path, content: str, told: str) -> None:
    table = read(tmp_path, content)
    assert table.frame["a"].to_list() == ["5"] * 20
    assert table.frame.columns == ["a", "y"]
    assert table.remarks[0].startswith(f"left out: {told.format(f'{tmp_path}/rows.csv')}")
    source = open_source(f"{tmp_path}/rows.csv")
    assert source.names() == ["a", "y"]
    assert pl.concat(batch.frame for batch in source.iterate(["y", "a"], [], 7)).equals(table.frame[["y", "a"]])


ENCODED = [
    ("cp1252", "name,city,y\n" + repeat("Müller {},Köln €,[ja/nein]"), "as text in Windows-1252"),
    ("cp1252", "Straße,y\n" + repeat("Größe {},[ja/nein]"), "as text in Windows-1252"),
    ("latin-1", "nom,ville\n" + repeat("Élodie {},[Besançon/Orléans]"), "as text in Windows-1252"),
    ("cp1252", "x,unit\n" + repeat("{},m") * 8000 + "5,°C\n", "as text in Windows-1252"),
    ("cp1252", "nom,l\u2019été\n" + repeat("{},[d\u2019Orléans/l\u2019eau]"), "as text in Windows-1252"),
    ("cp1252", "name,size\n" + repeat("ÉLODIE {},[5 m²/7°]"), "as text in Windows-1252"),
    ("mac_roman", "Straße,y\n" + repeat("Müller {},[Größe/Höhe]"), "as text in Mac Roman"),
    ("mac_roman", "nom,ville\n" + repeat("Élodie {},[Besançon/Orléans]"), "as text in Mac Roman"),
    ("cp850", "Straße,y\n" + repeat("Müller {},[Größe/Höhe]"), "as text in cp850"),
    ("cp1250", "imię,miasto\n" + repeat("Paweł {},[Łódź/Gdańsk/Wrocław]"), "as text in Windows-1250"),
    ("iso8859_2", "imię,miasto\n" + repeat("Paweł {},[Łódź/Świdnica/Wąbrzeźno]"), "as text in ISO 8859-2"),
    ("koi8_r", "имя,город\n" + repeat("Иван {},[Москва/Казань]"), "as text in KOI8-R"),
    ("cp866", "имя,город\n" + repeat("Иван {},[Москва/Казань]"), "as text in cp866"),
    ("cp1251", "имя,город\n" + repeat("Иван {},[Москва/Казань]"), "as text in cp1251"),
    ("cp932", "名前,都市\n" + repeat("田中さくら {},[東京都/大阪市]"), "as text in cp932"),
    ("gb18030", "名字,城市\n" + repeat("张伟 {},[北京/上海市]"), "as text in gb18030"),
    ("utf-16", "a,city,y\n" + repeat("{},Łódź,[0/1]"), "as text in UTF-16"),
    ("utf-8", "a,city,y\n" + repeat("{},Łódź,[0/1]"), None),
]


@pytest.mark.parametrize(("encoding", "content", "told"), ENCODED)
def test_text_that_is_not_utf_8_is_read_and_said(tmp_path: Path, encoding: str, content: str, told: str | None) -> None:
    names, *rows = [line.split(",") for line in content.splitlines()]
    table = read(tmp_path, content.encode(encoding))
    assert (table.frame.columns, table.frame.row(-1)) == (names, tuple(rows[-1]))
    assert table.frame.height == len(rows)
    assert table.remarks == (() if told is None else (f"read {tmp_path}/rows.csv {told}; set data.encoding if that is not meant",))
    batches = [batch.frame for batch in open_source(f"{tmp_path}/rows.csv").iterate(names, [], 1000)]
    assert pl.concat(batches).equals(table.frame)


@pytest.mark.parametrize("marks", ["\ufeff", "\ufeff\ufeff", "\ufeff\ufeff\ufeff"])
def test_byte_order_marks_are_no_part_of_a_name(tmp_path: Path, marks: str) -> None:
    assert read(tmp_path, marks + '"a",b\n1,2\n').frame.columns == ["a", "b"]


@pytest.mark.parametrize("size", [3, 7, 100, 1 << 20])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-16", "cp932"])
def test_text_is_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, size: int, encoding: str) -> None:
    monkeypatch.setattr(encoded_text, "BLOCK_BYTES", size)
    text = "plain,rows\r\n" * 20 + ("東京都,大阪市さくら\n" if encoding == "cp932" else "Köln,5 €\n") * 20
    for content in (text.encode(encoding), gzip.compress(text.encode(encoding))):
        with open_text(content) as file:
            found = b"".join(iter(lambda: file.read(size), b""))
        assert found.decode() == text


def test_settings_say_how_a_file_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a;b\nł;2\n".encode("utf-16-le"), encoding="utf-16-le").frame.rows() == [("ł", "2")]
    table = read(tmp_path, "ł;1,x\nó;2,y\n".encode("cp1250"), separator=",", encoding="cp1250", header=False)
    assert table.frame.rows() == [("ł;1", "x"), ("ó;2", "y")]
    assert (table.remarks, table.dialect) == ((), Dialect(separator=",", encoding="cp1250", header=False))
    assert DataSettings(separator="tab").separator == DataSettings(separator=r"\t").separator == "\t"
    for settings, message in (
        ({"separator": "::"}, r"expected one sign such as `;`, or `tab`, found '::'; name one"),
        ({"encoding": "utf-5"}, r"expected an encoding that Python knows, .*, found 'utf-5'; name one"),
    ):
        with pytest.raises(ValueError, match=message):
            DataSettings(**settings)


CONTENTS = {
    "rows.tsv": "a\ty\n" + repeat("{}\t[0/1]"),
    "rows.txt": "a;y\n" + repeat("{};[0/1]"),
    "rows.data": "a,y\n" + repeat("{},[0/1]"),
    "rows.xls": "a\ty\r\n" + repeat("{}\t[0/1]", "\r\n"),
    "rows": "a,y\n" + repeat("{},[0/1]"),
    "rows.ndjson": repeat('{"a": {}, "y": "[0/1]"}'),
    "rows.json": repeat('{"y": "[0/1]", "a": {}, "note": null}'),
    "rows.csv": repeat('{ "a" : {}, "y" : [true/false] }', "\r\n"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_are_read_by_their_content_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    for content in (CONTENTS[name].encode(), gzip.compress(CONTENTS[name].encode())):
        table = read(tmp_path, content, name)
        assert table.frame["a"].to_list() == [str(number) for number in range(20)]
        assert set(table.frame["y"]) in ({"0", "1"}, {"true", "false"})
        assert set(table.frame.columns) - {"note"} == {"a", "y"}


def test_a_parquet_file_may_have_any_name_and_folders_are_searched_for_other_endings_last(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "rows.bin")
    assert open_source(f"{tmp_path}/rows.bin").read().frame.rows() == [(1,)]
    (tmp_path / "day.tsv").write_text("a\ty\n1\t2\n")
    assert open_source(str(tmp_path)).read().frame.rows() == [("1", "2")]
    (tmp_path / "day.csv").write_text("a,y\n3,4\n")
    assert open_source(str(tmp_path)).read().frame.rows() == [("3", "4")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{"a": [1, 2]}\n', r"row 2 of .*, column `a`: expected a text, .*, found a list; join it"),
        ('{"a": 1}\n{"a": 2\n', r"row 2 of .*: expected an object in one line, found Expecting ',' delimiter"),
        ('{"a": 1}\n5\n', r"row 2 of .*: expected an object, found str; write one"),
        ('{"a": 1}\n' * 1000 + '{"b": 1}\n', r"row 1001 of .*: expected names that one of the first 1,000 rows has, found `b`"),
        ('[{"a": 1}]', r"expected CSV or Parquet, found JSON; write an object a line, or convert it"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content, "rows.ndjson")


def test_objects_in_a_row_of_json_become_columns(tmp_path: Path) -> None:
    content = '{"user": null, "y": 1}\n{"user": {"age": 5, "plan": {"name": "x"}}, "y": 0}\n{"y": 1}\n' * 600
    assert read(tmp_path, content, "rows.ndjson").frame[:3].to_dict(as_series=False) == {
        "y": ["1", "0", "1"],
        "user.age": [None, "5", None],
        "user.plan.name": [None, "x", None],
    }


def test_numbers_of_json_keep_all_their_digits(tmp_path: Path) -> None:
    assert read(tmp_path, '{"a": 12345678901234567890, "b": 1.10}\n', "rows.jsonl").frame.rows() == [
        ("12345678901234567890", "1.10")
    ]


OTHERWISE = [
    (b"a,y\n1,x\n2,z\n", r"expected `;` between cells, as in {}, found `,`; write the file alike"),
    (b"a\ty\n1\tx\n2\tz\n", r"expected `;` between cells, as in {}, found tabs; write the file alike"),
    (repeat("{};[x/z]").encode(), r"expected a header, as in {}, found none; write the file alike"),
]


@pytest.mark.parametrize(("content", "message"), OTHERWISE)
def test_a_new_file_of_a_folder_must_be_written_like_its_siblings(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "1.csv").write_text("a;y\n" + repeat("{};[x/z]"))
    (tmp_path / "2.csv").write_bytes(content)
    for act in (lambda source: source.read(), lambda source: list(source.iterate(["a"], [], 9))):
        with pytest.raises(DataError, match=rf"2\.csv: {message.format(rf'{tmp_path}/1.csv')}, or read the files separately"):
            act(open_source(str(tmp_path)))


def test_files_of_a_folder_may_have_their_own_encodings(tmp_path: Path) -> None:
    for number, encoding in enumerate(("ascii", "cp1252", "utf-8")):
        (tmp_path / f"{number}.csv").write_bytes(("a,y\n" + ("5,x\n" if encoding == "ascii" else "é,x\n")).encode(encoding))
    table = open_source(str(tmp_path)).read()
    assert table.frame["a"].to_list() == ["5", "é", "é"]
    assert table.remarks == (f"read {tmp_path}/1.csv as text in Windows-1252; set data.encoding if that is not meant",)
    assert table.dialect == Dialect(separator=",", header=True)


def check_alike(path: Path, content: bytes, dialect: Dialect) -> list[tuple[str, ...]]:
    path.write_bytes(content)
    source = open_source(str(path), like=Like(dialect, "the files of before", "or train"))
    return [
        row for batch in source.iterate(["column_1"] if dialect.header is False else ["a"], [], 9) for row in batch.frame.rows()
    ]


def test_rows_to_score_are_read_like_those_of_the_model_however_few(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert check_alike(path, b"a;b\n1,5;2\n", Dialect(separator=";", encoding="ascii", header=True)) == [("1,5",)]
    assert check_alike(path, b"5,5\n", Dialect(separator=",", encoding="ascii", header=False)) == [("5",)]
    assert check_alike(path, b"a\n\xb3\n", Dialect(separator=",", encoding="cp1250", header=True)) == [("ł",)]
    assert check_alike(path, "a\nł\n".encode(), Dialect(separator=",", encoding="ascii", header=True)) == [("ł",)]


@pytest.mark.parametrize(
    ("content", "dialect", "message"),
    [
        ("a,b\nü,2\n".encode(), Dialect(separator=",", encoding="cp1252", header=True), r"text in Windows-1252, .* found UTF-8"),
        (b"a,b\n\xe9,2\n", Dialect(separator=",", encoding="utf-8", header=True), r"text in UTF-8, .* found Windows-1252"),
        (b"a,b\n" + repeat("{},x").encode(), Dialect(separator=",", header=False), r"expected none, .* found a header"),
    ],
)
def test_rows_to_score_that_are_written_otherwise_are_refused(
    tmp_path: Path, content: bytes, dialect: Dialect, message: str
) -> None:
    with pytest.raises(DataError, match=rf"rows\.csv: expected {message}|rows\.csv: {message}"):
        check_alike(tmp_path / "rows.csv", content, dialect)


def test_a_first_row_that_names_the_target_is_a_header_whatever_the_others_look_like(tmp_path: Path) -> None:
    content = "a,b\n" + "a,b\n" * 20
    assert read(tmp_path, content).frame.columns == ["column_1", "column_2"]
    assert read(tmp_path, content, target="b").frame.columns == ["a", "b"]


def test_a_file_of_two_rows_shows_no_header_and_is_taken_to_have_one() -> None:
    assert sniff_dialect(b"1,2,a\n3,4,b\n").header is None
    assert sniff_dialect(b"").separator == ","


def test_a_file_that_names_all_columns_is_written_alike_whatever_its_rows_look_like(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "a,b\n" * 20)
    assert sniff_dialect(str(path)).header is False
    like = Like(Dialect(separator=",", encoding="ascii", header=True), "the files of before", "or train", ("b", "a"))
    assert sum(batch.frame.height for batch in open_source(str(path), like=like).iterate(["a"], [], 9)) == 20


TITLED = [
    (
        "Report: Churn by month;;;\nGenerated 2024-03-01;;;\n;;;\nplan;n;fee;y\n" + repeat("[S/M];{};1,5;[j/n]"),
        3,
        "row 2 of {}, line 6",
    ),
    ("Report of 2024\n\nplan;n;fee;y\n" + repeat("[S/M];{};1,5;[j/n]"), 1, "row 2 of {}, line 5"),
    ("# from the lab, site B\n# all of it\nplan,n,y\n" + repeat("[S/M],{},[j/n]"), 2, "row 2 of {}, line 5"),
    (",Report,,,,\n,Period:,13,,,\n,,,,,2009\n,plan,n,a,b,y\n" + repeat(",[S/M],{},1,2,[j/n]"), 3, "row 2 of {}, line 6"),
    ("#plan,n,y\n" + repeat("[S/M],{},[j/n]"), 0, "row 2 of {}, line 3"),
    ("plan,n,y\n5,,\n,,\n" + repeat("[S/M],{},[j/n]"), 0, "row 2 of {}, line 3"),
    ("plan,n,,\n" + repeat("[S/M],{},[j/n],1"), 0, "row 2 of {}, line 3"),
]


@pytest.mark.parametrize(("content", "above", "second"), TITLED)
def test_titles_and_notes_above_the_header_are_left_out_and_said(tmp_path: Path, content: str, above: int, second: str) -> None:
    table = read(tmp_path, content)
    path = f"{tmp_path}/rows.csv"
    assert "n" in table.frame.columns
    assert table.locate(1) == second.format(path)
    told = [remark for remark in table.remarks if remark.startswith("left out") and "above the header" in remark]
    assert told == ([f"left out: {above} row{'s' * (above > 1)} above the header of {path}"] if above else [])
    again = open_source(path, like=Like(table.dialect or Dialect(), "before", "or train")).read()
    assert again.frame.equals(table.frame)


@pytest.mark.parametrize("is_named", [True, False])
def test_cells_in_apostrophes_are_read_without_them_and_it_is_said(tmp_path: Path, is_named: bool) -> None:
    rows = repeat("'[4/5]0-{}','a, [b/c]',[1/2],'it''s','[yes/no]'")
    table = read(tmp_path, ("'age','part','n','note','y'\n" if is_named else "") + rows)
    assert table.frame.shape == (20, 5)
    assert set(table.frame.to_series(1)) == {"a, b", "a, c"}
    assert set(table.frame.to_series(3)) == {"it's"}
    assert table.frame.columns[0] == ("age" if is_named else "column_1")
    assert f"read {tmp_path}/rows.csv with `'` around cells" in table.remarks
    assert table.locate(19) == f"row 20 of {tmp_path}/rows.csv, line {20 + is_named}"
    again = open_source(f"{tmp_path}/rows.csv", like=Like(table.dialect or Dialect(), "before", "or train")).read()
    assert again.frame.equals(table.frame)


def test_names_with_apostrophes_keep_them(tmp_path: Path) -> None:
    table = read(tmp_path, "name,y\n" + repeat("O'Brien {},[0/1]") + "'tis,1\n")
    assert table.frame["name"][0] == "O'Brien 0"
    assert table.frame["name"][-1] == "'tis"


def test_notes_below_the_table_are_left_out_and_said(tmp_path: Path) -> None:
    rows = "plan;n;y\n" + repeat("[S/M];{};[j/n]")
    table = read(tmp_path, rows + "_____\n(C)opyright of the office\n\nAs of: 2024; all\n")
    assert table.frame.shape == (20, 3)
    assert table.remarks[-1] == f"left out: 3 rows below the table of {tmp_path}/rows.csv, from `_____` on"
    batches = open_source(f"{tmp_path}/rows.csv").iterate(["n"], [], 7)
    assert sum(batch.frame.height for batch in batches) == 20


@pytest.mark.parametrize("end", ["_____\nS;5;j\n", "5\n", "S;5\n", "S;5;j;x\n"])
def test_a_short_row_is_no_note_if_rows_follow_or_it_may_be_cut(tmp_path: Path, end: str) -> None:
    with pytest.raises(DataError, match=r"row 21 of .*, line 22: expected 3 cells as in the header, found [124]; correct the row"):
        read(tmp_path, "plan;n;y\n" + repeat("[S/M];{};[j/n]") + end)


def test_files_of_a_folder_may_have_other_titles_or_none(tmp_path: Path) -> None:
    rows = "plan,n,y\n" + repeat("[S/M],{},[j/n]")
    for name, start in {"1.csv": "May\n", "2.csv": "June\nof 2024\n", "3.csv": ""}.items():
        (tmp_path / name).write_text(start + rows)
    table = open_source(str(tmp_path)).read()
    assert table.frame.shape == (60, 3)
    assert table.locate(20) == f"row 1 of {tmp_path}/2.csv, line 4"
    assert table.remarks == (
        f"left out: 1 row above the header of {tmp_path}/1.csv",
        f"left out: 2 rows above the header of {tmp_path}/2.csv",
    )
