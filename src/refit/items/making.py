"""Builds the data set of a run from the user's own data sets: divides them, and freezes items or their places in the store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from refit.data.examples import Examples, SplitInfo
from refit.data.identities import Hashes, mix, number_copies
from refit.data.input_files import digest_inputs, join_digests, list_known
from refit.data.inputs import Inputs, find_other, name_tensors
from refit.data.own_dataset import PARTS, TO_COLLATE, WHOLE, BadItem, ItemReader, describe_part, list_arrays, name_item
from refit.data.signature import Signature, TensorSpec
from refit.errors import DataError
from refit.items.digests import FIRST_PASS, join_parts, read_source
from refit.items.kept import NOTHING, key_items, load_kept, note_kept
from refit.items.parts import LeftOut, Part, Report, read_part
from refit.items.reading import hash_item
from refit.items.targets import find_target, profile_targets
from refit.refs import DatasetRef, Ref
from refit.settings import DataSettings, SettingsTree
from refit.store.store import Store
from refit.texts import show

DEFAULT_SHARE = 0.15
NUM_SAMPLED = 3


def build_snapshot(settings: SettingsTree, digests: Sequence[str | None], store: Store, report: Report, warn: Report) -> DatasetRef:
    """Build the data set of a run, if what it is made from still has the digest of the recipe, and report what it holds.

    Raises:
        DataError: Items cannot be read, differ from read to read, or are not enough for the splits.
        SettingsError: The factory cannot be used.
    """
    source, data = read_source(settings), settings.data
    files = digest_inputs(data.inputs, store) if data.inputs else None
    if files is not None and join_digests(files) != digests[0]:
        raise DataError("data.inputs: expected the same bytes as when the run began, found others; run again")
    reader = ItemReader(source)
    left_out, remarks = LeftOut(reader), list[str]()
    is_kept = data.cache and files is not None
    keys = key_items(reader, list_known(data.inputs, store)) if is_kept else {}
    kept = load_kept(reader, store) if is_kept else NOTHING
    given = settings, report, remarks.append, left_out, kept
    parts = {name: read_part(reader, name, *given, keys.get(name)) for name in reader.datasets}
    left_out.check()
    remarks += left_out.describe()
    if files is None and join_parts({name: part.contents for name, part in parts.items()}, reader) != digests[0]:
        raise DataError(_explain_other_items(source.factory))
    places = divide(parts, data, settings.seed)
    target = find_target(
        reader.datasets[places["train"][0]],
        {split: parts[name].y[rows] for split, (name, rows) in places.items()},
        source,
        settings.training.loss,
    )
    _remark_on_learned(parts, places, remarks.append)
    learned = [parts[name].y[rows] for split, (name, rows) in places.items() if split != "test"]
    items = {split: (name, parts[name].indices[rows]) for split, (name, rows) in places.items()}
    x, y = _take_sample(reader, *items["train"])
    _remark_on_other_generators(reader, {name: i for name, i in items.values() if parts[name].x is None}, remarks.append)
    splits = {
        split: _freeze(parts[name], rows, len(target.classes) if target.kind == "classes" else 0, store)
        for split, (name, rows) in places.items()
    }
    tensors = _describe_tensors(reader, *items["train"])
    _refuse_other_tensors(reader, items, tensors)
    examples = Examples(
        signature=Signature(columns=[], target=target, tensors=tensors),
        splits=splits,
        source=source,
        sample=_keep(store, "arrays", safetensors.torch.save(_contiguous({**name_tensors(x), "y": y}))),
        inputs=None if files is None else _keep(store, "rows", json.dumps(files).encode()),
        profiles=profile_targets(target, torch.cat(learned)),
        source_digest=str(digests[0]),
        remarks=remarks,
    )
    if is_kept and all(parts[name].keys is not None for name, _ in places.values()):
        kinds = {name: part.kind for name, part in parts.items()}
        note_kept(source, [info.digest for info in splits.values()], [*examples.signature.tensors], kinds, store)
    for line in examples.describe():
        (warn if line in remarks else report)(line)
    record = _keep(store, "dataset", examples.model_dump_json().encode())
    return DatasetRef(**record.model_dump(), splits={split: info.ref for split, info in splits.items()}, test_rows=None)


def divide(parts: Mapping[str, Part], data: DataSettings, seed: int) -> dict[str, tuple[str, Tensor]]:
    """Divide items: for each split, the data set that it is from and its indices there.

    What the factory does not divide, a hash of each item's identity does: an item never changes sides as others come and go.

    Raises:
        DataError: A split has no items.
    """
    if WHOLE in parts:
        shares = {
            name: DEFAULT_SHARE if share is None else float(share) for name, share in (("val", data.val), ("test", data.test))
        }
        origin = WHOLE
    else:
        shares = {name: float(getattr(data, name) or 0) for name in ("val", "test") if name not in parts}
        origin = "train"
    sides = choose_sides(parts[origin].hashes, shares, seed)
    found = {split: (origin, torch.from_numpy(np.flatnonzero(sides == split))) for split in ("train", *shares)}
    found = {split: place for split, place in found.items() if split == "train" or shares[split]}
    found |= {name: (name, torch.arange(len(part.y))) for name, part in parts.items() if name != origin}
    for split, (_, rows) in found.items():
        if len(rows) == 0:
            share = f"a share of {shares[split]:g}" if split in shares else "the rest"
            raise DataError(
                f"{split} split: expected items, found that {share} has none of {len(parts[origin].y)}, as what an item holds"
                f" chooses its side; add items, change data.{split if split in shares else 'val'}, or divide them in data.factory"
            )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _remark_on_learned(parts: Mapping[str, Part], places: Mapping[str, tuple[str, Tensor]], warn: Report) -> None:
    """Tell of test items that are train or validation items, too."""
    is_read = all(part.contents is not None for part in parts.values())
    hashes = {
        split: cast(Hashes, parts[name].contents)[parts[name].indices[rows]] if is_read else parts[name].hashes[rows.numpy()]
        for split, (name, rows) in places.items()
    }
    test = hashes.pop("test", None)
    same = 0 if test is None else int(np.isin(test, np.concatenate([*hashes.values()])).sum())
    if same:
        warn(f"test split: {same} of {len(places['test'][1])} items are train or validation items, too, and flatter the scores")


def _remark_on_other_generators(reader: ItemReader, items: Mapping[str, Tensor], warn: Report) -> None:
    """Tell of items that differ though torch's, numpy's and python's generators are seeded alike."""
    for name, indices in items.items():
        index = int(indices[0])
        reads = {hash_item(list_arrays(reader.read_item(name, index, FIRST_PASS))) for _ in range(2)}
        if len(reads) > 1:
            warn(
                f"{describe_part(name)}: {name_item(reader.datasets[name], index)} differs each time that it is read, whatever is"
                " seeded, so that weights depend on loader.num_workers and on interruptions; let it draw from the generators of"
                " torch, numpy.random or random, or from one that __getitem__ makes of torch.initial_seed()"
            )


