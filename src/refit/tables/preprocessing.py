"""Learns from the train rows how columns become inputs, and turns rows into inputs, including rows that are scored later.

N is the number of rows, F the number of inputs; a column fills one or more neighbouring inputs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from refit.data.identities import Rows
from refit.data.signature import InputColumn, Kind, Signature, Target
from refit.errors import DataError
from refit.tables.columns import Locate, index_rows, stack_numbers, take_column, take_rows
from refit.tables.conversion import Numbers, convert_column, convert_numbers, read_marks
from refit.tables.formats import AnyFormat, ClockFormat, Format
from refit.tables.ngrams import MAX_WIDTH, choose_ngrams, count_known, number_ngrams, take_sample, write_numbers
from refit.texts import list_names, show

if TYPE_CHECKING:
    from torch import Tensor

Inputs: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

MIN_CATEGORY_ROWS = 2
"""Categories with fewer train rows share the input of all others."""
MAX_CATEGORIES = 100
"""At most so many categories of a column have inputs of their own: the most frequent; ties go by name."""
MAX_CODES = 1000
"""At most so many categories of a column have codes of their own, which cost fewer weights than inputs."""
NUM_QUANTILES = 48
"""How many intervals the quantiles of a number bound, at most."""
MAX_QUANTILES = 12_288
"""How many intervals there are for all numbers together, at most; more would make the record of the data set larger than it."""
MIN_QUANTILES = 4
"""Fewer intervals tell nothing."""
ENDLESS = sys.float_info.max
"""The deviation of a column with one value in the train rows: divided by it, all later values become 0, as that value does."""

DATE_PARTS = {"year": 0.0, "month": 12.0, "day": 31.0, "weekday": 7.0, "hour": 24.0}
"""Parts of a date-time, and after how much each begins anew."""


class Scale(BaseModel):
    """How numbers are imputed and standardized: (x - mean) / std, over the imputed train rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    mean: float
    std: float


