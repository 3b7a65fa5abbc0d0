"""What a model says of examples, so that a later night can tell whether it says other things now."""

from collections import Counter

import numpy as np
from torch import Tensor

from refit.data.drifts import Drift, compare_profiles
from refit.data.profiles import Profile, profile_counts, profile_numbers
from refit.registry.versions import read_record
from refit.store.store import Store
from refit.training.objective import Classification, Objective
from refit.training.objectives import OwnStep

MAX_PROFILED = 20


def profile_answers(objective: Objective, outputs: Tensor) -> list[Profile]:
    """Profile what is said of N examples: predicted classes and their probabilities, or numbers, probabilities of labels or losses.

    Shape:
        outputs: (N, …), finite.
    """
    columns = objective.tabulate(outputs)
    if isinstance(objective, Classification):
        predicted, *probabilities = columns.values()
        confidence = np.max(probabilities, axis=0).astype(np.float64)
        return [profile_counts("predicted class", Counter(map(str, predicted))), profile_numbers("confidence", confidence)]
    if isinstance(objective, OwnStep):
        columns = {"loss": outputs.numpy()}
    return [profile_numbers(name, values.astype(np.float64)) for name, values in [*columns.items()][:MAX_PROFILED]]


def find_answer_drifts(store: Store, name: str, number: int, objective: Objective, outputs: Tensor) -> list[Drift]:
    """Say how far what a version says has moved since it was saved, by its outputs now; nothing if that was not kept."""
    before = [Profile.model_validate(profile) for profile in read_record(store, name, number).get("answers") or []]
    drifts = compare_profiles(before, profile_answers(objective, outputs)) if before else []
    return [drift.model_copy(update={"column": f"{drift.column}, by {name}@v{number}"}) for drift in drifts]
