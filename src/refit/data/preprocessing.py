"""Learns from the train rows how columns become inputs, and turns rows into inputs; also rows that are scored later.

N is the number of rows, F the number of inputs; a column fills one or more neighbouring inputs.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from refit.data.files import list_names
from refit.data.schema import Kind, Locate, Rows, convert_column, take_rows
from refit.errors import DataError

MIN_CATEGORY_ROWS = 2
"""Categories with fewer train rows share the input of all others."""
MAX_CATEGORIES = 100
"""Categories of a column with inputs of their own: the most frequent, by name where equally frequent."""

DATE_PARTS = ("year", "month", "day", "weekday", "hour")


class Scale(BaseModel):
    """How numbers are imputed and standardized: (x - mean) / std, over the imputed train rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    mean: float
    std: float


class FittedColumn(BaseModel):
    """What every kind of column knows; each has `_names` of its inputs, and `_fill` to write them into zeros."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    null_values: list[str]
    """Texts that mean a missing value."""
    has_indicator: bool
    """Whether an input says that the value is missing: there is one if train rows lacked values."""


class NumericColumn(FittedColumn):
    """A number: its standardized value."""

    kind: Literal["numeric"] = "numeric"
    scale: Scale

    def _names(self) -> list[str]:
        return [self.name]

    def _fill(self, values: pl.Series, out: NDArray[np.float32]) -> None:
        out[:, 0] = _standardize(values, self.scale)


class DatetimeColumn(FittedColumn):
    """A date-time in UTC: its standardized parts; `hour` counts minutes and seconds as fractions."""

    kind: Literal["datetime"] = "datetime"
    scales: dict[str, Scale]

    def _names(self) -> list[str]:
        return [f"{self.name}.{part}" for part in self.scales]

    def _fill(self, values: pl.Series, out: NDArray[np.float32]) -> None:
        for position, (part, scale) in enumerate(self.scales.items()):
            out[:, position] = _standardize(_date_part(values, part), scale)


class BooleanColumn(FittedColumn):
    """A boolean: 0 or 1."""

    kind: Literal["boolean"] = "boolean"
    most_frequent: bool

    def _names(self) -> list[str]:
        return [self.name]

    def _fill(self, values: pl.Series, out: NDArray[np.float32]) -> None:
        out[:, 0] = values.fill_null(self.most_frequent).to_numpy()


class CategoricalColumn(FittedColumn):
    """A category: an input for each one kept, and one for all others, unseen ones and unexpected missing values included."""

    kind: Literal["categorical"] = "categorical"
    categories: list[str]

    def _names(self) -> list[str]:
        return [*(f"{self.name}={category}" for category in self.categories), f"{self.name} is other"]

    def _fill(self, values: pl.Series, out: NDArray[np.float32]) -> None:
        other = len(self.categories)
        codes = values.replace_strict(self.categories, range(other), default=other, return_dtype=pl.Int64)
        is_shown = values.is_not_null() if self.has_indicator else pl.repeat(True, values.len(), eager=True)
        out[np.flatnonzero(is_shown.to_numpy()), codes.filter(is_shown).to_numpy()] = 1


AnyColumn = Annotated[NumericColumn | DatetimeColumn | BooleanColumn | CategoricalColumn, Field(discriminator="kind")]


def name_inputs(columns: Sequence[AnyColumn]) -> list[str]:
    """Names of the F inputs, in order."""
    return [name for column in columns for name in [*column._names(), *[f"{column.name} is missing"] * column.has_indicator]]


def fit_columns(
    frame: pl.DataFrame,
    kinds: Mapping[str, Kind],
    null_values: Sequence[str] = (),
    is_raw: bool = False,
    rows: Rows | None = None,
) -> list[AnyColumn]:
    """Fit the columns in `kinds` on train rows; columns without any value there are left out.

    Args:
        frame: Rows converted to `kinds`; numbers may be of any type.
        kinds: What each column holds, in the order of the inputs.
        null_values: Texts that mean a missing value, in rows to come.
        is_raw: Whether numbers stay as they are.
        rows: Which of them are train rows; None takes all.

    Raises:
        DataError: Numbers are so large that their mean or deviation overflows.
    """
    columns: list[AnyColumn] = []
    for name, kind in kinds.items():
        values = take_rows(frame[name], rows, kind)
        known: dict[str, Any] = {"name": name, "null_values": list(null_values), "has_indicator": values.has_nulls()}
        present = values.drop_nulls()
        if present.is_empty():
            continue
        if kind == "numeric":
            columns.append(NumericColumn(**known, scale=_fit_scale(values, is_raw)))
        elif kind == "boolean":
            columns.append(BooleanColumn(**known, most_frequent=2 * int(present.sum()) > present.len()))
        elif kind == "categorical":
            columns.append(CategoricalColumn(**known, categories=_choose_categories(present)))
        else:
            has_times = (present != present.dt.truncate("1d")).any()
            parts = DATE_PARTS if has_times else DATE_PARTS[:-1]
            columns.append(DatetimeColumn(**known, scales={part: _fit_scale(_date_part(values, part), False) for part in parts}))
    return columns


def _count_rows(index: int) -> str:
    return f"row {index + 1}"


def apply_columns(
    columns: Sequence[AnyColumn], frame: pl.DataFrame, locate: Locate = _count_rows, rows: Rows | None = None
) -> Tensor:
    """Turn raw rows into inputs; columns come in any order, and others are ignored.

    Args:
        columns: As `fit_columns` gave them.
        frame: The rows.
        locate: Says where a row is, for messages; it counts those that are turned.
        rows: Which of them are turned, N; None takes all. A column at a time is gathered.

    Returns:
        The inputs, float32.

    Raises:
        DataError: Columns are missing, or a value is infinite, is text where a number belongs, or is too large for float32.

    Shape:
        frame: N rows or more; returns (N, F).
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(
            f"rows to score: expected column {list_names(missing)}, found {list_names(frame.columns)}; add what is missing"
            " (leave cells empty where the value is unknown)"
        )
    inputs = np.zeros((frame.height if rows is None else len(rows), len(name_inputs(columns))), dtype=np.float32)
    start = 0
    for column in columns:
        values = convert_column(take_rows(frame[column.name], rows), column.kind, column.null_values, locate)
        end = start + len(column._names())
        out = inputs[:, start:end]
        column._fill(values, out)
        if column.kind == "numeric" and not np.isfinite(out).all():
            row = int(np.argmin(np.isfinite(out[:, 0])))
            raise DataError(
                f"{locate(row)}, column `{column.name}`: expected a number that fits float32 after standardizing,"
                f" found {values[row]}; mend the value or leave it empty"
            )
        if column.has_indicator:
            inputs[:, end] = values.is_null().to_numpy()
        start = end + column.has_indicator
    return torch.from_numpy(inputs)


