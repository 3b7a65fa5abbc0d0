"""A whole run on a table whose target holds numbers, from its rows to what is made of the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from safetensors.torch import load as load_tensors
from sklearn import metrics as sklearn_metrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import refit
from refit.errors import SettingsError
from refit.promotion.comparison import Verdict, compare
from refit.refs import TrainingResult
from refit.registry.differences import find_differences
from refit.serving.export import export_model
from refit.serving.saved_model import load_model
from refit.serving.scoring import score_files
from refit.settings import PromotionSettings, SettingsTree
from refit.store.store import Store
from refit.training.checkpoints import digest_weights

NUM_ROWS, NUM_EPOCHS = 240, 4


def write_rows(num_rows: int = NUM_ROWS, noise: float = 0.1, unit: str = "") -> pl.DataFrame:
    """Rows of numbers near a million, the same ones first however many there are."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(num_rows, 3))
    y = 1e6 + x[:, 0] - 2 * x[:, 1] + noise * np.random.default_rng(1).normal(size=num_rows)
    frame = pl.DataFrame({**{f"x{i}": x[:, i] for i in range(3)}, "side": np.where(x[:, 2] > 0, "left", "right"), "y": y.round(3)})
    cells = [f"{value:.3f}{unit}" for value in y]
    (frame.with_columns(pl.Series("y", cells)) if unit else frame).write_parquet("rows.parquet")
    return frame


def find_numbers(rows: pl.DataFrame, frame: pl.DataFrame) -> np.ndarray:
    """The true numbers of some rows."""
    return rows[["x0"]].join(frame[["x0", "y"]], on="x0", how="left", maintain_order="left")["y"].to_numpy()


def give(**sections: Any) -> SettingsTree:
    given: dict[str, Any] = {
        "preset": "plain",
        "seed": 7,
        "data": {"source": "rows.parquet"},
        "loader": {"batch_size": 9},
        "model": {"hidden_sizes": [16], "activation": "tanh", "dropout": 0.25},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "training": {"num_epochs": NUM_EPOCHS, "patience": None},
    }
    return SettingsTree.model_validate({**given, **{name: {**given.get(name, {}), **more} for name, more in sections.items()}})


def train(**sections: Any) -> TrainingResult:
    return refit.train(give(**sections), report=lambda _: None)


def read(result: TrainingResult, name: str) -> Any:
    return json.loads((Path(result.model.path) / f"{name}.json").read_text())


def load_split(result: TrainingResult, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    digest = read(result, "manifest")["splits"][split]["digest"]
    tensors = load_tensors(Path("refit-store/objects", digest[:2], digest[2:]).read_bytes())
    return tensors["x"], tensors["y"]


@pytest.mark.parametrize(
    ("loss", "function"),
    [("squared", nn.functional.mse_loss), ("huber", nn.functional.huber_loss)],
    ids=["squared", "huber"],
)
def test_a_run_gives_the_bits_of_a_plain_loop(loss: str, function: Any) -> None:
    frame = write_rows()
    result = train(data={"features": ["x0", "x1", "x2"]}, training={"loss": loss})
    x, y = load_split(result, "train")
    val_x, val_y = load_split(result, "val")
    target = read(result, "manifest")["signature"]["target"]
    numbers = frame["y"].to_numpy()
    standardized = (numbers - target["centers"][0]) / target["scales"][0]
    assert np.isin(y.numpy(), standardized.astype(np.float32)).all()
    assert (y.mean().item(), y.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-6)
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.25), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(TensorDataset(x, y), batch_size=9, shuffle=True)
    losses, val_losses, weights = [], [], []
    for _ in range(NUM_EPOCHS):
        model.train()
        for rows, expected in loader:
            optimizer.zero_grad()
            found = function(model(rows).squeeze(1), expected)
            found.backward()
            optimizer.step()
            losses.append(found.item())
        model.eval()
        with torch.no_grad():
            val_losses.append(function(model(val_x).squeeze(1), val_y).item())
        weights.append(digest_weights(model.state_dict()))
    log = read(result, "log")
    assert [one for epoch in log for one in epoch["batch_losses"]] == losses
    assert [epoch["val_loss"] for epoch in log] == val_losses
    assert result.model.weights_digest == weights[val_losses.index(min(val_losses))]


