"""Finds the test rows that may judge, which neither model has learned from, and those of them that depend on one another."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from refit.data.identities import Rows, find_known, identify
from refit.errors import RefitError, StoreError
from refit.promotion.decision import Clusters
from refit.registry.versions import list_earlier
from refit.serving.saved_model import DEFAULTS, Model, load_version
from refit.settings import DataSettings, SettingsTree
from refit.store.store import Store
from refit.tables.conversion import EXPECTED
from refit.tables.copies import estimate_chances, is_more_than_chance
from refit.tables.formats import NumberFormat
from refit.tables.hashes import hash_rows
from refit.tables.manifest import Manifest, load_test_rows
from refit.tables.preprocessing import AnyColumn
from refit.tables.row_identities import convert_rows
from refit.texts import list_names, show
from refit.training.objective import Mask

LEARNED_FROM = ("train", "val")


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
    name: str, champion: int | None, manifest: Manifest, rows: pl.DataFrame, store: Store, local: SettingsTree = DEFAULTS
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
        loss = (
            _find_lost_columns(model.manifest, rows)
            or _find_lost_classes(model.manifest, manifest)
            or _find_other_readings(model.manifest, manifest, local.data)
        )
        if loss is not None:
            return Rival(problem="; ".join([*damages, explain_incomparable(name, number, loss[0])]), remedy=loss[1])
        try:
            numbers = manifest.load_identities("test", store).numbers
            if _list_columns(model.manifest) != _list_columns(manifest):
                numbers = np.zeros_like(numbers)  # rows that are equal for one may differ for the other
            is_learned = find_learned(model.manifest, rows, numbers, store)
        except RefitError as error:
            return Rival(problem="; ".join([*damages, explain_incomparable(name, number, error)]))
        judges = [f"{name}@v{number}, an earlier champion, stands in for it"] if damages else []
        return Rival(number, model, is_learned, "; ".join([*damages, *judges]) or None, is_damaged=bool(damages))
    if not damages:
        return Rival()
    problem = "; ".join([*damages, "no earlier champion can stand in"])
    return Rival(problem=problem, remedy="put its files back, or promote a version by hand", is_damaged=True)


def find_fair_rows(manifest: Manifest, rival: Rival, rows: pl.DataFrame, store: Store) -> tuple[Mask, dict[str, int]]:
    """Find the test rows that neither model has learned from, and count those that each has learned from."""
    is_learned = {"the candidate": find_learned(manifest, rows, manifest.load_identities("test", store).numbers, store)}
    if rival.is_learned is not None:
        is_learned["the champion"] = rival.is_learned
    is_fair = ~np.any([*is_learned.values()], axis=0)
    return is_fair, {who: mask.sum() for who, mask in is_learned.items()}


def find_learned(manifest: Manifest, rows: pl.DataFrame, numbers: Rows, store: Store) -> Mask:
    """Find the raw rows that a model of this data set has learned from.

    A raw row that equals a learned one counts as learned from. But if rows with such columns would be equal as often by chance,
    equality says nothing, and no row counts.

    Args:
        manifest: The data set.
        rows: N raw rows.
        numbers: Number of each row among its equals, `(N,)`.
        store: Where the data set is.

    Raises:
        DataError: The rows lack a column, or a value cannot be converted.
        StoreError: The record of the learned rows is gone.
    """
    _, hashes, known = convert_rows(manifest, rows)
    splits = [split for split in LEARNED_FROM if split in manifest.splits]
    learned = np.concatenate([manifest.load_identities(split, store).keys for split in splits])
    is_learned = find_known(identify(hashes, numbers), learned)
    chances = estimate_chances(known, numbers, len(learned))
    return is_learned if is_more_than_chance(is_learned.sum(), chances, min_share=0.0) else np.zeros(len(is_learned), bool)


def find_clusters(manifest: Manifest, rows: pl.DataFrame, store: Store) -> Clusters | None:
    """Number the raw test rows so that rows which depend on one another have the same number; None if all are independent.

    Rows of the same group depend on one another if the settings name a group column. Otherwise equal rows do, if chance does not
    explain them.
    """
    identities = manifest.load_identities("test", store)
    if identities.groups is not None:
        return identities.groups
    if manifest.time_column is None and len(np.unique(identities.hashes)) == rows.height:
        return None  # no two are equal, whatever they hold
    *_, known = convert_rows(manifest, rows)
    hashes = hash_rows(known[[*(column.name for column in manifest.columns), manifest.target]])
    _, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    chances = estimate_chances(known, np.zeros(len(hashes), np.int64), len(hashes) - 1)
    return hashes if is_more_than_chance((counts[places] > 1).sum(), chances) else None


def explain_missing_rows(
    manifest: Manifest, name: str, champion: int | None, store: Store, local: SettingsTree = DEFAULTS
) -> str | None:
    """Say what is needed if a candidate of this data set and the champion together have learned from all test rows.

    Raises:
        DataError: The data set has no test rows.
    """
    rows = load_test_rows(manifest, store)
    is_fair, left_out = find_fair_rows(manifest, find_rival(name, champion, manifest, rows, store, local), rows, store)
    return None if is_fair.any() else explain_unfair(left_out, len(is_fair))


def _find_lost_columns(before: Manifest, rows: pl.DataFrame) -> tuple[str, str] | None:
    """Name problem and remedy if the data lacks a column that a model needs."""
    lost = [name for name in _list_columns(before) if name is not None and name not in rows.columns]
    if not lost:
        return None
    problem = f"expected the columns that it needs, found no {list_names(sorted(lost))} in the data"
    return problem, "bring them back, or promote a candidate by hand"


def _find_lost_classes(before: Manifest, now: Manifest) -> tuple[str, str] | None:
    """Name problem and remedy if the data has no row of a class that a model knows: a candidate would never predict it."""
    lost = [label for label in before.classes if label not in now.classes]
    if not lost:
        return None
    found = f"found none of {list_names(map(str, lost))}"
    problem = f"column `{now.target}`: expected rows of every class that it knows, {found}"
    return problem, "add such rows, or, if they are gone for good, promote a candidate by hand"


def _find_other_readings(before: Manifest, now: Manifest, data: DataSettings) -> tuple[str, str] | None:
    """Name problem and remedy if files or columns are written otherwise than those that a model knows."""
    remedy = "write it as before, or, if it stays so, promote a candidate by hand"
    if before.dialect is not None and now.dialect is not None:
        dialects = [dialect.describe() for dialect in (before.dialect, now.dialect)]
        if not before.dialect.agrees_with(now.dialect, data):
            return f"expected files written {dialects[0]}, found them written {dialects[1]}", remedy
    columns = {column.name: column for column in now.columns}
    said = {*data.categorical, *data.formats}
    for known in before.columns:
        found = columns.get(known.name)
        if found is not None and known.name not in said and not _are_read_alike(known, found):
            return f"column `{show(known.name)}`: expected {_describe(known)}, found {_describe(found)}", remedy
    return None


def _are_read_alike(before: AnyColumn, now: AnyColumn) -> bool:
    """Whether cells have the same kind, unit and notation; signs between thousands may come and go."""
    notations = [(column.format or NumberFormat(), column.kind) for column in (before, now)]
    alike = [
        (notation.model_copy(update={"thousands": ""}) if isinstance(notation, NumberFormat) else notation, kind)
        for notation, kind in notations
    ]
    return alike[0] == alike[1]


def _describe(column: AnyColumn) -> str:
    return EXPECTED[column.kind] if column.format is None else column.format.describe()


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


def _list_columns(manifest: Manifest) -> set[str | None]:
    """List the columns by which a data set tells rows apart."""
    return {*(column.name for column in manifest.columns), manifest.target, manifest.time_column}
