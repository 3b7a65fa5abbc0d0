"""What people should know of the columns of a table: how they were read, and of what nothing can be learned."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from refit.data.identities import Rows
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, NumericColumn
from refit.tables.schema import Reading, count_marks, take_rows
from refit.texts import show

LUMPED_SHARE = 0.1
"""Share of the train rows whose categories have no input of their own, from which on people are told."""
MAX_EXACT = 2.0**53
"""Up to it every whole number is a float of its own."""
MAX_EXACT_LENGTH = 24
"""The longest text that is needed to write a float; a longer one may have digits that no float keeps."""


def remark_on_columns(
    columns: Sequence[AnyColumn], readings: Mapping[str, Reading], frame: pl.DataFrame, raw: pl.DataFrame, rows: Rows
) -> list[str]:
    """Say what people should know of columns, a line for each of which there is something to say.

    Args:
        columns: As they were fitted to the train rows.
        readings: How each was read.
        frame: The cells of all rows, converted.
        raw: The same as they were read.
        rows: Which of them are train rows.
    """
    texts = [column.name for column in columns if isinstance(column, NumericColumn) and raw[column.name].dtype == pl.String]
    lengths = raw[texts].select(pl.all().str.len_bytes().max()).row(0, named=True) if texts else {}
    lines = []
    for column in columns:
        told = [readings[column.name].remark]
        if column.is_constant:
            told.append(_remark_on_constant(column, raw[column.name][_find_first(frame[column.name], rows)]))
        elif isinstance(column, CategoricalColumn):
            told.append(_remark_on_categories(column, take_rows(frame[column.name], rows)))
            told.append(_remark_on_marks(frame[column.name], raw[column.name]))
        if isinstance(column, NumericColumn):
            told.append(_remark_on_digits(frame[column.name], raw[column.name], lengths.get(column.name, 0)))
        if any(told):
            lines.append(f"column `{show(column.name)}`: {'; '.join(filter(None, told))}")
    return lines


def _find_first(values: pl.Series, rows: Rows) -> int:
    """The first of these rows that has a value."""
    return int(rows[int(take_rows(values, rows).is_not_null().arg_max() or 0)])


def _remark_on_constant(column: AnyColumn, value: object) -> str:
    if column.has_indicator:
        return f"`{show(value)}` in all train rows that have a value, so that only its absence is learned from"
    return f"`{show(value)}` in all train rows, so that nothing is learned from it"


def _remark_on_categories(column: CategoricalColumn, values: pl.Series) -> str | None:
    present = values.drop_nulls()
    if not column.categories:
        return (
            f"{present.n_unique():,} texts in the train rows, none of them twice, so that nothing is learned from it;"
            " leave it out with data.features"
        )
    share = 1 - int(present.is_in(column.categories).sum()) / present.len()
    if share < LUMPED_SHARE:
        return None
    return (
        f"{present.n_unique():,} categories in the train rows, of which the {len(column.categories)} most frequent have inputs of"
        f" their own; all others, in {share:.0%} of the rows, share one"
    )


def _remark_on_marks(values: pl.Series, raw: pl.Series) -> str | None:
    """The most frequent text that means a missing value, where texts are categories."""
    if raw.dtype != pl.String:
        return None
    marks = count_marks(raw, values)
    if not marks:
        return None
    mark, num_rows = marks[0]
    return f"`{show(mark)}` counts as a missing value, in {num_rows} rows; take it out of data.null_values if it is a category"


def _remark_on_digits(numbers: pl.Series, raw: pl.Series, length: int | None) -> str | None:
    """Where different cells became one float."""
    if raw.dtype.is_float() or not numbers.len():
        return None
    floats = numbers.cast(pl.Float64)
    sizes = np.abs(floats.to_numpy())
    if not (sizes > MAX_EXACT).any() and (length or 0) <= MAX_EXACT_LENGTH and not raw.dtype.is_decimal():
        return None
    num_lost = raw.drop_nulls().n_unique() - floats.drop_nulls().n_unique()
    if num_lost <= 0:
        return None
    example = raw[int(np.nanargmax(sizes))]
    return (
        f"{num_lost:,} of its values, such as `{show(example)}`, have more digits than a float keeps, and become one with others;"
        " name the column in data.categorical if they are codes"
    )