def choose_sides(hashes: Hashes, shares: Mapping[str, float], seed: int) -> Any:
    """Choose `train` or a split with a share for each item, by its hash, `(N,)`."""
    draws = mix(hashes ^ mix(np.full(1, seed, np.uint64))) / 2.0**64
    sides = np.full(len(hashes), "train", "<U5")
    start = 0.0
    for split, share in reversed([*shares.items()]):  # the test split first, so that another share for validation does not move it
        sides[(draws >= start) & (draws < start + share)] = split
        start += share
    return sides


def _explain_other_items(factory: str) -> str:
    return (
        f"data.factory: expected items of {factory} that are the same whenever they are read, found that they differ, so that"
        " nobody could say whether the data has changed; name the files that they are made from in data.inputs, or give the data"
        " set a method `digest()`, which says what it holds, or leave what is random out"
    )


def _take_sample(reader: ItemReader, name: str, rows: Tensor) -> tuple[Inputs, Tensor]:
    """Return a batch of the first items."""
    batch = reader[0, [(name, index) for index in rows[:NUM_SAMPLED].tolist()]]
    if isinstance(batch, BadItem):
        raise reader.explain(batch)
    other = find_other(batch[0])
    if other is not None:
        found = f"in a batch, among its inputs, {show(repr(other))}"
        raise reader.explain(BadItem(name, int(rows[0]), found, "return tensors alone, or make them in loader.collate"))
    x, y = batch
    return x, y


