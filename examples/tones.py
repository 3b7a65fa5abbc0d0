"""Low and high tones on a web server, each fetched once, however many epochs and nights: `python tones.py` (with aiohttp)."""

from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import refit


class Tones(Dataset):
    """The files URL/CLASS-NUMBER.npy. By `ids` and `targets`, Refit knows file and target of an item without reading it."""

    classes = ("low", "high")

    def __init__(self, url: str):
        self.ids = sorted(fsspec.filesystem("http").find(url))
        self.targets = [int("high" in path) for path in self.ids]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        with fsspec.open(self.ids[index]) as file:
            return torch.from_numpy(np.load(file)), self.targets[index]


def build_network(num_outputs):
    layers = [nn.Unflatten(1, (1, 256)), nn.Conv1d(1, 8, 16, stride=4), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_outputs))


def write_tones(folder="tones", first=0, num_tones=80):
    Path(folder).mkdir(exist_ok=True)
    for number in range(first, first + num_tones):
        generator, is_high = np.random.default_rng(number), number % 2
        wave = np.sin(np.arange(256) * generator.uniform(0.1, 0.3) * (1 + 3 * is_high)) + 0.3 * generator.standard_normal(256)
        np.save(f"{folder}/{Tones.classes[is_high]}-{number:03}.npy", wave.astype(np.float32))


def serve():
    SimpleHTTPRequestHandler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/tones/"


def make_settings(url):
    data = {"factory": "tones:Tones", "options": {"url": url}, "inputs": [url], "cache": True}
    return {"name": "tones", "data": data, "model": {"factory": "tones:build_network"}, "optimizer": {"lr": 0.02}}


if __name__ == "__main__":
    write_tones()
    refit.train(make_settings(serve()))
