import importlib.util
import json
import random
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from torch import nn

from refit.data.signature import Target
from refit.errors import DataError, RefitError, SettingsError
from refit.models.building import build_model
from refit.serving.export import export_model
from refit.serving.saved_model import Model
from refit.serving.tensor_model import MISSING_TIME, TEXTS, Preparation, build_array, compute_date_parts, describe_column
from refit.settings import SettingsTree
from refit.tables.preprocessing import AnyColumn, apply_columns, fit_columns, name_inputs, sign_columns
from refit.tables.table_examples import TableExamples

Run = Callable[[pl.DataFrame], list[np.ndarray]]
WORDS = np.array(["Free", "entry", "ﬁne", "don't", "好电影", "Straße", "now", "win!", "मैं हूँ", "100 %", "spam_1 🎉"])
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
KINDS = {
    "size": "numeric",
    "charge, in C": "numeric",
    "weight, in g": "numeric",
    "colour": "categorical",
    "grade": "categorical",
    "is_new": "boolean",
    "was_sold": "boolean",
    "day": "datetime",
    "seen": "datetime",
}
EMBEDDED = ("size", "colour", "note")
TWO_COLUMNS = ("size", "colour")
"""Exported in a second, where those with times take ten."""


def make_rows(seed: int, num_rows: int = 400, is_whole: bool = False) -> pl.DataFrame:
    """Rows of every kind of column; all but `is_whole` ones lack every eighth value."""
    draw = np.random.default_rng(seed)
    days = [datetime(1890, 1, 1) + timedelta(days=int(count)) for count in draw.integers(0, 90_000, num_rows)]
    seconds = draw.integers(-(10**9), 2 * 10**9, num_rows)
    frame = pl.DataFrame(
        {
            "size": draw.normal(1e3, 1, num_rows),
            "charge, in C": draw.normal(1e-19, 1e-19, num_rows),
            "weight, in g": draw.integers(0, 9, num_rows),
            "colour": draw.choice(np.array(["red", "green", "猫", "true"] + ["new"] * (seed > 0)), num_rows),
            "grade": draw.integers(0, 4 + (seed > 0), num_rows).astype(str),
            "is_new": draw.random(num_rows) < 0.5,
            "was_sold": draw.random(num_rows) < 0.9,
            "note": [" ".join(draw.choice(WORDS, 1 + number % 9)) for number in range(num_rows)],
            "day": days,
            "seen": [datetime(1970, 1, 1) + timedelta(seconds=int(count), microseconds=17) for count in seconds],
        }
    )
    if is_whole:
        return frame
    number = pl.int_range(pl.len())
    return frame.with_columns(pl.when(number % 8 != place % 8).then(name).alias(name) for place, name in enumerate(frame.columns))


def make_model(
    classes: list | None = None,
    is_whole: bool = False,
    network: nn.Module | None = None,
    names: Iterable[str] = KINDS,
    max_one_hot: int | None = None,
    **model: Any,
) -> Model:
    """A model with random weights, fitted on rows with or without missing values."""
    settings, classes = SettingsTree(name="penguins", model=model), classes or ["no", "perhaps", "yes"]
    kinds = {name: KINDS.get(name, "text") for name in names}
    columns = fit_columns(make_rows(0, is_whole=is_whole), kinds, settings.data.null_values, max_one_hot=max_one_hot)
    manifest = TableExamples.model_construct(signature=sign_columns(columns, Target(name="y", classes=classes)), columns=columns)
    torch.manual_seed(0)
    network = network or build_model(settings.model, manifest.signature)
    return Model(network.eval(), manifest, settings)


def load_onnx(path: str, columns: Sequence[AnyColumn]) -> Run:
    session = onnxruntime.InferenceSession(path)

    def run(rows: pl.DataFrame) -> list[np.ndarray]:
        return session.run(["class", "probabilities"], {it.name: build_array(it, rows, has_text=True) for it in columns})

    return run


