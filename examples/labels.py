"""Several labels at once: what holds of a digit, from its picture: `python labels.py`.

The pictures are the digits of scikit-learn, which this example needs, too.
"""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

import refit

LABELS = {"even": {0, 2, 4, 6, 8}, "above four": {5, 6, 7, 8, 9}, "has a loop": {0, 6, 8, 9}}


class Pictures(Dataset):
    """A picture as 64 numbers, and a 0 or 1 for each label."""

    def __init__(self, num_items: int = 1797):
        digits = load_digits()
        self.classes = list(LABELS)
        self.pixels = torch.tensor(digits.data[:num_items] / 16, dtype=torch.float32)
        self.targets = torch.tensor([[digit in members for members in LABELS.values()] for digit in digits.target[:num_items]])

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index], self.targets[index]


SETTINGS = {"name": "labels", "data": {"factory": "labels:Pictures"}, "training": {"loss": "binary", "num_epochs": 10}}

if __name__ == "__main__":
    model = refit.load_model(refit.train(SETTINGS).model.path)
    print(model.classes, model.predict(Pictures(3)))
