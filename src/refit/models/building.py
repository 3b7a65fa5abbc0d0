"""Models: one of the architectures here, by its name, or a user's own factory."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refit.code import importing_from_here
from refit.data.inputs import Inputs, apply_model, list_tensors
from refit.data.own_functions import convert_options, import_function
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.models.architectures import HAVE_MEMBERS, find_architecture
from refit.models.ensemble import Ensemble
from refit.runtime.devices import putting_defaults_back
from refit.runtime.randomness import putting_generators_back, seed_everything
from refit.settings import ModelSettings
from refit.texts import list_names

MAX_PROBED = 4096
"""Most numbers of each output by which a network is recognized."""


def build_model(settings: ModelSettings, signature: Signature) -> nn.Module:
    """Build the model, or an ensemble of them, weights drawn from the global generator.

    Settings of the whole process that a factory changes, such as the default type or the number of threads, are put back.

    Raises:
        SettingsError: There is no `model.architecture` of that name, `model.factory` cannot be imported or called, what it
            returns does not map `(B, F)` to `(B, outputs)`, or the answers of several could not be averaged.
    """
    num_members = settings.num_members or 1
    if num_members == 1 or (settings.factory is None and settings.architecture in HAVE_MEMBERS):
        return _build_one(settings, signature)
    if signature.target.kind not in ("classes", "numbers"):
        raise SettingsError(
            f"model.num_members: expected 1 where neither classes nor numbers are predicted, found {num_members}; leave it out"
        )
    members = [_build_one(settings, signature) for _ in range(num_members)]
    if members[0] is members[1]:
        raise SettingsError(
            f"model.factory: expected {settings.factory} to build another network in each call, as model.num_members is"
            f" {num_members}, found the same one again; build it within the function"
        )
    return Ensemble(members, signature.target.kind == "classes")


def _build_one(settings: ModelSettings, signature: Signature) -> nn.Module:
    if settings.factory is None:
        _refuse_other_inputs(signature)
        return find_architecture(settings.architecture)(signature, settings)
    factory = import_function(settings.factory, "model.factory")
    options = convert_options(factory, settings.factory, settings.options, "model.options")
    given, named = _list_arguments(factory, options, signature)
    takes_signature = any(value is signature for value in (*given, *named.values()))
    if signature.coded and not takes_signature:
        raise SettingsError(
            f"model.factory: expected {settings.factory} to take the Signature, as the inputs of"
            f" {list_names(column.name for column in signature.coded)} are codes of categories, found a function without it; let it"
            " take `signature`, whose `split` gives these codes, or set data.max_one_hot to none"
        )
    if signature.texts and not takes_signature:
        raise SettingsError(
            f"model.factory: expected {settings.factory} to take the Signature, as the inputs of"
            f" {list_names(column.name for column in signature.texts)} are numbers of words, found a function without it; let it"
            " take `signature`, whose `split_texts` gives these numbers, or leave the columns out with data.exclude"
        )
    with importing_from_here(), putting_defaults_back():  # it may import more when it is called
        try:
            model: nn.Module = factory(*given, **named, **options)
        except Exception as error:
            shown = [*("signature" if value is signature else str(value) for value in given)]
            shown += [
                f"{name}={'signature' if value is signature else repr(value)}" for name, value in {**named, **options}.items()
            ]
            raise SettingsError(
                f"model.factory: expected {settings.factory}({', '.join(shown)}) to return a model, found {type(error).__name__}:"
                f" {error}; correct the function, which is given num_inputs and num_outputs, or the Signature alone if it takes one"
                " argument, or neither if it takes none"
            ) from error
        _check_module(model, settings.factory)
        if not signature.tensors:
            _check_shape(model, settings.factory, signature, "signature." if signature in given else "")
        _check_parameters(model, settings.factory)
    return model


def build_for_weights(settings: ModelSettings, signature: Signature) -> nn.Module:
    """Build the model for existing weights, leaving the generators as they were; raises as `build_model` does."""
    with putting_generators_back():
        return build_model(settings, signature)


def probe(model: nn.Module, sample: Inputs) -> list[Any]:
    """Compute outputs of a few fixed examples, by which a network is recognized at any matmul precision.

    Leaves the model in evaluation mode. Of many numbers, the first count.
    """
    with putting_generators_back(), torch.inference_mode():  # the precision is process-wide, as the generators are
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            seed_everything(0)  # some models draw in evaluation, too
            outputs = list_tensors(_apply_to_any(model.eval(), sample))
        finally:
            torch.set_float32_matmul_precision(precision)
    numbers = [part.float() for part in outputs]
    if len(numbers) == 1 and numbers[0].numel() <= MAX_PROBED:
        return numbers[0].tolist()
    return torch.cat([part.flatten()[:MAX_PROBED] for part in numbers] or [torch.empty(0)]).tolist()


def _apply_to_any(model: nn.Module, sample: Inputs) -> Any:
    """Outputs for items or, of items that a step of the user's own takes apart, for their first part; none if it takes neither."""
    first = next(iter(sample.values() if isinstance(sample, dict) else sample)) if isinstance(sample, dict | tuple) else sample
    for x in (sample, first):
        with contextlib.suppress(Exception):
            return apply_model(model, x)
    return ()


