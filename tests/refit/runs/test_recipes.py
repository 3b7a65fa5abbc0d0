import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from refit.errors import StoreError
from refit.refs import DatasetRef, EpochResult, Ref
from refit.runs import recipes
from refit.runs.recipes import Forecast, Run, build_recipe, forecast, load_runs, record_run
from refit.runs.results import result_path
from refit.runtime import devices
from refit.settings import Settings, resolve_settings
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.sources.opening import digest_sources
from refit.tables.table_examples import load_manifest
from refit.training.checkpoints import save_report
from refit.training.loop import EpochLog, best_epoch, choose_patience, has_lost_patience


def write_table(path: Path, num_rows: int = 30, **columns: list) -> str:
    table = {"x1": [float(row % 7) for row in range(num_rows)], "x2": [float(row % 5) for row in range(num_rows)]}
    pl.DataFrame({**table, **columns, "y": [row % 2 for row in range(num_rows)]}).write_csv(path)
    return str(path)


@pytest.fixture
def source(tmp_path) -> str:
    return write_table(tmp_path / "table.csv")


def resolve(source: str, **changes) -> Settings:
    """Settings, with changes by dotted name, `__` for the dot."""
    given: dict = {"data": {"source": source}, "optimizer": {"lr": 0.1}, "training": {"num_epochs": 3}}
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (given.setdefault(section, {}) if section else given)[field] = value
    return resolve_settings(given)[0]


def keep(store: Store, key: str, content: dict) -> None:
    """As Prefect 3.8 writes it."""
    store.write(result_path(key), json.dumps({"data": content}).encode())


def put(store: Store, kind: str, data: bytes) -> Ref:
    return Ref(kind=kind, digest=store.put(data), size=len(data))


def run(settings: Settings, store: Store, val_losses: tuple[float, ...] = (0.9, 0.8, 0.7), is_finished: bool = True) -> Run:
    """Leave in the store what a run leaves that had these losses; an unfinished one stopped after these epochs."""
    recipe = build_recipe(settings)
    made = Run(settings=settings.model_dump(mode="json"), recipe=recipe)
    record_run(made, store)
    ref = build_dataset(settings.data, settings.seed, store)
    manifest = load_manifest(ref, store)
    splits = {split: info.ref for split, info in manifest.splits.items()}
    keep(store, recipe.dataset.key, DatasetRef(**ref.model_dump(), splits=splits, test_rows=manifest.test_rows).model_dump())
    last = 0
    for last, loss in enumerate(val_losses, start=1):
        figures = {"train_loss": loss, "val_loss": loss, "val_score": 0.5}
        log = EpochLog(epoch=last, batch_losses=[loss], lr=0.1, grad_norm=1.0, rows_per_second=1.0, seconds=1.0, **figures)
        key = recipe.epoch_keys[last - 1]
        checkpoint, log_ref = put(store, "checkpoint", key.encode()), save_report("log", log, store)
        keep(store, key, EpochResult(epoch=last, checkpoint=checkpoint, log=log_ref, **figures).model_dump())
        if has_lost_patience(val_losses[:last], choose_patience(settings.training.patience, 1)):
            break
    if is_finished:
        best = best_epoch(val_losses[:last])
        metrics = [recipe.evaluation(split, best).key for split in splits]
        for key in metrics:
            keep(store, key, put(store, "metrics", key.encode()).model_dump())
        saved = {"name": settings.name, "version": 1, "path": store.location("models/model/v1"), "weights_digest": "0" * 64}
        assert store.publish("models/model/v1", {"model.pt": b"", "version.json": b'{"name": "model", "version": 1, "files": {}}'})
        keep(store, recipe.saving(settings.name, best, last, metrics).key, saved)
    return made


def told(forecasts: list[Forecast]) -> list[tuple[str, bool, list[str]]]:
    return [(step.step, step.is_done, step.because) for step in forecasts]


def reasons(forecasts: list[Forecast], step: str) -> list[str]:
    """Why a step would run."""
    (found,) = (each for each in forecasts if each.step == step)
    assert not found.is_done
    return found.because


ALL_DONE = [
    ("build data set", True, []),
    ("train epochs 1 to 3", True, []),
    ("evaluate train", True, []),
    ("evaluate val", True, []),
    ("evaluate test", True, []),
    ("save", True, []),
]
SAVING = ("evaluate and save", False, ["the weights will change"])


def test_in_an_empty_store_all_is_to_do(source, store):
    assert told(forecast(resolve(source), store)) == [
        ("build data set", False, ["nothing was run before"]),
        ("train epochs 1 to 3", False, ["nothing was run before"]),
        SAVING,
    ]