def _describe_tensors(reader: ItemReader, name: str, rows: Tensor) -> dict[str, TensorSpec]:
    """Describe the tensors of an item by a few of them, collated alone; what differs among them is None."""
    singles = []
    for index in rows[:NUM_SAMPLED].tolist():
        batch = reader[0, [(name, index)]]
        if isinstance(batch, BadItem):
            raise reader.explain(batch)
        singles.append(name_tensors(batch[0]))
    specs = {}
    for key, tensor in singles[0].items():
        shapes = [tuple(single[key].shape[1:]) for single in singles if key in single]
        same = len({len(shape) for shape in shapes}) == 1
        shape = [size if same and len({other[place] for other in shapes}) == 1 else None for place, size in enumerate(shapes[0])]
        specs[key] = TensorSpec(dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)
    return specs


def _refuse_other_tensors(reader: ItemReader, places: Mapping[str, tuple[str, Tensor]], tensors: Mapping[str, TensorSpec]) -> None:
    """Refuse a split whose first item is of another kind than train items: it would be told after training."""
    if reader.source.collate is not None:
        return
    for name, rows in places.values():
        found = _describe_tensors(reader, name, rows[:1])
        if found.keys() != tensors.keys() or not all(_fits(found[key], tensors[key]) for key in found):
            kinds = [", ".join(map(str, specs.values())) for specs in (found, tensors)]
            raise reader.explain(BadItem(name, int(rows[0]), f"{kinds[0]}, where train items are {kinds[1]}", TO_COLLATE))


def _fits(one: TensorSpec, known: TensorSpec) -> bool:
    sizes = zip(one.shape, known.shape, strict=False)
    return one.dtype == known.dtype and len(one.shape) == len(known.shape) and all(b in (a, None) for a, b in sizes)


def _freeze(part: Part, rows: Tensor, num_classes: int, store: Store) -> SplitInfo:
    """Keep the examples of a split: their inputs, or where their items are."""
    y = part.y[rows]
    hashes = part.hashes[rows.numpy()]
    tensors = {
        "y": y,
        "hashes": _as_tensor(hashes),
        "numbers": torch.from_numpy(number_copies(hashes)),
        "indices": part.indices[rows],
        "parts": torch.full_like(rows, PARTS.index(part.name)),
    }
    if part.x is not None:
        tensors |= {name: tensor[rows] for name, tensor in name_tensors(part.x).items()}
    if part.keys is not None and part.contents is not None:
        contents = part.contents[part.indices[rows]]
        tensors |= {"keys": _as_tensor(part.keys[rows.numpy()]), "contents": _as_tensor(contents)}
    ref = _keep(store, "arrays", safetensors.torch.save(_contiguous(tensors)))
    counts: list[int] = torch.bincount(y, minlength=num_classes).tolist() if num_classes else []
    return SplitInfo(rows=len(rows), class_counts=counts, digest=ref.digest, size=ref.size)


def _as_tensor(hashes: Hashes) -> Tensor:
    return torch.from_numpy(hashes.view(np.int64))


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, as safetensors refuses views that share memory."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _keep(store: Store, kind: Any, data: bytes) -> Ref:
    return Ref(kind=kind, digest=store.put(data), size=len(data))
