"""What a model takes at once: a tensor of N examples, or a tuple or dictionary of such tensors."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Mask: TypeAlias = NDArray[np.bool_]
"""Marks some of N examples, `(N,)`."""
Inputs: TypeAlias = Any
"""A tensor `(N, …)`, or a tuple or dictionary of them; a step of the user's own may take deeper ones."""


def apply_model(model: Callable[..., Any], x: Inputs) -> Tensor:
    """Call a model as its inputs are: `model(x)`, `model(*x)` or `model(**x)`; of an output with `.logits`, these count."""
    outputs = model(x) if isinstance(x, Tensor) else model(**x) if isinstance(x, dict) else model(*x)
    found: Tensor = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", outputs)
    return found


def list_tensors(x: Inputs) -> list[Tensor]:
    """List the tensors of inputs, in order."""
    if isinstance(x, Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else []
    return [tensor for part in parts for tensor in list_tensors(part)]


def find_other(x: Inputs) -> Any:
    """Find what is neither a tensor nor a tuple, list or dictionary with tensors; None if there is nothing of that kind."""
    if isinstance(x, Tensor):
        return None
    parts = [*x.values()] if isinstance(x, dict) else [*x] if isinstance(x, tuple | list) else []
    return next((found for found in map(find_other, parts) if found is not None), None) if parts else x


def map_tensors(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Return inputs of the same kind, each tensor of them changed by a function."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {name: map_tensors(function, part) for name, part in x.items()}
    return tuple(map_tensors(function, part) for part in x) if isinstance(x, tuple | list) else x


def count_examples(x: Inputs) -> int:
    """Count the examples of inputs, which every tensor has along its first dimension."""
    return len(list_tensors(x)[0])


def join_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Put inputs of the same kind one after the other."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], dict):
        return {name: join_inputs([part[name] for part in parts]) for name in parts[0]}
    return tuple(join_inputs(same) for same in zip(*parts, strict=True))


def name_tensors(x: Inputs, name: str = "x") -> dict[str, Tensor]:
    """Name the tensors of inputs, so that `unname_tensors` can restore them: `x`, `x.0`, `x.image`."""
    if isinstance(x, Tensor):
        return {name: x}
    parts = x.items() if isinstance(x, dict) else enumerate(x if isinstance(x, tuple | list) else ())
    sign = ":" if isinstance(x, dict) else "."
    return {key: tensor for part, value in parts for key, tensor in name_tensors(value, f"{name}{sign}{part}").items()}


def unname_tensors(tensors: dict[str, Tensor], name: str = "x") -> Inputs:
    """Restore inputs from their named tensors; other names are ignored."""
    if name in tensors:
        return tensors[name]
    found: dict[str, Inputs] = {}
    for key in tensors:
        if key.startswith((f"{name}.", f"{name}:")):
            rest = key[len(name) + 1 :]
            part = rest[: min((place for place in map(rest.find, ".:") if place >= 0), default=len(rest))]
            found.setdefault(key[: len(name) + 1 + len(part)], None)
    restored = {key: unname_tensors(tensors, key) for key in found}
    if any(key[len(name)] == ":" for key in found):
        return {key[len(name) + 1 :]: value for key, value in restored.items()}
    return tuple(restored[key] for key in sorted(found, key=lambda key: int(key[len(name) + 1 :])))
