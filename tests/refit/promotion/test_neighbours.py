from types import SimpleNamespace

import numpy as np
import pytest

from refit.promotion.decision import Lead
from refit.promotion.neighbours import find_better, find_reason, tell_better
from refit.settings import PromotionSettings, TrainingSettings
from refit.training.objective import RowScores


def as_rows(scores: np.ndarray) -> RowScores:
    return RowScores(scores, scores > 0.5)


def lead(bound: float, num_rows: int = 200, score: str = "accuracy") -> Lead:
    return Lead(split="test", score=score, num_rows=num_rows, model=0.5, majority=0.5, bound=bound)


def log(*losses: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(train_loss=loss) for loss in losses]


def test_the_best_is_named_if_it_is_better_by_more_than_noise():
    ours, trees = np.arange(100) % 5 > 0, np.arange(100) % 20 > 0
    others = {"linear": as_rows((np.arange(100) % 6 > 0).astype(float)), "trees": as_rows(trees.astype(float))}
    found = find_better(others, as_rows(ours.astype(float)), PromotionSettings(), "test")
    assert tell_better(found) == (
        "boosted trees are better on this table: accuracy 0.9500 on 100 test rows, where this model has 0.8000"
    )


def test_nothing_is_said_of_a_difference_that_noise_can_explain():
    ours, other = np.arange(100) % 10 > 0, np.arange(100) % 11 > 0
    others = {"linear": as_rows(other.astype(float))}
    assert find_better(others, as_rows(ours.astype(float)), PromotionSettings(), "test") is None
    assert find_better({}, as_rows(ours.astype(float)), PromotionSettings(), "test") is None
    assert tell_better(None) is None


@pytest.mark.parametrize(
    ("losses", "best_epoch", "counts", "others", "reason"),
    [
        ((0.8, 0.8), 2, (50, 50), {"linear": lead(0.1)}, "the network has learned nothing, though linear model did: "),
        ((0.8, 0.7), 1, (50, 50), {}, "the network has learned nothing, its train loss"),
        ((0.6, 0.5), 2, (50, 50), {}, "it was still learning in the last epoch; raise training.num_epochs"),
        ((0.04, 0.03), 1, (990, 10), {}, "99.0% of the train rows are of one class, so accuracy says little"),
        ((0.6, 0.5), 1, (50, 50), {"trees": lead(0.1)}, "boosted trees did, so the table can be learned"),
        ((0.6, 0.5), 1, (50, 50), {"linear": lead(0.0), "trees": lead(0.0)}, "nor did linear model or boosted trees; the columns"),
        ((0.6, 0.5), 1, (50, 50), {}, None),
    ],
)
def test_the_likely_reason_is_said(losses, best_epoch, counts, others, reason):
    found = find_reason(lead(0.0), log(*losses), best_epoch, TrainingSettings(num_epochs=2), counts, others)
    assert found is None if reason is None else found.startswith(reason)


def test_what_smoothing_adds_to_the_loss_is_not_taken_for_what_was_not_learned():
    training = TrainingSettings(num_epochs=2, label_smoothing=0.1)
    found = find_reason(lead(0.0), log(0.22, 0.21), 1, training, (980, 20), {})  # 0.2 is the least that smoothed losses can be
    assert found.startswith("98.0% of the train rows are of one class, so accuracy says little")


def test_of_few_rows_no_other_reason_is_needed():
    assert find_reason(lead(0.0, num_rows=5), log(0.8), 1, TrainingSettings(num_epochs=1), (50, 50), {}) is None


def test_of_weighed_classes_nothing_else_is_to_blame():
    training = TrainingSettings(class_weights="balanced")
    found = find_reason(lead(0.0), log(0.8), 1, training, (990, 10), {})
    assert found.startswith("training.class_weights gives up some of it for rare classes")
