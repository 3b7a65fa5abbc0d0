"""`refit.train`: a whole run without Prefect, which can be interrupted anywhere."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load as load_tensors
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import refit
from refit.data.loaders import ShuffledLoader
from refit.data.signature import Signature
from refit.errors import SettingsError, StoreError, TrainingError
from refit.models.mlp import build_mlp
from refit.refs import TrainingResult
from refit.registry.ledger import entry_path
from refit.registry.versions import list_versions
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.training import trainer
from refit.training.checkpoints import digest_weights

NUM_EPOCHS = 5
NOTEBOOK = """
import os, signal, sys
import refit
from refit.settings import SettingsTree
from refit.training import checkpoints

settings, point = SettingsTree.model_validate_json(sys.argv[1]), sys.argv[2]
save_partial, num_partials = checkpoints.save_partial, 0

def save_and_die(*given):
    global num_partials
    save_partial(*given)
    num_partials += 1
    if num_partials == 9:
        os.kill(os.getpid(), signal.SIGKILL)

def report(line):
    if point == "between epochs" and line.startswith("epoch 2/"):
        os.kill(os.getpid(), signal.SIGKILL)

if point == "inside an epoch":
    checkpoints.save_partial = save_and_die
print(refit.train(settings, report=report).model.weights_digest, "prefect" in sys.modules)
"""


@pytest.fixture
def given() -> dict:
    """Settings for 200 rows of three overlapping classes in `rows.csv`."""
    generator, y = torch.Generator().manual_seed(5), torch.arange(200) % 3
    x = torch.randn(200, 4, generator=generator, dtype=torch.float64) * 2 + y[:, None]
    pl.DataFrame({**{f"x{i}": x[:, i].tolist() for i in range(4)}, "y": y.tolist()}).write_csv("rows.csv")
    return {
        "preset": "plain",
        "seed": 7,
        "data": {"source": "rows.csv", "val": 0.2, "test": 0.2},
        "loader": {"batch_size": 9, "drop_last": False},
        "model": {"hidden_sizes": [16], "activation": "tanh", "dropout": 0.25},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "training": {"num_epochs": NUM_EPOCHS, "patience": None},
        "checkpoint": {"every_seconds": 1e-9},
    }


def train(given: dict, report: Callable[[str], object] = lambda _: None, **options) -> TrainingResult:
    forget()
    return refit.train(SettingsTree.model_validate(given), report=report, **options)


def forget() -> None:
    """As another process would find it."""
    trainer._live.clear()
    trainer._open_loaders.cache_clear()


def read(result: TrainingResult, name: str):
    return json.loads((Path(result.model.path) / f"{name}.json").read_text())


def build_plainly() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.25), nn.Linear(16, 3))


def train_plainly(
    result: TrainingResult, splits: tuple[str, ...] = ("train",), build: Callable[[], nn.Module] = build_plainly
) -> tuple[list[float], list[float], list[str]]:
    """What a notebook does with the rows of a run, and nothing of ours: batch losses; after each epoch loss and weights."""
    rows = {}
    for split, info in read(result, "manifest")["splits"].items():
        path = Path(result.model.path).parents[2] / "objects" / info["digest"][:2] / info["digest"][2:]
        rows[split] = tuple(load_tensors(path.read_bytes())[name] for name in "xy")
    torch.manual_seed(7)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parts = zip(*(rows[split] for split in splits), strict=True)
    loader = DataLoader(TensorDataset(*map(torch.cat, parts)), batch_size=9, shuffle=True)
    losses, val_losses, weights = [], [], []
    for _ in range(NUM_EPOCHS):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            val_losses.append(nn.functional.cross_entropy(model(rows["val"][0]), rows["val"][1]).item())
        weights.append(digest_weights(model.state_dict()))
    return losses, val_losses, weights


def assert_plain(result: TrainingResult, build: Callable[[], nn.Module] = build_plainly) -> None:
    losses, val_losses, weights = train_plainly(result, build=build)
    log = read(result, "log")
    assert [loss for epoch in log for loss in epoch["batch_losses"]] == losses
    assert [epoch["val_loss"] for epoch in log] == val_losses
    assert result.best_epoch == 1 + val_losses.index(min(val_losses))
    assert result.model.weights_digest == weights[result.best_epoch - 1]
    assert digest_weights(torch.load(Path(result.model.path) / "model.pt", weights_only=True)) == result.model.weights_digest


def test_a_run_gives_the_bits_of_a_plain_loop_and_says_what_it_does(given):
    lines = []
    result = train(given, lines.append)
    assert_plain(result)
    assert result.is_new
    assert set(result.seconds) == {"build_dataset", "train", "evaluate", "save_version"}
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch")] == [f"epoch {n}/5" for n in range(1, 6)]
    assert lines[0].startswith("device: cpu")
    assert lines[-1] == f"saved model@v1 in {result.model.path}"
    assert result.model.path == str(Path("refit-store/models/model/v1").resolve())


def test_texts_are_learned_with_the_bits_of_a_plain_loop(given):
    pick = random.Random(0)
    words = {"spam": ["win", "cash", "prize", "free", "now"], "ham": ["lunch", "see", "you", "later", "now"]}
    labels = ["spam", "ham"] * 150
    frame = {"note": [" ".join(pick.choices(words[label], k=7)) for label in labels], "x0": [*range(300)], "y": labels}
    pl.DataFrame(frame).write_csv("rows.csv")
    result = train(given | {"data": {**given["data"], "features": ["note", "x0"]}})
    manifest, settings = read(result, "manifest"), SettingsTree.model_validate(given).model
    assert [column["kind"] for column in manifest["columns"]] == ["text", "numeric"]
    assert_plain(result, build=lambda: build_mlp(Signature.model_validate(manifest["signature"]), settings))
    assert read(result, "metrics")["test"]["accuracy"] > 0.95


def test_the_same_run_is_not_done_again(given):
    first, lines = train(given), []
    second = train(given, lines.append)
    assert (second.model, second.is_new) == (first.model, False)
    assert lines[1:] == ["epochs 1 to 5 of 5: done before", f"nothing has changed since {first.model.reference}"]


def test_settings_may_be_dictionaries_whose_mistakes_are_told_like_those_of_the_command_line():
    with pytest.raises(SettingsError, match=r"optimizer\.learning_rate .*: unknown setting; did you mean `optimizer\.lr`\?"):
        refit.train({"optimizer": {"learning_rate": 0.1}})
    lines = []
    assert refit.train({"name": "toy"}, report=lines.append).model.reference == "toy@v1"


def test_done_anew_it_gives_the_same_bits_as_another_version(given):
    first, second = train(given), train(given, refresh=True)
    assert (first.model.version, second.model.version, second.is_new) == (1, 2, True)
    assert first.model.weights_digest == second.model.weights_digest
    assert read(first, "metrics") == read(second, "metrics")
    assert_plain(second)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(given):
    train(given | {"training": {"num_epochs": 2, "patience": None}})
    lines = []
    result = train(given, lines.append)
    assert lines[1] == "epochs 1 to 2 of 5: done before"
    assert_plain(result)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["inside an epoch", "between epochs"])
def test_a_notebook_that_is_killed_goes_on_with_the_same_bits_and_never_imports_prefect(given, point):
    def run(point: str) -> subprocess.CompletedProcess[str]:
        settings = SettingsTree.model_validate(given).model_dump_json(exclude_unset=True)
        return subprocess.run([sys.executable, "-c", NOTEBOOK, settings, point], capture_output=True, text=True)

    killed = run(point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list_versions(Store("refit-store"), "model") == []
    gone_on = run("nowhere")
    assert gone_on.returncode == 0, gone_on.stderr
    result = train(given)
    assert not result.is_new
    assert gone_on.stdout == f"{result.model.weights_digest} False\n"
    assert_plain(result)


@pytest.mark.parametrize("num_batches", [1, 5, 14, 15], ids=lambda number: f"batch {number} of 14 an epoch")
@pytest.mark.parametrize("kind", ["interrupt", "exception"])
def test_a_run_that_is_interrupted_or_whose_loader_fails_goes_on_with_the_same_bits(given, kind, num_batches, monkeypatch):
    gather, done = ShuffledLoader.gather, []

    def disturb(loader, rows):
        done.append(rows)
        if len(done) == num_batches:
            if kind == "exception":
                raise OSError("the disk is away")
            signal.raise_signal(signal.SIGINT)
        return gather(loader, rows)

    monkeypatch.setattr(ShuffledLoader, "gather", disturb)
    with pytest.raises(KeyboardInterrupt if kind == "interrupt" else OSError):
        train(given)
    result = refit.train(SettingsTree.model_validate(given), report=lambda _: None)  # in the same process, as in a notebook
    assert_plain(result)
    assert len(done) == 14 * NUM_EPOCHS + (kind == "exception")


def test_an_interrupt_between_epochs_goes_on_with_the_same_bits(given):
    def interrupt(line: str) -> None:
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, interrupt)
    lines = []
    assert_plain(refit.train(SettingsTree.model_validate(given), report=lines.append))
    assert lines[1] == "epochs 1 to 3 of 5: done before"


def test_a_last_fit_on_all_rows_gives_the_bits_of_a_plain_loop_over_them_also_when_it_is_interrupted(given):
    given["training"]["refit_on_all"] = True

    def interrupt(line: str) -> None:
        if line.startswith("on all rows, epoch 1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(given, interrupt)
    result = train(given)
    _, val_losses, weights = train_plainly(result)
    _, _, weights_on_all = train_plainly(result, ("train", "val", "test"))
    best = val_losses.index(min(val_losses))
    assert result.best_epoch == best + 1
    served, held_back = (torch.load(Path(result.model.path) / name, weights_only=True) for name in ("model.pt", "held_back.pt"))
    assert (digest_weights(served), digest_weights(held_back)) == (weights_on_all[best], weights[best])


def test_it_stops_early_and_a_longer_patience_goes_on(given):
    given |= {"optimizer": {"name": "sgd", "lr": 3.0}, "training": {"num_epochs": 40, "patience": 2}}
    stopped = train(given)
    val_losses = [epoch["val_loss"] for epoch in read(stopped, "log")]
    assert stopped.best_epoch == 1 + val_losses.index(min(val_losses)) == len(val_losses) - 2 < 38
    given["training"]["patience"] = 4
    lines = []
    longer = train(given, lines.append)
    assert f"epochs 1 to {len(val_losses)} of 40: done before" in lines
    assert [epoch["val_loss"] for epoch in read(longer, "log")][: len(val_losses)] == val_losses


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink], ids=["damaged", "gone"])
def test_a_lost_last_checkpoint_is_made_again_from_the_one_before(given, damage):
    train(given | {"training": {"num_epochs": 3, "patience": None}})
    damage(find_checkpoint(3))
    lines = []
    result = train(given, lines.append)
    assert any("epoch 3 is damaged or gone; going on from that of epoch 2" in line for line in lines)
    assert "epochs 1 to 2 of 5: done before" in lines
    assert_plain(result)


def test_a_lost_best_checkpoint_is_made_again_when_its_version_is_gone_too(given):
    first = train(given)
    assert first.best_epoch < NUM_EPOCHS
    find_checkpoint(first.best_epoch).unlink()
    (Path(first.model.path) / "model.pt").write_bytes(b"")
    second = train(given)
    assert second.is_new
    assert_plain(second)


def test_a_best_checkpoint_that_is_lost_each_time_is_an_error(given, monkeypatch):
    add = trainer.Fit.add

    def lose(fit, result):
        add(fit, result)
        Path("refit-store", "objects", result.checkpoint.digest[:2], result.checkpoint.digest[2:]).unlink(missing_ok=True)

    monkeypatch.setattr(trainer.Fit, "add", lose)
    with pytest.raises(StoreError, match=r"expected it to be whole after epoch \d, found it damaged or gone 3 times; check"):
        train(given)


def test_it_stops_when_its_time_is_over_and_the_same_call_goes_on(given):
    given["training"]["timeout_seconds"] = 1e-9
    for batch_size, num_done in ((9, 0), (500, 1)):  # inside an epoch and, where it is one batch, between two
        lines = []
        with pytest.raises(TrainingError, match=r"epoch 1, batch 1: training\.timeout_seconds have passed"):
            train(given | {"loader": {"batch_size": batch_size}}, lines.append)
        assert len([line for line in lines if line.startswith("epoch ")]) == num_done
    given["training"]["timeout_seconds"] = None
    assert_plain(train(given))


def test_an_unknown_architecture_is_refused_before_the_table_is_read(given):
    Path("rows.csv").write_text("x0,y\n1,2\n")
    with pytest.raises(SettingsError, match=r"model\.architecture: expected one of mlp\b.*, found 'rnn'"):
        train(given | {"model": {"architecture": "rnn"}})


def test_a_damaged_ledger_is_told_before_anything_is_trained(given):
    path = Path("refit-store", entry_path("model", 1))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    lines = []
    with pytest.raises(StoreError, match="ledger"):
        train(given, lines.append)
    assert [line for line in lines if line.startswith("epoch")] == []


def find_checkpoint(epoch: int) -> Path:
    """Where the checkpoint after an epoch of the only recipe is."""
    for path in Path("refit-store", "results").glob("*.json"):
        content = json.loads(path.read_text())["data"]
        if content.get("epoch") == epoch:
            digest = content["checkpoint"]["digest"]
            return Path("refit-store", "objects", digest[:2], digest[2:])
    raise AssertionError(f"no result of epoch {epoch}")
