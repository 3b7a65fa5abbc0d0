"""Writes the tensors and the rows of a split to files, a block of rows at a time."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Identities, Rows
from refit.tables.preprocessing import AnyColumn, apply_columns, name_inputs
from refit.tables.sources.table_source import Table
from refit.tables.table_splits import TypedTable

ROWS_A_BLOCK = 65_536
"""Rows that are turned into inputs at a time, so that those of a whole split need not be in memory."""


def freeze_split(
    columns: Sequence[AnyColumn], typed: TypedTable, identities: Identities, rows: Rows, y: NDArray[Any], path: Path
) -> None:
    """Write the tensors of a split's rows to `path`, inputs a block of rows at a time.

    Shape: y, the place of each row's class, int64, or its number, float32: `(len(rows),)`.

    Source: the safetensors format, whose own writer takes whole tensors.
    """
    arrays = {name: array[rows] for name, array in sorted(vars(identities).items()) if array is not None} | {"y": y}
    described = {name: ("I64" if array.itemsize == 8 else "F32", [len(rows)]) for name, array in arrays.items()}
    described["x"] = ("F32", [len(rows), len(name_inputs(columns))])
    with path.open("wb") as file:
        file.write(_describe_arrays(described))
        for array in arrays.values():
            file.write(array.data)
        for block in np.split(rows, range(ROWS_A_BLOCK, len(rows), ROWS_A_BLOCK)):
            file.write(apply_columns(columns, typed.frame, partial(_locate_among, block, typed.table), block).numpy().data)


def freeze_rows(rows: pl.DataFrame, path: Path) -> None:
    """Write rows with all their cells as they were read to `path`."""
    try:
        rows.write_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error


def _locate_among(rows: Rows, table: Table, index: int) -> str:
    return table.locate(int(rows[index]))


def _describe_arrays(arrays: Mapping[str, tuple[str, list[int]]]) -> bytes:
    """Return the header of a safetensors file: type and shape by name, in the order in which the bytes follow."""
    described, end = {}, 0
    for name, (dtype, shape) in arrays.items():
        start, end = end, end + math.prod(shape) * int(dtype[1:]) // 8
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