class FittedColumn(BaseModel):
    """The fields of every kind of column. Each kind adds `_names` of its inputs, and `_fill`, which writes them into zeros.

    A column with one value in the train rows gives every row the inputs of that value: nothing was learned about others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    null_values: list[str]
    """Texts that mean a missing value."""
    has_indicator: bool
    """Whether an input says that the value is missing: there is one if train rows lacked values."""
    format: Format | None = None
    """How numbers and date-times are written in text; None for plain numbers and ISO dates."""


class NumericColumn(FittedColumn):
    """A number: its standardized value."""

    kind: Literal["numeric"] = "numeric"
    scale: Scale
    quantiles: list[float] = Field(default_factory=list)
    """See `InputColumn`."""

    @property
    def is_constant(self) -> bool:
        """Whether the train rows have one value."""
        return self.scale.std == ENDLESS

    def _names(self) -> list[str]:
        return [self.name]

    def _fill(self, values: pl.Series, out: Inputs, locate: Locate) -> Mask:
        numbers = convert_numbers(values, self.null_values, locate, self.format)
        out[:, 0] = _standardize(numbers, self.scale)
        if not np.isfinite(out).all():
            row = int(np.argmin(np.isfinite(out[:, 0])))
            raise DataError(
                f"{locate(row)}, column `{show(self.name)}`: expected a number that fits float32 after standardizing,"
                f" found {numbers[row]}; correct the value or leave it empty"
            )
        return np.isnan(numbers)


class DatetimeColumn(FittedColumn):
    """A date-time in UTC: its standardized parts; `hour` counts minutes and seconds as fractions."""

    kind: Literal["datetime"] = "datetime"
    scales: dict[str, Scale]
    quantiles: dict[str, list[float]] = Field(default_factory=dict)
    """See `InputColumn`, by part."""

    @property
    def is_constant(self) -> bool:
        """Whether the train rows have one value."""
        return all(scale.std == ENDLESS for scale in self.scales.values())

    def _names(self) -> list[str]:
        return [f"{self.name}.{part}" for part in self.scales]

    def _fill(self, values: pl.Series, out: Inputs, locate: Locate) -> Mask:
        times = convert_column(values, "datetime", self.null_values, locate, self.format)
        for position, (part, scale) in enumerate(self.scales.items()):
            out[:, position] = _standardize(_date_part(times, part), scale)
        return times.is_null().to_numpy()


class BooleanColumn(FittedColumn):
    """A boolean: 0 or 1."""

    kind: Literal["boolean"] = "boolean"
    most_frequent: bool
    is_constant: bool = False

    def _names(self) -> list[str]:
        return [self.name]

    def _fill(self, values: pl.Series, out: Inputs, locate: Locate) -> Mask:
        truths = convert_column(values, "boolean", self.null_values, locate)
        out[:, 0] = self.most_frequent if self.is_constant else truths.fill_null(self.most_frequent).to_numpy()
        return truths.is_null().to_numpy()


class CategoricalColumn(FittedColumn):
    """A category: an input for each category kept, and one for all others, including unseen ones and unexpected missing values.

    A coded column has one input instead: the place of the category, or one more for all others, or two more for missing values.
    """

    kind: Literal["categorical"] = "categorical"
    categories: list[str]
    is_constant: bool = False
    is_coded: bool = False

    @property
    def num_codes(self) -> int:
        """How many codes there are; 0 if each category has an input."""
        return (len(self.categories) + 2) if self.is_coded else 0

    def _names(self) -> list[str]:
        if self.is_coded:
            return [self.name]
        return [*(f"{self.name}={category}" for category in self.categories), f"{self.name} is other"]

    def _fill(self, values: pl.Series, out: Inputs, locate: Locate) -> Mask:
        names = convert_column(values, "categorical", self.null_values, locate)
        is_missing = names.is_null().to_numpy()
        is_shown = ~is_missing if self.has_indicator else np.ones_like(is_missing)
        other = len(self.categories)
        if self.is_constant:
            out[is_shown, 0] = 1
            return is_missing
        codes = names.replace_strict(self.categories, range(other), default=other, return_dtype=pl.Int64).to_numpy()
        if self.is_coded:
            out[:, 0] = np.where(is_missing, other + 1, codes)
        else:
            out[np.flatnonzero(is_shown), codes[is_shown]] = 1
        return is_missing


class TextColumn(FittedColumn):
    """A text: the numbers of the n-grams in it, then zeros, which say that there are no more. A missing text has none."""

    kind: Literal["text"] = "text"
    ngrams: list[str]
    """Those learned, from number 1 on; none if the train rows have one value."""
    width: int
    """How many numbers there is place for; texts that hold more lose the last."""
    few_known: float
    """A text with fewer n-grams learned, a letter, is unlike those of the train rows: half as many as 19 of 20 of these have."""
    share_unlike: float
    """Share of the texts of train rows that are so."""

    @property
    def is_constant(self) -> bool:
        """Whether nothing tells the train rows apart."""
        return not self.ngrams

    def _names(self) -> list[str]:
        return [f"{self.name}[{place}]" for place in range(self.width)]

    def _fill(self, values: pl.Series, out: Inputs, locate: Locate) -> Mask:
        texts = convert_column(values, "text", self.null_values, locate)
        write_numbers(texts, self._numbers, out)
        return texts.is_null().to_numpy()

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return number_ngrams(self.ngrams)


AnyColumn = Annotated[NumericColumn | DatetimeColumn | BooleanColumn | CategoricalColumn | TextColumn, Field(discriminator="kind")]


def name_inputs(columns: Sequence[AnyColumn]) -> list[str]:
    """Names of the F inputs, in order."""
    return [name for column in columns for name in [*column._names(), *[f"{column.name} is missing"] * column.has_indicator]]


def list_scales(column: AnyColumn) -> dict[str, Scale]:
    """List the scales that standardize a column's numbers, by the name of the part; none for other kinds."""
    if isinstance(column, NumericColumn):
        return {"value": column.scale}
    return column.scales if isinstance(column, DatetimeColumn) else {}


def sign_columns(columns: Sequence[AnyColumn], target: Target) -> Signature:
    """Describe fitted columns and what is predicted, for a model."""
    inputs = []
    for column in columns:
        scales = list_scales(column).values()
        as_it_is = column.has_indicator and bool(scales)  # the input that says that a value is missing
        means = [*(scale.mean for scale in scales), *[0.0] * as_it_is]
        stds = [*(0.0 if scale.std == ENDLESS else scale.std for scale in scales), *[1.0] * as_it_is]
        known: dict[str, Any] = {"name": column.name, "kind": column.kind, "inputs": name_inputs([column])}
        periods = [0.0 if scale.std == ENDLESS else period for scale, period in zip(scales, _list_periods(column), strict=True)]
        if any(periods):
            known["periods"] = [*periods, *[0.0] * as_it_is]
        if isinstance(column, TextColumn):
            known |= {"num_ngrams": len(column.ngrams), "vocabulary_digest": _digest_texts(column.ngrams)}
        elif isinstance(column, CategoricalColumn) and column.is_coded:
            known |= {"num_codes": column.num_codes, "vocabulary_digest": _digest_texts(column.categories)}
        elif quantiles := _list_quantiles(column):
            known["quantiles"] = [*quantiles, *[[]] * as_it_is]
        inputs.append(InputColumn(**known, means=means, stds=stds))
    return Signature(columns=inputs, target=target)


