"""One optimizer step on a group of batches: its arithmetic, and how it runs as it stands."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from refit.engine.backpropagation import Backpropagation
from refit.runtime.devices import autocast

Batch = tuple[Tensor, Tensor]
"""Rows `(B, F)` and their classes `(B,)`."""


def compute_gradients(
    forward: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    batches: Sequence[Batch],
    *,
    device: torch.device,
    precision: str,
    max_grad_norm: float | None,
    backpropagate: Backpropagation | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Give each parameter the gradient of the mean loss over the rows of all batches, clipped; by `backpropagate`, or by autograd.

    Returns:
        The mean loss of each batch, and the gradient's 2-norm before clipping, or None if it is not clipped.
    """
    for parameter in parameters:
        parameter.grad = None
    num_rows = sum(len(y) for _, y in batches) if len(batches) > 1 else None
    losses = []
    for x, y in batches:
        weight = len(y) / num_rows if num_rows else 1.0
        if backpropagate is not None:
            losses.append(backpropagate(x, y, weight))
            continue
        with autocast(device, precision):
            loss = functional.cross_entropy(forward(x), y)
        (loss * weight if num_rows else loss).backward()
        losses.append(loss.detach())
    return losses, None if max_grad_norm is None else nn.utils.clip_grad_norm_(parameters, max_grad_norm)
