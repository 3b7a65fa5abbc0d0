"""The status of a model: its champion, the last decision on it, and damage."""

from collections.abc import Callable
from typing import TypeVar

from refit.errors import StoreError
from refit.refs import Handle
from refit.registry.ledger import Entry, load_ledger
from refit.registry.versions import check_version, find_edited, list_reports, list_versions, read_alias, read_record, report_path
from refit.store.store import DAMAGED, Store

Found = TypeVar("Found")


class Status(Handle):
    """The status of a model; None stands for things that do not exist or cannot be read."""

    name: str
    versions: list[int]
    champion: int | None
    trained_at: str | None
    """When the champion was saved."""
    promoted_at: str | None
    """When it last became the champion."""
    decision: Entry | None
    """The last one."""
    damaged: list[str]
    """One sentence for each damage: what, where, and what to do."""


def read_status(store: Store, name: str) -> Status:
    """Read the status of model `name`, as far as it can be read."""
    damaged: list[str] = []

    def unless_damaged(read: Callable[[], Found]) -> Found | None:
        try:
            return read()
        except StoreError as error:
            damaged.append(str(error))
            return None

    champion = unless_damaged(lambda: read_alias(store, name))
    trained_at = unless_damaged(lambda: _find_birth(store, name, champion)) if champion else None
    entries = unless_damaged(lambda: load_ledger(store, name)) or []
    damaged += unless_damaged(lambda: find_edited(store, name)) or []
    damaged += [] if damaged else _find_cut(store, name, entries)
    decisions = [entry for entry in entries if entry.action not in ("open", "repair")]
    promotions = [entry.at for entry in decisions if entry.action != "keep" and entry.after == champion]
    return Status(
        name=name,
        versions=list_versions(store, name),
        champion=champion,
        trained_at=trained_at,
        promoted_at=promotions[-1] if promotions else None,
        decision=decisions[-1] if decisions else None,
        damaged=[*dict.fromkeys(damaged)],
    )


def _find_cut(store: Store, name: str, entries: list[Entry]) -> list[str]:
    """Say that the ledger was cut back, if a version has a report of a decision that the ledger lacks."""
    decided = {entry.after for entry in entries if entry.action in ("promote", "keep")}
    missing = [version for version in list_reports(store, name) if version not in decided]
    if not missing or any(entry.action == "repair" for entry in entries):
        return []
    return [
        f"{store.location(report_path(name, missing[-1]))}: expected the decision that this reports to be in the ledger, found"
        f" {len(entries)} entries, none on v{missing[-1]}; put the ledger and its head back from a backup"
    ]


def list_damaged(store: Store) -> list[str]:
    """List where the damaged objects are that were set aside when they were read."""
    return [store.location(f"{DAMAGED}/{digest}") for digest in store.names(DAMAGED)]


def _find_birth(store: Store, name: str, version: int) -> str:
    """When a version was saved; raises if it is damaged."""
    check_version(store, name, version)
    return str(read_record(store, name, version)["created"])
