"""Saves the best weights of a run as the next version of its model, with their record and a card for people."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import BaseModel

from refit.code import digest_user_code
from refit.data.examples import Examples
from refit.data.inputs import Inputs
from refit.data.loaders import choose_batch_size
from refit.models.building import build_for_weights, probe
from refit.refs import Ref, SavedModel
from refit.registry import versions
from refit.registry.ledger import record_opening
from refit.reports import figures, markdown
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.training.checkpoints import digest_weights, read_checkpoint, to_bytes
from refit.training.loop import EpochLog
from refit.training.metrics import ClassificationMetrics, Metrics, NumberMetrics

FROZEN = "frozen.pt"
"""File of the weights that are not trained, which versions of one backbone share."""
SAMPLE = "sample.safetensors"
"""File of the items that the network is recognized by."""
MAX_SOURCE_LENGTH = 200
"""Most characters of a path or URL on the card."""
MAX_COLUMNS = 30
"""Most columns on the card."""


def save_version(
    checkpoint: Ref,
    settings: SettingsTree,
    manifest: Examples,
    logs: Sequence[EpochLog],
    metrics: Mapping[str, Metrics],
    store: Store,
    key: str | None = None,
    refitted: Ref | None = None,
    lead: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    neighbours: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> SavedModel:
    """Keep the weights of `checkpoint` as the next version of model `settings.name`.

    With a `key` it is saved only once: if the newest version has the key, because a run died right after it saved, that version is
    returned. With `refitted`, a checkpoint of a training on all rows, those weights are served, and the others are kept for
    comparisons.

    The version's folder has `model.pt` (a `state_dict`, without the parameters that are not trained, which are in `frozen.pt`,
    a link to the object that checkpoints refer to), `settings.json`, `manifest.json`, `metrics.json`, `log.json`,
    `version.json`, the card (`card.md` with its pictures) and, with `refitted`, `held_back.pt`. `version.json` holds name and
    number, digests (of the weights, all other files, and a factory's code), versions of packages, logits that identify the
    network, the `lead` over the majority class, what `neighbours` scored, the `tuning` by which outputs are read, and, if
    given, profiles of the `answers`. The ledger records that the test rows have judged it.

    Raises:
        StoreError: The checkpoint cannot be read, or the version cannot be written; then nothing of it is left.
    """
    batch_size = choose_batch_size(settings.loader.batch_size, manifest.splits["train"].rows)
    settings = settings.model_copy(update={"loader": settings.loader.model_copy(update={"batch_size": batch_size})})
    refs = {"model.pt": checkpoint} if refitted is None else {"model.pt": refitted, "held_back.pt": checkpoint}
    contents = {name: read_checkpoint(ref, store) for name, ref in refs.items()}
    sample = None if manifest.sample is None else store.get(manifest.sample.digest)
    inputs, _ = manifest.read_sample(sample)
    frozen = checkpoint.frozen if all(ref.frozen == checkpoint.frozen for ref in refs.values()) else None
    left_out = set() if frozen is None else {*contents["model.pt"]["frozen"]}
    known = {name: _identify(contents[name], ref, settings, manifest, inputs) for name, ref in refs.items()}
    record = known["model.pt"] | {
        "tensors": None if frozen is None else list(contents["model.pt"]["model"]),
        "refit_on_all": refitted is not None,
        "held_back": known.get("held_back.pt"),
        "lead": lead,
        **({"answers": answers} if answers else {}),
        "neighbours": neighbours,
        "tuning": tuning,
        "torch": torch.__version__,
        "code": digest_user_code(settings.model.factory),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "key": key,
    }
    judged_on = list(metrics)[-1]
    files = {
        **{
            name: to_bytes({key: tensor for key, tensor in content["model"].items() if key not in left_out})
            for name, content in contents.items()
        },
        "settings.json": _to_json(settings),
        "manifest.json": _to_json(manifest),
        **({} if sample is None else {SAMPLE: sample}),
        "metrics.json": _to_json(metrics),
        "log.json": _to_json(logs),
        **_draw(logs, metrics[judged_on], judged_on),
        "card.md": _render_card(settings, manifest, len(logs), metrics, record).encode(),
    }
    objects = {} if frozen is None else {FROZEN: frozen.digest}
    record["files"] = {**{name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, **objects}
    number = None if key is None else versions.find_saved(store, settings.name, key)
    if number is None:
        number = versions.add_version(store, settings.name, files, record, objects)
    if manifest.test_ref is not None:
        record_opening(store, settings.name, number, manifest.test_ref.digest)
    path, judged = store.location(versions.version_folder(settings.name, number)), record["held_back"]
    return SavedModel(
        name=settings.name,
        version=number,
        path=path,
        weights_digest=record["weights_digest"],
        held_back_digest=judged and judged["weights_digest"],
    )


def _draw(logs: Sequence[EpochLog], metrics: Metrics, split: str) -> dict[str, bytes]:
    """Draw the losses, and the confusion matrix of classes with the curve of a rare one, or predictions of numbers."""
    losses = [log.train_loss for log in logs], [log.val_loss for log in logs]
    if isinstance(metrics, ClassificationMetrics):
        labels = [entry.label for entry in metrics.classes]
        drawn = {
            "loss.png": figures.draw_losses(*losses),
            "confusion.png": figures.draw_confusion(metrics.confusion, labels, split),
        }
        if metrics.curve:
            drawn["precision.png"] = figures.draw_curve(metrics.curve, figures.find_share(metrics.confusion), split)
        return drawn
    drawn = {"loss.png": figures.draw_losses(*losses, None, "loss")}
    if isinstance(metrics, NumberMetrics):
        bins = [figures.Bin(**part.model_dump(exclude={"num_rows"})) for part in metrics.bins]
        drawn["predictions.png"] = figures.draw_predictions(bins, split)
    return drawn


def _identify(content: Mapping[str, Any], ref: Ref, settings: SettingsTree, manifest: Examples, sample: Inputs) -> dict[str, Any]:
    """Collect what identifies the weights of a checkpoint and their network."""
    model = build_for_weights(settings.model, manifest.signature)
    model.load_state_dict(content["model"])
    return {
        "weights_digest": digest_weights(content["model"]),
        "epoch": content["epoch"],
        "probe": probe(model, sample),
        "checkpoint": ref.digest,
        "frozen": ref.frozen and ref.frozen.digest,
    }


def _render_card(
    settings: SettingsTree, manifest: Examples, num_epochs: int, metrics: Mapping[str, Metrics], record: Mapping[str, Any]
) -> str:
    judged_on, last = list(metrics.items())[-1]
    overview = {
        "predicts": f"{markdown.render_name(manifest.signature.target.name)}, {manifest.summarize_target()}",
        "from": manifest.summarize_inputs(),
        "learned from": f"{markdown.render_name(settings.data.factory or settings.data.source, MAX_SOURCE_LENGTH)},"
        f" {manifest.splits['train'].rows} rows",
        "model": settings.model.factory
        or f"{settings.model.architecture.upper()} {settings.model.hidden_sizes}, {settings.model.activation}",
        "trained": f"{num_epochs} epochs, seed {settings.seed}; the weights are those after epoch {record['epoch']}",
        "steps": f"{settings.optimizer.name}, learning rate {settings.optimizer.lr:g}, batches of {settings.loader.batch_size}",
        **({"trained once more": _describe_refit(manifest, judged_on, record["epoch"])} if record["refit_on_all"] else {}),
        **_describe_tuning(record["tuning"], manifest),
        "created": record["created"],
        "weights": f"SHA-256 `{record['weights_digest']}`",
    }
    scores = [(split, scored.num_rows, *scored.list_figures().values()) for split, scored in metrics.items()]
    warnings = [record["lead"] and record["lead"]["warning"], record["neighbours"] and record["neighbours"]["better"]]
    caution = "".join(f"\n{markdown.render_caution(warning)}\n" for warning in warnings if warning)
    return f"""# {settings.name}

{markdown.render_fields(overview)}

## Scores

{markdown.render_table(["split", "rows", *last.list_figures()], scores)}
{_render_neighbours(record["neighbours"])}{caution}
{_render_classes(last, judged_on)}![loss by epoch](loss.png)
{_render_columns(manifest)}"""


def _describe_tuning(tuning: Mapping[str, Any] | None, manifest: Examples) -> dict[str, str]:
    """Describe how outputs are read, if that was fitted."""
    if tuning is None:
        return {}
    told = [f"probabilities at temperature {tuning['temperature']:.4g}"] if tuning["temperature"] != 1 else []
    if tuning["positive"] is not None:
        label = markdown.render_name(manifest.list_labels()[tuning["positive"]])
        told.append(f"{label} is predicted from a probability of {tuning['threshold']:.4g} on")
    return {"tuned": f"{', '.join(told)}; on validation rows"}


def _render_neighbours(neighbours: Mapping[str, Any] | None) -> str:
    """Render what other models scored on the same rows, if there are any."""
    if neighbours is None:
        return ""
    names = dict.fromkeys(name for figures in neighbours["figures"].values() for name in figures)
    rows = [(model, *(figures.get(name) for name in names)) for model, figures in neighbours["figures"].items()]
    table = markdown.render_table(["model", *names], rows)
    return f"\nOther models on the same {neighbours['num_rows']:,} rows of {neighbours['split']}:\n\n{table}\n"


def _render_classes(metrics: Metrics, judged_on: str) -> str:
    """Render the metrics by class, or the picture of predictions, if there are classes or numbers."""
    if isinstance(metrics, NumberMetrics):
        return "![predictions and residuals](predictions.png)\n\n"
    if not isinstance(metrics, ClassificationMetrics):
        return ""
    classes = [
        (markdown.render_name(entry.label), entry.precision, entry.recall, entry.f1, entry.support) for entry in metrics.classes
    ]
    curve = "\n![precision and recall](precision.png)\n" if metrics.curve else ""
    return f"""By class, on the rows of {judged_on}:

{markdown.render_table(["class", "precision", "recall", "F1", "rows"], classes)}

![confusion matrix](confusion.png)
{curve}
"""


def _render_columns(manifest: Examples) -> str:
    """The columns that were learned from, or what people should know of other data sets."""
    rows = [(markdown.render_name(name), *others) for name, *others in manifest.list_columns()]
    if not rows:
        return _render_remarks(manifest)
    more = f"\nand {len(rows) - MAX_COLUMNS} more in `manifest.json`\n" if len(rows) > MAX_COLUMNS else ""
    table = markdown.render_table(["column", "kind", "read as", "missing", "inputs"], rows[:MAX_COLUMNS])
    return f"\n## Columns\n\n{table}\n{more}"


def _render_remarks(manifest: Examples) -> str:
    if not manifest.remarks:
        return ""
    lines = "\n".join(f"- {markdown.render_name(line, MAX_SOURCE_LENGTH)}" for line in manifest.list_remarks())
    return f"\n## Remarks\n\n{lines}\n"


def _describe_refit(manifest: Examples, judged_on: str, num_epochs: int) -> str:
    num_rows = sum(info.rows for info in manifest.splits.values())
    return (
        f"on all {num_rows} rows for {num_epochs} epoch{'s' * (num_epochs > 1)}, from the same start; these weights predict."
        f" The scores are those of the weights before, which had not learned from the rows of {judged_on}"
    )


def _to_json(content: BaseModel | Mapping[str, Any] | Sequence[BaseModel]) -> bytes:
    def unfold(value: BaseModel) -> Any:
        return value.model_dump(mode="json")

    if isinstance(content, BaseModel):  # ten times as fast, which the manifest of thousands of columns needs
        return content.model_dump_json(indent=1).encode()
    return json.dumps(content, default=unfold, indent=1).encode()
