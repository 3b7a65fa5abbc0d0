import contextlib
import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import torch
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

import refit.data.loaders
import refit.flows.training
import refit.reports.run_report
import refit.tables.dataset
import refit.tasks.loaders
import refit.tasks.training
import refit.training.checkpoints
import refit.training.evaluation
import refit.training.loop
from refit.errors import DataError, RefitError, SettingsError, StoreError, TrainingError
from refit.flows.training import train
from refit.refs import EpochResult, TrainingResult
from refit.registry import saving
from refit.registry.ledger import append_entry, entry_path
from refit.registry.versions import list_versions
from refit.reports.markdown import render_caution
from refit.runs.recipes import forecast
from refit.runs.results import load_result
from refit.runtime.devices import NUM_THREADS
from refit.serving.saved_model import Model, load_model
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.tables.table_examples import load_manifest
from refit.training import trainer
from refit.training.checkpoints import digest_weights
from refit.training.metrics import FIGURES
from refit.training.optimizers import build_learning_rate

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(given: dict) -> TrainingResult:
    return train(SettingsTree.model_validate(given))


def read(result: TrainingResult, name: str):
    return json.loads((Path(result.model.path) / f"{name}.json").read_text())


def write_table(path: Path, num_rows: int = 60, noise: float = 1.0, changed: dict[int, float] | None = None) -> str:
    """Rows in order of time, three classes in turn; `changed` gives `x0` of some rows."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(num_rows) % 3
    x = torch.randn(num_rows, 4, generator=generator, dtype=torch.float64) * noise + y[:, None]
    for row, value in (changed or {}).items():
        x[row, 0] = value
    columns = {f"x{i}": x[:, i].tolist() for i in range(4)}
    pl.DataFrame({"time": list(range(num_rows)), **columns, "y": y.tolist()}).write_csv(path)
    return str(path)


def by_time(source: str, **training) -> dict:
    """The 60 rows of `write_table`: 0 to 35 for training, 36 to 47 for validation, 48 to 59 for the test."""
    return {
        "preset": "plain",
        "data": {"source": source, "split": "time", "time_column": "time", "val": 0.2, "test": 0.2},
        "loader": {"batch_size": 8, "drop_last": False},
        "model": {"hidden_sizes": [16], "dropout": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        "training": {"patience": None, **training},
    }


@pytest.mark.slow
def test_a_table_of_which_only_source_and_target_are_said_is_learned_and_the_version_says_by_which_settings():
    source = str(Path(__file__).parents[2] / "examples/penguins.csv")
    result = run({"data": {"source": source, "target": "species"}, "training": {"epochs_per_task": 100}})
    log, metrics, settings = read(result, "log"), read(result, "metrics"), read(result, "settings")
    assert metrics["test"]["accuracy"] > 0.9
    assert metrics["train"]["num_rows"] > 32 * (len(log[0]["batch_losses"]) - 1), "no row is left out"
    assert {name: settings["loader"][name] for name in ("batch_size", "drop_last")} == {"batch_size": 32, "drop_last": False}
    assert len(log) == min(200, result.best_epoch + 32)
    card = (Path(result.model.path) / "card.md").read_text()
    assert "adamw, learning rate 0.002, batches of 32" in card
    assert "TABM [128, 128], relu" in card
    assert "## Columns\n\n| column | kind | read as | missing | inputs |" in card
    assert read(result, "version")["lead"]["warning"] is None
    assert "Caution" not in card


def test_a_model_that_has_learned_nothing_is_said_so_in_log_record_and_card(tmp_path, caplog):
    generator = torch.Generator().manual_seed(5)
    noise = {f"x{i}": torch.randn(200, generator=generator).tolist() for i in range(3)}
    pl.DataFrame({**noise, "y": [number % 2 for number in range(200)]}).write_csv(tmp_path / "table.csv")
    result = run({"data": {"source": str(tmp_path / "table.csv")}, "training": {"num_epochs": 2}})
    warning = read(result, "version")["lead"]["warning"]
    assert re.match(
        r"the model does not beat the majority class( by more than noise)?: accuracy 0\.\d{4} on \d+ test rows", warning
    )
    assert warning in caplog.text
    assert render_caution(warning) in (Path(result.model.path) / "card.md").read_text()


@dataclass
class Plain:
    """What the plain loop gives after each epoch."""

    batch_losses: list[list[float]]
    val_losses: list[float]
    weights: list[str]

    def find_best(self, num_epochs: int) -> int:
        """The epoch with the lowest validation loss."""
        losses = self.val_losses[:num_epochs]
        return 1 + losses.index(min(losses))


def train_plainly(given: dict, num_epochs: int, trained_on: tuple[str, ...] = ("train",)) -> Plain:
    """The oracle: all epochs in one go, undisturbed, without Prefect, keys or checkpoints."""
    settings, _ = resolve_settings(given)
    store, cpu = Store("plain-store"), torch.device("cpu")
    manifest = load_manifest(refit.tables.dataset.build_dataset(settings.data, settings.seed, store), store)
    rows = {split: manifest.load_split(split, store) for split in ("train", "val", "test")}
    x, y = map(torch.cat, zip(*(rows[split] for split in trained_on), strict=True))
    loader = refit.data.loaders.build_train_loader(x, y, settings.loader.batch_size, settings.loader.drop_last)
    val_loader = refit.data.loaders.build_evaluation_loader(*rows["val"])
    signature = manifest.signature
    state = refit.training.loop.build_training_state(settings.model, settings.optimizer, signature, seed=settings.seed, device=cpu)
    rate = build_learning_rate(settings.optimizer, len(loader) * num_epochs)
    plain = Plain([], [], [])
    for _ in range(num_epochs):
        log = refit.training.loop.train_epoch(state, loader, rate, device=cpu, val_loader=val_loader)
        plain.batch_losses.append(log.batch_losses)
        plain.val_losses.append(log.val_loss)
        plain.weights.append(digest_weights(state.model.state_dict()))
    return plain


def assert_plain(result: TrainingResult, plain: Plain) -> None:
    """The bits of the plain loop, and of its epochs the one with the lowest validation loss."""
    log = read(result, "log")
    assert [epoch["batch_losses"] for epoch in log] == plain.batch_losses[: len(log)]
    assert [epoch["val_loss"] for epoch in log] == plain.val_losses[: len(log)]
    assert result.best_epoch == plain.find_best(len(log))
    assert result.model.weights_digest == plain.weights[result.best_epoch - 1]
    assert digest_weights(torch.load(Path(result.model.path) / "model.pt", weights_only=True)) == result.model.weights_digest


def forget() -> None:
    """As another process would find it."""
    trainer._live.clear()
    trainer._open_loaders.cache_clear()


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What the bodies of tasks did, in order."""
    steps: list[str] = []

    def note(module, name: str, describe) -> None:
        function = getattr(module, name)

        def noted(*given, **named):
            steps.append(describe(*given))
            return function(*given, **named)

        monkeypatch.setattr(module, name, noted)

    note(refit.tables.dataset, "build_dataset", lambda *_: "build data set")
    note(refit.data.loaders, "count_batches", lambda *_: "build loaders")
    note(refit.training.loop, "build_training_state", lambda *_: "build state")
    note(refit.training.loop, "train_epoch", lambda state, *_: f"epoch {state.epoch + 1}")
    note(refit.training.evaluation, "evaluate", lambda *_: "evaluate")
    note(saving, "save_version", lambda *_: "save")
    return steps