def _list_quantiles(column: AnyColumn) -> list[list[float]]:
    """List the quantiles of each number of a column; none if they were not kept."""
    if isinstance(column, NumericColumn):
        return [column.quantiles] * bool(column.quantiles)
    return [*column.quantiles.values()] if isinstance(column, DatetimeColumn) else []


def _list_periods(column: AnyColumn) -> list[float]:
    """After how much each number of a column begins anew; 0 for never."""
    if isinstance(column, NumericColumn):
        return [DATE_PARTS["hour"] if isinstance(column.format, ClockFormat) else 0.0]
    return [DATE_PARTS[part] for part in column.scales] if isinstance(column, DatetimeColumn) else []


def _digest_texts(texts: Sequence[str]) -> str:
    return sha256("\n".join(texts).encode()).hexdigest()


def fit_columns(
    frame: pl.DataFrame,
    kinds: Mapping[str, Kind],
    null_values: Sequence[str] = (),
    is_raw: bool = False,
    rows: Rows | None = None,
    formats: Mapping[str, AnyFormat] = MappingProxyType({}),
    max_one_hot: int | None = None,
) -> list[AnyColumn]:
    """Fit the columns in `kinds` on train rows; columns without any value there are left out.

    Args:
        frame: Rows converted to `kinds`; numbers may be of any type.
        kinds: What each column holds, in the order of the inputs.
        null_values: Texts that mean a missing value, in rows to come.
        is_raw: Whether numbers stay as they are.
        rows: Which of them are train rows; None takes all.
        formats: How numbers and date-times are written in text, in rows to come; columns that are not named need none.
        max_one_hot: Columns with more categories are coded; None codes none.

    Raises:
        DataError: Numbers are so large that their mean or deviation overflows.
    """
    columns: list[AnyColumn] = []
    index, scales, with_gaps = index_rows(rows), dict[str, Scale | None](), set[str]()
    num_intervals = _choose_intervals(kinds, is_raw)
    for names, numbers in stack_numbers(frame, [name for name in kinds if kinds[name] == "numeric"], rows):
        scales |= zip(names, _fit_scales(names, numbers, is_raw), strict=True)
        with_gaps |= {name for name, has_gaps in zip(names, np.count_nonzero(np.isnan(numbers), axis=1), strict=True) if has_gaps}
    for name, kind in kinds.items():
        known: dict[str, Any] = {"name": name, "null_values": list(null_values), "format": formats.get(name)}
        if name in scales:
            known["has_indicator"] = name in with_gaps
            if (scale := scales[name]) is not None:
                numbers = take_rows(frame[name], index, kind).to_numpy() if num_intervals else np.empty(0)
                columns.append(NumericColumn(**known, scale=scale, quantiles=_fit_quantiles(numbers, scale, num_intervals)))
            continue
        values = take_rows(take_column(frame, name), index, kind)
        known["has_indicator"] = values.has_nulls()
        present = values.drop_nulls() if values.has_nulls() else values
        if present.is_empty():
            continue
        if kind == "boolean":
            num_true = int(present.sum())
            is_constant = num_true in (0, present.len())
            columns.append(BooleanColumn(**known, most_frequent=2 * num_true > present.len(), is_constant=is_constant))
        elif kind == "categorical":
            columns.append(_fit_categories(present, known, max_one_hot))
        elif kind == "text":
            columns.append(_fit_texts(present, known))
        else:
            has_times = (present != present.dt.truncate("1d")).any()
            parts = {part: _date_part(values, part) for part in DATE_PARTS if has_times or part != "hour"}
            scales_of_parts = _fit_scales([name] * len(parts), np.stack([*parts.values()]), False)
            fitted = {part: scale for part, scale in zip(parts, scales_of_parts, strict=True) if scale is not None}
            quantiles = {part: _fit_quantiles(parts[part], scale, num_intervals) for part, scale in fitted.items()}
            columns.append(DatetimeColumn(**known, scales=fitted, quantiles=quantiles if num_intervals else {}))
    return columns


