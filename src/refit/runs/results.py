"""Results of finished steps, by their keys. A result counts only if the objects that it refers to exist and are whole."""

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

from refit.errors import StoreError
from refit.refs import EpochResult, Handle, Ref
from refit.registry.versions import check_version
from refit.store.store import Store

RESULTS = "results"


def result_path(key: str) -> str:
    """Return the path of a step's result, relative to the store."""
    return f"{RESULTS}/{key}.json"


def load_result(key: str, store: Store) -> dict[str, Any] | None:
    """Load the result of a step; None if it is missing or cannot be read."""
    try:
        content = json.loads(store.read(result_path(key)))["data"]
    except (StoreError, ValueError, KeyError, TypeError):
        return None
    return content if isinstance(content, dict) else None


def save_result(key: str, result: Handle, store: Store) -> None:
    """Keep the result of a step, with its class, as Prefect's JSON serializer writes it."""
    kind = f"{type(result).__module__}.{type(result).__qualname__}"
    store.write(result_path(key), json.dumps({"__class__": kind, "data": result.model_dump(mode="json")}).encode())


def load_usable_result(key: str, store: Store) -> dict[str, Any] | None:
    """Load a result if all objects that it refers to are there and whole. `find_last_epoch` checks checkpoints instead."""
    content = load_result(key, store)
    if content is None or not all(ref.kind == "checkpoint" or store.is_whole(ref.digest) for ref in find_refs(content)):
        return None
    if {"name", "version"} <= content.keys():
        try:
            check_version(store, content["name"], content["version"])
        except StoreError:
            return None
    return content


def find_last_epoch(keys: Sequence[str], store: Store, warn: Callable[[str], object] | None = None) -> int:
    """Return the last epoch from which training can continue: it and all before it have results, and its checkpoint is whole.

    Checkpoints of earlier epochs may be gone: nothing needs them.

    Args:
        keys: The key of each epoch, from epoch 1 on.
        store: Where the results are.
        warn: Called with a line for each later result whose checkpoint is damaged or gone. The result is dropped, so that the
            epoch is trained again. None drops nothing.

    Returns:
        The epoch, counted from 1; 0 if there is none.
    """
    found = takewhile(lambda content: content is not None, (load_result(key, store) for key in keys))
    epochs = list(takewhile(lambda epoch: store.is_whole(epoch.log.digest), map(EpochResult.model_validate, found)))
    while epochs and not store.are_whole(epochs[-1].checkpoint.digests):
        broken = epochs.pop()
        if warn is not None:
            store.remove(result_path(keys[broken.epoch - 1]))
            path = store.location(store.object_path(broken.checkpoint.digest))
            before = f"epoch {broken.epoch - 1}, {epochs[-1].checkpoint.digest[:12]}" if epochs else "the start"
            warn(f"checkpoint {path} of epoch {broken.epoch} is damaged or gone; going on from that of {before}")
    return len(epochs)


def find_refs(content: Any) -> list[Ref]:
    """List all refs in a result, however nested."""
    if not isinstance(content, dict):
        return []
    nested = [ref for item in content.values() for ref in find_refs(item)]
    if {"kind", "digest", "size"} <= content.keys():
        return [Ref(kind=content["kind"], digest=content["digest"], size=content["size"]), *nested]
    return nested