def trained(done: list[str]) -> list[int]:
    """The epochs among what was done."""
    return [int(step.removeprefix("epoch ")) for step in done if step.startswith("epoch ")]


def assert_same(one: TrainingResult, other: TrainingResult) -> None:
    """The same bits: weights, losses, scores."""
    assert one.model.weights_digest == other.model.weights_digest
    assert one.best_epoch == other.best_epoch
    times = {"rows_per_second", "seconds"}
    logs = [[{name: entry[name] for name in entry.keys() - times} for entry in read(each, "log")] for each in (one, other)]
    assert logs[0] == logs[1]
    assert read(one, "metrics") == read(other, "metrics")


def test_a_new_version_is_materialized_as_an_asset_with_its_scores_and_one_that_stands_is_not(await_events):
    given = SettingsTree(name="asset")
    result = train(given)
    assert not train(given).is_new
    train(given.model_copy(update={"seed": 1}))
    first, second = await_events("refit://asset", 2)
    assert {first.event, second.event} == {"prefect.asset.materialization.succeeded"}
    assert [event.payload["version"] for event in (first, second)] == ["asset@v1", "asset@v2"]
    assert (first.payload["path"], first.payload["weights_digest"]) == (result.model.path, result.model.weights_digest)
    assert first.payload["epoch"] == result.best_epoch
    scores = read(result, "metrics")["test"]
    assert first.payload["scores"]["test"] == {name: scores[name] for name in ("num_rows", *FIGURES)}


def test_the_defaults_train_the_notebook():
    result = train()
    log, metrics = read(result, "log"), read(result, "metrics")
    losses = [f"{loss:.2f}" for epoch in log for loss in epoch["batch_losses"]]
    assert losses == ["0.80", "0.82", "0.30", "0.22", "0.00", "0.00"]
    assert {split: (scores["num_correct"], scores["num_rows"]) for split, scores in metrics.items()} == {
        "train": (5, 5),
        "test": (2, 2),
    }
    assert (result.model.name, result.model.version, result.best_epoch) == ("model", 1, 3)
    assert result.model.path == str(Path("refit-store/models/model/v1").resolve())
    weights = torch.load(Path(result.model.path) / "model.pt", weights_only=True)
    assert digest_weights(weights) == result.model.weights_digest
    assert result.is_new
    assert set(result.seconds) == {"build_dataset", "train", "evaluate", "save_version"}


