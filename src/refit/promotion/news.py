"""Whether a retraining has anything to decide. Imports neither torch nor what trains, so that a night without news costs little."""

import contextlib

from refit.errors import StoreError
from refit.registry.ledger import Entry, find_newest, read_back
from refit.registry.versions import CHAMPION, check_version, read_alias, report_path, version_folder
from refit.store.store import Store

KEY = "retraining"
"""Of an entry's details, the one that holds the retraining's key."""


def find_decision(store: Store, name: str, key: str, since: int = 0) -> Entry | None:
    """Find the entry of the last retraining of model `name` after entry `since`, if that had the same key.

    What people have promoted or rolled back since then stands, and is no reason to retrain.

    Raises:
        StoreError: The ledger is damaged.
    """
    entries = read_back(store, name, find_newest(store, name))
    last = next((entry for entry in entries if KEY in entry.details), None)
    return last if last is not None and last.number > since and last.details[KEY] == key else None


def find_lead(store: Store, name: str, version: int) -> float | None:
    """Find by how much at least a version beat the majority class when a retraining promoted it last; None where none did.

    Raises:
        StoreError: The ledger is damaged.
    """
    entries = read_back(store, name, find_newest(store, name))
    decisions = (entry.details.get("decision") for entry in entries if entry.action == "promote" and entry.after == version)
    return next((decision["lead"] for decision in decisions if decision), None)


def is_reported(entry: Entry, store: Store, name: str) -> bool:
    """Whether the report of a decision is where it belongs, or that version is gone."""
    version = entry.after or 0
    return store.exists(report_path(name, version)) or not store.is_published(version_folder(name, version))


def find_champion(store: Store, name: str) -> int | None:
    """Return the champion's number; None where there is none, or where its files are missing or damaged.

    Raises:
        StoreError: The ledger is damaged.
    """
    number = read_alias(store, name, CHAMPION)
    if number is not None:
        with contextlib.suppress(StoreError):
            check_version(store, name, number)
            return number
    return None
