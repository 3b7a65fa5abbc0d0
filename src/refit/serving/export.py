"""Writes a model with its preparation of rows into one file that runs without Refit: ONNX, or a `torch.export` program.

Both are the same network over one tensor per column. The ONNX file also looks up the categories, which are text there, as torch
has no text tensors.
"""

import contextlib
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from refit.errors import DataError, RefitError, SettingsError, first_line
from refit.models.contract import NUM_ROWS
from refit.runtime.randomness import putting_generators_back
from refit.serving.saved_model import Model
from refit.serving.tensor_model import MISSING_CATEGORY, TEXTS, Scorer, build_array, describe_column
from refit.store.outputs import check_output, replacing
from refit.tables.manifest import Manifest, expect_table
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, TextColumn
from refit.training.objective import Classification
from refit.training.objectives import StandardizedNumber

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
INTERNAL = "refit/"
"""Prefix of names within an ONNX graph, to keep them apart from those of columns."""
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FIXED_ROWS = re.compile(r"You marked \w+ as dynamic but your code specialized it to be a constant \(\d+\)")
USER_LINE = re.compile(r'call raised this error:\n\s*File "(.+)", line (\d+), in \w+\n\s*(.+)')
MAX_DIFFERENCE = 1e-5
MAX_TIE = 1e-6
"""The likeliest class may differ if the probabilities of two classes are as close as this."""

Arrays = list[NDArray[Any]]
Run = Callable[[Arrays], tuple[NDArray[Any], NDArray[Any]]]
"""Runs the written file: columns, each `(N,)`, to classes `(N,)` and probabilities `(N, C)`, or to numbers, `(N,)`, twice."""

README_OF_CLASSES = """\
    index, probabilities = program(*columns)
    labels = [manifest["classes"][i] for i in index]
"""
README_OF_NUMBERS = """\
    (numbers,) = program(*columns)
"""
README_START = """\
A PyTorch program from torch.export, including the preparation of its inputs:

    import json, torch
    files = {"manifest.json": ""}
    program = torch.export.load("model.pt2", extra_files=files).module()
    manifest = json.loads(files["manifest.json"])
"""
README = (
    """
`columns` are tensors of shape (N,), one for each of manifest["columns"], in that order, of its `type`, with `missing` where a
value is unknown. Booleans are 0 and 1, date-times are microseconds since 1970 in UTC. A category is its index in `categories`,
or len(categories) if it is not there.

"""
    + TEXTS
)
ONNX_DOC = """\
Inputs: a tensor of shape (N,) for each column, described in the metadata `columns`, with `missing` where a value is unknown.
Booleans are 0 and 1, date-times are microseconds since 1970 in UTC. Categories are text without spaces around it: whole numbers as
`1` or `1.0`, booleans as `true`, `True` or `TRUE`. """
OUTPUTS_OF_CLASSES = """\
Outputs: `class` (N,), and `probabilities` (N, C) in the order of the metadata
`classes`.

"""
OUTPUTS_OF_NUMBERS = """\
Output: `prediction` (N,), float64.

"""


def export_model(
    model: Model, output: str, format: Literal["onnx", "torch"], rows: pl.DataFrame, model_name: str | None = None
) -> float:
    """Write a model with its preparation of rows into one file that computes in fp32. It is checked on `rows` before it appears.

    A `torch.export` program takes categories as numbers, as its `README.txt` explains:

        files = {"manifest.json": ""}
        program = torch.export.load("model.pt2", extra_files=files).module()
        index, probabilities = program(*columns)  # a tensor (N,) for each of json.loads(files["manifest.json"])["columns"]

    Args:
        model: As `load_model` returns it.
        output: A path or fsspec URL that ends in `.onnx` or `.pt2`.
        format: `onnx` or `torch`.
        rows: Raw rows, such as the test rows.
        model_name: Origin that the file names, such as `penguins@v3`; None takes the name in the settings.

    Returns:
        The largest difference between a probability or number of the file and that of the model in fp32.

    Raises:
        SettingsError: `output` has another ending, or the packages for ONNX are not installed.
        DataError: `rows` is empty, or a row cannot be scored.
        RefitError: The model cannot be exported, the file gives other results, or `output` cannot be written.
    """
    check_output(output, SUFFIXES[format])
    manifest = expect_table(model.manifest, "refit export")
    if rows.is_empty():
        raise DataError("rows to check the export on: expected rows, found none; give the test rows")
    if format == "onnx":
        _refuse_missing_packages()
        _refuse_reserved_names(manifest)
    name = model_name or model.settings.name
    with putting_generators_back(), replacing(output) as path:
        scorer = Scorer(manifest.columns, model.module, model.objective).eval()
        run = _write_onnx(scorer, manifest, name, path) if format == "onnx" else _write_torch(scorer, manifest, name, path)
        for num_rows in NUM_ROWS:  # some programs are traced for two or more rows only
            _check(run, model, rows[np.arange(num_rows) % rows.height], has_text=format == "onnx")
        return _check(run, model, rows, has_text=format == "onnx")