@pytest.mark.parametrize("first", ["the flow", "refit.train"])
def test_the_flow_and_the_run_without_prefect_find_what_the_other_did(first, tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv", noise=3.0), num_epochs=4, refit_on_all=True)
    runs = [run, lambda given: refit.train(SettingsTree.model_validate(given), report=lambda _: None)]
    one, other = runs if first == "the flow" else runs[::-1]
    shorter = one(given | {"training": {"num_epochs": 2, "patience": None, "refit_on_all": True}})
    forget()
    done.clear()
    longer = other(given)
    assert trained(done)[:2] == [3, 4]
    assert not {"build data set", "build loaders"} & {*done[: done.index("epoch 3")]}
    assert (shorter.model.version, longer.model.version) == (1, 2)
    forget()
    done.clear()
    again = one(given)
    assert done == []
    assert (again.model, again.best_epoch, again.is_new) == (longer.model, longer.best_epoch, False)


def test_another_seed_gives_other_weights():
    assert run({"seed": 1}).model.weights_digest != run({"seed": 2}).model.weights_digest


@dataclass
class Noting:
    """A lock that says when a thread has come to wait for it."""

    lock: threading.Lock
    note: Callable[[], object]

    def acquire(self, blocking: bool = True) -> bool:
        if blocking:
            self.note()
        return self.lock.acquire(blocking)

    def release(self) -> None:
        self.lock.release()


def test_runs_in_threads_of_one_process_that_compute_in_other_ways_give_the_bits_that_each_gives_alone(tmp_path, monkeypatch):
    """As in a search for settings by `map`, which runs tasks in threads; each run lets the other begin before its first step."""
    source, own_threads = write_table(tmp_path / "table.csv", num_rows=300), torch.get_num_threads()
    ways = [{"matmul_precision": "medium", "num_threads": 2}, {"num_threads": 1}, {"precision": "bf16"}]
    base = by_time(source, num_epochs=2) | {"model": {"dropout": 0.2}, "loader": {"batch_size": 20}}
    tried = [base | {"compute": way, "seed": seed} for seed, way in enumerate(ways)]
    alone = [run(given | {"store": {"url": "alone"}}).model.weights_digest for given in tried]

    began, all_began, seen, train_one = set[int](), threading.Event(), [], refit.training.loop.train_epoch

    def note() -> None:
        began.add(threading.get_ident())
        if len(began) == len(ways):
            all_began.set()

    def train_beside_others(*arguments, **options):
        note()
        assert all_began.wait(60)
        seen.append((options["precision"], torch.get_float32_matmul_precision(), torch.get_num_threads()))
        return train_one(*arguments, **options)

    monkeypatch.setattr(trainer, "_is_training", Noting(threading.Lock(), note))
    monkeypatch.setattr(refit.training.loop, "train_epoch", train_beside_others)

    @task
    def try_settings(given: dict) -> str:
        return run(given | {"store": {"url": "together"}}).model.weights_digest

    @flow
    def search() -> list[str]:
        return try_settings.map(tried).result()

    assert search() == alone
    expected = [("fp32", "medium", 2), ("fp32", "highest", 1), ("bf16", "highest", NUM_THREADS)]
    assert Counter(seen) == Counter(expected * 2)
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("highest", own_threads)


def test_after_a_run_the_process_computes_as_before():
    torch.set_num_threads(NUM_THREADS + 2)
    run({"compute": {"matmul_precision": "medium", "num_threads": NUM_THREADS + 1}})
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == ("highest", NUM_THREADS + 2)


def test_early_stopping_saves_the_weights_of_the_epoch_with_the_lowest_validation_loss(tmp_path):
    source = write_table(tmp_path / "table.csv", noise=3.0)
    stopped = run(by_time(source, num_epochs=60, patience=3))
    val_losses = [epoch["val_loss"] for epoch in read(stopped, "log")]
    best = 1 + val_losses.index(min(val_losses))
    assert stopped.best_epoch == best
    assert len(val_losses) == best + 3 < 60
    assert read(stopped, "version")["epoch"] == best

    plain = run({**by_time(source, num_epochs=best), "store": {"url": "other-store"}})
    assert plain.model.weights_digest == stopped.model.weights_digest
    assert read(plain, "metrics") == read(stopped, "metrics")
    assert read(stopped, "metrics")["val"]["loss"] == pytest.approx(min(val_losses), rel=1e-6)


def test_a_model_that_is_trained_in_bf16_is_scored_in_bf16(tmp_path):
    given = {**by_time(write_table(tmp_path / "table.csv"), num_epochs=1), "compute": {"precision": "bf16"}}
    result = run(given)
    rows, losses = pl.read_csv(given["data"]["source"])[36:48], []
    for precision in ("bf16", "fp32"):
        model = load_model(result.model.path)
        settings = SettingsTree.model_validate({"compute": {"precision": precision}})
        logits = Model(model.module, model.manifest, settings).predict_logits(rows)
        losses.append(torch.nn.functional.cross_entropy(logits, rows["y"].to_torch()).item())
    assert read(result, "metrics")["val"]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_the_rows_of_the_test_are_read_last(tmp_path, monkeypatch):
    """Every object that the store hands out is noted, in order."""
    handed_out: list[str] = []

    def note(way: str) -> None:
        hand_out = getattr(Store, way)
        monkeypatch.setattr(Store, way, lambda store, digest: handed_out.append(digest) or hand_out(store, digest))

    note("get")
    note("local_file")
    result = run(by_time(write_table(tmp_path / "table.csv"), num_epochs=4, patience=2))
    splits = {split: info["digest"] for split, info in read(result, "manifest")["splits"].items()}
    later = handed_out[handed_out.index(splits["test"]) + 1 :]
    assert not {splits["train"], splits["val"]} & set(later)


def test_the_test_rows_are_scored_once_and_the_weights_are_final_then(tmp_path, monkeypatch):
    evaluated = []
    evaluate = refit.training.evaluation.evaluate

    def note(model, loader, *rest):
        evaluated.append((sum(len(y) for _, y in loader), digest_weights(model.state_dict())))
        return evaluate(model, loader, *rest)

    monkeypatch.setattr(refit.training.evaluation, "evaluate", note)
    result = run(by_time(write_table(tmp_path / "table.csv", num_rows=62), num_epochs=4, patience=2))
    sizes = [info["rows"] for info in read(result, "manifest")["splits"].values()]
    assert [num_rows for num_rows, _ in evaluated] == sizes
    assert list(read(result, "metrics")) == ["train", "val", "test"]
    assert {digest for _, digest in evaluated} == {result.model.weights_digest}


def test_other_test_rows_change_the_score_of_the_test_and_nothing_else(tmp_path):
    """Weights, best epoch and the preparation of columns owe nothing to rows of the test."""
    base = run(by_time(write_table(tmp_path / "a.csv", noise=3.0), num_epochs=12, patience=3))
    other = run(by_time(write_table(tmp_path / "b.csv", noise=3.0, changed={50: 40.0, 59: -40.0}), num_epochs=12, patience=3))
    assert other.best_epoch == base.best_epoch
    assert other.model.weights_digest == base.model.weights_digest
    assert read(other, "manifest")["columns"] == read(base, "manifest")["columns"]
    assert read(other, "metrics")["train"] == read(base, "metrics")["train"]
    assert read(other, "metrics")["val"] == read(base, "metrics")["val"]
    assert read(other, "metrics")["test"] != read(base, "metrics")["test"]


def test_other_validation_rows_choose_an_epoch_and_change_nothing_else(tmp_path):
    given = by_time(write_table(tmp_path / "a.csv", noise=3.0), num_epochs=8)
    others = by_time(write_table(tmp_path / "b.csv", noise=3.0, changed={40: 40.0, 47: -40.0}), num_epochs=8)
    base, other = run(given), run(others)
    assert other.best_epoch != base.best_epoch
    assert read(other, "manifest")["columns"] == read(base, "manifest")["columns"]
    assert [epoch["batch_losses"] for epoch in read(other, "log")] == [epoch["batch_losses"] for epoch in read(base, "log")]
    assert [result.checkpoint for result in epoch_results(others)] == [result.checkpoint for result in epoch_results(given)]


def test_what_is_given_to_the_flow_beats_the_environment_and_the_rest_comes_from_there(monkeypatch):
    monkeypatch.setenv("REFIT_TRAINING__NUM_EPOCHS", "5")
    monkeypatch.setenv("REFIT_TRAINING__MAX_GRAD_NORM", "0.5")
    Path("refit.toml").write_text('name = "toml"\nseed = 3\n')
    result = run({"training": {"num_epochs": 2}, "seed": 0})
    saved = read(result, "settings")
    assert (saved["training"]["num_epochs"], saved["training"]["max_grad_norm"]) == (2, 0.5)
    assert (saved["name"], saved["seed"]) == ("toml", 0)
    assert len(read(result, "log")) == 2


def test_changes_are_merged_over_the_settings_leaf_by_leaf_and_name_the_run():
    state = train(
        SettingsTree(name="deployed", optimizer={"lr": 0.5, "momentum": 0.1}, training={"patience": 2, "num_epochs": 2}),
        changes=SettingsTree(name="changed", optimizer={"lr": 0.2}, training={"patience": None}),
        return_state=True,
    )
    saved = read(state.result(), "settings")
    assert (saved["optimizer"]["lr"], saved["optimizer"]["momentum"]) == (0.2, 0.1)
    assert (saved["training"]["patience"], saved["training"]["num_epochs"]) == (None, 2)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name.startswith("train changed, ")


@pytest.mark.parametrize("given", [{}, {"optimizer": {"lr": 0.02}}])
def test_a_run_of_a_deployment_does_not_learn_the_toy_table_unless_told_to(given):
    with get_client(sync_client=True) as client:
        planned = client.create_flow_run_from_deployment(client.create_deployment(client.create_flow(train), "toy"))
        parameters = {"settings": SettingsTree.model_validate(given)}
        with pytest.raises(SettingsError, match=r"data\.source: expected the rows .*, found none; .*`notebook`.*, .*`changes`"):
            run_flow(train, flow_run=planned, parameters=parameters)
        again = client.create_flow_run_from_deployment(planned.deployment_id)
        parameters |= {"changes": SettingsTree(data={"source": "notebook"}, training={"num_epochs": 1})}
        assert run_flow(train, flow_run=again, parameters=parameters).model.reference == "model@v1"


def test_settings_of_a_single_run_do_not_take_those_of_its_deployment_away():
    fixed = {"name": "fish", "data": {"source": "notebook"}, "optimizer": {"lr": 0.5}, "training": {"num_epochs": 1}}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(train), "fish", parameters={"settings": fixed})
        planned = client.create_flow_run_from_deployment(deployment)
        given = SettingsTree(optimizer={"momentum": 0.1})
        result = run_flow(train, flow_run=planned, parameters={"settings": given})
        assert client.read_flow_run(planned.id).name.startswith("train fish, ")
    saved = read(result, "settings")
    assert (result.model.reference, saved["optimizer"]["lr"], saved["optimizer"]["momentum"]) == ("fish@v1", 0.5, 0.1)


