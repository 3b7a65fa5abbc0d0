"""Thirty nights of a folder of images that gains 100 files a night and loses 5, retrained by `refit retrain` with `data.cache`.

Prints, a night: files decoded and their bytes, seconds of the process, images that have changed sides between train, validation and
test, and the decision. Run as `python benchmarks/image_nights.py [--nights 30]`; needs the extra `dev`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from refit.data.examples import load_examples
from refit.refs import DatasetRef
from refit.runs.recipes import load_runs
from refit.runs.results import load_usable_result
from refit.store.store import Store

FIRST, NEW, GONE, SIDE = 1000, 100, 5, 32
READ = "decoded.log"
"""A line for each file that is decoded: its bytes."""
REFIT = str(Path(sys.executable).with_name("refit"))
SETTINGS = f"""
name = "digits"
[data]
factory = "{Path(__file__).stem}:load_images"
inputs = ["images"]
cache = true
[model]
factory = "{Path(__file__).stem}:Network"
[loader]
batch_size = 32
[training]
num_epochs = 5
[compute]
num_threads = 1
[store]
trust = true
"""


class Images(Dataset[Any]):
    """Files NUMBER-CLASS.png of digits, with noise."""

    def __init__(self) -> None:
        self.root, self.classes = "images", [str(digit) for digit in range(10)]
        self.samples = [(str(path), int(path.stem[-1])) for path in sorted(Path("images").glob("*.png"))]
        self.targets = [target for _, target in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, target = self.samples[index]
        with open(READ, "a") as log:
            log.write(f"{os.path.getsize(path)}\n")
        return torch.from_numpy(np.array(Image.open(path).resize((16, 16)), np.float32) / 255)[None], target


def load_images() -> Images:
    """Return the images that lie there tonight."""
    return Images()


class Network(nn.Sequential):
    """A small convolutional network."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(32 * 9, 10))


def add_images(first: int, number: int) -> None:
    """Write some more files; noise makes them differ."""
    digits, noise = load_digits(), np.random.default_rng(first)
    for place in range(first, first + number):
        pixels = digits.images[place % len(digits.target)] + noise.normal(0, 2, (8, 8))
        image = Image.fromarray((pixels.clip(0, 16) * 15.9).astype(np.uint8)).resize((SIDE, SIDE))
        image.save(f"images/{place:05}-{digits.target[place % len(digits.target)]}.png")


def find_sides(store: Store) -> dict[int, str]:
    """Find the split of each image, by its identity, in the data set of the last run."""
    run = next(iter(load_runs(store).values()))
    snapshot = DatasetRef.model_validate(load_usable_result(run.recipe.dataset.key, store))
    examples = load_examples(snapshot, store)
    return {item: split for split in examples.splits for item in examples.load_identities(split, store).keys.tolist()}


def main() -> None:
    """Retrain night after night, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=30)
    num_nights, generator = parser.parse_args().nights, random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("images").mkdir()
        Path("refit.toml").write_text(SETTINGS)
        sides, store = dict[int, str](), Store("refit-store")
        for night in range(num_nights):
            add_images(FIRST + NEW * (night - 1) if night else 0, NEW if night else FIRST)
            for path in generator.sample(sorted(Path("images").iterdir()), GONE if night else 0):
                path.unlink()
            Path(READ).write_text("")
            started = time.perf_counter()
            done = subprocess.run([REFIT, "retrain", "--json"], env=environment, capture_output=True, text=True, check=True)
            seconds, sizes = time.perf_counter() - started, list(map(int, Path(READ).read_text().split()))
            now = find_sides(store)
            changed = sum(sides.get(item, side) != side for item, side in now.items())
            sides = now
            reason = json.loads(done.stdout)["reason"]
            told = f"night {night + 1}: {len(now)} images, {len(sizes)} decoded, {sum(sizes):,} bytes, {seconds:.1f} s"
            print(f"{told}, {changed} changed sides; {reason[:90]}", flush=True)


if __name__ == "__main__":
    main()
