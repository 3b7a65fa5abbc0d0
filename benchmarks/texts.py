"""Accuracy on tables of texts, beside the majority class and TF-IDF with logistic regression on the same rows.

    python benchmarks/texts.py [TABLE.csv ...]

Tables have the columns `text` and `label`. Without any, one is made of docstrings, labelled by package, and,
on Debian, one of descriptions of packages, labelled by section. Needs scikit-learn.
"""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import polars as pl
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import refit
from refit.settings import DataSettings
from refit.tables.draft import draft_dataset

SEEDS = range(3)
MAX_ROWS, MAX_LABELS = 12_000, 20
PACKAGES = ("torch", "numpy", "scipy", "sklearn", "pandas", "prefect", "polars", "pydantic", "sqlalchemy", "sympy", "networkx")


def read_docstrings() -> Iterator[tuple[str, str]]:
    """The first paragraph of each docstring, and its package."""
    site = Path(sysconfig.get_paths()["purelib"])
    for package in PACKAGES:
        for path in sorted(site.glob(f"{package}/**/*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                    yield " ".join(text.partition("\n\n")[0].split()), package


def read_descriptions() -> Iterator[tuple[str, str]]:
    """The description of each package of Debian, and its section."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, text=True, errors="replace").stdout
    for package in listed.split("\n\n"):
        found = dict(re.findall("^(Description|Section): (.*)$", package, re.MULTILINE))
        if len(found) == 2:
            yield found["Description"], found["Section"]


def write_table(rows: Iterator[tuple[str, str]], path: Path) -> str:
    """Write distinct texts of the most frequent labels, of several words each."""
    known = {text: label for text, label in rows if len(text.split()) > 3}
    kept = {label for label, _ in Counter(known.values()).most_common(MAX_LABELS)}
    frame = pl.DataFrame([pair for pair in known.items() if pair[1] in kept], schema=["text", "label"], orient="row")
    frame.sample(min(MAX_ROWS, len(frame)), shuffle=True, seed=0).write_csv(path)
    return str(path)


def measure(table: str, seed: int, store: str) -> tuple[float, float, float, float, float]:
    """Accuracy on the test rows: majority class, TF-IDF with logistic regression, Refit; then the seconds of the last two."""
    draft = draft_dataset(DataSettings(source=table, target="label"), seed)
    texts, labels = draft.source.frame["text"].fill_null(""), draft.target
    train, test = (draft.parts[split] for split in ("train", "test"))
    started = time.perf_counter()
    vectorizer = TfidfVectorizer()
    linear = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(texts[train]), labels[train])
    by_linear = linear.score(vectorizer.transform(texts[test]), labels[test])
    seconds_linear = time.perf_counter() - started
    majority = float((labels[test] == labels[train].mode()[0]).mean())
    started = time.perf_counter()
    settings = {"name": "texts", "seed": seed, "data": {"source": table, "target": "label"}, "store": {"url": store}}
    result = refit.train(settings, report=lambda _: None)
    seconds = time.perf_counter() - started
    model = refit.load_model(result.model.path)
    ours = float((model.predict(draft.source.table.frame[test]) == labels[test].to_numpy()).mean())
    return majority, by_linear, ours, seconds_linear, seconds


def main() -> None:
    """Print a line a table."""
    with tempfile.TemporaryDirectory() as folder:
        tables = sys.argv[1:] or [write_table(read_docstrings(), Path(folder, "docstrings.csv"))]
        if not sys.argv[1:] and shutil.which("apt-cache"):
            tables.append(write_table(read_descriptions(), Path(folder, "descriptions.csv")))
        print("| table | rows | majority | TF-IDF + logistic regression | Refit | seconds, of both |\n| --- |" + " ---: |" * 5)
        for table in tables:
            found = [measure(table, seed, f"{folder}/store") for seed in SEEDS]
            majority, by_linear, ours, *seconds = map(mean, zip(*found, strict=True))
            rows = pl.scan_csv(table).select(pl.len()).collect().item()
            scores = f"{majority:.3f} | {by_linear:.3f} | {ours:.3f}"
            print(f"| {Path(table).stem} | {rows:,} | {scores} | {seconds[0]:.1f}, {seconds[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
