"""Refit: scheduled retraining of PyTorch models, correct to the bit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refit.serving.saved_model import Model, load_model

__all__ = ["Model", "load_model"]


def __getattr__(name: str) -> Any:
    """Import torch only for who loads a model."""
    if name in __all__:
        from refit.serving import saved_model

        return getattr(saved_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