def test_a_recipe_is_the_same_after_one_with_other_threads_and_sets_nothing_for_the_run_at_work(source):
    plain = build_recipe(resolve(source))
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    changes = {"compute__num_threads": devices.NUM_THREADS + 1, "compute__matmul_precision": "medium"}
    other = build_recipe(resolve(source, **changes))
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert other.processor.endswith(f", {devices.NUM_THREADS + 1} threads")
    devices.prepare_compute(resolve(source, **changes).compute)
    try:
        assert build_recipe(resolve(source)) == plain
    finally:
        devices.prepare_compute(resolve(source).compute)


def test_a_forecast_writes_nothing(source, store):
    forecast(resolve(source), store)
    assert not Path(store.root).exists()


def test_after_a_run_all_is_done(source, store):
    run(resolve(source), store)
    assert told(forecast(resolve(source), store)) == ALL_DONE


def test_what_changes_no_bit_leaves_all_done(source, store):
    run(resolve(source), store)
    changes = {"checkpoint__keep": 2, "checkpoint__every_seconds": 1.0, "training__timeout_seconds": 60.0}
    assert told(forecast(resolve(source, **changes), store)) == ALL_DONE


def test_a_longer_run_has_only_its_later_epochs_to_do(source, store):
    run(resolve(source), store)
    assert told(forecast(resolve(source, training__num_epochs=8), store)) == [
        ("build data set", True, []),
        ("train epochs 1 to 3", True, []),
        ("train epochs 4 to 8", False, ["not run yet"]),
        SAVING,
    ]


def test_an_interrupted_run_has_its_later_epochs_to_do(source, store):
    run(resolve(source), store, val_losses=(0.9,), is_finished=False)
    assert told(forecast(resolve(source), store))[1:] == [
        ("train epochs 1 to 1", True, []),
        ("train epochs 2 to 3", False, ["not run yet"]),
        SAVING,
    ]


def test_a_run_that_stopped_in_its_first_epoch_left_no_result_that_could_be_gone(source, store):
    run(resolve(source), store, val_losses=(), is_finished=False)
    (because,) = reasons(forecast(resolve(source), store), "train epochs 1 to 3")
    assert "gone or damaged" not in because


def test_a_changed_setting_is_told_from_old_to_new(source, store):
    run(resolve(source), store)
    assert told(forecast(resolve(source, optimizer__lr=0.25), store)) == [
        ("build data set", True, []),
        ("train epochs 1 to 3", False, ["optimizer.lr: 0.1 -> 0.25"]),
        SAVING,
    ]


def test_all_changed_settings_are_told_and_only_they(source, store):
    run(resolve(source), store)
    found = reasons(
        forecast(resolve(source, loader__batch_size=5, optimizer__weight_decay=0.9, model__activation="tanh"), store),
        "train epochs 1 to 3",
    )
    assert sorted(found) == [
        "loader.batch_size: None -> 5",
        "model.activation: 'relu' -> 'tanh'",
        "optimizer.weight_decay: 0.0003 -> 0.9",
    ]


def test_the_nearest_run_before_is_compared_with(source, store):
    run(resolve(source), store, is_finished=False)
    run(resolve(source, optimizer__lr=0.5, model__dropout=0.5, model__activation="tanh"), store, is_finished=False)
    found = reasons(forecast(resolve(source, optimizer__lr=0.25), store), "train epochs 1 to 3")
    assert found == ["optimizer.lr: 0.1 -> 0.25"]


def test_of_runs_as_near_the_newest_is_compared_with(source, store):
    for lr in (0.1, 0.3, 0.2):
        run(resolve(source, optimizer__lr=lr), store, is_finished=False)
    assert reasons(forecast(resolve(source, optimizer__lr=0.25), store), "train epochs 1 to 3") == ["optimizer.lr: 0.2 -> 0.25"]


def test_a_run_of_the_same_name_is_compared_with_though_one_of_another_is_nearer(source, store):
    run(resolve(source, name="penguins", optimizer__lr=0.5, model__activation="tanh"), store, is_finished=False)
    run(resolve(source, name="other", data__val=0.3), store, is_finished=False)
    found = forecast(resolve(source, name="penguins", optimizer__lr=0.5, data__val=0.4), store)
    assert reasons(found, "build data set") == ["data.val: None -> 0.4"]
    assert reasons(found, "train epochs 1 to 3") == ["the data set will change", "model.activation: 'tanh' -> 'relu'"]


