"""The work of `speed.py`, and how a contender's process takes part. Knows neither PyTorch nor JAX, so that it loads nothing.

A contender calls `race(train)`; `train` calls `lap()` before its first epoch and after every epoch. The driver sends a work, then a
line for each sample, and is answered with the seconds that it took; so contenders take turns while their processes stay.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 10
NUM_LOSS_ROWS = 16_384
WEIGHT_DECAY = 0.01

Array = NDArray[np.float32]
Labels = NDArray[np.int64]
Layers = Sequence[tuple[Array, Array]]
"""The weight `(out, in)` and bias `(out,)` of each layer."""


@dataclass(frozen=True)
class Work:
    """What all contenders do: an MLP with ReLU on rows of 10 classes, cross-entropy, a new order of the rows every epoch."""

    name: str
    num_rows: int
    num_inputs: int
    hidden_sizes: tuple[int, ...]
    batch_size: int
    optimizer: str
    """`sgd`, plain, or `adamw`, with PyTorch's betas and epsilon and a weight decay of 0.01."""
    lr: float
    num_epochs: int
    """Of one sample."""

    @property
    def num_steps(self) -> int:
        """Of an epoch; rows that do not fill a last batch are left out beforehand, for all."""
        return self.num_rows // self.batch_size

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden units, outputs."""
        return (self.num_inputs, *self.hidden_sizes, NUM_CLASSES)

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """The matrix products of a step, as (m, k, n): forward, and backward to weights and, but for the rows, to inputs."""
        sizes = list(pairwise(self.widths))
        forward = [(self.batch_size, fan_in, fan_out) for fan_in, fan_out in sizes]
        to_weights = [(fan_out, self.batch_size, fan_in) for fan_in, fan_out in sizes]
        return forward + to_weights + [(self.batch_size, fan_out, fan_in) for fan_in, fan_out in sizes[1:]]

    @property
    def flops_per_row(self) -> float:
        """Of the matrix products."""
        return sum(2 * m * k * n for m, k, n in self.products) / self.batch_size

    @property
    def bytes_per_row(self) -> float:
        """The least that must move: the row, its class, and in each step all parameters and their state, read and written."""
        num_parameters = sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths))
        passes = 2 if self.optimizer == "sgd" else 6
        return 4 * self.num_inputs + 8 + 4 * passes * num_parameters / self.batch_size

    def describe(self) -> dict[str, Any]:
        """For the results: the fields, and what a speed is held against."""
        rows = {"rows_per_sample": self.num_epochs * self.num_steps * self.batch_size}
        return {**asdict(self), **rows, "flops_per_row": self.flops_per_row, "bytes_per_row": self.bytes_per_row}


WORKS = {
    work.name: work
    for work in (
        Work("tiny", 17_970, 64, (16, 16), 32, "sgd", 0.1, 5),
        Work("small", 50_000, 100, (64, 64), 256, "adamw", 1e-3, 3),
        Work("medium", 330_000, 60, (256, 256), 1024, "adamw", 1e-3, 1),
        Work("wide", 100_000, 784, (1024, 1024), 1024, "adamw", 1e-3, 1),
    )
}


def save_rows(work: Work, folder: Path) -> None:
    """Write the rows of a work: the digits over and over where they have its width, else normal numbers and a linear teacher."""
    generator = np.random.default_rng(0)
    if work.num_inputs == 64:
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = np.resize(digits.data / 16, (work.num_rows, 64)), np.resize(digits.target, work.num_rows)
    else:
        x = generator.standard_normal((work.num_rows, work.num_inputs), np.float32)
        scores = x @ generator.standard_normal((work.num_inputs, NUM_CLASSES), np.float32)
        y = (scores + 0.5 * scores.std() * generator.standard_normal(scores.shape, np.float32)).argmax(axis=1)
    num_rows = work.num_steps * work.batch_size
    np.save(folder / f"{work.name}-x.npy", x[:num_rows].astype(np.float32))
    np.save(folder / f"{work.name}-y.npy", y[:num_rows].astype(np.int64))


def race(train: Callable[..., Layers]) -> None:
    """Take part: `train(work, x, y, seed, num_epochs, lap, *extra)` with rows `(N, F)` and classes `(N,)` returns its layers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("extra", nargs="*")
    given = parser.parse_args()
    # What libraries print goes to stderr: the driver reads numbers from stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        fields = json.loads(line)
        num_samples = fields.pop("num_samples")
        work = Work(**{**fields, "hidden_sizes": tuple(fields["hidden_sizes"])})
        forget_peak()
        x, y = (np.load(given.folder / f"{work.name}-{name}.npy") for name in "xy")
        lap = make_lap(work.num_epochs, num_samples, answers)
        layers = train(work, x, y, given.seed, num_samples * work.num_epochs, lap, *given.extra)
        loss = mean_loss(layers, x[:NUM_LOSS_ROWS], y[:NUM_LOSS_ROWS])
        print(json.dumps({"loss": loss, "peak_mb": peak_megabytes()}), file=answers)


def make_lap(num_epochs: int, num_samples: int, answers: TextIO) -> Callable[[], None]:
    """A function that, called before the first epoch and after each, answers and waits for the next sample where one ends."""
    num_laps, started = 0, time.perf_counter()

    def lap() -> None:
        nonlocal num_laps, started
        if num_laps % num_epochs == 0:
            print(time.perf_counter() - started, file=answers)
            if num_laps < num_samples * num_epochs:
                sys.stdin.readline()
            started = time.perf_counter()
        num_laps += 1

    return lap


def mean_loss(layers: Layers, x: Array, y: Labels) -> float | None:
    """Mean cross-entropy; None for one that trains nothing."""
    if not layers:
        return None
    *hidden, (weight, bias) = layers
    for hidden_weight, hidden_bias in hidden:
        x = np.maximum(x @ hidden_weight.T + hidden_bias, 0)
    logits = (x @ weight.T + bias).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]).mean())


def forget_peak() -> None:
    """Begin to look for the peak anew, on Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The most memory held since then; not `ru_maxrss`, which is inherited from the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
