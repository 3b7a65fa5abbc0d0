"""Test accuracy of `refit train` beside scikit-learn's MLPClassifier: same rows, sizes, optimizer, batches and epochs.

Refit's dropout and schedule on the digits, which MLPClassifier has not, were chosen by accuracy on the validation rows, over three
seeds. Run as `python benchmarks/accuracy.py`; needs the `dev` extra.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import safetensors.numpy
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

PENGUINS = Path(__file__).parents[1] / "examples" / "penguins.csv"
SEEDS = (0, 1, 2)


def train_refit(source: Path, target: str, seed: int, settings: dict[str, Any], store: Path) -> dict[str, Any]:
    """Run the command and return what it prints."""
    flags = {"name": "accuracy", "seed": seed, "data.source": source, "data.target": target, "store.url": store, **settings}
    command = [str(Path(sys.executable).with_name("refit")), "train", "--json"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def train_sklearn(path: Path, store: Path, hidden: list[int], batch_size: int, lr: float, num_epochs: int, seed: int) -> float:
    """Train on the rows that Refit trained on and return the accuracy on those that it was tested on."""
    splits = json.loads((path / "manifest.json").read_text())["splits"]
    arrays = {
        split: safetensors.numpy.load((store / "objects" / info["digest"][:2] / info["digest"][2:]).read_bytes())
        for split, info in splits.items()
    }
    model = MLPClassifier(
        hidden, solver="adam", alpha=0, batch_size=batch_size, learning_rate_init=lr, max_iter=num_epochs, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(arrays["train"]["x"], arrays["train"]["y"])
    return model.score(arrays["test"]["x"], arrays["test"]["y"])


def main() -> None:
    """Print the table."""
    table = Table("table", "seed", "train rows", "test rows", "Refit", "MLPClassifier")
    with tempfile.TemporaryDirectory() as folder:
        digits = load_digits(as_frame=True).frame
        digits_path = Path(folder, "digits.parquet")
        pl.DataFrame({name: digits[name].to_numpy() for name in digits}).write_parquet(digits_path)
        regularized = {"model.dropout": 0.3, "optimizer.schedule": "cosine"}
        for name, source, target, hidden, num_epochs, more in (
            ("penguins", PENGUINS, "species", [32], 40, {}),
            ("digits", digits_path, "target", [128], 80, regularized),
        ):
            for seed in SEEDS:
                store = Path(folder, "store")
                settings = {
                    "model.hidden_sizes": json.dumps(hidden),
                    "optimizer.name": "adam",
                    "optimizer.lr": 0.005,
                    "loader.batch_size": 32,
                    "loader.drop_last": "false",
                    "training.num_epochs": num_epochs,
                    **more,
                }
                result = train_refit(source, target, seed, settings, store)
                theirs = train_sklearn(Path(result["path"]), store, hidden, 32, 0.005, num_epochs, seed)
                metrics = result["metrics"]
                rows = [str(metrics[split]["num_rows"]) for split in ("train", "test")]
                table.add_row(name, str(seed), *rows, f"{metrics['test']['accuracy']:.4f}", f"{theirs:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