def test_where_no_run_had_the_name_the_nearest_of_another_is_compared_with_and_named(source, store):
    run(resolve(source, name="other"), store, is_finished=False)
    run(resolve(source, name="far", optimizer__lr=0.5, model__activation="tanh"), store, is_finished=False)
    found = forecast(resolve(source, name="penguins", optimizer__lr=0.25), store)
    assert found[0].is_done
    assert reasons(found, "train epochs 1 to 3") == [
        "penguins was not run before; compared with the nearest run, of other:",
        "optimizer.lr: 0.1 -> 0.25",
    ]


def test_a_changed_split_is_told_of_the_data_set_and_training_gets_another(source, store):
    run(resolve(source), store)
    found = forecast(resolve(source, data__val=0.3), store)
    assert reasons(found, "build data set") == ["data.val: None -> 0.3"]
    assert reasons(found, "train epochs 1 to 3") == ["the data set will change"]


def test_appended_rows_are_counted(source, store, tmp_path):
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", num_rows=37)
    found = forecast(resolve(source), store)
    assert reasons(found, "build data set") == ["data.source: 30 -> 37 rows (7 added)"]
    assert reasons(found, "train epochs 1 to 3") == ["the data set will change"]


def test_removed_rows_are_counted(source, store, tmp_path):
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", num_rows=28)
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: 30 -> 28 rows (2 removed)"]


def test_other_values_in_as_many_rows_are_told(source, store, tmp_path):
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", x1=[float(row) for row in range(30)])
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: other values, same number of rows"]


def test_an_added_column_is_named(source, store, tmp_path):
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", x3=[float(row) for row in range(30)])
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: column x3 added"]


def test_a_removed_column_is_named(store, tmp_path):
    source = write_table(tmp_path / "table.csv", x3=[float(row) for row in range(30)])
    run(resolve(source), store)
    write_table(tmp_path / "table.csv")
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: column x3 removed"]


def test_columns_that_came_and_went_are_named_in_order_and_with_rows_that_did(store, tmp_path):
    source = write_table(tmp_path / "table.csv", x4=[1.0] * 30, x3=[1.0] * 30)
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", num_rows=31, x5=[1.0] * 31)
    assert reasons(forecast(resolve(source), store), "build data set") == [
        "data.source: 30 -> 31 rows (1 added)",
        "data.source: column x5 added",
        "data.source: column x3 removed",
        "data.source: column x4 removed",
    ]


def test_columns_that_are_not_learned_from_are_not_told(store, tmp_path):
    source = write_table(tmp_path / "table.csv", x3=[1.0] * 30)
    run(resolve(source, data__features=["x1"]), store)
    write_table(tmp_path / "table.csv", num_rows=29, x4=[1.0] * 29)
    found = forecast(resolve(source, data__features=["x1"]), store)
    assert reasons(found, "build data set") == ["data.source: 30 -> 29 rows (1 removed)"]


def test_a_column_that_was_dropped_for_want_of_values_is_not_told_as_added(store, tmp_path):
    source = write_table(tmp_path / "table.csv", x3=[None] * 30)
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", num_rows=31, x3=[None] * 31)
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: 30 -> 31 rows (1 added)"]


def test_of_a_time_split_the_times_are_no_added_column(store, tmp_path):
    def time_rows(num_rows: int) -> str:
        return write_table(tmp_path / "table.csv", num_rows=num_rows, time=list(range(num_rows)))

    settings = resolve(time_rows(30), data__split="time", data__time_column="time")
    run(settings, store)
    time_rows(40)
    assert reasons(forecast(settings, store), "build data set") == ["data.source: 30 -> 40 rows (10 added)"]


def test_where_the_data_set_before_is_gone_the_bytes_are_all_that_can_be_told(source, store, tmp_path):
    made = run(resolve(source), store)
    store.remove(result_path(made.recipe.dataset.key))
    write_table(tmp_path / "table.csv", num_rows=37)
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: other bytes"]


def test_where_the_manifest_before_cannot_be_read_the_bytes_are_all_that_can_be_told(source, store, tmp_path, monkeypatch):
    run(resolve(source), store)
    write_table(tmp_path / "table.csv", num_rows=37)

    def fail(*_: object) -> None:
        raise StoreError("gone since")

    monkeypatch.setattr(recipes, "load_record", fail)
    assert reasons(forecast(resolve(source), store), "build data set") == ["data.source: other bytes"]


