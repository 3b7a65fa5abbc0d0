"""Starts training from the weights of a saved version instead of from new ones."""

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
    """Load the weights of `version` into a fresh state, if they mean the same there: same inputs, words, classes, names and shapes.

    If `version` was finally trained on all rows, the weights from before that are taken: its test rows may be test rows here, too.

    Args:
        state: Not changed if the weights do not fit.
        version: The version whose weights to take.
        signature: Signature of the examples to train on.
        store: Where the version is.
        local: Settings of this machine, which name its factory or trust all; see `load_model`.

    Returns:
        A line for people that says what was done.
    """
    try:
        model = load_version(store, version.name, version.version, local, held_back=True)
    except RefitError as error:
        return f"starting from new weights, as those of {version.reference} cannot be read: {error}"
    weights, own = model.module.state_dict(), state.model.state_dict()
    differences = {
        "inputs": model.manifest.signature.input_names != signature.input_names,
        "words or categories": _list_vocabularies(model.manifest.signature) != _list_vocabularies(signature),
        "classes": model.manifest.signature.target.classes != signature.target.classes,
        "layers": {key: value.shape for key, value in weights.items()} != {key: value.shape for key, value in own.items()},
    }
    if any(differences.values()):
        other = " and ".join(part for part, is_other in differences.items() if is_other)
        return f"starting from new weights, as {version.reference} has different {other}"
    state.model.load_state_dict(weights)
    return f"starting from the weights of {version.reference}"


def _list_vocabularies(signature: Signature) -> list[str | None]:
    """What equal numbers of words, or codes of categories, stand for in each column that has them."""
    return [column.vocabulary_digest for column in signature.columns if column.vocabulary_digest]
