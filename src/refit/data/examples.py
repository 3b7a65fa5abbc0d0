"""Examples: what training sees of a data set, whatever it was made from."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from refit.data.drifts import Drift, compare_profiles
from refit.data.identities import Hashes, Identities, Rows, find_known, identify
from refit.data.inputs import Inputs, Mask, map_tensors, unname_tensors
from refit.data.live_items import LiveItems, as_items
from refit.data.own_dataset import PARTS, OwnSource, find_id
from refit.data.profiles import Profile
from refit.data.signature import Signature
from refit.errors import DataError, SettingsError
from refit.refs import Ref
from refit.settings import DataSettings
from refit.store.store import Store
from refit.texts import list_names, show

LEARNED_FROM = ("train", "val")
MAX_CLASSES_SHOWN = 10
MAX_REMARKS_SHOWN = 30
Obstacle = tuple[str, str]
"""A problem, and what to do about it."""


class SplitInfo(BaseModel):
    """One split: its rows, its rows of each class (in the signature's order), and the blob that holds its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    class_counts: list[int]
    digest: str
    size: int

    @property
    def ref(self) -> Ref:
        """The blob."""
        return Ref(kind="arrays", digest=self.digest, size=self.size)


class Examples(BaseModel):
    """The examples of a data set: `train`, and `val` and `test` where there are any.

    They are frozen in the store, or, where there is a `source`, read from the user's data set when they are needed; then the store
    has their indices. Their maker may add fields to the same record, and derive from this class, whose methods are those of a
    user's own data set.

    `sample` is a batch of train items, by which a model is tried. `inputs` are the digests of the files of
    `data.inputs`. `profiles` describe the targets that are learned from, and of a table its columns. The source digests cover what
    the examples were made from. `remarks` say what people should know, a line each.
    """

    model_config = ConfigDict(frozen=True)

    maker: Literal["tables", "items"] = "items"
    signature: Signature
    splits: dict[str, SplitInfo]
    source: OwnSource | None = None
    sample: Ref | None = None
    inputs: Ref | None = None
    profiles: list[Profile] = Field(default_factory=list)
    source_digest: str = ""
    test_source_digest: str | None = None
    remarks: list[str] = Field(default_factory=list)

    def load_split(self, split: str, store: Store) -> tuple[Inputs | LiveItems, Tensor]:
        """Load the examples of `train`, `val` or `test`; no other split is read.

        Returns:
            Inputs, for a table float32, and targets: for classes their index in the signature, int64, else float32.

        Raises:
            DataError: The data set has no such split.

        Shape:
            Returns (N, …) and (N,) or (N, …); for a table (N, F) and (N,).
        """
        tensors = self._load_arrays(split, store)
        if self.source is not None and not any(name.startswith("x") for name in tensors):
            return LiveItems(self.source, tensors["parts"], tensors["indices"]), tensors["y"]
        return self._unname(tensors), tensors["y"]

    def name_examples(self, split: str, rows: Sequence[int], store: Store) -> list[str]:
        """Name some items of a split as the data set calls them, or else by their indices there."""
        arrays = self._load_arrays(split, store)
        found = []
        for row in rows:
            part, index = (int(arrays[name][row]) if name in arrays else 0 for name in ("parts", "indices"))
            named = None
            with contextlib.suppress(Exception):  # it may not be there any more
                named = None if self.source is None else find_id(self.source.open()[PARTS[part]], index)
            found.append(f"item {index}" if named is None else named)
        return found

    def load_identities(self, split: str, store: Store) -> Identities:
        """Load what tells the examples of a split apart; raises as `load_split` does."""
        arrays = self._load_arrays(split, store)
        groups = arrays["groups"].numpy().view(np.uint64) if "groups" in arrays else None
        return Identities(arrays["hashes"].numpy().view(np.uint64), arrays["numbers"].numpy(), groups)

    def load_learned(self, store: Store) -> Hashes:
        """Load the identities of all examples that are not held back for the test."""
        return np.concatenate([self.load_identities(split, store).keys for split in LEARNED_FROM if split in self.splits])

    def load_sample(self, store: Store) -> tuple[Inputs, Tensor]:
        """Load what a model is tried with: inputs and targets of some of the train items, or rows of numbers from 0 to 1."""
        return self.read_sample(None if self.sample is None else store.get(self.sample.digest))

    def read_sample(self, data: bytes | None) -> tuple[Inputs, Tensor]:
        """Read the sample from its bytes; None stands for a table's, which needs none."""
        if data is None:
            num_inputs = self.signature.num_inputs
            dtype = torch.int64 if self.classes else torch.float32
            return torch.linspace(0, 1, 2 * num_inputs, dtype=torch.float32).view(2, num_inputs), torch.zeros(2, dtype=dtype)
        tensors = safetensors.torch.load(data)
        return self._unname(tensors), tensors["y"]

    def _unname(self, tensors: Mapping[str, Tensor]) -> Inputs:
        """Restore inputs with names in the order of the items: files give them in any, and a network may go by it."""
        return unname_tensors({name: tensors[name] for name in self.signature.tensors or ["x"]})

    def lack(self, split: str) -> DataError:
        """Make the error for a split that is not there."""
        return DataError(f"expected a split of the data set, found no `{split}` among {list_names(self.splits)}; set data.{split}")

    @property
    def refs(self) -> list[Ref]:
        """Everything in the store that belongs to the data set, besides this record."""
        return [*(info.ref for info in self.splits.values()), *filter(None, (self.sample, self.inputs))]

    @property
    def test_ref(self) -> Ref | None:
        """What identifies the test rows."""
        return self.splits["test"].ref if "test" in self.splits else None

    @property
    def classes(self) -> list[bool | int | str]:
        """The classes, if the target has them."""
        return self.signature.target.classes

    def list_labels(self) -> list[str]:
        """List the classes as text."""
        return [str(label).lower() if isinstance(label, bool) else str(label) for label in self.classes]

    def describe(self) -> list[str]:
        """Lines for people: the items, what they are, and their targets."""
        splits = ", ".join(f"{info.rows} {split}" for split, info in self.splits.items())
        total = sum(info.rows for info in self.splits.values())
        return [
            f"items: {total} ({splits})",
            f"inputs: {self.signature.describe_inputs()}",
            *self._describe_target(),
            *self.list_remarks(),
        ]

    def list_remarks(self) -> list[str]:
        """List what else people should know of the data, the first lines and how many more there are."""
        more = len(self.remarks) - MAX_REMARKS_SHOWN
        return [*self.remarks[:MAX_REMARKS_SHOWN], *[f"{more} more such lines are in the version's manifest.json"] * (more > 0)]

    def summarize_inputs(self) -> str:
        """Say in a few words what a model learns from."""
        return f"items of {self.signature.describe_inputs()}"

    def summarize_target(self) -> str:
        """Say in a few words what a model predicts."""
        target = self.signature.target
        count = len(target.classes or target.centers)
        kinds = {"classes": f"one of {count} classes", "numbers": "a number" if count == 1 else f"{count} numbers"}
        return {**kinds, "labels": f"any of {count} labels", "none": "of a step of its own"}[target.kind]

    def list_columns(self) -> list[tuple[str, str, str, int, int]]:
        """List the columns of a table: name, kind, how it is read, train rows without a value, and inputs."""
        return []

    def _describe_target(self) -> list[str]:
        if self.signature.target.kind != "classes":
            return [f"target: {self.summarize_target()}"]
        totals = [sum(counts) for counts in zip(*(info.class_counts for info in self.splits.values()), strict=True)]
        named = [f"{show(label)} ({total})" for label, total in zip(self.list_labels(), totals, strict=True)]
        more = f" and {len(named) - MAX_CLASSES_SHOWN} more" if len(named) > MAX_CLASSES_SHOWN else ""
        return [f"classes: {', '.join(named[:MAX_CLASSES_SHOWN])}{more}"]

    def list_warnings(self) -> list[str]:
        """List the problems of the data that a person should fix."""
        return []

    def tell_rare_classes(self) -> str | None:
        """Say which classes the model does not learn, as they have too few rows."""
        return None

    def load_test_rows(self, store: Store) -> Any:
        """Load the test examples as `prepare` takes them; raises as `load_split` does."""
        x, y = self.load_split("test", store)
        return RawItems(x, y, self.load_identities("test", store).hashes)

    def prepare(self, rows: Any) -> Inputs | LiveItems:
        """Turn what is to be predicted into inputs: a batch of them, or a data set of items or of pairs of inputs and target."""
        return rows.x if isinstance(rows, RawItems) else as_items(rows, self.source)

    def read_truth(self, rows: Any) -> list[str]:
        """Return the true class of each test example, as text."""
        labels = self.list_labels()
        return [labels[place] for place in rows.y.tolist()]

    def read_target(self, rows: Any) -> Tensor:
        """Return the target of each test example as a model is trained for it, float, `(N, …)`; not asked of classes."""
        y: Tensor = rows.y
        return y

    def find_learned(self, rows: Any, numbers: Rows, store: Store) -> Mask:
        """Find the test examples of another data set that a model of this one has learned from."""
        return find_known(identify(rows.hashes, numbers), self.load_learned(store))

    def find_clusters(self, rows: Any, store: Store) -> Hashes | None:  # noqa: ARG002
        """Number the test examples so that equal ones have the same number; None if all differ."""
        hashes: Hashes = rows.hashes
        return hashes if len(np.unique(hashes)) < len(hashes) else None

    def is_told_apart_like(self, other: "Examples") -> bool:  # noqa: ARG002
        """Whether the same things tell examples apart in both data sets."""
        return True

    def find_obstacle(self, rows: Any, now: "Examples", data: DataSettings) -> Obstacle | None:  # noqa: ARG002
        """Say why a model of this data set cannot be compared on test examples of today's."""
        remedy = "bring them back, or promote a candidate by hand"
        if self.maker != now.maker:
            return f"expected {_MADE[self.maker]}, found {_MADE[now.maker]}", remedy
        if self.maker == "items" and self.signature.tensors != now.signature.tensors:
            return f"expected inputs of {self.signature.describe_inputs()}, found {now.signature.describe_inputs()}", remedy
        kinds = [(record.signature.target.kind, len(record.signature.target.centers)) for record in (self, now)]
        if kinds[0] != kinds[1]:
            return f"expected {self.summarize_target()} to predict, found {now.summarize_target()}", remedy
        lost = [label for label in self.list_labels() if label not in now.list_labels()] if self.maker == "items" else []
        if lost:
            return f"expected items of every class that it knows, found none of {list_names(lost)}", remedy
        return None

    def check_slices(self, columns: Sequence[str], rows: Any) -> None:  # noqa: ARG002
        """Raise for slices that the test examples do not have."""
        refuse_slices(columns)

    def find_slices(self, rows: Any, columns: Sequence[str]) -> Iterator[tuple[str, Mask]]:  # noqa: ARG002
        """Name the rows of each value of each column."""
        return iter(())

    def explain_useless_slices(self, rows: Any, columns: Sequence[str]) -> str | None:  # noqa: ARG002
        """Name the columns whose slices cannot show anything; None if there is none."""
        return None

    def find_drifts(self, before: "Examples") -> list[Drift]:
        """Say how far each column or target has moved since another data set."""
        is_alike = self.maker == before.maker and before.profiles
        return compare_profiles(before.profiles, self.profiles) if is_alike else []

    def _load_arrays(self, split: str, store: Store) -> dict[str, Tensor]:
        if split not in self.splits:
            raise self.lack(split)
        with store.local_file(self.splits[split].digest) as path:
            return safetensors.torch.load_file(path, backend="pread")  # a mapped file would have to stay as long as the tensors


_MADE = {"tables": "a table", "items": "items of a data set"}


@dataclass(frozen=True)
class RawItems:
    """N test examples: inputs, targets, and hashes that identify them."""

    x: Inputs | LiveItems
    y: Tensor
    hashes: Hashes

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice) -> "RawItems":
        chosen = torch.arange(len(self))[rows]
        x = self.x.take(chosen) if isinstance(self.x, LiveItems) else map_tensors(lambda part: part[chosen], self.x)
        return RawItems(x, self.y[chosen], self.hashes[rows])

    def filter(self, mask: Mask) -> "RawItems":
        """Return the examples that a mask marks."""
        return self[np.flatnonzero(mask)]  # type: ignore[index]


def refuse_slices(slices: Sequence[str]) -> None:
    """Raise SettingsError for slices, which only a table has."""
    if slices:
        raise SettingsError(
            f"promotion.slices: expected none, as items of a data set have no columns, found {list_names(slices)}; drop them"
        )


def load_examples(ref: Ref, store: Store) -> Examples:
    """Load the examples of a data set by the ref of its record."""
    return Examples.model_validate_json(store.get(ref.digest))