def load_torch(path: str, columns: Sequence[AnyColumn]) -> Run:
    files = {"manifest.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    classes = json.loads(files["manifest.json"])["classes"]

    def run(rows: pl.DataFrame) -> list[np.ndarray]:
        places, probabilities = program(*[torch.tensor(build_array(it, rows, has_text=False)) for it in columns])
        return [np.array([classes[place] for place in places.tolist()], object), probabilities.detach().numpy()]

    return run


LOAD = {"onnx": load_onnx, "torch": load_torch}


@pytest.mark.parametrize("max_one_hot", [None, 2])
@pytest.mark.parametrize("is_whole", [False, True], ids=["fitted with missing values", "fitted without"])
def test_prepared_tensors_have_the_bits_of_prepared_rows(is_whole, max_one_hot):
    model = make_model(is_whole=is_whole, max_one_hot=max_one_hot)
    for rows in (make_rows(0), make_rows(1), make_rows(1, is_whole=True)):
        tensors = [torch.tensor(build_array(column, rows, has_text=False)) for column in model.manifest.columns]
        assert torch.equal(Preparation(model.manifest.columns)(*tensors), apply_columns(model.manifest.columns, rows))


@pytest.mark.parametrize("lacks", [False, True])
def test_columns_with_one_value_have_no_influence_in_tensors_either(lacks):
    train = make_rows(0, is_whole=True)[[20] * 8]
    columns = fit_columns(pl.concat([train, train.clear(2)]) if lacks else train, KINDS, [])
    assert all(column.is_constant for column in columns)
    rows = make_rows(1)
    tensors = [torch.tensor(build_array(column, rows, has_text=False)) for column in columns]
    found, names = Preparation(columns)(*tensors), name_inputs(columns)
    assert torch.equal(found, apply_columns(columns, rows))
    if not lacks:
        assert found.std(dim=0).max() == 0
    assert sum(name.endswith("is missing") for name in names) == len(columns) * lacks


def test_date_parts_are_those_of_polars_from_year_1_to_9999():
    draw = random.Random(0)
    edges = [datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999), datetime(1969, 12, 31, 23), datetime(1970, 1, 1)]
    edges += [datetime(year, month, day) for year in (1600, 1900, 2000, 2023, 2024) for month, day in [(2, 28), (3, 1), (12, 31)]]
    edges += [datetime(1, 1, 1) + timedelta(microseconds=draw.randrange(315_537_897_599_999_999)) for _ in range(20_000)]
    times = pl.Series(edges, dtype=pl.Datetime("us"))
    found = compute_date_parts(torch.tensor(times.to_physical().to_numpy()))
    for part in ("year", "month", "day", "weekday"):
        assert found[part].tolist() == getattr(times.dt, part)().to_list()
    assert found["hour"].tolist() == ((times - times.dt.truncate("1d")).dt.total_microseconds() / 3.6e9).to_list()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("classes", "is_whole", "names"),
    [(["no", "猫"], False, KINDS), ([3, 7, 2**64 - 1], True, KINDS), ([False, True], False, TWO_COLUMNS)],
    ids=["text", "integers, fitted on whole rows", "booleans"],
)
def test_the_file_scores_other_rows_as_the_model_does(format, is_whole, classes, names, capfd):
    model, output = make_model(classes, is_whole, names=names), f"model{SUFFIXES[format]}"
    assert model.classes.tolist() == classes
    assert export_model(model, output, format, make_rows(1)) < 1e-6
    run = LOAD[format](output, model.manifest.columns)
    for rows in (make_rows(2), make_rows(3, is_whole=True), make_rows(4, num_rows=1)):
        found, probabilities = run(rows)
        assert found.tolist() == model.predict(rows).tolist()
        assert probabilities == pytest.approx(model.predict_proba(rows), abs=1e-6)
    assert [path.name for path in Path().iterdir()] == [output]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_of_numbers_alone_and_one_of_categories_alone_are_exported(format):
    for name in ("size", "colour", "is_new", "day"):
        model = make_model(names=[name])
        assert export_model(model, f"{name}{SUFFIXES[format]}", format, make_rows(1)) < 1e-6


