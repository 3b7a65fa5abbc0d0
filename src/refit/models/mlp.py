"""The multilayer perceptron."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from refit.data.signature import Signature
from refit.models.embeddings import InputLayer
from refit.settings import ModelSettings

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),  # the same bits in less memory and time, as its gradient needs its output alone
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class MLP(nn.Sequential):
    """Linear layers, with an activation, then perhaps dropout, after each hidden one.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.
    """


class EmbeddingMLP(nn.Module):
    """An MLP over embedded inputs, and a linear layer from texts straight to the logits.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.

    Source: Cheng et al., Wide & Deep Learning for Recommender Systems (2016), for the linear layer beside the deep ones.
    """

    def __init__(self, signature: Signature, settings: ModelSettings) -> None:
        super().__init__()
        self.inputs = InputLayer(signature, settings.number_embedding)
        self.direct = nn.Linear(self.inputs.text_width, signature.num_outputs, bias=False) if signature.texts else None
        self.layers = _build_layers(self.inputs.width, signature.num_outputs, settings)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        embedded = self.inputs(x)
        logits: Tensor = self.layers(embedded)
        return logits if self.direct is None else logits + self.direct(embedded[:, -self.inputs.text_width :])


def build_mlp(signature: Signature, settings: ModelSettings) -> MLP | EmbeddingMLP:
    """Build the network, its weights drawn from the global generator."""
    has_cycles = any(column.periods for column in signature.columns)
    if signature.texts or signature.coded or has_cycles or settings.number_embedding != "none":
        return EmbeddingMLP(signature, settings)
    return _build_layers(signature.num_inputs, signature.num_outputs, settings)


def _build_layers(num_inputs: int, num_outputs: int, settings: ModelSettings) -> MLP:
    layers = list[nn.Module]()
    for width in settings.hidden_sizes:
        layers += [nn.Linear(num_inputs, width), ACTIVATIONS[settings.activation]()]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        num_inputs = width
    return MLP(*layers, nn.Linear(num_inputs, num_outputs))
