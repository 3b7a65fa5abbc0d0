"""TabM: an ensemble of multilayer perceptrons that share most of their weights, trained as one batched network.

B is the number of rows, K of members, C of outputs.

Source: Gorishniy et al., TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling (2024).
"""

import torch
from torch import Tensor, nn

from refit.data.signature import Signature
from refit.models.embeddings import InputLayer
from refit.models.ensemble import average_members
from refit.models.mlp import ACTIVATIONS
from refit.settings import ModelSettings

NUM_MEMBERS = 8


class EnsembleLinear(nn.Module):
    """A linear layer whose weights the members share, with scales of inputs and outputs, and biases, of each member.

    Shape: `(B, K, num_inputs)` to `(B, K, num_outputs)`.

    Source: the paper's section 3.2, after Wen et al., BatchEnsemble (2020).
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_members: int) -> None:
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_outputs).uniform_(-bound, bound).repeat(num_members, 1))
        self.input_scales = nn.Parameter(torch.ones(num_members, num_inputs))
        self.output_scales = nn.Parameter(torch.ones(num_members, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of each member."""
        return torch.addcmul(self.bias, (x * self.input_scales) @ self.weight.T, self.output_scales)


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

    Shape: `(B, K, num_inputs)` to `(B, K, num_outputs)`.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_members: int) -> None:
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_members, num_inputs, num_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_members, num_outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of each member."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


class TabM(nn.Module):
    """The ensemble. In training each member answers, as each is trained by its own loss; else their answers are averaged.

    Shape: `(B, num_inputs)` to `(B, K, C)` in training, else to `(B, C)`: of classes, logarithms of the mean probabilities.
    """

    def __init__(self, signature: Signature, settings: ModelSettings) -> None:
        super().__init__()
        self.has_classes = signature.target.kind == "classes"
        self.num_members = settings.num_members or NUM_MEMBERS
        self.inputs = InputLayer(signature, settings.number_embedding)
        layers, width = list[nn.Module](), self.inputs.width
        for units in settings.hidden_sizes:
            layers += [EnsembleLinear(width, units, self.num_members), ACTIVATIONS[settings.activation]()]
            if settings.dropout:
                layers.append(WordDropout(settings.dropout))
            width = units
        self.layers = nn.Sequential(*layers)
        self.heads = Heads(width, signature.num_outputs, self.num_members)
        if layers:
            with torch.no_grad():  # by these, members differ from the start
                self.get_parameter("layers.0.input_scales").normal_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the members, or of all."""
        embedded = self.inputs(x)[:, None].expand(-1, self.num_members, -1)
        outputs: Tensor = self.heads(self.layers(embedded))  # (B, K, C)
        return outputs if self.training else average_members(outputs, self.has_classes)


def build_tabm(signature: Signature, settings: ModelSettings) -> TabM:
    """Build the network, its weights drawn from the global generator."""
    return TabM(signature, settings)
