"""Removal of what nothing in the store refers to any more."""

import hashlib
import json
import time

from refit import registry
from refit.checkpoints import PARTIAL, find_partial
from refit.data.dataset import Manifest
from refit.recipes import RUNS, load_runs
from refit.results import RESULTS, find_refs, load_result
from refit.store import DAMAGED, OBJECTS, Store

RUNS_KEPT = 20
SECONDS_SPARED = 3600
"""Younger files may belong to a run at work that has not yet written what refers to them."""


def find_garbage(store: Store) -> dict[str, int]:
    """Find files that neither a saved version, nor one of the last 20 runs, nor a run at work refers to.

    Returns:
        Size in bytes by path, relative to the store, without files that changed within the last hour.
    """
    runs = load_runs(store)
    newest = list(runs)[:RUNS_KEPT]
    kept_runs = [name for name, run in runs.items() if name in newest or store.is_locked(run.recipe.start.key)]
    keys = {key for name in kept_runs for key in runs[name].keys}
    kept = {f"{folder}/{key}.json" for folder in (RESULTS, PARTIAL) for key in keys} | {f"{RUNS}/{name}" for name in kept_runs}
    kept |= {store.object_path(digest) for digest in _digests_of_versions(store) | _digests_of_steps(keys, store)}
    changed_before = time.time() - SECONDS_SPARED
    return {
        path: size
        for path, (size, changed_at) in store.list_files([OBJECTS, RESULTS, PARTIAL, RUNS, DAMAGED]).items()
        if path not in kept and changed_at < changed_before
    }


def _digests_of_versions(store: Store) -> set[str]:
    """Checkpoints, data set and test rows of every version."""
    digests = set()
    for name in registry.list_models(store):
        for number in registry.list_versions(store, name):
            folder = registry.version_folder(name, number)
            record = json.loads(store.read(f"{folder}/version.json"))
            digests |= {weights["checkpoint"] for weights in (record, record.get("held_back")) if weights}
            manifest = Manifest.model_validate_json(store.read(f"{folder}/manifest.json"))
            digests.add(hashlib.sha256(manifest.model_dump_json().encode()).hexdigest())
            digests |= {info.digest for info in manifest.splits.values()}
            if manifest.test_rows is not None:
                digests.add(manifest.test_rows.digest)
    return digests


def _digests_of_steps(keys: set[str], store: Store) -> set[str]:
    """What results, and epochs that were cut short, refer to."""
    refs = [ref for key in keys for ref in find_refs(load_result(key, store))]
    return {ref.digest for ref in [*refs, *filter(None, (find_partial(key, store) for key in keys))]}
