"""Reads the first visible sheet of an Excel workbook, all cells as text, as in CSV."""

from collections.abc import Iterator
from datetime import date, datetime
from io import BytesIO
from typing import Any

import polars as pl

from refit.errors import DataError
from refit.tables.sources.files import Opened, check_names, open_bytes


def read_names(opened: Opened, path: str) -> list[str]:
    """Read the names of the columns, in the first row that is not empty; raises as `iterate_excel` does."""
    return _read_table(opened, path)[0]


def iterate_excel(opened: Opened, path: str) -> Iterator[pl.DataFrame]:
    """Read the rows, in one frame; columns without a name are left out.

    Raises:
        DataError: It cannot be read, holds nothing, or its names are not as `check_names` expects.
    """
    names, rows = _read_table(opened, path)
    columns = {name: [_show(row[place]) for row in rows] for place, name in enumerate(names) if name}
    yield pl.DataFrame(columns, dict.fromkeys(columns, pl.String))


def list_other_sheets(opened: Opened, path: str) -> list[str]:
    """List the sheets that are not read; raises as `iterate_excel` does."""
    return _read(opened, path)[0]


def _read_table(opened: Opened, path: str) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns, and the rows below them."""
    _, (first, *rows) = _read(opened, path)
    return check_names([_show(cell) or "" for cell in first], path), rows


def _read(opened: Opened, path: str) -> tuple[list[str], list[list[Any]]]:
    try:
        import python_calamine
    except ImportError as error:
        raise DataError(
            f"{path}: expected CSV or Parquet, found an Excel workbook; install `refit[excel]`, or save the sheet as CSV"
        ) from error
    try:
        with open_bytes(opened) as file:
            workbook = python_calamine.CalamineWorkbook.from_filelike(BytesIO(file.read()))
        visible = python_calamine.SheetVisibleEnum.Visible
        first, *others = [sheet.name for sheet in workbook.sheets_metadata if sheet.visible == visible] or workbook.sheet_names
        rows = workbook.get_sheet_by_name(first).to_python()
    except (python_calamine.CalamineError, ValueError) as error:
        raise DataError(f"{path}: expected an Excel workbook, found one that cannot be read ({error}); save it again") from error
    if not rows:
        raise DataError(f"{path}: expected a header and rows in the sheet `{first}`, found none; move the table there")
    return others, rows


def _show(cell: Any) -> str | None:
    """A cell as CSV would have it."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53:
        return str(int(cell))
    if isinstance(cell, datetime):
        return cell.isoformat(" ")
    return cell.isoformat() if isinstance(cell, date) else str(cell) or None
