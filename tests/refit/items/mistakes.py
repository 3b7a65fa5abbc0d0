"""Data sets with one thing wrong each."""

import random
import sys
import zipfile
from functools import partial
from pathlib import Path

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
    "some fractions": lambda index, x, y: (x, 0.5 if index == 7 else y),
    "lists": lambda index, x, y: (x.tolist()[: 3 if index == 7 else 4], y),
    "sparse": lambda index, x, y: (x.to_sparse() if index == 7 else x, y),
    "meta": lambda _, x, y: (x.to("meta"), y),
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
        "open archive": lambda: FromArchive(items),
        "a lambda": lambda: Changing(items, change=lambda x: x),
        "more counted": lambda: Lying(items),
        "own generator": lambda: Drawing(items, generator=np.random.default_rng(0), digest=lambda: "same"),
        "digest of more": lambda: Items(items, digest=lambda data: data),
        "equal ids": lambda: Items(items, ids=["a", "b"] * 5 + [f"item {index}" for index in range(30)]),
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


class FromArchive(Items):
    def __init__(self, items):
        with zipfile.ZipFile("items.zip", "w"):
            pass
        super().__init__(items, archive=zipfile.ZipFile("items.zip"))


class Lying(Items):
    def __len__(self):
        return len(self.items) + 5


class Drawing(Items):
    """Draws from a generator of its own."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + float(self.generator.standard_normal()), y


class Changing(Items):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return self.change(x), y


class Dying(Items):
    """Ends the process that reads item 7: always, or once."""

    def __getitem__(self, index):
        if index == 7 and (self.always or not Path("died").exists()):
            Path("died").touch()
            sys.exit(3)
        return super().__getitem__(index)


def dying(always: bool):
    items = change_items("bfloat16")
    return {"train": Dying(items, always=always), "test": Items(items)}


def counting():
    """Counts the calls of `digest`."""

    def digest(split):
        with open("digests", "a") as log:
            log.write(split)
        return split

    items = change_items("bfloat16")
    return {split: Items(items, digest=partial(digest, split)) for split in ("train", "test")}


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


class Flawed(Items):
    """Four of the items cannot be used, one of which cannot be read, and another one only once."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        if item is None:
            raise OSError("image file is truncated")
        if item[1] == 2 and self.fails_later and Path("read").exists():
            raise OSError("stale file handle")
        return item


def flawed(is_live: bool = True, is_whole: bool = True, fails_later: bool = False):
    items = [(x, index % 3) for index, x in enumerate(X)]
    train = [*items] if is_whole else [item for index, item in enumerate(items) if index not in (3, 7, 9, 11)]
    if is_whole:
        train[3], train[7], train[9], train[11] = None, (X[7][:3], 1), (X[9] / 0, 0), (X[11], 5)
    more = {"classes": ["a", "b", "c"], "fails_later": fails_later}
    more |= {"digest": lambda: "same"} if is_live else {}
    return {"train": Flawed(train, **more), "test": Flawed([(-x, y) for x, y in items[20:]], **more)}


class Net(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.layer = nn.Linear(4, num_outputs)

    def forward(self, x):
        return self.layer(x.float().view(len(x), -1).expand(len(x), 4))
