"""Finds out whether anything has changed since the last retraining. Imports no torch, so that a night without changes is cheap."""

import contextlib

from refit.errors import StoreError
from refit.registry.ledger import Entry, find_newest, read_back
from refit.registry.versions import CHAMPION, check_version, read_alias, report_path, version_folder
from refit.store.store import Store

KEY = "retraining"
"""Name of the retraining's key in the details of a ledger entry."""


def find_decision(store: Store, name: str, key: str, since: int = 0) -> Entry | None:
    """Find the entry of the last retraining of model `name`, if it comes after entry `since` and had the same key.

    Promotions and rollbacks by people since then stand, and are no reason to retrain.

    Raises:
        StoreError: The ledger is damaged.
    """
    entries = read_back(store, name, find_newest(store, name))
    last = next((entry for entry in entries if KEY in entry.details), None)
    return last if last is not None and last.number > since and last.details[KEY] == key else None


def find_lead(store: Store, name: str, version: int) -> float | None:
    """Find the lower bound of a version's lead over the majority class when a retraining last promoted it; None if none did.

    Raises:
        StoreError: The ledger is damaged.
    """
    entries = read_back(store, name, find_newest(store, name))
    decisions = (entry.details.get("decision") for entry in entries if entry.action == "promote" and entry.after == version)
    return next((decision["lead"] for decision in decisions if decision), None)


def is_reported(entry: Entry, store: Store, name: str) -> bool:
    """Whether the report of a decision exists, or its version is gone."""
    version = entry.after or 0
    return store.exists(report_path(name, version)) or not store.is_published(version_folder(name, version))


def find_champion(store: Store, name: str) -> int | None:
    """Return the champion's number; None if there is none, or its files are missing or damaged.

    Raises:
        StoreError: The ledger is damaged.
    """
    number = read_alias(store, name, CHAMPION)
    if number is not None:
        with contextlib.suppress(StoreError):
            check_version(store, name, number)
            return number
    return None
