"""A model's versions, numbered from 1 and never changed, and its aliases, such as the champion, which ledger entries move."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from refit.errors import ConflictError, SettingsError, StoreError
from refit.refs import Handle, SavedModel
from refit.registry.ledger import Entry, append_entry, entry_path, find_highest, find_newest, model_folder, read_back, repair_ledger
from refit.settings import is_model_name
from refit.store.store import MODELS, NO_OBJECTS, Store

ALIASES = "aliases"
REPORTS = "reports"
CHAMPION = "champion"
RESTORE = "put it back from a backup, or take another version"


class Position(Handle):
    """Content of an alias's file: the version it names and the ledger entry that says so."""

    version: int
    entry: int


def add_version(
    store: Store, name: str, contents: Mapping[str, bytes], record: Mapping[str, Any], objects: Mapping[str, str] = NO_OBJECTS
) -> int:
    """Keep `contents` (file name to bytes) and `objects` (file name to digest) as the next version of model `name`.

    Returns its number.

    The `record` becomes `version.json`, together with the model's name and the version's number.

    Two processes that save at once get different numbers. The number of a version that is gone but is mentioned in the ledger is
    not used again, or the new version could be mistaken for it, as for the champion.

    Raises:
        StoreError: The newest entry of the ledger is damaged.
    """
    number = max([*list_versions(store, name), find_highest(store, name)]) + 1
    while not store.publish(
        version_folder(name, number), {**contents, "version.json": _write_record(name, number, record)}, objects
    ):
        number += 1
    return number


def find_saved(store: Store, name: str, key: str) -> int | None:
    """Return the number of the newest version of model `name` if it is whole and was saved under this key, else None."""
    for number in list_versions(store, name)[-1:]:
        with contextlib.suppress(StoreError):
            if read_record(store, name, number).get("key") == key:
                check_version(store, name, number)
                return number
    return None


def list_models(store: Store) -> list[str]:
    """List the models that have a version, or had one that an alias names."""
    names = filter(is_model_name, store.names(MODELS))
    return [name for name in names if list_versions(store, name) or _list_aliases(store, name)]


def list_versions(store: Store, name: str) -> list[int]:
    """List the numbers of the versions of model `name`, oldest first."""
    numbers = (int(match[1]) for found in store.names(f"{model_folder(name)}") if (match := re.fullmatch(r"v(\d+)", found)))
    return sorted(number for number in numbers if store.is_published(version_folder(name, number)))


def version_folder(name: str, number: int) -> str:
    """Return the folder of a version, relative to the store."""
    return f"{model_folder(name)}/v{number}"


def report_path(name: str, version: int) -> str:
    """Return the path of the report of a version's retraining, relative to the store: beside the version, which never changes."""
    return f"{MODELS}/{name}/{REPORTS}/v{version}.html"


def list_reports(store: Store, name: str) -> list[int]:
    """List the versions that have a report of their retraining, oldest first."""
    found = (re.fullmatch(r"v(\d+)\.html", file) for file in store.names(f"{MODELS}/{name}/{REPORTS}"))
    return sorted(int(match[1]) for match in found if match)


def locate(model: SavedModel, store: Store) -> SavedModel:
    """Return the same version with its path in this store, which may have moved since the version was saved."""
    return model.model_copy(update={"path": store.location(version_folder(model.name, model.version))})


def find_version(store: Store, reference: str) -> str:
    """Return the folder, relative to the store, of `NAME@v3`, an alias as in `NAME@champion`, or the newest version for `NAME`.

    Raises:
        SettingsError: `reference` has no valid model name.
        StoreError: There is no such model, version or alias; the message lists the existing ones.
    """
    return version_folder(*resolve_reference(store, reference))


