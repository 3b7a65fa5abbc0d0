"""Words of any length, padded by batch, for a recurrent network that tells their language: `python names.py`."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import Dataset

import refit

NAMES = {
    "Finnish": "virtanen korhonen makinen nieminen makela hamalainen laine heikkinen koskinen jarvinen lehtonen lehtinen saarinen"
    " salminen heinonen niemi heikkila salonen kinnunen turunen salo laitinen tuominen rantanen karjalainen jokinen mattila",
    "Italian": "rossi russo ferrari esposito bianchi romano colombo ricci marino greco bruno gallo conti deluca mancini costa"
    " rizzo lombardi moretti barbieri fontana santoro mariani rinaldi caruso ferrara galli martini leone longo gentile",
    "Polish": "nowak kowalski wisniewski wojcik kowalczyk kaminski lewandowski zielinski szymanski wozniak dabrowski kozlowski"
    " jankowski kwiatkowski krawczyk kaczmarek piotrowski grabowski zajac pawlowski michalski krol wieczorek jablonski wrobel",
}


class Names(Dataset):
    """A name as the numbers of its letters, from 1 on, and its language."""

    def __init__(self):
        self.classes = list(NAMES)
        self.ids = [name for names in NAMES.values() for name in names.split()]
        self.targets = [target for target, names in enumerate(NAMES.values()) for _ in names.split()]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return torch.tensor([ord(letter) - ord("a") + 1 for letter in self.ids[index]]), self.targets[index]


def pad(items):
    """Make a batch: letters, padded by zeros, and lengths; and languages."""
    names, targets = zip(*items, strict=True)
    lengths = torch.tensor([len(name) for name in names])
    return (pad_sequence(names, batch_first=True), lengths), torch.tensor(targets)


class Network(nn.Module):
    def __init__(self, num_outputs, width: int = 32):
        super().__init__()
        self.letters = nn.Embedding(27, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, names, lengths):
        packed = pack_padded_sequence(self.letters(names), lengths, batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        return self.output(last[0])


DATA = {"factory": "names:Names", "test": 0.25}
LOADER = {"collate": "names:pad", "batch_size": 8}
SETTINGS = {"name": "names", "data": DATA, "loader": LOADER, "model": {"factory": "names:Network"}, "optimizer": {"lr": 0.01}}

if __name__ == "__main__":
    refit.train(SETTINGS)
