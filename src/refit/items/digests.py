"""What counts as the same items: the contents of files, a digest that the data set gives, or else every item."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refit.data.examples import Examples
from refit.data.identities import Hashes
from refit.data.input_files import compare_inputs, digest_inputs, join_digests
from refit.data.own_dataset import BadItem, ItemReader, OwnSource, forget_datasets, given_digests
from refit.errors import DataError
from refit.items.reading import read_facts
from refit.settings import SettingsTree
from refit.store.store import Store

FIRST_PASS = 1
"""The epoch whose seeds items are hashed with. They are kept as read with those of epoch 0, so that random items are noticed."""


BAD = 0
"""Stands for the hash of an item that cannot be read."""


def read_source(settings: SettingsTree) -> OwnSource:
    """Return what opens the data sets that settings describe."""
    return OwnSource(
        factory=settings.data.factory or "",
        options=settings.data.options,
        seed=settings.seed,
        collate=settings.loader.collate,
        has_targets=settings.training.step is None,
        has_numbers=settings.training.loss in ("squared", "absolute", "huber", "binary"),
        max_bad_items=settings.data.max_bad_items,
    )


def digest_data(settings: SettingsTree, report: Callable[[str], object] = lambda _: None) -> str:
    """Digest what the data sets hold.

    Raises:
        DataError: A file or an item cannot be read.
        SettingsError: The factory cannot be used.
    """
    forget_datasets()
    if settings.data.inputs:
        return join_digests(digest_inputs(settings.data.inputs, Store(settings.store.url)))
    reader = ItemReader(read_source(settings))
    return digest_datasets(reader, report, settings.loader.num_workers)


def digest_datasets(reader: ItemReader, report: Callable[[str], object], num_workers: int) -> str:
    """Digest data sets by the digests that they give, or else by their items."""
    contents: dict[str, Hashes | None] = {}
    for part, dataset in reader.datasets.items():
        if find_digest(dataset) is None:
            facts = read_facts(reader, part, report, FIRST_PASS, num_workers)
            contents[part] = np.array([BAD if isinstance(fact, BadItem) else fact.hash for fact in facts], np.uint64)
    return join_parts(contents, reader)


def join_parts(contents: Mapping[str, Hashes | None], reader: ItemReader) -> str:
    """SHA-256 over the digests that data sets give, or else over the hashes of their items."""
    digests = {}
    for part, dataset in reader.datasets.items():
        hashes, given = contents.get(part), find_digest(dataset)
        digests[part] = given if given is not None or hashes is None else hashlib.sha256(hashes.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def find_digest(dataset: Any) -> str | None:
    """The digest that a data set gives by a method of that name; None if it has none, or gives None.

    Raises:
        DataError: The method fails.
    """
    method = getattr(dataset, "digest", None)
    if not callable(method):
        return None
    if id(dataset) in given_digests:  # as it may take long
        return given_digests[id(dataset)]
    try:
        found = method()
    except Exception as error:
        raise DataError(
            f"data.factory: expected a text that says what a data set holds from its method `digest()`, found"
            f" {type(error).__name__}: {error}; correct it or, if it is for something else, rename it"
        ) from error
    given_digests[id(dataset)] = None if found is None else str(found)
    return given_digests[id(dataset)]


def explain_change(before: Examples, settings: SettingsTree, store: Store) -> list[str]:
    """Say what has changed since a data set."""
    if not settings.data.inputs or before.inputs is None:
        return ["data.factory: other items"]
    known = json.loads(store.get(before.inputs.digest))
    return compare_inputs(known, digest_inputs(settings.data.inputs, store)) or ["data.inputs: other files"]
