"""The optimizer, its groups of parameters, the learning rate as a function of the step, and what regularizes, of the epoch."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from refit.errors import SettingsError
from refit.settings import OptimizerSettings
from refit.texts import list_names

LearningRate = Callable[[int], float]
NO_SCHEDULERS = (
    "LRScheduler",
    "_LRScheduler",
    "LambdaLR",
    "MultiplicativeLR",
    "SequentialLR",
    "ChainedScheduler",
)
"""Schedulers that need more than numbers."""
PLATEAU = "ReduceLROnPlateau"
"""The scheduler that goes by the loss of each epoch."""
BASE_RATE = "initial_lr"
"""The option of a group that holds its own base rate, as PyTorch's schedulers name it."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
BASE_DECAY = "initial_weight_decay"
"""The option of a group that holds its weight decay at the start, where that changes."""


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
    for name, value in settings.options.items():
        if name in (*vars(settings), "params") or name not in inspect.signature(kind).parameters:
            known = [it for it in inspect.signature(kind).parameters if it not in (*vars(settings), "params")]
            raise SettingsError(
                f"optimizer.options: expected options of {kind.__name__} that are no settings, {list_names(known)}, found `{name}`;"
                " correct the name"
            )
        options[name] = tuple(value) if isinstance(value, list) else value
    groups = [{**it, BASE_RATE: it["lr"]} if isinstance(it, dict) and "lr" in it else it for it in parameters]
    try:
        optimizer: torch.optim.Optimizer = kind(groups, lr=settings.lr, **options)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"optimizer.options: expected values that {kind.__name__} takes, found {settings.options}: {error}; change them"
        ) from error
    return optimizer


def group_parameters(settings: OptimizerSettings, module: nn.Module) -> list[Tensor] | list[dict[str, Any]]:
    """List the parameters that are trained, in groups if settings give some of them other rates.

    A network may have `lr_factors` and `weight_decay_factors` of its own, which count where the settings have none.

    Raises:
        SettingsError: A pattern matches the name of no such parameter.
    """
    trained: dict[str, Tensor] = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for setting in ("lr_factors", "weight_decay_factors"):
        for pattern in getattr(settings, setting):
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise SettingsError(
                    f"optimizer.{setting}: expected patterns of names of parameters that are trained, {list_names(trained, 10)},"
                    f" found `{pattern}`; correct it"
                )
    groups: dict[tuple[float, float], list[Tensor]] = {}
    lr_factors = settings.lr_factors or getattr(module, "lr_factors", {})
    weight_decay_factors = settings.weight_decay_factors or getattr(module, "weight_decay_factors", {})
    for name, parameter in trained.items():
        factors = _find_factor(lr_factors, name), _find_factor(weight_decay_factors, name)
        groups.setdefault(factors, []).append(parameter)
    if not lr_factors and not weight_decay_factors:
        return [*trained.values()]
    return [
        {"params": parameters, "lr": settings.lr * lr_factor, "weight_decay": settings.weight_decay * decay_factor}
        for (lr_factor, decay_factor), parameters in groups.items()
    ]


