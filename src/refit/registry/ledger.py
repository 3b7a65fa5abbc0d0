"""A model's ledger: what was decided, when, by whom and why. Entries are only ever appended, each chained to the one before.

The head beside the entries holds the digest of the newest one. So each entry can be checked when it is read: its digest is in the
next entry or in the head. This reveals accidents and edits by hand, but whoever can write to the store can also write a new chain.
"""

import contextlib
import getpass
import hashlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from refit.errors import ConflictError, SettingsError, StoreError
from refit.refs import Handle
from refit.settings import is_model_name
from refit.store.store import MODELS, Store

LEDGER = "ledger"
HEAD = "head.json"
LOST = "lost"
"""Key in the details of a `repair`: maps the number of each lost entry to the digest of the entry before it."""
READ_TOGETHER = 256
"""Most entries that one request reads."""

Action = Literal["open", "promote", "keep", "rollback", "repair"]


class Entry(Handle):
    """An entry of a model's ledger: what was decided, when, by whom and why."""

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
    """Version that the alias named before."""
    after: int | None
    """Version that the alias names from now on; for `keep`, the one that was rejected; for `open`, the one that was judged."""
    highest: int
    """Highest version that this or an earlier entry mentions, 0 for none. Later versions get higher numbers."""
    details: dict[str, Any]
    """The facts behind the decision."""


class Head(Handle):
    """The newest entry of a ledger, or the one before it if the writer of the newest was killed or overtaken."""

    number: int
    digest: str


class LostEntryError(StoreError):
    """An entry is missing or has other bytes than were written."""

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


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
    """Write the next entry of the ledger of model `name`. The entry is committed when its file appears.

    It gets number `expected_number`, by default the next free one. Aliases are moved by `registry.versions`, which calls this.

    Raises:
        ConflictError: Another entry has the expected number.
        StoreError: The entry before is missing or damaged.
    """
    while True:
        number = expected_number or find_newest(store, name) + 1
        head = _load_head(store, name, number - 1)
        earlier, digest = next(_read_back(store, name, number - 1, head), (None, ""))
        if head.number < number - 1:  # so that the head is never two behind
            _write_head(store, name, number - 1, digest)
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
        if _write_entry(store, name, entry):
            return Entry.model_validate_json(entry.model_dump_json())
        if expected_number is not None:
            path = store.location(entry_path(name, number))
            raise ConflictError(f"{path}: expected to write this entry, found one by another process; read it and decide again")


def load_ledger(store: Store, name: str) -> list[Entry]:
    """Load all entries, oldest first, except those that a repair has declared lost.

    Raises:
        LostEntryError: An entry is missing or has other bytes than were written; the message names it.
        StoreError: The head is missing or damaged.
    """
    return list(read_back(store, name, find_newest(store, name)))[::-1]


def repair_ledger(store: Store, name: str) -> list[int]:
    """Record which entries are lost, so that the others can be read again, and rewrite the head; return the lost numbers.

    Nothing is removed. The content of a lost entry stays unknown, unless it is restored from a backup first.
    """
    number, head, lost = find_newest(store, name), Head(number=0, digest=""), dict[int, str]()
    with contextlib.suppress(StoreError):  # the head itself may be lost
        head = _load_head(store, name, number)
    number = max(number, head.number)
    while True:
        try:
            entries = [entry for entry, _ in _read_back(store, name, number, head, lost)]
            break
        except LostEntryError as error:
            lost[error.number] = _digest_found(store, name, error.number - 1)
    if lost:
        entry = Entry(
            number=number + 1,
            previous=_digest_found(store, name, number),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            who=_find_user(),
            action="repair",
            why=f"lost: {', '.join(f'entry {lost_number}' for lost_number in sorted(lost))}",
            alias=None,
            before=None,
            after=None,
            highest=max((entry.highest for entry in entries), default=0),
            details={LOST: lost},
        )
        if not _write_entry(store, name, entry):
            raise ConflictError(f"{name}: expected no other process to write to its ledger, found a new entry; repair it again")
    elif entries:
        _write_head(store, name, number, _digest_found(store, name, number))
    return sorted(lost)


def record_opening(store: Store, name: str, version: int, test_rows_digest: str) -> int:
    """Record once that the test rows with this digest judge a version; return how many others they had judged before."""
    judged = _list_judged(store, name, test_rows_digest)
    if version not in judged:
        why = "its test rows are opened"
        append_entry(store, name, action="open", why=why, after=version, details={"test_rows": test_rows_digest})
    return [*judged, version].index(version)


def find_newest(store: Store, name: str) -> int:
    """Return the number of the newest entry of the ledger, 0 if there is none."""
    found = (re.fullmatch(r"(\d{6,})\.json", file) for file in store.names(f"{model_folder(name)}/{LEDGER}"))
    return max((int(match[1]) for match in found if match), default=0)


def find_highest(store: Store, name: str) -> int:
    """Return the highest version that the ledger mentions, 0 for none. Its folder may be gone. Raises as `load_ledger` does."""
    return next((entry.highest for entry in read_back(store, name, find_newest(store, name))), 0)


