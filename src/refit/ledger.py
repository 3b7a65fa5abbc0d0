"""A model's ledger: what was decided, when, by whom and why; only ever appended to, each entry chained to the one before."""

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from refit.errors import ConflictError, SettingsError, StoreError
from refit.refs import Handle
from refit.settings import is_model_name
from refit.store import MODELS, Store

LEDGER = "ledger"
READ_TOGETHER = 256
"""Entries, at most."""

Action = Literal["open", "promote", "keep", "rollback"]


class Entry(Handle):
    """A line of a model's ledger: what was decided of it, when, by whom and why."""

    number: int
    previous: str
    """SHA-256 of the bytes of the entry before; empty for the first."""
    at: str
    who: str
    action: Action
    """Only `promote` and `rollback` move the alias."""
    why: str
    alias: str | None
    before: int | None
    """Version that the alias named."""
    after: int | None
    """Version that the alias names from now on; for `keep`, the one that was turned down; for `open`, the one that was judged."""
    highest: int
    """Highest version of which this or an earlier entry speaks, 0 for none; no later model gets a number up to it."""
    details: dict[str, Any] = Field(default_factory=dict)
    """What the decision rests on."""


def append_entry(
    store: Store,
    name: str,
    *,
    action: Action,
    why: str,
    alias: str | None = None,
    before: int | None = None,
    after: int | None = None,
    details: Mapping[str, Any] | None = None,
    expected_number: int | None = None,
) -> Entry:
    """Write the next entry of the ledger of model `name`; that its file appears is what commits it.

    It gets number `expected_number`, by default whichever is next. Aliases are moved by `registry`, which calls this.

    Raises:
        ConflictError: Another entry has the expected number.
        StoreError: The entry before is missing or damaged.
    """
    while True:
        number = expected_number or find_newest(store, name) + 1
        earlier, digest = _load_entry(store, name, number - 1) if number > 1 else (None, "")
        entry = Entry(
            number=number,
            previous=digest,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            who=_find_user(),
            action=action,
            why=why,
            alias=alias,
            before=before,
            after=after,
            highest=max(earlier.highest if earlier else 0, before or 0, after or 0),
            details=dict(details or {}),
        )
        data = entry.model_dump_json(indent=1).encode()
        if store.create(entry_path(name, number), data):
            return Entry.model_validate_json(data)
        if expected_number is not None:
            path = store.location(entry_path(name, number))
            raise ConflictError(f"{path}: expected to write this entry, found another's there; read the ledger and decide again")


def load_ledger(store: Store, name: str) -> list[Entry]:
    """Load all entries, oldest first, and check that none is missing and none has changed since the next was written.

    Raises:
        StoreError: An entry is missing or damaged; the message names it.
    """
    entries: list[Entry] = []
    digest = ""
    for entry, own_digest in _load_entries(store, name, range(1, find_newest(store, name) + 1)):
        if entry.previous != digest:
            path, before = (store.location(entry_path(name, n)) for n in (entry.number, entry.number - 1))
            raise StoreError(
                f"{path}: expected `previous` to be the digest of {before}, {digest or 'empty for the first'},"
                f" found {entry.previous or 'it empty'}; put the one that was changed back from a backup"
            )
        entries.append(entry)
        digest = own_digest
    return entries


def record_opening(store: Store, name: str, version: int, test_rows_digest: str) -> int:
    """Write that the test rows of this digest judge a version, once; return how many others they had judged before."""
    judged = _list_judged(store, name, test_rows_digest)
    if version not in judged:
        why = "its test rows are opened"
        append_entry(store, name, action="open", why=why, after=version, details={"test_rows": test_rows_digest})
    return [*judged, version].index(version)


def find_newest(store: Store, name: str) -> int:
    """Return the number of the newest entry of the ledger, 0 where there is none."""
    found = (re.fullmatch(r"(\d{6,})\.json", file) for file in store.names(f"{model_folder(name)}/{LEDGER}"))
    return max((int(match[1]) for match in found if match), default=0)


def find_highest(store: Store, name: str) -> int:
    """Return the highest version of which the ledger speaks, 0 for none; its folder may be gone. Raises as `load_ledger` does."""
    newest = find_newest(store, name)
    return _load_entry(store, name, newest)[0].highest if newest else 0


def read_back(store: Store, name: str, number: int) -> Iterator[Entry]:
    """Read the ledger backwards from entry `number`, not much further than it is asked for; raises as `load_ledger` does."""
    size = 1
    while number > 0:
        yield from (entry for entry, _ in _load_entries(store, name, range(number, max(number - size, 0), -1)))
        number, size = number - size, min(4 * size, READ_TOGETHER)


def _list_judged(store: Store, name: str, test_rows_digest: str) -> list[int]:
    """The versions that these test rows have judged, each once, in that order."""
    entries = reversed(list(read_back(store, name, find_newest(store, name))))
    found = (entry for entry in entries if entry.action == "open" and entry.details.get("test_rows") == test_rows_digest)
    return list(dict.fromkeys(entry.after for entry in found if entry.after is not None))


def _load_entries(store: Store, name: str, numbers: range) -> Iterator[tuple[Entry, str]]:
    """Entries and the digests of their bytes."""
    found = store.read_together([entry_path(name, number) for number in numbers])
    return (_load_entry(store, name, number, data) for number, data in zip(numbers, found, strict=True))


def _load_entry(store: Store, name: str, number: int, data: bytes | None = None) -> tuple[Entry, str]:
    """An entry and the digest of its bytes, which are read where they are not given."""
    path, wanted, remedy = entry_path(name, number), f"entry {number} of the ledger", "put it back from a backup"
    try:
        data = data or store.read(path)
    except StoreError as error:
        if store.exists(path):
            raise
        raise StoreError(f"{store.location(path)}: expected {wanted}, found none; {remedy}") from error
    try:
        entry = Entry.model_validate_json(data)
    except ValidationError as error:
        raise StoreError(f"{store.location(path)}: expected {wanted}, found {error.errors()[0]['msg']}; {remedy}") from error
    if entry.number != number:
        raise StoreError(f"{store.location(path)}: expected {wanted}, found entry {entry.number}; {remedy}")
    return entry, hashlib.sha256(data).hexdigest()


def model_folder(name: str) -> str:
    """Where all of a model is, relative to the store.

    Raises:
        SettingsError: No model has such a name, which could lead elsewhere.
    """
    if not is_model_name(name):
        raise SettingsError(f"expected the name of a model, found {name!r}; use a-z, 0-9, _ and -, as `refit models` lists them")
    return f"{MODELS}/{name}"


def entry_path(name: str, number: int) -> str:
    """Where an entry is, relative to the store."""
    return f"{model_folder(name)}/{LEDGER}/{number:06}.json"


def _find_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