def _find_factor(factors: Mapping[str, float], name: str) -> float:
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), 1.0)


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Do what `optimizer.step()` does, but for its hooks, of which we have none, and for loading the compiler, a second's work."""
    with torch.set_grad_enabled(optimizer.defaults.get("differentiable", False)):
        inspect.unwrap(type(optimizer).step)(optimizer)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of each group of parameters.

    Args:
        optimizer: Its groups without a base rate of their own get `lr`; the rates of the others are scaled as that one is.
        lr: Of the step, by the schedule of the settings.
    """
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_RATE] * (lr / optimizer.defaults["lr"]) if BASE_RATE in group else lr


def build_learning_rate(
    settings: OptimizerSettings, num_steps: int, steps_an_epoch: int = 1, losses: Sequence[float] = ()
) -> LearningRate:
    """Build the learning rate of each step, counted from 0 over the `num_steps` of a run.

    It rises linearly over the warm-up's steps, is `lr` right after them, and then stays or falls by a half cosine to 0 (at the
    end of the last step), or goes up and down along four cosines, each longer than the one before, or as a scheduler of PyTorch:
    `ReduceLROnPlateau` is told the losses of the epochs before, and the rate is that of the epoch after them.

    Source: the cosine is equation 5 of Loshchilov and Hutter, SGDR, 2017, without restarts; four are `coslog4` of Holzmüller et
    al., Better by Default, 2024.
    """
    warmup_steps = settings.warmup_steps
    if settings.schedule not in ("constant", "cosine", "coslog4"):
        rates, every = _Rates(settings), steps_an_epoch if settings.schedule_by == "epoch" else 1
        plateau = rates.follow(losses) if settings.schedule == PLATEAU else None

        def rate_of_scheduler(step: int) -> float:
            if step < warmup_steps:
                return settings.lr * (step + 1) / (warmup_steps + 1)
            return rates[(step - warmup_steps) // every] if plateau is None else plateau

        return rate_of_scheduler

    def learning_rate(step: int) -> float:
        if step < warmup_steps:
            return settings.lr * (step + 1) / (warmup_steps + 1)
        if settings.schedule == "constant":
            return settings.lr
        progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
        if settings.schedule == "coslog4":
            return settings.lr * (1 - math.cos(2 * math.pi * math.log2(1 + 15 * progress))) / 2
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2

    return learning_rate


def set_regularization(module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set dropout and weight decay to what they are at the start, times 1 in the first half of the epochs, and less in the second.

    Args:
        module: Of its parts, those of PyTorch's classes for dropout count.
        optimizer: Its groups remember the weight decay at the start.
        progress: The share of the epochs that are done.

    Source: `flat_cos` of Holzmüller et al., Better by Default (2024), by epoch.
    """
    share = (1 + math.cos(math.pi * max(0.0, 2 * progress - 1))) / 2
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = group.setdefault(BASE_DECAY, group["weight_decay"]) * share
    for part in module.modules():
        if isinstance(part, DROPOUTS):
            part.p = vars(part).setdefault("initial_p", part.p) * share


class _Rates:
    """The rates of a scheduler of PyTorch, from its first on, as it computes them one after the other."""

    def __init__(self, settings: OptimizerSettings) -> None:
        name, options = settings.schedule, settings.schedule_options
        found = getattr(torch.optim.lr_scheduler, name, None)
        if not (isinstance(found, type) and issubclass(found, LRScheduler)) or name in NO_SCHEDULERS:
            raise SettingsError(
                "optimizer.schedule: expected `constant`, `cosine` or a scheduler of torch.optim.lr_scheduler whose rates depend on"
                f" the step or the loss alone, such as `StepLR`, found {name!r}; name another"
            )
        if name == PLATEAU and settings.schedule_by == "step":
            raise SettingsError(
                f"optimizer.schedule_by: expected `epoch`, as {name} goes by the loss of each epoch, found `step`; change it"
            )
        kind: Any = found
        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.lr, momentum=0.9)
        lengths = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        try:
            self._scheduler = kind(self._optimizer, **lengths)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"optimizer.schedule_options: expected options of {name}, found {options}: {error}; change them"
            ) from error
        if self._optimizer.param_groups[0]["momentum"] != 0.9:
            raise SettingsError(
                f"optimizer.schedule_options: expected a {name} of the learning rate alone, found one that changes the momentum,"
                ' too; add `"cycle_momentum": false`'
            )
        self._rates = [self._optimizer.param_groups[0]["lr"]]

    def __getitem__(self, place: int) -> float:
        while len(self._rates) <= place:
            self._optimizer.step()
            self._scheduler.step()
            self._rates.append(float(self._optimizer.param_groups[0]["lr"]))
        return float(self._rates[place])

    def follow(self, losses: Iterable[float]) -> float:
        """Return the rate after epochs of these losses, by a scheduler that goes by them."""
        for loss in losses:
            self._scheduler.step(loss)
        return float(self._optimizer.param_groups[0]["lr"])


def _leave_compiler_out() -> None:
    """Keep optimizers from loading PyTorch's compiler, 70 MB in 0.7 seconds, only to tell it to leave them alone.

    Nothing of ours compiles a method of an optimizer. With a PyTorch that does not know this mark, unlike 2.13, this does nothing.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        method.__dict__.setdefault("__dynamo_disable", method)
