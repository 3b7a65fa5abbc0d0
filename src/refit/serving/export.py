"""Writes a model with its preparation of rows into one file that runs without Refit: ONNX, or a `torch.export` program.

Both are the same network over one tensor per column. The ONNX file also looks up the categories, which are text there, as torch
has no text tensors.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from refit.data.inputs import count_examples
from refit.errors import DataError, RefitError, first_line
from refit.models.contract import NUM_ROWS
from refit.runtime.randomness import putting_generators_back
from refit.serving import exporters
from refit.serving.item_export import write_items
from refit.serving.saved_model import Model
from refit.serving.tensor_model import MISSING_CATEGORY, TEXTS, Scorer, build_array, describe_column
from refit.store.outputs import check_output, replacing
from refit.tables.manifest import Manifest
from refit.tables.preprocessing import AnyColumn, CategoricalColumn, TextColumn
from refit.training.objective import Classification

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}

Arrays = list[NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]
"""Runs the written file: columns, each `(N,)`, to classes `(N,)` and probabilities `(N, C)`, or to numbers, `(N,)`."""

README_OF_CLASSES = """\
    index, probabilities = program(*columns)
    labels = [manifest["classes"][i] for i in index]
"""
README_OF_NUMBERS = """\
    (numbers,) = program(*columns)
"""
README_OF_QUANTILES = """\
    numbers, quantiles = program(*columns)  # quantiles of manifest["quantiles"]
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
value is unknown. Booleans are 0 and 1, times of day are hours, date-times are microseconds since 1970 in UTC. A category is its
index in `categories`, or len(categories) if it is not there.

"""
    + TEXTS
)
ONNX_DOC = """\
Inputs: a tensor of shape (N,) for each column, described in the metadata `columns`, with `missing` where a value is unknown.
Booleans are 0 and 1, times of day are hours, date-times are microseconds since 1970 in UTC. Categories are text without spaces
around it: whole numbers as `1` or `1.0`, booleans as `true`, `True` or `TRUE`. """
OUTPUTS_OF_CLASSES = """\
Outputs: `class` (N,), and `probabilities` (N, C) in the order of the metadata
`classes`.

"""
OUTPUTS_OF_NUMBERS = """\
Output: `prediction` (N,), float64, and, if there is a metadata `quantiles`, those of these levels, `quantiles` (N, Q).