def check_options(settings: ModelSettings) -> None:
    """Raise SettingsError if a factory takes no argument of the name of an option, or one of another type."""
    if settings.factory is not None:
        convert_options(import_function(settings.factory, "model.factory"), settings.factory, settings.options, "model.options")


def _list_arguments(
    factory: Callable[..., object], options: Mapping[str, Any], signature: Signature
) -> tuple[list[Any], dict[str, Any]]:
    """List what a factory is given besides its options, by place and by name: sizes, the signature, or nothing.

    Arguments of known names are given what they name. Others that have no default are the signature, if there is one, or
    `num_inputs` and `num_outputs`.
    """
    sizes = signature.num_inputs, signature.num_outputs
    known = {"signature": signature, "num_inputs": sizes[0], "num_outputs": sizes[1], "num_classes": sizes[1]}
    try:
        arguments = [it for it in inspect.signature(factory).parameters.values() if it.name not in options]
    except (TypeError, ValueError):
        return [*sizes], {}
    unknown = ("num_outputs", "num_classes") if signature.target.kind == "none" else ()
    if lost := [it.name for it in arguments if it.name in unknown and it.default is it.empty]:
        raise SettingsError(
            f"model.factory: expected a value for `{lost[0]}`, which training.step alone knows, found none;"
            f' give it by model.options, such as {{"{lost[0]}": 10}}'
        )
    by_place = [it for it in arguments if it.kind in (it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD)]
    required = [it for it in by_place if it.default is it.empty]
    takes_more = any(it.kind is it.VAR_POSITIONAL for it in arguments)
    if all(it.name in known for it in required) and (required or not takes_more):
        optional = [it.name for it in arguments if it.name in known and it not in required and it.kind is not it.VAR_KEYWORD]
        return [known[it.name] for it in required], {name: known[name] for name in optional}
    return ([signature] if len(required) == 1 and not takes_more else [*sizes]), {}


def _refuse_other_inputs(signature: Signature) -> None:
    """Raise SettingsError for items that only a network of the user's own can take."""
    specs = signature.tensors
    if specs and ([*specs] != ["x"] or specs["x"].dtype != "float32" or len(specs["x"].shape) != 1 or None in specs["x"].shape):
        raise SettingsError(
            f"model.factory: expected a network of your own for items of {signature.describe_inputs()}, as those that Refit builds"
            " take float32 vectors, found none; set model.factory"
        )


def _check_module(model: object, name: str) -> None:
    """Refuse what cannot be saved."""
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"model.factory: expected {name} to return a torch.nn.Module, found {type(model).__name__}; return the model"
        )
    odd = [name for name, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise SettingsError(f"model.factory: expected only tensors in the state_dict of {name}, found {odd[0]}; make it a buffer")


def _check_parameters(model: nn.Module, name: str) -> None:
    """Refuse what cannot be trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SettingsError(
            f"model.factory: expected parameters to train in the model of {name}, found none that require a gradient"
        )
    lookups = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    if sparse := [path for path, module in lookups if module.sparse]:
        raise SettingsError(
            f"model.factory: expected dense gradients in {name}, found sparse ones of {sparse[0]}; leave out `sparse=True`"
        )


def _check_shape(model: nn.Module, name: str, signature: Signature, told: str) -> None:
    """Try two rows through the model, leaving it in training mode and the generator as it was; `told` names what has the sizes."""
    num_inputs, num_outputs = signature.num_inputs, signature.num_outputs
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


def _make_rows(num_inputs: int) -> Tensor:
    """Two rows of numbers from 0 to 1."""
    return torch.linspace(0, 1, 2 * num_inputs, dtype=torch.float32).view(2, num_inputs)
