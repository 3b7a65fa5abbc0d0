"""A source of another kind: one class, and one line in `KINDS`."""

import hashlib
import sqlite3

import polars as pl
import pytest

import refit
from refit.errors import DataError, SettingsError
from refit.refs import SavedModel
from refit.runs.keys import retraining_key
from refit.runs.recipes import forecast
from refit.serving.scoring import check_files, score_files
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.tables.draft import check_data
from refit.tables.sources import opening
from refit.tables.sources.file_source import FileSource
from refit.tables.sources.located_rows import Part
from refit.tables.sources.notebook_source import NotebookSource
from refit.tables.sources.opening import digest_sources, open_source
from refit.tables.sources.table_source import Table, TableSource

NUM_ROWS = 60
DATA = {"source": "toy://flowers", "target": "name", "test": 0.2}


class ToySource(TableSource):
    """A table of the SQLite database `toys.db`: `toy://flowers`."""

    def digest(self) -> str:
        return self.read().digest

    def read(self) -> Table:
        query = f"SELECT * FROM {self.name.removeprefix('toy://')} ORDER BY rowid"
        try:
            frame = pl.read_database(query, sqlite3.connect("toys.db"))
        except sqlite3.OperationalError as error:
            raise DataError(f"{self.name}: expected a table of toys.db, found none ({error}); check its name") from error
        digest = hashlib.sha256(frame.write_json().encode()).hexdigest()
        return Table(frame, (Part(self.name, 0, frame.height),), self.name, digest)


@pytest.fixture(autouse=True)
def toys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(opening.KINDS, "toy://", ToySource)
    execute("CREATE TABLE flowers (length REAL, colour TEXT, name TEXT)")
    rows = [(number / 10, ["red", "blue"][number % 2], ["rose", "violet"][number % 2]) for number in range(NUM_ROWS)]
    with sqlite3.connect("toys.db") as database:
        database.executemany("INSERT INTO flowers VALUES (?, ?, ?)", rows)


def execute(statement: str, *given: object) -> None:
    with sqlite3.connect("toys.db") as database:
        database.execute(statement, given)


def add_flower(length: float | str, colour: str, name: str) -> None:
    execute("INSERT INTO flowers VALUES (?, ?, ?)", length, colour, name)


def train(**data: object) -> SavedModel:
    tree = SettingsTree.model_validate({"data": {**DATA, **data}, "training": {"num_epochs": 2}})
    return refit.train(tree, report=lambda _: None).model


def key_of_tonight() -> str:
    settings, _ = resolve_settings({"data": DATA})
    return retraining_key(settings, *digest_sources(settings.data.source, settings.data.test_source))


def test_a_name_opens_the_kind_that_it_begins_with():
    for name, kind in {
        "toy://flowers": ToySource,
        "notebook": NotebookSource,
        "notebook/rows.csv": FileSource,
        "toy.csv": FileSource,
        "s3://bucket/rows.csv": FileSource,
    }.items():
        assert type(open_source(name)) is kind


def test_training_on_a_source_of_another_kind_gives_the_weights_of_the_same_rows_in_a_file():
    open_source("toy://flowers").read().frame.write_parquet("flowers.parquet")
    open_source("toy://flowers").read().frame[:20].write_parquet("others.parquet")
    execute("CREATE TABLE others AS SELECT * FROM flowers LIMIT 20")
    for toy, file in [
        ({}, {"source": "flowers.parquet"}),
        ({"test": None, "test_source": "toy://others"}, {"test": None, "test_source": "others.parquet"}),
    ]:
        assert train(**toy).weights_digest == train(**file).weights_digest


def test_a_night_without_other_rows_in_the_source_brings_nothing_new():
    before = key_of_tonight()
    assert key_of_tonight() == before
    add_flower(7.0, "red", "rose")
    assert key_of_tonight() != before


def test_why_counts_the_rows_that_came_to_the_source():
    train()
    settings, _ = resolve_settings({"data": DATA, "training": {"num_epochs": 2}})
    store = Store(settings.store.url)
    assert all(step.is_done for step in forecast(settings, store))
    add_flower(7.0, "red", "rose")
    assert forecast(settings, store)[0].because == [f"data.source: {NUM_ROWS} -> {NUM_ROWS + 1} rows (1 added)"]


def test_rows_of_the_source_are_scored_as_those_of_a_file_whatever_the_batches():
    model = refit.load_model(train().path)
    open_source("toy://flowers").read().frame.write_csv("flowers.csv")
    found = []
    for source, rows_per_batch in [("toy://flowers", 1000), ("toy://flowers", 7), ("flowers.csv", 7)]:
        check_files(source, "scored.parquet")
        assert score_files(model, source, "scored.parquet", "a@v1", keep=["colour"], rows_per_batch=rows_per_batch)[0] == NUM_ROWS
        found.append(pl.read_parquet("scored.parquet"))
    assert found[0].columns[0] == "colour"
    assert found[0].equals(found[1])
    assert found[1].equals(found[2])


def test_a_bad_row_of_the_source_is_named_by_its_number():
    model = refit.load_model(train().path)
    add_flower("long", "red", "rose")
    message = rf"row {NUM_ROWS + 1} of toy://flowers, column `length`: expected a number, found 'long'"
    with pytest.raises(DataError, match=message):
        score_files(model, "toy://flowers", "scored.parquet", "a@v1", rows_per_batch=7)


def test_what_the_source_lacks_is_told_by_its_name():
    settings, _ = resolve_settings({"data": DATA})
    check_data(settings.data, seed=0)  # its bytes are not known: left to the run
    with pytest.raises(DataError, match=r"toy://trees: expected a table of toys\.db, found none \(no such table: trees\)"):
        train(source="toy://trees")
    with pytest.raises(DataError, match=r"toy://flowers: expected column `size`, found `length`, `colour`, `name`; add"):
        next(open_source("toy://flowers").iterate(["size"], [], 7))
    with pytest.raises(DataError, match=r"--keep: expected a column of toy://flowers, found no `color`.*did you mean `colour`\?"):
        next(open_source("toy://flowers").iterate(["length"], ["color"], 7))
    execute("DELETE FROM flowers")
    with pytest.raises(DataError, match=r"toy://flowers: expected rows, found an empty table with columns `length`, `colour`"):
        next(open_source("toy://flowers").iterate(["length"], [], 7))
    with pytest.raises(DataError, match=r"toy://flowers: expected rows, found an empty table with columns `length`, `colour`"):
        train()
    with pytest.raises(SettingsError, match=r"--output: expected a file outside of the rows to score, found a\.parquet in a"):
        check_files("a.parquet", "a.parquet")
