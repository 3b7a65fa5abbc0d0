import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import refit
from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.errors import DataError, SettingsError, StoreError
from refit.registry.saving import save_version
from refit.registry.versions import move_alias
from refit.serving.saved_model import load_version
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training.checkpoints import save_state
from refit.training.evaluation import evaluate
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import Classification

CPU = torch.device("cpu")
ROWS = {"x1": [-1.2, -0.9, -0.5, 2.3, 2.7], "x2": [3.1, 2.9, 2.6, -1.1, -1.5]}
DAMAGED = r"(?s)models/model/v1: expected a saved version, found a damaged one: .*; load another"
NOTEBOOK_LOGITS = [[8.0681, -7.6774], [7.3428, -6.9849], [6.2796, -5.9794], [-3.8422, 4.2457], [-4.7082, 5.1806]]


def train_and_save(store: Store, given: dict) -> tuple[str, torch.nn.Module]:
    """A version trained on what `given` says, and the model as it was in the process that trained it."""
    settings, _ = resolve_settings(given)
    manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
    signature = manifest.signature
    state = build_training_state(settings.model, settings.optimizer, signature, seed=settings.seed, device=CPU)
    loader = build_train_loader(*manifest.load_split("train", store), settings.loader.batch_size, settings.loader.drop_last)
    logs = [train_epoch(state, loader, lambda _: settings.optimizer.lr, device=CPU) for _ in range(settings.training.num_epochs)]
    loader = build_evaluation_loader(*manifest.load_split("train", store))
    metrics = {"train": evaluate(state.model, loader, Classification((*[str(label) for label in manifest.classes],)), CPU, "fp32")}
    return save_version(save_state(state, store), settings, manifest, logs, metrics, store).path, state.model.eval()


@pytest.fixture
def notebook(store) -> str:
    return train_and_save(store, {})[0]


def make_table(path: Path, labels: list) -> dict:
    """A table of every kind of column, where class 1 has larger numbers."""
    num_rows = 20
    flags = [row % 2 for row in range(num_rows)]
    frame = pl.DataFrame(
        {
            "size": [flag * 3.0 + row / 10 if row % 7 else None for row, flag in enumerate(flags)],
            "colour": ["red" if flag else "green" for flag in flags],
            "is_new": [row % 3 == 0 for row in range(num_rows)],
            "label": [labels[flag] for flag in flags],
        }
    )
    frame.write_parquet(path)
    return {
        "data": {"source": str(path), "target": "label", "val": 0, "test": 0},
        "loader": {"batch_size": 5},
        "optimizer": {"name": "sgd", "lr": 0.3},
        "training": {"num_epochs": 20},
    }


def test_a_fresh_process_gives_the_logits_of_the_notebook(notebook, tmp_path):
    script = f"import json, refit; print(json.dumps(refit.load_model({notebook!r}).predict_logits({ROWS!r}).tolist()))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    logits = json.loads(finished.stdout)
    assert [[f"{value:.4f}" for value in row] for row in logits] == [[f"{value:.4f}" for value in row] for row in NOTEBOOK_LOGITS]
    assert finished.stderr == ""


def test_a_loaded_model_gives_the_bits_of_the_model_that_was_trained(store):
    path, model = train_and_save(store, {})
    with torch.no_grad():
        expected = model(torch.tensor([list(row) for row in zip(*ROWS.values(), strict=True)]))
    assert torch.equal(refit.load_model(path).predict_logits(ROWS), expected)