def test_a_renamed_source_is_the_same(source, store, tmp_path):
    run(resolve(source), store)
    renamed = Path(source).rename(tmp_path / "renamed.csv")
    assert told(forecast(resolve(str(renamed)), store)) == ALL_DONE


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module that the factory's module imports."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_networks.py").write_text("from own_layers import rate\n\ndef build(num_inputs, num_outputs): ...\n")
    path = tmp_path / "own_layers.py"
    path.write_text("rate = 0.1  # the first\n")
    return path


def test_changed_code_is_named_by_its_module(source, store, own_code):
    settings = resolve(source, model__factory="own_networks:build")
    run(settings, store)
    own_code.write_text("rate = 0.2  # the first\n")
    found = forecast(settings, store)
    assert reasons(found, "train epochs 1 to 3") == ["code: `own_layers` changed"]
    assert found[0].is_done


def test_a_changed_comment_is_no_changed_code(source, store, own_code):
    settings = resolve(source, model__factory="own_networks:build")
    run(settings, store)
    own_code.write_text("rate = 0.1  # the second\n")
    assert told(forecast(settings, store)) == ALL_DONE


def damage(store: Store, digest: str) -> None:
    content = store.read(store.object_path(digest))
    store.write(store.object_path(digest), bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_a_damaged_data_set_is_to_be_built_again(source, store, split):
    run(resolve(source), store)
    ref = build_dataset(resolve(source).data, 0, store)
    damage(store, ref.digest if split is None else load_manifest(ref, store).splits[split].digest)
    assert reasons(forecast(resolve(source), store), "build data set") == ["its result is gone or damaged"]


def test_the_result_of_a_data_set_that_is_gone_is_told(source, store):
    made = run(resolve(source), store)
    store.remove(result_path(made.recipe.dataset.key))
    assert reasons(forecast(resolve(source), store), "build data set") == ["no result of it is kept"]


def test_without_any_whole_checkpoint_training_starts_anew_as_its_result_is_gone(source, store):
    made = run(resolve(source), store)
    for key in made.recipe.epoch_keys:
        damage(store, store.put(key.encode()))
    assert reasons(forecast(resolve(source), store), "train epochs 1 to 3") == ["its result is gone or damaged"]


def test_a_damaged_newest_checkpoint_leaves_its_epoch_to_do(source, store):
    made = run(resolve(source), store)
    damage(store, store.put(made.recipe.epoch_keys[-1].encode()))
    assert [(step, is_done) for step, is_done, _ in told(forecast(resolve(source), store))[1:3]] == [
        ("train epochs 1 to 2", True),
        ("train epochs 3 to 3", False),
    ]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_damaged_log_leaves_its_epoch_to_do(source, store, epoch):
    made = run(resolve(source), store)
    content = json.loads(store.read(result_path(made.recipe.epoch_keys[epoch - 1])))["data"]
    damage(store, content["log"]["digest"])
    steps = [step for step, is_done, _ in told(forecast(resolve(source), store)) if not is_done]
    assert [step for step in steps if step.startswith("train epochs")] != []


def test_damaged_metrics_are_to_be_computed_again(source, store):
    made = run(resolve(source), store)
    damage(store, store.put(made.recipe.evaluation("test", 3).key.encode()))
    assert [step for step, is_done, _ in told(forecast(resolve(source), store)) if not is_done] == ["evaluate test"]


def test_another_name_is_only_saved(source, store):
    run(resolve(source), store)
    found = forecast(resolve(source, name="other"), store)
    assert [step for step, is_done, _ in told(found) if not is_done] == ["save"]
    assert reasons(found, "save")[0].startswith("another name")


def test_early_stopping_leaves_no_epochs_to_do(source, store):
    settings = resolve(source, training__num_epochs=20, training__patience=2)
    run(settings, store, val_losses=(0.9, 0.5, 0.6, 0.7, 0.1))
    assert told(forecast(settings, store)) == [
        (step.replace("1 to 3", "1 to 4"), is_done, because) for step, is_done, because in ALL_DONE
    ]


def test_where_a_run_without_patience_went_further_the_epochs_that_one_with_patience_needs_are_all_done(source, store):
    losses = (0.9, 0.5, 0.6, 0.7, 0.1)
    run(resolve(source, training__num_epochs=5), store, val_losses=losses, is_finished=False)
    patient = resolve(source, training__num_epochs=5, training__patience=2)
    run(patient, store, val_losses=losses)
    assert all(is_done for _, is_done, _ in told(forecast(patient, store)))


def keep_epochs_on_all_rows(made: Run, num_epochs: int, store: Store) -> None:
    for epoch, key in enumerate(made.recipe.fits[-1].epoch_keys[:num_epochs], start=1):
        refs = {"checkpoint": put(store, "checkpoint", key.encode()), "log": put(store, "log", key.encode())}
        keep(store, key, EpochResult(epoch=epoch, **refs, train_loss=0.5, val_loss=None, val_score=None).model_dump())


def test_a_last_fit_on_all_rows_is_as_long_as_validation_chose(source, store):
    settings = resolve(source, training__refit_on_all=True)
    run(resolve(source), store, val_losses=(0.9, 0.7, 0.8))
    on_all = [("train epochs 1 to 2 on all rows", False, ["not run yet"])]
    assert told(forecast(settings, store))[:-1] == [*ALL_DONE[:-1], *on_all]
    assert reasons(forecast(settings, store), "save")

    made = Run(settings={}, recipe=build_recipe(settings))
    keep_epochs_on_all_rows(made, 1, store)
    on_all = [("train epochs 1 to 1 on all rows", True, []), ("train epochs 2 to 2 on all rows", False, ["not run yet"])]
    assert told(forecast(settings, store))[:-1] == [*ALL_DONE[:-1], *on_all]
    keep_epochs_on_all_rows(made, 3, store)
    assert told(forecast(settings, store))[:-1] == [*ALL_DONE[:-1], ("train epochs 1 to 2 on all rows", True, [])]
    assert {made.recipe.on_all_rows(2).loaders.key, *made.recipe.on_all_rows(2).epoch_keys} < made.keys


def test_before_its_epochs_are_chosen_a_last_fit_on_all_rows_is_to_do(source, store):
    *_, last = forecast(resolve(source, training__refit_on_all=True), store)
    assert told([last]) == [("evaluate, train on all rows and save", False, ["the weights will change"])]


def test_runs_come_back_newest_first(source, store):
    made = [run(resolve(source, optimizer__lr=lr), store, is_finished=False) for lr in (0.1, 0.2, 0.3)]
    assert [each.settings["optimizer"]["lr"] for each in load_runs(store).values()] == [0.3, 0.2, 0.1]
    assert next(iter(load_runs(store).values())) == made[-1]


def test_a_record_is_named_for_the_time_of_its_start(source, store):
    name = record_run(Run(settings={}, recipe=build_recipe(resolve(source))), store)
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{6}-[0-9a-f]{8}\.json", name)
    assert store.names("runs") == [name]
    started = datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - started) < timedelta(minutes=1)


