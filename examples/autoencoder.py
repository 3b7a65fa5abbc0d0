"""An auto-encoder, with a step of its own: `python autoencoder.py`.

The pictures are the digits of scikit-learn, which this example needs, too.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

import refit


class Pictures(Dataset):
    """A picture as 64 numbers; it has no target."""

    def __init__(self, num_items: int = 1797):
        self.pixels = torch.tensor(load_digits().data[:num_items] / 16, dtype=torch.float32)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


class AutoEncoder(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, width))
        self.decoder = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))


def restore(model, batch):
    """Return the loss of a batch: how far the pictures are from what comes out, with some noise on what goes in."""
    noise = 0.1 * torch.randn_like(batch) if model.training else 0
    return nn.functional.mse_loss(model(batch + noise), batch)


SETTINGS = {
    "name": "autoencoder",
    "data": {"factory": "autoencoder:Pictures"},
    "model": {"factory": "autoencoder:AutoEncoder", "options": {"width": 6}},
    "training": {"step": "autoencoder:restore", "num_epochs": 10},
}

if __name__ == "__main__":
    refit.train(SETTINGS)
