"""The multilayer perceptron."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from refit.data.signature import Signature

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


def build_mlp(signature: Signature, hidden_sizes: Sequence[int], activation: str, dropout: float) -> MLP:
    """Build the network, its weights drawn from the global generator."""
    layers, num_inputs = list[nn.Module](), signature.num_inputs
    for width in hidden_sizes:
        layers += [nn.Linear(num_inputs, width), ACTIVATIONS[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        num_inputs = width
    return MLP(*layers, nn.Linear(num_inputs, signature.num_outputs))
