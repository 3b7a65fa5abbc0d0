import hashlib
import io
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from torch import nn

from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.data.signature import Signature
from refit.errors import StoreError
from refit.models.building import probe
from refit.refs import EpochResult, Ref
from refit.registry.ledger import load_ledger
from refit.registry.saving import save_version
from refit.registry.versions import check_version, list_versions, read_version
from refit.reports import figures
from refit.runs.garbage import find_garbage
from refit.settings import DataSettings, ModelSettings, OptimizerSettings, SettingsTree, resolve_settings
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training import checkpoints
from refit.training.checkpoints import (
    digest_weights,
    drop_partial,
    find_partial,
    load_report,
    load_state,
    load_weights,
    prune_checkpoints,
    save_partial,
    save_report,
    save_state,
    saving_partials,
)
from refit.training.evaluation import evaluate
from refit.training.loop import EpochLog, TrainingState, build_training_state, train_epoch
from refit.training.metrics import read_metrics
from refit.training.objective import Classification

CPU = torch.device("cpu")
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.01}


def build_state(optimizer: dict = SGD, hidden_sizes=(16,), num_inputs: int = 4) -> TrainingState:
    model = ModelSettings(hidden_sizes=list(hidden_sizes), dropout=0.3)
    return build_training_state(model, OptimizerSettings(**optimizer), Signature.of_numbers(num_inputs, 3), seed=0, device=CPU)


def train(state: TrainingState, num_epochs: int, lr: float = 0.05) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    loader = build_train_loader(torch.randn(50, 4, generator=generator), torch.arange(50) % 3, 8, False)
    return [loss for _ in range(num_epochs) for loss in train_epoch(state, loader, lambda _: lr, device=CPU).batch_losses]