def resolve_reference(store: Store, reference: str, default: str = "") -> tuple[str, int]:
    """Return name and number of the version that `NAME@v3`, or an alias as in `NAME@champion`, refers to.

    `NAME` alone refers to the alias `default` if that is given, and otherwise to the newest version. Raises as `find_version` does.
    """
    name, _, wanted = reference.partition("@")
    wanted = wanted or default
    reference = f"{name}@{wanted}" if wanted else name
    versions = list_versions(store, name)
    if not versions:
        models = ", ".join(other for other in list_models(store) if other != name) or "none"
        raise StoreError(f"{reference}: expected a model in {store.url}, found no {name!r}; models there: {models}")
    if _is_alias(wanted) and (version := read_alias(store, name, wanted)) is not None:
        wanted = f"v{version}"
    number = wanted.removeprefix("v") or str(versions[-1])
    if number not in map(str, versions):
        found = ", ".join(f"v{version}" for version in versions)
        aliases = ", ".join(_list_aliases(store, name)) or "none"
        remedy = "take one of these"
        if wanted == CHAMPION:
            remedy = f"`refit promote {name}@v{versions[-1]}` makes one"
        elif re.fullmatch(r"v[1-9]\d*", wanted):
            remedy = f"put {wanted} back from a backup, or take one of these"
        raise StoreError(
            f"{reference}: expected a version of {name!r} in {store.url}, found no {wanted};"
            f" versions there: {found}; aliases there: {aliases}; {remedy}"
        )
    return name, int(number)


def load_part(store: Store, name: str, number: int, part: str) -> Any:
    """Load the JSON file `part` of a version, such as `metrics`.

    Raises:
        StoreError: The file cannot be read or is damaged.
    """
    path = f"{version_folder(name, number)}/{part}.json"
    return _parse_json(store, path, store.read(path))


def read_record(store: Store, name: str, number: int) -> dict[str, Any]:
    """Return the content of a version's `version.json`.

    Raises:
        StoreError: The file cannot be read, is damaged, or is the record of another version.
    """
    folder = version_folder(name, number)
    return _parse_record(store, folder, store.read(f"{folder}/version.json"))


def read_version(store: Store, name: str, number: int) -> SavedModel:
    """Return the handle of a version.

    Raises:
        StoreError: There is no such version, or its record is damaged or belongs to another version.
    """
    folder = find_version(store, f"{name}@v{number}")
    record = read_record(store, name, number)
    try:
        held_back = record.get("held_back") or {}
        return SavedModel(
            name=name,
            version=number,
            path=store.location(folder),
            weights_digest=record["weights_digest"],
            held_back_digest=held_back.get("weights_digest"),
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{store.location(folder)}/version.json: expected `weights_digest`, found none; put it back from a backup"
        ) from error


def check_version(store: Store, name: str, number: int) -> None:
    """Read a version's files and compare them with the digests in its `version.json`.

    Raises:
        StoreError: There is no such version, its record belongs to another one, or a file is missing or has other bytes; the
            message names the file.
    """
    for _ in read_files(store, find_version(store, f"{name}@v{number}")):
        pass


def read_files(store: Store, folder: str) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of a version's files, `version.json` first, each compared with its digest there.

    Raises:
        StoreError: A file is missing or has other bytes, a name leads out of the folder, or the record belongs to another version.
    """

    def read(file: str) -> bytes:
        path = f"{folder}/{file}"
        if not store.exists(path):
            raise StoreError(f"{store.location(path)}: expected a file of a saved version, found none; {RESTORE}")
        return store.read(path)

    record, place = read("version.json"), store.location(f"{folder}/version.json")
    try:
        digests = dict(_parse_record(store, folder, record)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{place}: expected `files`, their digests, found none; {RESTORE}") from error
    yield "version.json", record
    for file, digest in digests.items():
        if not re.fullmatch(r"\w[\w.-]*", file):
            raise StoreError(f"{place}: expected names of files in its own folder in `files`, found {file!r}; {RESTORE}")
        data = read(file)
        if hashlib.sha256(data).hexdigest() != digest:
            place = store.location(f"{folder}/{file}")
            raise StoreError(f"{place}: expected bytes with the digest in version.json, found others; {RESTORE}")
        yield file, data


def list_aliases(store: Store, name: str) -> dict[str, Entry]:
    """List the aliases of model `name`, the champion first, each with the ledger entry that last moved it."""
    aliases = dict.fromkeys([CHAMPION, *_list_aliases(store, name)])
    return {alias: present for alias in aliases if (present := _find_present(store, name, alias)[0]) is not None}


def read_alias(store: Store, name: str, alias: str = CHAMPION) -> int | None:
    """Return the version that the alias names, or None if it has never been set.

    The ledger decides. The alias's file repeats the ledger for other programs. It is corrected here if it can be written and nobody
    has edited it; `find_edited` reports edits.

    Raises:
        StoreError: The ledger is damaged, or ends before the entry that the alias's file names.
    """
    present, _ = _find_present(store, name, alias)
    return present.after if present else None


def find_edited(store: Store, name: str) -> list[str]:
    """Name the aliases whose files were edited by hand, which moves nothing, and say what to do. Raises as `read_alias` does."""
    told = []
    for alias, present in list_aliases(store, name).items():
        written = _read_position(store, name, alias)
        if written and _is_edited(written, present):
            place, right, found = store.location(_alias_path(name, alias)), f"v{present.after}", f"v{written.version}"
            option = "" if alias == CHAMPION else f" --alias {alias}"
            told.append(
                f"{place}: expected {right}, as entry {present.number} of the ledger says, found {found}, written by hand; to make"
                f" {found} the {alias}, `refit promote {name}@{found}{option}`, to keep {right}, `refit repair {name}`"
            )
    return told


def list_earlier(store: Store, name: str, alias: str = CHAMPION) -> Iterator[int]:
    """Yield the versions that repeated rollbacks of the alias would go back to. Raises as `read_alias` does."""
    present, _ = _find_present(store, name, alias)
    return filter(None, _list_before(read_back(store, name, present.number if present else 0), alias))


def move_alias(
    store: Store,
    name: str,
    version: int,
    *,
    expected: int | None,
    why: str,
    alias: str = CHAMPION,
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Point the alias at `version`, and return the new ledger entry.

    `expected` is the version that the alias names now, None if it has never been set. `details` are the facts behind the decision.

    Raises:
        ConflictError: The alias names another version than `expected`.
        SettingsError: `alias` is not a valid name.
        StoreError: `version` is missing or damaged.
    """
    check_version(store, name, version)
    present, newest = _find_present(store, name, alias)
    if (present.after if present else None) != expected:
        raise _conflict(name, alias, expected, present)
    return _move(store, name, alias, present, newest, action="promote", why=why, after=version, details=details)


