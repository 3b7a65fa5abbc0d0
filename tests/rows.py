"""Tables that several tests write."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl


def write_dated(path: Path, num_rows: int = 120) -> pl.DataFrame:
    """Rows of ten a day, with dates, gaps and blanks."""
    generator = np.random.default_rng(0)
    start = datetime(2024, 1, 1)
    rows = pl.DataFrame(
        {
            "when": [str(start + timedelta(hours=7 * n)) for n in range(num_rows)],
            "x": [f"{value:.6f}" if n % 9 else "NA" for n, value in enumerate(generator.normal(size=num_rows))],
            "k": [text or None for text in generator.choice(["a", "b", ""], num_rows).tolist()],
            "t": [f"2024-02-{1 + n // 10:02}" for n in range(num_rows)],
            "y": ["yes" if n % 3 else "no" for n in range(num_rows)],
        }
    )
    rows.write_csv(path)
    return rows


def write_visits(path: Path, num_rows: int = 400) -> pl.DataFrame:
    """Rows of 40 customers, of whom each looks the same every day."""
    generator = np.random.default_rng(0)
    customer = generator.integers(0, 40, num_rows)
    looks = generator.normal(size=(40, 3))[customer]
    day = [datetime(2024, 1, 1) + timedelta(days=int(n) // 4) for n in range(num_rows)]
    rows = pl.DataFrame(
        {"customer": customer, **{f"x{i}": looks[:, i] for i in range(3)}, "day": day, "y": [0, 1] * (num_rows // 2)}
    )
    rows.write_csv(path)
    return rows