def test_a_default_given_to_the_flow_beats_the_environment_too(monkeypatch):
    monkeypatch.setenv("REFIT_SEED", "3")
    assert read(run({"seed": 0}), "settings")["seed"] == 0
    assert read(run({}), "settings")["seed"] == 3


def test_settings_that_contradict_one_another_stop_the_flow_before_anything_is_stored():
    with pytest.raises(SettingsError, match=r"optimizer\.momentum"):
        run({"optimizer": {"name": "adam", "momentum": 0.9}})
    assert not Path("refit-store").exists()


def test_patience_without_validation_rows_is_refused():
    with pytest.raises(SettingsError, match=r"training\.patience: expected validation rows to watch, found none; set data\.val"):
        run({"training": {"patience": 2}})


def test_a_damaged_ledger_stops_the_flow_before_anything_is_trained(done):
    append_entry(Store("refit-store"), "model", action="keep", why="")
    Path("refit-store", entry_path("model", 1)).write_bytes(b"{")
    with pytest.raises(StoreError, match=r"ledger/000001\.json: expected entry 1 of the ledger"):
        run({})
    assert trained(done) == []


def test_a_table_that_is_not_there_stops_the_flow():
    with pytest.raises(DataError, match=r"absent\.csv"):
        run({"data": {"source": "absent.csv"}})


