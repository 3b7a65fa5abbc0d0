"""A notebook's own cells, unchanged, and the settings that train them: `python toy.py`."""

import torch
from torch.utils.data import Dataset

import refit


class ToyDataset(Dataset):
    def __init__(self, X, y):
        self.features = X
        self.labels = y

    def __getitem__(self, index):
        one_x = self.features[index]
        one_y = self.labels[index]
        return one_x, one_y

    def __len__(self):
        return self.labels.shape[0]


class NeuralNetwork(torch.nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(num_inputs, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, num_outputs),
        )

    def forward(self, x):
        return self.layers(x)


X_train = torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]])
y_train = torch.tensor([0, 0, 0, 1, 1])
X_test = torch.tensor([[-0.8, 2.8], [2.6, -1.6]])
y_test = torch.tensor([0, 1])


def load_datasets():
    return {"train": ToyDataset(X_train, y_train), "test": ToyDataset(X_test, y_test)}


SETTINGS = {
    "name": "toy",
    "data": {"factory": "toy:load_datasets"},
    "model": {"factory": "toy:NeuralNetwork"},
    "loader": {"batch_size": 2, "drop_last": True},
    "optimizer": {"name": "sgd", "lr": 1.0},
    "training": {"num_epochs": 3},
}

if __name__ == "__main__":
    refit.train(SETTINGS)
