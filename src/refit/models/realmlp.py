"""RealMLP: a perceptron whose preparation, layers and rates were chosen together on many tables.

B is the number of rows, N of numbers, D of what is made of one.

Source: Holzmüller et al., Better by Default: Strong Pre-Tuned MLPs and Boosted Trees on Tabular Data (2024), section 3. Weights are
drawn, not fitted to train rows as in its appendix.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from refit.data.signature import Signature
from refit.models.embeddings import InputLayer
from refit.models.mlp import ACTIVATIONS
from refit.settings import ModelSettings


class ScaledLinear(nn.Module):
    """A linear layer in the neural tangent parametrization: standard normal weights, divided by the root of their number.

    Shape: `(B, num_inputs)` to `(B, num_outputs)`.
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.factor = num_inputs**-0.5
        self.weight = nn.Parameter(torch.randn(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.randn(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return torch.addmm(self.bias, x, self.weight, alpha=self.factor)


class MixedActivation(nn.Module):
    """An activation that each unit learns how much of to apply: x + a (f(x) - x), a being 1 at first.

    Shape: `(B, width)` to `(B, width)`.
    """

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        return torch.lerp(x, self.function(x), self.weight)


class RealMLP(nn.Module):
    """The perceptron, with a scale of each input before its first layer.

    Shape: `(B, num_inputs)` to `(B, num_outputs)`.
    """

    lr_factors: ClassVar[Mapping[str, float]] = {"scales": 6.0, "*.bias": 0.1, "activations.*": 0.1, "inputs.*": 0.1}
    """Of the learning rate, by patterns of parameters' names; the first that matches counts."""
    weight_decay_factors: ClassVar[Mapping[str, float]] = {"*.bias": 0.0}

    def __init__(self, signature: Signature, settings: ModelSettings) -> None:
        super().__init__()
        self.inputs = InputLayer(signature, settings.number_embedding)
        width = self.inputs.width
        self.scales = nn.Parameter(torch.ones(width))
        self.layers, self.activations = nn.ModuleList(), nn.ModuleList()
        for units in settings.hidden_sizes:
            self.layers.append(ScaledLinear(width, units))
            self.activations.append(MixedActivation(units, settings.activation))
            width = units
        self.dropout = nn.Dropout(settings.dropout)
        self.last = ScaledLinear(width, signature.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.inputs(x) * self.scales
        for layer, activation in zip(self.layers, self.activations, strict=True):
            x = self.dropout(activation(layer(x)))
        logits: Tensor = self.last(x)
        return logits


def build_realmlp(signature: Signature, settings: ModelSettings) -> RealMLP:
    """Build the network, its weights drawn from the global generator."""
    return RealMLP(signature, settings)