def rollback(store: Store, name: str, why: str, alias: str = CHAMPION) -> Entry:
    """Point the alias back at the version that it named before the present one was promoted.

    Promotions push and rollbacks pop: two rollbacks in a row go two promotions back.

    Raises:
        ConflictError: Another process moved the alias meanwhile.
        SettingsError: `alias` is not a valid name.
        StoreError: There is nothing to go back to, or it is damaged.
    """
    present, newest = _find_present(store, name, alias)
    target = next(_list_before(read_back(store, name, present.number if present else 0), alias), None)
    if target is None:
        found = f"only v{present.after}" if present else "that it was never set"
        raise StoreError(f"{name}@{alias}: expected a version before the present one, found {found}; promote another version")
    check_version(store, name, target)
    return _move(store, name, alias, present, newest, action="rollback", why=why, after=target)


def repair(store: Store, name: str) -> tuple[list[int], list[Entry]]:
    """Make the ledger readable without its lost entries. Aliases that these had set keep the versions that their files name.

    Edited files of other aliases are corrected.

    Returns:
        The numbers of the lost entries, and the entries that set aliases again.

    Raises:
        StoreError: The store cannot be read or written.
    """
    lost, moves = repair_ledger(store, name), list[Entry]()
    for alias in _list_aliases(store, name):
        written = _read_position(store, name, alias)
        entries = read_back(store, name, find_newest(store, name))
        present = next((entry for entry in entries if _moves(entry, alias)), None)
        if written and written.entry > (present.number if present else 0):
            why = f"entry {written.entry}, which set it, is lost"
            before = present.after if present else None
            entry = append_entry(store, name, action="promote", why=why, alias=alias, before=before, after=written.version)
            _write_alias(store, name, entry)
            moves.append(entry)
        elif written and present and _is_edited(written, present):
            _write_alias(store, name, present)
    return lost, moves


def _move(store: Store, name: str, alias: str, present: Entry | None, newest: int, *, after: int, **content: Any) -> Entry:
    """Commit a move and repeat it in the alias's file. Other processes may add entries meanwhile, unless they move the alias."""
    before = present.after if present else None
    while True:
        with contextlib.suppress(ConflictError):
            entry = append_entry(store, name, alias=alias, before=before, after=after, expected_number=newest + 1, **content)
            _write_alias(store, name, entry)
            return entry
        now, newest = _find_present(store, name, alias)
        if now != present:
            raise _conflict(name, alias, before, now)


