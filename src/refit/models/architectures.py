"""The networks that Refit builds, each by the name of its module here, which is part of the recipes of its models alone."""

from collections.abc import Callable

from torch import nn

from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.models.mlp import build_mlp
from refit.models.realmlp import build_realmlp
from refit.models.resnet import build_resnet
from refit.models.tabm import build_tabm
from refit.settings import ModelSettings

ARCHITECTURES: dict[str, Callable[[Signature, ModelSettings], nn.Module]] = {
    "mlp": build_mlp,
    "realmlp": build_realmlp,
    "resnet": build_resnet,
    "tabm": build_tabm,
}
"""What builds a network, by the names that `model.architecture` can have."""

HAVE_MEMBERS = {"tabm"}
"""Those that are ensembles by themselves."""


def find_architecture(name: str) -> Callable[[Signature, ModelSettings], nn.Module]:
    """Find the function that builds the network of this name.

    Raises:
        SettingsError: There is none.
    """
    if name not in ARCHITECTURES:
        raise SettingsError(
            f"model.architecture: expected one of {', '.join(ARCHITECTURES)}, found {name!r}; for a network of your own, set"
            " model.factory"
        )
    return ARCHITECTURES[name]