def test_a_model_that_was_trained_in_bf16_scores_in_bf16(store):
    path, module = train_and_save(store, {"compute": {"precision": "bf16"}})
    x = torch.tensor([list(row) for row in zip(*ROWS.values(), strict=True)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = module(x)
    with torch.no_grad():
        exact = module(x)
    found = refit.load_model(path).predict_logits(ROWS)
    assert torch.equal(found, rounded.float())
    assert not torch.equal(found, exact)


def test_held_back_weights_are_loaded_where_they_are_asked_for_and_the_same_as_ever_where_there_are_no_others(save_version):
    rows = pl.DataFrame({"x0": [float(number % 7) for number in range(40)], "y": [number % 2 for number in range(40)]})
    plain, version = save_version(rows, features=("x0",)), save_version(rows, features=("x0",), num_epochs_on_all=5)
    served, held_back = (refit.load_model(version.path, held_back).predict_logits(rows) for held_back in (False, True))
    assert torch.equal(held_back, refit.load_model(plain.path).predict_logits(rows))
    assert torch.equal(held_back, refit.load_model(plain.path, held_back=True).predict_logits(rows))
    assert not torch.equal(held_back, served)


@pytest.mark.parametrize("file", ["model.pt", "held_back.pt"])
def test_of_two_weights_both_must_be_whole(save_version, file):
    rows = pl.DataFrame({"x0": [float(number % 7) for number in range(40)], "y": [number % 2 for number in range(40)]})
    path = save_version(rows, features=("x0",), num_epochs_on_all=5).path
    (Path(path) / file).write_bytes(flip((Path(path) / file).read_bytes()))
    for held_back in (False, True):
        with pytest.raises(StoreError, match=rf"{file}: expected bytes with the digest in version\.json, found others"):
            refit.load_model(path, held_back)


def test_a_version_of_a_store_is_loaded_only_if_all_its_files_are_whole(store):
    train_and_save(store, {})
    assert torch.equal(
        load_version(store, "model", 1).predict_logits(ROWS), refit.load_model(f"{store.url}/models/model/v1").predict_logits(ROWS)
    )
    path = Path(store.url) / "models/model/v1/manifest.json"
    path.write_text(path.read_text().replace('"std": 1.0', '"std": 2.0'))
    with pytest.raises(StoreError, match=r"v1/manifest\.json: expected bytes with the digest in version\.json, found others; put"):
        load_version(store, "model", 1)


def test_probabilities_are_the_softmax_of_the_logits(notebook):
    model = refit.load_model(notebook)
    logits = model.predict_logits(ROWS).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert model.predict_proba(ROWS) == pytest.approx(expected, abs=1e-6)
    assert model.predict(ROWS).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        pl.DataFrame(ROWS),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, index=[9, 8, 7, 6, 5]),
        pl.DataFrame({"x2": ROWS["x2"], "other": ["a"] * 5, "x1": ROWS["x1"]}),
        pd.DataFrame({"x2": ROWS["x2"], "other": ["a"] * 5, "x1": ROWS["x1"]}),
        {name: np.array(values) for name, values in ROWS.items()},
        {name: tuple(values) for name, values in ROWS.items()},
        {name: [str(value) for value in values] for name, values in ROWS.items()},
    ],
    ids=["dict", "polars", "pandas", "pandas index", "polars shuffled", "pandas shuffled", "numpy", "tuples", "text"],
)
def test_rows_may_come_in_any_form_and_order_of_columns(notebook, rows):
    model = refit.load_model(notebook)
    assert torch.equal(model.predict_logits(rows), model.predict_logits(ROWS))


def test_one_row_gives_what_it_gives_among_others(notebook):
    model = refit.load_model(notebook)
    alone = [model.predict_logits({name: values[i : i + 1] for name, values in ROWS.items()}) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), model.predict_logits(ROWS), rtol=1e-6, atol=1e-6)


def test_a_missing_column_is_refused_by_name(notebook):
    model = refit.load_model(notebook)
    for predict in (model.predict, model.predict_proba, model.predict_logits):
        with pytest.raises(DataError, match=r"expected column `x2`, found `x1`, `x3`; add what is missing"):
            predict({"x1": [1.0], "x3": [2.0]})


def test_text_where_a_number_belongs_is_refused_by_row_and_column(notebook):
    with pytest.raises(DataError, match=r"row 2, column `x1`"):
        refit.load_model(notebook).predict({"x1": ["1.0", "big"], "x2": [1.0, 2.0]})


