"""A tiny transformer, whose items are dictionaries, learns whether brackets match: `python brackets.py`."""

import random

import torch
from torch import nn
from torch.utils.data import Dataset

import refit

LENGTH = 12
CODES = {"(": 1, ")": 2}


def is_balanced(text):
    depths = [text[:end].count("(") - text[:end].count(")") for end in range(len(text) + 1)]
    return min(depths) == depths[-1] == 0


def draw_texts(num_items, seed):
    """Draw as many texts that match as others."""
    draws, found = random.Random(seed), {True: {}, False: {}}
    while any(len(texts) < num_items // 2 for texts in found.values()):
        text = "".join(draws.choices("()", k=2 * draws.randint(1, LENGTH // 2)))
        found[is_balanced(text)][text] = True
    return [text for texts in found.values() for text in [*texts][: num_items // 2]]


class Texts(Dataset):
    def __init__(self, num_items: int = 300, seed: int = 0):
        self.ids = draw_texts(num_items, seed)
        self.classes = ["open", "balanced"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        codes = torch.zeros(LENGTH, dtype=torch.int64)
        codes[: len(self.ids[index])] = torch.tensor([CODES[sign] for sign in self.ids[index]])
        return {"codes": codes, "mask": codes > 0}, int(is_balanced(self.ids[index]))


class Transformer(nn.Module):
    def __init__(self, num_outputs, width: int = 32):
        super().__init__()
        self.signs, self.places = nn.Embedding(3, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, codes, mask):
        vectors = self.encoder(self.signs(codes) + self.places.weight, src_key_padding_mask=~mask)
        return self.output((vectors * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


DATA = {"factory": "brackets:Texts"}
SETTINGS = {"name": "brackets", "data": DATA, "model": {"factory": "brackets:Transformer"}, "training": {"num_epochs": 20}}

if __name__ == "__main__":
    refit.train(SETTINGS)
