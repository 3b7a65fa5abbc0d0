"""Counts how often a run has begun at the same place, so that it gives up if it crashes repeatedly without progress."""

from pydantic import BaseModel, ConfigDict, ValidationError

from refit.errors import TrainingError
from refit.runs.keys import Recipe
from refit.runs.results import find_last_epoch, load_usable_result
from refit.store.store import Store
from refit.training.checkpoints import find_partial

MAX_ATTEMPTS = 3


class Attempts(BaseModel):
    """Count of attempts of one run that began with the same work done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    progress: str
    count: int


def note_attempt(run_id: str, recipe: Recipe, store: Store) -> None:
    """Count this attempt of a run.

    Raises:
        TrainingError: Three earlier attempts of the same run began with the same work done.
    """
    progress = _describe_progress(recipe, store)
    before = _load_attempts(recipe, store)
    is_stuck = before is not None and (before.run_id, before.progress) == (run_id, progress)
    count = before.count + 1 if before is not None and is_stuck else 1
    if count > MAX_ATTEMPTS:
        raise TrainingError(
            f"expected to get further than the earlier attempts, found that {MAX_ATTEMPTS} of them died after {progress}; "
            "find out what kills the process (most often a lack of memory), then start a new run: the training so far is kept"
        )
    store.write(_path(recipe), Attempts(run_id=run_id, progress=progress, count=count).model_dump_json().encode())


def forget_attempts(recipe: Recipe, store: Store) -> None:
    """Forget the attempts of a finished run."""
    store.remove(_path(recipe))


def _describe_progress(recipe: Recipe, store: Store) -> str:
    if load_usable_result(recipe.dataset.key, store) is None:
        return "nothing"
    return ", then on all rows ".join(_describe_epochs(fit, store) for fit in recipe.fits)


def _describe_epochs(recipe: Recipe, store: Store) -> str:
    last = find_last_epoch(recipe.epoch_keys, store)
    partial = find_partial(recipe.epoch_keys[last], store) if last < recipe.num_epochs else None
    return f"epoch {last}" + (f" and checkpoint {partial.digest[:12]} inside the next" if partial else "")


def _load_attempts(recipe: Recipe, store: Store) -> Attempts | None:
    if not store.exists(_path(recipe)):
        return None
    try:
        return Attempts.model_validate_json(store.read(_path(recipe)))
    except ValidationError:
        return None


def _path(recipe: Recipe) -> str:
    return f"attempts/{recipe.start.key}.json"
