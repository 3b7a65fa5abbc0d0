import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional

from refit.data.signature import Target
from refit.training.metrics import NumberMetrics, read_metrics
from refit.training.objectives import Quantiles, StandardizedNumber, build_objective

TARGET = Target(name="y", kind="numbers", centers=[1e6], scales=[0.5])


def build(loss: str | None = None) -> StandardizedNumber:
    objective = build_objective(TARGET, loss)
    assert isinstance(objective, StandardizedNumber)
    return objective


def make(num_rows: int = 500) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Outputs `(N, 1)` and standardized targets, and what they are in the units of the column."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(num_rows, generator=generator)
    outputs = target[:, None] + torch.randn(num_rows, 1, generator=generator) / 1000
    return outputs, target, 1e6 + 0.5 * outputs[:, 0].double().numpy(), 1e6 + 0.5 * target.double().numpy()


def test_metrics_are_those_of_scikit_learn_in_the_units_of_the_column_however_far_from_0_it_is() -> None:
    outputs, target, predicted, true = make()
    found = build().measure(outputs, target)
    expected = {
        "RMSE": sklearn_metrics.root_mean_squared_error(true, predicted),
        "MAE": sklearn_metrics.mean_absolute_error(true, predicted),
        "R²": sklearn_metrics.r2_score(true, predicted),
    }
    assert found.figures == pytest.approx(expected, rel=1e-6)
    assert found.loss == functional.mse_loss(outputs[:, 0], target).item()
    assert build().score(outputs, target) == found.figures["R²"]
    assert read_metrics(found.model_dump(mode="json")) == found


def test_predictions_keep_the_digits_of_a_float64() -> None:
    outputs, _, predicted, _ = make()
    assert build().predict(outputs).dtype == np.float64
    assert np.array_equal(build().predict(outputs), predicted)
    assert build().tabulate(outputs)["prediction"].tolist() == predicted.tolist()


def test_bins_hold_as_many_rows_each_and_the_residuals_of_these() -> None:
    outputs, target, predicted, true = make(95)
    found = build().measure(outputs, target)
    assert isinstance(found, NumberMetrics)
    assert [part.num_rows for part in found.bins] == [10] * 5 + [9] * 5
    lowest = np.argsort(predicted)[:10]
    first, residuals = found.bins[0], true[lowest] - predicted[lowest]
    assert (first.predicted, first.true) == pytest.approx((predicted[lowest].mean(), true[lowest].mean()), rel=1e-15)
    assert (first.low, first.median, first.high) == pytest.approx(np.quantile(residuals, [0.05, 0.5, 0.95]), abs=1e-9)
    assert len(build().measure(outputs[:3], target[:3]).bins) == 3


@pytest.mark.parametrize(
    ("loss", "score"), [("squared", np.square), ("absolute", np.abs), ("huber", np.abs)], ids=["squared", "absolute", "huber"]
)
def test_rows_are_scored_by_their_errors_in_the_units_of_the_column(loss: str, score: np.ufunc) -> None:
    outputs, target, predicted, true = make()
    objective = build(loss)
    assert objective.score_rows(outputs, target.double(), "negative_loss").scores == pytest.approx(
        -score(predicted - true), rel=1e-5
    )
    assert objective.score_baseline(target) == pytest.approx(-score(1e6 - true), abs=1e-9)


def test_the_users_own_loss_scores_rows_in_the_units_of_the_column(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "pinball_of_mine.py").write_text(
        "def lose(outputs, target):\n    error = target - outputs\n    return (0.9 * error).maximum(-0.1 * error).mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outputs, target, predicted, true = make(20)
    expected = [-sklearn_metrics.mean_pinball_loss([y], [p], alpha=0.9) for y, p in zip(true, predicted, strict=True)]
    scores = build("pinball_of_mine:lose").score_rows(outputs, target, "negative_loss").scores
    assert scores == pytest.approx(expected, rel=1e-5)


def test_equal_targets_have_no_explained_variance() -> None:
    found = build().measure(torch.tensor([[0.5], [1.0]]), torch.tensor([2.0, 2.0]))
    assert (found.figures["R²"], found.figures["MAE"]) == (None, 0.625)
    assert build().score(torch.tensor([[0.5]]), torch.tensor([2.0])) == 0.0


def test_each_of_some_members_is_trained_by_its_own_loss() -> None:
    outputs, target = torch.randn(8, 3, 1), torch.randn(8)
    expected = torch.stack([functional.mse_loss(outputs[:, member, 0], target) for member in range(3)]).mean()
    assert build().loss(outputs, target).item() == pytest.approx(expected.item(), rel=1e-6)
    assert build().loss(outputs[:, 0, 0], target).item() == functional.mse_loss(outputs[:, 0, 0], target).item()


def build_quantiles() -> Quantiles:
    objective = build_objective(TARGET.model_copy(update={"quantiles": [0.1, 0.5, 0.9]}), "quantile")
    assert isinstance(objective, Quantiles)
    return objective


def test_quantiles_are_learned_by_the_pinball_loss_of_each_and_of_each_member() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, target = torch.randn(40, 3, generator=generator), torch.randn(40, generator=generator)
    expected = [
        sklearn_metrics.mean_pinball_loss(target, outputs[:, place], alpha=level) for place, level in enumerate([0.1, 0.5, 0.9])
    ]
    assert build_quantiles().loss(outputs, target).item() == pytest.approx(np.mean(expected), rel=1e-6)
    members = torch.stack([outputs, outputs + 1], dim=1)
    both = [build_quantiles().loss(part, target).item() for part in (outputs, outputs + 1)]
    assert build_quantiles().loss(members, target).item() == pytest.approx(np.mean(both), rel=1e-6)


def test_of_quantiles_the_median_is_predicted_and_those_that_cross_are_put_in_order() -> None:
    outputs, target = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 0.0, 1.0]]), torch.tensor([2.5, 5.0])
    table = build_quantiles().tabulate(outputs)
    assert {name: values.tolist() for name, values in table.items()} == {
        "prediction": [1e6 + 1, 1e6],
        "quantile 0.1": [1e6 + 0.5, 1e6 - 0.5],
        "quantile 0.9": [1e6 + 1.5, 1e6 + 0.5],
    }
    assert build_quantiles().predict(outputs).tolist() == [1e6 + 1, 1e6]
    figures = build_quantiles().measure(outputs, target).figures
    assert (figures["MAE"], figures["inside 0.1 to 0.9"]) == (1.375, 0.5)
    assert build_quantiles().score_rows(outputs, target, "negative_loss").scores.tolist() == [-0.25, -2.5]
    for one_number in (outputs[:, 1], outputs[:, 1:2]):
        found = build_quantiles().measure(one_number, target)
        assert (found.figures["MAE"], found.figures["inside 0.1 to 0.9"]) == (1.625, 0.0)
        assert math.isfinite(found.loss)
    assert build_quantiles().score_baseline(target).tolist() == [-1.25, -2.5]