def test_what_is_saved_scored_and_exported_is_in_the_units_of_the_column() -> None:
    frame = write_rows(unit=" kg")
    result = train(training={"num_epochs": 30})
    model, store = load_model(result.model.path), Store("refit-store")
    rows = model.manifest.load_test_rows(store)
    assert rows["y"][0].endswith(" kg")
    truth, predicted = find_numbers(rows, frame), model.predict(rows)
    metrics = read(result, "metrics")["test"]
    assert metrics["figures"]["RMSE"] == pytest.approx(sklearn_metrics.root_mean_squared_error(truth, predicted), rel=1e-5)
    assert metrics["figures"]["R²"] == pytest.approx(sklearn_metrics.r2_score(truth, predicted), abs=1e-6)
    assert metrics["figures"]["R²"] > 0.9
    assert [part["num_rows"] for part in metrics["bins"]] == [4] * 6 + [3] * 4
    card = (Path(result.model.path) / "card.md").read_text()
    assert "| split | rows | loss | RMSE | MAE | R² |" in card
    assert "predictions.png" in card
    score_files(model, "rows.parquet", "scored.parquet", "model@v1")
    scored = pl.read_parquet("scored.parquet")
    assert scored.columns == ["prediction", "model"]
    assert np.array_equal(scored["prediction"].to_numpy(), model.predict(frame))
    assert export_model(model, "model.pt2", "torch", rows) < 1e-4
    assert export_model(model, "model.onnx", "onnx", rows) < 1e-4
    session = onnxruntime.InferenceSession("model.onnx")
    inputs = {name: rows[name].to_numpy() for name in ("x0", "x1", "x2")} | {"side": rows["side"].to_numpy().astype(object)}
    (numbers,) = session.run(["prediction"], inputs)
    assert numbers.dtype == np.float64
    assert numbers == pytest.approx(predicted, abs=1e-4, rel=0)


def judge(candidate: TrainingResult, champion: TrainingResult | None, **settings: Any) -> Verdict:
    promotion = PromotionSettings.model_validate(settings)
    return compare(candidate.model, champion and champion.model.version, promotion, Store("refit-store"))


def test_a_candidate_is_judged_by_its_errors_in_the_units_of_the_column_whatever_each_was_standardized_by() -> None:
    write_rows()
    champion = train(training={"num_epochs": 30})
    first = judge(champion, None)
    assert first.reason.startswith("promoted: negative loss -")
    assert " of the mean of the targets on 36 rows, better by " in first.reason
    assert [part.num_rows for part in first.bins] == [4] * 6 + [3] * 4
    frame = write_rows(600)
    candidate = train(training={"num_epochs": 1}, optimizer={"lr": 1e-6})
    verdict = judge(candidate, champion, slices=["side"])
    assert verdict.decision.score == "negative_loss"
    assert verdict.reason.startswith("not promoted: negative loss -")
    assert "; the negative loss in 'side = " in verdict.reason
    rows = load_model(candidate.model.path).manifest.load_test_rows(Store("refit-store"))
    is_fair = rows["x0"].is_in(frame["x0"][NUM_ROWS:].implode()) | rows["x0"].is_in(
        load_model(champion.model.path).manifest.load_test_rows(Store("refit-store"))["x0"].implode()
    )
    fair = rows.filter(is_fair)
    for name, version in (("model@v2", candidate), ("model@v1", champion)):
        errors = load_model(version.model.path).predict(fair) - fair["y"].to_numpy()
        assert verdict.scores[name]["negative loss"] == pytest.approx(-np.mean(errors**2), rel=1e-5)
        assert verdict.scores[name]["RMSE"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-5)
    assert {part.name for part in verdict.decision.worse} == {"side = left", "side = right"}
    assert {drift.column: drift.extent for drift in verdict.drifts}["y"] == "stable"


def test_numbers_are_split_by_group_and_by_time_and_rows_of_a_group_count_together() -> None:
    frame = write_rows().with_columns(
        shop=pl.int_range(NUM_ROWS) // 6, day=pl.date(2026, 1, 1) + pl.duration(days=pl.int_range(NUM_ROWS))
    )
    frame.write_parquet("rows.parquet")
    by_group = train(data={"group_column": "shop", "exclude": ["day"]}, training={"num_epochs": 30})
    rows = load_model(by_group.model.path).manifest.load_test_rows(Store("refit-store"))
    shops = rows["shop"].unique()
    assert len(rows) == 6 * len(shops)
    assert f" rows in {len(shops)} groups, better by " in judge(by_group, None).reason
    by_time = train(data={"split": "time", "time_column": "day", "exclude": ["shop"]})
    rows = load_model(by_time.model.path).manifest.load_test_rows(Store("refit-store"))
    assert rows["day"].min() == frame["day"].sort()[-len(rows)]


