import builtins
import zipfile
from pathlib import Path

import pytest

from refit.errors import DataError
from refit.tables.sources.opening import open_source

NAMESPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def write_workbook(path: Path, sheets: dict[str, list[list[str | float | bool | None]]]) -> None:
    """The least that is a workbook."""

    def write_cell(cell: str | float | bool | None) -> str:
        if cell is None:
            return "<c/>"
        if isinstance(cell, str):
            return f'<c t="inlineStr"><is><t>{cell}</t></is></c>'
        return f'<c t="b"><v>{int(cell)}</v></c>' if isinstance(cell, bool) else f"<c><v>{cell}</v></c>"

    with zipfile.ZipFile(path, "w") as archive:
        document = f'<Relationship Id="r0" Type="{RELATIONS}/officeDocument" Target="xl/workbook.xml"/>'
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}">{document}</Relationships>')
        names = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, name in enumerate(sheets, 1))
        archive.writestr("xl/workbook.xml", f'<workbook {NAMESPACE} xmlns:r="{RELATIONS}"><sheets>{names}</sheets></workbook>')
        links = "".join(
            f'<Relationship Id="r{i}" Type="{RELATIONS}/worksheet" Target="worksheets/{i}.xml"/>' for i in range(1, len(sheets) + 1)
        )
        archive.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{PACKAGE}">{links}</Relationships>')
        for i, rows in enumerate(sheets.values(), 1):
            cells = "".join(f"<row>{''.join(map(write_cell, row))}</row>" for row in rows)
            archive.writestr(f"xl/worksheets/{i}.xml", f"<worksheet {NAMESPACE}><sheetData>{cells}</sheetData></worksheet>")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.xls", "rows"])
def test_the_first_sheet_of_a_workbook_is_read_as_text(tmp_path: Path, name: str) -> None:
    rows = [[None, "a", "b", "y"], [0.0, 1.0, "Köln", True], [1.0, 2.5, None, False]]
    write_workbook(tmp_path / name, {"data": rows, "notes": [["see"]]})
    table = open_source(f"{tmp_path}/{name}").read()
    assert table.frame.to_dict(as_series=False) == {"a": ["1", "2.5"], "b": ["Köln", None], "y": ["true", "false"]}
    assert table.remarks[1] == f"left out: all sheets of {tmp_path}/{name} but the first: `notes`; save one as CSV to read it"
    assert [batch.frame.rows() for batch in open_source(f"{tmp_path}/{name}").iterate(["y", "a"], [], 9)] == [
        [("true", "1"), ("false", "2.5")]
    ]


def test_what_is_no_table_in_a_workbook_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_workbook(tmp_path / "empty.xlsx", {"data": []})
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0 and no more")
    with pytest.raises(DataError, match=r"empty\.xlsx: expected a header and rows in the sheet `data`, found none; move the table"):
        open_source(f"{tmp_path}/empty.xlsx").read()
    with pytest.raises(
        DataError, match=r"old\.xls: expected an Excel workbook, found one that cannot be read \(.*\); save it again"
    ):
        open_source(f"{tmp_path}/old.xls").read()

    real_import = builtins.__import__

    def lack(name: str, *args: object) -> object:
        if name == "python_calamine":
            raise ImportError(name)
        return real_import(name, *args)

    monkeypatch.setattr(builtins, "__import__", lack)
    with pytest.raises(DataError, match=r"old\.xls: expected CSV or Parquet, found an Excel workbook; install `refit\[excel\]`"):
        open_source(f"{tmp_path}/old.xls").read()
