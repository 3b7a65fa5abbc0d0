"""Training on a data set of one's own: items a second and start-up of Refit, the plain loop, Lightning and skorch.

`python benchmarks/items.py` runs all in turns, each in a process of its own, with one thread. It counts CPU seconds, loader
processes included, as these depend least on what else the machine does. All read the same items through PyTorch's `DataLoader`,
with as many loader processes. Refit seeds each item and writes a checkpoint after each epoch, as it always does; the others write
none. The first epoch counts as start-up, but for the seconds of a later one. Needs the extra `bench`.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

NUM_EPOCHS, BATCH_SIZE, LR = 3, 32, 0.01
CONTENDERS = ("plain", "refit", "lightning", "skorch")
CASES = [
    ("pictures", "Small", 0),
    ("pictures", "Small", 1),
    ("pictures", "Small", 2),
    ("images", "Large", 0),
    ("tensors", "Flat", 0),
]
TICKS = os.sysconf("SC_CLK_TCK")


class Pictures(Dataset[Any]):
    """PNG files, decoded, scaled and, if they are random, flipped: reading takes longest."""

    def __init__(self, num_items: int, is_random: bool) -> None:
        rng = np.random.default_rng(0)
        self.is_random = is_random
        self.targets = [index % 10 for index in range(num_items)]
        self.ids = [f"{index}.png" for index in range(num_items)]
        self.files = []
        for target in self.targets:
            noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) // 2 + 12 * target
            Image.fromarray(noise.astype(np.uint8)).save(buffer := io.BytesIO(), "PNG", compress_level=1)
            self.files.append(buffer.getvalue())

    def digest(self) -> str:
        """Vouch for the items, so that they are read in every epoch."""
        return f"the same {len(self)}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(self.files[index])).resize((32, 32)))).permute(2, 0, 1) / 255
        return (image.flip(2) if self.is_random and torch.rand(()) < 0.5 else image), self.targets[index]


def pictures(num_items: int = 1500, is_random: bool = True) -> dict[str, Dataset[Any]]:
    """Items that take long to read."""
    return {"train": Pictures(num_items, is_random)}


def tensors() -> dict[str, Dataset[Any]]:
    """Items that are rows of tensors."""
    generator = torch.Generator().manual_seed(0)
    return {"train": TensorDataset(torch.randn(20_000, 20, generator=generator), torch.arange(20_000) % 10)}


def images() -> dict[str, Dataset[Any]]:
    """Items that take long to compute with."""
    generator = torch.Generator().manual_seed(0)
    return {"train": TensorDataset(torch.randn(500, 3, 32, 32, generator=generator), torch.arange(500) % 10)}


class Small(nn.Sequential):
    """A network that takes little time."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 10))


class Large(nn.Sequential):
    """A network that takes much time."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(64 * 256, 10))


class Flat(nn.Sequential):
    """A network of rows."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))


def read_cpu_seconds() -> float:
    """CPU seconds of this process and its loader processes, those that ended and those that live."""
    times = os.times()
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            ticks += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return times.user + times.system + times.children_user + times.children_system + ticks / TICKS


Mark = Callable[[], None]


def run_plain(factory: str, model: str, num_workers: int, mark: Mark) -> None:
    """Train by the plain loop."""
    torch.manual_seed(0)
    dataset, network = globals()[factory]()["train"], globals()[model]()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    for _ in range(NUM_EPOCHS):
        mark()
        for x, y in DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=num_workers):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    mark()


