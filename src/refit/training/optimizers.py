"""The optimizer, and the learning rate as a function of the step."""

import inspect
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from refit.settings import OptimizerSettings

LearningRate = Callable[[int], float]


def build_optimizer(settings: OptimizerSettings, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Build PyTorch's optimizer of that name."""
    _leave_compiler_out()
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    optimizer = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return optimizer(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def build_learning_rate(settings: OptimizerSettings, num_steps: int) -> LearningRate:
    """Build the learning rate of each step, counted from 0 over the `num_steps` of a run.

    It rises linearly over the warm-up's steps, is `lr` right after them, and then stays or falls by a half cosine to 0 (at the
    end of the last step).

    Source: the cosine is equation 5 of Loshchilov and Hutter, SGDR, 2017, without restarts.
    """
    warmup_steps = settings.warmup_steps

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return settings.lr * (step + 1) / (warmup_steps + 1)
        if settings.schedule == "constant":
            return settings.lr
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2

    return learning_rate


def _leave_compiler_out() -> None:
    """Keep optimizers from loading PyTorch's compiler, 70 MB in 0.7 seconds, only to tell it to leave them alone.

    Nothing of ours compiles a method of an optimizer. With a PyTorch that knows no such mark, unlike 2.13, this does nothing.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        method.__dict__.setdefault("__dynamo_disable", method)