def test_a_diverging_run_fails_with_epoch_and_batch_and_keeps_earlier_versions():
    earlier = train()
    with pytest.raises(TrainingError, match=r"epoch 1, batch 2: expected a finite loss, found nan; lower optimizer\.lr"):
        run({"optimizer": {"lr": 1e30}})
    assert list_versions(Store("refit-store"), "model") == [1]
    assert digest_weights(torch.load(Path(earlier.model.path) / "model.pt", weights_only=True)) == earlier.model.weights_digest


LOUD = """
from torch import nn

def build(num_inputs, num_outputs):
    model = nn.Linear(num_inputs, num_outputs)
    nn.init.uniform_(model.weight, -100, 100)
    return model
"""


@pytest.mark.parametrize("row", [40, 50], ids=["val", "test"])
def test_a_held_out_row_whose_logits_overflow_is_no_crash(tmp_path, monkeypatch, row):
    """Training is done by then: the run completes with figures that JSON can hold, or says what a user can mend."""
    monkeypatch.syspath_prepend(tmp_path)
    Path("loud_networks.py").write_text(LOUD)
    given = by_time(write_table(tmp_path / "table.csv", changed={row: 3e38}), num_epochs=2)
    given |= {"model": {"factory": "loud_networks:build"}, "optimizer": {"lr": 1e-6}}
    try:
        result = run(given)
    except RefitError:
        assert not Path("refit-store/models").exists()
    else:
        json.dumps([read(result, "log"), read(result, "metrics")], allow_nan=False)


