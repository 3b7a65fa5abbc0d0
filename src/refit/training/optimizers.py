"""The optimizer, its groups of parameters, and the learning rate as a function of the step."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from refit.errors import SettingsError
from refit.settings import OptimizerSettings

LearningRate = Callable[[int], float]
BASE_RATE = "initial_lr"
"""The option of a group that holds its own base rate, as PyTorch's schedulers name it."""


def build_optimizer(settings: OptimizerSettings, parameters: Iterable[Tensor | dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the class of `torch.optim` whose name, in lower case, is that of the settings.

    Args:
        settings: Those that the class has no option for must be 0.
        parameters: Tensors, or groups as PyTorch takes them, such as `{"params": tensors, "lr": 0.1, "weight_decay": 0.0}`.
            The options of a group take precedence over the settings.

    Raises:
        SettingsError: The settings ask for weight decay or momentum, and the class has none.
    """
    _leave_compiler_out()
    kind: Any = next(
        kind for kind in vars(torch.optim).values() if isinstance(kind, type) and kind.__name__.lower() == settings.name
    )
    options = {name: getattr(settings, name) for name in ("momentum", "weight_decay")}
    for name in options.keys() - inspect.signature(kind).parameters.keys():
        value = options.pop(name)
        if value:
            raise SettingsError(f"optimizer.{name}: expected 0, as {settings.name} has none, found {value:g}; leave it 0")
    groups = [{**it, BASE_RATE: it["lr"]} if isinstance(it, dict) and "lr" in it else it for it in parameters]
    optimizer: torch.optim.Optimizer = kind(groups, lr=settings.lr, **options)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of each group of parameters.

    Args:
        optimizer: Its groups without a base rate of their own get `lr`; the rates of the others are scaled as that one is.
        lr: Of the step, by the schedule of the settings.
    """
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_RATE] * (lr / optimizer.defaults["lr"]) if BASE_RATE in group else lr


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

    Nothing of ours compiles a method of an optimizer. With a PyTorch that does not know this mark, unlike 2.13, this does nothing.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        method.__dict__.setdefault("__dynamo_disable", method)
