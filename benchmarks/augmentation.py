"""Random augmentation after an interruption: do Refit, and Lightning with a `StatefulDataLoader`, end with the same bits?

`python benchmarks/augmentation.py` trains with 0 and 2 loader processes, undisturbed and dying without warning in the middle of the
second epoch, after which the same command is given again. Lightning writes a checkpoint after every step, with the state of the
loader in it, and goes on by `ckpt_path="last"`; Refit writes one after every step, too. Needs the extra `bench`.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

NUM_EPOCHS, NUM_ITEMS, BATCH_SIZE, LR = 3, 80, 8, 0.05
DIES_AT = 16
"""The step, counted from 1, before which the process dies: in the second of three epochs of ten."""


class Noisy(Dataset[Any]):
    """Rows of numbers, moved at random by all three generators."""

    targets = tuple(index % 3 for index in range(NUM_ITEMS))
    ids = range(NUM_ITEMS)

    def digest(self) -> str:
        """Vouch for the items, which are random."""
        return "the same"

    def __len__(self) -> int:
        return NUM_ITEMS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x = torch.arange(4.0) / 4 + index % 3
        return x + torch.randn(4) + np.float32(np.random.randn()) + random.random(), index % 3


class Network(nn.Sequential):
    """A network that draws as well."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def load() -> dict[str, Dataset[Any]]:
    """The data set of a factory."""
    return {"train": Noisy()}


class Dying:
    """Counts steps, and dies before one of them, if it is told to."""

    def __init__(self, dies: bool) -> None:
        self.dies, self.steps = dies, 0

    def step(self) -> None:
        """Count a step."""
        self.steps += 1
        if self.dies and self.steps == DIES_AT:
            os._exit(9)


def run_refit(num_workers: int, folder: str, dying: Dying) -> Any:
    """Train, or go on training; return the weights."""
    import refit
    from refit.data.live_items import ItemLoader

    gather_at = ItemLoader.gather_at

    def gather(loader: ItemLoader, order: torch.Tensor, first: int) -> Any:
        if loader.batch_size == BATCH_SIZE:
            dying.step()
        return gather_at(loader, order, first)

    ItemLoader.gather_at = gather  # type: ignore[method-assign]
    settings = {
        "data": {"factory": "augmentation:load"},
        "model": {"factory": "augmentation:Network"},
        "loader": {"batch_size": BATCH_SIZE, "num_workers": num_workers},
        "optimizer": {"name": "sgd", "lr": LR},
        "training": {"num_epochs": NUM_EPOCHS, "patience": None},
        "checkpoint": {"every_seconds": 1e-9},
        "store": {"url": folder, "trust": True},
    }
    return torch.load(Path(refit.train(settings, report=lambda _: None).model.path, "model.pt"))


def run_lightning(num_workers: int, folder: str, dying: Dying) -> Any:
    """Train, or go on training; return the weights."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torchdata.stateful_dataloader import StatefulDataLoader

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def training_step(self, batch: Any) -> Any:
            dying.step()
            x, y = batch
            return nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LR)

    lightning.seed_everything(0, workers=True, verbose=False)
    loader = StatefulDataLoader(Noisy(), BATCH_SIZE, shuffle=True, num_workers=num_workers)
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    module = Module()
    path = Path(folder, "last.ckpt")
    trainer = lightning.Trainer(max_epochs=NUM_EPOCHS, accelerator="cpu", callbacks=[keep], **quiet)
    trainer.fit(module, loader, ckpt_path=str(path) if path.exists() else None)
    return module.network.state_dict()


def run_one(name: str, num_workers: int, folder: str, dies: bool) -> None:
    """Train, and print a digest of the weights."""
    torch.set_num_threads(1)
    weights = globals()[f"run_{name}"](num_workers, folder, Dying(dies))
    print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in weights.values())).hexdigest()[:12])


def train(name: str, num_workers: int, dies: bool) -> str:
    """Train in processes of their own, the first of which may die; return the digest."""
    with tempfile.TemporaryDirectory() as folder:
        for may_die in (True, False) if dies else (False,):
            command = [sys.executable, "-W", "ignore", __file__, "--one", name, str(num_workers), folder, str(int(may_die))]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
            if done.returncode != (9 if may_die else 0):
                raise RuntimeError(done.stderr)
    return done.stdout.split()[-1]


def main() -> None:
    """Print the digest of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if given.one:
        name, num_workers, folder, dies = given.one
        run_one(name, int(num_workers), folder, bool(int(dies)))
        return
    for name in ("refit", "lightning"):
        for num_workers in (0, 2):
            undisturbed, again, disturbed = (train(name, num_workers, dies) for dies in (False, False, True))
            print(
                f"{name}, {num_workers} loader processes: undisturbed {undisturbed}, again {again}, after dying {disturbed}",
                flush=True,
            )


if __name__ == "__main__":
    main()