"""


def export_model(model: Model, output: str, format: Literal["onnx", "torch"], rows: Any, model_name: str | None = None) -> float:
    """Write a model with its preparation of rows into one file that computes in fp32. It is checked on `rows` before it appears.

    A `torch.export` program takes categories as numbers, as its `README.txt` explains:

        files = {"manifest.json": ""}
        program = torch.export.load("model.pt2", extra_files=files).module()
        index, probabilities = program(*columns)  # a tensor (N,) for each of json.loads(files["manifest.json"])["columns"]

    Args:
        model: As `load_model` returns it.
        output: A path or fsspec URL that ends in `.onnx` or `.pt2`.
        format: `onnx` or `torch`.
        rows: Raw rows, such as the test rows. If the model has learned from a user's own data set, a batch of inputs, such as
            `model.manifest.load_sample(store)[0]`; the file then takes the tensors that the network takes.
        model_name: Origin that the file names, such as `penguins@v3`; None takes the name in the settings.

    Returns:
        The largest difference between a probability or number of the file and that of the model in fp32.

    Raises:
        SettingsError: `output` has another ending, or the packages for ONNX are not installed.
        DataError: `rows` is empty, or a row cannot be scored.
        RefitError: The model cannot be exported, the file gives other results, or `output` cannot be written.
    """
    check_output(output, SUFFIXES[format])
    name, is_table = model_name or model.settings.name, isinstance(model.manifest, Manifest)
    if (len(rows) if is_table else count_examples(rows)) == 0:
        raise DataError("rows to check the export on: expected rows, found none; give the test rows")
    if format == "onnx":
        exporters.refuse_missing_packages()
    with putting_generators_back(), replacing(output) as path:
        return (_write_table if is_table else write_items)(model, path, format, rows, name)


def _write_table(model: Model, path: Path, format: Literal["onnx", "torch"], rows: pl.DataFrame, name: str) -> float:
    manifest = cast(Manifest, model.manifest)
    if format == "onnx":
        exporters.refuse_reserved_names((column.name for column in manifest.columns), manifest.signature.target)
    scorer = Scorer(manifest.columns, model.module, model.objective).eval()
    run = _write_onnx(scorer, manifest, name, path) if format == "onnx" else _write_torch(scorer, manifest, name, path)
    for num_rows in NUM_ROWS:  # some programs are traced for two or more rows only
        _check(run, model, manifest, rows[np.arange(num_rows) % rows.height], has_text=format == "onnx")
    return _check(run, model, manifest, rows, has_text=format == "onnx")


def _describe_all(manifest: Manifest, name: str, has_text: bool) -> dict[str, Any]:
    columns = [describe_column(column, has_text) for column in manifest.columns]
    target = manifest.signature.target
    classes = {name: value for name, value in (("classes", target.classes), ("quantiles", target.quantiles)) if value}
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
    with exporters.naming_export_errors():
        program = _trace(scorer)
        described = json.dumps(_describe_all(manifest, name, has_text=False))
        calls = README_OF_QUANTILES if manifest.signature.target.quantiles else README_OF_NUMBERS
        readme = README_START + (README_OF_CLASSES if manifest.classes else calls) + README
        torch.export.save(program, path, extra_files={"manifest.json": described, "README.txt": readme})
    loaded = torch.export.load(path).module()
    classes = Classification(tuple(manifest.classes)).labels

    def run(columns: Arrays) -> list[NDArray[Any]]:
        with torch.inference_mode():
            first, *others = (part.numpy() for part in loaded(*map(torch.tensor, columns)))
        return [classes[first] if manifest.classes else first, *others]

    return run


def _write_onnx(scorer: Scorer, manifest: Manifest, name: str, path: Path) -> Run:
    def name_inputs(onnx: Any, traced: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Name inputs like the columns, and look up categories, which are text."""
        inputs, nodes = [], []
        for column, value in zip(manifest.columns, traced, strict=True):
            if isinstance(column, CategoricalColumn):
                codes = _list_codes(column)
                texts = {
                    "keys_strings": list(codes),
                    "values_int64s": list(codes.values()),
                    "default_int64": len(column.categories),
                }
                nodes.append(onnx.helper.make_node("LabelEncoder", [column.name], [value.name], domain="ai.onnx.ml", **texts))
            else:
                nodes.append(onnx.helper.make_node("Identity", [column.name], [value.name]))
            inputs.append(exporters.rename(value, column.name, "rows"))
            if isinstance(column, CategoricalColumn):
                inputs[-1].type.tensor_type.elem_type = onnx.TensorProto.STRING
        return inputs, nodes

    with exporters.naming_export_errors():
        told = _describe_all(manifest, name, has_text=True)
        doc = ONNX_DOC + (OUTPUTS_OF_CLASSES if manifest.classes else OUTPUTS_OF_NUMBERS) + TEXTS
        score = exporters.write_onnx(_trace(scorer), path, name_inputs, "rows", manifest.signature.target, told, doc)

    def run(columns: Arrays) -> list[NDArray[Any]]:
        return score({column.name: values for column, values in zip(manifest.columns, columns, strict=True)})

    return run


def _list_codes(column: CategoricalColumn) -> dict[str, int]:
    """Map the text of each category, and its other spellings, to its index."""
    places = {category: place for place, category in enumerate(column.categories)}
    spellings = {"true": ["True", "TRUE"], "false": ["False", "FALSE"]}
    others = {other: place for name, place in places.items() for other in spellings.get(name, [f"{name}.0"])}
    return {**others, **places, **dict.fromkeys(["", *column.null_values], MISSING_CATEGORY)}


def _check(run: Run, model: Model, manifest: Manifest, rows: pl.DataFrame, has_text: bool) -> float:
    """Return the largest difference; raise RefitError if it is too large or another class is the likeliest."""
    arrays = [build_array(column, rows, has_text) for column in manifest.columns]
    try:
        logits, found = exporters.as_exported(model).predict_logits(rows), run(arrays)
    except RefitError:
        raise
    except Exception as error:
        raise RefitError(
            f"--format: expected a model that scores {rows.height} row{'s' * (rows.height > 1)}, exported or not, found"
            f" {type(error).__name__}: {first_line(error)}; keep rows as the first dimension in its forward, also a single one"
        ) from error
    return exporters.check_answers(logits, found, model, "row")
