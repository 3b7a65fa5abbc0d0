"""Scikit-learn's interface over the same runs. It needs scikit-learn, which the extra `sklearn` brings."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.errors import DataError
from refit.makers import load_record
from refit.models.building import build_for_weights
from refit.runs.train import fit_best
from refit.runtime.randomness import putting_generators_back
from refit.serving.saved_model import Model
from refit.settings import DataSettings, complete_settings
from refit.store.store import Store
from refit.tables.preprocessing import read_frame
from refit.training.checkpoints import load_weights
from refit.training.trainer import tune_model

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import Tags, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data
except ModuleNotFoundError as error:
    raise ImportError(
        "refit.Classifier, refit.Regressor: expected scikit-learn, found none; `pip install 'refit[sklearn]'`"
    ) from error

MISSING = object()
OWNED = ("source", "target", "task", "features", "test", "test_source", "factory")
"""Settings of `data` that `fit` itself decides."""


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What both estimators share."""

    def __init__(
        self,
        settings: Mapping[str, Any] | None = None,
        *,
        random_state: Any = None,
        store: str | None = None,
        verbose: bool = False,
    ) -> None:
        """Take the parameters.

        Args:
            settings: Settings by section, such as `{"optimizer": {"lr": 0.01}}`; the others have their defaults.
            random_state: The seed, or a generator to draw it from; None takes the setting `seed`.
            store: Where epochs are kept, so that the same fit goes on where it was interrupted; None takes a temporary folder.
            verbose: Whether to print lines of progress.
        """
        self.settings = settings
        self.random_state = random_state
        self.store = store
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    def _fit(self, X: Any, values: Sequence[Any], name: Any, task: str) -> Model:  # noqa: N803
        """Train on rows and their targets, by the name that these have, if it is one."""
        with _raising_value_errors(), tempfile.TemporaryDirectory() as folder:
            frame = self._make_frame(X)
            target = name if isinstance(name, str) and name not in frame.columns else _find_free_name("y", frame.columns)
            rows = frame.with_columns(pl.Series(target, values))
            rows.write_parquet(f"{folder}/rows.parquet")
            places = {"source": f"{folder}/rows.parquet", "store": self.store or f"{folder}/store"}
            return self._train(rows, {**places, "target": target, "task": task})

    def _train(self, rows: pl.DataFrame, facts: Mapping[str, str]) -> Model:
        given = {section: dict(part) if isinstance(part, Mapping) else part for section, part in (self.settings or {}).items()}
        data = given.get("data", {})
        if owned := [name for name in OWNED if name in data]:
            raise ValueError(f"settings: expected no data.{owned[0]}, as `fit` gets the rows, found {data[owned[0]]!r}; drop it")
        target = facts["target"]
        features = [name for name in rows.columns if name != target]
        kinds = {name: "number" for name in features if rows[name].dtype.is_numeric()}
        kinds |= {target: "category"} if rows[target].dtype == pl.String else {}
        data = {**data, "source": facts["source"], "target": target, "task": facts["task"], "test": 0, "features": features}
        given["data"] = {**data, "kinds": {**kinds, **data.get("kinds", {})}}
        given = {"checkpoint": {"keep": 1}, **given, "store": {"url": facts["store"]}}
        if self.random_state is not None:
            is_seed = isinstance(self.random_state, int | np.integer)
            given["seed"] = int(self.random_state if is_seed else check_random_state(self.random_state).randint(2**31))
        settings, place = complete_settings(given), Store(facts["store"])
        with putting_generators_back():
            snapshot, best = fit_best(settings, print if self.verbose else lambda _: None)
            manifest = load_record(snapshot, place)
            network = load_weights(best.checkpoint, build_for_weights(settings.model, manifest.signature), place)
            tuning = tune_model(network, manifest, settings)
        return Model(network, manifest, settings, tuning)

    def _validate(self, X: Any, y: Any = MISSING, **options: Any) -> Any:  # noqa: N803
        """Check the number and the names of columns, and for arrays what they hold; with `y`, return both."""
        is_fit = y is not MISSING
        if not hasattr(X, "columns"):
            options |= {"dtype": None, "ensure_all_finite": "allow-nan"}
            return (
                validate_data(self, X, y, **options, ensure_min_samples=2)
                if is_fit
                else validate_data(self, X, reset=False, **options)
            )
        if not is_fit:
            return validate_data(self, X, reset=False, skip_check_array=True)
        X, y = validate_data(self, X, y, skip_check_array=True)  # noqa: N806
        check_consistent_length(X, y)
        return X, column_or_1d(y, warn=True)

    def _make_frame(self, X: Any) -> pl.DataFrame:  # noqa: N803
        """Make a frame of rows, in which a missing number is null."""
        if hasattr(X, "columns"):
            frame = read_frame(X)
        else:
            columns = [column.tolist() if X.dtype == object else column for column in np.ascontiguousarray(X.T)]
            frame = pl.DataFrame([pl.Series(str(place), column, strict=False) for place, column in enumerate(columns)])
        frame.columns = getattr(self, "feature_names_in_", [f"x{place}" for place in range(frame.width)])
        return frame.fill_nan(None)


class Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A network for tables as a scikit-learn classifier, trained as `refit.train` does, to the same bits.

    Rows are a NumPy array, or a pandas or polars frame, whose columns may hold numbers, texts, categories, dates and missing
    values. A part of the rows, `data.val`, is held back to choose the best epoch. Nothing is read from the environment or
    `refit.toml`, no version is saved, and PyTorch's generators are left as they were.
    """

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on rows and their classes.

        Shape:
            X: (N, F), y: (N,).

        Raises:
            ValueError: The rows cannot be learned from, or there are fewer than two classes.
            SettingsError: The settings are wrong.
        """
        name = getattr(y, "name", None)
        X, y = self._validate(X, y)  # noqa: N806
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: expected two classes or more, found 1 class: {self.classes_[0]}; add rows of another")
        names = _name_classes(self.classes_)
        self.model_ = self._fit(X, [names[place] for place in places], name, "classification")
        self.known_ = np.array([names.index(label) for label in self.model_.manifest.classes])
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the probability of each class, `(N, C)`, in the order of `classes_`; one with too few rows to learn has 0."""
        check_is_fitted(self)
        X = self._validate(X)  # noqa: N806
        with _raising_value_errors():
            frame = self._make_frame(X)
            probabilities = np.zeros((frame.height, len(self.classes_)))
            probabilities[:, self.known_] = self.model_.predict_proba(frame)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the likeliest class of each row, `(N,)`."""
        check_is_fitted(self)
        X = self._validate(X)  # noqa: N806
        with _raising_value_errors():
            places, _ = self.model_.objective.answer(self.model_.predict_logits(self._make_frame(X)))
        predicted: NDArray[Any] = self.classes_[self.known_[places.numpy()]]
        return predicted


class Regressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A network for tables as a scikit-learn regressor; all else is as for `Classifier`."""

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train on rows and their numbers.

        Shape:
            X: (N, F), y: (N,).

        Raises:
            ValueError: The rows cannot be learned from.
            SettingsError: The settings are wrong.
        """
        name = getattr(y, "name", None)
        X, y = self._validate(X, y, y_numeric=True)  # noqa: N806
        self.model_ = self._fit(X, np.asarray(y, np.float64).tolist(), name, "regression")
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return a number for each row, `(N,)`."""
        check_is_fitted(self)
        X = self._validate(X)  # noqa: N806
        with _raising_value_errors():
            return np.asarray(self.model_.predict(self._make_frame(X)), np.float64)


def _name_classes(classes: NDArray[Any]) -> list[Any]:
    """Write classes as a table may hold them: as they are, if a table gives them back as they are."""
    names: list[Any] = classes.tolist()
    if classes.dtype.kind in "iub" or all(_is_plain(name) for name in names):
        return names
    return [f"class {place:0{len(str(len(names)))}}" for place in range(len(names))]


def _is_plain(label: Any) -> bool:
    return isinstance(label, str) and bool(label) and label == label.strip() and label not in DataSettings().null_values


def _find_free_name(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else _find_free_name(f"{name}_", taken)


@contextmanager
def _raising_value_errors() -> Iterator[None]:
    """Raise what scikit-learn expects of bad input."""
    try:
        yield
    except DataError as error:
        raise ValueError(str(error)) from error
