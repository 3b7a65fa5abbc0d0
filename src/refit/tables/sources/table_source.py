"""TableSource: one interface for training, retraining, scoring and digests, wherever rows come from.

Cells stay as they are in the source (all CSV cells are text); `schema` finds their types.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refit.errors import DataError
from refit.tables.columns import check_columns
from refit.tables.sources.dialects import Dialect
from refit.tables.sources.located_rows import LocatedRows, rebatch
from refit.texts import list_names


@dataclass(frozen=True)
class Table(LocatedRows):
    """All rows of a source; raises DataError if there is none.

    Args:
        name: The source as it was asked for.
        digest: The digest of the source.
        test: The test rows, where they come along with the source.
        is_raw: Whether numbers are learned from as they are, not standardized.
        outer: Columns that folders above the source stand for, with one value in all rows.
        remarks: What was left out, a sentence each.
        dialect: How its files are written, if they are CSV.
        num_seen: Of how many rows these are a sample; None if they are all.
    """

    name: str
    digest: str
    test: "Table | None" = None
    is_raw: bool = False
    outer: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    dialect: Dialect | None = None
    num_seen: int | None = None

    def __post_init__(self) -> None:
        if not self.frame.height:
            raise lack_rows(self.name, self.frame.columns)


class TableSource(ABC):
    """Where a table comes from. A kind of source needs `digest` and `read`; the rest works for rows that fit into memory.

    Args:
        name: The source as it was asked for, such as in `data.source`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of all that the table holds; with the same digest and settings, nothing is trained again.

        Raises:
            DataError: The source cannot be read.
        """

    @abstractmethod
    def read(self) -> Table:
        """Read all rows, in an order that the digest covers.

        Raises:
            DataError: The source cannot be read, or holds no row.
        """

    def sample(self, max_bytes: int, max_bytes_read: int) -> Table:  # noqa: ARG002
        """Read as many rows, evenly from all over the table, as `max_bytes` hold, without a digest; raises as `read` does.

        Args:
            max_bytes: Memory for the rows, about.
            max_bytes_read: Where to stop, if the table goes on.
        """
        return self.read()

    def names(self) -> list[str]:
        """Read the names of the columns, in order; raises as `read` does."""
        return self.read().frame.columns

    def iterate(self, columns: Sequence[str], keep: Sequence[str], batch_size: int) -> Iterator[LocatedRows]:
        """Read some columns, a batch of rows at a time, in the order of `read`; all batches but the last have `batch_size` rows.

        Args:
            columns: Columns that are needed.
            keep: Columns that were asked for with `--keep`, needed too.
            batch_size: Rows in a batch.

        Raises:
            DataError: As `read`; or a column is missing.
        """
        table = self.read()
        wanted = choose_columns(columns, keep, table.frame.columns, self.name)
        yield from rebatch([LocatedRows(table.frame[wanted], table.parts)], keep, batch_size)

    def count_bytes(self) -> int | None:
        """Count the bytes to be read, or return None if that takes long; a small table is checked before a run starts."""
        return None

    def includes(self, output: str) -> bool:  # noqa: ARG002
        """Whether a file that is written to `output` would be part of the source, or replace it."""
        return False


def lack_rows(name: str, columns: Sequence[str]) -> DataError:
    """The error for a source that holds no row."""
    return DataError(f"{name}: expected rows, found an empty table with columns {list_names(columns)}; add rows")


def choose_columns(columns: Sequence[str], keep: Sequence[str], present: Sequence[str], where: str) -> list[str]:
    """The columns to keep, then the others that are needed; raises DataError if one is not `present`."""
    known = set(present)
    missing = [name for name in columns if name not in known]
    if missing:
        raise DataError(
            f"{where}: expected column {list_names(missing)}, found {list_names(present)}; add what is missing"
            " (leave cells empty where the value is unknown)"
        )
    check_columns("--keep", keep, present, where)
    return list(dict.fromkeys([*keep, *columns]))
