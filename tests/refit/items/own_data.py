"""Data sets and networks as notebooks have them."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

NUM_ITEMS = 60


class ToyDataset(Dataset):
    def __init__(self, features, labels):
        self.features, self.labels = features, labels

    def __getitem__(self, index):
        return self.features[index], self.labels[index]

    def __len__(self):
        return len(self.labels)


def draw(num_items=NUM_ITEMS, shape=(4,)):
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(num_items) % 3
    return torch.randn(num_items, *shape, generator=generator) + y.view(-1, *[1] * len(shape)), y


def toy(num_items: int = NUM_ITEMS):
    x, y = draw(num_items)
    return {"train": ToyDataset(x, y), "val": ToyDataset(x[:30], y[:30]), "test": ToyDataset(-x[:31], y[:31])}


def whole(num_items: int = NUM_ITEMS):
    return ToyDataset(*draw(num_items))


class Net(nn.Module):
    """Of any inputs: they are flattened and put side by side."""

    def __init__(self, num_inputs=4, num_outputs=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_inputs, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, num_outputs))

    def forward(self, *xs, **named):
        return self.layers(torch.cat([x.flatten(1) for x in (*xs, *named.values())], dim=1))


def build_net(num_outputs):
    return Net(4, num_outputs)


class Files(Dataset):
    """A file of numbers an item, moved at random by each of the three generators, in training."""

    def __init__(self, folder, is_random):
        self.samples = [(str(path), int(path.stem) % 3) for path in sorted(Path(folder).glob("*.npy"))]
        self.targets = [target for _, target in self.samples]
        self.classes = ["cat", "dog", "owl"]
        self.is_random = is_random
        self.log = os.environ.get("READS")

    def __getitem__(self, index):
        path, target = self.samples[index]
        if self.log:
            with open(self.log, "a") as log:
                log.write(f"{index}\n")
        x = torch.from_numpy(np.load(path))
        return x + self.is_random * (torch.randn(4) + np.random.randn() + random.random()), target

    def __len__(self):
        return len(self.samples)


def files(folder: str = "files", is_random: bool = True):
    return {
        "train": Files(f"{folder}/train", is_random),
        "val": Files(f"{folder}/val", False),
        "test": Files(f"{folder}/test", False),
    }


def write_files(folder="files"):
    for split, num_items in (("train", 50), ("val", 12), ("test", 12)):
        Path(folder, split).mkdir(parents=True, exist_ok=True)
        x, _ = draw(num_items)
        for number, row in enumerate(x):
            np.save(f"{folder}/{split}/{number:03}.npy", row.numpy())


class Seldom(Files):
    """Items of which only the eighth draws from the generators of numpy and python."""

    def __getitem__(self, index):
        x, target = super().__getitem__(index)
        return x + torch.randn(4) + (np.random.randn() + random.random() if index == 7 else 0), target


def seldom():
    return {"train": Seldom("files/train", False)}


def centred(folder: str = "files"):
    """Items that depend on all files."""
    mean = torch.from_numpy(sum(np.load(path) for path in sorted(Path(folder).glob("train/*.npy"))))
    return {split: Changed(data, lambda _, x, y: (x - mean, y)) for split, data in files(folder, False).items()}


class Changed(Dataset):
    """Another data set, whose items a function changes."""

    def __init__(self, dataset, change):
        self.dataset, self.change = dataset, change
        self.__dict__.update({name: getattr(dataset, name) for name in ("samples", "targets", "classes") if hasattr(dataset, name)})

    def __getitem__(self, index):
        return self.change(index, *self.dataset[index])

    def __len__(self):
        return len(self.dataset)


def misnamed():
    return {"training": toy()["train"]}


def changed(change):
    return {split: Changed(dataset, change) for split, dataset in toy().items()}


def pairs():
    return changed(lambda _, x, y: ((x[:2], x[2:]), y))


def named():
    return changed(lambda _, x, y: ({"left": x[:2], "right": x[2:]}, y))


def noisy():
    return changed(lambda _, x, y: (x + torch.randn(4), y))


def lengths():
    return changed(lambda index, x, y: (x.repeat(1 + index % 3), y))


def add_up(items):
    """Make a batch of items of several lengths."""
    return torch.stack([x.view(-1, 4).sum(dim=0) for x, _ in items]), torch.tensor([int(y) for _, y in items])


def weigh(targets):
    return 1.0 + targets


class Failing(Files):
    def __getitem__(self, index):
        if index == 7 and self.is_random:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def failing():
    return {"train": Failing("files/train", True), "test": Failing("files/test", False)}


class Killing(Files):
    """Kills the loader process that reads item 7, once."""

    def __getitem__(self, index):
        if index == 7 and self.is_random and torch.utils.data.get_worker_info() is not None and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def killing():
    return {"train": Killing("files/train", True), "test": Killing("files/test", False)}


def train_plainly(dataset, num_epochs, batch_size=8, seed=0, sampler=None, collate_fn=None, num_inputs=4):
    """The notebook's loop: losses, and weights."""
    torch.manual_seed(seed)
    model = Net(num_inputs, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=sampler is None, sampler=sampler, collate_fn=collate_fn)
    losses = []
    for epoch in range(1, num_epochs + 1):
        dataset.epoch = epoch
        for x, y in loader:
            outputs = model(x) if isinstance(x, torch.Tensor) else model(**x) if isinstance(x, dict) else model(*x)
            loss = nn.functional.cross_entropy(outputs, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, model.state_dict()


def unwatched():
    """Without validation items."""
    return {split: dataset for split, dataset in toy().items() if split != "val"}


def train_with_plateau(datasets, num_epochs, options):
    """A plain loop whose learning rate falls where the loss no longer does: losses, and weights."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    losses, rates = [], []
    for _ in range(num_epochs):
        epoch = []
        for x, y in torch.utils.data.DataLoader(datasets["train"], 8, shuffle=True):
            loss = nn.functional.cross_entropy(model.train()(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch.append((loss.item(), len(y)))
        losses += [loss for loss, _ in epoch]
        watched = sum(loss * size for loss, size in epoch) / len(datasets["train"])
        if "val" in datasets:
            with torch.inference_mode():
                watched = nn.functional.cross_entropy(model.eval()(datasets["val"].features), datasets["val"].labels).item()
        scheduler.step(watched)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[-1] < rates[0]
    return losses, model.state_dict()


def numbers():
    return changed(lambda _, x, y: (x, (x.sum() + y).double().item() / 10))


def labels():
    return changed(lambda _, x, __: (x, (x[:3] > 0).long()))


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def restore(model, batch):
    x, _ = batch
    return nn.functional.mse_loss(model(x), x)


def largest_error(outputs, targets):
    return (outputs.squeeze(1) - targets).abs().max()


def train_by(loss, dataset, make_model, num_epochs=1):
    """A plain loop with any loss of a model and a batch."""
    torch.manual_seed(0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(num_epochs):
        for batch in torch.utils.data.DataLoader(dataset, 8, shuffle=True):
            value = loss(model, batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses, model.state_dict()


def toy_again(first: int = 140):
    """Train items are the first ones; then come 60 test items."""
    x, y = draw(200)
    return {"train": ToyDataset(x[:first], y[:first]), "test": ToyDataset(x[first : first + 60], y[first : first + 60])}


class Named(ToyDataset):
    @property
    def ids(self):
        return [f"pictures/{int(y)}/{place}.png" for place, y in enumerate(self.labels)]


def pictures_again(num_channels: int = 3):
    x, y = draw(200, (num_channels, 8, 8))
    return {"train": Named(x[:140], y[:140]), "test": Named(x[140:], y[140:])}


def numbers_again():
    return {split: Changed(dataset, lambda _, x, y: (x, float(x.sum() + y) / 10)) for split, dataset in toy_again().items()}


def skewed(share: float = 1 / 3, seed: int = 0):
    """Items of three classes, of which the first has this share."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for split in ("train", "test"):
        y = (torch.rand(150, generator=generator) > share) * torch.randint(1, 3, (150,), generator=generator)
        found[split] = ToyDataset(torch.randn(150, 4, generator=generator) + 2 * y[:, None], y)
    return found


def labels_again():
    return {split: Changed(dataset, lambda _, x, __: (x, (x[:3] > 0.5).long())) for split, dataset in toy_again().items()}


class Tuned(Net):
    """Whose first layer is frozen."""

    def __init__(self, num_inputs=4, num_outputs=3):
        super().__init__(num_inputs, num_outputs)
        self.layers[0].requires_grad_(False)


class Taught(Tuned):
    """Whose frozen layer follows the last one."""


def teach(model, batch):
    x, y = batch
    with torch.no_grad():
        model.layers[0].bias += model.layers[3].bias.mean()
    return nn.functional.cross_entropy(model(x), y)


def to_score(folder):
    return Files(folder, False)
