"""Several networks trained on the same batches, whose answers are averaged.

B is the number of rows, K of members, C of outputs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Networks that differ in nothing but their initial weights and their dropout.

    Shape: in training `(B, K, C)`, as each is trained by its own loss; else `(B, C)`. A member gives `(B, C)` or `(B,)`.
    """

    def __init__(self, members: Sequence[nn.Module], has_classes: bool) -> None:
        super().__init__()
        self.has_classes = has_classes
        self.members = nn.ModuleList(members)
        self.lr_factors = _move_patterns(getattr(members[0], "lr_factors", {}))
        self.weight_decay_factors = _move_patterns(getattr(members[0], "weight_decay_factors", {}))

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the outputs of the members, or of all."""
        answers = [member(*inputs, **named) for member in self.members]
        outputs = torch.stack([answer if answer.dim() > 1 else answer[:, None] for answer in answers], dim=1)
        return outputs if self.training else average_members(outputs, self.has_classes)


def _move_patterns(factors: Mapping[str, float]) -> dict[str, float]:
    """Factors by patterns of parameters' names, as they are named within the ensemble."""
    return {f"members.*.{pattern}": factor for pattern, factor in factors.items()}


def average_members(outputs: Tensor, has_classes: bool) -> Tensor:
    """Average the answers of members: of classes their probabilities, whose logarithms are returned.

    Shape: `(B, K, C)` to `(B, C)`.
    """
    if not has_classes:
        return outputs.mean(dim=1)
    return outputs.log_softmax(dim=2).logsumexp(dim=1) - math.log(outputs.shape[1])
