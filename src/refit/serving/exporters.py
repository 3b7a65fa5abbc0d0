"""What every export shares: names for people in the graph that PyTorch traces, and errors that say what to do."""

import contextlib
import importlib
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refit.data.signature import Target
from refit.errors import RefitError, SettingsError, first_line
from refit.serving.saved_model import Model
from refit.training.objective import Objective
from refit.training.objectives import StandardizedNumber

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INTERNAL = "refit/"
"""Prefix of names within an ONNX graph, to keep them apart from those of inputs."""
ANSWERS = {
    "classes": ["class", "probabilities"],
    "labels": ["labels", "probabilities"],
    "numbers": ["prediction"],
    "none": ["output"],
}
"""Outputs of an ONNX file by the kind of target; a traced graph gives the place of a class. Numbers may have quantiles, too."""
MAX_DIFFERENCE = 1e-5
MAX_TIE = 1e-6
"""The likeliest class may differ if the probabilities of two classes are as close as this."""
FIXED_SIZE = re.compile(r"You marked (\S+) as dynamic but your code specialized it to be a constant \(\d+\)")
USER_LINE = re.compile(r'call raised this error:\n\s*File "(.+)", line (\d+), in \w+\n\s*(.+)')

NameInputs = Callable[[Any, Sequence[Any]], tuple[list[Any], list[Any]]]
"""From the package onnx and the inputs of a traced graph to inputs with names for people, and the nodes from one to the other."""


