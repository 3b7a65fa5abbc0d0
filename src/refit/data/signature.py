"""What a model is told of its inputs and of its target."""

import math
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["numeric", "datetime", "boolean", "categorical", "text"]
KINDS_WITHOUT_NUMBERS = ("categorical", "text")
"""Kinds whose inputs are no numbers to compute with as they are."""


class InputColumn(BaseModel):
    """A column that a model learns from; it has one or more of the F inputs, side by side.

    A category is one input that is 1 among others that are 0, or, where there are many, a single input, its code from 0 to
    `num_codes` - 1. A text is a list of whole numbers from 1 to `num_ngrams`, one for each word, pair of words or piece of a word
    in it, and then zeros. Other kinds are numbers, standardized, and, where train rows lacked values, an input that is 1 for a
    missing one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    inputs: list[str]
    """Names of its inputs, in order."""
    means: list[float] = Field(default_factory=list)
    stds: list[float] = Field(default_factory=list)
    """Means and deviations by which each input was standardized; empty if none was. A deviation of 0 stands for a single value."""
    quantiles: list[list[float]] = Field(default_factory=list)
    """Of each standardized input among the train rows, evenly spaced from the least to the largest. Empty for inputs that are 0 or
    1 or have one value, and where there are too many columns to keep them."""
    periods: list[float] = Field(default_factory=list)
    """After how much, before it is standardized, each input begins anew, such as 24 for hours; 0 for never. May be empty."""
    num_codes: int = 0
    """How many categories the single input of a coded column tells apart, with those for all others and for missing values."""
    num_ngrams: int = 0
    """How many n-grams texts are made of; 0 for other kinds."""
    vocabulary_digest: str | None = None
    """SHA-256 of the n-grams, or of the categories of a coded column, in their order: equal numbers then mean the same."""

    @property
    def width(self) -> int:
        """How many inputs it has."""
        return len(self.inputs)

    @property
    def num_categories(self) -> int:
        """How many categories there are, including one for all others and one for missing values; 0 for other kinds."""
        return (self.num_codes or self.width) if self.kind == "categorical" else 0


class TensorSpec(BaseModel):
    """A tensor of one item: its type, such as `float32`, and its shape, with None where items differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: list[int | None]

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({shape})"


class Target(BaseModel):
    """What a model predicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["classes", "numbers", "labels", "none"] = "classes"
    """One of some classes, numbers, any of some labels, or nothing: a step of the user's own knows."""
    classes: list[StrictBool | StrictInt | StrictStr] = Field(default_factory=list)
    """Classes or labels, as the data writes them, in the order of the model's outputs."""
    centers: list[float] = Field(default_factory=list)
    """Mean of each number, or share of each label, among the train examples."""
    scales: list[float] = Field(default_factory=list)
    """Deviation of each number. A model learns numbers less their mean, divided by it; empty if it learns them as they are."""
    quantiles: list[float] = Field(default_factory=list)
    """Which quantiles of a number a model tells, ascending, one of them 0.5; empty if it tells the number alone."""