def test_an_onnx_file_says_what_it_takes_and_gives_and_nothing_of_this_machine():
    names = [name for name in KINDS if name != "day"]
    export_model(make_model(names=names), "model.onnx", "onnx", make_rows(1), "penguins@v3")
    session = onnxruntime.InferenceSession("model.onnx")
    known = {"float": "tensor(double)", "text": "tensor(string)", "time": "tensor(int64)"}
    kinds = ["float", "float", "float", "text", "text", "float", "float", "time"]
    assert [(put.name, put.type, put.shape) for put in session.get_inputs()] == [
        (name, known[kind], ["rows"]) for name, kind in zip(names, kinds, strict=True)
    ]
    assert [(put.name, put.type, put.shape) for put in session.get_outputs()] == [
        ("class", "tensor(string)", ["rows"]),
        ("probabilities", "tensor(float)", ["rows", 3]),
    ]
    told = session.get_modelmeta().custom_metadata_map
    assert (told["model"], told["target"], json.loads(told["classes"])) == ("penguins@v3", "y", ["no", "perhaps", "yes"])
    columns = json.loads(told["columns"])
    assert columns[0] == {"name": "size", "kind": "numeric", "type": "float64", "missing": "NaN"}
    assert columns[4] == {
        "name": "grade",
        "kind": "categorical",
        "type": "string",
        "missing": "",
        "categories": ["0", "1", "2", "3"],
    }
    assert columns[7] == {"name": "seen", "kind": "datetime", "type": "int64", "missing": MISSING_TIME}
    assert "`missing` where a value is unknown" in onnx.load("model.onnx").doc_string
    assert b"site-packages" not in Path("model.onnx").read_bytes()
    assert b"refit/scorer.py" not in Path("model.onnx").read_bytes()


def test_an_onnx_file_takes_other_spellings_of_categories():
    model = make_model(names=("colour", "grade"))
    export_model(model, "model.onnx", "onnx", make_rows(1))
    rows = make_rows(5, num_rows=6).with_columns(
        colour=pl.Series(["true", "True", "TRUE", "NA", None, "other"]), grade=pl.Series(["1", "1.0", "3.0", "nan", "", "x"])
    )
    given = {column.name: build_array(column, rows, has_text=True) for column in model.manifest.columns}
    given |= {name: rows[name].fill_null("").to_numpy().astype(object) for name in ("colour", "grade")}
    (found,) = onnxruntime.InferenceSession("model.onnx").run(["probabilities"], given)
    assert found == pytest.approx(model.predict_proba(rows), abs=1e-6)


def test_a_program_says_how_to_call_it():
    model = make_model(names=("size", "grade"))
    export_model(model, "model.pt2", "torch", make_rows(1), "penguins@v3")
    files = {"manifest.json": "", "README.txt": ""}
    torch.export.load("model.pt2", extra_files=files)
    told = json.loads(files["manifest.json"])
    assert (told["model"], told["classes"]) == ("penguins@v3", ["no", "perhaps", "yes"])
    assert told["columns"][1] == {
        "name": "grade",
        "kind": "categorical",
        "type": "int64",
        "missing": -1,
        "categories": ["0", "1", "2", "3"],
    }
    assert 'torch.export.load("model.pt2"' in files["README.txt"]


def test_a_model_of_bf16_is_exported_in_fp32():
    model = make_model(names=TWO_COLUMNS)
    model.settings = SettingsTree.model_validate({"compute": {"precision": "bf16"}})
    assert export_model(model, "model.onnx", "onnx", make_rows(1)) < 1e-6


def test_the_output_may_be_remote():
    export_model(make_model(names=TWO_COLUMNS), "memory://export-tests/model.pt2", "torch", make_rows(1))
    files = fsspec.filesystem("memory")
    with files.open("/export-tests/model.pt2") as file:
        torch.export.load(file)
    files.rm("/export-tests", recursive=True)


class Branching(nn.Module):
    def forward(self, x):
        return x[:, :3] if x.sum() > 0 else x[:, 3:6]


class OtherWhenTraced(nn.Module):
    """Gives other figures in the export."""

    def forward(self, x):
        logits = x[:, :3] * 0
        if torch.compiler.is_exporting():
            logits = logits + torch.tensor([0.0, 0.0, 1.0])
        return logits


class Counting(nn.Module):
    """Takes the number of rows as a plain number."""

    def forward(self, x):
        return x[:, :3] + torch.zeros(len(x), 1)


class Squeezing(nn.Module):
    """Drops the dimension of rows where there is one."""

    def forward(self, x):
        return x[:, :3].squeeze()


