import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rows import write_dated, write_visits
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from refit.settings import DataSettings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.manifest import Manifest, load_test_rows
from refit.tables.preprocessing import apply_columns, fit_columns
from refit.tables.row_identities import convert_rows
from refit.tables.schema import find_reading
from refit.tables.sources.opening import open_source
from refit.tables.table_examples import load_manifest

PENGUINS = Path(__file__).parents[3] / "examples" / "penguins.csv"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def build(store: Store, **settings: Any) -> Manifest:
    return load_manifest(build_dataset(DataSettings(**settings), 0, store), store)


def test_the_notebook_s_tensors_are_taken_as_they_are(store: Store) -> None:
    manifest = build(store)
    x, y = manifest.load_split("train", store)
    assert torch.equal(x, torch.tensor([[-1.2, 3.1], [-0.9, 2.9], [-0.5, 2.6], [2.3, -1.1], [2.7, -1.5]]))
    assert torch.equal(y, torch.tensor([0, 0, 0, 1, 1]))
    x, y = manifest.load_split("test", store)
    assert torch.equal(x, torch.tensor([[-0.8, 2.8], [2.6, -1.6]]))
    assert torch.equal(y, torch.tensor([0, 1]))
    assert sorted(manifest.splits) == ["test", "train"]


def test_penguins_are_split_by_class_and_every_row_is_counted(store: Store) -> None:
    manifest = build(store, source=str(PENGUINS), target="sex")
    assert manifest.classes == ["female", "male"]
    assert (manifest.rows, manifest.rows_without_target) == (333, 11)
    assert {name: split.class_counts for name, split in manifest.splits.items()} == {
        "train": [115, 118],
        "val": [25, 25],
        "test": [25, 25],
    }
    x, y = manifest.load_split("train", store)
    assert (x.dtype, y.dtype, tuple(x.shape)) == (torch.float32, torch.int64, (233, len(manifest.signature.input_names)))
    assert y.bincount().tolist() == [115, 118]


def prepare_plainly(numbers: dict[str, list[float | None]], categories: dict[str, list[str | None]]) -> np.ndarray:
    """The inputs of columns, in that order, as a few lines of numpy make them of all rows."""
    inputs = []
    for values in numbers.values():
        x = np.array([np.nan if value is None else value for value in values])
        filled = np.where(np.isnan(x), np.nanmedian(x), x)
        inputs.append((filled - filled.mean()) / (filled.std() or 1.0))
        if np.isnan(x).any():
            inputs.append(np.isnan(x))
    for texts in categories.values():
        inputs += [[text == name for text in texts] for name in sorted({text for text in texts if text is not None})]
        inputs.append([False] * len(texts))
        if None in texts:
            inputs.append([text is None for text in texts])
    return np.array(inputs, dtype=np.float64).T.astype(np.float32, order="C")


@pytest.mark.slow
def test_plain_tables_give_the_bits_that_plain_numpy_gives(tmp_path: Path) -> None:
    with PENGUINS.open() as file:
        penguins = pl.DataFrame(
            [{name: None if cell == "NA" else cell for name, cell in row.items()} for row in csv.DictReader(file)]
        )
    digits = pl.DataFrame(load_digits().data, schema=[f"p{place}" for place in range(64)])
    digits.write_csv(tmp_path / "digits.csv")
    digits.cast(pl.Int64).write_parquet(tmp_path / "digits.parquet")
    measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "year"]
    for source, table, names in (
        (str(PENGUINS), penguins, [*measures, "island", "sex"]),
        (f"{tmp_path}/digits.csv", digits, digits.columns),
        (f"{tmp_path}/digits.parquet", digits, digits.columns),
    ):
        numbers = {name: table[name].cast(pl.Float64).to_list() for name in names if name not in ("island", "sex")}
        expected = prepare_plainly(numbers, {name: table[name].to_list() for name in names if name not in numbers})
        read = {name: find_reading(open_source(source).read().frame[name], ["NA"], str) for name in names}
        frame = pl.DataFrame([values for _, values in read.values()])
        columns = fit_columns(frame, {name: reading.kind for name, (reading, _) in read.items()}, ["NA"])
        for rows in (frame, open_source(source).read().frame):
            assert apply_columns(columns, rows).numpy().tobytes() == expected.tobytes()


def test_all_is_fitted_on_train_rows_only(store: Store, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=200)
    values[160:] = 1e6  # the newest rows, so val and test
    kinds = ["a", "b"] * 80 + ["new"] * 40
    pl.DataFrame({"x": values, "k": kinds, "t": range(200), "y": [0, 1] * 100}).write_csv(tmp_path / "rows.csv")
    manifest = build(store, source=f"{tmp_path}/rows.csv", split="time", time_column="t", val=0.1, test=0.1)
    assert manifest.signature.input_names == ["x", "k=a", "k=b", "k is other"]
    oracle = StandardScaler().fit(values[:160, None])
    for split, rows in {"train": slice(0, 160), "val": slice(160, 180), "test": slice(180, 200)}.items():
        x = manifest.load_split(split, store)[0]
        np.testing.assert_allclose(x[:, 0], oracle.transform(values[rows, None])[:, 0], rtol=1e-6)
        assert bool((x[:, 3] == (split != "train")).all())