def read_back(store: Store, name: str, number: int) -> Iterator[Entry]:
    """Read the ledger lazily, backwards from entry `number`, the newest.

    Each entry is compared with its digest in the next entry or in the head. Raises as `load_ledger` does.
    """
    return (entry for entry, _ in _read_back(store, name, number, _load_head(store, name, number)))


def _list_judged(store: Store, name: str, test_rows_digest: str) -> list[int]:
    """The versions that these test rows have judged, each once, in order."""
    entries = reversed(list(read_back(store, name, find_newest(store, name))))
    found = (entry for entry in entries if entry.action == "open" and entry.details.get("test_rows") == test_rows_digest)
    return list(dict.fromkeys(entry.after for entry in found if entry.after is not None))


def _read_back(
    store: Store, name: str, number: int, head: Head, lost: Mapping[int, str] | None = None
) -> Iterator[tuple[Entry, str]]:
    """Yield entries from `number` back with the digests of their bytes, but not those in `lost`. Newer entries are checked too."""
    lost, expected = dict(lost or {}), None
    following, size = max(number, head.number), 1
    while following > 0:
        numbers = range(following, max(following - size, 0), -1)
        found = store.read_together([entry_path(name, n) for n in numbers])
        for n, data in zip(numbers, found, strict=True):
            if n in lost:
                expected = lost[n]
                continue
            entry, digest = _load_entry(store, name, n, data)
            expected = head.digest if n == head.number else expected
            is_chained = n != head.number + 1 or entry.previous == head.digest
            if not is_chained or (expected is not None and digest != expected):
                raise _lose(store, name, n, "other bytes than were written")
            if entry.action == "repair":
                lost |= {int(lost_number): before for lost_number, before in entry.details.get(LOST, {}).items()}
            if n <= number:
                yield entry, digest
            expected = entry.previous
        following, size = following - size, min(4 * size, READ_TOGETHER)


def _load_entry(store: Store, name: str, number: int, data: bytes | None) -> tuple[Entry, str]:
    """Parse an entry and digest its bytes; if `data` is None, read the file again."""
    path = entry_path(name, number)
    try:
        data = data or store.read(path)
    except StoreError as error:
        if store.exists(path):
            raise
        raise _lose(store, name, number, "none") from error
    try:
        entry = Entry.model_validate_json(data)
    except ValidationError as error:
        raise _lose(store, name, number, error.errors()[0]["msg"]) from error
    if entry.number != number:
        raise _lose(store, name, number, f"entry {entry.number}")
    return entry, hashlib.sha256(data).hexdigest()


def _lose(store: Store, name: str, number: int, found: str) -> LostEntryError:
    return LostEntryError(
        f"{store.location(entry_path(name, number))}: expected entry {number} of the ledger, found {found};"
        f" put it back from a backup, or continue without it by `refit repair {name}`",
        number,
    )


def _load_head(store: Store, name: str, newest: int) -> Head:
    """Load the head of a ledger whose newest entry has this number. It may be missing only before the second entry."""
    path = _head_path(name)
    data = store.read_together([path])[0]
    if data is None and store.exists(path):
        data = store.read(path)
    if data is None and newest <= 1:
        return Head(number=0, digest="")
    try:
        return Head.model_validate_json(data or b"")
    except ValidationError as error:
        raise StoreError(
            f"{store.location(path)}: expected number and digest of the newest entry, found {'other content' if data else 'none'};"
            f" put it back from a backup, or rewrite it by `refit repair {name}`"
        ) from error


def _write_entry(store: Store, name: str, entry: Entry) -> bool:
    """Commit an entry; return False if its number is taken."""
    data = entry.model_dump_json(indent=1).encode()
    if not store.create(entry_path(name, entry.number), data):
        return False
    with contextlib.suppress(StoreError):  # the entry stands
        _write_head(store, name, entry.number, hashlib.sha256(data).hexdigest())
    return True


def _write_head(store: Store, name: str, number: int, digest: str) -> None:
    store.write(_head_path(name), Head(number=number, digest=digest).model_dump_json().encode())


def _digest_found(store: Store, name: str, number: int) -> str:
    """Digest the bytes of an entry's file, valid or not; empty if it is missing."""
    path = entry_path(name, number)
    return hashlib.sha256(store.read(path)).hexdigest() if store.exists(path) else ""


def _head_path(name: str) -> str:
    return f"{model_folder(name)}/{LEDGER}/{HEAD}"


def model_folder(name: str) -> str:
    """Return the folder of a model, relative to the store.

    Raises:
        SettingsError: No model can have this name, which could lead out of the store.
    """
    if not is_model_name(name):
        raise SettingsError(f"expected the name of a model, found {name!r}; use a-z, 0-9, _ and -, as `refit models` lists them")
    return f"{MODELS}/{name}"


def entry_path(name: str, number: int) -> str:
    """Return the path of an entry, relative to the store."""
    return f"{model_folder(name)}/{LEDGER}/{number:06}.json"


def _find_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