def test_the_same_recipe_is_not_run_again_and_its_version_stands(tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    first = run(given)
    assert done == ["build data set", "build loaders", "build state", *(f"epoch {n}" for n in (1, 2, 3)), *["evaluate"] * 3, "save"]
    done.clear()
    forget()
    second = run(given)
    assert done == []
    assert (first.is_new, second.is_new) == (True, False)
    assert second.model == first.model
    assert list_versions(Store("refit-store"), "model") == [1]


def test_another_name_is_another_version_and_nothing_but_saved(tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    first = run(given)
    done.clear()
    other = run({**given, "name": "other"})
    assert done == ["save"]
    assert (other.model.name, other.model.version, other.is_new) == ("other", 1, True)
    assert_same(first, other)


def test_refresh_does_every_step_anew_and_says_nothing_else(tmp_path, done, caplog):
    given = SettingsTree.model_validate(by_time(write_table(tmp_path / "table.csv"), num_epochs=3))
    first = train(given)
    before = list(done)
    done.clear()
    caplog.clear()
    second = train(given, refresh=True)
    assert [step for step in done if step != "build state"] == [step for step in before if step != "build state"]
    assert (second.model.version, second.is_new) == (2, True)
    assert_same(first, second)
    assert "done before" not in caplog.text
    assert "epoch 3/3: train loss" in caplog.text
    done.clear()
    assert not train(given).is_new
    assert done == []


@pytest.mark.parametrize("is_forgetful", [False, True], ids=["same process", "other process"])
def test_more_epochs_go_on_where_the_run_before_ended_and_fewer_are_all_there(tmp_path, done, caplog, is_forgetful):
    source = write_table(tmp_path / "table.csv")
    plain = train_plainly(by_time(source), 8)
    for num_epochs, expected in [(4, [1, 2, 3, 4]), (8, [5, 6, 7, 8]), (3, [])]:
        if is_forgetful:
            forget()
        done.clear()
        result = run(by_time(source, num_epochs=num_epochs))
        assert trained(done) == expected
        assert result.is_new
        assert len(read(result, "log")) == num_epochs
        assert_plain(result, plain)
    assert re.findall("going on from epoch [0-9]+", caplog.text) == ["going on from epoch 5"], "as nothing was left of the third"


def test_under_a_cosine_another_number_of_epochs_is_another_run(tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv")) | {"optimizer": {"lr": 0.1, "schedule": "cosine"}}
    plain = train_plainly(given, 4)
    run(given | {"training": {"num_epochs": 2}})
    done.clear()
    result = run(given | {"training": {"num_epochs": 4}})
    assert trained(done) == [1, 2, 3, 4]
    assert_plain(result, plain)


def test_a_run_that_stopped_early_is_done_and_more_patience_goes_on(tmp_path, done):
    source = write_table(tmp_path / "table.csv", noise=3.0)
    plain = train_plainly(by_time(source), 30)
    stopped = run(by_time(source, num_epochs=30, patience=2))
    last = trained(done)[-1]
    assert last == stopped.best_epoch + 2 < 30
    assert_plain(stopped, plain)
    done.clear()
    assert run(by_time(source, num_epochs=40, patience=2)).model == stopped.model
    assert done == []
    patient = run(by_time(source, num_epochs=30, patience=4))
    assert trained(done) == list(range(last + 1, patient.best_epoch + 5))
    assert_plain(patient, plain)


def test_without_patience_all_epochs_are_trained_and_patience_chooses_among_them(tmp_path, done):
    """Of all, too, the one with the lowest validation loss is saved."""
    source = write_table(tmp_path / "table.csv", noise=3.0)
    whole, plain = run(by_time(source, num_epochs=12)), train_plainly(by_time(source), 12)
    assert len(read(whole, "log")) == 12 > whole.best_epoch
    assert_plain(whole, plain)
    done.clear()
    result = run(by_time(source, num_epochs=12, patience=2))
    assert trained(done) == []
    assert len(read(result, "log")) == result.best_epoch + 2 < 12
    assert_plain(result, plain)
    settings, _ = resolve_settings(by_time(source, num_epochs=12, patience=2))
    assert [step.step for step in forecast(settings, Store("refit-store")) if not step.is_done] == []


def epoch_results(given: dict) -> list[EpochResult]:
    settings, _ = resolve_settings(given)
    store = Store(settings.store.url)
    found = (load_result(key, store) for key in refit.flows.training.build_recipe(settings).epoch_keys)
    return [EpochResult.model_validate(content) for content in found if content is not None]


def object_file(given: dict, digest: str) -> Path:
    store = Store(resolve_settings(given)[0].store.url)
    return Path(store.root) / store.object_path(digest)


def is_checkpoint(path: Path) -> bool:
    return path.read_bytes()[:2] == b"PK" and "optimizer" in torch.load(path, weights_only=True)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_is_used(tmp_path, done, caplog):
    source = write_table(tmp_path / "table.csv")
    plain = train_plainly(by_time(source), 6)
    run(by_time(source, num_epochs=4))
    *_, third, fourth = epoch_results(by_time(source, num_epochs=4))
    broken = object_file({}, fourth.checkpoint.digest)
    flip(broken)
    forget()
    done.clear()
    result = run(by_time(source, num_epochs=6))
    assert trained(done) == [4, 5, 6]
    assert_plain(result, plain)
    assert (
        f"checkpoint {broken} of epoch 4 is damaged or gone; going on from that of epoch 3, {third.checkpoint.digest[:12]}"
        in caplog.text
    )
    assert broken.exists(), "made again"
    assert Path("refit-store/damaged", fourth.checkpoint.digest).exists()


@pytest.mark.parametrize("keep", [None, 1])
def test_a_damaged_log_has_its_epoch_trained_again(tmp_path, keep):
    given = {**by_time(write_table(tmp_path / "table.csv"), num_epochs=3), "checkpoint": {"keep": keep}}
    plain = train_plainly(given, 3)
    run(given)
    flip(object_file(given, epoch_results(given)[1].log.digest))
    forget()
    assert_plain(run({**given, "name": "second"}), plain)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, 1])
def test_a_damaged_checkpoint_of_the_best_epoch_is_made_again(tmp_path, keep):
    source = write_table(tmp_path / "table.csv", noise=3.0)
    given = {**by_time(source, num_epochs=60, patience=3), "checkpoint": {"keep": keep}}
    first = run(given)
    assert first.best_epoch < len(read(first, "log"))
    flip(object_file(given, epoch_results(given)[first.best_epoch - 1].checkpoint.digest))
    forget()
    assert_same(first, run({**given, "name": "second"}))


def test_a_disk_that_loses_the_best_checkpoint_every_time_ends_the_run_and_a_mended_one_lets_it_end_well(
    tmp_path, done, monkeypatch
):
    given, save_state = by_time(write_table(tmp_path / "table.csv"), num_epochs=2), refit.training.checkpoints.save_state
    lost = []

    def save_and_lose(state, store):
        ref = save_state(state, store)
        if state.epoch == 2:
            lost.append(store.object_path(ref.digest))
            store.remove(lost[-1])
        return ref

    with monkeypatch.context() as patch:
        patch.setattr(refit.training.checkpoints, "save_state", save_and_lose)
        message = (
            r"checkpoint \S+/(\S+): expected it to be whole after epoch 2, found it damaged or gone 3 times; check the disk, and"
        )
        with pytest.raises(StoreError, match=message) as raised:
            run(given)
    assert lost[0] in str(raised.value)
    assert trained(done) == [1, 2, 2, 2]
    forget()
    assert_plain(run(given), train_plainly(given, 2))


def test_of_a_run_that_keeps_one_checkpoint_there_is_one_and_a_rerun_does_nothing(tmp_path, done):
    source = write_table(tmp_path / "table.csv")
    given = {**by_time(source, num_epochs=5), "checkpoint": {"keep": 1}}
    first = run(given)
    checkpoints = [object_file(given, result.checkpoint.digest).exists() for result in epoch_results(given)]
    assert checkpoints == [False] * 4 + [True]
    done.clear()
    forget()
    assert run(given).model == first.model
    assert done == []
    longer = run({**given, "training": {"num_epochs": 7}})
    assert trained(done) == [6, 7]
    assert_plain(longer, train_plainly(given, 7))


def test_the_best_checkpoint_is_kept_besides_the_last(tmp_path):
    given = {**by_time(write_table(tmp_path / "table.csv", noise=3.0), num_epochs=60, patience=3), "checkpoint": {"keep": 2}}
    best = run(given).best_epoch
    kept = [result.epoch for result in epoch_results(given) if object_file(given, result.checkpoint.digest).exists()]
    assert kept == [best, best + 2, best + 3]


@pytest.mark.slow
def test_a_run_out_of_time_stops_and_the_next_runs_go_on_to_the_same_bits(tmp_path, caplog):
    """Each run trains one batch of three."""
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=2, timeout_seconds=1e-6) | {"loader": {"batch_size": 12}}
    plain = train_plainly(given, 2)
    for epoch, batch in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]:
        message = rf"epoch {epoch}, batch {batch}: training\.timeout_seconds have passed; everything trained so far is kept"
        with pytest.raises(TrainingError, match=message):
            run(given)
        forget()
    assert_plain(run(given), plain)
    assert "epoch 2: going on after batch 2" in caplog.text
    assert Store("refit-store").names("partial") == []


