"""Models of a user's own data sets in one file, which gives what the network gives."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from refit.data.examples import Examples
from refit.data.inputs import count_examples, map_tensors, name_tensors
from refit.data.signature import Signature, Target, TensorSpec
from refit.errors import RefitError
from refit.serving.export import export_model
from refit.serving.saved_model import Model
from refit.settings import SettingsTree

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
CLASSES = Target(name="y", classes=["cat", "dog", "owl"])


class Padded(nn.Module):
    """Takes sequences of any length, with their masks, by name."""

    def __init__(self):
        super().__init__()
        self.embedding, self.output = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, codes, mask):
        return self.output((self.embedding(codes) * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))


class Added(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.left, self.right = nn.Linear(4, num_outputs), nn.Linear(2, num_outputs)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


class Squared(nn.Module):
    def forward(self, x):
        return x.flatten(1) ** 2


def draw_codes(length, num_items=3):
    codes = torch.arange(num_items * length).view(num_items, length) % 9
    return {"codes": codes, "mask": codes > 0}


MODELS = {
    "images": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)),
        CLASSES,
        torch.randn(3, 1, 8, 8),
    ),
    "sequences": (Padded, CLASSES, draw_codes(5)),
    "as long as a batch": (Padded, CLASSES, draw_codes(3)),
    "numbers": (lambda: nn.Linear(4, 1), Target(name="y", kind="numbers", centers=[0.0]), torch.randn(3, 4)),
    "labels of pairs": (
        lambda: Added(2),
        Target(name="y", kind="labels", classes=["old", "large"], centers=[0.5, 0.5]),
        (torch.randn(1, 4), torch.randn(1, 2)),
    ),
    "a step": (Squared, Target(name="loss", kind="none"), torch.randn(3, 2, 2)),
}


def make_model(network, target, x, varying=()):
    """A model of such items; places of dimensions that vary among them count from 0."""
    tensors = {
        name: TensorSpec(
            dtype=str(part.dtype).removeprefix("torch."),
            shape=[None if place in varying else size for place, size in enumerate(part.shape[1:])],
        )
        for name, part in name_tensors(x).items()
    }
    manifest = Examples.model_construct(maker="items", signature=Signature(columns=[], target=target, tensors=tensors), source=None)
    return Model(network.eval(), manifest, SettingsTree(name="owls"))


def run_torch(path, x):
    files = {"manifest.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    manifest, parts = json.loads(files["manifest.json"]), name_tensors(x)
    assert [part["name"] for part in manifest["inputs"]] == [name.removeprefix("x:") for name in parts]
    answer, *more = (part.detach().numpy() for part in program(*parts.values()))
    return [np.array(manifest["classes"])[answer] if manifest["kind"] == "classes" else answer, *more]


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path)
    assert all(given.shape[0] == "items" for given in session.get_inputs())
    return session.run(None, {name.removeprefix("x:"): part.numpy() for name, part in name_tensors(x).items()})


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_file_gives_what_the_model_gives_for_any_number_of_items(kind, format):
    torch.manual_seed(0)
    make_network, target, x = MODELS[kind]
    is_long = isinstance(x, dict)
    model = make_model(make_network(), target, x, varying=[0] if is_long else [])
    assert export_model(model, f"model{SUFFIXES[format]}", format, x) < 1e-5
    more = draw_codes(7, 4) if is_long else map_tensors(lambda part: torch.randn(4, *part.shape[1:]), x)
    for given in (more, map_tensors(lambda part: part[:1], more)):
        found = {"onnx": run_onnx, "torch": run_torch}[format](f"model{SUFFIXES[format]}", given)
        assert len(found) == (2 if target.classes else 1)
        np.testing.assert_array_equal(found[0], model.predict(given)) if target.classes else None
        np.testing.assert_allclose(found[-1], model.predict_proba(given), atol=1e-5)
        assert len(found[0]) == count_examples(given)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.output = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.output(self.gru(x)[1][0])


class Branching(nn.Module):
    def forward(self, x):
        return x[:, 0, :3] if x.sum() > 0 else x[:, 0, 1:]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Recurrent, r"specialized it to be a constant \(5\).*; give all items one size, as it goes through each of them step by"),
        (
            Branching,
            r"Could not guard on data-dependent expression .*test_item_export\.py, line \d+: return x.*; leave out branches",
        ),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused_with_what_pytorch_says(network, message, tmp_path):
    x = torch.randn(3, 5, 4)
    with pytest.raises(RefitError, match=rf"^--format: expected a network that can be exported, found \w+: .*{message}"):
        export_model(make_model(network(), CLASSES, x, varying=[0]), str(tmp_path / "model.pt2"), "torch", x)
    assert not list(tmp_path.iterdir())


class Heads(nn.Module):
    def forward(self, x):
        return x[:, :3], x


def test_a_network_of_several_outputs_is_refused():
    x, target = torch.randn(3, 4), Target(name="loss", kind="none")
    with pytest.raises(
        RefitError, match=r"expected a network whose outputs are one tensor, found a tuple; let model\.factory return"
    ):
        export_model(make_model(Heads(), target, x), "model.pt2", "torch", x)


def test_inputs_named_like_outputs_are_refused_in_onnx():
    x = {"class": torch.randn(3, 4)}
    with pytest.raises(RefitError, match=r"expected inputs named unlike the outputs .*, found `class`; name it otherwise in items"):
        export_model(make_model(nn.Linear(4, 3), CLASSES, x), "model.onnx", "onnx", x)