def assert_equal(found, expected) -> None:
    """Equal structure, and tensors equal to the bit."""
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            assert_equal(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    else:
        assert found == expected


def object_file(store, ref: Ref) -> Path:
    return Path(store.root) / "objects" / ref.digest[:2] / ref.digest[2:]


@pytest.mark.parametrize("optimizer", [SGD, {"name": "adam", "lr": 0.01}, ADAMW], ids=["sgd", "adam", "adamw"])
def test_going_on_from_a_checkpoint_gives_the_bits_of_going_on(optimizer, store):
    state = build_state(optimizer)
    train(state, 2)
    ref = save_state(state, store)
    losses = train(state, 3)

    torch.rand(17)  # another process would have other generators
    loaded = build_state(optimizer)
    load_state(ref, loaded, store)
    assert (loaded.epoch, loaded.step) == (2, 14)
    assert train(loaded, 3) == losses
    assert digest_weights(loaded.model.state_dict()) == digest_weights(state.model.state_dict())
    assert_equal(loaded.optimizer.state_dict(), state.optimizer.state_dict())
    assert_equal(loaded.random_state, state.random_state)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_state_has_one_digest_whether_or_not_it_was_loaded_on_the_way(optimizer, store):
    state, loaded = build_state(optimizer), build_state(optimizer)
    train(state, 1)
    load_state(save_state(state, store), loaded, store)
    train(state, 1)
    train(loaded, 1)
    assert_equal(loaded.optimizer.state_dict(), state.optimizer.state_dict())
    assert save_state(loaded, store) == save_state(state, store)


def test_the_checkpoint_before_the_first_epoch_starts_the_same_run(store):
    state = build_state()
    ref = save_state(state, store)
    losses = train(state, 2)
    torch.manual_seed(99)
    loaded = build_state()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.zero_()
    load_state(ref, loaded, store)
    assert train(loaded, 2) == losses


def test_the_same_state_has_the_same_digest_and_training_changes_it(store):
    state = build_state()
    first = save_state(state, store)
    assert save_state(state, store) == first
    train(state, 1)
    assert save_state(state, store).digest != first.digest


def test_training_on_does_not_change_what_was_saved(store):
    state = build_state()
    train(state, 1)
    ref = save_state(state, store)
    before = digest_weights(state.model.state_dict())
    train(state, 1)
    loaded = build_state()
    load_state(ref, loaded, store)
    assert digest_weights(loaded.model.state_dict()) == before


def test_a_checkpoint_is_light_to_name(store):
    ref = save_state(build_state(), store)
    assert ref.kind == "checkpoint"
    assert ref.size == object_file(store, ref).stat().st_size
    assert Ref.model_validate_json(ref.model_dump_json()) == ref


def test_a_damaged_checkpoint_is_refused(store):
    state = build_state()
    ref = save_state(state, store)
    content = bytearray(object_file(store, ref).read_bytes())
    content[len(content) // 2] ^= 1
    object_file(store, ref).write_bytes(content)
    before = digest_weights(state.model.state_dict())
    with pytest.raises(StoreError, match="expected bytes with this digest, found others"):
        load_state(ref, state, store)
    assert digest_weights(state.model.state_dict()) == before


def test_a_missing_checkpoint_is_refused(store):
    ref = save_state(build_state(), store)
    object_file(store, ref).unlink()
    with pytest.raises(StoreError, match="expected an object of the store, found none"):
        load_state(ref, build_state(), store)


@pytest.mark.parametrize("other", [{"hidden_sizes": (17,)}, {"hidden_sizes": (16, 16)}, {"hidden_sizes": ()}, {"num_inputs": 5}])
def test_another_models_checkpoint_is_refused(store, other):
    ref = save_state(build_state(), store)
    message = f"checkpoint {ref.digest}: expected one of this model, found another's: .*; start again"
    with pytest.raises(StoreError, match=f"(?s){message}"):
        load_state(ref, build_state(**other), store)
    with pytest.raises(StoreError, match=f"(?s){message}"):
        load_weights(ref, build_state(**other).model, store)


def test_weights_alone_can_be_loaded(store):
    state = build_state(ADAMW)
    train(state, 1)
    model = load_weights(save_state(state, store), build_state(SGD).model, store)
    assert digest_weights(model.state_dict()) == digest_weights(state.model.state_dict())


def test_a_batch_normalisations_statistics_are_kept(store):
    def build() -> TrainingState:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        return TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1), Classification(()))

    state = build()
    train(state, 1)
    loaded = build()
    load_state(save_state(state, store), loaded, store)
    train(state, 2)
    train(loaded, 2)
    assert digest_weights(loaded.model.state_dict()) == digest_weights(state.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_the_digest_of_weights_differs_by_one_bit(dtype):
    weights = {"a": torch.arange(6).to(dtype).view(2, 3), "b": torch.tensor(1.0), "c": torch.zeros(0), "d": torch.tensor([True])}
    digest = digest_weights(weights)
    assert digest == digest_weights({name: tensor.clone() for name, tensor in weights.items()})
    flipped = weights["a"].clone()
    flipped.view(torch.uint8)[1, 0] ^= 1
    assert digest_weights({**weights, "a": flipped}) != digest


def test_the_digest_of_weights_covers_names_shapes_types_and_the_sign_of_zero():
    weights = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
        {"a": -torch.zeros(2, 3)},
    ]
    digests = [digest_weights(each) for each in [weights, *others]]
    assert len(set(digests)) == len(digests)


def test_the_digest_of_weights_sees_values_and_not_their_layout():
    tensor = torch.randn(4, 3)
    assert digest_weights({"a": tensor.t()}) == digest_weights({"a": tensor.t().contiguous()})
    assert digest_weights({"a": tensor[::2]}) == digest_weights({"a": tensor[::2].clone()})
    assert digest_weights({"a": nn.Parameter(tensor)}) == digest_weights({"a": tensor})


PARTIAL_FILE = "partial/key.json"


def test_a_checkpoint_inside_an_epoch_holds_how_far_the_epoch_has_come(store):
    state, loaded = build_state(), build_state()
    loader = build_train_loader(torch.randn(50, 4), torch.arange(50) % 3, 8, False)
    assert train_epoch(state, loader, lambda _: 0.05, device=CPU, should_pause=lambda: True) is None
    load_state(save_state(state, store), loaded, store)
    assert loaded.num_batches == 1
    assert_equal(vars(loaded.partial), vars(state.partial))
    load_state(save_state(build_state(), store), loaded, store)
    assert loaded.partial is None, "of the checkpoint that it was loaded from last"


