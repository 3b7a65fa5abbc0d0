"""The multilayer perceptron."""

from collections.abc import Callable
from functools import partial

from torch import nn

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


class MLP(nn.Sequential):
    """Linear layers, with an activation, then perhaps dropout, after each hidden one.

    Shape: `(B, num_inputs)` to logits `(B, num_outputs)`.
    """


def build_mlp(signature: Signature, settings: ModelSettings) -> MLP:
    """Build the network, its weights drawn from the global generator."""
    layers, num_inputs = list[nn.Module](), signature.num_inputs
    for width in settings.hidden_sizes:
        layers += [nn.Linear(num_inputs, width), ACTIVATIONS[settings.activation]()]
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        num_inputs = width
    return MLP(*layers, nn.Linear(num_inputs, signature.num_outputs))