class Signature(BaseModel):
    """The columns that a model learns from, in the order of its inputs, and what it predicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: list[InputColumn]
    target: Target
    tensors: dict[str, TensorSpec] = Field(default_factory=dict)
    """The inputs of the user's own items by the names that `name_tensors` gives them: `x`, `x.0` of a tuple, `x:mask` of a mapping.

    A table has none: its input is float32 `(num_inputs,)`.
    """

    @classmethod
    def of_numbers(cls, num_inputs: int, num_classes: int) -> "Signature":
        """Make a signature of plain numbers `x0`, `x1`, … and classes 0, 1, …."""
        columns = [InputColumn(name=f"x{index}", kind="numeric", inputs=[f"x{index}"]) for index in range(num_inputs)]
        return cls(columns=columns, target=Target(name="y", classes=list(range(num_classes))))

    @cached_property
    def input_names(self) -> list[str]:
        """Names of the F inputs."""
        return [name for column in self.columns for name in column.inputs]

    @property
    def num_inputs(self) -> int:
        """The number of inputs, F; for the user's own items, the numbers in the tensors of one."""
        if self.tensors:
            return sum(math.prod(size or 1 for size in spec.shape) for spec in self.tensors.values())
        return sum(column.width for column in self.columns)

    @property
    def num_outputs(self) -> int:
        """Outputs that the target needs: one for each class, label, number or quantile."""
        return len(self.target.classes or self.target.quantiles or self.target.centers)

    def describe_inputs(self) -> str:
        """Describe the tensors of an item."""
        if [*self.tensors] == ["x"]:
            return str(self.tensors["x"])
        return ", ".join(f"{name[2:]}: {spec}" for name, spec in self.tensors.items())

    @property
    def num_numbers(self) -> int:
        """N, the number of inputs that are neither categories nor texts."""
        return len(self._places[0])

    @property
    def categories(self) -> list[int]:
        """The number of categories of each of the K categorical columns."""
        return [column.num_categories for column in self.columns if column.kind == "categorical"]

    @property
    def coded(self) -> list[InputColumn]:
        """The columns of categories that are codes."""
        return [column for column in self.columns if column.num_codes]

    @property
    def texts(self) -> list[InputColumn]:
        """The columns of texts."""
        return [column for column in self.columns if column.kind == "text"]

    @cached_property
    def spans(self) -> list[tuple[InputColumn, slice]]:
        """Where each column has its inputs."""
        ends = [0]
        for column in self.columns:
            ends.append(ends[-1] + column.width)
        return [(column, slice(*span)) for column, span in zip(self.columns, pairwise(ends), strict=True)]

    @cached_property
    def _places(self) -> tuple[list[int], list[tuple[InputColumn, slice]]]:
        """The inputs that are numbers, and the categorical columns, each with where its inputs are."""
        of_numbers = [span for column, span in self.spans if column.kind not in KINDS_WITHOUT_NUMBERS]
        numbers = [place for span in of_numbers for place in range(span.start, span.stop)]
        return numbers, [(column, span) for column, span in self.spans if column.kind == "categorical"]

    def split(self, x: "Tensor") -> "tuple[Tensor, list[Tensor]]":
        """Split inputs into numbers and the code of each category, for models that embed categories.

        Shape:
            x: (B, F); returns (B, N), and K times (B,), int64, below the column's number of categories.
        """
        numbers, categorical = self._places
        codes = [x[:, span.start].long() if column.num_codes else x[:, span].argmax(dim=1) for column, span in categorical]
        return x[:, numbers], codes

    def split_texts(self, x: "Tensor") -> "tuple[Tensor, list[Tensor]]":
        """Split inputs into those that are no texts, and the numbers of the n-grams of each text, for models that embed texts.

        Shape:
            x: (B, F); returns (B, F without those of texts), and for each of `texts` (B, width), int64, from 0 to `num_ngrams`.
        """
        import torch  # takes a second, which who only describes a table need not wait for

        others = [x[:, span] for column, span in self.spans if column.kind != "text"]
        texts = [x[:, span].long().clamp(0, column.num_ngrams) for column, span in self.spans if column.kind == "text"]
        return (torch.cat(others, dim=1) if others else x[:, :0]), texts

    def restore(self, numbers: "Tensor") -> "Tensor":
        """Undo the standardization of what `split` gives, for models that prepare numbers themselves; missing ones are filled in.

        Shape:
            numbers: (B, N); returns (B, N).
        """
        columns = [column for column in self.columns if column.kind not in KINDS_WITHOUT_NUMBERS]
        means = [mean for column in columns for mean in column.means or [0.0] * column.width]
        stds = [std for column in columns for std in column.stds or [1.0] * column.width]
        return numbers * numbers.new_tensor(stds) + numbers.new_tensor(means)