def test_a_partial_checkpoint_replaces_the_one_before_and_is_gone_with_the_epoch(store):
    assert find_partial("key", store) is None
    for data in (b"first", b"second", b"second"):
        save_partial("key", data, store)
        ref = find_partial("key", store)
        assert (ref.kind, ref.size, store.get(ref.digest)) == ("checkpoint", len(data), data)
        assert store.list_files(["objects", "partial"]).keys() == {store.object_path(ref.digest), PARTIAL_FILE}
    assert find_partial("other", store) is None
    for _ in range(2):
        drop_partial("key", store)
        assert store.list_files(["objects", "partial"]) == {}


def test_a_partial_checkpoint_that_is_damaged_or_gone_is_none_and_can_be_kept_again(store):
    save_partial("key", b"abc", store)
    ref = find_partial("key", store)
    store.write(store.object_path(ref.digest), b"abd")
    assert find_partial("key", store) is None
    save_partial("key", b"abc", store)
    assert find_partial("key", store) == ref
    store.remove(store.object_path(ref.digest))
    assert find_partial("key", store) is None
    store.write(PARTIAL_FILE, b"{")
    assert find_partial("key", store) is None
    drop_partial("key", store)
    assert not store.exists(PARTIAL_FILE)


def test_partial_checkpoints_are_kept_as_they_were_while_training_goes_on(store):
    state = build_state()
    with saving_partials("key", store) as save:
        for epoch in (1, 2):
            state.epoch = epoch
            save(state)
            state.epoch = 99
    loaded = build_state()
    load_state(find_partial("key", store), loaded, store)
    assert loaded.epoch == 2
    assert len(store.list_files(["objects"])) == 1


@pytest.mark.parametrize("num_saves", [1, 2])
def test_a_partial_checkpoint_that_could_not_be_kept_is_an_error_at_the_next_one_or_at_the_end(store, monkeypatch, num_saves):
    monkeypatch.setattr(store, "put", lambda _: 1 / 0)
    saved = []

    def save_all() -> None:
        with saving_partials("key", store) as save:
            for number in range(num_saves):
                save(build_state())
                saved.append(number)

    with pytest.raises(ZeroDivisionError):
        save_all()
    assert saved == [0]


def test_a_state_is_kept_before_the_next_is_copied(store, monkeypatch):
    """So that there is one copy at a time, and the newest is the one that stays."""
    done = []
    monkeypatch.setattr(checkpoints, "save_partial", lambda *_: time.sleep(0.05) or done.append(1))
    with saving_partials("key", store) as save:
        for number in range(3):
            save(build_state())
            assert len(done) >= number


def make_result(store, epoch: int) -> EpochResult:
    log = make_log()
    ref = Ref(kind="checkpoint", digest=store.put(f"{epoch}".encode()), size=1)
    figures = {"train_loss": 0.5, "val_loss": None, "val_score": None}
    return EpochResult(epoch=epoch, checkpoint=ref, log=save_report("log", log, store), **figures)


def test_stale_checkpoints_go_and_those_that_are_still_needed_stay(store):
    epochs = [make_result(store, epoch) for epoch in (1, 2, 3)]
    prune_checkpoints(epochs[:2], epochs[1:], store)
    assert [store.is_whole(epoch.checkpoint.digest) for epoch in epochs] == [False, True, True]
    assert [store.is_whole(epoch.log.digest) for epoch in epochs] == [True] * 3