def _count_rows(index: int) -> str:
    return f"row {index + 1}"


def apply_columns(
    columns: Sequence[AnyColumn],
    frame: pl.DataFrame,
    locate: Locate = _count_rows,
    rows: Rows | None = None,
    observe: Callable[[AnyColumn, pl.Series, Inputs, Mask], None] | None = None,
) -> "Tensor":
    """Turn raw rows into inputs; columns come in any order, and others are ignored.

    Args:
        columns: As `fit_columns` gave them.
        frame: The rows.
        locate: Says where a row is, for messages; it is given the index among the rows to turn.
        rows: Which rows to turn, N of them; None takes all. They are gathered a column at a time.
        observe: Called with each column, its cells, their inputs, and which cells are missing.

    Returns:
        The inputs, float32.

    Raises:
        DataError: Columns are missing, or a value is infinite, is text where a number belongs, or is too large for float32.

    Shape:
        frame: N rows or more; returns (N, F).
    """
    present = set(frame.columns)
    missing = [column.name for column in columns if column.name not in present]
    if missing:
        raise DataError(
            f"rows to score: expected column {list_names(missing)}, found {list_names(frame.columns)}; add what is missing"
            " (leave cells empty where the value is unknown)"
        )
    inputs = np.zeros((frame.height if rows is None else len(rows), len(name_inputs(columns))), dtype=np.float32)
    start, index = 0, index_rows(rows)
    filled = set[str]() if observe is not None else _fill_numbers(columns, frame, rows, inputs)
    for column in columns:
        end = start + len(column._names())
        if column.name in filled:
            start = end + column.has_indicator
            continue
        values, block = take_rows(take_column(frame, column.name), index), inputs[:, start:end]
        is_missing = column._fill(values, block, locate)
        if observe is not None:
            observe(column, values, block, is_missing)
        if column.has_indicator:
            inputs[:, end] = is_missing
        start = end + column.has_indicator
    import torch  # takes a second, which who only looks at a table need not wait for

    return torch.from_numpy(inputs)


def _fill_numbers(columns: Sequence[AnyColumn], frame: pl.DataFrame, rows: Rows | None, inputs: Inputs) -> set[str]:
    """Write columns that hold numbers already, and their indicators, and return the names of those of which all numbers fit."""
    known, filled, start = dict[str, tuple[int, NumericColumn]](), set[str](), 0
    for column in columns:
        if not isinstance(column, NumericColumn):
            pass
        elif frame[column.name].dtype.is_numeric() and not len(read_marks(tuple(column.null_values), "numeric")):
            known[column.name] = start, column
        start += len(column._names()) + column.has_indicator
    for names, numbers in stack_numbers(frame, [*known], rows):
        starts, some = [known[name][0] for name in names], [known[name][1] for name in names]
        median, mean, std = (np.array([[getattr(column.scale, part)] for column in some]) for part in ("median", "mean", "std"))
        is_missing = np.isnan(numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            standardized = ((np.where(is_missing, median, numbers) - mean) / std).astype(np.float32)
        fits = np.logical_and.reduce(np.isfinite(standardized) & ~np.isinf(numbers), axis=1)
        inputs[:, starts] = standardized.T
        with_gaps = [place for place, column in enumerate(some) if column.has_indicator]
        inputs[:, [starts[place] + 1 for place in with_gaps]] = is_missing[with_gaps].T
        filled.update(name for name, is_filled in zip(names, fits, strict=True) if is_filled)
    return filled


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
            f"rows: expected columns of one length with distinct names, found others ({error}); correct them"
        ) from error


