"""Items that `data.cache` has kept as tensors: the next data set takes those whose files are the same, and decodes the others."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from fsspec.core import url_to_fs
from torch import Tensor

from refit.code import digest_code, digest_user_code
from refit.data.identities import Hashes
from refit.data.inputs import unname_tensors
from refit.data.own_dataset import BadItem, ItemReader, OwnSource
from refit.errors import StoreError
from refit.items.digests import FIRST_PASS
from refit.items.reading import Fact, hash_bytes, hash_item, is_finite
from refit.store.store import Store

FOLDER = "caches"
NUM_CHECKED = 4
"""Kept items of each data set that are read nevertheless, as an item may depend on more than its file."""
CODE = tuple(f"refit.{name}" for name in ("data.seeded", "items.kept", "items.reading", "items.parts"))


@dataclass(frozen=True)
class Kept:
    """The K items of an earlier data set.

    Args:
        rows: The row of each item by its key.
        tensors: Inputs by their names, targets as `y`, and hashes of contents as `contents`, `(K, …)`.
        names: Names of the inputs, in the order of the items.
        kinds: What the inputs of each of the user's data sets were.
    """

    rows: Mapping[int, int]
    tensors: Mapping[str, Tensor]
    names: Sequence[str]
    kinds: Mapping[str, str]

    def take(self, reader: ItemReader, part: str, keys: Hashes | None) -> dict[int, Fact]:
        """Take the items of these keys; none if one that is read to be sure is another one."""
        if keys is None or not self.rows:
            return {}
        rows = {index: self.rows[key] for index, key in enumerate(keys.tolist()) if key in self.rows}
        indices, contents = list(rows), self.tensors["contents"].numpy().view(np.uint64)
        for index in indices[:: max(1, len(indices) // NUM_CHECKED)]:
            item = reader.try_item(part, index, FIRST_PASS)
            if isinstance(item, BadItem) or hash_item(item) != contents[rows[index]]:
                return {}
        return {index: self._build_fact(row, int(contents[row]), part, reader.source) for index, row in rows.items()}

    def _build_fact(self, row: int, content: int, part: str, source: OwnSource) -> Fact:
        x = unname_tensors({name: self.tensors[name][row] for name in self.names})
        item, target = ((x, None), self.tensors["y"][row]) if source.has_targets else (x, None)
        return Fact(content, target, item, self.kinds[part], is_finite(x))


NOTHING = Kept({}, {}, (), {})


def key_items(reader: ItemReader, files: Mapping[str, str]) -> dict[str, Hashes | None]:
    """Hash what the items of each data set depend on: their code, options, files and targets; None where that is not known.

    An item's own file is the one that it has in `samples`, or that its id names. All files of `data.inputs` that are no item's own
    may belong to any item.

    Args:
        reader: Opens the data sets.
        files: Digests of the files of `data.inputs` by their paths.
    """
    own = {part: _list_files(dataset, files) for part, dataset in reader.datasets.items()}
    taken = {path for paths in own.values() for path in paths or ()}
    source = reader.source.model_dump(exclude={"max_bad_items"})
    code = {**digest_user_code(reader.source.factory, "data.factory"), **digest_code(CODE), "torch": torch.__version__}
    shared = {path: digest for path, digest in files.items() if path not in taken}
    base = hashlib.sha256(json.dumps([source, code, shared, np.__version__], sort_keys=True).encode()).hexdigest()
    keys = dict[str, Hashes | None]()
    for part, paths in own.items():
        declared = None if paths is None else _list_declared(reader.datasets[part], len(paths), reader.source)
        if paths is None or declared is None:
            keys[part] = None
            continue
        texts = (f"{base} {part} {path} {files[path]} {told}" for path, told in zip(paths, declared, strict=True))
        keys[part] = np.array([hash_bytes(text.encode()) for text in texts], np.uint64)
    return keys


def load_kept(reader: ItemReader, store: Store) -> Kept:
    """Load the items that the last data set of this source has kept; nothing if there are none, or if they are lost."""
    with contextlib.suppress(StoreError, ValueError, KeyError, RuntimeError):
        record = json.loads(store.read(_find_place(reader.source)))
        splits = [safetensors.torch.load(store.get(digest)) for digest in record["splits"]]
        tensors = {name: torch.cat([split[name] for split in splits]) for name in splits[0]}
        keys = tensors["keys"].numpy().view(np.uint64).tolist()
        return Kept({key: row for row, key in enumerate(keys)}, tensors, record["names"], record["kinds"])
    return NOTHING


def note_kept(source: OwnSource, splits: Sequence[str], names: Sequence[str], kinds: Mapping[str, str], store: Store) -> None:
    """Note the objects that hold the items of a data set, for the next one."""
    store.write(_find_place(source), json.dumps({"splits": splits, "names": names, "kinds": kinds}).encode())


def _find_place(source: OwnSource) -> str:
    return f"{FOLDER}/{hashlib.sha256(source.model_dump_json().encode()).hexdigest()}.json"


def _list_files(dataset: Any, files: Mapping[str, str]) -> list[str] | None:
    """List the file of each item; None if one has none among the `files`."""
    samples, ids = getattr(dataset, "samples", None), getattr(dataset, "ids", None)
    found: Any = samples if samples is not None else ids
    if not hasattr(found, "__len__") or len(found) != len(dataset):
        return None
    paths = [sample[0] if isinstance(sample, tuple | list) and sample else sample for sample in found]
    if not all(isinstance(path, str | Path) for path in paths):
        return None
    whole = [url_to_fs(str(path))[1] if "://" in str(path) else os.path.abspath(path) for path in paths]
    return whole if all(path in files for path in whole) else None


def _list_declared(dataset: Any, num_items: int, source: OwnSource) -> Sequence[Any] | None:
    """List the target of each item as the data set tells it without reading; None if it does not."""
    targets, samples = getattr(dataset, "targets", None), getattr(dataset, "samples", None)
    if not source.has_targets:
        return samples if samples is not None else [None] * num_items
    if targets is not None and len(targets) == num_items:
        return targets.tolist() if isinstance(targets, Tensor | np.ndarray) else targets
    has_targets = samples is not None and all(isinstance(sample, tuple | list) and len(sample) > 1 for sample in samples)
    return samples if has_targets else None
