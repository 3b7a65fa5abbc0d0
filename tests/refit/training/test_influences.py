"""Metrics of all rows, spread over the rows."""

import numpy as np
import pytest
import torch

from refit.training.influences import SPREAD
from refit.training.rare_classes import SCORES

TIMES = 4000


@pytest.mark.parametrize(
    ("score", "num_classes"), [(score, number) for score in SPREAD for number in (2, 4) if (score, number) != ("f1", 4)]
)
def test_a_spread_metric_has_it_as_its_mean_and_says_how_much_a_row_moves_it(score, num_classes):
    rng, num_rows = np.random.default_rng(0), 60
    probabilities = rng.dirichlet(np.ones(num_classes), num_rows).round(1)  # some of which are equal
    y, predicted = rng.integers(0, num_classes, num_rows), probabilities.argmax(axis=1)

    def measure(rows) -> float:
        return SCORES[score](*(torch.tensor(part[rows]) for part in (probabilities, predicted, y)))

    spread, everything = SPREAD[score](probabilities, predicted, y), np.tile(np.arange(num_rows), TIMES)
    metric = measure(everything)
    assert spread.mean() == pytest.approx(metric, abs=1e-6)
    for row in range(5):
        moved = (measure(np.append(everything, row)) - metric) * len(everything)  # float32 counts leave three digits
        assert spread[row] == pytest.approx(metric + moved, abs=0.02)


def test_a_model_that_tells_no_rows_apart_has_the_precision_of_chance():
    y, noise = np.arange(100) % 10 == 0, 1e-12 * np.random.default_rng(0).random(100)
    probabilities = np.stack([0.9 - noise, 0.1 + noise], axis=1)
    assert SPREAD["average_precision"](probabilities, np.zeros(100, int), y.astype(int)).mean() == pytest.approx(0.1)


def test_classes_that_no_row_has_are_none_of_the_two():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    for classes in (2, 3):
        found = SPREAD["average_precision"](probabilities[:, :classes], np.array([0, 1, 0]), np.array([0, 1, 0]))
        assert found.tolist() == pytest.approx([1, 1, 1])
