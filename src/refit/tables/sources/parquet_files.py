"""Reads Parquet files a batch of rows at a time; pages that bring a checksum are compared with it."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from refit.errors import DataError, first_line
from refit.tables.sources.files import Opened, check_names, describe_content, open_bytes

BUFFER_BYTES = 1 << 20
ROWS_A_FRAME = 65_536
PANDAS_INDEX = re.compile(r"^__index_level_\d+__$")
"""The name that pandas gives an index without one in Parquet; pandas does not take it for a column either."""


def read_names(opened: Opened, path: str) -> list[str]:
    """Read the names of a Parquet file's columns, with an empty one for an index; raises as `iterate_parquet` does."""
    with _open(opened, path) as file:
        return list(_find_columns(file, path))


def iterate_parquet(
    opened: Opened, path: str, columns: Sequence[str] | None = None, num_rows: int = ROWS_A_FRAME
) -> Iterator[pl.DataFrame]:
    """Read the rows of a Parquet file, in one frame at least.

    Args:
        opened: The file.
        path: Its name, for messages.
        columns: The columns to read, of which it may lack some; None reads all.
        num_rows: Rows in a frame, at most, so that memory does not grow with the file.

    Raises:
        DataError: The file is damaged, or its column names are not as `check_names` expects.
    """
    with _open(opened, path) as file:
        present = _find_columns(file, path)
        present.pop("", None)
        wanted = [name for name in columns if name in present] if columns is not None else list(present)
        wanted = wanted or list(present)[:1]  # at least one, to know how many rows there are
        names = [present[name] for name in wanted]
        batches = file.iter_batches(num_rows, columns=names)
        for part in batches if file.metadata.num_rows else [file.schema_arrow.empty_table().select(names)]:
            frame = cast(pl.DataFrame, pl.from_arrow(_convert(part), rechunk=False))[names]
            frame.columns = wanted
            yield frame


@contextlib.contextmanager
def _open(opened: Opened, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_bytes(opened) as file:
            if (head := file.read(16)) and not head.startswith(b"PAR1"):
                found = describe_content(head) or "something else; write it again, or rename it to end in .csv if it is CSV"
                raise DataError(f"{path}: expected a Parquet file, found {found}")
            file.seek(0)
            # Neither whole row groups nor whole columns are held in memory.
            yield pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path}: expected a whole Parquet file, found a damaged one ({first_line(error)}); write it again"
        ) from error


def _find_columns(file: pq.ParquetFile, path: str) -> dict[str, str]:
    """The names of columns as we use them, and as they are in the file."""
    names = [name for name in file.schema_arrow.names if not PANDAS_INDEX.match(name)]
    return dict(zip(check_names(names, path), names, strict=True))


def _convert(part: pa.Table | pa.RecordBatch) -> pa.Table | pa.RecordBatch:
    """Turn decimals that polars has no type for into floats."""
    for place, field in enumerate(part.schema):
        if pa.types.is_decimal256(field.type):
            part = part.set_column(place, field.name, part.column(place).cast(pa.float64()))
    return part