def test_no_rows_give_no_predictions(notebook):
    model = refit.load_model(notebook)
    empty = pl.DataFrame({"x1": [], "x2": []}, schema={"x1": pl.Float64, "x2": pl.Float64})
    assert model.predict(empty).tolist() == []
    assert model.predict_proba(empty).shape == (0, 2)


@pytest.mark.parametrize(
    ("labels", "kind"), [(["no", "yes"], "U"), ([3, 7], "i"), ([False, True], "b"), (["猫", "$|"], "U"), ([-1, 10**12], "i")]
)
def test_labels_come_back_as_the_target_writes_them(store, tmp_path, labels, kind):
    given = make_table(tmp_path / "table.parquet", labels)
    path, _ = train_and_save(store, given)
    model = refit.load_model(path)
    rows = pl.read_parquet(tmp_path / "table.parquet")
    found = model.predict(rows.drop("label"))
    assert found.dtype.kind == kind
    assert found.tolist() == rows["label"].to_list()
    assert model.classes.tolist() == sorted(labels)
    assert model.predict_proba(rows).argmax(axis=1).tolist() == [sorted(labels).index(label) for label in rows["label"]]


def test_raw_rows_get_the_preparation_of_training(store, tmp_path):
    """The inputs frozen for training and those made of raw rows give the same bits."""
    given = make_table(tmp_path / "table.parquet", ["no", "yes"])
    path, model = train_and_save(store, given)
    settings = SettingsTree.model_validate(given)
    manifest = load_manifest(build_dataset(settings.data, 0, store), store)
    x, _ = manifest.load_split("train", store)
    rows = pl.read_parquet(tmp_path / "table.parquet")
    with torch.no_grad():
        assert torch.equal(refit.load_model(path).predict_logits(rows), model(x))


def test_dropout_is_off(store):
    path, _ = train_and_save(store, {"model": {"dropout": 0.5}})
    model = refit.load_model(path)
    assert torch.equal(model.predict_logits(ROWS), model.predict_logits(ROWS))


