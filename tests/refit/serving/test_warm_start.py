from pathlib import Path

import polars as pl
import pytest
import torch

from refit.data.signature import Signature
from refit.models.building import build_model
from refit.serving.saved_model import load_model
from refit.serving.warm_start import take_weights
from refit.settings import ModelSettings, OptimizerSettings
from refit.training.checkpoints import digest_weights
from refit.training.loop import TrainingState
from refit.training.objective import Classification
from refit.training.optimizers import build_optimizer

ROWS = pl.DataFrame({"x0": [0.1 * n for n in range(60)], "x1": [1.0, 2.0, 4.0] * 20, "y": ["a", "b"] * 30})


def build_state(num_inputs: int, num_outputs: int = 2, hidden_sizes=()) -> TrainingState:
    model = build_model(ModelSettings(hidden_sizes=list(hidden_sizes)), Signature.of_numbers(num_inputs, num_outputs))
    return TrainingState(model, build_optimizer(OptimizerSettings(), model.parameters()), Classification(()))


def test_weights_that_fit_are_taken_with_all_their_bits(save_version, store):
    version = save_version(ROWS, features=("x0", "x1"))
    state = build_state(2)
    generator = torch.get_rng_state()
    assert (
        take_weights(state, version, load_model(version.path).manifest.signature, store) == "starting from the weights of model@v1"
    )
    assert digest_weights(state.model.state_dict()) == version.weights_digest
    assert torch.equal(torch.get_rng_state(), generator), "batches come in the order of a run that starts from new weights"


def test_of_a_version_trained_on_all_rows_the_weights_before_are_taken(save_version, store):
    """Its test rows are test rows of the next model, too, which must not have learned from them."""
    version = save_version(ROWS, features=("x0", "x1"), num_epochs_on_all=4)
    state = build_state(2)
    take_weights(state, version, load_model(version.path).manifest.signature, store)
    assert digest_weights(state.model.state_dict()) == version.held_back_digest != version.weights_digest


@pytest.mark.parametrize(
    ("rows", "features", "hidden_sizes", "other"),
    [
        (ROWS, ("x0",), (), "inputs and layers"),
        (ROWS.rename({"x1": "x2"}), ("x0", "x2"), (), "inputs"),
        (ROWS.with_columns(y=pl.Series(["a", "c"] * 30)), ("x0", "x1"), (), "classes"),
        (ROWS, ("x0", "x1"), (4,), "layers"),
    ],
    ids=["a column less", "another column", "another class", "another network"],
)
def test_weights_that_do_not_fit_are_left(save_version, store, rows, features, hidden_sizes, other):
    version = save_version(ROWS, features=("x0", "x1"))
    signature = load_model(save_version(rows, features=features).path).manifest.signature
    state = build_state(len(features), hidden_sizes=hidden_sizes)
    before = digest_weights(state.model.state_dict())
    assert take_weights(state, version, signature, store) == f"starting from new weights, as model@v1 has different {other}"
    assert digest_weights(state.model.state_dict()) == before


def test_weights_of_other_words_are_left(save_version, store):
    """Equal numbers of words mean others there."""
    versions = [
        save_version(
            pl.DataFrame({"note": [f"{word} was seen here today {n}" for n in range(150)], "y": ["a", "b"] * 75}),
            features=("note",),
        )
        for word in ("anna", "otto")
    ]
    signatures = [load_model(version.path).manifest.signature for version in versions]
    model = build_model(ModelSettings(hidden_sizes=[]), signatures[1])
    state = TrainingState(model, build_optimizer(OptimizerSettings(), model.parameters()), Classification(()))
    told = take_weights(state, versions[0], signatures[1], store)
    assert told == "starting from new weights, as model@v1 has different words or categories"


def test_damaged_weights_are_left(save_version, store):
    version = save_version(ROWS, features=("x0", "x1"))
    signature = load_model(version.path).manifest.signature
    Path(version.path, "model.pt").write_bytes(b"")
    state = build_state(2)
    assert take_weights(state, version, signature, store).startswith(
        "starting from new weights, as those of model@v1 cannot be read: "
    )
