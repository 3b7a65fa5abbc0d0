"""Finds the files in the store that nothing refers to any more."""

import hashlib
import time
from collections.abc import Callable

from refit.errors import StoreError
from refit.makers import parse_record
from refit.registry import versions
from refit.runs.recipes import RUNS, load_runs
from refit.runs.results import RESULTS, find_refs, load_result
from refit.store.store import DAMAGED, OBJECTS, Store
from refit.training.checkpoints import PARTIAL, find_partial

RUNS_KEPT = 20
SECONDS_SPARED = 3600
"""Younger files may belong to a run in progress that has not yet written the records that refer to them."""


def find_garbage(store: Store, on_damage: Callable[[str], object] = lambda _: None) -> dict[str, int]:
    """Find files that neither a saved version, nor one of the last 20 runs, nor a run in progress refers to.

    Args:
        store: Where to look.
        on_damage: Called with a sentence for each version whose record is damaged. Its references are unknown then, so no object
            is garbage.

    Returns:
        Size in bytes by path, relative to the store. Files that changed within the last hour are left out.
    """
    runs = load_runs(store)
    newest = list(runs)[:RUNS_KEPT]
    kept_runs = [name for name, run in runs.items() if name in newest or store.is_locked(run.recipe.start.key)]
    keys = {key for name in kept_runs for key in runs[name].keys}
    kept = {f"{folder}/{key}.json" for folder in (RESULTS, PARTIAL) for key in keys} | {f"{RUNS}/{name}" for name in kept_runs}
    digests, are_known = _digests_of_steps(keys, store), True
    for name in versions.list_models(store):
        for number in versions.list_versions(store, name):
            try:
                digests |= _digests_of_version(store, name, number)
            except StoreError as error:
                are_known = False
                on_damage(f"{error}; until then, or until you remove the folder of {name}@v{number}, no object is removed")
    kept |= {store.object_path(digest) for digest in digests}
    changed_before = time.time() - SECONDS_SPARED
    files = store.list_files([RESULTS, PARTIAL, RUNS, DAMAGED, *[OBJECTS] * are_known])
    garbage = {path: size for path, (size, changed_at) in files.items() if path not in kept and changed_at < changed_before}
    return garbage | store.list_leftovers(changed_before)


def _digests_of_version(store: Store, name: str, number: int) -> set[str]:
    """List the digests of what a version needs besides its own files; raise StoreError if its record is damaged."""
    folder = versions.version_folder(name, number)
    record = versions.read_record(store, name, number)
    try:
        kept = [record, record.get("held_back") or record]
        digests = {str(weights["checkpoint"]) for weights in kept} | {*filter(None, (weights.get("frozen") for weights in kept))}
        digests |= {record["neighbours"]["outputs"]["digest"]} if record.get("neighbours") else set()
        record_of_data = parse_record(store.read(f"{folder}/manifest.json"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{store.location(folder)}: expected the record and the manifest of a saved version, found damaged ones;"
            " put them back from a backup"
        ) from error
    digests.add(hashlib.sha256(record_of_data.model_dump_json().encode()).hexdigest())
    return digests | {ref.digest for ref in record_of_data.refs}


def _digests_of_steps(keys: set[str], store: Store) -> set[str]:
    """List the digests that results and unfinished epochs refer to."""
    refs = [ref for key in keys for ref in find_refs(load_result(key, store))]
    partials = filter(None, (find_partial(key, store) for key in keys))
    return {digest for ref in [*refs, *partials] for digest in ref.digests}