def _read_series(name: str, values: Any) -> pl.Series:
    """A column of values; as text where they are of several types."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(f"rows, column `{name}`: expected a list of values, found {values!r}; put it in a list")
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return pl.Series(name, values.astype("datetime64[us]"))
    cells: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return pl.Series(name, cells, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(name, [None if value is None else str(value) for value in cells], dtype=pl.String)


def _standardize(numbers: Numbers, scale: Scale) -> Inputs:
    with np.errstate(over="ignore"):  # numbers that do not fit are refused
        standardized = (np.where(np.isnan(numbers), scale.median, numbers) - scale.mean) / scale.std
        return standardized.astype(np.float32)


def _fit_scales(names: Sequence[str], numbers: Numbers, is_raw: bool) -> list[Scale | None]:
    """Median of the numbers present, then mean and population deviation with the median filled in; None for columns without any.

    Shape:
        numbers: (C, N), contiguous, so that numpy adds those of a column in one order.
    """
    if not numbers.shape[1]:
        return [None] * len(numbers)
    ordered, num_present = np.sort(numbers, axis=1), np.count_nonzero(~np.isnan(numbers), axis=1)
    is_present, places = num_present > 0, np.arange(len(numbers))
    low, high = (ordered[places, np.maximum(middle, 0)] for middle in ((num_present - 1) // 2, num_present // 2))
    with np.errstate(over="ignore", invalid="ignore"):
        medians = low + (high - low) * 0.5
        if is_raw:
            means, stds = np.zeros(len(numbers)), np.ones(len(numbers))
        else:
            filled = np.where(np.isnan(numbers), medians[:, None], numbers)
            is_constant = np.equal(filled.min(axis=1), filled.max(axis=1))
            means, stds = filled.mean(axis=1), np.where(is_constant, ENDLESS, filled.std(axis=1))
    is_large = ~np.logical_and.reduce(np.isfinite([medians, means, stds])) & is_present
    if not is_raw and is_large.any():
        place = int(is_large.argmax())
        raise DataError(
            f"column `{names[place]}`: expected numbers whose mean and deviation fit float64, found values up to"
            f" {np.abs(filled[place]).max()}; divide the column, or leave it out with data.features"
        )
    fitted = zip(is_present, medians.tolist(), means.tolist(), stds.tolist(), strict=True)
    return [Scale(median=median, mean=mean, std=std or ENDLESS) if known else None for known, median, mean, std in fitted]


def _choose_intervals(kinds: Mapping[str, Kind], is_raw: bool) -> int:
    """How many intervals the quantiles of each number bound, so that those of all columns stay few; 0 keeps none."""
    num_numbers = sum({"numeric": 1, "datetime": len(DATE_PARTS)}.get(kind, 0) for kind in kinds.values())
    num_intervals = 0 if is_raw or not num_numbers else min(NUM_QUANTILES, MAX_QUANTILES // num_numbers)
    return num_intervals if num_intervals >= MIN_QUANTILES else 0


def _fit_quantiles(numbers: Numbers, scale: Scale, num_intervals: int) -> list[float]:
    """Find the quantiles of the values present, one more than there are intervals; none for a single value."""
    if not num_intervals or scale.std == ENDLESS:
        return []
    present = numbers[~np.isnan(numbers)]
    chosen = np.quantile(present, np.linspace(0, 1, num_intervals + 1), method="nearest")
    return [float(value) for value in _standardize(chosen, scale)]


def _fit_categories(present: pl.Series, known: Mapping[str, Any], max_one_hot: int | None) -> CategoricalColumn:
    """Choose the categories of a column that rows of train have often enough, and whether they have inputs or codes."""
    counts = present.alias("category").value_counts(name="rows")
    often = counts.filter(pl.col("rows") >= MIN_CATEGORY_ROWS).sort("rows", "category", descending=[True, False])["category"]
    is_coded, is_constant = max_one_hot is not None and often.len() > max_one_hot, counts.height == 1
    categories = list(often.head(MAX_CODES if is_coded else MAX_CATEGORIES).sort())
    known = {**known, "has_indicator": known["has_indicator"] and not is_coded}  # a code says that a value is missing
    return CategoricalColumn(**known, categories=categories, is_constant=is_constant, is_coded=is_coded)


def _fit_texts(present: pl.Series, known: Mapping[str, Any]) -> TextColumn:
    """Choose the n-grams of a column; a missing text needs no indicator, as it is the one that has none."""
    present = take_sample(present)
    ngrams = [] if present.n_unique() == 1 else choose_ngrams(present)
    counts = count_known(present, number_ngrams(ngrams))
    width = min(MAX_WIDTH, max(1, int(counts.max())))
    densities = np.sort(counts / present.str.len_chars().to_numpy())
    few_known = float(densities[len(densities) // 20]) / 2
    return TextColumn(
        **{**known, "has_indicator": False},
        ngrams=ngrams,
        width=width,
        few_known=few_known,
        share_unlike=float((densities < few_known).mean()),
    )


def _date_part(values: pl.Series, part: str) -> Numbers:
    if part == "hour":
        midnight = values.dt.truncate("1d")
        return ((values - midnight).dt.total_microseconds() / 3.6e9).to_numpy()
    found: pl.Series = getattr(values.dt, part)()
    return found.cast(pl.Float64).to_numpy()
