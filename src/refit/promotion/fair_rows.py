"""Finds the test rows that may judge, which neither model has learned from, and those of them that depend on one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refit.data.examples import Examples
from refit.data.inputs import Mask
from refit.errors import RefitError, StoreError
from refit.registry.versions import list_earlier
from refit.serving.saved_model import DEFAULTS, Model, load_version
from refit.settings import SettingsTree
from refit.store.store import Store


@dataclass(frozen=True)
class Rival:
    """The version that a candidate is compared with; `model` is None without one that can be compared."""

    number: int | None = None
    model: Model | None = None
    is_learned: Mask | None = None
    """Test rows that the model has learned from."""
    problem: str | None = None
    """What is wrong with the champion."""
    remedy: str | None = None
    """What to do about it if the champion stays."""
    is_damaged: bool = False
    """Whether its files are missing or have other bytes."""


def find_rival(
    name: str, champion: int | None, manifest: Examples, rows: Any, store: Store, local: SettingsTree = DEFAULTS
) -> Rival:
    """Load the champion, or, if it is damaged, the last earlier champion that is whole.

    A version cannot be compared if it needs a column that the raw test rows lack, knows a class that the candidate's data set
    lacks, or has read files or columns otherwise, unless the settings say how they are to be read.
    """
    damages: list[str] = []
    for number in [] if champion is None else [champion, *list_earlier(store, name)]:
        try:
            model = load_version(store, name, number, local, held_back=True)
        except StoreError as error:
            damages.append(f"{name}@v{number} is damaged: {error}")
            continue
        except RefitError as error:
            return Rival(problem="; ".join([*damages, explain_incomparable(name, number, error)]))
        loss = model.manifest.find_obstacle(rows, manifest, local.data)
        if loss is not None:
            return Rival(problem="; ".join([*damages, explain_incomparable(name, number, loss[0])]), remedy=loss[1])
        try:
            numbers = manifest.load_identities("test", store).numbers
            if not model.manifest.is_told_apart_like(manifest):
                numbers = np.zeros_like(numbers)  # rows that are equal for one may differ for the other
            is_learned = model.manifest.find_learned(rows, numbers, store)
        except RefitError as error:
            return Rival(problem="; ".join([*damages, explain_incomparable(name, number, error)]))
        judges = [f"{name}@v{number}, an earlier champion, stands in for it"] if damages else []
        return Rival(number, model, is_learned, "; ".join([*damages, *judges]) or None, is_damaged=bool(damages))
    if not damages:
        return Rival()
    problem = "; ".join([*damages, "no earlier champion can stand in"])
    return Rival(problem=problem, remedy="put its files back, or promote a version by hand", is_damaged=True)


def find_fair_rows(manifest: Examples, rival: Rival, rows: Any, store: Store) -> tuple[Mask, dict[str, int]]:
    """Find the test rows that neither model has learned from, and count those that each has learned from."""
    is_learned = {"the candidate": manifest.find_learned(rows, manifest.load_identities("test", store).numbers, store)}
    if rival.is_learned is not None:
        is_learned["the champion"] = rival.is_learned
    is_fair = ~np.any([*is_learned.values()], axis=0)
    return is_fair, {who: mask.sum() for who, mask in is_learned.items()}


def explain_missing_rows(
    manifest: Examples, name: str, champion: int | None, store: Store, local: SettingsTree = DEFAULTS
) -> str | None:
    """Say what is needed if a candidate of this data set and the champion together have learned from all test rows.

    Raises:
        DataError: The data set has no test rows.
    """
    rows = manifest.load_test_rows(store)
    is_fair, left_out = find_fair_rows(manifest, find_rival(name, champion, manifest, rows, store, local), rows, store)
    return None if is_fair.any() else explain_unfair(left_out, len(is_fair))


def explain_incomparable(name: str, number: int | None, problem: RefitError | str) -> str:
    """Say that a version cannot be compared, and why."""
    return f"{name}@v{number} cannot be compared: {problem}"


def explain_unfair(left_out: Mapping[str, int], num_rows: int) -> str:
    """Say what is needed if all of `num_rows` test rows are left out."""
    return (
        f"expected test rows that neither the candidate nor the champion has learned from, found none among {num_rows:,}"
        f" ({_list_learned(left_out)}); add new rows, remove those of data.test_source from data.source, or split them as before,"
        " by the same seed and data settings"
    )


def tell_left_out(left_out: Mapping[str, int]) -> str | None:
    """Say how many test rows are left out, if any are."""
    return f"without rows that were learned from ({_list_learned(left_out)})" if any(left_out.values()) else None


def _list_learned(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} by {who}" for who, count in left_out.items() if count)