def read_frame(rows: Any) -> pl.DataFrame:
    """Read rows from a polars DataFrame, a pandas DataFrame, or a mapping of column name to values.

    Raises:
        DataError: `rows` is none of these, a name comes twice, or columns differ in length.
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, Mapping):
        columns = [(str(name), values) for name, values in rows.items()]
    elif hasattr(rows, "iloc") and hasattr(rows, "columns"):  # pandas, which need not be installed
        parts = [(str(name), rows.iloc[:, position]) for position, name in enumerate(rows.columns)]
        columns = [
            (name, [None if gone else value for value, gone in zip(part.tolist(), part.isna(), strict=True)])
            for name, part in parts
        ]
    else:
        raise DataError(
            f"rows: expected a polars or pandas DataFrame or a mapping of column to values, found {type(rows).__name__}; convert it"
        )
    try:
        return pl.DataFrame([_read_series(name, values) for name, values in columns])
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"rows: expected columns of one length and with names of their own, found others ({error}); mend them"
        ) from error


def _read_series(name: str, values: Any) -> pl.Series:
    """A column of values; as text where they are of several types."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(f"rows, column `{name}`: expected a list of values, found {values!r}; put it in a list")
    cells: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return pl.Series(name, cells, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(name, [None if value is None else str(value) for value in cells], dtype=pl.String)


def _standardize(values: pl.Series, scale: Scale) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # `apply_columns` refuses what does not fit
        standardized = (values.fill_null(scale.median).to_numpy() - scale.mean) / scale.std
        return standardized.astype(np.float32)


def _fit_scale(values: pl.Series, is_raw: bool) -> Scale:
    """Median of what is there, then mean and population deviation with the median filled in; constants get deviation 1."""
    median = float(values.median())  # type: ignore[arg-type]
    if is_raw:
        return Scale(median=median, mean=0, std=1)
    numbers = values.fill_null(median).to_numpy()  # numpy adds in one order, whatever the number of threads
    is_constant = numbers.min() == numbers.max()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(numbers.mean()), 1.0 if is_constant else float(numbers.std())
    if not np.isfinite([median, mean, std]).all():
        largest = np.abs(numbers).max()
        raise DataError(
            f"column `{values.name}`: expected numbers whose mean and deviation fit float64, found values up to {largest};"
            " divide the column, or leave it out with data.features"
        )
    return Scale(median=median, mean=mean, std=std or 1.0)


def _choose_categories(present: pl.Series) -> list[str]:
    counts = present.alias("category").value_counts(name="rows").filter(pl.col("rows") >= MIN_CATEGORY_ROWS)
    return list(counts.sort("rows", "category", descending=[True, False])["category"].head(MAX_CATEGORIES).sort())


def _date_part(values: pl.Series, part: str) -> pl.Series:
    if part == "hour":
        midnight = values.dt.truncate("1d")
        return (values - midnight).dt.total_microseconds() / 3.6e9
    found: pl.Series = getattr(values.dt, part)()
    return found.cast(pl.Float64)