def test_a_run_has_the_keys_of_all_its_steps(source):
    recipe = build_recipe(resolve(source))
    made = Run(settings={}, recipe=recipe, later_keys=["a", "b"])
    assert made.keys == {recipe.dataset.key, recipe.loaders.key, recipe.start.key, *recipe.epoch_keys, "a", "b"}


def test_a_recipe_is_written_for_the_bytes_that_are_given_even_if_the_source_has_others_by_now(source):
    recipe = build_recipe(resolve(source), ("1" * 64, "2" * 64))
    assert recipe.source_digests == ["1" * 64, "2" * 64]
    assert build_recipe(resolve(source)).source_digests == list(digest_sources(source, None))


def test_the_code_that_a_recipe_names_is_imported_as_it_is_now(source, tmp_path, monkeypatch):
    """So that a process that has imported an earlier state computes with what it writes down."""
    monkeypatch.syspath_prepend(tmp_path)
    settings = resolve(source, model__factory="networks_of_now:build")
    for width in (8, 16):
        (tmp_path / "networks_of_now.py").write_text(f"width = {width}\n\ndef build(num_inputs, num_outputs): ...\n")
        build_recipe(settings)
        assert sys.modules["networks_of_now"].width == width


def test_a_record_written_again_replaces_the_one_before(source, store):
    made = Run(settings={}, recipe=build_recipe(resolve(source)))
    name = record_run(made, store)
    assert record_run(made.model_copy(update={"later_keys": ["a"]}), store, name) == name
    assert list(load_runs(store)) == [name]
    assert load_runs(store)[name].later_keys == ["a"]
    assert load_runs(store)[name].keys == {*made.keys, "a"}


def test_a_record_of_another_version_is_passed_over(source, store):
    run(resolve(source), store)
    store.write("runs/99990101T000000.000000-00000000.json", b'{"later": "fields"}')
    assert len(load_runs(store)) == 1
    assert told(forecast(resolve(source), store)) == ALL_DONE
