"""What a run leaves behind: the training state after each epoch, and at the end the best one as a version of the model."""

import contextlib
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from refit.errors import StoreError
from refit.refs import EpochResult, Ref
from refit.store.store import Store
from refit.training.loop import PartialEpoch, TrainingState

PARTIAL = "partial"

Report = TypeVar("Report", bound=BaseModel)


def save_state(state: TrainingState, store: Store) -> Ref:
    """Keep all that resuming needs: model, optimizer, generators, and how far they have come.

    What is not trained is kept once, with the first state of a run.
    """
    if state.epoch == 0 and state.partial is None:
        data = _dump_frozen(state.model)
        state.frozen = None if data is None else _keep(data, store)
    return _keep(dump_state(state), store, state.frozen)


def dump_state(state: TrainingState) -> bytes:
    """Return what `save_state` keeps, as a copy that training no longer changes; on which device it was is not part of it."""
    weights, left_out = state.model.state_dict(), dict[str, Any]()
    if state.frozen is not None:
        data = _dump_frozen(state.model)
        if data is None or hashlib.sha256(data).hexdigest() != state.frozen.digest:
            state.frozen = None  # a step of the user's own changes them, such as the average of a teacher
        else:
            weights |= dict.fromkeys(_list_frozen(state.model))
            left_out = {"frozen": state.frozen.digest}
    return to_bytes(
        {
            "model": weights,
            **left_out,
            "optimizer": state.optimizer.state_dict(),
            "epoch": state.epoch,
            "step": state.step,
            "random_state": state.random_state,
            "partial": None if state.partial is None else vars(state.partial),
            **({"losses": state.losses} if state.losses else {}),
        }
    )


def load_state(ref: Ref, state: TrainingState, store: Store) -> None:
    """Bring a freshly built `state` to where the checkpoint `ref` was.

    Raises:
        StoreError: The checkpoint is missing, damaged, or of another model.
    """
    content = read_checkpoint(ref, store)
    with _naming_misfits(ref):
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
    state.epoch, state.step, state.random_state = content["epoch"], content["step"], content["random_state"]
    state.partial = None if content["partial"] is None else PartialEpoch(**content["partial"])
    state.frozen = ref.frozen
    state.losses = content.get("losses", [])


@contextlib.contextmanager
def saving_partials(key: str, store: Store) -> Iterator[Callable[[TrainingState], None]]:
    """Yield a function that keeps states of an unfinished epoch while training goes on; all are kept when the block ends.

    Training waits for the copy alone. For 416 MB it took 1 second, and hashing and writing 2 (measured); uploading takes longer.
    """
    saves: list[Future[None]] = []

    def save(state: TrainingState) -> None:
        for last in saves:
            last.result()
        data = dump_state(state)
        saves[:] = [thread.submit(save_partial, key, data, store, state.frozen)]

    with ThreadPoolExecutor(1) as thread:
        yield save
    for last in saves:
        last.result()


def save_partial(key: str, data: bytes, store: Store, frozen: Ref | None = None) -> None:
    """Keep the dumped state of an epoch that is not finished, under the epoch's key; it replaces the one kept before."""
    before = find_partial(key, store)
    ref = _keep(data, store, frozen)
    store.write(_partial_path(key), ref.model_dump_json().encode())
    if before is not None and before != ref:
        store.remove(store.object_path(before.digest))


def find_partial(key: str, store: Store) -> Ref | None:
    """Find the checkpoint inside the epoch of this key, if there is one and it is whole."""
    if not store.exists(_partial_path(key)):
        return None
    try:
        ref = Ref.model_validate_json(store.read(_partial_path(key)))
    except ValueError:
        return None
    return ref if store.are_whole(ref.digests) else None


def drop_partial(key: str, store: Store) -> None:
    """Remove the checkpoint inside an epoch that is now finished."""
    ref = find_partial(key, store)
    store.remove(_partial_path(key))
    if ref is not None:
        store.remove(store.object_path(ref.digest))


def prune_checkpoints(stale: Sequence[EpochResult], kept: Sequence[EpochResult], store: Store) -> None:
    """Remove the checkpoints of `stale` epochs that are not among the `kept`; logs and results stay."""
    for digest in {result.checkpoint.digest for result in stale} - {result.checkpoint.digest for result in kept}:
        store.remove(store.object_path(digest))


def load_weights(ref: Ref, model: nn.Module, store: Store) -> nn.Module:
    """Give `model` the weights of the checkpoint `ref`, in place; raises as `load_state` does."""
    with _naming_misfits(ref):
        model.load_state_dict(read_checkpoint(ref, store)["model"])
    return model


def save_report(kind: Literal["log", "metrics"], report: BaseModel, store: Store) -> Ref:
    """Keep an epoch's log or a split's metrics."""
    data = report.model_dump_json().encode()
    return Ref(kind=kind, digest=store.put(data), size=len(data))


def load_report(ref: Ref, report: type[Report], store: Store) -> Report:
    """Load what `save_report` kept.

    Raises:
        StoreError: It is missing or damaged.
    """
    return report.model_validate_json(store.get(ref.digest))


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes: equal if and only if all bits are."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _keep(data: bytes, store: Store, frozen: Ref | None = None) -> Ref:
    return Ref(kind="checkpoint", digest=store.put(data), size=len(data), frozen=frozen)


def _list_frozen(model: nn.Module) -> list[str]:
    """List the tensors of the `state_dict` that are not trained."""
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    return [name for name in model.state_dict() if name in frozen]


def _dump_frozen(model: nn.Module) -> bytes | None:
    """Return the parameters that are not trained; None if there are none."""
    weights, names = model.state_dict(), _list_frozen(model)
    return to_bytes({name: weights[name] for name in names}) if names else None


def _partial_path(key: str) -> str:
    return f"{PARTIAL}/{key}.json"


def read_checkpoint(ref: Ref, store: Store) -> dict[str, Any]:
    """Read a checkpoint's tensors and primitives, to the CPU; no code in it is run.

    Returns:
        What `save_state` keeps, with all tensors of the model; `frozen` lists the names of those that are kept apart.
    """
    content, frozen = _read(ref.digest, store), dict[str, Any]()
    if "frozen" in content:
        frozen = _read(content["frozen"], store)
        content["model"] = {name: frozen.get(name) if value is None else value for name, value in content["model"].items()}
    return {**content, "frozen": list(frozen)}


def _read(digest: str, store: Store) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(store.get(digest)), map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its message advises to run the code
        path = store.location(store.object_path(digest))
        raise StoreError(f"{path}: expected tensors and primitives, found other objects; remove it to make it again") from error
    return content


@contextlib.contextmanager
def _naming_misfits(ref: Ref) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"checkpoint {ref.digest}: expected one of this model, found another's: {error}; start again") from error


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Write tensors and primitives; equal content gives equal bytes, on whichever device the tensors are."""
    buffer = io.BytesIO()
    torch.save(_unify(content), buffer)
    return buffer.getvalue()


def _unify(content: Any) -> Any:
    """Return the same content with tensors on the CPU, and equal strings made one object, which pickle writes differently."""
    if isinstance(content, dict):
        return {_unify(name): _unify(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_unify(value) for value in content]
    if isinstance(content, Tensor):
        return content.cpu()
    return sys.intern(content) if isinstance(content, str) else content
