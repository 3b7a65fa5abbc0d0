"""How networks take the columns of a table in: numbers piecewise, categories and texts as learned vectors.

B is the number of rows, F of inputs, N of numbers, T of intervals of a number, D of what the network computes with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from refit.data.signature import Signature

TEXT_WIDTH = 16
"""Numbers that the network makes of a text."""
FIRST_SPREAD = 0.01
"""How far the first vectors of n-grams may be from zero: little, so that what is rare counts for little until it is learned."""
TEXT_SCALE = 3.0
"""By so much, a text's numbers are made larger, so that its n-grams learn as fast as other weights."""
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
            self.weight.uniform_(-(self.embedding_dim**-0.5), self.embedding_dim**-0.5)
            self.weight[-2:] = 0


class PiecewiseLinear(nn.Module):
    """Encodes each number by how far it has come through each of its intervals, and makes D numbers of that and of the number.

    Numbers outside of the intervals count as the nearest end; the number itself is drawn in smoothly beyond `CLIP`, so that no
    extreme value counts for much.

    Args:
        edges: Of the T intervals of each of N numbers, ascending, T + 1 or fewer of each.
        width: D.

    Shape: `(B, N)` to `(B, N, D)`.

    Source: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning (2022), equation 1; the linear layer
    beside the encoding, whose own weights begin at zero, is that of TabM (Gorishniy et al. 2024); the clipping is RealMLP's
    (Holzmüller et al. 2024).
    """

    def __init__(self, edges: Sequence[Sequence[float]], width: int) -> None:
        super().__init__()
        num_intervals = max(len(of_one) for of_one in edges) - 1
        lefts, scales = torch.zeros(len(edges), num_intervals), torch.zeros(len(edges), num_intervals)
        for place, of_one in enumerate(edges):
            known = torch.tensor(of_one, dtype=torch.float64)
            lefts[place, : len(known) - 1] = known[:-1]
            scales[place, : len(known) - 1] = 1 / known.diff()
        self.register_buffer("lefts", lefts)  # (N, T)
        self.register_buffer("scales", scales)
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(len(edges), width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(edges), width).uniform_(-bound, bound))
        self.pieces = nn.Parameter(torch.zeros(len(edges), num_intervals, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers of each number."""
        encoded = ((x[:, :, None] - self.get_buffer("lefts")) * self.get_buffer("scales")).clamp(0, 1)  # (B, N, T)
        clipped = x / (1 + (x / CLIP).square()).sqrt()
        linear = torch.addcmul(self.bias, clipped[:, :, None], self.weight)
        return linear + torch.bmm(encoded.transpose(0, 1), self.pieces).transpose(0, 1)


class InputLayer(nn.Module):
    """Makes the numbers that a network computes with of all inputs of a row.

    Shape: `(B, F)` to `(B, width)`.
    """

    numbers_at: Tensor | None
    """Which inputs are numbers that are embedded; likewise those that stay as they are, and codes."""
    plain_at: Tensor | None
    codes_at: Tensor | None

    def __init__(self, signature: Signature, number_embedding: str) -> None:
        super().__init__()
        numbers, edges, plain, codes, texts = list[int](), list[list[float]](), list[int](), list[int](), list[slice]()
        for column, span in signature.spans:
            places = [*range(span.start, span.stop)]
            if column.kind == "text":
                texts.append(span)
            elif column.num_codes:
                codes += places
            else:
                for place, quantiles in zip(places, column.quantiles or [[]] * column.width, strict=True):
                    is_embedded = number_embedding == "piecewise" and len(quantiles) > 1
                    (numbers if is_embedded else plain).append(place)
                    edges += [quantiles] * is_embedded
        for name, chosen in {"numbers": numbers, "plain": plain, "codes": codes}.items():
            self.register_buffer(f"{name}_at", torch.tensor(chosen, dtype=torch.int64) if chosen else None, persistent=False)
        self.texts_at = texts
        number_width = max(1, min(NUMBER_WIDTH, MAX_WIDTH // max(1, len(numbers))))
        self.numbers = PiecewiseLinear(edges, number_width) if numbers else None
        self.categories = nn.ModuleList(CategoryEmbedding(column.num_codes) for column in signature.coded)
        self.texts = nn.ModuleList(TextEmbedding(column.num_ngrams) for column in signature.texts)
        self.num_ngrams = [column.num_ngrams for column in signature.texts]
        self.text_width = TEXT_WIDTH * len(texts)
        self.width = len(numbers) * number_width + len(plain) + CATEGORY_WIDTH * len(codes) + self.text_width

    def forward(self, x: Tensor) -> Tensor:
        """Return the numbers, those of texts last."""
        parts = [] if self.plain_at is None else [x[:, self.plain_at]]
        if self.numbers is not None:
            parts.append(self.numbers(x[:, self.numbers_at]).flatten(1))
        if self.codes_at is not None:
            codes = x[:, self.codes_at].long()
            parts += [vectors(codes[:, place]) for place, vectors in enumerate(self.categories)]
        for place, vectors, num_ngrams in zip(self.texts_at, self.texts, self.num_ngrams, strict=True):
            parts.append(vectors(x[:, place].long().clamp(0, num_ngrams)))
        return torch.cat(parts, dim=1)
