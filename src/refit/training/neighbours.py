"""An honest neighbour: a linear model and boosted trees of scikit-learn, on the same rows as the network.

They serve a comparison alone. Nothing of a run depends on them, and without scikit-learn there are none.
"""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from refit.data.examples import Examples, load_examples
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.refs import Ref
from refit.runtime import devices
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.training.rare_classes import weigh_classes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Kind = Literal["linear", "trees"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: dict[str, str] = {"linear": "linear model", "trees": "boosted trees"}
MAX_ROWS = 100_000
"""With more train rows, `auto` fits none."""
MAX_CELLS: dict[Kind, int] = {"linear": 50_000_000, "trees": 12_000_000}
"""Nor with more train rows times columns times classes, which take up to ten seconds."""
MAX_TREES = 300
"""For each class, if validation rows can stop them earlier; else scikit-learn's default."""
ROWS_FOR_THREADS = 10_000
"""With fewer train rows, threads that start and wait for each of many columns take longer than one thread."""
MAX_CATEGORIES = 254
"""How many categories of a column trees tell apart, the most frequent ones; one more stands for all others."""
TEXT_WIDTH = 32
"""Numbers that trees see of all texts."""
ROBUST = ("absolute", "huber", "quantile")
"""Losses of numbers for which trees lower the absolute error, not the squared one."""
LEAST = 1e-9
"""The least probability of a class."""
HINT = "a linear model and boosted trees on the same rows would show how good this is: pip install 'refit[sklearn]'"

Numbers = NDArray[np.float32] | NDArray[np.float64]
Weights = dict[int, float] | None
Report = Callable[[str], object]
Part = tuple[Tensor, NDArray[Any]]
"""Inputs `(N, F)` and targets `(N,)` of a split."""


def choose_neighbours(settings: SettingsTree, examples: Examples, report: Report = lambda _: None) -> list[Kind]:
    """Choose the kinds to fit: those of `training.baseline`; by `auto`, each that takes no longer than some seconds.

    Args:
        settings: Of the run.
        examples: Of the run.
        report: Receives a line if only scikit-learn is missing.

    Raises:
        SettingsError: The settings ask for one, and scikit-learn, a table, or rows that training held back are missing.
    """
    wanted, is_needed = settings.training.baseline, settings.promotion.must_beat_baseline
    if wanted == "none":
        return []
    if wanted == "auto" and not is_needed:
        quick = _find_quick(examples)
        if not quick or has_sklearn():
            return quick
        report(HINT)
        return []
    setting = "promotion.must_beat_baseline" if is_needed else "training.baseline"
    if not _can_compare(examples):
        raise SettingsError(
            f"{setting}: expected a table with two classes or more, or numbers, to predict, and with validation or test rows, found"
            " none to fit other models on; drop it"
        )
    if not has_sklearn():
        raise SettingsError(f"{setting}: expected scikit-learn, found none; `pip install 'refit[sklearn]'`, or drop it")
    return [kind for kind in KINDS if wanted in (kind, "both", "auto")]


def has_sklearn() -> bool:
    """Whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


def _find_quick(examples: Examples) -> list[Kind]:
    num_rows, signature = examples.splits["train"].rows, examples.signature
    if not _can_compare(examples) or num_rows > MAX_ROWS:
        return []
    num_outputs = signature.num_outputs if signature.num_outputs > 2 else 1  # of two classes, one model tells
    num_cells = num_rows * num_outputs * sum(1 if column.kind == "categorical" else column.width for column in signature.columns)
    return [kind for kind in KINDS if num_cells <= MAX_CELLS[kind]]


def _can_compare(examples: Examples) -> bool:
    target = examples.signature.target
    return examples.maker == "tables" and len(examples.splits) > 1 and (target.kind == "numbers" or len(target.classes) > 1)


def fit_neighbours(kinds: Sequence[Kind], snapshot: Ref, settings: SettingsTree) -> Ref:
    """Fit neighbours on the train rows, and keep their outputs for the rows that the network is judged on.

    They weigh classes as the network does.
    Trees stop early by the validation rows, unless these are the ones to judge on. Nothing is drawn from a global generator.

    Returns:
        The ref of an array for each kind, as a network's outputs: log-probabilities `(N, C)`, or numbers `(N, 1)`.
    """
    from threadpoolctl import threadpool_limits

    store = Store(settings.store.url)
    examples = load_examples(snapshot, store)
    judged = list(examples.splits)[-1]

    def load(split: str) -> Part:
        x, y = examples.load_split(split, store)
        assert isinstance(x, Tensor), "a table"
        return x, y.numpy()

    train, (x, _) = load("train"), load(judged)
    watched = load("val") if judged != "val" and "val" in examples.splits else None
    seed = settings.seed % 2**32  # the most that scikit-learn takes
    given = settings.training.class_weights
    counts = examples.splits["train"].class_counts
    weights = None if given is None else dict(enumerate(weigh_classes(given, examples.list_labels(), counts)))
    is_robust = settings.training.loss in ROBUST
    fit: dict[Kind, Callable[..., Tensor]] = {
        "linear": partial(_fit_linear, weights=weights),
        "trees": partial(_fit_trees, watched=watched, seed=seed, is_robust=is_robust, weights=weights),
    }
    num_threads = devices.choose_num_threads(settings.compute) if len(train[0]) >= ROWS_FOR_THREADS else 1
    with threadpool_limits(num_threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a linear model has not converged
        found: dict[str, Tensor] = {kind: fit[kind](_Table(examples.signature, train[0], seed), train, x) for kind in kinds}
    data = safetensors.torch.save(found)
    return Ref(kind="arrays", digest=store.put(data), size=len(data))


def load_outputs(ref: Ref, store: Store) -> dict[str, Tensor]:
    """Load the outputs of neighbours by kind, each `(N, C)` or `(N, 1)`."""
    found = safetensors.torch.load(store.get(ref.digest))
    return {kind: found[kind] for kind in KINDS if kind in found}


def _fit_linear(table: "_Table", train: Part, x: Tensor, *, weights: Weights) -> Tensor:
    from sklearn.linear_model import LogisticRegression, Ridge

    model = Ridge(solver="lsqr") if table.is_of_numbers else LogisticRegression(max_iter=300, class_weight=weights)
    return _take_outputs(model.fit(table.make_sparse(train[0]), train[1]), table.make_sparse(x))


def _fit_trees(
    table: "_Table", train: Part, x: Tensor, *, watched: Part | None, seed: int, is_robust: bool, weights: Weights
) -> Tensor:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    stopping = {} if watched is None else {"X_val": table.make(watched[0]), "y_val": watched[1]}
    options: dict[str, Any] = {
        "max_iter": MAX_TREES if stopping else 100,
        "early_stopping": bool(stopping),
        "categorical_features": table.are_categories,
        "random_state": seed,
    }
    model = (
        HistGradientBoostingRegressor(loss="absolute_error" if is_robust else "squared_error", **options)
        if table.is_of_numbers
        else HistGradientBoostingClassifier(class_weight=weights, **options)
    )
    return _take_outputs(model.fit(table.make(train[0]), train[1], **stopping), table.make(x))


def _take_outputs(model: Any, table: Any) -> Tensor:
    """Predict the rows of a table."""
    found = (
        np.log(np.clip(model.predict_proba(table), LEAST, None))
        if hasattr(model, "predict_proba")
        else model.predict(table)[:, None]
    )
    return torch.from_numpy(found).float().contiguous()


class _Table:
    """Inputs as scikit-learn's models take them, by what the train rows `(N, F)` have."""

    def __init__(self, signature: Signature, x: Tensor, seed: int) -> None:
        self.signature, self.is_of_numbers = signature, signature.target.kind == "numbers"
        others = [column for column in signature.columns if column.kind != "text"]
        self._others = Signature(columns=others, target=signature.target)
        numbers, codes, texts = self._split(x)
        self._mean, self._std = numbers.mean(axis=0), numbers.std(axis=0)
        self._ranks = [_rank(code) for code in codes]
        self._svd = None
        if texts and (width := min(TEXT_WIDTH, texts[0].shape[1] - 1)) > 0:
            from scipy.sparse import hstack
            from sklearn.decomposition import TruncatedSVD

            self._svd = TruncatedSVD(width, random_state=seed).fit(hstack(texts, format="csr"))
        num_texts = 0 if self._svd is None else self._svd.n_components
        self.are_categories = [False] * numbers.shape[1] + [True] * len(codes) + [False] * num_texts

    def make(self, x: Tensor) -> Numbers:
        """Make a table of numbers, the code of each category, and a few numbers for all texts, `(N, ·)`."""
        numbers, codes, texts = self._split(x)
        places = [ranks[np.minimum(code, len(ranks) - 1)] for code, ranks in zip(codes, self._ranks, strict=True)]
        blocks = [numbers, *(place[:, None] for place in places)]
        if self._svd is not None:
            from scipy.sparse import hstack

            blocks.append(self._svd.transform(hstack(texts, format="csr")))
        return np.hstack(blocks).astype(np.float64)

    def make_sparse(self, x: Tensor) -> "csr_array":
        """Make a table of standardized numbers, an indicator of each category, and the count of each n-gram, sparse `(N, ·)`."""
        from scipy.sparse import csr_array, hstack

        numbers, codes, texts = self._split(x)
        standardized = (numbers - self._mean) / np.where(self._std > 0, self._std, 1)
        categories = [_count(code[:, None], size) for code, size in zip(codes, self._others.categories, strict=True)]
        return hstack([csr_array(standardized), *categories, *texts], format="csr")

    def _split(self, x: Tensor) -> tuple[Numbers, list[NDArray[np.int64]], "list[csr_array]"]:
        """Split inputs into numbers `(N, ·)`, the code of each category `(N,)`, and the counts of n-grams of each text `(N, ·)`."""
        others, texts = self.signature.split_texts(x)
        numbers, codes = self._others.split(others)
        sizes = [column.num_ngrams + 1 for column in self.signature.texts]
        counts = [_count(text.numpy(), size)[:, 1:] for text, size in zip(texts, sizes, strict=True)]
        return numbers.double().numpy(), [code.numpy() for code in codes], counts


def _count(places: NDArray[np.int64], size: int) -> "csr_array":
    """Count how often each of the numbers below `size` comes in each row of `places` `(N, W)`."""
    from scipy.sparse import csr_array

    num_rows, width = places.shape
    return csr_array((np.ones(places.size), (np.repeat(np.arange(num_rows), width), places.ravel())), shape=(num_rows, size))


def _rank(codes: NDArray[np.int64]) -> Numbers:
    """Rank each code by how many rows have it; the rarest ones, and in the last place those that no row has, share a rank."""
    counts = np.append(np.bincount(codes), 0)
    ranks = np.empty(len(counts))
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(ranks, MAX_CATEGORIES)
