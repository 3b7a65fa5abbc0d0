"""The multilayer perceptron, and how it reads texts."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from refit.data.signature import Signature
from refit.settings import ModelSettings

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # the same bits in less memory and time, as its gradient needs its output alone
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}
TEXT_WIDTH = 16
"""Numbers that the network makes of a text."""
FIRST_SPREAD = 0.01
"""How far the first vectors of n-grams may be from zero: little, so that what is rare counts for little until it is learned."""
TEXT_SCALE = 3.0
"""By so much, a text's numbers are made larger, so that its n-grams learn as fast as other weights."""


class MLP(nn.Sequential):
    """Linear layers, with an activation, then perhaps dropout, after each hidden one.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.
    """


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


class TextMLP(nn.Module):
    """An MLP over embedded texts and all other inputs, and a linear layer from the texts straight to the logits.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.

    Source: Cheng et al., Wide & Deep Learning for Recommender Systems (2016), for the linear layer beside the deep ones.
    """

    def __init__(self, signature: Signature, settings: ModelSettings) -> None:
        super().__init__()
        self.signature = signature
        self.embeddings = nn.ModuleList(TextEmbedding(column.num_ngrams) for column in signature.texts)
        width = TEXT_WIDTH * len(signature.texts)
        num_others = signature.num_inputs - sum(column.width for column in signature.texts)
        self.direct = nn.Linear(width, signature.num_outputs, bias=False)
        self.layers = _build_layers(num_others + width, signature.num_outputs, settings)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        others, texts = self.signature.split_texts(x)
        embedded = torch.cat([embedding(numbers) for embedding, numbers in zip(self.embeddings, texts, strict=True)], dim=1)
        logits: Tensor = self.layers(torch.cat([others, embedded], dim=1)) + self.direct(embedded)
        return logits


def build_mlp(signature: Signature, settings: ModelSettings) -> MLP | TextMLP:
    """Build the network, its weights drawn from the global generator."""
    if signature.texts:
        return TextMLP(signature, settings)
    return _build_layers(signature.num_inputs, signature.num_outputs, settings)


def _build_layers(num_inputs: int, num_outputs: int, settings: ModelSettings) -> MLP:
    layers = list[nn.Module]()
    for width in settings.hidden_sizes:
        layers += [nn.Linear(num_inputs, width), ACTIVATIONS[settings.activation]()]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        num_inputs = width
    return MLP(*layers, nn.Linear(num_inputs, num_outputs))
