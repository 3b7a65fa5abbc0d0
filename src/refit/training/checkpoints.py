"""What a run leaves behind: the training state after each epoch, and at the end the best one as a version of the model."""

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from refit.code import digest_user_code
from refit.data.loaders import choose_batch_size
from refit.errors import StoreError
from refit.models.building import build_for_weights, probe
from refit.promotion.decision import Lead
from refit.refs import EpochResult, Ref, SavedModel
from refit.registry import versions
from refit.registry.ledger import record_opening
from refit.reports import run_report
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables.dataset import Manifest
from refit.training.evaluation import Metrics
from refit.training.loop import EpochLog, PartialEpoch, TrainingState

PARTIAL = "partial"
MAX_SOURCE_LENGTH = 200
"""Of a path or URL on the card."""

Report = TypeVar("Report", bound=BaseModel)


def save_state(state: TrainingState, store: Store) -> Ref:
    """Keep all that resuming needs: model, optimizer, generators, and how far they have come."""
    return _keep(dump_state(state), store)


def dump_state(state: TrainingState) -> bytes:
    """What `save_state` keeps: a copy, which training no longer changes."""
    return _to_bytes(
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "epoch": state.epoch,
            "step": state.step,
            "random_state": state.random_state,
            "partial": None if state.partial is None else vars(state.partial),
        }
    )


def load_state(ref: Ref, state: TrainingState, store: Store) -> None:
    """Bring a freshly built `state` to where the checkpoint `ref` was.

    Raises:
        StoreError: The checkpoint is missing, damaged, or of another model.
    """
    content = _read_checkpoint(ref, store)
    with _naming_misfits(ref):
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
    state.epoch, state.step, state.random_state = content["epoch"], content["step"], content["random_state"]
    state.partial = None if content["partial"] is None else PartialEpoch(**content["partial"])


@contextlib.contextmanager
def saving_partials(key: str, store: Store) -> Iterator[Callable[[TrainingState], None]]:
    """Give what keeps states of an epoch that is not finished, while training goes on; all are kept when the block ends.

    Only the copy holds training up. Of 416 MB it took 1 second, and hashing and writing 2 (measured); sending takes longer.
    """
    saves: list[Future[None]] = []

    def save(state: TrainingState) -> None:
        for last in saves:
            last.result()
        saves[:] = [thread.submit(save_partial, key, dump_state(state), store)]

    with ThreadPoolExecutor(1) as thread:
        yield save
    for last in saves:
        last.result()


def save_partial(key: str, data: bytes, store: Store) -> None:
    """Keep the dumped state of an epoch that is not finished, under the epoch's key; it replaces the one kept before."""
    before = find_partial(key, store)
    ref = _keep(data, store)
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
    return ref if store.is_whole(ref.digest) else None


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
        model.load_state_dict(_read_checkpoint(ref, store)["model"])
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


def save_checkpoint(
    checkpoint: Ref,
    settings: SettingsTree,
    manifest: Manifest,
    logs: Sequence[EpochLog],
    metrics: Mapping[str, Metrics],
    store: Store,
    key: str | None = None,
    refitted: Ref | None = None,
    lead: Lead | None = None,
) -> SavedModel:
    """Keep the weights of `checkpoint` as the next version of model `settings.name`.

    With a `key` it is saved once: if the newest version has it, from a run that died before it could say so, that version it is.
    With `refitted`, a checkpoint of as many epochs on all rows, its weights are served, and the others kept to judge by.

    The version's folder has `model.pt` (a `state_dict`), `settings.json`, `manifest.json`, `metrics.json`, `log.json`,
    `version.json` (name and number, digests, also of all other files and of a factory's code, versions of packages, and logits by
    which the network is known again, the `lead` over the majority class), the card: `card.md` with its pictures, and with
    `refitted` `held_back.pt`.
    The ledger counts that the test rows have judged it.

    Raises:
        StoreError: The checkpoint cannot be read or the version not be written; nothing of it is left then.
    """
    batch_size = choose_batch_size(settings.loader.batch_size, manifest.splits["train"].rows)
    settings = settings.model_copy(update={"loader": settings.loader.model_copy(update={"batch_size": batch_size})})
    refs = {"model.pt": checkpoint} if refitted is None else {"model.pt": refitted, "held_back.pt": checkpoint}
    contents = {name: _read_checkpoint(ref, store) for name, ref in refs.items()}
    known = {name: _identify(contents[name], ref, settings, manifest) for name, ref in refs.items()}
    record = known["model.pt"] | {
        "refit_on_all": refitted is not None,
        "held_back": known.get("held_back.pt"),
        "lead": None if lead is None else lead.model_dump() | {"warning": lead.warn()},
        "torch": torch.__version__,
        "code": digest_user_code(settings.model.factory),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": key,
    }
    judged_on = list(metrics)[-1]
    files = {
        **{name: _to_bytes(content["model"]) for name, content in contents.items()},
        "settings.json": _to_json(settings),
        "manifest.json": _to_json(manifest),
        "metrics.json": _to_json(metrics),
        "log.json": _to_json(logs),
        "loss.png": run_report.draw_losses([log.train_loss for log in logs], [log.val_loss for log in logs]),
        "confusion.png": run_report.draw_confusion(
            metrics[judged_on].confusion, [entry.label for entry in metrics[judged_on].classes], judged_on
        ),
        "card.md": _render_card(settings, manifest, len(logs), metrics, record).encode(),
    }
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    number = None if key is None else versions.find_saved(store, settings.name, key)
    if number is None:
        number = versions.add_version(store, settings.name, files, record)
    if manifest.test_rows is not None:
        record_opening(store, settings.name, number, manifest.test_rows.digest)
    path, judged = store.location(versions.version_folder(settings.name, number)), record["held_back"]
    return SavedModel(
        name=settings.name,
        version=number,
        path=path,
        weights_digest=record["weights_digest"],
        held_back_digest=judged and judged["weights_digest"],
    )


