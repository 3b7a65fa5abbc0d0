"""The model that is exported: it takes a tensor per column instead of rows.

N is the number of rows, F the number of inputs, C the number of classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refit.tables.columns import take_column
from refit.tables.conversion import convert_column
from refit.tables.ngrams import PIECE, PIECE_MARK, WORD
from refit.tables.preprocessing import (
    AnyColumn,
    CategoricalColumn,
    DatetimeColumn,
    NumericColumn,
    TextColumn,
    apply_columns,
    list_scales,
)
from refit.training.objective import Objective
from refit.training.objectives import Numbers, Quantiles

MISSING_TIME = -(2**63)
MISSING_CATEGORY = -1
MICROSECONDS_PER_DAY = 86_400_000_000
TEXTS = f"""\
A text is the numbers of its n-grams, each once, and then zeros, (N, `width`) in all. The first of `ngrams` is number 1:

    import regex, unicodedata
    WORD = r"(?V1){WORD}"
    def number_text(text, ngrams, width):
        places = {{ngram: place for place, ngram in enumerate(ngrams, 1)}}
        words = regex.findall(WORD, unicodedata.normalize("NFKC", text).lower())
        pairs = [one + " " + other for one, other in zip(words, words[1:])]
        marked = [f"<{{word}}>" for word in dict.fromkeys(words) if len(word) >= {PIECE - 1}]
        pieces = ["{PIECE_MARK}" + word[start : start + {PIECE}] for word in marked for start in range(len(word) - {PIECE - 1})]
        known = [places[ngram] for ngram in dict.fromkeys([*words, *pairs, *pieces]) if ngram in places]
        return [*known, *[0] * width][:width]
"""
"""How those who run an exported model make the tensor of a text."""


class Preparation(nn.Module):
    """Turns tensors of columns into inputs as `apply_columns` does.

    Shape: for each column `(N,)`: float64 with NaN for missing (numbers, and booleans as 0 and 1), int64 microseconds since 1970
    with the least int64 for missing, or int64 indices of categories with -1 for missing; for a text `(N, W)`, the numbers of its
    n-grams, int64. Output: float32 `(N, F)`.
    """

    def __init__(self, columns: Sequence[AnyColumn]) -> None:
        super().__init__()
        self.columns = [column.model_copy() for column in columns]
        for position, column in enumerate(columns):
            for part, scale in list_scales(column).items():  # buffers, as exporters may round plain numbers to float32
                self.register_buffer(f"{position}_{part}", torch.tensor([scale.median, scale.mean, scale.std], dtype=torch.float64))
            if isinstance(column, CategoricalColumn):  # a buffer, as ONNX Runtime warns of a range in the graph
                self.register_buffer(f"{position}_places", torch.arange(len(column.categories) + 1))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the inputs, `(N, F)`."""
        inputs = []
        for position, (column, values) in enumerate(zip(self.columns, tensors, strict=True)):
            if isinstance(column, TextColumn):
                inputs.append(values.float())
                continue
            is_missing = _find_missing(column, values)
            if isinstance(column, CategoricalColumn):
                inputs.append(
                    _find_code(column, values, is_missing).float()[:, None]
                    if column.is_coded
                    else _one_hot(column, values, is_missing, self.get_buffer(f"{position}_places"))
                )
            elif isinstance(column, NumericColumn | DatetimeColumn):
                parts = compute_date_parts(values) if isinstance(column, DatetimeColumn) else {"value": values}
                for part in list_scales(column):
                    median, mean, std = self.get_buffer(f"{position}_{part}").unbind()
                    filled = torch.where(is_missing, median, parts[part])
                    inputs.append(((filled - mean) / std).float()[:, None])
            else:
                usual = float(column.most_frequent)
                known = torch.full_like(values, usual) if column.is_constant else torch.where(is_missing, usual, values)
                inputs.append(known.float()[:, None])
            if column.has_indicator:
                inputs.append(is_missing.float()[:, None])
        return torch.cat(inputs, dim=1)


