"""How good a model is on a split."""

from collections.abc import Callable, Mapping, Sized
from typing import cast

import torch
from torch import Tensor, nn

from refit.data.inputs import Inputs, apply_model, map_tensors
from refit.data.loaders import Batches
from refit.errors import TrainingError
from refit.runtime.devices import autocast
from refit.runtime.randomness import give_way
from refit.training.metrics import Metrics
from refit.training.objective import Objective
from refit.training.own_metrics import Metric, measure_own

NO_METRICS: Mapping[str, Metric] = {}
MAX_SHOWN = 100
"""Most outputs of a row that a message shows."""
Compute = Callable[[nn.Module, Inputs, Tensor], Tensor]
"""From a model, inputs and targets of a batch to its outputs, `(B, …)`."""


def compute_outputs(
    model: nn.Module, loader: Batches, device: torch.device, precision: str, compute: Compute | None = None
) -> tuple[Tensor, Tensor]:
    """Return the outputs `(N, …)` in fp32 and the targets `(N, …)` of all rows of `loader`, on the CPU; draws nothing.

    `compute` gives the outputs of a batch; None takes those of the model.
    """
    was_training = model.training
    model.eval()
    # One tensor from the start: small ones, kept between the large ones of each batch, would fragment memory.
    outputs, target = torch.empty(0), torch.empty(len(cast(Sized, loader.dataset)), dtype=torch.int64)
    num_rows = len(target)
    end = 0
    for x, y in loader:
        with torch.inference_mode(), autocast(device, precision):
            x = map_tensors(lambda part: part.to(device), x)
            batch_outputs = apply_model(model, x) if compute is None else compute(model, x, y)
        if end == 0:
            outputs, target = torch.empty(num_rows, *batch_outputs.shape[1:]), y.new_empty(num_rows, *y.shape[1:])
        start, end = end, end + len(y)
        outputs[start:end] = batch_outputs
        target[start:end] = y
        give_way()
    model.train(was_training)
    return outputs, target


def refuse_non_finite_outputs(outputs: Tensor, use: str) -> None:
    """Raise TrainingError for the first row whose outputs `(N, C)` are not finite; `use` says what the rows are for."""
    is_broken = ~torch.isfinite(outputs.reshape(len(outputs), -1)).all(dim=1)
    if is_broken.any():
        row = int(is_broken.nonzero()[0]) + 1
        raise TrainingError(
            f"row {row} of the {use} rows: expected finite outputs, found {outputs[row - 1].flatten()[:MAX_SHOWN].tolist()}; "
            "look for extreme values in the row, or lower optimizer.lr"
        )


def evaluate(
    model: nn.Module,
    loader: Batches,
    objective: Objective,
    device: torch.device,
    precision: str,
    own: Mapping[str, Metric] = NO_METRICS,
) -> Metrics:
    """Compute the metrics of `model` on all rows of `loader`, and the user's own.

    Raises:
        TrainingError: An output of the model is not finite.
    """
    outputs, target = compute_outputs(model, loader, device, precision, objective.compute)
    refuse_non_finite_outputs(outputs, "evaluation")
    metrics = objective.measure(outputs, target)
    return (
        metrics.model_copy(update={"figures": metrics.figures | measure_own(own, *objective.present(outputs, target))})
        if own
        else metrics
    )
