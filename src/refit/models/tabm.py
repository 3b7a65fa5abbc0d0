"""TabM: an ensemble of multilayer perceptrons that share their hidden layers, trained as one batched network.

B is the number of rows, K of members, C of outputs.

Source: Gorishniy et al., TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling (2024), as TabM_mini:
a member has scales of the inputs and a last layer of its own.
"""

import torch
from torch import Tensor, nn

from refit.data.signature import Signature
from refit.models.embeddings import InputLayer
from refit.models.ensemble import average_members
from refit.models.mlp import ACTIVATIONS
from refit.settings import ModelSettings

NUM_MEMBERS = 8


class WordDropout(nn.Dropout):
    """Dropout that takes 16 bits of a random word for each number, where `nn.Dropout` draws a word, a tenth of the time of a step.

    Shape: any, on the CPU; elsewhere it is PyTorch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return zero for a share `p` of the numbers, and the others as much larger, in training; else the numbers."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),)).view(torch.int16)[: x.numel()]
        is_kept = words.ge_(round(self.p * 2**16) - 2**15).view(x.shape)  # 0 or 1, as a comparison that makes bits is slow
        return x * is_kept.to(x.dtype).mul_(1 / (1 - self.p))


class Heads(nn.Module):
    """A linear layer of each member's own.

    Shape: `(K, B, num_inputs)` to `(K, B, num_outputs)`.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_members: int) -> None:
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_members, num_inputs, num_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_members, 1, num_outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of each member."""
        return torch.baddbmm(self.bias, x, self.weight)


class Members(nn.Module):
    """The perceptrons of the ensemble.

    Shape: embedded inputs `(B, width)` to `(B, K, C)`.
    """

    def __init__(self, width: int, num_outputs: int, settings: ModelSettings) -> None:
        super().__init__()
        num_members = settings.num_members or NUM_MEMBERS
        self.scales = nn.Parameter(torch.randn(num_members, 1, width))
        """By these, members differ from the start."""
        layers = list[nn.Module]()
        for units in settings.hidden_sizes:
            layers += [nn.Linear(width, units), ACTIVATIONS[settings.activation]()]
            if settings.dropout:
                layers.append(WordDropout(settings.dropout))
            width = units
        self.layers = nn.Sequential(*layers)
        self.heads = Heads(width, num_outputs, num_members)

    def forward(self, embedded: Tensor) -> Tensor:
        """Return the outputs of each member."""
        hidden = self.layers((embedded * self.scales).flatten(0, 1))  # (K B, units)
        outputs: Tensor = self.heads(hidden.unflatten(0, (len(self.scales), -1)))
        return outputs.transpose(0, 1)


class TabM(nn.Module):
    """The ensemble. In training each member answers, as each is trained by its own loss; else their answers are averaged.

    Shape: `(B, num_inputs)` to `(B, K, C)` in training, else to `(B, C)`: of classes, logarithms of the mean probabilities.
    """

    def __init__(self, signature: Signature, settings: ModelSettings) -> None:
        super().__init__()
        self.has_classes = signature.target.kind == "classes"
        self.inputs = InputLayer(signature, settings.number_embedding)
        self.members = Members(self.inputs.width, signature.num_outputs, settings)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the members, or of all."""
        outputs: Tensor = self.members(self.inputs(x))
        return outputs if self.training else average_members(outputs, self.has_classes)


def build_tabm(signature: Signature, settings: ModelSettings) -> TabM:
    """Build the network, its weights drawn from the global generator."""
    return TabM(signature, settings)
