import json
import shlex
import subprocess
import sys
from pathlib import Path


def write(name: str = "rows.csv", separator: str = ",") -> None:
    header = separator.join(["", "size", "plan", "left"])
    rows = [separator.join([str(row), str(row % 7), "abc"[row % 3], ["yes", "no"][row % 2]]) for row in range(60)]
    Path(name).write_text("\n".join([header, *rows, ""]))


def test_a_table_is_shown_column_by_column_with_the_command_to_go_on_with(refit):
    write("my rows.csv", ";")
    code, out, err = refit("look", "my rows.csv", "--target", "left", "--optimizer.lr", "0.01", "--data.exclude", '["plan"]')
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "my rows.csv: 60 rows; 3 columns, as 1 input"
    assert lines[1] == "written with `;` between cells, as text in ASCII, with a header"
    assert [line.split() for line in lines[2:7]] == [
        ["column", "kind", "missing", "distinct", "inputs", "read", "as", "such", "as"],
        ["─" * 61],
        ["size", "number", "0", "7", "1", "0,", "1,", "2"],
        ["plan", "left", "out", "0", "3", "0", "a,", "b,", "c"],
        ["left", "target", "0", "2", "0", "yes,", "no"],
    ]
    assert "classes: no (30), yes (30)" in lines
    assert any("with `;` between cells; set data.separator if that is not meant" in line for line in lines)
    assert any("left out: the first column of" in line for line in lines)
    assert lines[-1] == (
        "to train: refit train --data.exclude '[\"plan\"]' --data.source 'my rows.csv' --data.target left --optimizer.lr 0.01"
    )


def test_names_and_readings_are_folded_and_examples_cut_to_the_width_of_the_terminal(refit, monkeypatch):
    name = "a_name_that_is_longer_than_a_third_of_the_line"
    notes = ["a long text of many words", "another text"]
    rows = [f"{row % 28 + 1}.03.2024,{notes[row % 3 // 2]},{row % 2}" for row in range(60)]
    Path("rows.csv").write_text("\n".join([f"{name},note,y", *rows, ""]))
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = refit("look", "rows.csv", "--target", "y")[1].splitlines()
        shown = lines[2 : next(place for place, line in enumerate(lines) if line.startswith("classes: "))]
        assert all(len(line) <= width for line in shown)
        assert "".join(line[:20].partition("  ")[0] for line in shown[2:-2]).replace(" ", "").startswith(name[:20])
        assert "`31.12.2026`" in " ".join(shown)
        assert "1.03.2024" in " ".join(shown)
        assert len(shown) <= (9 if width == 80 else 7)


def test_a_guess_at_the_target_is_said_to_be_one(refit):
    write()
    code, out, _ = refit("look", "rows.csv")
    assert code == 0
    assert out.splitlines()[-2:] == [
        "the target is not known: `left` is a guess; it may be another column: `plan`, `size`",
        "to train: refit train --data.source rows.csv --data.target left",
    ]


def test_what_would_be_refused_is_said_and_gives_the_code_of_a_refusal(refit):
    write()
    Path("rows.csv").write_text(Path("rows.csv").read_text() + "60,big,a,yes\n")
    code, out, err = refit("look", "rows.csv", "--target", "left")
    assert code == 2
    assert "unreadable" in out
    assert "row 61 of" in err
    assert "column `size`: expected a number, found 'big'" in err
    assert refit("look", "gone.csv")[0] == 2


def test_json_holds_the_same(refit):
    write()
    code, out, _ = refit("look", "rows.csv", "--target", "left", "--json")
    found = json.loads(out)
    assert (code, found["rows"], found["dialect"]) == (
        0,
        60,
        {"separator": ",", "encoding": "ascii", "header": True, "above": None, "quote": None},
    )
    assert {column["name"]: column["kind"] for column in found["columns"]} == {
        "size": "number",
        "plan": "category",
        "left": "target",
    }
    assert found["commands"] == ["refit train --data.source rows.csv --data.target left"]


def test_looking_loads_neither_prefect_nor_torch():
    write()
    code = (
        "import sys; sys.argv = ['refit', 'look', 'rows.csv', '--target', 'left']\n"
        "from refit.commands import cli\n"
        "try: cli.main()\n"
        "except SystemExit: print([name for name in ('prefect', 'torch') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


def test_the_command_it_ends_with_mends_what_would_be_refused(refit):
    header, *rows = [
        "sold,size,left",
        *(f"0{row % 8 + 1}/0{row % 7 + 1}/2024,{row % 5 or 'None'},{'yn'[row % 2]}" for row in range(60)),
    ]
    Path("rows.csv").write_text("\n".join([header, *rows, ""]))
    code, out, err = refit("look", "rows.csv", "--target", "left")
    assert (code, len(err.splitlines())) == (2, 2)
    for line, start, order in zip(
        out.splitlines()[-2:], ("to train: ", "or, if the other meaning is right: "), ("%d/%m", "%m/%d"), strict=True
    ):
        command = shlex.split(line.removeprefix(start))
        assert command[:4] == ["refit", "train", "--data.source", "rows.csv"]
        assert f'"sold": "{order}/%Y"' in " ".join(command)
        code, _, err = refit("look", "rows.csv", *command[4:])
        assert (code, err) == (0, "")


def test_of_many_columns_the_first_are_shown_and_the_others_counted(refit):
    names = [f"c{column}" for column in range(150)]
    rows = [",".join([*(str((row + column) % 7) for column in range(150)), "yn"[row % 2]]) for row in range(60)]
    Path("rows.csv").write_text("\n".join([",".join([*names, "y"]), *rows, ""]))
    code, out, _ = refit("look", "rows.csv")
    assert code == 0
    assert sum(line.startswith("c") and "number" in line for line in out.splitlines()) == 100
    assert "51 more columns: 50 number, 1 target; --json shows them all" in out.splitlines()
