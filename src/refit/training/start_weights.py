"""Weights to start from: a file by `torch.save` or safetensors, such as a published model's."""

import io
from pickle import UnpicklingError
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor, nn

from refit.errors import SettingsError
from refit.texts import list_names

MAX_NAMES_SHOWN = 5


def load_start(model: nn.Module, path: str) -> str:
    """Load the weights of a file into a model, those that have a parameter or buffer of their name and shape.

    Returns:
        A line for people that says which are loaded and which stay new.

    Raises:
        SettingsError: The file holds no tensors by name, or none that fits.
    """
    given, own = _read(path), model.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise SettingsError(
            f"model.weights: expected weights of the names and shapes of the model, {list_names(own, MAX_NAMES_SHOWN)}, found"
            f" {list_names(given, MAX_NAMES_SHOWN)} in {path}; name another file"
        )
    model.load_state_dict(fitting, strict=False)
    new = [name for name in own if name not in fitting]
    return f"starting from {len(fitting)} of {len(own)} tensors of {path}" + (
        f"; new ones for {list_names(new, MAX_NAMES_SHOWN)}" if new else ""
    )


def _read(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name; a checkpoint may have them as `state_dict`, or `model`."""
    with fsspec.open(path, "rb") as file:
        data = file.read()
    try:
        content: Any = (
            safetensors.torch.load(data)
            if path.endswith(".safetensors")
            else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        )
    except (UnpicklingError, RuntimeError, ValueError, EOFError, safetensors.SafetensorError) as error:
        problem = "more than tensors" if isinstance(error, UnpicklingError) else error
        raise SettingsError(
            f"model.weights: expected tensors by name in {path}, found {problem}; save a state_dict by torch.save or safetensors"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    return {name: value for name, value in content.items() if isinstance(value, Tensor)} if isinstance(content, dict) else {}
