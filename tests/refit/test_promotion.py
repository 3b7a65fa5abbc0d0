import numpy as np
import pytest

from refit.errors import DataError
from refit.promotion import decide, score_majority

LIMITS = {"confidence": 0.95, "min_effect": 0.0, "max_drop": 0.05, "latency_ms": 1.0, "size_mb": 1.0}


def make_scores(num_rows: int, wins: int, losses: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores of a candidate and a champion: the candidate alone is right on `wins` rows, the champion alone on `losses`."""
    candidate, champion = np.ones(num_rows), np.ones(num_rows)
    champion[:wins] = 0
    candidate[wins : wins + losses] = 0
    return candidate, champion


def test_the_reason_of_a_promotion_is_a_sentence_with_its_figures():
    decision = decide(["a"] * 1200, *make_scores(1200, wins=50, losses=20), score="accuracy", **LIMITS)
    assert decision.is_better
    assert decision.reason == (
        "promoted: accuracy 0.9833 against 0.9583 on 1,200 rows, better by 0.0250 (95 % sure of at least 0.0131)"
    )


def test_no_rows_are_refused():
    with pytest.raises(DataError, match=r"expected test rows to compare models on, found none; raise data\.test_fraction"):
        decide([], np.array([]), np.array([]), score="accuracy", **LIMITS)


def test_the_majority_class_is_the_largest_of_the_train_rows():
    assert score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "accuracy").tolist() == [0.0, 1.0, 0.0]
    expected = np.log([3 / 9, 6 / 9, 1 / 9])
    np.testing.assert_allclose(score_majority(["a", "b", "c"], {"a": 2, "b": 5}, "log_likelihood"), expected)
