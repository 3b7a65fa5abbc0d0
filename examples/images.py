"""Images in folders, one a class, moved at random while a small network learns them: `python images.py` (with scikit-learn)."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import refit


class ImageFolder(Dataset):
    """The files FOLDER/CLASS/NAME.png. The names of its attributes are those of torchvision's."""

    def __init__(self, folder, is_random):
        self.root, self.is_random = folder, is_random
        self.classes = sorted(path.name for path in Path(folder).iterdir())
        self.samples = [(path, self.classes.index(path.parent.name)) for path in sorted(Path(folder).glob("*/*.png"))]
        self.targets = [target for _, target in self.samples]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, target = self.samples[index]
        image = torch.from_numpy(np.array(Image.open(path), np.float32) / 255)[None]
        if self.is_random:
            image = image.roll(int(torch.randint(-1, 2, ())), dims=2) * random.uniform(0.8, 1.2)
        return image, target


def load_images(folder: str = "digits"):
    return {"train": ImageFolder(f"{folder}/train", True), "test": ImageFolder(f"{folder}/test", False)}


def build_network(num_outputs, width: int = 16):
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, width, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, num_outputs))


def write_images(folder="digits", num_images=600):
    digits = load_digits()
    for number, (pixels, target) in enumerate(zip(digits.images[:num_images], digits.target, strict=False)):
        path = Path(folder, "test" if number % 3 == 0 else "train", str(target), f"{number:04}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(path)


DATA = {"factory": "images:load_images", "inputs": ["digits"]}  # items are random, so files say what the data is
MORE = {"optimizer": {"lr": 0.01}, "training": {"num_epochs": 6}}
SETTINGS = {"name": "images", "data": DATA, "model": {"factory": "images:build_network"}, **MORE}

if __name__ == "__main__":
    write_images()
    refit.train({**SETTINGS, "loader": {"num_workers": 2}})
