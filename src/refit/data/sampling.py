"""The user's own weights of train examples, by which a sampler draws them."""

import torch
from torch import Tensor

from refit.data.own_functions import import_function
from refit.errors import SettingsError
from refit.runtime.randomness import putting_generators_back


def weigh(name: str | None, target: Tensor) -> Tensor | None:
    """Call the function that weighs examples by their targets; None if none is named.

    Raises:
        SettingsError: It fails, or does not return a finite weight of at least 0 for each, some of them above 0.

    Shape:
        target: (N, …); returns (N,).
    """
    if name is None:
        return None
    function = import_function(name, "loader.sampler")
    expected = f"loader.sampler: expected {name}(targets) to return one weight for each of {len(target)} train rows"
    try:
        with putting_generators_back():
            weights = torch.as_tensor(function(target.clone()), dtype=torch.double)
    except Exception as error:
        raise SettingsError(f"{expected}, found {type(error).__name__}: {error}; correct the function") from error
    if weights.shape != (len(target),):
        raise SettingsError(f"{expected}, found a tensor of {tuple(weights.shape)}; return one number for each row")
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise SettingsError(f"{expected}, found {_name_odd(weights)}; return finite weights of at least 0, some above 0")
    return weights


def _name_odd(weights: Tensor) -> str:
    odd = (~torch.isfinite(weights) | (weights < 0)).nonzero()
    return f"{weights[odd[0, 0]].item()} for row {odd[0, 0].item()}" if len(odd) else "0 for all"
