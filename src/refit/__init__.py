"""Refit: scheduled retraining of PyTorch models, correct to the bit."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refit.data.seeded import seeded
    from refit.estimators import Classifier as Classifier  # not for `import *`, as it needs scikit-learn
    from refit.estimators import Regressor as Regressor
    from refit.runs.train import train
    from refit.serving.saved_model import Model, load_model

__all__ = ["Model", "load_model", "seeded", "train"]
_HOMES = {
    "Classifier": "refit.estimators",
    "Regressor": "refit.estimators",
    "Model": "refit.serving.saved_model",
    "load_model": "refit.serving.saved_model",
    "seeded": "refit.data.seeded",
    "train": "refit.runs.train",
}


def __getattr__(name: str) -> Any:
    """Import torch only for who trains or loads a model."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