def test_no_code_of_a_checkpoint_is_run(store, tmp_path):
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "checkpoint")
    data = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(StoreError, match="expected tensors and primitives, found"):
        load_weights(Ref(kind="checkpoint", digest=store.put(data), size=len(data)), build_state().model, store)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """What makes a folder when it is loaded as a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def make_log(**changes) -> EpochLog:
    known = {"epoch": 1, "batch_losses": [0.1 + 0.2, 1e-45, 0.3], "train_loss": 1 / 3, "val_loss": None, "val_score": None}
    return EpochLog(**{**known, "lr": 0.1, "grad_norm": 2.0, "rows_per_second": 3.0, "seconds": 4.0, **changes})


def test_a_report_comes_back_to_the_bit(store):
    log = make_log(val_loss=math.pi, val_score=0.1)
    ref = save_report("log", log, store)
    assert (ref.kind, ref.size) == ("log", object_file(store, ref).stat().st_size)
    assert load_report(ref, EpochLog, store) == log


@pytest.fixture
def saved(store):
    """The notebook's model, trained for one epoch and saved."""
    settings = SettingsTree(**resolve_settings({"name": "toy"})[0].model_dump())
    manifest = load_manifest(build_dataset(settings.data, 0, store), store)
    state = build_training_state(settings.model, settings.optimizer, Signature.of_numbers(2, 2), seed=0, device=CPU)
    log = train_epoch(state, build_train_loader(*manifest.load_split("train", store), 2, True), lambda _: 1.0, device=CPU)
    metrics = {
        split: evaluate(
            state.model, build_evaluation_loader(*manifest.load_split(split, store)), Classification((*["0", "1"],)), CPU, "fp32"
        )
        for split in manifest.splits
    }
    ref = save_state(state, store)
    return save_version(ref, settings, manifest, [log], metrics, store), state, manifest, log, metrics, ref, settings


