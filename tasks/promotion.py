"""Comparison, promotion and its refusal as tasks."""

from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger, task

from refit.errors import ConflictError
from refit.makers import load_record
from refit.promotion import comparison, fair_rows
from refit.promotion.comparison import Verdict
from refit.refs import DatasetRef, SavedModel
from refit.registry import ledger, versions
from refit.registry.ledger import Entry
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tasks.caching import RETRIED


@task(task_run_name="compare with the champion", persist_result=False, **RETRIED)
def compare(candidate: SavedModel, champion: int | None, settings: SettingsTree) -> Verdict:
    """Score candidate and champion on the same test rows, and decide."""
    return comparison.compare(candidate, champion, settings.promotion, Store(settings.store.url), settings)


@task(task_run_name="look for test rows that may judge", persist_result=False, **RETRIED)
def explain_missing_rows(snapshot: DatasetRef, champion: int | None, settings: SettingsTree) -> str | None:
    """Say what is needed if no test row could judge a candidate; None if there are some."""
    store = Store(settings.store.url)
    return fair_rows.explain_missing_rows(load_record(snapshot, store), settings.name, champion, store, settings)


@task(task_run_name="promote", persist_result=False, **RETRIED)
def promote(
    candidate: SavedModel, champion: int | None, why: str, details: Mapping[str, Any], settings: SettingsTree
) -> Entry | None:
    """Make the candidate the champion; None if the champion has changed since the comparison."""
    store = Store(settings.store.url)
    try:
        return versions.move_alias(store, candidate.name, candidate.version, expected=champion, why=why, details=details)
    except ConflictError as error:
        get_run_logger().warning("%s", error)
        return None


@task(task_run_name="keep the champion", persist_result=False, **RETRIED)
def keep(
    candidate: SavedModel | None, champion: int | None, why: str, details: Mapping[str, Any], settings: SettingsTree
) -> Entry | None:
    """Record in the ledger why no candidate replaces the champion; None if another run has written there or moved it since."""
    store, name, alias = Store(settings.store.url), settings.name, versions.CHAMPION
    newest = ledger.find_newest(store, name)
    if versions.read_alias(store, name) != champion:
        get_run_logger().warning("%s@%s has changed since the comparison", name, alias)
        return None
    version = None if candidate is None else candidate.version
    try:
        return ledger.append_entry(
            store,
            name,
            action="keep",
            alias=alias,
            before=champion,
            after=version,
            why=why,
            details=details,
            expected_number=newest + 1,
        )
    except ConflictError as error:
        get_run_logger().warning("%s", error)
        return None