def test_loading_and_predicting_leave_the_global_generator_alone(notebook):
    before = torch.get_rng_state()
    refit.load_model(notebook).predict(ROWS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_version_can_be_moved(notebook, tmp_path):
    expected = refit.load_model(notebook).predict_logits(ROWS)
    shutil.move(notebook, tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere", f"{tmp_path}/elsewhere/", "elsewhere", "./elsewhere"):
        assert torch.equal(refit.load_model(path).predict_logits(ROWS), expected)


def test_a_version_is_loaded_from_an_object_store_too():
    store = Store("memory://inference-tests/store")
    path, model = train_and_save(store, {})
    assert path.startswith("memory://")
    with torch.no_grad():
        expected = model(torch.tensor([list(row) for row in zip(*ROWS.values(), strict=True)]))
    assert torch.equal(refit.load_model(path).predict_logits(ROWS), expected)


@pytest.mark.parametrize("name", ["model@v1", "model@champion"])
def test_a_version_is_loaded_by_its_name_from_the_store_of_the_settings_or_another(notebook, store, monkeypatch, name):
    move_alias(store, "model", 1, expected=None, why="test")
    expected = refit.load_model(notebook).predict_logits(ROWS)
    monkeypatch.setenv("REFIT_STORE__URL", store.url)
    for model in (refit.load_model(name), refit.load_model(name, store=store.url)):
        assert torch.equal(model.predict_logits(ROWS), expected)
        assert model.reference == "model@v1"
    with pytest.raises(StoreError, match=r"model@v7: expected a version of 'model' in .*, found no v7; versions there: v1"):
        refit.load_model("model@v7")


def test_a_model_follows_promotions_while_the_one_before_stays_as_it_is(store):
    for seed in (0, 1):
        train_and_save(store, {"seed": seed})
    move_alias(store, "model", 1, expected=None, why="test")
    first = refit.load_model("model@champion", store=store.url)
    assert first.refresh() is first
    logits = first.predict_logits(ROWS)
    move_alias(store, "model", 2, expected=1, why="test")
    second = first.refresh()
    assert [first.reference, second.reference] == ["model@v1", "model@v2"]
    assert torch.equal(first.predict_logits(ROWS), logits)
    assert torch.equal(second.predict_logits(ROWS), refit.load_model("model@v2", store=store.url).predict_logits(ROWS))
    assert refit.load_model("model@v1", store=store.url).refresh().reference == "model@v1"


def test_a_model_that_was_loaded_by_a_path_follows_nothing(notebook):
    message = "refresh: expected a model that was loaded by a name such as penguins@champion, found one by a path"
    with pytest.raises(SettingsError, match=message):
        refit.load_model(notebook).refresh()


def test_a_path_without_a_version_is_refused(tmp_path):
    with pytest.raises(StoreError, match=f"{tmp_path}/absent"):
        refit.load_model(tmp_path / "absent")


def flip(content: bytes) -> bytes:
    """Change one bit of the first layer's weights, which are stored as they are."""
    weights = torch.load(io.BytesIO(content), weights_only=True)
    place = content.index(weights["0.weight"].numpy().tobytes())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def seal(version: str) -> None:
    """Write the digests that its files have now into a version's record, as someone would who wants them to be taken."""
    record = Path(version) / "version.json"
    content = json.loads(record.read_text())
    content["files"] = {name: hashlib.sha256((Path(version) / name).read_bytes()).hexdigest() for name in content["files"]}
    record.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"no weights"],
    ids=["bit", "cut", "empty", "other"],
)
def test_damaged_weights_are_refused(notebook, damage):
    path = Path(notebook) / "model.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=r"v1/model\.pt: expected bytes with the digest in version\.json, found others"):
        refit.load_model(notebook)
    seal(notebook)
    with pytest.raises(StoreError, match=DAMAGED):
        refit.load_model(notebook)


@pytest.mark.parametrize("name", ["settings.json", "manifest.json"])
def test_a_damaged_record_is_refused(notebook, name):
    path = Path(notebook) / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match=rf"v1/{name}: expected bytes with the digest in version\.json, found others"):
        refit.load_model(notebook)
    seal(notebook)
    with pytest.raises(StoreError, match=DAMAGED):
        refit.load_model(notebook)


def test_a_record_that_does_not_cover_the_weights_is_refused(notebook):
    record = Path(notebook) / "version.json"
    content = json.loads(record.read_text())
    del content["files"]["model.pt"]
    record.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=DAMAGED):
        refit.load_model(notebook)


def test_weights_that_would_run_code_are_refused_without_advice_to_run_it(notebook):
    torch.save({"weights": Path("x")}, Path(notebook) / "model.pt")
    seal(notebook)
    with pytest.raises(StoreError, match=r"found a damaged one: more than tensors in model\.pt; load another") as refused:
        refit.load_model(notebook)
    assert "weights_only" not in str(refused.value)


def name_factory(version: str, factory: str) -> None:
    path = Path(version) / "settings.json"
    settings = json.loads(path.read_text())
    settings["model"]["factory"] = factory
    path.write_text(json.dumps(settings))
    seal(version)


def test_a_function_that_only_the_version_names_is_neither_imported_nor_called(notebook):
    Path("trap.py").write_text("raise SystemExit('imported')")
    for factory in ("os:kill", "trap:build"):
        name_factory(notebook, factory)
        message = rf"v1: expected a version of the factory that model.factory names here, none, found one of `{factory}`, which"
        with pytest.raises(SettingsError, match=message):
            refit.load_model(notebook)
        with pytest.raises(SettingsError, match=message):
            load_version(Store("store"), "model", 1)
    assert "trap" not in sys.modules


