"""How networks take the columns of a table in: numbers piecewise, dates as cycles, categories and texts as learned vectors.

B is the number of rows, F of inputs, N of numbers, T of intervals of a number, D of what the network computes with.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from refit.data.signature import Signature

TEXT_WIDTH = 16
"""Numbers that the network makes of a text."""
FIRST_SPREAD = 0.01
"""How far the first vectors of n-grams and categories may be from zero: little, so that what is rare counts for little until it is
learned, and rows cannot be told apart by it."""
TEXT_SCALE = 3.0
"""By so much, a text's numbers are made larger, so that its n-grams learn as fast as other weights."""
NUM_FREQUENCIES, FREQUENCY_SPREAD, PERIODIC_WIDTH = 16, 0.1, 4
"""Of the periodic embedding, as RealMLP has them."""
CATEGORY_WIDTH = 8
"""Numbers that the network makes of a category that is a code."""
NUMBER_WIDTH = 16
"""Numbers that the network makes of a number, at most."""
MAX_WIDTH = 1024
"""Numbers that it makes of all numbers together: with more than 64 columns, fewer of each."""
CLIP = 3.0
"""Numbers beyond so many deviations from the mean are drawn in smoothly: none counts for more than this."""


class TextEmbedding(nn.Module):
    """A vector of each n-gram, learned; a text is their sum, divided by the root of their number.

    Shape: numbers of n-grams `(B, W)`, 0 for none, to `(B, TEXT_WIDTH)`.

    Source: Joulin et al., Bag of Tricks for Efficient Text Classification (2017), with the root for their mean.
    """

    def __init__(self, num_ngrams: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(num_ngrams + 1, TEXT_WIDTH, padding_idx=0)
        with torch.no_grad():
            self.vectors.weight[1:].uniform_(-FIRST_SPREAD, FIRST_SPREAD)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the numbers of each text."""
        counts = (numbers > 0).sum(dim=1, keepdim=True).clamp(min=1)
        embedded: Tensor = self.vectors(numbers).sum(dim=1) * (TEXT_SCALE / counts.sqrt())
        return embedded


class CategoryEmbedding(nn.Embedding):
    """A vector of each category, learned; those of other and of missing categories are zero until some are seen.

    Shape: codes `(B,)` to `(B, CATEGORY_WIDTH)`.
    """

    def __init__(self, num_codes: int) -> None:
        super().__init__(num_codes, CATEGORY_WIDTH)

    def reset_parameters(self) -> None:
        """Draw the vectors."""
        with torch.no_grad():
            self.weight.uniform_(-FIRST_SPREAD, FIRST_SPREAD)
            self.weight[-2:] = 0


class _Pieces(nn.Module):
    """How far each number has come through each of its intervals, from 0 to 1.

    Args:
        quantiles: Of each of N numbers, ascending: the edges of its intervals, of which there are T at most.

    Shape: `(B, N)` to `(B, N, T)`.
    """

    def __init__(self, quantiles: Sequence[Sequence[float]]) -> None:
        super().__init__()
        edges = [sorted(set(of_one)) for of_one in quantiles]
        num_intervals = max(len(of_one) for of_one in edges) - 1
        lefts, scales = torch.zeros(len(edges), num_intervals), torch.zeros(len(edges), num_intervals)
        for place, of_one in enumerate(edges):
            known = torch.tensor(of_one, dtype=torch.float64)
            lefts[place, : len(known) - 1] = known[:-1]
            scales[place, : len(known) - 1] = 1 / known.diff()
        self.register_buffer("lefts", lefts)  # (N, T)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shares."""
        shares: Tensor = ((x[:, :, None] - self.get_buffer("lefts")) * self.get_buffer("scales")).clamp(0, 1)
        return shares


class PiecewiseLinear(nn.Module):
    """Encodes each number by how far it has come through each of its intervals, and makes D numbers of that and of the number.

    Numbers outside of the intervals count as the nearest end; the number itself is drawn in smoothly beyond `CLIP`, so that no
    extreme value counts for much.

    Args:
        quantiles: Of each of N numbers, ascending: the edges of its intervals, of which there are T at most.
        width: D.

    Shape: `(B, N)` to `(B, N, D)`.

    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning (2022), equation 1; the linear layer
    beside the encoding, whose own weights begin at zero, is that of TabM (Gorishniy et al. 2024); the clipping is RealMLP's
    (Holzmüller et al. 2024).
    """

    def __init__(self, quantiles: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        self.encoding = _Pieces(quantiles)
        num_numbers, num_intervals = self.encoding.get_buffer("lefts").shape
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(num_numbers, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_numbers, width).uniform_(-bound, bound))
        self.pieces = nn.Parameter(torch.zeros(num_numbers, num_intervals, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers of each number."""
        encoded = self.encoding(x)  # (B, N, T)
        linear = torch.addcmul(self.bias, _clip(x)[:, :, None], self.weight)
        return linear + torch.bmm(encoded.transpose(0, 1), self.pieces).transpose(0, 1)


class Robust(nn.Module):
    """Centers each number by its median, divides it by the range of its middle half, and draws it in smoothly beyond `CLIP`.

    Shape: `(B, N)` to `(B, N, 1)`.

    Source: the robust scaling of RealMLP (Holzmüller et al. 2024), section 3.
    """

    def __init__(self, quantiles: Sequence[Sequence[float]]) -> None:
        super().__init__()
        scaled = [_find_middle(of_one) for of_one in quantiles]
        self.register_buffer("median", torch.tensor([median for median, _ in scaled]))
        self.register_buffer("scale", torch.tensor([scale for _, scale in scaled]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled numbers."""
        scaled: Tensor = (x - self.get_buffer("median")) * self.get_buffer("scale")
        return _clip(scaled)[:, :, None]


class Periodic(nn.Module):
    """Makes numbers of the cosines of each number, at learned frequencies and phases, and puts the number itself beside them.

    The number is first scaled as by `Robust`.

    Shape: `(B, N)` to `(B, N, PERIODIC_WIDTH)`.

    Source: the PBLD embedding of RealMLP (Holzmüller et al. 2024), section 3, after Gorishniy et al. (2022).
    """

    def __init__(self, quantiles: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.robust = Robust(quantiles)
        num_numbers, bound = len(quantiles), NUM_FREQUENCIES**-0.5
        self.frequencies = nn.Parameter(FREQUENCY_SPREAD * torch.randn(num_numbers, NUM_FREQUENCIES))
        self.phases = nn.Parameter(torch.empty(num_numbers, NUM_FREQUENCIES).uniform_(-math.pi, math.pi))
        self.weight = nn.Parameter(torch.empty(num_numbers, NUM_FREQUENCIES, PERIODIC_WIDTH - 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_numbers, PERIODIC_WIDTH - 1).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers of each number."""
        x = self.robust(x)
        cosines = torch.cos(torch.addcmul(self.phases, 2 * math.pi * x, self.frequencies))  # (B, N, frequencies)
        made = torch.bmm(cosines.transpose(0, 1), self.weight).transpose(0, 1) + self.bias
        return torch.cat([made, x], dim=2)


class NormalScores(nn.Module):
    """Moves each number so that those of the train rows are distributed normally: by straight lines between their quantiles.

    Numbers outside of the train rows' range count as its nearest end.

    Shape: `(B, N)` to `(B, N, 1)`.

    Source: as scikit-learn's `QuantileTransformer(output_distribution="normal")`.
    """

    def __init__(self, quantiles: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.pieces = _Pieces(quantiles)
        firsts, rises = torch.zeros(len(quantiles)), torch.zeros_like(self.pieces.get_buffer("lefts"))
        for place, of_one in enumerate(quantiles):
            values, counts = np.unique(of_one, return_counts=True)
            shares = (counts.cumsum() - counts / 2) / len(of_one)  # of what is less, and of half of what is equal
            scores = torch.special.ndtri(torch.tensor(shares))
            firsts[place], rises[place, : len(values) - 1] = scores[0], scores.diff()
        self.register_buffer("firsts", firsts)
        self.register_buffer("rises", rises)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normal scores."""
        scores: Tensor = self.get_buffer("firsts") + (self.pieces(x) * self.get_buffer("rises")).sum(dim=2)
        return scores[:, :, None]


def _find_middle(quantiles: Sequence[float]) -> tuple[float, float]:
    """The median, and the factor that gives the middle half of the rows the range 1, or all rows the range 2 if they are one."""
    first, median, third = np.quantile(quantiles, [0.25, 0.5, 0.75])
    spread = third - first if third > first else (quantiles[-1] - quantiles[0]) / 2
    return float(median), float(1 / spread)


def _build_numbers(quantiles: Sequence[Sequence[float]], name: str) -> tuple[nn.Module, int]:
    """Build what embeds numbers, and say how many it makes of each."""
    if name == "periodic":
        return Periodic(quantiles), PERIODIC_WIDTH
    if name in ("robust", "quantile"):
        return (Robust if name == "robust" else NormalScores)(quantiles), 1
    width = max(1, min(NUMBER_WIDTH, MAX_WIDTH // len(quantiles)))
    return PiecewiseLinear(quantiles, width), width


class InputLayer(nn.Module):
    """Makes the numbers that a network computes with of all inputs of a row.

    Shape: `(B, F)` to `(B, width)`.
    """

    numbers_at: Tensor | None
    """Which inputs are numbers that are embedded; likewise those that stay as they are, that come around again, and codes."""
    plain_at: Tensor | None
    cycles_at: Tensor | None
    codes_at: Tensor | None

    def __init__(self, signature: Signature, number_embedding: str) -> None:
        super().__init__()
        numbers, plain, cycles, codes, texts = list[int](), list[int](), list[int](), list[int](), list[slice]()
        edges, turns = list[list[float]](), list[tuple[float, float]]()
        for column, span in signature.spans:
            places = [*range(span.start, span.stop)]
            if column.kind == "text":
                texts.append(span)
            elif column.num_codes:
                codes += places
            else:
                for place, quantiles in zip(places, column.quantiles or [[]] * column.width, strict=True):
                    is_embedded = number_embedding != "none" and len(quantiles) > 1
                    (numbers if is_embedded else plain).append(place)
                    edges += [quantiles] * is_embedded
                for place, period, mean, std in zip(places, column.periods, column.means, column.stds, strict=bool(column.periods)):
                    if period:
                        cycles.append(place)
                        turns.append((2 * math.pi * std / period, 2 * math.pi * mean / period))
        for name, chosen in {"numbers_at": numbers, "plain_at": plain, "cycles_at": cycles, "codes_at": codes}.items():
            self.register_buffer(name, torch.tensor(chosen, dtype=torch.int64) if chosen else None, persistent=False)
        self.texts_at = texts
        self.register_buffer("turns", torch.tensor(turns).T.contiguous() if turns else None)
        self.numbers: nn.Module | None
        self.numbers, number_width = _build_numbers(edges, number_embedding) if edges else (None, 0)
        self.categories = nn.ModuleList(CategoryEmbedding(column.num_codes) for column in signature.coded)
        self.texts = nn.ModuleList(TextEmbedding(column.num_ngrams) for column in signature.texts)
        self.num_ngrams = [column.num_ngrams for column in signature.texts]
        self.text_width = TEXT_WIDTH * len(texts)
        self.width = len(numbers) * number_width + len(plain) + 2 * len(cycles) + CATEGORY_WIDTH * len(codes) + self.text_width

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers, those of texts last."""
        parts = [] if self.plain_at is None else [x[:, self.plain_at]]
        if self.cycles_at is not None:
            factors, shifts = self.get_buffer("turns")
            angles = x[:, self.cycles_at] * factors + shifts
            parts += [angles.sin(), angles.cos()]
        if self.numbers is not None:
            parts.append(self.numbers(x[:, self.numbers_at]).flatten(1))
        if self.codes_at is not None:
            codes = x[:, self.codes_at].long()
            parts += [vectors(codes[:, place]) for place, vectors in enumerate(self.categories)]
        for place, vectors, num_ngrams in zip(self.texts_at, self.texts, self.num_ngrams, strict=True):
            parts.append(vectors(x[:, place].long().clamp(0, num_ngrams)))
        return torch.cat(parts, dim=1)


def _clip(x: Tensor) -> Tensor:
    return x / (1 + (x / CLIP).square()).sqrt()
