"""How often the gate errs: how many candidates it promotes that are no better, and that are truly better.

Run as `python benchmarks/promotion.py --candidates 500`. For accuracy the models disagree on 6 rows in 100; for log likelihood each
errs in its own way about the logits of the truth. Where the true difference is the least effect asked for, half the candidates show
less than that: no gate that asks for it can promote more than the other half.
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from refit.promotion import Score, Scores, decide

NUM_ROWS = (300, 10_000)
CONFIDENCE = 0.95
EFFECTS: dict[Score, float] = {"accuracy": 0.01, "log_likelihood": 0.02}
"""What counts as an improvement."""


def draw_accuracies(num_rows: int, difference: float, generator: np.random.Generator) -> tuple[Scores, Scores]:
    """Whether candidate and champion are right, on each row."""
    wins, losses = 0.03 + difference / 2, 0.03 - difference / 2
    outcome = generator.choice(4, num_rows, p=[wins, losses, 0.87, 0.07])
    return np.isin(outcome, [0, 2]).astype(float), np.isin(outcome, [1, 2]).astype(float)


def draw_log_likelihoods(num_rows: int, difference: float, generator: np.random.Generator) -> tuple[Scores, Scores]:
    """Log probabilities of the true class, one of two."""
    logits = generator.normal(0, 2, num_rows)
    signs = np.where(generator.random(num_rows) < 1 / (1 + np.exp(-logits)), 1, -1)
    candidate, champion = (-np.logaddexp(0, -signs * (logits + generator.normal(0, 0.7, num_rows))) for _ in range(2))
    return candidate + difference, champion


def count_promoted(score: Score, num_rows: int, difference: float, min_effect: float, num_candidates: int) -> int:
    """How many candidates that are truly better by `difference` are promoted."""
    draw = draw_accuracies if score == "accuracy" else draw_log_likelihoods
    generator, num_promoted = np.random.default_rng([num_rows, round(difference * 1000)]), 0
    for _ in range(num_candidates):
        candidate, champion = draw(num_rows, difference, generator)
        limits = {"confidence": CONFIDENCE, "min_effect": min_effect, "max_drop": 0.05, "latency_ms": 1.0, "size_mb": 1.0}
        classes = generator.choice(["a", "b", "c"], num_rows)
        num_promoted += decide(classes, candidate, champion, score=score, **limits).is_better
    return num_promoted


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=500)
    num_candidates = parser.parse_args().candidates
    table = Table("score", "rows", "truly better by", "asked for", "promoted", "share", "ms each")
    for score, effect in EFFECTS.items():
        for num_rows in NUM_ROWS:
            for difference, min_effect in ((0.0, 0.0), (effect, 0.0), (effect, effect), (2 * effect, effect)):
                started = time.perf_counter()
                num_promoted = count_promoted(score, num_rows, difference, min_effect, num_candidates)
                milliseconds = (time.perf_counter() - started) / num_candidates * 1000
                figures = (f"{num_promoted} of {num_candidates}", f"{num_promoted / num_candidates:.1%}", f"{milliseconds:.1f}")
                table.add_row(score.replace("_", " "), f"{num_rows:,}", f"{difference:.2f}", f"{min_effect:.2f}", *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