def test_a_champion_of_the_other_task_or_of_numbers_written_otherwise_is_not_replaced() -> None:
    write_rows()
    numbers = train()
    write_rows(unit=" kg")
    other_unit = judge(train(), numbers)
    found = "column `y`: expected a number written as `1234.5`, found a number written as `1234.5` with `kg`; write it as before"
    assert found in other_unit.reason
    frame = write_rows()
    frame.with_columns((pl.col("y") > 1e6).cast(pl.Int64)).write_parquet("rows.parquet")
    classes = judge(train(), numbers)
    assert "expected a number to predict, found one of 2 classes" in classes.reason
    assert (other_unit.decision.is_better, classes.decision.is_better) == (False, False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"training": {"loss": "binary"}},
            r"training\.loss: expected a loss of numbers, which y holds: `squared`, .* found `binary`",
        ),
        ({"training": {"class_weights": {"a": 2.0}}}, r"training\.class_weights: expected a target of classes"),
        ({"training": {"label_smoothing": 0.2}}, r"training\.label_smoothing: expected a target of classes"),
        ({"training": {"monitor": "f1"}}, r"training\.monitor: expected a target of classes .* found numbers; drop it"),
        ({"training": {"calibrate": True}}, r"training\.calibrate: expected a target of classes"),
        ({"promotion": {"score": "macro_f1"}}, r"promotion\.score: expected a target of classes"),
        ({"promotion": {"min_score": 0.5}}, r"promotion\.min_score: expected less than 0, .* found 0\.5; lower it"),
    ],
    ids=["loss", "weights", "smoothing", "monitor", "calibrate", "score", "min_score"],
)
def test_settings_that_mean_nothing_for_numbers_are_refused(sections: dict[str, Any], message: str) -> None:
    write_rows()
    train()  # a run that finds all epochs done refuses them, too
    with pytest.raises(SettingsError, match=message):
        train(**sections)


def test_f1_of_more_than_two_classes_is_no_score() -> None:
    write_rows().with_columns(y=pl.Series([0, 1, 2] * NUM_ROWS)[:NUM_ROWS]).write_parquet("rows.parquet")
    with pytest.raises(SettingsError, match=r"promotion\.score: expected two classes for f1, found 3; take macro_f1"):
        train(data={"task": "classification"}, promotion={"score": "f1"})


def test_a_loss_of_numbers_is_refused_for_classes() -> None:
    write_rows().with_columns(y=pl.Series([0, 1] * (NUM_ROWS // 2))).write_parquet("rows.parquet")
    with pytest.raises(
        SettingsError, match=r"expected a loss of classes, which y holds: `cross_entropy`, found `squared`; change it"
    ):
        train(training={"loss": "squared"})


def test_all_rows_serve_a_last_training_and_own_metrics_are_in_the_units_of_the_column() -> None:
    write_rows()
    result = train(training={"refit_on_all": True})
    record = read(result, "version")
    assert record["refit_on_all"]
    assert record["held_back"]["weights_digest"] != record["weights_digest"]
    later = train(optimizer={"lr": 0.01}, training={"metrics": ["sklearn.metrics:max_error"]})
    errors = np.abs(read(later, "metrics")["test"]["figures"]["max error"])
    assert 0 < errors < 20, "in the units of the column"
    found = find_differences(Store("refit-store"), ("model", 1), ("model", 2))
    assert found.settings["optimizer.lr"] == (0.05, 0.01)
    assert ("test", "RMSE") in found.metrics


def test_quantiles_hold_what_they_say_and_are_scored_and_exported() -> None:
    frame = write_rows(600, noise=1.0)
    result = train(training={"loss": "quantile", "num_epochs": 20}, model={"dropout": 0.0})
    model = load_model(result.model.path)
    rows = model.manifest.load_test_rows(Store("refit-store"))
    quantiles = model.predict_quantiles(rows)
    assert np.array_equal(quantiles[:, 1], model.predict(rows))
    assert (np.diff(quantiles, axis=1) >= 0).all()
    truth = find_numbers(rows, frame)
    inside = ((quantiles[:, 0] <= truth) & (truth <= quantiles[:, 2])).mean()
    assert read(result, "metrics")["test"]["figures"]["inside 0.1 to 0.9"] == pytest.approx(inside, abs=1e-9)
    assert 0.6 < inside < 0.95
    assert export_model(model, "model.onnx", "onnx", rows) < 1e-4
    assert export_model(model, "model.pt2", "torch", rows) < 1e-4
    assert [output.name for output in onnxruntime.InferenceSession("model.onnx").get_outputs()] == ["prediction", "quantiles"]
    squared = train(training={"num_epochs": 20})
    for one, other in ((result, squared), (squared, result)):
        assert "negative loss" in judge(one, other).reason
    with pytest.raises(SettingsError, match=r"expected a model that was trained with training\.loss `quantile`, found another"):
        load_model(squared.model.path).predict_quantiles(rows)