@pytest.mark.pictures
def test_a_saved_version_holds_all_that_it_needs(saved, store):
    model, state, manifest, log, metrics, ref, settings = saved
    assert (model.name, model.version) == ("toy", 1)
    folder = Path(model.path)
    assert folder == Path(store.root) / "models/toy/v1"
    assert {path.name for path in folder.iterdir()} == {
        "model.pt",
        "settings.json",
        "manifest.json",
        "metrics.json",
        "log.json",
        "version.json",
        "loss.png",
        "confusion.png",
        "card.md",
    }
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert list(weights) == list(state.model.state_dict())
    assert digest_weights(weights) == model.weights_digest == digest_weights(state.model.state_dict())
    assert SettingsTree.model_validate_json((folder / "settings.json").read_text()) == settings
    assert type(manifest).model_validate_json((folder / "manifest.json").read_text()) == manifest
    assert [EpochLog(**entry) for entry in json.loads((folder / "log.json").read_text())] == [log]
    read = json.loads((folder / "metrics.json").read_text())
    assert {split: read_metrics(scores) for split, scores in read.items()} == metrics
    record = json.loads((folder / "version.json").read_text())
    assert (record["epoch"], record["checkpoint"]) == (1, ref.digest)
    assert (record["weights_digest"], record["torch"]) == (model.weights_digest, torch.__version__)
    assert record["probe"] == probe(state.model.eval(), manifest.read_sample(None)[0])
    assert (record["code"], record["key"]) == ({}, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["created"])
    assert record["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != "version.json"
    }
    for picture in ("loss.png", "confusion.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_card_tells_the_classes_on_the_last_split(saved, store):
    _, _, manifest, log, metrics, ref, settings = saved
    model = save_version(ref, settings, manifest, [log], {"train": metrics["train"], "val": metrics["train"], **metrics}, store)
    assert "By class, on the rows of test:" in (Path(model.path) / "card.md").read_text()


def test_the_card_says_what_the_model_is_and_how_good(saved):
    model, _, _, _, metrics, _, _ = saved
    lines = (Path(model.path) / "card.md").read_text().splitlines()
    created = json.loads((Path(model.path) / "version.json").read_text())["created"]
    assert lines[:10] == [
        "# toy",
        "",
        "- **predicts**: `y`, one of 2 classes",
        "- **from**: 2 numeric columns",
        "- **learned from**: `notebook`, 5 rows",
        "- **model**: MLP [16, 16], relu",
        "- **trained**: 1 epochs, seed 0; the weights are those after epoch 1",
        "- **steps**: sgd, learning rate 1, batches of 2",
        f"- **created**: {created}",
        f"- **weights**: SHA-256 `{model.weights_digest}`",
    ]
    assert "| split | rows | accuracy | loss | ROC AUC | calibration error |" in lines
    for split, found in metrics.items():
        figures = f"{found.accuracy:.4f} | {found.loss:.4f} | {found.roc_auc:.4f} | {found.calibration_error:.4f}"
        assert f"| {split} | {found.num_rows} | {figures} |" in lines
    assert lines[lines.index("By class, on the rows of test:") :][2:-5] == [
        "| class | precision | recall | F1 | rows |",
        "| --- | --- | --- | --- | --- |",
        "| `0` | 1.0000 | 1.0000 | 1.0000 | 1 |",
        "| `1` | 1.0000 | 1.0000 | 1.0000 | 1 |",
        "",
        "![confusion matrix](confusion.png)",
        "",
        "![loss by epoch](loss.png)",
        "",
        "## Columns",
    ]
    assert lines[-4:-2] == ["| column | kind | read as | missing | inputs |", "| --- | --- | --- | --- | --- |"]


def test_pictures_are_of_the_losses_and_of_the_last_split_s_confusion(saved, store, monkeypatch):
    _, _, manifest, log, metrics, ref, settings = saved
    drawn = []
    monkeypatch.setattr(figures, "draw_losses", lambda *given: drawn.append(given) or b"losses")
    monkeypatch.setattr(figures, "draw_confusion", lambda *given: drawn.append(given) or b"confusion")
    folder = Path(save_version(ref, settings, manifest, [log], metrics, store).path)
    assert [(folder / name).read_bytes() for name in ("loss.png", "confusion.png")] == [b"losses", b"confusion"]
    assert drawn == [([log.train_loss], [None]), (metrics["test"].confusion, ["0", "1"], "test")]


def test_saving_records_that_the_test_rows_have_judged_the_version(saved, store):
    model, _, manifest, log, metrics, ref, settings = saved
    (entry,) = load_ledger(store, "toy")
    assert (entry.action, entry.after, entry.details) == ("open", model.version, {"test_rows": manifest.test_rows.digest})
    without = manifest.model_copy(update={"test_rows": None})
    assert save_version(ref, settings, without, [log], metrics, store).version == 2
    assert load_ledger(store, "toy") == [entry]


def test_the_files_of_a_version_can_be_read_by_people(saved):
    for name in ("settings", "manifest", "metrics", "log", "version"):
        assert len((Path(saved[0].path) / f"{name}.json").read_text().splitlines()) > 10


@pytest.fixture
def refitted(saved, store):
    """The same version with weights that were trained once more, and the two checkpoints: of those served, of those judged."""
    _, state, manifest, log, metrics, judged, settings = saved
    state.model.load_state_dict({name: 2 * weights for name, weights in state.model.state_dict().items()})
    served = save_state(state, store)
    return save_version(judged, settings, manifest, [log], metrics, store, refitted=served), served, judged


def test_of_a_model_trained_on_all_rows_the_weights_that_its_scores_are_of_are_saved_too(saved, refitted, store):
    first, (model, served, judged), folder = saved[0], refitted, Path(refitted[0].path)
    assert digest_weights(torch.load(folder / "model.pt", weights_only=True)) == model.weights_digest
    assert digest_weights(torch.load(folder / "held_back.pt", weights_only=True)) == model.held_back_digest
    assert model.held_back_digest == first.weights_digest != model.weights_digest
    assert (first.held_back_digest, read_version(store, "toy", 2)) == (None, model)
    record = json.loads((folder / "version.json").read_text())
    assert (record["refit_on_all"], record["checkpoint"], record["held_back"]["checkpoint"]) == (True, served.digest, judged.digest)
    assert record["held_back"]["probe"] != record["probe"]
    (folder / "held_back.pt").write_bytes(b"")
    with pytest.raises(StoreError, match=r"held_back\.pt: expected bytes with the digest in version\.json, found others"):
        check_version(store, "toy", 2)


def test_the_card_of_a_model_trained_on_all_rows_says_whose_scores_it_has(saved, refitted):
    card = (Path(refitted[0].path) / "card.md").read_text()
    assert (
        "**trained once more**: on all 7 rows for 1 epoch, from the same start; these weights predict."
        " The scores are those of the weights before, which had not learned from the rows of test\n"
    ) in card
    assert "trained once more" not in (Path(saved[0].path) / "card.md").read_text()


def test_a_checkpoint_of_another_optimizer_is_refused(store):
    def build() -> TrainingState:
        return build_training_state(ModelSettings(), OptimizerSettings(), Signature.of_numbers(2, 2), seed=0, device=CPU)

    state = build()
    state.optimizer = torch.optim.SGD(list(state.model.parameters())[:1])
    ref = save_state(state, store)
    with pytest.raises(StoreError, match=f"checkpoint {ref.digest}: expected one of this model, found another's: .*; start again"):
        load_state(ref, build(), store)


def test_the_card_counts_epochs_and_shortens_a_long_source(saved, store):
    _, state, manifest, log, metrics, judged, settings = saved
    state.epoch = 2
    settings = settings.model_copy(update={"data": DataSettings(source="n" * 300)})
    model = save_version(judged, settings, manifest, [log], metrics, store, refitted=save_state(state, store))
    card = (Path(model.path) / "card.md").read_text()
    assert "on all 7 rows for 2 epochs, from the same start" in card
    assert "n" * 190 in card
    assert "n" * 201 not in card


def test_both_checkpoints_of_a_version_are_no_garbage(saved, refitted, store):
    _, served, judged = refitted
    shutil.rmtree(saved[0].path)  # which has one of them, too
    stray = store.put(b"stray")
    for path in Path(store.root, "objects").rglob("*"):
        os.utime(path, (0, 0))
    garbage = find_garbage(store)
    assert store.object_path(stray) in garbage
    assert not {store.object_path(ref.digest) for ref in (served, judged)} & garbage.keys()


def test_the_card_of_hostile_names_holds_no_html_no_pictures_of_others_and_no_control_characters(saved, store):
    _, _, manifest, log, metrics, ref, settings = saved
    name = "<img src=http://evil.example/1.png>![](http://evil.example/2.png)\x1b[2J|"
    metrics = {
        split: scored.model_copy(update={"classes": [entry.model_copy(update={"label": name}) for entry in scored.classes]})
        for split, scored in metrics.items()
    }
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"source": name})})
    target = manifest.signature.target.model_copy(update={"name": name})
    manifest = manifest.model_copy(update={"signature": manifest.signature.model_copy(update={"target": target})})
    model = save_version(ref, settings, manifest, [log], metrics, store)
    card = (Path(model.path) / "card.md").read_text()
    assert card.count("evil.example/1.png") == 4
    assert "\x1b" not in card
    tokens = [child for token in MarkdownIt("commonmark").enable("table").parse(card) for child in token.children or []]
    assert {str(token.attrs["src"]) for token in tokens if token.type == "image"} == {"loss.png", "confusion.png"}
    assert not {token.type for token in tokens} & {"html_inline", "link_open"}


