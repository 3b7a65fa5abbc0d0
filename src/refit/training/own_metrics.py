"""The user's own metrics, by the names that settings give them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from refit.data.own_functions import import_function
from refit.errors import SettingsError
from refit.runtime.randomness import putting_generators_back

Metric = Callable[[Tensor, Tensor], Any]
"""From outputs and targets of all rows of a split to a number."""


def import_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Import metrics by their names; raises as `import_function` does."""
    return {name: import_function(name, "training.metrics") for name in names}


def measure_own(metrics: Mapping[str, Metric], outputs: Tensor, target: Tensor) -> dict[str, float | None]:
    """Compute the user's metrics, by the names of their functions.

    Raises:
        SettingsError: One fails, or does not return a number.
    """
    figures: dict[str, float | None] = {}
    for name, metric in metrics.items():
        try:
            with putting_generators_back():
                figures[name.partition(":")[2].replace("_", " ")] = float(metric(outputs, target))
        except Exception as error:
            raise SettingsError(
                f"training.metrics: expected {name}(outputs, target) to return a number for outputs of {tuple(outputs.shape)} and"
                f" targets of {tuple(target.shape)}, found {type(error).__name__}: {error}; correct the function"
            ) from error
    return figures