def test_a_run_of_one_step_an_epoch_is_out_of_time_too(tmp_path):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=5, timeout_seconds=1e-6) | {"loader": {"batch_size": 36}}
    with pytest.raises(TrainingError, match=r"training\.timeout_seconds have passed"):
        run(given)


def test_what_was_done_before_a_failure_is_not_done_again(tmp_path, monkeypatch, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=4)
    plain = train_plainly(given, 4)
    with monkeypatch.context() as patched:
        whole = refit.training.loop.train_epoch

        def fail(state, *given, **named):
            if state.epoch == 2:
                raise ValueError("a mistake")
            return whole(state, *given, **named)

        patched.setattr(refit.training.loop, "train_epoch", fail)
        with pytest.raises(ValueError, match="a mistake"):
            run(given)
    done.clear()
    forget()
    assert_plain(run(given), plain)
    assert trained(done) == [3, 4]
    assert "build data set" not in done


def test_epochs_in_groups_have_the_bits_and_results_of_single_ones(tmp_path, done):
    source = write_table(tmp_path / "table.csv")
    plain = train_plainly(by_time(source), 9)
    done.clear()
    result = run(by_time(source, num_epochs=7, epochs_per_task=3))
    assert trained(done) == [1, 2, 3, 4, 5, 6, 7]
    assert_plain(result, plain)
    done.clear()
    forget()
    assert run(by_time(source, num_epochs=7)).model == result.model
    assert done == []
    assert_plain(run(by_time(source, num_epochs=9, epochs_per_task=4)), plain)
    assert trained(done) == [8, 9]