FACTORY = """
from torch import nn
from own_layers import scale

def build(num_inputs, num_outputs):
    return nn.Sequential(nn.Linear(num_inputs, num_outputs, bias=BIAS), scale())
"""
LAYERS = """
import torch
from torch import nn

class scale(nn.Module):
    def forward(self, x):
        return ACTIVATION
"""


def write_networks(bias: str = "True", activation: str = "2 * x") -> None:
    """As another process finds them that begins now."""
    Path("own_networks.py").write_text(FACTORY.replace("BIAS", bias))
    Path("own_layers.py").write_text(LAYERS.replace("ACTIVATION", activation))
    shutil.rmtree("__pycache__", ignore_errors=True)
    for name in ("own_networks", "own_layers"):
        sys.modules.pop(name, None)


@pytest.fixture
def save_own_model(store, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)

    def save(**code: str) -> str:
        write_networks(**code)
        return train_and_save(store, {"model": {"factory": "own_networks:build"}})[0]

    yield save
    write_networks()


@pytest.mark.parametrize(
    "activation",
    ["2 * x", "2 * x + torch.rand(())", "x if len(x) > 2 or self.training else (x - 1000).log()"],
    ids=["plain", "drawing", "nan"],
)
def test_an_own_model_is_loaded_with_its_factory(save_own_model, activation):
    path = save_own_model(activation=activation)
    write_networks(activation=f"{activation}  # again")
    assert len(refit.load_model(path, trust=True).predict(ROWS)) == 5


def test_an_own_model_is_loaded_where_the_settings_name_its_factory_or_trust_the_store(save_own_model, monkeypatch):
    path = save_own_model()
    Path("refit.toml").write_text("model.factory = 'own_networks:build_another'")
    with pytest.raises(SettingsError, match=r"names here, `own_networks:build_another`, found one of `own_networks:build`"):
        refit.load_model(path)
    Path("refit.toml").write_text("model.factory = 'own_networks:build'")
    assert len(refit.load_model(path).predict(ROWS)) == 5
    Path("refit.toml").write_text("store.trust = true")
    assert len(refit.load_model(path).predict(ROWS)) == 5
    Path("refit.toml").unlink()
    monkeypatch.setenv("REFIT_MODEL__FACTORY", "own_networks:build")
    assert len(refit.load_model(path).predict(ROWS)) == 5


def test_an_own_model_whose_factory_is_gone_is_refused(save_own_model):
    path = save_own_model()
    write_networks()
    Path("own_networks.py").unlink()
    with pytest.raises(SettingsError, match=r"model\.factory: expected a function that can be imported"):
        refit.load_model(path, trust=True)


def test_an_own_model_whose_factory_takes_other_weights_is_refused(save_own_model):
    path = save_own_model()
    write_networks(bias="False")
    with pytest.raises(SettingsError, match=r"v1: expected the network that it was saved from, as own_networks:build builds it"):
        refit.load_model(path, trust=True)


def test_an_own_model_that_gives_other_logits_with_the_same_weights_is_refused(save_own_model):
    """It would score rows in another way than was measured when it was promoted."""
    path = save_own_model()
    write_networks(activation="2.1 * x")
    message = r"v1: expected the logits that it gave when it was saved, found others, as own_layers changed since; restore the code"
    with pytest.raises(SettingsError, match=message):
        refit.load_model(path, trust=True)


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_a_version_saved_where_products_are_less_precise_is_the_same_elsewhere(store, precision):
    torch.set_float32_matmul_precision(precision)
    try:
        path = train_and_save(store, {"model": {"hidden_sizes": [512, 512]}, "optimizer": {"lr": 0.01}})[0]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert refit.load_model(path).predict(ROWS).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("path", ["refit-store/models/model", "nowhere/v1"])
def test_a_path_without_a_version_is_told_how_a_version_is_named(path):
    with pytest.raises(
        StoreError, match=f"{path}: expected the folder of a saved version, such as refit-store/models/NAME/v1, found none"
    ):
        refit.load_model(path)
