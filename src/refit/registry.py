"""Model versions in the store: numbered from 1, never changed once they are there."""

import re
from collections.abc import Mapping

from refit.errors import StoreError
from refit.refs import SavedModel
from refit.store import Store

MODELS = "models"


def add_version(store: Store, name: str, contents: Mapping[str, bytes]) -> int:
    """Keep `contents` (file name to bytes) as the next version of model `name` and return its number.

    Of two that save at once, each gets a number of its own.
    """
    number = max(list_versions(store, name), default=0) + 1
    while not store.publish(version_folder(name, number), contents):
        number += 1
    return number


def list_models(store: Store) -> list[str]:
    """Names of the models that have a version."""
    return [name for name in store.names(MODELS) if list_versions(store, name)]


def list_versions(store: Store, name: str) -> list[int]:
    """Numbers of the versions of model `name`, oldest first; empty where there is none."""
    numbers = (int(match[1]) for found in store.names(f"{MODELS}/{name}") if (match := re.fullmatch(r"v(\d+)", found)))
    return sorted(number for number in numbers if store.is_published(version_folder(name, number)))


def version_folder(name: str, number: int) -> str:
    """Where a version is, relative to the store."""
    return f"{MODELS}/{name}/v{number}"


def locate(model: SavedModel, store: Store) -> SavedModel:
    """Return the same version with the path that it has in this store, which may have moved since it was saved."""
    return model.model_copy(update={"path": store.location(version_folder(model.name, model.version))})


def find_version(store: Store, reference: str) -> str:
    """Return the folder, relative to the store, of `NAME@v3`, or of the newest version for `NAME`.

    Raises:
        StoreError: There is no such model or version; the message lists those there are.
    """
    name, _, wanted = reference.partition("@")
    versions = list_versions(store, name)
    if not versions:
        models = ", ".join(list_models(store)) or "none"
        raise StoreError(f"{reference}: expected a model in {store.url}, found no {name!r}; models there: {models}")
    number = wanted.removeprefix("v") or str(versions[-1])
    if number not in map(str, versions):
        found = ", ".join(f"v{version}" for version in versions)
        raise StoreError(f"{reference}: expected a version of {name!r} in {store.url}, found no {wanted}; versions there: {found}")
    return version_folder(name, int(number))
