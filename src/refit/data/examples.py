"""Examples: what training sees of a data set, whatever it was made from."""

import numpy as np
import safetensors.torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from refit.data.identities import Identities
from refit.data.signature import Signature
from refit.errors import DataError
from refit.refs import Ref
from refit.store.store import Store
from refit.texts import list_names


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
    """The examples of a data set, frozen in the store: `train`, and `val` and `test` where there are any.

    Their maker may add fields to the same record.
    """

    model_config = ConfigDict(frozen=True)

    signature: Signature
    splits: dict[str, SplitInfo]

    def load_split(self, split: str, store: Store) -> tuple[Tensor, Tensor]:
        """Load the tensors of `train`, `val` or `test`; no other split is read.

        Returns:
            Inputs, float32, and targets, int64: for classes, their index in the signature.

        Raises:
            DataError: The data set has no such split.

        Shape:
            Returns (N, F) and (N,).
        """
        tensors = self._load_arrays(split, store)
        return tensors["x"], tensors["y"]

    def load_identities(self, split: str, store: Store) -> Identities:
        """Load what tells the examples of a split apart; raises as `load_split` does."""
        arrays = self._load_arrays(split, store)
        groups = arrays["groups"].numpy().view(np.uint64) if "groups" in arrays else None
        return Identities(arrays["hashes"].numpy().view(np.uint64), arrays["numbers"].numpy(), groups)

    def lack(self, split: str) -> DataError:
        """Make the error for a split that is not there."""
        return DataError(f"expected a split of the data set, found no `{split}` among {list_names(self.splits)}; set data.{split}")

    def _load_arrays(self, split: str, store: Store) -> dict[str, Tensor]:
        if split not in self.splits:
            raise self.lack(split)
        with store.local_file(self.splits[split].digest) as path:
            return safetensors.torch.load_file(path, backend="pread")  # a mapped file would have to stay as long as the tensors


def load_examples(ref: Ref, store: Store) -> Examples:
    """Load the examples of a data set by the ref of its record."""
    return Examples.model_validate_json(store.get(ref.digest))
