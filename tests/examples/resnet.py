"""A residual network for tables, which learns a vector for each category.

Source: Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", 2021, section 3.2.
"""

import torch
from torch import Tensor, nn

from refit.data.signature import Signature
from refit.settings import ModelSettings

MAX_WIDTH = 16
"""Of a category's vector."""


class Block(nn.Module):
    """Adds to its input what two layers make of it.

    Shape: `(B, width)` to the same.
    """

    def __init__(self, width: int, num_hidden: int, dropout: float) -> None:
        super().__init__()
        layers = nn.Linear(width, num_hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(num_hidden, width)
        self.layers = nn.Sequential(nn.BatchNorm1d(width), *layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add them."""
        change: Tensor = self.layers(x)
        return x + change


class ResNet(nn.Module):
    """Numbers and the vectors of categories, projected to one width, then blocks, then a linear layer.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.
    """

    def __init__(self, signature: Signature, width: int, hidden_sizes: list[int], dropout: float) -> None:
        super().__init__()
        self.signature = signature
        widths = [min(MAX_WIDTH, (count + 1) // 2) for count in signature.categories]
        self.embeddings = nn.ModuleList(map(nn.Embedding, signature.categories, widths))
        self.first = nn.Linear(signature.num_numbers + sum(widths), width)
        self.blocks = nn.Sequential(*(Block(width, num_hidden, dropout) for num_hidden in hidden_sizes))
        self.last = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, signature.num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        numbers, codes = self.signature.split(x)
        vectors = [embedding(code) for embedding, code in zip(self.embeddings, codes, strict=True)]
        logits: Tensor = self.last(self.blocks(self.first(torch.cat([numbers, *vectors], dim=1))))
        return logits


def build_resnet(signature: Signature, settings: ModelSettings) -> ResNet:
    """Build the network, its weights drawn from the global generator."""
    return ResNet(signature, settings.hidden_sizes[0], settings.hidden_sizes, settings.dropout)


def build(signature: Signature) -> ResNet:
    """Build it for `model.factory`."""
    return ResNet(signature, width=32, hidden_sizes=[64, 64], dropout=0.1)
