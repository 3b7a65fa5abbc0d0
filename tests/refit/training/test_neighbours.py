import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import refit
from refit.data.examples import Examples
from refit.errors import SettingsError
from refit.refs import Ref
from refit.settings import Settings, resolve_settings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import load_test_rows
from refit.tables.table_examples import load_manifest
from refit.training import neighbours
from refit.training.neighbours import choose_neighbours, fit_neighbours, load_outputs

NUM_ROWS = 400


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Numbers, a category of many values and a text; both numbers together tell the class, but not on a line."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(NUM_ROWS, 2))
    place = generator.integers(12, size=NUM_ROWS)
    words = [f"a {'good' if right else 'bad'} thing of {number}" for number, right in enumerate(x[:, 0] > 0)]
    columns = {"x0": x[:, 0], "x1": x[:, 1], "place": [f"p{number}" for number in place], "words": words}
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    third = np.digitize(x[:, 1], [-0.5, 0.5])
    pl.DataFrame({**columns, "third": third, "y": (x[:, 0] * x[:, 1] > 0).astype(int)}).write_parquet(path)
    return path


def prepare(table: Path, data: dict | None = None, **training) -> tuple[Settings, Ref, Examples]:
    features = ["x0", "x1", "place"]
    given = {"data": {"source": str(table), "features": features, **(data or {})}, "training": {"baseline": "auto", **training}}
    settings = resolve_settings(given)[0]
    store = Store(settings.store.url)
    snapshot = build_dataset(settings.data, settings.seed, store)
    return settings, snapshot, load_manifest(snapshot, store)


def read_split(examples: Examples, split: str, table: Path, settings: Settings) -> pl.DataFrame:
    """The raw rows of a split, in its order."""
    if split == "test":
        return load_test_rows(examples, Store(settings.store.url))
    x, _ = examples.load_split(split, Store(settings.store.url))
    rows = pl.read_parquet(table)
    numbers = torch.tensor(rows["x1"].to_numpy())
    column = next(column for column in examples.signature.columns if column.name == "x1")
    place = examples.signature.input_names.index("x1")
    wanted = x[:, place].double() * column.stds[0] + column.means[0]
    return rows[(wanted[:, None] - numbers[None, :]).abs().argmin(dim=1).numpy()]


def test_both_give_what_scikit_learn_gives_for_the_raw_rows(table):
    settings, snapshot, examples = prepare(table)
    outputs = load_outputs(fit_neighbours(["linear", "trees"], snapshot, settings), Store(settings.store.url))
    train, val, test = (read_split(examples, split, table, settings) for split in ("train", "val", "test"))
    names = ["x0", "x1", "place"]

    encode = make_column_transformer((StandardScaler(), ["x0", "x1"]), (OneHotEncoder(handle_unknown="ignore"), ["place"]))
    line = make_pipeline(encode, LogisticRegression(max_iter=300)).fit(train[names].to_pandas(), train["y"].to_numpy())
    np.testing.assert_allclose(outputs["linear"].exp(), line.predict_proba(test[names].to_pandas()), atol=2e-4)

    def rank(rows: pl.DataFrame) -> np.ndarray:
        order = {name: number for number, name in enumerate(sorted(train["place"].unique()))}
        return np.column_stack([rows["x0"], rows["x1"], [order[name] for name in rows["place"]]])

    trees = HistGradientBoostingClassifier(max_iter=300, early_stopping=True, categorical_features=[2], random_state=0)
    trees.fit(rank(train), train["y"].to_numpy(), X_val=rank(val), y_val=val["y"].to_numpy())
    assert (outputs["trees"].argmax(dim=1).numpy() == trees.predict(rank(test))).mean() > 0.95
    assert (outputs["trees"].argmax(dim=1).numpy() == test["y"].to_numpy()).mean() > 0.85


def test_they_weigh_classes_as_the_network_does(table):
    found = {}
    for weights in (None, {"1": 10}):
        settings, snapshot, _ = prepare(table, {"features": ["x0"]}, class_weights=weights)
        outputs = load_outputs(fit_neighbours(["linear", "trees"], snapshot, settings), Store(settings.store.url))
        found[weights is None] = {kind: (part.argmax(dim=1) == 0).double().mean().item() for kind, part in outputs.items()}
    assert all(found[False][kind] < found[True][kind] - 0.1 for kind in ("linear", "trees")), found


def test_more_classes_than_two_are_told_apart(table):
    settings, snapshot, examples = prepare(table, {"target": "third", "features": ["x0", "x1"]})
    outputs = load_outputs(fit_neighbours(["linear", "trees"], snapshot, settings), Store(settings.store.url))
    _, y = examples.load_split("test", Store(settings.store.url))
    assert all((found.argmax(dim=1) == y).double().mean() > 0.9 for found in outputs.values())


