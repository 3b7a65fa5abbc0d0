"""scikit-learn's `MLPClassifier` in one `fit`: no penalty, no early stopping. It has no AdamW; Adam stands for it.

Two of its inner methods are overridden: one to draw the first weights as all others do, one to know when an epoch ends.
"""

import warnings
from collections.abc import Callable

from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from work import Array, Labels, Layers, Work, race


class Classifier(MLPClassifier):
    """Ends a lap with every epoch."""

    def _init_coef(self, fan_in: int, fan_out: int, dtype: type) -> tuple[Array, Array]:
        """As `torch.nn.Linear`: uniform within 1 / sqrt(in)."""
        bound = fan_in**-0.5
        weight, bias = (self._random_state.uniform(-bound, bound, size) for size in ((fan_in, fan_out), fan_out))
        return weight.astype(dtype), bias.astype(dtype)

    def _update_no_improvement_count(self, *_: object) -> None:
        self.lap()


def train(work: Work, x: Array, y: Labels, seed: int, num_epochs: int, lap: Callable[[], None]) -> Layers:
    """Train on rows of single precision, as all others."""
    model = Classifier(
        work.hidden_sizes,
        solver="sgd" if work.optimizer == "sgd" else "adam",
        learning_rate_init=work.lr,
        momentum=0,
        alpha=0,
        batch_size=work.batch_size,
        max_iter=num_epochs,
        random_state=seed,
    )
    model.lap = lap
    lap()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return [(weight.T, bias) for weight, bias in zip(model.coefs_, model.intercepts_, strict=True)]


if __name__ == "__main__":
    race(train)