def test_what_is_saved_again_is_the_next_version(saved, store):
    _, _, manifest, log, metrics, ref, settings = saved
    again = save_version(ref, settings, manifest, [log], metrics, store)
    assert again.version == 2
    assert Path(again.path).name == "v2"


def test_what_is_saved_again_under_its_key_is_the_same_version_while_that_is_the_newest_and_whole(saved, store):
    _, _, manifest, log, metrics, ref, settings = saved

    def save(key: str) -> int:
        return save_version(ref, settings, manifest, [log], metrics, store, key).version

    assert [save(key) for key in ("a", "a", "b", "a")] == [2, 2, 3, 4]
    Path(store.root, "models/toy/v4/card.md").write_text("damaged")
    assert save("a") == 5


def test_a_version_of_a_damaged_checkpoint_is_not_saved(saved, store):
    _, _, manifest, log, metrics, ref, settings = saved
    object_file(store, ref).write_bytes(b"")
    with pytest.raises(StoreError):
        save_version(ref, settings, manifest, [log], metrics, store)
    assert list_versions(store, "toy") == [1]


def test_a_checkpoint_of_more_than_tensors_is_refused_without_advice_to_run_it(store):
    buffer = io.BytesIO()
    torch.save({"model": Path("x")}, buffer)
    ref = Ref(kind="checkpoint", digest=store.put(buffer.getvalue()), size=len(buffer.getvalue()))
    with pytest.raises(StoreError, match=rf"{ref.digest[2:]}: expected tensors and .*, found other objects; remove") as refused:
        load_weights(ref, torch.nn.Linear(1, 1), store)
    assert "weights_only" not in str(refused.value)
