"""The user's own loss: imported by its name, and tried before it is trained with."""

import copy

import torch
from torch import Tensor, nn

from refit.data.inputs import Inputs
from refit.data.own_functions import import_function
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.runtime.randomness import putting_generators_back
from refit.training.objective import Loss, Objective
from refit.training.objectives import LOSSES

NUM_ROWS = 6


def check_loss(name: str | None, signature: Signature) -> None:
    """Try a loss on the outputs of a few rows, and refuse what could not be trained with.

    Raises:
        SettingsError: It fails, does not return a scalar that depends on the outputs, or is a sum over rows, not their mean:
            short batches and accumulated ones would count as others do.
    """
    if name is None or name in LOSSES:
        return
    loss: Loss = import_function(name, "training.loss")
    with putting_generators_back():
        outputs = torch.linspace(-1, 1, NUM_ROWS * signature.num_outputs).view(NUM_ROWS, -1).cos()
        target = torch.arange(NUM_ROWS) % signature.num_outputs
        once = _try(loss, name, outputs, target)
        twice = _try(loss, name, torch.cat([outputs, outputs]), torch.cat([target, target]))
    if once and abs(twice - 2 * once) < 1e-5 * abs(twice):
        raise SettingsError(
            f"training.loss: expected {name} to return the mean over the rows of a batch, found twice as much for the same rows"
            " twice; divide the sum by the number of rows"
        )


def check_objective(objective: Objective, model: nn.Module, x: Inputs, y: Tensor, setting: str) -> None:
    """Try an objective on a batch of the user's items, and refuse what could not be trained with.

    Args:
        objective: With the loss or the step.
        model: To be trained; left as it was.
        x: Inputs of a few items.
        y: Their targets.
        setting: What says which loss it is.

    Raises:
        SettingsError: The outputs of the model do not fit the loss, or it does not return a finite scalar that can be trained on.
    """
    state = copy.deepcopy(model.state_dict())
    try:
        with putting_generators_back():
            found = objective.batch_loss(model.train(), x, y)
    except Exception as error:
        raise SettingsError(
            f"{setting}: expected a loss for a batch of {len(y)} items, whose targets are {tuple(y.shape)} {y.dtype}, found"
            f" {type(error).__name__}: {error}; let the outputs of the model fit the loss"
        ) from error
    finally:
        model.load_state_dict(state)
    if not isinstance(found, Tensor) or found.shape != () or not found.is_floating_point():
        kind = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SettingsError(f"{setting}: expected a tensor of one number for a batch, found {kind}; return the mean over the items")
    if not found.requires_grad:
        raise SettingsError(
            f"{setting}: expected a loss that depends on the parameters of the model by PyTorch's operations, found one without a"
            " gradient; use no detach, item or numpy"
        )


def _try(loss: Loss, name: str | None, outputs: Tensor, target: Tensor) -> float:
    """The loss of outputs `(B, C)` and classes `(B,)`."""
    outputs = outputs.clone().requires_grad_()
    try:
        found = loss(outputs, target)
    except Exception as error:
        raise SettingsError(
            f"training.loss: expected {name}(outputs, target) to return a loss for outputs of {tuple(outputs.shape)} and classes of"
            f" {tuple(target.shape)}, found {type(error).__name__}: {error}; correct the function"
        ) from error
    if not isinstance(found, Tensor) or found.shape != () or not found.is_floating_point():
        kind = f"a tensor of {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SettingsError(
            f"training.loss: expected {name} to return a tensor of one number, found {kind}; return the mean over the rows"
        )
    if not found.requires_grad:
        raise SettingsError(
            f"training.loss: expected {name} to return a loss that depends on the outputs by PyTorch's operations, found one"
            " without a gradient; use no detach, item or numpy"
        )
    return found.item()