def test_raw_rows_scored_later_give_the_frozen_inputs(store: Store, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    start = datetime(2024, 1, 1)
    frame = pl.DataFrame(
        {
            "n": [
                None if hidden else float(value)
                for hidden, value in zip(generator.random(90) < 0.2, generator.normal(size=90), strict=True)
            ],
            "c": [
                None if hidden else "abc"[value]
                for hidden, value in zip(generator.random(90) < 0.2, generator.integers(0, 3, 90), strict=True)
            ],
            "b": (generator.random(90) < 0.5).tolist(),
            "t": [start + timedelta(minutes=int(value)) for value in generator.integers(0, 10**6, 90)],
            "order": range(90),
            "y": ["no", "yes"] * 45,
        }
    )
    frame.write_csv(tmp_path / "rows.csv", null_value="NA")
    frame.write_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        manifest = build(store, source=f"{tmp_path}/{name}", split="time", time_column="order")
        x = torch.cat([manifest.load_split(split, store)[0] for split in ("train", "val", "test")])
        assert torch.equal(apply_columns(manifest.columns, frame), x)
        assert torch.equal(apply_columns(manifest.columns, pl.read_csv(tmp_path / "rows.csv", infer_schema=False)), x)


def test_the_same_bytes_and_settings_give_the_same_digest_wherever_they_are(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.csv"
    copy.write_bytes(PENGUINS.read_bytes())
    os.utime(copy, (0, 0))
    refs = [build_dataset(DataSettings(source=str(path), target="species"), 0, store) for path in (PENGUINS, copy)]
    other = build_dataset(DataSettings(source=str(copy), target="species"), 1, store)
    assert refs[0] == refs[1] != other
    assert refs[0].size == len(store.get(refs[0].digest))


def test_test_rows_may_come_from_files_of_their_own(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(20)))
    (tmp_path / "test.csv").write_text("y,x,more\n1,3,a\n,4,a\n0,5,a\n")
    manifest = build(store, source=f"{tmp_path}/rows.csv", test_source=f"{tmp_path}/test.csv", val=0.0)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 20, "test": 2}
    assert (manifest.rows, manifest.rows_without_target) == (22, 1)
    assert manifest.load_split("test", store)[1].tolist() == [1, 0]
    assert manifest.test_source_digest