def write_onnx(
    traced: torch.export.ExportedProgram,
    path: Path,
    name_inputs: NameInputs,
    dimension: str,
    target: Target,
    told: Mapping[str, Any],
    doc: str,
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Write a traced program, whose outputs are those of the objective, as an ONNX file.

    Args:
        traced: The program.
        path: Of the file.
        name_inputs: Gives inputs names.
        dimension: What the first dimension counts.
        target: Its kind names the outputs.
        told: Metadata of the file.
        doc: Its description.

    Returns:
        What runs the file: from arrays by input to those of the outputs.
    """
    onnx, onnxruntime, _ = map(importlib.import_module, ONNX_PACKAGES)
    count = len(traced.graph_signature.user_inputs)
    # Without the exporter's optimizer, which replaces the mean of a column of tiny numbers by zero.
    program: Any = torch.onnx.export(
        traced, dynamo=True, optimize=False, verbose=False, input_names=[f"input {place}" for place in range(count)]
    )
    proto = _add_names(onnx, onnx.compose.add_prefix(program.model_proto, INTERNAL), name_inputs, dimension, target)
    proto.doc_string = doc
    onnx.helper.set_model_props(proto, {key: it if isinstance(it, str) else json.dumps(it) for key, it in told.items()})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = session.run(None, given)
        return found

    return run


def _add_names(onnx: Any, proto: Any, name_inputs: NameInputs, dimension: str, target: Target) -> Any:
    """Add named inputs before the traced graph, and named outputs after it."""
    helper, graph = onnx.helper, proto.graph
    for value in [*graph.input, *graph.node, *graph.initializer, *graph.value_info]:
        del value.metadata_props[:]  # paths of code on this machine
    inputs, first = name_inputs(onnx, graph.input)
    outputs = [rename(value, name, dimension) for value, name in zip(graph.output, name_answers(target), strict=True)]
    last = [helper.make_node("Identity", [value.name], [output.name]) for value, output in zip(graph.output, outputs, strict=True)]
    if target.kind == "classes":
        labels = helper.make_tensor(f"{INTERNAL}classes", *_list_labels(onnx.TensorProto, target.classes))
        graph.initializer.append(labels)
        outputs[0].type.tensor_type.elem_type = labels.data_type
        last[0] = helper.make_node("Gather", [labels.name, graph.output[0].name], [outputs[0].name])
    traced_nodes = list(graph.node)
    for field, values in {"input": inputs, "output": outputs, "node": [*first, *traced_nodes, *last]}.items():
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return proto


def name_answers(target: Target) -> list[str]:
    """Name the outputs of an ONNX file."""
    return [*ANSWERS[target.kind], *["quantiles"] * bool(target.quantiles)]


def rename(value: Any, name: str, dimension: str) -> Any:
    """Copy the description of an input or output, with another name and another one of its first dimension."""
    renamed = type(value)()
    renamed.CopyFrom(value)
    renamed.name = name
    renamed.type.tensor_type.shape.dim[0].dim_param = dimension
    return renamed


def _list_labels(types: Any, classes: Sequence[bool | int | str]) -> tuple[int, list[int], list[Any]]:
    """Return type, shape and values of the tensor of labels."""
    whole = types.UINT64 if any(isinstance(label, int) and label >= 2**63 for label in classes) else types.INT64
    kind = {bool: types.BOOL, int: whole, str: types.STRING}[type(classes[0])]
    return kind, [len(classes)], [label.encode() if isinstance(label, str) else label for label in classes]


def refuse_missing_packages() -> None:
    """Raise SettingsError unless ONNX can be written."""
    for package in ONNX_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise SettingsError(f"--format: expected the packages that write ONNX, found no {package}; pip install 'refit[onnx]'")


def refuse_reserved_names(
    names: Iterable[str], target: Target, what: str = "columns", remedy: str = "rename it and train again"
) -> None:
    """Raise RefitError for inputs that are named like outputs."""
    outputs = name_answers(target)
    for name in names:
        if name in outputs or name.startswith(INTERNAL):
            named = " and ".join(f"`{output}`" for output in outputs)
            raise RefitError(
                f"--format: expected {what} named unlike the output{'s' * (len(outputs) > 1)} {named}, found `{name}`; {remedy}, or"
                " export as torch"
            )


@contextlib.contextmanager
def naming_export_errors() -> Iterator[None]:
    """Raise a RefitError if an exporter fails, and silence its warnings about packages and its own code."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # it says which models need torchvision
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export", category=UserWarning)
            yield
    except (OSError, RefitError):
        raise
    except Exception as error:
        raise RefitError(
            f"--format: expected a network that can be exported, found {_explain(error.__cause__ or error)}, or load it with"
            " refit.load_model"
        ) from error
    finally:
        logger.setLevel(level)


def _explain(error: BaseException) -> str:
    """Name the cause in the compiler's message, the user's line that it is about, and the remedy."""
    text = str(error)
    cause, advice = first_line(error), "leave out branches that depend on values in its forward"
    if match := FIXED_SIZE.search(text):
        cause, advice = match[0], "in its forward, write x.shape[0] for len(x) or int(x.shape[0]), and no loop over rows"
        if match[1].endswith("]") and not match[1].endswith("size()[0]"):
            advice = "give all items one size, as it goes through each of them step by step, such as a recurrent layer"
    place = f" ({match[1]}, line {match[2]}: {match[3]})" if (match := USER_LINE.search(text)) else ""
    return f"{type(error).__name__}: {cause}{place}; {advice}"


def as_exported(model: Model) -> Model:
    """Return the model as a file computes, in fp32."""
    compute = model.settings.compute.model_copy(update={"precision": "fp32"})
    return Model(model.module, model.manifest, model.settings.model_copy(update={"compute": compute}))


def _find_scale(objective: Objective, kind: str, outputs: torch.Tensor) -> Any:
    """How far numbers of one example may be apart, relative to probabilities; `(N,)`, or one for all."""
    if kind in ("classes", "labels"):
        return 1.0
    if isinstance(objective, StandardizedNumber):
        return objective.scale * np.maximum(1, np.abs(outputs.reshape(len(outputs), -1).numpy()).max(axis=1))
    return max(1.0, float(outputs.abs().max()))


def check_answers(outputs: torch.Tensor, found: Sequence[Any], model: Model, what: str) -> float:
    """Compare what a file gives with what the outputs of the model say.

    Args:
        outputs: Of the model, `(N, …)`.
        found: The arrays of the file, each `(N, …)`: of classes and labels what is predicted and its probabilities, else numbers.
        model: It has an objective.
        what: Stands for an example in a message.

    Returns:
        The largest difference of a probability or number.

    Raises:
        RefitError: One is too far off, or another class is the likeliest.
    """
    kind, numbers = model.manifest.signature.target.kind, found[-1]
    predicted, expected = model.objective.predict(outputs), model.objective.answer(outputs)[1].numpy()
    differences = np.abs(numbers - expected).reshape(len(expected), -1).max(axis=1)
    is_right = differences <= MAX_DIFFERENCE * _find_scale(model.objective, kind, outputs)
    if kind == "classes":
        second, first = np.partition(expected, -2, axis=1)[:, -2:].T
        tuning = model.tuning
        margin = first - second if tuning.positive is None else np.abs(expected[:, tuning.positive] - tuning.threshold)
        is_right &= (found[0] == predicted) | (margin <= MAX_TIE)
    if kind == "labels":
        is_right &= ((found[0] == predicted) | (np.abs(expected - 0.5) <= MAX_TIE)).all(axis=1)
    if not is_right.all():
        row = int(is_right.argmin())
        before, now = f"{expected[row].tolist()}", f"{numbers[row].tolist()}"
        if kind == "classes":
            before, now = f"class {predicted[row]} and probabilities {before}", f"{found[0][row]} and {now}"
        raise RefitError(
            f"{what} {row + 1} of the {what}s to check: expected {before}, found {now} in the exported model;"
            " export it in the other format"
        )
    return float(differences.max())
