"""Models: the MLP that settings describe, or a user's own factory."""

import importlib
from collections.abc import Callable

import torch
from torch import nn

from refit.errors import SettingsError
from refit.models.mlp import build_mlp
from refit.settings import ModelSettings


def build_model(settings: ModelSettings, num_inputs: int, num_outputs: int) -> nn.Module:
    """Build the model, its weights drawn from the global generator.

    Raises:
        SettingsError: `model.factory` cannot be imported or called, or what it returns does not map `(B, num_inputs)` to
            `(B, num_outputs)`.
    """
    if settings.factory is None:
        return build_mlp(num_inputs, num_outputs, settings.hidden_sizes, settings.activation, settings.dropout)
    factory = import_factory(settings.factory)
    try:
        model = factory(num_inputs, num_outputs)
    except Exception as error:
        raise SettingsError(
            f"model.factory: expected {settings.factory}({num_inputs}, {num_outputs}) to return a model, "
            f"found {type(error).__name__}: {error}; mend the function"
        ) from error
    _check_shape(model, settings.factory, num_inputs, num_outputs)
    return model


def import_factory(name: str) -> Callable[[int, int], nn.Module]:
    """Import `package.module:function`.

    Raises:
        SettingsError: There is no such module or function, or the module fails on import.
    """
    module_name, function_name = name.split(":")
    try:
        factory: Callable[[int, int], nn.Module] = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise SettingsError(
            f"model.factory: expected a function that can be imported, found {name!r}: {type(error).__name__}: {error}; "
            "give package.module:function, from the working directory or installed"
        ) from error
    return factory


def _check_shape(model: object, name: str, num_inputs: int, num_outputs: int) -> None:
    """Try two rows through the model, leaving it in training mode and the global generator as it was."""
    if not isinstance(model, nn.Module):
        raise SettingsError(f"model.factory: expected {name} to return a torch.nn.Module, found {type(model).__name__}")
    odd = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise SettingsError(f"model.factory: expected only tensors in the state_dict of {name}, found {odd[0]}; make it a buffer")
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            found = model.eval()(torch.zeros(2, num_inputs))
    except Exception as error:
        raise SettingsError(
            f"model.factory: expected the model of {name} to take rows of {num_inputs} numbers, "
            f"found {type(error).__name__}: {error}; use the num_inputs that the function is given"
        ) from error
    finally:
        model.train()
    shape = tuple(getattr(found, "shape", ()))
    if shape != (2, num_outputs):
        raise SettingsError(
            f"model.factory: expected the model of {name} to give (2, {num_outputs}) numbers for 2 rows, "
            f"found {shape or type(found)}; use the num_outputs that the function is given"
        )