class Interrupted(nn.Module):
    def forward(self, _):
        raise KeyboardInterrupt


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("network", "error", "message"),
    [
        (Branching(), RefitError, r"--format: expected a network that can be exported, found \w+: .*; leave out branches"),
        (Branching(), RefitError, r"test_export\.py, line \d+: return x\[:, :3\] if x\.sum\(\) > 0 else x\[:, 3:6\]\); leave"),
        (Counting(), RefitError, r"your code specialized it to be a constant \(3\); in its forward, write x\.shape\[0\] for len"),
        (Squeezing(), RefitError, r"expected a model that scores 1 row, exported or not, found \w+: .*; keep rows as the first"),
        (OtherWhenTraced(), RefitError, r"row 1 of the rows to check: expected class no and .*0\.3333.*, found yes and .*0\.57"),
        (Interrupted(), KeyboardInterrupt, None),
    ],
)
def test_what_cannot_be_exported_leaves_what_was_there(format, network, error, message, tmp_path):
    output = tmp_path / f"model{SUFFIXES[format]}"
    output.write_text("old")
    with pytest.raises(error, match=message):
        export_model(make_model(network=network, names=TWO_COLUMNS), str(output), format, make_rows(1))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(output.name, "old")]


def test_another_ending_missing_packages_and_no_rows_are_refused(monkeypatch):
    model, rows = make_model(), make_rows(1)
    with pytest.raises(SettingsError, match=r"--output: expected a file ending in \.onnx, found model\.pt2; rename it"):
        export_model(model, "model.pt2", "onnx", rows)
    with pytest.raises(DataError, match=r"rows to check the export on: expected rows, found none"):
        export_model(model, "model.pt2", "torch", rows[:0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    message = r"--format: expected the packages that write ONNX, found no onnxscript; pip install 'refit\[onnx\]'"
    with pytest.raises(SettingsError, match=message):
        export_model(model, "model.onnx", "onnx", rows)
    assert list(Path().iterdir()) == []


def test_a_column_named_like_an_output_is_refused_in_onnx_alone():
    settings = SettingsTree()
    rows = make_rows(0).rename({"size": "class"})
    columns = fit_columns(rows, {"class": "numeric"}, settings.data.null_values)
    manifest = TableExamples.model_construct(signature=sign_columns(columns, Target(name="y", classes=[0, 1])), columns=columns)
    model = Model(nn.Linear(len(manifest.signature.input_names), 2).eval(), manifest, settings)
    with pytest.raises(RefitError, match=r"expected columns named unlike the outputs .*, found `class`; rename it"):
        export_model(model, "model.onnx", "onnx", rows)
    export_model(model, "model.pt2", "torch", rows)


def test_exporting_leaves_the_global_generator_alone():
    model = make_model(names=TWO_COLUMNS)
    before = torch.get_rng_state()
    export_model(model, "model.onnx", "onnx", make_rows(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    "embedding",
    [
        {"architecture": "tabm", "number_embedding": "piecewise"},
        {"architecture": "realmlp", "number_embedding": "periodic"},
        {"num_members": 2, "number_embedding": "quantile"},
    ],
    ids=["TabM", "RealMLP", "two perceptrons"],
)
def test_a_model_that_embeds_is_exported_with_codes_and_the_numbers_of_ngrams_as_inputs(format, embedding):
    model, output = make_model(names=EMBEDDED, max_one_hot=2, hidden_sizes=[8], **embedding), f"model{SUFFIXES[format]}"
    assert export_model(model, output, format, make_rows(1)) < 1e-6
    rows = make_rows(2)
    found, probabilities = LOAD[format](output, model.manifest.columns)(rows)
    assert found.tolist() == model.predict(rows).tolist()
    assert probabilities == pytest.approx(model.predict_proba(rows), abs=1e-6)


def test_who_runs_an_exported_model_is_told_how_a_text_becomes_numbers():
    pytest.importorskip("regex")
    (column,) = make_model(names=("note",)).manifest.columns
    told = describe_column(column, has_text=True)
    code = "\n".join(line.removeprefix("    ") for line in TEXTS.splitlines() if line.startswith("    "))
    exec(code, functions := {})
    rows = make_rows(1, is_whole=True)
    found = [functions["number_text"](text, told["ngrams"], told["width"]) for text in rows["note"]]
    assert found == build_array(column, rows, has_text=False).tolist()
    assert (told["type"], told["missing"]) == ("int64", 0)
