"""Models: one of the architectures here, by its name, or a user's own factory."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import torch
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from torch import Tensor, nn

from refit.code import digest_user_code, importing_from_here
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.models.architectures import find_architecture
from refit.runtime.devices import putting_defaults_back
from refit.runtime.randomness import putting_generators_back, seed_everything
from refit.settings import ModelSettings
from refit.texts import list_names

_imported: dict[str, str] = {}
"""The modules of users that this process has imported, with their digests at that time."""


def build_model(settings: ModelSettings, signature: Signature) -> nn.Module:
    """Build the model, its weights drawn from the global generator.

    Settings of the whole process that a factory changes, such as the default type or the number of threads, are put back.

    Raises:
        SettingsError: There is no `model.architecture` of that name, `model.factory` cannot be imported or called, or what it
            returns does not map `(B, F)` to `(B, outputs)`.
    """
    if settings.factory is None:
        return find_architecture(settings.architecture)(signature, settings)
    factory = import_function(settings.factory, "model.factory")
    options = _convert_options(factory, settings.factory, settings.options)
    given = (signature,) if _takes_signature(factory, options) else (signature.num_inputs, signature.num_outputs)
    with importing_from_here(), putting_defaults_back():  # it may import more when it is called
        try:
            model: nn.Module = factory(*given, **options)
        except Exception as error:
            named = [f"{name}={value!r}" for name, value in options.items()]
            called = f"{settings.factory}({', '.join([*(['signature'] if len(given) == 1 else map(str, given)), *named])})"
            raise SettingsError(
                f"model.factory: expected {called} to return a model, found {type(error).__name__}: {error};"
                " correct the function, which is given num_inputs and num_outputs, or the Signature alone if it takes one argument"
            ) from error
        _check_shape(model, settings.factory, signature, "signature." if len(given) == 1 else "")
    return model


def build_for_weights(settings: ModelSettings, signature: Signature) -> nn.Module:
    """Build the model for existing weights, leaving the generators as they were; raises as `build_model` does."""
    with putting_generators_back():
        return build_model(settings, signature)


def probe(model: nn.Module, num_inputs: int) -> list[list[float]]:
    """Compute logits of two fixed rows, by which a network is recognized at any matmul precision; leaves it in evaluation mode."""
    with putting_generators_back(), torch.inference_mode():  # the precision is process-wide, as the generators are
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            seed_everything(0)  # some models draw in evaluation, too
            logits: Tensor = model.eval()(_make_rows(num_inputs))
        finally:
            torch.set_float32_matmul_precision(precision)
    return logits.float().tolist()


def import_anew(functions: Mapping[str, str | None]) -> None:
    """Import the modules of a user's functions as their files are now.

    Python alone would keep what it imported first for the life of a process, which may be a notebook's.

    Args:
        functions: `package.module:function` by the setting that names it.

    Raises:
        SettingsError: As `import_function`, or a source cannot be read.
    """
    digests = {
        own.removeprefix("code."): digest
        for setting, name in functions.items()
        for own, digest in digest_user_code(name, setting).items()
        if own.startswith("code.")
    }
    if any(_imported.get(own, digest) != digest for own, digest in digests.items()):
        for own in _imported:  # all, as any of them may have imported the changed one
            sys.modules.pop(own, None)
        _imported.clear()
    _imported.update(digests)
    for setting, name in functions.items():
        if name is not None:
            import_function(name, setting)


def import_function(name: str, setting: str) -> Callable[..., Any]:
    """Import `package.module:function`, which a setting names.

    Raises:
        SettingsError: There is no such module or function, or the module fails on import.
    """
    module_name, function_name = name.split(":")
    try:
        with importing_from_here(), putting_defaults_back():
            function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise SettingsError(
            f"{setting}: expected a function that can be imported, found {name!r}: {type(error).__name__}: {error}; "
            "give package.module:function, from the working directory or installed"
        ) from error
    return function


def check_options(settings: ModelSettings) -> None:
    """Raise SettingsError if a factory takes no argument of the name of an option, or one of another type."""
    if settings.factory is not None:
        _convert_options(import_function(settings.factory, "model.factory"), settings.factory, settings.options)


def _convert_options(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a function, converted to the types that it is annotated with."""
    try:
        parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    except (TypeError, ValueError, NameError):
        return dict(options)
    takes_all = any(it.kind is it.VAR_KEYWORD for it in parameters.values())
    unknown = [option for option in options if option not in parameters and not takes_all]
    if unknown:
        raise SettingsError(
            f"model.options: expected arguments that {name} takes, which has {list_names(parameters)}, found {list_names(unknown)};"
            " correct the name"
        )
    checked = {}
    for option, value in options.items():
        try:
            checked[option] = TypeAdapter(hints[option]).validate_python(value) if option in hints else value
        except PydanticSchemaGenerationError:  # of a type that only the function knows
            checked[option] = value
        except ValidationError as error:
            expected, reason = getattr(hints[option], "__name__", hints[option]), error.errors()[0]["msg"]
            raise SettingsError(
                f"model.options.{option}: expected {expected}, as {name} is annotated, found {value!r}: {reason}; change it"
            ) from error
    return checked


def _takes_signature(factory: Callable[..., object], options: Mapping[str, Any]) -> bool:
    """Whether a factory has one argument besides options, as `build(signature)`, not two, as `build(num_inputs, num_outputs)`."""
    try:
        arguments = [it for it in inspect.signature(factory).parameters.values() if it.name not in options]
    except (TypeError, ValueError):
        return False
    required = [it for it in arguments if it.default is it.empty and it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
    return len(required) == 1 and not any(it.kind is it.VAR_POSITIONAL for it in arguments)


def _check_shape(model: object, name: str, signature: Signature, told: str) -> None:
    """Try two rows through the model, leaving it in training mode and the generator as it was; `told` names what has the sizes."""
    num_inputs, num_outputs = signature.num_inputs, signature.num_outputs
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"model.factory: expected {name} to return a torch.nn.Module, found {type(model).__name__}; return the model"
        )
    odd = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise SettingsError(f"model.factory: expected only tensors in the state_dict of {name}, found {odd[0]}; make it a buffer")
    try:
        with putting_generators_back(), torch.no_grad():
            found = model.eval()(_make_rows(num_inputs))
    except Exception as error:
        raise SettingsError(
            f"model.factory: expected the model of {name} to take float32 rows of {num_inputs} numbers, "
            f"found {type(error).__name__}: {error}; correct it, and let it use the {told}num_inputs that the function is given"
        ) from error
    finally:
        model.train()
    shape = tuple(getattr(found, "shape", ()))
    if shape != (2, num_outputs):
        raise SettingsError(
            f"model.factory: expected the model of {name} to give (2, {num_outputs}) numbers for 2 rows, "
            + (
                f"found {shape}; use the {told}num_outputs that the function is given"
                if shape
                else f"found a {type(found).__name__}; return the logits alone"
            )
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingsError(
            f"model.factory: expected parameters to train in the model of {name}, found none that require a gradient"
        )
    lookups = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    if sparse := [path for path, module in lookups if module.sparse]:
        raise SettingsError(
            f"model.factory: expected dense gradients in {name}, found sparse ones of {sparse[0]}; leave out `sparse=True`"
        )


def _make_rows(num_inputs: int) -> Tensor:
    """Two rows of numbers from 0 to 1."""
    return torch.linspace(0, 1, 2 * num_inputs, dtype=torch.float32).view(2, num_inputs)