def test_columns_without_a_value_are_dropped_with_the_reason(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x,empty,y\n" + "".join(f"{row},,{row % 2}\n" for row in range(20)))
    assert build(store, source=f"{tmp_path}/rows.csv").dropped_columns == {"empty": "no value in the train rows"}


FULL = """
import resource, sys
from refit.tables.dataset import build_dataset
from refit.errors import StoreError
from refit.settings import DataSettings
from refit.store.store import Store

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    build_dataset(DataSettings(source=sys.argv[2], target="sex"), 0, Store(sys.argv[1]))
except StoreError as error:
    print(type(error.__cause__).__name__, error)
"""


def test_the_work_to_prepare_columns_grows_with_their_number_and_not_with_its_square(
    store: Store, tmp_path: Path, count_listed: Callable[..., int]
) -> None:
    def prepare(num_columns: int) -> None:
        numbers = np.random.default_rng(0).normal(size=(60, num_columns))
        frame = pl.DataFrame(numbers, schema=[f"c{place}" for place in range(num_columns)])
        frame.with_columns(y=pl.Series(["a", "b", "c"] * 20)).write_csv(tmp_path / "rows.csv")
        manifest = build(store, source=f"{tmp_path}/rows.csv")
        (batch,) = open_source(f"{tmp_path}/rows.csv").iterate([column.name for column in manifest.columns], [], 100)
        assert apply_columns(manifest.columns, batch.frame).shape == (60, num_columns)

    assert count_listed(prepare, 100) <= 11 * count_listed(prepare, 10)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_names_that_look_like_patterns_are_names(store: Store, tmp_path: Path, end: str) -> None:
    source, random = f"{tmp_path}/rows.{end}", np.random.default_rng(0)
    cells = [
        random.normal(size=40),
        ["NA", "red", "Red ", "\u00fc"] * 10,
        [date(2026, 1, 1) + timedelta(day) for day in range(40)],
        [True, False, None, True] * 10,
        ["1.1", "1.10", "2", "$3"] * 10,
        range(40),
        ["u", "v"] * 20,
    ]
    strange, plain = ["*", "^a.*$", "^.*$", "^b$", "^($", "^t$", "^.$"], ["a", "b", "c", "d", "e", "t", "y"]
    found = []
    for *names, time_column, target in (strange, plain):
        frame = pl.DataFrame(dict(zip([*names, time_column, target], cells, strict=True)))
        frame.write_csv(source) if end == "csv" else frame.write_parquet(source)
        split = {"split": "time", "time_column": time_column}
        manifest = build(store, source=source, target=target, features=names, kinds={names[-1]: "category"}, **split)
        assert ([column.name for column in manifest.columns], manifest.profiles[-1].name) == (names, target)
        (batch,) = open_source(source).iterate(names, [], 100)
        truth, *_ = convert_rows(manifest, load_test_rows(manifest, store))
        tensors = [*manifest.load_split("train", store), apply_columns(manifest.columns, batch.frame)]
        remarks = [remark.partition(": ")[2] for remark in manifest.remarks]
        found.append(([tensor.numpy().tobytes() for tensor in tensors], truth.to_list(), remarks))
    assert found[0] == found[1]


def test_a_disk_that_takes_no_more_is_an_error_that_can_be_tried_again_and_no_file_is_left(store: Store) -> None:
    command = [sys.executable, "-B", "-c", FULL, store.root, str(PENGUINS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.match(rf"OSError {store.root}/tmp/.*: expected a store .*, found: .*too large.*; free space", printed)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("split", ["random", "time"])
def test_the_test_rows_are_kept_with_all_their_cells_as_they_were_read(store: Store, tmp_path: Path, split: str) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    manifest = build(store, source=str(tmp_path / "rows.csv"), split=split, time_column="t", features=["when", "x", "k"])
    kept = load_test_rows(manifest, store)
    assert kept.columns == rows.columns
    assert kept.height == manifest.splits["test"].rows == (20 if split == "time" else 18), "no day is divided"
    assert set(kept.rows()) <= set(rows.rows())
    x, y = manifest.load_split("test", store)
    assert torch.equal(apply_columns(manifest.columns, kept), x)
    assert [manifest.classes[index] for index in y] == kept["y"].to_list()


@pytest.mark.parametrize("split", ["random", "time"])
def test_rows_of_a_customer_stay_on_one_side_and_that_column_is_not_learned_from(store: Store, tmp_path: Path, split: str) -> None:
    visits = write_visits(tmp_path / "visits.csv")
    settings = {"source": str(tmp_path / "visits.csv"), "split": split, "time_column": "day", "features": ["x0", "x1", "x2"]}
    apart = build(store, **settings)
    manifest = build(store, **settings, group_column="customer")
    assert [column.name for column in manifest.columns] == ["x0", "x1", "x2"]
    assert (apart.group_column, manifest.group_column) == (None, "customer")
    groups = {name: manifest.load_identities(name, store).groups for name in manifest.splits}
    assert all(not set(one) & set(other) for one, other in combinations(groups.values(), 2))
    kept = load_test_rows(manifest, store)["customer"].to_list()
    assert len({*zip(kept, groups["test"], strict=True)}) == len({*kept}) == len({*groups["test"]})
    assert manifest.rows == visits.height - sum(manifest.rows_left_out.values())
    assert apart.load_identities("test", store).groups is None


def test_a_group_column_is_no_feature_by_default(store: Store, tmp_path: Path) -> None:
    write_visits(tmp_path / "visits.csv")
    manifest = build(store, source=str(tmp_path / "visits.csv"), group_column="customer")
    assert [column.name for column in manifest.columns] == ["x0", "x1", "x2", "day"]


def test_a_table_of_few_values_has_as_many_copies_as_by_chance(store: Store) -> None:
    manifest = build(store, source=str(PENGUINS), target="sex", features=["island", "species"])
    assert manifest.test_copies.model_dump() == {"rows": 50, "by_chance": 50.0, "is_more_than_chance": False}
    assert manifest.list_warnings() == []


def test_the_profiles_are_those_of_the_train_rows_and_the_target(store: Store, tmp_path: Path) -> None:
    rows = write_dated(tmp_path / "rows.csv")
    settings = {"source": str(tmp_path / "rows.csv"), "split": "time", "time_column": "t"}
    manifest = build(store, **settings)
    profiles = {profile.name: profile for profile in manifest.profiles}
    kinds = {"when": "datetime", "x": "numeric", "k": "categorical", "y": "categorical"}
    assert {name: profile.kind for name, profile in profiles.items()} == kinds
    train = rows[: manifest.splits["train"].rows]
    numbers = train["x"].cast(pl.Float64, strict=False).drop_nulls()
    assert (profiles["x"].marks[0], profiles["x"].marks[-1]) == (numbers.min(), numbers.max())
    assert profiles["x"].missing == pytest.approx(1 - numbers.len() / train.height)
    assert profiles["y"].counts == {"yes": 53, "no": 27}
    assert {profile.num_rows for profile in manifest.profiles} == {80} == {train.height}
