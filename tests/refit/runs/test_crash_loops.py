import json

import pytest

from refit.errors import TrainingError
from refit.refs import EpochResult, Ref
from refit.runs.crash_loops import note_attempt
from refit.runs.keys import Recipe, write_recipe
from refit.runs.results import result_path
from refit.settings import resolve_settings
from refit.store.store import Store


def keep(store: Store, key: str, content: dict) -> None:
    """As Prefect 3.8 writes it."""
    store.write(result_path(key), json.dumps({"data": content}).encode())


def keep_epoch(recipe: Recipe, epoch: int, store: Store) -> None:
    key = recipe.epoch_keys[epoch - 1]
    refs = {kind: Ref(kind=kind, digest=store.put(f"{kind} {key}".encode()), size=1) for kind in ("checkpoint", "log")}
    keep(store, key, EpochResult(epoch=epoch, **refs, train_loss=0.5, val_loss=None, val_score=None).model_dump())


def test_a_run_gives_up_when_three_attempts_came_no_further_and_an_epoch_of_either_fit_is_further(store):
    settings, _ = resolve_settings({"training": {"num_epochs": 4, "refit_on_all": True}})
    recipe = write_recipe(settings, "1" * 64, None, "cpu", "cpu")
    keep(store, recipe.dataset.key, {})
    for fit in recipe.fits:
        for epoch in range(1, 5):
            note_attempt("run", recipe, store)
            keep_epoch(fit, epoch, store)
    for _ in range(3):
        note_attempt("run", recipe, store)
    message = "found that 3 of them died after epoch 4, then on all rows epoch 4; find out what kills the process"
    with pytest.raises(TrainingError, match=message):
        note_attempt("run", recipe, store)
    note_attempt("another run", recipe, store)
