"""Data sets with one thing wrong each."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, random_split

NUM_ITEMS = 40
X = torch.randn(NUM_ITEMS, 4, generator=torch.Generator().manual_seed(0))
CHANGES = {
    "shape": lambda index, x, y: (x[:3] if index == 7 else x, y),
    "type": lambda index, x, y: (x.double() if index == 0 else x, y),
    "text": lambda _, x, y: (x, "abc"[y]),
    "nothing": lambda _, x, __: (x, None),
    "vector": lambda _, x, y: (x, torch.tensor([y])),
    "three": lambda index, x, y: (x, y, index),
    "one class": lambda _, x, __: (x, 0),
    "named": lambda index, x, y: ({"name": f"item {index}", "x": x}, y),
    "NaN": lambda index, x, y: (x * (float("nan") if index in (7, 9) else 1), y),
    "mapping": lambda _, x, y: {"x": x, "y": y},
    "target in a mapping": lambda _, x, y: (x, {"y": y}),
    "number": lambda _, x, y: (float(x[0]), y),
    "bfloat16": lambda _, x, y: (x.bfloat16(), y),
}


class Items(Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Fractional(Items):
    def __len__(self):
        return 10.5


class FromFile(Items):
    def __init__(self):
        np.save("items.npy", X.numpy())
        super().__init__(range(NUM_ITEMS), opened=open("items.npy", "rb"))  # noqa: SIM115

    def __del__(self):
        self.opened.close()


def make(kind: str):
    items = [(x, index % 3) for index, x in enumerate(X)]
    special = {
        "fractional": lambda: Fractional(items),
        "few ids": lambda: Items(items, ids=["a", "b"]),
        "open file": FromFile,
        "digest of more": lambda: Items(items, digest=lambda data: data),
        "no digest": lambda: Items(items, digest=lambda: None),
        "texts": lambda: Items(items, samples=[f"text {index}" for index in range(NUM_ITEMS)]),
        "tensors": lambda: Items(items, ids=X, samples=X),
        "divided": lambda: random_split(items, [30, 10]),
    }
    if kind in special:
        return special[kind]()
    return Items(change_items(kind))


def read_by_digest(kind: str):
    """Items that are read when they are needed."""
    items = change_items(kind)
    return {"train": Items(items, digest=lambda: kind), "test": Items(items[:6], digest=lambda: kind)}


def other_test_items():
    items = [(x, index % 3) for index, x in enumerate(X)]
    return {"train": Items(items), "test": Items([(x[:2], y) for x, y in items])}


def change_items(kind):
    items = [(x, index % 3) for index, x in enumerate(X)]
    return [CHANGES[kind](index, x, y) for index, (x, y) in enumerate(items)]


def divide():
    """Divides at random, by generators that nobody seeded."""
    items = [(x, index % 3) for index, x in enumerate(X)]
    random.shuffle(items)
    train, test = random_split(items, [30, 10])
    return {"train": train, "test": test}


class Net(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.layer = nn.Linear(4, num_outputs)

    def forward(self, x):
        return self.layer(x.float().view(len(x), -1).expand(len(x), 4))
