"""Writes a model of a user's own data set into one file that runs without Refit. It takes the tensors that the network takes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from refit.data.inputs import Inputs, apply_model, count_examples, map_tensors, name_tensors, unname_tensors
from refit.data.signature import Signature
from refit.errors import RefitError, first_line
from refit.serving import exporters
from refit.serving.saved_model import Model
from refit.training.objective import Objective

NUM_TRACED = 3
"""Items that are traced, as PyTorch takes a dimension of one to be always one."""
NUM_CHECKED = (1, 2, 7)
FIRST = "items"
"""Name of the first dimension."""
OUTPUTS = """\
Outputs depend on `kind`:
- `classes`: {class_}, (N,), and probabilities (N, C) in the order of `classes`.
- `labels`: whether an item has each label, (N, L), and probabilities (N, L), in the order of `classes`.
- `numbers`: what is predicted, (N,) or (N, D).
- `none`: what the network gives.
"""
README = """\
A PyTorch program from torch.export:

    import json, torch
    files = {"manifest.json": ""}
    program = torch.export.load("model.pt2", extra_files=files).module()
    manifest = json.loads(files["manifest.json"])
    outputs = program(*tensors)

`tensors` are batches, one for each of manifest["inputs"], in that order: a network that takes a mapping is given its values.

""" + OUTPUTS.format(class_="places of the likeliest classes in `classes`")
ONNX_DOC = "Inputs are described in the metadata `inputs`.\n\n" + OUTPUTS.format(class_="the likeliest classes")


class ItemScorer(nn.Module):
    """A network and what its outputs say: from the tensors of a batch, in the order of `names`, to the answer of the objective."""

    def __init__(self, names: Sequence[str], network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.names, self.network, self.objective = names, network, objective

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return what is predicted and, of classes and labels, how sure that is."""
        x = unname_tensors(dict(zip(self.names, tensors, strict=True)))
        outputs: Any = apply_model(self.network, x)
        if not isinstance(outputs, Tensor):
            raise RefitError(
                f"--format: expected a network whose outputs are one tensor, found a {type(outputs).__name__}; let model.factory"
                " return a module that gives the one to export, or load it with refit.load_model"
            )
        answer, more = self.objective.answer(outputs.float())
        return (answer,) if more is answer else (answer, more)


def write_items(model: Model, path: Path, format: Literal["onnx", "torch"], sample: Inputs, name: str) -> float:
    """Write a model into a file, and check it on items.

    Args:
        model: Of a user's own data set.
        path: Of the file.
        format: `onnx` or `torch`.
        sample: A batch of one or more items.
        name: Origin that the file names.

    Returns:
        The largest difference between a probability or number of the file and that of the model in fp32.

    Raises:
        RefitError: The model cannot be exported, or the file gives other results.
    """
    names = [*name_tensors(sample)]
    if format == "onnx":
        target = model.manifest.signature.target
        exporters.refuse_reserved_names(map(_name_input, names), target, "inputs", "name it otherwise in items and in the network")
    scorer = ItemScorer(names, model.module, model.objective).eval()
    with exporters.naming_export_errors():
        traced = _trace(scorer, model.manifest.signature, _take(sample, NUM_TRACED))
    run = (_write_onnx if format == "onnx" else _write_torch)(traced, names, model, name, path)
    counts = (*NUM_CHECKED, count_examples(sample))
    return max(_check(run, model, _take(sample, num_items)) for num_items in counts)


def _take(x: Inputs, num_items: int) -> Inputs:
    """Return so many items, which come repeatedly if there are fewer."""
    rows = torch.arange(num_items) % count_examples(x)
    return map_tensors(lambda part: part[rows], x)


def _name_input(name: str) -> str:
    """The name for people: the parts of a mapping have those of its keys."""
    return name.removeprefix("x:")


def _trace(scorer: ItemScorer, signature: Signature, x: Inputs) -> torch.export.ExportedProgram:
    """Trace a network with any number of items and any size of what differs among items."""
    items, shapes = torch.export.Dim(FIRST), []
    for name in scorer.names:
        sizes = signature.tensors[name].shape if name in signature.tensors else []
        varying = {place: torch.export.Dim.DYNAMIC for place, size in enumerate(sizes, start=1) if size is None}
        shapes.append({0: items, **varying})
    return torch.export.export(scorer, tuple(name_tensors(x).values()), dynamic_shapes=(tuple(shapes),))


def _describe(model: Model, name: str) -> dict[str, Any]:
    signature = model.manifest.signature
    inputs = [
        {"name": _name_input(key), "type": spec.dtype, "shape": [FIRST, *spec.shape]} for key, spec in signature.tensors.items()
    ]
    return {"model": name, "kind": signature.target.kind, "classes": signature.target.classes, "inputs": inputs}


def _write_torch(
    traced: torch.export.ExportedProgram, names: Sequence[str], model: Model, name: str, path: Path
) -> Callable[[Inputs], list[Any]]:
    with exporters.naming_export_errors():
        extra = {"manifest.json": json.dumps(_describe(model, name)), "README.txt": README}
        torch.export.save(traced, path, extra_files=extra)
    loaded = torch.export.load(path).module()
    classes = np.array(model.manifest.signature.target.classes)

    def run(x: Inputs) -> list[Any]:
        given = name_tensors(x)
        with torch.inference_mode():
            answer, *more = (part.numpy() for part in loaded(*(given[key] for key in names)))
        return [classes[answer] if model.manifest.signature.target.kind == "classes" else answer, *more]

    return run


def _write_onnx(
    traced: torch.export.ExportedProgram, names: Sequence[str], model: Model, name: str, path: Path
) -> Callable[[Inputs], list[Any]]:
    def name_inputs(onnx: Any, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        pairs = [*zip(map(_name_input, names), values, strict=True)]
        nodes = [onnx.helper.make_node("Identity", [key], [value.name]) for key, value in pairs]
        return [exporters.rename(value, key, FIRST) for key, value in pairs], nodes

    with exporters.naming_export_errors():
        target = model.manifest.signature.target
        score = exporters.write_onnx(traced, path, name_inputs, FIRST, target, _describe(model, name), ONNX_DOC)

    def run(x: Inputs) -> list[Any]:
        return score({_name_input(key): part.numpy() for key, part in name_tensors(x).items()})

    return run


def _check(run: Callable[[Inputs], list[Any]], model: Model, x: Inputs) -> float:
    num_items = count_examples(x)
    try:
        outputs, found = exporters.as_exported(model).predict_logits(x), run(x)
    except RefitError:
        raise
    except Exception as error:
        raise RefitError(
            f"--format: expected a model that scores {num_items} item{'s' * (num_items > 1)}, exported or not, found"
            f" {type(error).__name__}: {first_line(error)}; keep items as the first dimension in its forward, also a single one"
        ) from error
    return exporters.check_answers(outputs, found, model, "item")
