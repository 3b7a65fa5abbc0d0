import numpy as np
import polars as pl
import pytest
import torch
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

import refit
from refit.data.signature import Target
from refit.errors import SettingsError
from refit.serving.saved_model import load_model
from refit.settings import resolve_settings
from refit.training.objective import Classification, WeightedClassification
from refit.training.objectives import build_objective
from refit.training.rare_classes import SCORES, trace_curve, weigh_classes


def make_outputs(num_classes: int, num_rows: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that say something of targets of which the last class is rare."""
    generator = torch.Generator().manual_seed(num_classes)
    weights = torch.tensor([1.0] * (num_classes - 1) + [0.1])
    target = torch.multinomial(weights, num_rows, replacement=True, generator=generator)
    noise = torch.randn(num_rows, num_classes, generator=generator)
    return noise.round(decimals=1) + 1.5 * functional.one_hot(target, num_classes), target


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "average_precision"])
def test_what_is_monitored_is_what_scikit_learn_measures(name, num_classes):
    outputs, target = make_outputs(num_classes)
    objective, y, found = Classification(tuple(range(num_classes)), monitor=name), target.numpy(), outputs.argmax(dim=1).numpy()
    expected = {
        "accuracy": metrics.accuracy_score(y, found),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, found),
        "macro_f1": metrics.f1_score(y, found, average="macro"),
        "average_precision": average_precision(y, outputs.double().softmax(dim=1).float().numpy()),
    }[name]
    assert objective.score(outputs, target) == pytest.approx(expected, abs=1e-6)
    found = objective.measure(outputs, target)
    assert getattr(found, name) == pytest.approx(expected, abs=1e-6)


def average_precision(y: np.ndarray, p: np.ndarray) -> float:
    if p.shape[1] == 2:
        return metrics.average_precision_score(y, p[:, 1])
    return np.mean([metrics.average_precision_score(y == place, p[:, place]) for place in range(p.shape[1])])


def test_the_curve_is_that_of_scikit_learn():
    outputs, target = make_outputs(2)
    probabilities = outputs.softmax(dim=1)
    precision, recall, _ = metrics.precision_recall_curve(target, probabilities[:, 1])
    found = trace_curve(probabilities, target)
    assert len(found) <= 200
    assert {*found} <= {*zip(recall.tolist(), precision.tolist(), strict=True)}
    assert found[-1] == (1.0, pytest.approx(target.double().mean().item()))
    assert Classification((0, 1)).measure(outputs, target).curve == found
    assert Classification((0, 1)).measure(outputs[:, [0, 1]], torch.arange(300) % 2).curve == []


def test_f1_is_that_of_the_rarer_class():
    outputs, target = make_outputs(2)
    found = outputs.argmax(dim=1)
    score = SCORES["f1"]
    assert score(outputs, found, target) == pytest.approx(metrics.f1_score(target, found))
    assert score(outputs, 1 - found, 1 - target) == pytest.approx(metrics.f1_score(target, found))


def test_balanced_weights_are_those_of_scikit_learn_and_given_ones_leave_others_at_1():
    y = np.repeat(np.arange(3), [50, 30, 4])
    assert weigh_classes("balanced", "abc", [50, 30, 4]) == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(3), y=y)
    )
    assert weigh_classes({"b": 3}, "abc", [50, 30, 4]) == (1, 3, 1)
    with pytest.raises(SettingsError, match=r"^training\.class_weights: expected classes of the target, `a`, `b`, `c`, found `d`"):
        weigh_classes({"d": 3}, "abc", [50, 30, 4])


@pytest.mark.parametrize("num_members", [None, 3])
def test_a_weighted_loss_is_the_mean_over_rows_of_weighted_losses(num_members):
    outputs, target = make_outputs(3, 20)
    if num_members:
        outputs = outputs[:, None].repeat(1, num_members, 1)
    objective = WeightedClassification((0, 1, 2), (1.0, 2.0, 5.0))
    once = functional.cross_entropy(outputs if num_members is None else outputs[:, 0], target, reduction="none")
    expected = (once * torch.tensor([1.0, 2.0, 5.0])[target]).mean()
    torch.testing.assert_close(objective.loss(outputs, target), expected)


def test_f1_is_of_two_classes():
    with pytest.raises(SettingsError, match=r"training\.monitor: expected two classes for f1, found 3"):
        build_objective(Target(name="y", classes=[1, 2, 3]), monitor="f1")


def test_weights_beside_a_loss_of_its_own_are_refused():
    with pytest.raises(SettingsError, match=r"training\.class_weights: expected none beside a loss"):
        resolve_settings({"training": {"class_weights": "balanced", "loss": "cross_entropy"}})


def test_smoothing_beside_weights_is_refused_and_a_preset_then_has_none():
    with pytest.raises(SettingsError, match=r"training\.label_smoothing: expected 0 beside class weights"):
        resolve_settings({"training": {"class_weights": "balanced", "label_smoothing": 0.1}})
    found = [resolve_settings({"preset": "realmlp", "training": {"loss": loss}})[0] for loss in (None, "squared")]
    assert [settings.training.label_smoothing for settings in found] == [0.1, 0.0]


@pytest.fixture
def rare() -> dict:
    """Settings for a table of which 3 % of the rows are positive."""
    x = np.random.default_rng(0).normal(size=(1000, 2))
    pl.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": (x.sum(axis=1) > 2.3).astype(int)}).write_csv("rows.csv")
    return {"preset": "plain", "data": {"source": "rows.csv"}, "model": {"hidden_sizes": []}, "optimizer": {"lr": 0.01}}


def test_balanced_weights_find_more_of_a_rare_class(rare):
    recalls = []
    for weights in ("none", "balanced"):
        training = {"num_epochs": 5, "class_weights": weights}
        result = refit.train({**rare, "training": training}, report=lambda _: None)
        model = load_model(result.model.path)
        rows = pl.read_csv("rows.csv").filter(pl.col("y") == 1)
        recalls.append((model.predict(rows) == 1).mean())
    assert recalls[0] < 0.5 < recalls[1]


def test_the_best_epoch_is_that_of_what_is_monitored(rare):
    scores: list[str] = []
    training = {"num_epochs": 12, "monitor": "average_precision", "patience": 4}
    result = refit.train({**rare, "training": training}, report=scores.append)
    found = [float(line.rpartition("val score ")[2]) for line in scores if line.startswith("epoch ")]
    assert result.best_epoch == 1 + found.index(max(found))
    assert len(found) == min(12, result.best_epoch + 4)
