"""Start training from the weights of a saved version instead of from new ones."""

from refit.data.signature import Signature
from refit.errors import RefitError
from refit.refs import SavedModel
from refit.serving.saved_model import DEFAULTS, load_version
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.training.loop import TrainingState


def take_weights(
    state: TrainingState, version: SavedModel, signature: Signature, store: Store, local: SettingsTree = DEFAULTS
) -> str:
    """Give a fresh state the weights of `version`, if they mean the same there: same inputs, classes, names and shapes.

    Where `version` was trained on all rows at last, the weights before are taken: its test rows may be test rows here, too.

    Args:
        state: Left as it is where they do not fit.
        version: Whose weights to take.
        signature: Of the examples to train on.
        store: Where the version is.
        local: Settings that name its factory, or trust all; see `load_model`.

    Returns:
        What was done, in a line for people.
    """
    try:
        model = load_version(store, version.name, version.version, local, held_back=True)
    except RefitError as error:
        return f"starting from new weights, as those of {version.reference} cannot be read: {error}"
    weights, own = model.module.state_dict(), state.model.state_dict()
    differences = {
        "inputs": model.manifest.signature.input_names != signature.input_names,
        "classes": model.manifest.signature.target.classes != signature.target.classes,
        "layers": {key: value.shape for key, value in weights.items()} != {key: value.shape for key, value in own.items()},
    }
    if any(differences.values()):
        other = " and ".join(part for part, is_other in differences.items() if is_other)
        return f"starting from new weights, as {version.reference} has other {other}"
    state.model.load_state_dict(weights)
    return f"starting from the weights of {version.reference}"