def test_early_stopping_is_the_same_in_groups_as_in_single_epochs(tmp_path, done):
    source = write_table(tmp_path / "table.csv", noise=3.0)
    single = run(by_time(source, num_epochs=60, patience=3))
    num_epochs = len(read(single, "log"))
    for size in (4, 100):
        done.clear()
        forget()
        grouped = by_time(source, num_epochs=60, patience=3, epochs_per_task=size) | {"store": {"url": f"groups-of-{size}"}}
        assert_same(single, run(grouped))
        assert trained(done)[-1] == min(60, -(-num_epochs // size) * size)
        assert not run(grouped).is_new


@pytest.mark.parametrize("is_tried_again", [False, True], ids=["next run", "next try"])
def test_a_group_that_fails_goes_on_after_its_last_whole_epoch(tmp_path, monkeypatch, done, is_tried_again):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=7, epochs_per_task=3)
    plain = train_plainly(given, 7)
    whole, failures = refit.training.loop.train_epoch, [OSError("torn") if is_tried_again else ValueError("a mistake")]

    def fail_once(state, *given, **named):
        if state.epoch == 4 and failures:
            raise failures.pop()
        return whole(state, *given, **named)

    monkeypatch.setattr(refit.training.loop, "train_epoch", fail_once)
    done.clear()
    if not is_tried_again:
        with pytest.raises(ValueError, match="a mistake"):
            run(given)
        forget()
    assert_plain(run(given), plain)
    assert failures == []
    assert trained(done) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("keep", [None, 1])
def test_a_damaged_log_inside_a_group_has_its_epoch_trained_again(tmp_path, keep):
    given = {**by_time(write_table(tmp_path / "table.csv"), num_epochs=5, epochs_per_task=3), "checkpoint": {"keep": keep}}
    plain = train_plainly(given, 5)
    run(given)
    flip(object_file(given, epoch_results(given)[1].log.digest))
    forget()
    assert_plain(run({**given, "name": "second"}), plain)


def test_a_store_that_was_deleted_between_runs_is_made_again(tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    first = run(given)
    kept = tmp_path / "kept"
    shutil.copytree(first.model.path, kept)
    shutil.rmtree("refit-store")
    done.clear()
    second = run(given)
    assert second.is_new
    assert trained(done) == [1, 2, 3]
    assert second.model.weights_digest == first.model.weights_digest
    assert (Path(second.model.path) / "model.pt").read_bytes() == (kept / "model.pt").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["objects", "results"])
def test_a_part_of_the_store_that_was_deleted_between_runs_is_made_again(tmp_path, part):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    first = run(given)
    shutil.rmtree(Path("refit-store", part))
    forget()
    second = run(given)
    assert second.model.weights_digest == first.model.weights_digest
    assert load_model(second.model.path).predict({f"x{i}": [0.0] for i in range(4)}).shape == (1,)


def test_a_version_that_was_deleted_is_saved_again(tmp_path, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    first = run(given)
    shutil.rmtree(first.model.path)
    done.clear()
    second = run(given)
    assert Path(second.model.path, "model.pt").exists()
    assert second.model.weights_digest == first.model.weights_digest
    assert done == ["save"]


def test_a_store_that_was_moved_says_where_its_versions_are_now(tmp_path):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=3)
    run(given)
    Path("refit-store").rename("moved")
    second = run({**given, "store": {"url": "moved"}})
    assert Path(second.model.path) == tmp_path / "moved/models/model/v1"
    assert not second.is_new


def test_a_source_that_changes_while_the_run_begins_is_not_taken_for_what_it_was(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    given = by_time(write_table(path), num_epochs=2)
    plain = train_plainly(given, 2)
    build_recipe = refit.flows.training.build_recipe

    def build_and_change(settings):
        recipe = build_recipe(settings)
        write_table(path, noise=2.0)
        return recipe

    with monkeypatch.context() as patched:
        patched.setattr(refit.flows.training, "build_recipe", build_and_change)
        with contextlib.suppress(DataError, StoreError):
            run(given)
    write_table(path)
    assert_plain(run(given), plain)


ALL_ROWS = ("train", "val", "test")


def test_a_last_fit_on_all_rows_is_what_is_saved_to_predict_and_changes_no_score(tmp_path, done):
    optimizer = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"}
    given = by_time(write_table(tmp_path / "table.csv", noise=3.0)) | {"optimizer": optimizer}
    on_all = train_plainly(given, 12, ALL_ROWS)
    before = run(given | {"training": {"num_epochs": 12}})
    best = before.best_epoch
    assert 1 < best < 12
    given |= {"training": {"num_epochs": 12, "refit_on_all": True}}
    done.clear()
    result = run(given)
    assert done == ["build loaders", "build state", *(f"epoch {epoch}" for epoch in range(1, best + 1)), "save"]
    assert (result.best_epoch, result.model.held_back_digest) == (best, before.model.weights_digest)
    assert result.model.weights_digest == on_all.weights[best - 1]
    assert (read(result, "log"), read(result, "metrics")) == (read(before, "log"), read(before, "metrics"))
    done.clear()
    forget()
    assert run(given).model == result.model
    assert done == []


def test_without_validation_rows_a_last_fit_is_as_long_as_the_run():
    given = SettingsTree.model_validate({"training": {"refit_on_all": True}})
    result, notebook, again = train(given), run({}), train(given, refresh=True)
    assert (result.best_epoch, result.model.held_back_digest) == (3, notebook.model.weights_digest)
    assert result.model.weights_digest == again.model.weights_digest != notebook.model.weights_digest
    assert again.is_new


def test_what_was_done_of_a_last_fit_before_a_failure_is_not_done_again(tmp_path, monkeypatch, done):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=6, refit_on_all=True)
    best, on_all = train_plainly(given, 6).find_best(6), train_plainly(given, 6, ALL_ROWS)
    assert best > 2
    with monkeypatch.context() as patched:
        whole = refit.training.loop.train_epoch

        def fail(state, loader, *given, **named):
            if (len(loader.y), state.epoch) == (60, 1):
                raise ValueError("a mistake")
            return whole(state, loader, *given, **named)

        patched.setattr(refit.training.loop, "train_epoch", fail)
        with pytest.raises(ValueError, match="a mistake"):
            run(given)
    done.clear()
    forget()
    result = run(given)
    assert [step for step in done if step != "build state"] == [*(f"epoch {epoch}" for epoch in range(2, best + 1)), "save"]
    assert result.model.weights_digest == on_all.weights[best - 1]


def test_a_last_fit_out_of_time_goes_on_inside_its_epoch(tmp_path, caplog):
    given = by_time(write_table(tmp_path / "table.csv")) | {"loader": {"batch_size": 30}}
    on_all = train_plainly(given, 1, ALL_ROWS)
    run(given | {"training": {"num_epochs": 1}})
    given |= {"training": {"num_epochs": 1, "refit_on_all": True, "timeout_seconds": 1e-6}}
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1: training\.timeout_seconds have passed"):
        run(given)
    forget()
    assert run(given).model.weights_digest == on_all.weights[0]
    assert "epoch 1: going on after batch 1" in caplog.text
    assert Store("refit-store").names("partial") == []


def test_of_a_last_fit_one_checkpoint_is_kept_besides_the_one_that_is_judged(tmp_path):
    given = by_time(write_table(tmp_path / "table.csv"), num_epochs=6, refit_on_all=True) | {"checkpoint": {"keep": 1}}
    record = read(run(given), "version")
    checkpoints = {record["checkpoint"], record["held_back"]["checkpoint"], epoch_results(given)[-1].checkpoint.digest}
    start = refit.flows.training.build_recipe(resolve_settings(given)[0]).start.key
    checkpoints.add(load_result(start, Store("refit-store"))["digest"])
    objects = {path.parent.name + path.name for path in Path("refit-store/objects").glob("*/*")}
    assert {digest for digest in objects if is_checkpoint(object_file(given, digest))} == checkpoints


def test_a_last_fit_without_rows_that_were_held_back_is_refused(tmp_path):
    data = {"source": write_table(tmp_path / "table.csv"), "val": 0, "test": 0}
    message = r"training\.refit_on_all: expected rows that training held back, found only train rows; set data\.val or"
    with pytest.raises(SettingsError, match=message):
        run({"data": data, "training": {"refit_on_all": True}})


def test_a_model_and_results_are_kept_in_an_object_store_too(tmp_path, done):
    given = {**by_time(write_table(tmp_path / "table.csv"), num_epochs=2), "store": {"url": "memory://flow-tests/cached"}}
    first, plain = run(given), train_plainly(given, 2)
    assert first.model.path == "memory:///flow-tests/cached/models/model/v1"
    assert first.model.weights_digest == plain.weights[first.best_epoch - 1]
    done.clear()
    second = run(given)
    assert done == []
    assert second.model == first.model
    forget()
    run({**given, "training": {"num_epochs": 3}})
    assert trained(done) == [3]
