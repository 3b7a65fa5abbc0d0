"""A residual network of linear layers.

Source: Gorishniy et al., Revisiting Deep Learning Models for Tabular Data (2021), section 3.2.
"""

from torch import Tensor, nn

from refit.data.signature import Signature
from refit.models.embeddings import InputLayer
from refit.models.mlp import ACTIVATIONS
from refit.settings import ModelSettings

HIDDEN_FACTOR = 2
"""How much wider a block is inside."""


class Block(nn.Module):
    """Adds to its inputs what two linear layers make of them.

    Shape: `(B, width)` to `(B, width)`.
    """

    def __init__(self, width: int, settings: ModelSettings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, HIDDEN_FACTOR * width),
            ACTIVATIONS[settings.activation](),
            nn.Dropout(settings.dropout),
            nn.Linear(HIDDEN_FACTOR * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        changes: Tensor = self.layers(x)
        return x + changes


def build_resnet(signature: Signature, settings: ModelSettings) -> nn.Sequential:
    """Build the network, a block for each of the hidden sizes, its weights drawn from the global generator.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.
    """
    inputs = InputLayer(signature, settings.number_embedding)
    layers, width = list[nn.Module]([inputs]), inputs.width
    for units in settings.hidden_sizes:
        if units != width or len(layers) == 1:
            layers.append(nn.Linear(width, units))
        layers.append(Block(units, settings))
        width = units
    return nn.Sequential(
        *layers, nn.BatchNorm1d(width), ACTIVATIONS[settings.activation](), nn.Linear(width, signature.num_outputs)
    )