@pytest.mark.parametrize(("loss", "name"), [(None, "squared_error"), ("absolute", "absolute_error")])
def test_numbers_are_predicted_as_scikit_learn_predicts_them(table, loss, name):
    rows = pl.read_parquet(table).with_columns(sum=100 + 7 * pl.col("x0") + pl.col("x1") ** 2)
    rows.write_parquet("numbers.parquet")
    data = {"target": "sum", "task": "regression", "features": ["x0", "x1"]}
    settings, snapshot, examples = prepare(Path("numbers.parquet"), data, loss=loss)
    assert choose_neighbours(settings, examples) == ["linear", "trees"]
    store = Store(settings.store.url)
    outputs = load_outputs(fit_neighbours(["linear", "trees"], snapshot, settings), store)
    parts = {split: [part.double().numpy() for part in examples.load_split(split, store)] for split in examples.splits}
    line = Ridge().fit(*parts["train"])
    np.testing.assert_allclose(outputs["linear"][:, 0], line.predict(parts["test"][0]), atol=1e-3)
    trees = HistGradientBoostingRegressor(loss=name, max_iter=300, early_stopping=True, random_state=0)
    trees.fit(*parts["train"], X_val=parts["val"][0], y_val=parts["val"][1])
    np.testing.assert_allclose(outputs["trees"][:, 0], trees.predict(parts["test"][0]), atol=1e-6)


def test_a_run_on_numbers_tells_of_them_in_the_units_of_the_column(table):
    pl.read_parquet(table).with_columns(sum=100 + 70 * pl.col("x0") * pl.col("x1")).write_parquet("numbers.parquet")
    data = {"source": "numbers.parquet", "target": "sum", "features": ["x0", "x1"]}
    result = refit.train(
        {"preset": "plain", "data": data, "optimizer": {"lr": 1e-6}, "training": {"num_epochs": 1, "baseline": "both"}}
    )
    told = json.loads((Path(result.model.path) / "version.json").read_text())["neighbours"]
    assert list(told["figures"]) == ["mean of the targets", "linear model", "boosted trees", "this model"]
    better = f"boosted trees are better on this table: RMSE {told['figures']['boosted trees']['RMSE']:.4f} on 60 test rows,"
    assert told["better"].startswith(better)
    assert told["figures"]["mean of the targets"]["RMSE"] > 30


def test_they_give_the_same_bits_again_and_draw_nothing_from_a_global_generator(table):
    settings, snapshot, _ = prepare(table, {"features": ["x0", "x1", "place", "words"], "kinds": {"words": "text"}})
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    first, second = (fit_neighbours(["linear", "trees"], snapshot, settings) for _ in range(2))
    assert first == second
    assert states == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())


def test_texts_are_learned_from(table):
    settings, snapshot, examples = prepare(table, {"features": ["words", "x1"], "kinds": {"words": "text"}})
    outputs = load_outputs(fit_neighbours(["trees"], snapshot, settings), Store(settings.store.url))
    _, y = examples.load_split("test", Store(settings.store.url))
    assert (outputs["trees"].argmax(dim=1) == y).double().mean() > 0.8


@pytest.mark.parametrize(("baseline", "kinds"), [("none", []), ("trees", ["trees"]), ("both", ["linear", "trees"])])
def test_the_settings_choose_them(table, baseline, kinds):
    settings, _, examples = prepare(table, baseline=baseline)
    assert choose_neighbours(settings, examples) == kinds


def test_by_default_a_large_table_has_fewer_or_none(table, monkeypatch):
    settings, _, examples = prepare(table)
    assert choose_neighbours(settings, examples) == ["linear", "trees"]
    monkeypatch.setitem(neighbours.MAX_CELLS, "trees", NUM_ROWS)
    assert choose_neighbours(settings, examples) == ["linear"]
    monkeypatch.setattr(neighbours, "MAX_ROWS", 100)
    assert choose_neighbours(settings, examples) == []


def test_without_scikit_learn_one_line_says_how_to_get_it(table, monkeypatch):
    monkeypatch.setattr(neighbours, "has_sklearn", lambda: False)
    settings, _, examples = prepare(table)
    lines: list[str] = []
    assert (choose_neighbours(settings, examples, lines.append), lines) == ([], [neighbours.HINT])
    settings, _, examples = prepare(table, baseline="both")
    with pytest.raises(SettingsError, match=r"^training\.baseline: expected scikit-learn, found none; `pip install"):
        choose_neighbours(settings, examples)


def test_without_rows_to_judge_on_there_is_nothing_to_compare(table):
    settings, _, examples = prepare(table, {"val": 0, "test": 0})
    assert choose_neighbours(settings, examples) == []
    settings, _, examples = prepare(table, {"val": 0, "test": 0}, baseline="both")
    with pytest.raises(SettingsError, match=r"^training\.baseline: expected a table with two classes or more"):
        choose_neighbours(settings, examples)


def test_a_run_tells_of_them_once_and_its_weights_do_not_depend_on_them(table, monkeypatch):
    given = {"data": {"source": str(table), "features": ["x0", "x1"]}, "training": {"num_epochs": 1, "baseline": "none"}}
    given["optimizer"] = {"lr": 1e-6}
    alone = refit.train(given, report=lambda _: None)
    lines: list[str] = []
    given["training"]["baseline"] = "both"
    beside = refit.train(given, report=lines.append)
    assert beside.model.weights_digest == alone.model.weights_digest
    told = json.loads((Path(beside.model.path) / "version.json").read_text())["neighbours"]
    assert list(told["figures"]) == ["majority class", "linear model", "boosted trees", "this model"]
    assert told["better"].startswith("boosted trees are better on this table: accuracy 0.")
    assert told["better"] in lines
    card = (Path(beside.model.path) / "card.md").read_text()
    assert f"**Caution:** {told['better']}." in card
    assert "| boosted trees | 0." in card

    monkeypatch.setattr(neighbours, "fit_neighbours", lambda *_: pytest.fail("fitted again"))
    given["name"] = "other"
    again = refit.train(given, report=lines.append)
    assert (Path(again.model.path) / "card.md").read_text().count("boosted trees |") == 1