class Scorer(nn.Module):
    """A whole model: columns to the index of the likeliest class `(N,)` and probabilities `(N, C)`, or to numbers `(N,)`."""

    def __init__(self, columns: Sequence[AnyColumn], network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.preparation = Preparation(columns)
        self.network = network

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """Return indices and probabilities, numbers alone, or medians and quantiles."""
        answers = self.objective.answer(self.network(self.preparation(*columns)).float())
        return answers[:1] if isinstance(self.objective, Numbers) and not isinstance(self.objective, Quantiles) else answers


def describe_column(column: AnyColumn, has_text: bool) -> dict[str, Any]:
    """Describe a column's tensor, for people and programs that build one; `has_text` keeps categories as text."""
    known = {"name": column.name, "kind": column.kind}
    if isinstance(column, DatetimeColumn):
        return {**known, "type": "int64", "missing": MISSING_TIME}
    if isinstance(column, TextColumn):
        return {**known, "type": "int64", "missing": 0, "width": column.width, "ngrams": column.ngrams}
    if not isinstance(column, CategoricalColumn):
        return {**known, "type": "float64", "missing": "NaN"}
    told: dict[str, Any] = {"type": "string", "missing": ""} if has_text else {"type": "int64", "missing": MISSING_CATEGORY}
    return {**known, **told, "categories": column.categories}


def build_array(column: AnyColumn, rows: pl.DataFrame, has_text: bool) -> NDArray[Any]:
    """Turn a column of raw rows into the values of its tensor, `(N,)`, or `(N, W)` of a text."""
    if isinstance(column, TextColumn):
        return apply_columns([column], rows).long().numpy()
    values = convert_column(
        take_column(rows, column.name), column.kind, column.null_values, lambda index: f"row {index + 1}", column.format
    )
    if isinstance(column, DatetimeColumn):
        return values.to_physical().fill_null(MISSING_TIME).to_numpy()
    if not isinstance(column, CategoricalColumn):
        return values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    if has_text:
        return values.fill_null("").to_numpy().astype(object)
    places = pl.int_range(len(column.categories), eager=True)
    codes = values.replace_strict(column.categories, places, default=len(column.categories), return_dtype=pl.Int64)
    return codes.set(values.is_null(), MISSING_CATEGORY).to_numpy()


def compute_date_parts(microseconds: Tensor) -> dict[str, Tensor]:
    """Return year, month, day, weekday (Monday is 1) and hour with its fraction, float64, of microseconds since 1970, `(N,)`.

    Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    """
    # `//` and not `torch.div(…, rounding_mode="floor")`, which ONNX computes in float32.
    days = microseconds // MICROSECONDS_PER_DAY
    shifted = days + 719_468  # since 0000-03-01
    era = shifted // 146_097
    day_of_era = shifted - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    month = torch.where(month_from_march < 10, month_from_march + 3, month_from_march - 9)
    parts = {
        "year": year_of_era + era * 400 + (month <= 2).long(),
        "month": month,
        "day": day_of_year - (153 * month_from_march + 2) // 5 + 1,
        "weekday": (days + 3) % 7 + 1,
    }
    # polars divides by a number by multiplying by its reciprocal; this does the same, to get the same bits.
    hour = (microseconds - days * MICROSECONDS_PER_DAY).double() * torch.tensor(1 / 3.6e9, dtype=torch.float64)
    return {**{part: values.double() for part, values in parts.items()}, "hour": hour}


def _find_missing(column: AnyColumn, values: Tensor) -> Tensor:
    if isinstance(column, CategoricalColumn):
        return values == MISSING_CATEGORY
    return values == MISSING_TIME if isinstance(column, DatetimeColumn) else values.isnan()


def _find_code(column: CategoricalColumn, codes: Tensor, is_missing: Tensor) -> Tensor:
    return torch.where(is_missing, len(column.categories) + 1, codes)


def _one_hot(column: CategoricalColumn, codes: Tensor, is_missing: Tensor, places: Tensor) -> Tensor:
    if column.is_constant:
        codes = torch.where(is_missing & column.has_indicator, codes, 0)
    elif not column.has_indicator:
        codes = torch.where(is_missing, len(column.categories), codes)
    return (codes[:, None] == places).float()