def _describe_all(manifest: Manifest, name: str, has_text: bool) -> dict[str, Any]:
    columns = [describe_column(column, has_text) for column in manifest.columns]
    classes = {"classes": manifest.classes} if manifest.classes else {}
    return {"model": name, "target": manifest.target, **classes, "columns": columns}


def _trace(scorer: Scorer) -> torch.export.ExportedProgram:
    columns = tuple(map(_make_example, scorer.preparation.columns))
    rows = torch.export.Dim("rows")
    return torch.export.export(scorer, columns, dynamic_shapes=(tuple({0: rows} for _ in columns),))


def _make_example(column: AnyColumn) -> torch.Tensor:
    if isinstance(column, TextColumn):
        return torch.zeros(3, column.width, dtype=torch.int64)
    return torch.zeros(3, dtype=torch.int64 if column.kind in ("datetime", "categorical") else torch.float64)


def _write_torch(scorer: Scorer, manifest: Manifest, name: str, path: Path) -> Run:
    with _naming_export_errors():
        program = _trace(scorer)
        described = json.dumps(_describe_all(manifest, name, has_text=False))
        readme = README_START + (README_OF_CLASSES if manifest.classes else README_OF_NUMBERS) + README
        torch.export.save(program, path, extra_files={"manifest.json": described, "README.txt": readme})
    loaded = torch.export.load(path).module()
    classes = Classification(tuple(manifest.classes)).labels

    def run(columns: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
        with torch.inference_mode():
            first, *others = (part.numpy() for part in loaded(*map(torch.tensor, columns)))
        return (classes[first], others[0]) if others else (first, first)

    return run


def _write_onnx(scorer: Scorer, manifest: Manifest, name: str, path: Path) -> Run:
    onnx, onnxruntime, _ = map(importlib.import_module, ONNX_PACKAGES)
    with _naming_export_errors():
        names = [f"column {position}" for position in range(len(manifest.columns))]
        outputs = ["place", "probabilities"] if manifest.classes else ["number"]
        # Without the exporter's optimizer, which replaces the mean of a column of tiny numbers by zero.
        program: Any = torch.onnx.export(
            _trace(scorer), dynamo=True, optimize=False, verbose=False, input_names=names, output_names=outputs
        )
        proto = _add_names(onnx, onnx.compose.add_prefix(program.model_proto, INTERNAL), manifest)
        proto.doc_string = ONNX_DOC + (OUTPUTS_OF_CLASSES if manifest.classes else OUTPUTS_OF_NUMBERS) + TEXTS
        told = _describe_all(manifest, name, has_text=True)
        onnx.helper.set_model_props(proto, {key: it if isinstance(it, str) else json.dumps(it) for key, it in told.items()})
        onnx.checker.check_model(proto, full_check=True)
        onnx.save_model(proto, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(columns: Arrays) -> tuple[NDArray[Any], NDArray[Any]]:
        given = {column.name: values for column, values in zip(manifest.columns, columns, strict=True)}
        found = session.run(list(_name_outputs(manifest)), given)
        return found[0], found[-1]

    return run


def _add_names(onnx: Any, proto: Any, manifest: Manifest) -> Any:
    """Add inputs named like the columns, with text for categories, before the traced graph, and labels after it."""
    helper, types, graph = onnx.helper, onnx.TensorProto, proto.graph
    for traced in [*graph.input, *graph.node, *graph.initializer, *graph.value_info]:
        del traced.metadata_props[:]  # paths of code on this machine
    inputs, nodes = [], []
    for column, traced in zip(manifest.columns, graph.input, strict=True):
        kind = traced.type.tensor_type.elem_type
        if isinstance(column, CategoricalColumn):
            kind, codes = types.STRING, _list_codes(column)
            known = {"keys_strings": list(codes), "values_int64s": list(codes.values()), "default_int64": len(column.categories)}
            nodes.append(helper.make_node("LabelEncoder", [column.name], [traced.name], domain="ai.onnx.ml", **known))
        else:
            nodes.append(helper.make_node("Identity", [column.name], [traced.name]))
        shape = ["rows", column.width] if isinstance(column, TextColumn) else ["rows"]
        inputs.append(helper.make_tensor_value_info(column.name, kind, shape))
    last, outputs = _add_outputs(helper, types, graph, manifest)
    traced_nodes = list(graph.node)
    for field, values in {"input": inputs, "output": outputs, "node": [*nodes, *traced_nodes, *last]}.items():
        del getattr(graph, field)[:]
        getattr(graph, field).extend(values)
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return proto


def _add_outputs(helper: Any, types: Any, graph: Any, manifest: Manifest) -> tuple[list[Any], list[Any]]:
    """Make the nodes and descriptions of the outputs: labels and probabilities, or numbers."""
    first, *others = (output.name for output in graph.output)
    if not manifest.classes:
        output = helper.make_tensor_value_info("prediction", types.DOUBLE, ["rows"])
        return [helper.make_node("Identity", [first], ["prediction"])], [output]
    labels = helper.make_tensor(f"{INTERNAL}classes", *_list_labels(types, manifest.classes))
    graph.initializer.append(labels)
    nodes = [
        helper.make_node("Gather", [labels.name, first], ["class"]),
        helper.make_node("Identity", others, ["probabilities"]),
    ]
    outputs = [
        helper.make_tensor_value_info("class", labels.data_type, ["rows"]),
        helper.make_tensor_value_info("probabilities", types.FLOAT, ["rows", len(manifest.classes)]),
    ]
    return nodes, outputs


def _name_outputs(manifest: Manifest) -> tuple[str, ...]:
    return ("class", "probabilities") if manifest.classes else ("prediction",)


def _list_codes(column: CategoricalColumn) -> dict[str, int]:
    """Map the text of each category, and its other spellings, to its index."""
    places = {category: place for place, category in enumerate(column.categories)}
    spellings = {"true": ["True", "TRUE"], "false": ["False", "FALSE"]}
    others = {other: place for name, place in places.items() for other in spellings.get(name, [f"{name}.0"])}
    return {**others, **places, **dict.fromkeys(["", *column.null_values], MISSING_CATEGORY)}


def _list_labels(types: Any, classes: Sequence[bool | int | str]) -> tuple[int, list[int], list[Any]]:
    """Return type, shape and values of the tensor of labels."""
    whole = types.UINT64 if any(isinstance(label, int) and label >= 2**63 for label in classes) else types.INT64
    kind = {bool: types.BOOL, int: whole, str: types.STRING}[type(classes[0])]
    return kind, [len(classes)], [label.encode() if isinstance(label, str) else label for label in classes]


def _refuse_missing_packages() -> None:
    for package in ONNX_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise SettingsError(f"--format: expected the packages that write ONNX, found no {package}; pip install 'refit[onnx]'")


def _refuse_reserved_names(manifest: Manifest) -> None:
    for column in manifest.columns:
        outputs = _name_outputs(manifest)
        if column.name in outputs or column.name.startswith(INTERNAL):
            named = " and ".join(f"`{name}`" for name in outputs)
            raise RefitError(
                f"--format: expected columns named unlike the output{'s' * (len(outputs) > 1)} {named}, found `{column.name}`;"
                " rename it and train again, or export as torch"
            )


@contextlib.contextmanager
def _naming_export_errors() -> Iterator[None]:
    """Raise a RefitError if an exporter fails, and silence its warnings about packages and its own code."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # it says which models need torchvision
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    except OSError:
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
    if match := FIXED_ROWS.search(text):
        cause, advice = match[0], "in its forward, write x.shape[0] for len(x) or int(x.shape[0]), and no loop over rows"
    place = f" ({match[1]}, line {match[2]}: {match[3]})" if (match := USER_LINE.search(text)) else ""
    return f"{type(error).__name__}: {cause}{place}; {advice}"


def _check(run: Run, model: Model, rows: pl.DataFrame, has_text: bool) -> float:
    """Return the largest difference; raise RefitError if it is too large or another class is the likeliest."""
    compute = model.settings.compute.model_copy(update={"precision": "fp32"})
    original = Model(model.module, model.manifest, model.settings.model_copy(update={"compute": compute}))
    arrays = [build_array(column, rows, has_text) for column in expect_table(model.manifest, "refit export").columns]
    try:
        logits, (classes, found) = original.predict_logits(rows), run(arrays)
    except RefitError:
        raise
    except Exception as error:
        raise RefitError(
            f"--format: expected a model that scores {rows.height} row{'s' * (rows.height > 1)}, exported or not, found"
            f" {type(error).__name__}: {first_line(error)}; keep rows as the first dimension in its forward, also a single one"
        ) from error
    if isinstance(model.objective, StandardizedNumber):
        return _compare_numbers(logits.flatten().numpy(), found, model.objective)
    labels, expected = model.objective.predict(logits), model.objective.answer(logits)[1].numpy()
    differences = np.abs(found - expected).max(axis=1)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    is_right = (differences <= MAX_DIFFERENCE) & ((classes == labels) | (first - second <= MAX_TIE))
    if not is_right.all():
        row = int(is_right.argmin())
        raise RefitError(
            f"row {row + 1} of the rows to check: expected class {labels[row]} and probabilities {expected[row].tolist()},"
            f" found {classes[row]} and {found[row].tolist()} in the exported model; export it in the other format"
        )
    return float(differences.max())


def _compare_numbers(standardized: NDArray[Any], found: NDArray[Any], objective: StandardizedNumber) -> float:
    """Return the largest difference of numbers, `(N,)`; raise RefitError if it is too large for their deviation."""
    expected = objective.predict(torch.from_numpy(standardized))
    differences = np.abs(found - expected)
    is_right = differences <= MAX_DIFFERENCE * objective.scale * np.maximum(1, np.abs(standardized))
    if not is_right.all():
        row = int(is_right.argmin())
        raise RefitError(
            f"row {row + 1} of the rows to check: expected {expected[row]}, found {found[row]} in the exported model; export it in"
            " the other format"
        )
    return float(differences.max())