def _find_present(store: Store, name: str, alias: str) -> tuple[Entry | None, int]:
    """Find the entry that moved the alias last, and the number of the newest entry; correct the alias's file."""
    if not _is_alias(alias):
        raise SettingsError(f"{name}@{alias}: expected an alias such as `{CHAMPION}`, found {alias!r}; use a-z, 0-9, _ and -")
    # The file is read before the ledger, so that it can only be behind.
    written = _read_position(store, name, alias)
    newest = find_newest(store, name)
    present = next((entry for entry in read_back(store, name, newest) if _moves(entry, alias)), None)
    if written and written.entry > (present.number if present else 0):
        raise StoreError(
            f"{store.location(entry_path(name, written.entry))}: expected the entry that set {name}@{alias} to v{written.version},"
            f" found none; put it back from a backup, or continue without it by `refit repair {name}`"
        )
    right = Position(version=present.after, entry=present.number) if present else None
    if present and written != right and not (written and _is_edited(written, present)):
        _write_alias(store, name, present)
    return present, newest


def _is_edited(written: Position, present: Entry) -> bool:
    """Whether an alias's file names another version than the entry that moved the alias last, but the same entry."""
    return written.entry == present.number and written.version != present.after


def _list_before(entries: Iterator[Entry], alias: str) -> Iterator[int | None]:
    """Yield the version before each promotion that no rollback has undone; `entries` and promotions come newest first."""
    num_undone = 0
    for entry in entries:
        if _moves(entry, alias) and entry.before != entry.after:
            if entry.action == "rollback":
                num_undone += 1
            elif num_undone:
                num_undone -= 1
            else:
                yield entry.before


def _moves(entry: Entry, alias: str) -> bool:
    return entry.alias == alias and entry.action in ("promote", "rollback")


def _conflict(name: str, alias: str, expected: int | None, present: Entry | None) -> ConflictError:
    was = "no version" if expected is None else f"v{expected}"
    now = f"v{present.after}, by {present.who} at {present.at}: {present.why}" if present else "that it was never set"
    return ConflictError(f"{name}@{alias}: expected {was}, found {now}; compare with that one and decide again")


def _write_record(name: str, number: int, record: Mapping[str, Any]) -> bytes:
    return json.dumps({"name": name, "version": number, **record}, indent=1).encode()


def _parse_record(store: Store, folder: str, data: bytes) -> dict[str, Any]:
    """Parse the `version.json` of a folder. It names a version; in a store, this must be the one that the folder is named for."""
    path = f"{folder}/version.json"
    record = _parse_json(store, path, data)
    if not isinstance(record, dict) or not {"name", "version"} <= record.keys():
        raise StoreError(f"{store.location(path)}: expected a version's record with name and number, found other JSON; {RESTORE}")
    place = re.search(rf"(?:^|/){MODELS}/([^/]+)/v(\d+)$", store.location(folder))
    if place is not None:  # a version that was copied out of the store may be called anything
        expected = f"{place[1]}@v{place[2]}"
        found = f"{record['name']}@v{record['version']}"
        if found != expected:
            raise StoreError(
                f"{store.location(path)}: expected the record of {expected}, found that of {found};"
                " put the folders back as they were, or take another version"
            )
    return record


def _parse_json(store: Store, path: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise StoreError(f"{store.location(path)}: expected JSON, found a damaged file: {error}; {RESTORE}") from error


def _read_position(store: Store, name: str, alias: str) -> Position | None:
    """Read the alias's file; None if it is missing or damaged."""
    with contextlib.suppress(StoreError, ValueError):
        return Position.model_validate_json(store.read(_alias_path(name, alias)))
    return None


def _write_alias(store: Store, name: str, entry: Entry) -> None:
    """Repeat an entry in the alias's file. If that cannot be written, the move itself still stands."""
    with contextlib.suppress(StoreError):
        position = Position(version=entry.after or 0, entry=entry.number)
        store.write(_alias_path(name, entry.alias or CHAMPION), position.model_dump_json().encode())


def _list_aliases(store: Store, name: str) -> list[str]:
    return [
        file.removesuffix(".json")
        for file in store.names(f"{model_folder(name)}/{ALIASES}")
        if _is_alias(file.removesuffix(".json"))
    ]


def _is_alias(text: str) -> bool:
    """Whether the text can be an alias, and does not look like a version."""
    return re.fullmatch(r"(?!v?\d+$|ledger$)[a-z][a-z0-9_-]*", text) is not None


def _alias_path(name: str, alias: str) -> str:
    return f"{model_folder(name)}/{ALIASES}/{alias}.json"