def _identify(content: Mapping[str, Any], ref: Ref, settings: SettingsTree, manifest: Manifest) -> dict[str, Any]:
    """What tells the weights of a checkpoint, and the network that they belong to, from others."""
    model = build_for_weights(settings.model, len(manifest.input_names), len(manifest.classes))
    model.load_state_dict(content["model"])
    return {
        "weights_digest": digest_weights(content["model"]),
        "epoch": content["epoch"],
        "probe": probe(model, len(manifest.input_names)),
        "checkpoint": ref.digest,
    }


def _render_card(
    settings: SettingsTree, manifest: Manifest, num_epochs: int, metrics: Mapping[str, Metrics], record: Mapping[str, Any]
) -> str:
    judged_on, last = list(metrics.items())[-1]
    kinds = [column.kind for column in manifest.columns]
    overview = {
        "predicts": f"{run_report.render_name(manifest.target)}, one of {len(manifest.classes)} classes",
        "from": ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) + " columns",
        "learned from": f"{run_report.render_name(settings.data.source, MAX_SOURCE_LENGTH)}, {manifest.splits['train'].rows} rows",
        "model": settings.model.factory or f"MLP {settings.model.hidden_sizes}, {settings.model.activation}",
        "trained": f"{num_epochs} epochs, seed {settings.seed}; the weights are those after epoch {record['epoch']}",
        "steps": f"{settings.optimizer.name}, learning rate {settings.optimizer.lr:g}, batches of {settings.loader.batch_size}",
        **({"trained once more": _describe_refit(manifest, judged_on, record["epoch"])} if record["refit_on_all"] else {}),
        "created": record["created"],
        "weights": f"SHA-256 `{record['weights_digest']}`",
    }
    scores = [
        (split, scored.num_rows, scored.loss, scored.accuracy, scored.roc_auc, scored.calibration_error)
        for split, scored in metrics.items()
    ]
    classes = [
        (run_report.render_name(entry.label), entry.precision, entry.recall, entry.f1, entry.support) for entry in last.classes
    ]
    warning = record["lead"] and record["lead"]["warning"]
    caution = f"\n**Caution:** {warning}.\n" if warning else ""
    return f"""# {settings.name}

{run_report.render_fields(overview)}

## Scores

{run_report.render_table(["split", "rows", "loss", "accuracy", "ROC AUC", "calibration error"], scores)}
{caution}
By class, on the rows of {judged_on}:

{run_report.render_table(["class", "precision", "recall", "F1", "rows"], classes)}

![confusion matrix](confusion.png)

![loss by epoch](loss.png)
"""


def _describe_refit(manifest: Manifest, judged_on: str, num_epochs: int) -> str:
    num_rows = sum(info.rows for info in manifest.splits.values())
    return (
        f"on all {num_rows} rows for {num_epochs} epoch{'s' * (num_epochs > 1)}, from the same start; these weights predict."
        f" The scores are those of the weights before, which had not learned from the rows of {judged_on}"
    )


def _keep(data: bytes, store: Store) -> Ref:
    return Ref(kind="checkpoint", digest=store.put(data), size=len(data))


def _partial_path(key: str) -> str:
    return f"{PARTIAL}/{key}.json"


def _read_checkpoint(ref: Ref, store: Store) -> dict[str, Any]:
    """A checkpoint's tensors and primitives, on the CPU; no code of it is run."""
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(store.get(ref.digest)), map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # which advises to run it
        path = store.location(store.object_path(ref.digest))
        raise StoreError(f"{path}: expected tensors and primitives, found more; remove it to make it anew") from error
    return content


@contextlib.contextmanager
def _naming_misfits(ref: Ref) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise StoreError(f"checkpoint {ref.digest}: expected one of this model, found another's: {error}; start anew") from error


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(_share_strings(content), buffer)
    return buffer.getvalue()


def _share_strings(content: Any) -> Any:
    """The same content with equal strings made one, as pickle writes a string that it has met before in another way."""
    if isinstance(content, dict):
        return {_share_strings(name): _share_strings(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_share_strings(value) for value in content]
    return sys.intern(content) if isinstance(content, str) else content


def _to_json(content: BaseModel | Mapping[str, Any] | Sequence[BaseModel]) -> bytes:
    def unfold(value: BaseModel) -> Any:
        return value.model_dump(mode="json")

    if isinstance(content, BaseModel):  # ten times as fast, which the manifest of thousands of columns needs
        return content.model_dump_json(indent=1).encode()
    return json.dumps(content, default=unfold, indent=1).encode()
