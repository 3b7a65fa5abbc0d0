import json
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch
from sklearn import metrics
from torch.nn import functional

import refit
from refit.data.signature import Target
from refit.errors import SettingsError
from refit.serving.export import export_model
from refit.serving.saved_model import load_model
from refit.settings import TrainingSettings
from refit.training.objective import Classification
from refit.training.tuning import Tuning, fit_temperature, fit_threshold, refuse_tuning


def make_rows(num_rows: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, with equal ones among them, of a rare class."""
    generator = np.random.default_rng(0)
    is_positive = generator.random(num_rows) < 0.1
    probabilities = np.clip(generator.normal(0.2 + 0.2 * is_positive, 0.1), 0, 1).round(2)
    return torch.tensor(probabilities), torch.tensor(is_positive)


@pytest.mark.parametrize(
    ("monitor", "score"),
    [
        ("loss", metrics.f1_score),
        ("f1", metrics.f1_score),
        ("accuracy", metrics.accuracy_score),
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("macro_f1", lambda y, found: metrics.f1_score(y, found, average="macro")),
    ],
)
def test_no_threshold_has_a_better_score_on_these_rows(monitor, score):
    probabilities, is_positive = make_rows()
    found = fit_threshold(probabilities, is_positive, monitor)
    best = max(score(is_positive, probabilities >= threshold) for threshold in np.arange(0.005, 1, 0.01))
    assert score(is_positive, probabilities >= found) == pytest.approx(best)
    assert (probabilities - found).abs().min() > 0.001, "between two probabilities"


def test_the_temperature_is_that_of_the_least_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (2000,), generator=generator)
    logits = torch.randn(2000, 3, generator=generator) + functional.one_hot(target, 3)
    probabilities = logits.softmax(dim=1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert fit_temperature(5 * logits, drawn) == pytest.approx(5, rel=0.1)
    losses = [functional.cross_entropy(5 * logits / t, drawn) for t in (fit_temperature(5 * logits, drawn), 4.5, 5.5)]
    assert losses[0] == min(losses)


def test_rows_that_are_all_right_do_not_make_a_network_sure():
    target = torch.arange(40) % 4
    temperature = fit_temperature(functional.one_hot(target, 4) * 3.0, target)
    wrong = 1 - (functional.one_hot(target, 4) * 3.0 / temperature).softmax(dim=1).max().item()
    assert wrong == pytest.approx(1 / 42, rel=0.01)


def test_outputs_are_read_by_threshold_and_temperature():
    outputs = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    objective = Classification(("no", "yes"), tuning=Tuning(temperature=2.0, positive=1, threshold=0.4))
    predicted, probabilities = objective.answer(outputs)
    torch.testing.assert_close(probabilities, (outputs / 2).softmax(dim=1))
    assert predicted.tolist() == [0, 1, 1]
    target = torch.tensor([0, 0, 1])
    assert objective.measure(outputs, target).confusion == [[1, 1], [0, 1]]
    assert objective.measure(outputs, target).loss == pytest.approx(functional.cross_entropy(outputs / 2, target).item())
    assert objective.score_rows(outputs, target, "accuracy").is_right.tolist() == [True, False, True]


def test_a_class_that_the_model_does_not_know_may_be_likelier_than_the_rest():
    outputs = torch.tensor([[0.0, -1.0, 3.0], [0.0, 3.0, -9.0]])
    objective = Classification(("no", "yes", "maybe"), tuning=Tuning(positive=1, threshold=0.4))
    assert objective.answer(outputs)[0].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("settings", "target", "message"),
    [
        ({"tune_threshold": True}, Target(name="y", classes=[1, 2, 3]), r"training\.tune_threshold: expected two classes, found 3"),
    ],
)
def test_what_has_nothing_to_tune_is_refused(settings, target, message):
    with pytest.raises(SettingsError, match=message):
        refuse_tuning(TrainingSettings(**settings), target)


@pytest.mark.pictures
def test_a_version_keeps_what_was_tuned_and_predicts_exports_and_is_scored_by_it():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1500, 2))
    is_one = x.sum(axis=1) + generator.normal(size=1500) > 3
    pl.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": is_one.astype(int)}).write_parquet("rows.parquet")
    training = {"num_epochs": 10, "tune_threshold": True, "calibrate": True}
    given = {"preset": "plain", "data": {"source": "rows.parquet"}, "model": {"hidden_sizes": []}, "optimizer": {"lr": 0.03}}
    result = refit.train({**given, "training": training}, report=lambda _: None)
    plain = refit.train({**given, "training": {"num_epochs": 10}}, report=lambda _: None)
    assert result.model.weights_digest == plain.model.weights_digest
    folder, model = Path(result.model.path), load_model(result.model.path)
    assert model.tuning.positive == 1
    assert model.tuning.threshold < 0.5
    assert model.tuning.temperature != 1
    scored = {place: json.loads((Path(run.model.path) / "metrics.json").read_text()) for place, run in enumerate((result, plain))}
    assert scored[0]["val"]["classes"][1]["f1"] > scored[1]["val"]["classes"][1]["f1"]
    assert scored[0]["val"]["loss"] < scored[1]["val"]["loss"]
    assert "![precision and recall](precision.png)" in (folder / "card.md").read_text()
    assert (folder / "precision.png").read_bytes().startswith(b"\x89PNG")
    assert f"from a probability of {model.tuning.threshold:.4g} on" in (folder / "card.md").read_text()
    rows = pl.read_parquet("rows.parquet")
    assert (model.predict(rows) == (model.predict_proba(rows)[:, 1] >= np.float32(model.tuning.threshold))).all()
    for format, file in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        assert export_model(model, file, format, rows) < 1e-6
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    cells = {name: rows[name].to_numpy() for name in ("x0", "x1")}
    assert (session.run(None, cells)[0].ravel() == model.predict(rows)).all()
    again = refit.Classifier({**{name: part for name, part in given.items() if name != "data"}, "training": training})
    assert again.fit(rows[["x0", "x1"]], rows["y"]).model_.tuning.positive == 1