def run_lightning(factory: str, model: str, num_workers: int, mark: Mark) -> None:
    """Train by Lightning, without checkpoints, logs and progress bar."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = globals()[model]()

        def training_step(self, batch: Any) -> Any:
            x, y = batch
            return nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LR)

        def on_train_epoch_start(self) -> None:
            mark()

    lightning.seed_everything(0, verbose=False)
    loader = DataLoader(globals()[factory]()["train"], BATCH_SIZE, shuffle=True, num_workers=num_workers)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(max_epochs=NUM_EPOCHS, accelerator="cpu", **quiet).fit(Module(), loader)
    mark()


def run_skorch(factory: str, model: str, num_workers: int, mark: Mark) -> None:
    """Train by skorch, without validation and prints."""
    from skorch import NeuralNet
    from skorch.callbacks import Callback

    class Marks(Callback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            mark()

    torch.manual_seed(0)
    given = {"criterion": nn.CrossEntropyLoss, "optimizer": torch.optim.SGD, "lr": LR, "train_split": None, "verbose": 0}
    loader = {"iterator_train__shuffle": True, "iterator_train__num_workers": num_workers}
    given |= {"max_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE, "callbacks__print_log": None}
    net = NeuralNet(globals()[model], callbacks=[Marks()], **given, **loader)
    net.fit(globals()[factory]()["train"], y=None)
    mark()


def run_refit(
    factory: str, model: str, num_workers: int, mark: Mark, folder: str | None = None, num_epochs: int = NUM_EPOCHS, **data: Any
) -> None:
    """Train by Refit, with a checkpoint after each epoch; `data` are settings of the data set."""
    from refit.makers import find_maker
    from refit.runs.recipes import build_recipe
    from refit.settings import resolve_settings
    from refit.store.store import Store
    from refit.training import trainer

    with tempfile.TemporaryDirectory() as fresh:
        given = {
            "data": {"factory": f"items:{factory}", **data},
            "model": {"factory": f"items:{model}"},
            "loader": {"batch_size": BATCH_SIZE, "num_workers": num_workers},
            "optimizer": {"name": "sgd", "lr": LR},
            "training": {"num_epochs": num_epochs, "patience": None},
            "store": {"url": folder or fresh, "trust": True},
        }
        settings, _ = resolve_settings(given)
        recipe, store = build_recipe(settings), Store(settings.store.url)
        snapshot = find_maker(settings.data).build_snapshot(settings, recipe.source_digests, store, lambda _: None, lambda _: None)
        loaders = trainer.build_loaders(snapshot, settings)
        checkpoint = trainer.start(snapshot, settings, lambda _: None, lambda _: None)
        for epoch, key in enumerate(recipe.epoch_keys, start=1):
            mark()
            checkpoint = trainer.train_epoch(epoch, key, checkpoint, loaders, settings, lambda _: None).checkpoint
        mark()


def run_one(contender: str, factory: str, model: str, num_workers: int, more: dict[str, Any]) -> None:
    """Run one contender, and print CPU seconds until each epoch, and at the end."""
    seconds = list[float]()
    torch.set_num_threads(1)
    globals()[f"run_{contender}"](factory, model, num_workers, lambda: seconds.append(read_cpu_seconds()), **more)
    print(json.dumps(seconds))


def measure(contender: str, factory: str, model: str, num_workers: int, more: dict[str, Any]) -> list[float]:
    """Run a contender in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", contender, factory, model, str(num_workers), json.dumps(more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent, env=environment)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(repeats: int) -> None:
    """Print, for each case, items a CPU second and CPU seconds until the first epoch, and the ratio to the plain loop in turns."""
    for factory, model, num_workers in CASES:
        num_items = len(globals()[factory]()["train"])
        found: dict[str, list[list[float]]] = {contender: [] for contender in CONTENDERS}
        for turn in range(repeats):
            for contender in CONTENDERS if turn % 2 == 0 else CONTENDERS[::-1]:
                found[contender].append(measure(contender, factory, model, num_workers, {}))
        epochs = {name: [(run[-1] - run[1]) / (NUM_EPOCHS - 1) for run in runs] for name, runs in found.items()}
        for name, runs in found.items():
            ratio = median(plain / ours for plain, ours in zip(epochs["plain"], epochs[name], strict=True))
            start = median(run[1] - epoch for run, epoch in zip(runs, epochs[name], strict=True))
            print(
                f"{factory}, {num_workers} loader processes, {name}: {num_items / median(epochs[name]):,.0f} items a CPU second,"
                f" {ratio:.2f} of the plain loop; start {start:.2f} CPU seconds",
                flush=True,
            )


def measure_cache(repeats: int) -> None:
    """Print the CPU seconds of two nights with and without `data.cache`; the second has 75 new items."""
    for is_kept in (False, True):
        nights: list[list[list[float]]] = [[], []]
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for night, num_items in enumerate((1500, 1575)):
                    data = {"options": {"num_items": num_items, "is_random": False}, "cache": is_kept}
                    cpu = measure("refit", "pictures", "Small", 0, {"folder": folder, **data})
                    nights[night].append([cpu[0], *np.diff(cpu).tolist()])
        for night, runs in enumerate(nights, start=1):
            start, *epochs = np.median(runs, axis=0).tolist()
            told = ", ".join(f"{seconds:.2f}" for seconds in epochs)
            print(f"data.cache {is_kept}, night {night}: start {start:.2f} CPU seconds, epochs {told}", flush=True)


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if given.one:
        contender, factory, model, num_workers, more = given.one
        run_one(contender, factory, model, int(num_workers), json.loads(more))
        return
    compare(given.repeats)
    measure_cache(given.repeats)


if __name__ == "__main__":
    main()
