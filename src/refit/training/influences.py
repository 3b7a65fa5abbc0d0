"""How much each row moves a metric that is no mean over rows, so that it can be compared as means are.

A metric is spread over N rows as N numbers: the metric plus N times its derivative by the weight of the row. Their mean is the
metric, and they vary as it does if other rows are drawn, but for terms that vanish as N grows. C is the number of classes.

Source: Hampel, The influence curve and its role in robust estimation (1974); Efron, Nonparametric standard errors and confidence
intervals (1981), on the infinitesimal jackknife.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Places = NDArray[np.integer[Any]]


def spread_balanced_accuracy(probabilities: Scores, predicted: Places, y: Places) -> Scores:  # noqa: ARG001
    """Spread the mean recall of the classes that have rows."""
    is_right, counts = (predicted == y).astype(float), np.bincount(y)
    recalls = np.bincount(y, is_right) / np.maximum(counts, 1)
    present = counts > 0
    changes = (is_right - recalls[y]) / (counts[y] * present.sum())
    found: Scores = recalls[present].mean() + len(y) * changes
    return found


def spread_macro_f1(probabilities: Scores, predicted: Places, y: Places) -> Scores:  # noqa: ARG001
    """Spread the mean F1 of the classes that are true or predicted anywhere."""
    found: Scores = np.mean([_spread_f1(predicted == place, y == place) for place in np.union1d(predicted, y)], axis=0)
    return found


def spread_f1(probabilities: Scores, predicted: Places, y: Places) -> Scores:  # noqa: ARG001
    """Spread the F1 of the rarer of two classes."""
    positive = _find_positive(y)
    return _spread_f1(predicted == positive, y == positive)


def spread_average_precision(probabilities: Scores, predicted: Places, y: Places) -> Scores:  # noqa: ARG001
    """Spread the average precision of the rarer of two classes, or the mean over those of more that have rows.

    Probabilities count as equal if they are so in single precision: what lies below is noise, also of a model that knows no class.
    """
    present = np.unique(y)
    places = present if len(present) > 2 else [_find_positive(y)]
    found: Scores = np.mean([_spread_precision(probabilities[:, place].astype(np.float32), y == place) for place in places], axis=0)
    return found


SPREAD: Mapping[str, Callable[[Scores, Places, Places], Scores]] = {
    "balanced_accuracy": spread_balanced_accuracy,
    "macro_f1": spread_macro_f1,
    "f1": spread_f1,
    "average_precision": spread_average_precision,
}
"""What spreads a metric, from probabilities `(N, C)`, predictions and targets, each `(N,)`, to `(N,)`."""


def _find_positive(y: Places) -> int:
    """Find the rarer of the two classes that have rows; the second of two that are as frequent. Other classes are unknown ones."""
    counts = np.bincount(y, minlength=2)
    present = np.flatnonzero(counts)
    first, second = present if len(present) == 2 else (0, 1)
    return int(second if counts[second] <= counts[first] else first)


def _spread_f1(is_predicted: NDArray[np.bool_], is_true: NDArray[np.bool_]) -> Scores:
    """Spread twice the hits of a class, divided by the number of rows of which it is predicted and of those of which it is true."""
    hits, marks = 2.0 * (is_predicted & is_true), is_predicted.astype(float) + is_true
    total = max(marks.sum(), 1.0)
    f1 = hits.sum() / total
    found: Scores = f1 + len(hits) * (hits - f1 * marks) / total
    return found


def _spread_precision(scores: NDArray[np.float32], is_true: NDArray[np.bool_]) -> Scores:
    """Spread the mean, over the true rows, of the precision among the rows that have at least their score."""
    num_true = is_true.sum()
    if not num_true:
        return np.zeros(len(scores))
    levels, groups = np.unique(-scores, return_inverse=True)  # from the highest score on
    gains = np.bincount(groups, is_true, len(levels))
    hits, sizes = gains.cumsum(), np.bincount(groups, minlength=len(levels)).cumsum()
    precision = hits / sizes
    average = gains @ precision / num_true
    more_hits = (gains / sizes)[::-1].cumsum()[::-1]  # what another hit adds to the precision of its level and of those below it
    more_rows = (gains * hits / sizes**2)[::-1].cumsum()[::-1]  # what another row takes from them
    changes = is_true * (precision + more_hits - average)[groups] - more_rows[groups]
    found: Scores = average + len(scores) * changes / num_true
    return found
