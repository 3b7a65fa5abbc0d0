import json
import os
import time
from pathlib import Path

import polars as pl
import pytest

from refit.refs import Ref
from refit.registry.versions import add_version
from refit.runs.garbage import find_garbage
from refit.runs.keys import write_recipe
from refit.runs.recipes import Run, record_run
from refit.runs.results import result_path
from refit.settings import DataSettings, resolve_settings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training.checkpoints import find_partial, save_partial

NUM_RUNS_KEPT = 20
HOUR = 3600


def find(store: Store, age: float = HOUR + 100) -> set[str]:
    """The garbage, once all that is in the store has not changed for `age` seconds."""
    for path in Path(store.root).rglob("*"):
        os.utime(path, (time.time() - age,) * 2)
    return set(find_garbage(store))


def keep_run(store: Store, number: int) -> tuple[Run, set[str]]:
    """Leave what a run leaves after an epoch, and its paths: those of its record, of the epoch's result and of the checkpoint."""
    run = Run(settings={}, recipe=write_recipe(resolve_settings({})[0], f"{number:064x}", None, "cpu", "cpu"))
    record = record_run(run, store, f"20260101T{number:06}.json")
    data = f"run {number}".encode()
    checkpoint = Ref(kind="checkpoint", digest=store.put(data), size=len(data))
    result = result_path(run.recipe.epoch_keys[0])
    store.write(result, json.dumps({"data": {"checkpoint": checkpoint.model_dump()}}).encode())
    return run, {f"runs/{record}", result, store.object_path(checkpoint.digest)}


@pytest.fixture
def runs(store) -> list[tuple[Run, set[str]]]:
    """One run more than is kept, oldest first."""
    return [keep_run(store, number) for number in range(NUM_RUNS_KEPT + 1)]


def test_an_empty_store_has_no_garbage(store):
    assert find_garbage(store) == {}


@pytest.mark.parametrize(("test_share", "has_held_back"), [(0.3, True), (0.0, False)])
def test_what_a_saved_version_was_trained_from_and_judged_on_stays_without_a_record_of_its_run(store, test_share, has_held_back):
    pl.DataFrame({"x": [float(row % 7) for row in range(40)], "y": [0, 1] * 20}).write_parquet("rows.parquet")
    dataset = build_dataset(DataSettings(source="rows.parquet", test=test_share), 0, store)
    manifest, checkpoint = load_manifest(dataset, store), store.put(b"weights")
    needed = {"dataset": dataset.digest, "checkpoint": checkpoint, **{name: info.digest for name, info in manifest.splits.items()}}
    if test_share:
        needed["test rows"] = manifest.test_rows.digest
    record: dict[str, object] = {"checkpoint": checkpoint, "held_back": None}
    if has_held_back:
        needed["checkpoint to judge by"] = store.put(b"weights before")
        record["held_back"] = {"checkpoint": needed["checkpoint to judge by"]}
    add_version(store, "a", {"manifest.json": manifest.model_dump_json(indent=1).encode()}, record)
    forgotten = store.object_path(store.put(b"forgotten"))
    garbage = find(store)
    assert [name for name, digest in needed.items() if store.object_path(digest) in garbage] == []
    assert garbage == {forgotten}


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (b"{", "expected JSON"),
        (b"[1]", "expected a version's record with name and number, found other JSON"),
        (b'{"name": "a", "version": 1}', "expected the record and the manifest of a saved version, found damaged ones"),
        (b'{"name": "a", "version": 1, "checkpoint": "a", "held_back": 1}', "expected the record and the manifest"),
        (b'{"name": "a", "version": 1, "checkpoint": "a"}', "expected the record and the manifest"),
    ],
    ids=["no JSON", "no object", "without a checkpoint", "held back is none", "of a damaged manifest"],
)
def test_while_a_version_is_damaged_no_object_goes_as_it_may_be_its_own_and_all_else_does(store, runs, record, found):
    add_version(store, "a", {"manifest.json": b'{"target": "y"}'}, {})
    store.write("models/a/v1/version.json", record)
    find(store)
    told = []
    garbage = set(find_garbage(store, told.append))
    assert garbage == {path for path in runs[0][1] if not path.startswith("objects")}
    (damage,) = told
    assert found in damage
    assert damage.endswith("; until then, or until you remove the folder of a@v1, no object is removed")


def test_what_a_killed_writer_left_half_written_goes(store):
    store.write("tmp/another-host-1-0a1b2c3d", b"half")
    assert find(store) == {"tmp/another-host-1-0a1b2c3d"}


def test_records_results_and_objects_of_the_last_20_runs_stay_and_those_of_earlier_ones_go(store, runs):
    assert find(store) == runs[0][1]


def test_all_that_is_left_of_a_run_at_work_stays_however_many_were_started_since(store, runs):
    with store.lock(runs[0][0].recipe.start.key, lambda: None):
        assert find(store) == set()


def test_an_unfinished_epoch_s_checkpoint_stays_with_its_run_and_goes_with_it(store, runs):
    forgotten, kept = (run.recipe.epoch_keys[1] for run, _ in runs[:2])
    for key in (forgotten, kept):
        save_partial(key, f"half of {key}".encode(), store)
    garbage = {f"partial/{forgotten}.json", store.object_path(find_partial(forgotten, store).digest)}
    assert find(store) == runs[0][1] | garbage


def test_results_of_every_step_of_a_kept_run_stay(store, runs):
    """Also of those whose keys are known only at the end."""
    run, paths = runs[-1]
    record_run(run.model_copy(update={"later_keys": ["evaluation"]}), store, f"20260101T{NUM_RUNS_KEPT:06}.json")
    for key in (run.recipe.dataset.key, run.recipe.loaders.key, run.recipe.start.key, *run.recipe.epoch_keys, "evaluation"):
        store.write(result_path(key), b"{}")
    assert find(store) == runs[0][1] | {path for path in paths if path.startswith("objects")}, "to which no result refers now"


def test_damaged_objects_that_were_set_aside_go(store):
    digest = store.put(b"abc")
    store.write(store.object_path(digest), b"abd")
    assert not store.is_whole(digest)
    assert find(store) == {f"damaged/{digest}"}


@pytest.mark.parametrize(("age", "is_spared"), [(0, True), (HOUR - 100, True), (HOUR + 100, False)])
def test_what_changed_within_the_hour_is_spared_as_a_run_may_be_about_to_refer_to_it(store, age, is_spared):
    digest = store.put(b"abc")
    assert find(store, age) == (set() if is_spared else {store.object_path(digest)})


def test_the_size_of_garbage_is_told_in_bytes(store):
    path = store.object_path(store.put(b"abc"))
    find(store)
    assert find_garbage(store) == {path: 3}


def test_other_files_of_the_store_are_never_garbage(store):
    for path in ("models/a/notes.txt", "attempts/a.json", "reports/a.html", "locks/a"):
        store.write(path, b"abc")
    assert find(store) == set()
