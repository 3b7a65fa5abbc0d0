"""Kill runs on augmented images, and their loader processes, at random moments; go on, and compare with runs that nobody disturbed.

python tests/e2e/loader_kills.py --kills 40
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

MODULE = """
from pathlib import Path
import numpy as np, torch
from torch import nn
from torch.utils.data import Dataset

class Images(Dataset):
    def __init__(self, root, augment):
        self.root, self.augment = root, augment
        self.samples = sorted((str(path), int(path.parent.name)) for path in Path(root).glob("*/*.npy"))
        self.targets = [target for _, target in self.samples]
    def __len__(self):
        return len(self.samples)
    def __getitem__(self, index):
        path, target = self.samples[index]
        image = torch.from_numpy(np.load(path)).float()[None] / 16
        if self.augment:
            image = torch.roll(image, int(torch.randint(-1, 2, ())), dims=2) + 0.1 * np.random.randn()
        return image, target

def datasets():
    return {split: Images(f"images/{split}", split == "train") for split in ("train", "val", "test")}

class Net(nn.Sequential):
    def __init__(self, num_outputs):
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, num_outputs))
"""
RUN = """
import sys, refit
settings = {"data": {"factory": "own_images:datasets", "inputs": ["images"]}, "model": {"factory": "own_images:Net"},
            "loader": {"batch_size": 16, "num_workers": int(sys.argv[2])}, "training": {"num_epochs": 4},
            "checkpoint": {"every_seconds": 0.1}, "compute": {"num_threads": 1}, "store": {"url": sys.argv[1]}}
print(refit.train(settings, report=lambda line: print(line, file=sys.stderr)).model.weights_digest)
"""


def start(store: str, num_workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, store, str(num_workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"a run failed by itself:\n{err[-3000:]}")
    return out.strip()


def list_children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def disturb(store: str, num_workers: int, chance: random.Random, num_kills: int) -> tuple[str, Counter[str]]:
    """Run until the end, killed some times on the way."""
    killed: Counter[str] = Counter()
    while True:
        process = start(store, num_workers)
        if killed.total() >= num_kills:
            return finish(process), killed
        time.sleep(chance.uniform(3.0, 7.0))  # imports take three seconds
        children = list_children(process.pid)
        if process.poll() is None and children and chance.random() < 0.5:
            os.kill(chance.choice(children), signal.SIGKILL)
            killed["loader process"] += 1
            time.sleep(chance.uniform(0, 0.5))
        if process.poll() is None:
            process.kill()
            killed["run"] += 1
            process.communicate()
        elif process.returncode == 0:
            return finish(process), killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance, digits = random.Random(given.seed), load_digits()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("own_images.py").write_text(MODULE)
        for number, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = {0: "test", 1: "val"}.get(number % 5, "train")
            Path(f"images/{split}/{target}").mkdir(parents=True, exist_ok=True)
            np.save(f"images/{split}/{target}/{number}.npy", image.astype(np.uint8))
        undisturbed = {workers: finish(start(f"undisturbed-{workers}", workers)) for workers in (0, 1, 2, 4)}
        print("undisturbed:", undisturbed)
        total: Counter[str] = Counter()
        number, digests = 0, set(undisturbed.values())
        while total.total() < given.kills:
            digest, killed = disturb(f"store-{number}", (2, 0, 1, 4)[number % 4], chance, 8)
            number, total = number + 1, total + killed
            digests.add(digest)
            print(f"run {number}: {dict(killed)}, {digest[:12]}", flush=True)
        print(f"{dict(total)}; {len(digests)} different weights")
        sys.exit(len(digests) != 1)


if __name__ == "__main__":
    main()
