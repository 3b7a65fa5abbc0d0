"""The files that the user's data sets read: digested by content, each once as long as it is unchanged."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from refit.errors import DataError, StoreError
from refit.store.disk import open_files
from refit.store.store import Store

FOLDER = "inputs"
GLOB_SIGNS = "*?["
UNCHANGING = {"name", "size", "type", "mimetype", "url", "partial"}
"""What may stay the same when a file changes."""


def digest_inputs(inputs: Sequence[str], store: Store) -> dict[str, str]:
    """Digest the files that `data.inputs` names, by their paths below what names them.

    A file that looks unchanged, by its size and time or what else its file system tells, is not read again.

    Raises:
        DataError: There is no such file, or one cannot be read.
    """
    place = _find_place(inputs)
    known, found = _read(place, store), dict[str, Any]()
    digests = {}
    for position, source in enumerate(inputs):
        try:
            system, root = open_files(source)
            system.invalidate_cache()
            paths = _list_files(system, root, source)
            for path, info in paths.items():
                token = hashlib.sha256(str(sorted(info.items(), key=str)).encode()).hexdigest()
                before = known.get(path)
                if before is None or before[0] != token:
                    with system.open(path, "rb") as file:
                        before = [token, hashlib.file_digest(file, "sha256").hexdigest()]
                found[path] = before
                digests[f"{position}:{path.removeprefix(root.split('*')[0]).lstrip('/')}"] = before[1]
        except (OSError, ImportError, ValueError) as error:
            raise DataError(f"data.inputs: expected files that can be read in {source}, found: {error}; mend it") from error
    if found != known:
        store.write(place, json.dumps(found).encode())
    return digests


def list_known(inputs: Sequence[str], store: Store) -> dict[str, str]:
    """List the digests of the files that `digest_inputs` has just digested, by their paths in their file systems."""
    return {path: digest for path, (_, digest) in _read(_find_place(inputs), store).items()}


def _find_place(inputs: Sequence[str]) -> str:
    return f"{FOLDER}/{hashlib.sha256(json.dumps([*inputs]).encode()).hexdigest()}.json"


def join_digests(digests: Mapping[str, str]) -> str:
    """SHA-256 over the paths and contents of files, in any order."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def compare_inputs(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Say how many files are new, gone or changed."""
    counts = {
        "new": len(now.keys() - before.keys()),
        "gone": len(before.keys() - now.keys()),
        "changed": sum(now[path] != before[path] for path in now.keys() & before.keys()),
    }
    told = [f"{count} {what} file{'s' * (count != 1)}" for what, count in counts.items() if count]
    return [f"data.inputs: {', '.join(told)}"] if told else []


def _list_files(system: Any, root: str, source: str) -> dict[str, dict[str, Any]]:
    """Describe the files of a source by their paths: a file, those below a folder, or those that match."""
    if any(sign in root for sign in GLOB_SIGNS):
        found = system.glob(root, detail=True)
    elif not source.endswith("/") and system.isfile(root) and not _is_page(info := system.info(root), root):
        found = {root: info}
    else:
        found = system.find(root, detail=True)
    files = {path: info for path, info in found.items() if info["type"] == "file"}
    if not files:
        reason = _find_reason(system, root)
        raise DataError(f"data.inputs: expected files in {source}, found none{reason}; check the path")
    return {path: info if _tells_changes(info) else _ask(system, path) for path, info in sorted(files.items())}


def _is_page(info: Mapping[str, Any], root: str) -> bool:
    """Whether what a web server gives is the list of a folder, to which it leads whoever asks without the last slash."""
    return str(info.get("url")) == f"{root}/"


def _tells_changes(info: Mapping[str, Any]) -> bool:
    """Whether a file system tells more of a file than its name and size, such as its time or a tag."""
    return any(value is not None for name, value in info.items() if name not in UNCHANGING)


def _ask(system: Any, path: str) -> dict[str, Any]:
    """Describe a file that a list says too little of; what is still not known to be the same is read each time."""
    info: dict[str, Any] = system.info(path)
    return info if _tells_changes(info) else {**info, "asked": time.time_ns()}


def _find_reason(system: Any, root: str) -> str:
    """Say why nothing is found, if a server gives a reason."""
    try:
        system.info(root)
    except OSError as error:
        return f", as {error.__cause__}" if error.__cause__ else ""
    return ""


def _read(place: str, store: Store) -> dict[str, Any]:
    """What is known of the files by their paths."""
    try:
        content = json.loads(store.read(place))
    except (StoreError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
