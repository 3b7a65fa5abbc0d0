import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from pydantic import ValidationError

import refit
from refit import code
from refit.makers import find_maker
from refit.models.architectures import ARCHITECTURES
from refit.runs import keys
from refit.runs.keys import Recipe, digest_json, write_recipe
from refit.settings import DataSettings, resolve_settings, walk_settings

BASE = {"optimizer": {"name": "sgd", "lr": 0.1}, "training": {"num_epochs": 3}, "data": {"source": "rows.csv", "val": 0.2}}
SOURCE, OTHER_SOURCE = "1" * 64, "2" * 64
PROCESSOR = "cpu AVX2, 2 threads"
OWN = {f"refit.data.{name}" for name in ("input_files", "inputs", "own_dataset", "own_functions", "seeded")}
"""What reads items of a user's own."""
READ_LATER = OWN | {f"refit.data.{name}" for name in ("drifts", "examples", "live_items", "loaders")}
"""What serves training, for which a data set is made."""
PROCESSORS = {f"refit.runtime.{name}" for name in ("accelerators", "devices", "randomness")}
WITHOUT_A_SAY = {
    f"refit.{name}"
    for name in (
        "code",
        "errors",
        "models.architectures",
        *(f"models.{name}" for name in ("embeddings", "mlp", "realmlp", "resnet", "tabm")),  # of the networks that have them
        "refs",
        "runtime.forks",
        "runtime.interruption",
        "runtime.limits",
        "settings",
        "store.disk",
        "store.store",
        "texts",
    )
}
"""Modules that results do not depend on, or by settings and bytes that are ingredients themselves."""


def write(
    *changes: dict, source: str = SOURCE, test_source: str | None = None, processor: str = PROCESSOR, scorer: str = PROCESSOR
) -> Recipe:
    """The recipe of `BASE` with changes."""
    given = {section: dict(values) for section, values in BASE.items()}
    for change in changes:
        for name, value in change.items():
            section, _, field = name.rpartition(".")
            (given.setdefault(section, {}) if section else given)[field] = value
    return write_recipe(resolve_settings(given)[0], source, test_source, processor, scorer)


def keys_of(recipe: Recipe) -> dict[str, object]:
    evaluation = recipe.evaluation("val", 1).key
    return {
        "dataset": recipe.dataset.key,
        "loaders": recipe.loaders.key,
        "start": recipe.start.key,
        "epochs": recipe.epoch_keys,
        "evaluation": evaluation,
        "saving": recipe.saving("model", 1, 1, [evaluation]).key,
    }


def changed(before: dict[str, object], after: dict[str, object]) -> set[str]:
    """Which of the steps have other keys."""
    return {name for name in before if before[name] != after[name]}


def changed_keys(recipe: Recipe, other: Recipe) -> set[str]:
    return changed(keys_of(recipe), keys_of(other))


LATER = {"epochs", "evaluation", "saving"}
DATASET = {"dataset", "loaders", "start", *LATER}
START = {"start", *LATER}
LOADERS = {"loaders", *LATER}

CHANGES: dict[str, tuple[object, set[str]]] = {
    "name": ("other", set()),
    "preset": ("plain", START),
    "seed": (1, DATASET),
    "data.source": ("elsewhere.csv", set()),
    "data.target": ("label", DATASET),
    "data.task": ("regression", DATASET),
    "data.features": (["x1"], DATASET),
    "data.kinds": ({"x1": "category"}, DATASET),
    "data.null_values": (["", "-"], DATASET),
    "data.max_one_hot": (3, DATASET),
    "data.exclude": (["x1"], DATASET),
    "data.formats": ({"x1": "1,234.5"}, DATASET),
    "data.separator": (";", DATASET),
    "data.encoding": ("cp1252", DATASET),
    "data.header": (False, DATASET),
    "data.union": (True, DATASET),
    "data.test_source": ("elsewhere.csv", set()),
    "data.val": (0.3, DATASET),
    "data.test": (0.3, DATASET),
    "data.split": ("time", DATASET),
    "data.time_column": ("x1", DATASET),
    "data.window": (50, DATASET),
    "data.gap": ("7d", DATASET),
    "data.split_by": ("features", DATASET),
    "data.group_column": ("x1", DATASET),
    "data.factory": ("json:loads", DATASET),
    "data.options": ({"folder": "images"}, DATASET),
    "data.inputs": (["images"], set()),
    "data.predict_factory": ("json:loads", set()),
    "data.cache": (True, DATASET),
    "data.max_bad_items": (3, DATASET),
    "loader.batch_size": (3, LOADERS),
    "loader.drop_last": (True, LOADERS),
    "loader.num_workers": (2, set()),
    "loader.prefetch_factor": (4, set()),
    "loader.pin_memory": (True, set()),
    "loader.persistent_workers": (True, set()),
    "loader.collate": ("json:loads", DATASET),
    "loader.sampler": ("json:loads", LOADERS),
    "model.architecture": ("resnet", START),
    "model.hidden_sizes": ([16], START),
    "model.number_embedding": ("none", START),
    "model.num_members": (4, START),
    "model.activation": ("tanh", START),
    "model.dropout": (0.5, START),
    "model.factory": ("json:dumps", DATASET),  # categories have no codes then
    "model.options": ({"width": 3}, START),
    "model.weights": (__file__, START),
    "optimizer.name": ("adam", START),
    "optimizer.lr": (0.2, START),
    "optimizer.momentum": (0.9, START),
    "optimizer.weight_decay": (0.1, START),
    "optimizer.schedule": ("cosine", START),
    "optimizer.warmup_steps": (1, START),
    "optimizer.options": ({"nesterov": True}, START),
    "optimizer.schedule_options": ({"step_size": 3}, START),
    "optimizer.schedule_by": ("step", START),
    "optimizer.lr_factors": ({"*.bias": 0.5}, START),
    "optimizer.weight_decay_factors": ({"*.bias": 0}, START),
    "training.num_epochs": (3, set()),
    "training.patience": (2, set()),
    "training.loss": ("json:dumps", LATER),
    "training.step": ("json:loads", DATASET),
    "training.class_weights": ("balanced", LATER),
    "training.label_smoothing": (0.1, LATER),
    "training.regularization": ("flat_cosine", LATER),
    "training.monitor": ("macro_f1", LATER),
    "training.quantiles": ([0.25, 0.5, 0.75], DATASET),
    "training.tune_threshold": (True, {"evaluation", "saving"}),
    "training.calibrate": (True, {"evaluation", "saving"}),
    "training.metrics": (["json:loads"], {"evaluation", "saving"}),
    "training.accumulate_batches": (2, LATER),
    "training.max_grad_norm": (1.0, LATER),
    "training.epochs_per_task": (5, set()),
    "training.timeout_seconds": (60.0, set()),
    "training.warm_start": (True, set()),
    "training.baseline": ("trees", set()),
    "training.refit_on_all": (True, {"saving"}),
    "checkpoint.every_seconds": (1.0, set()),
    "checkpoint.keep": (1, set()),
    "compute.device": ("cpu", set()),
    "compute.when_missing": ("cpu", set()),
    "compute.deterministic": (False, set()),
    "compute.engine": ("compiled", START),
    "compute.precision": ("bf16", START),
    "compute.matmul_precision": ("medium", START),
    "compute.num_threads": (1, set()),
    "promotion.mode": ("never", set()),
    "promotion.when_incomparable": ("ask", set()),
    "promotion.score": ("log_likelihood", set()),
    "promotion.rule": ("not_worse", set()),
    "promotion.confidence": (0.9, set()),
    "promotion.min_effect": (0.01, set()),
    "promotion.margin": (0.02, set()),
    "promotion.min_score": (0.5, set()),
    "promotion.max_drop": (0.1, set()),
    "promotion.slices": (["x1"], set()),
    "promotion.must_beat_baseline": (True, set()),
    "promotion.max_latency_ms": (1.0, set()),
    "promotion.max_size_mb": (1.0, set()),
    "promotion.timeout_seconds": (60.0, set()),
    "schedule.max_delay_seconds": (60.0, set()),
    "store.url": ("elsewhere", set()),
    "store.trust": (True, set()),
}
"""A value of each setting, and the steps whose keys it changes; device, determinism and threads come in by the processor's name."""


OWN_DATA = {"data.source": "notebook", "data.factory": "json:dumps"}


def test_every_setting_has_its_place_in_the_keys():
    assert set(CHANGES) == {name for name, _ in walk_settings(resolve_settings({})[0])}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_the_keys_of_what_depends_on_it_and_no_other(name):
    value, steps = CHANGES[name]
    by_time = {"data.split": "time", "data.time_column": "x1"}
    by_other = {**by_time, "data.time_column": "x2"}
    needed = {
        "model.options": {"model.factory": "json:dumps"},
        "data.factory": OWN_DATA,
        "training.step": OWN_DATA,
        "training.quantiles": {"training.loss": "quantile"},
        "promotion.must_beat_baseline": {"training.baseline": "both"},
        **{other: OWN_DATA for other in ("data.options", "data.inputs", "data.predict_factory", "data.cache", "loader.collate")},
        "data.time_column": by_other,
        "data.window": by_time,
        "data.gap": by_time,
    }.get(name, {})
    changed = by_time if name == "data.split" else {name: value}
    assert changed_keys(write(needed), write(needed, changed)) == steps


def test_the_bytes_of_the_source_are_an_ingredient_of_the_data_set():
    assert changed_keys(write(), write(source=OTHER_SOURCE)) == DATASET
    assert changed_keys(write(), write(test_source=OTHER_SOURCE)) == DATASET
    swapped = write(source=OTHER_SOURCE, test_source=SOURCE), write(source=SOURCE, test_source=OTHER_SOURCE)
    assert changed_keys(*swapped) == DATASET


def test_the_weights_that_a_warm_start_takes_are_an_ingredient_of_training():
    settings = resolve_settings(BASE)[0]
    cold, warm, other = (
        write_recipe(settings, SOURCE, None, PROCESSOR, PROCESSOR, weights) for weights in (None, "3" * 64, "4" * 64)
    )
    assert changed_keys(cold, warm) == changed_keys(warm, other) == START


def test_the_code_of_a_warm_start_is_an_ingredient_where_there_is_one(monkeypatch):
    def write_both() -> list[dict[str, object]]:
        settings = resolve_settings(BASE)[0]
        return [keys_of(write_recipe(settings, SOURCE, None, PROCESSOR, PROCESSOR, weights)) for weights in (None, "3" * 64)]

    before, digest_code = write_both(), keys.digest_code
    monkeypatch.setattr(
        keys,
        "digest_code",
        lambda modules: {name: "other" if name == "code.take_weights" else it for name, it in digest_code(modules).items()},
    )
    assert [changed(*pair) for pair in zip(before, write_both(), strict=True)] == [set(), START]


def test_the_processor_is_an_ingredient_of_training_and_not_of_the_data_set():
    assert changed_keys(write(), write(processor="cuda NVIDIA H100")) == START
    assert changed_keys(write(), write(scorer="another CPU")) == {"evaluation", "saving"}


@pytest.mark.parametrize(
    ("package", "steps"), [("torch", START), ("polars", DATASET), ("numpy", DATASET), ("torchmetrics", {"evaluation", "saving"})]
)
def test_the_version_of_what_computes_is_an_ingredient(monkeypatch, package, steps):
    before, version = keys_of(write()), keys.version
    monkeypatch.setattr(keys, "version", lambda name: "0.0" if name == package else version(name))
    assert changed(before, keys_of(write())) == steps


def test_another_number_of_epochs_changes_no_epochs_key_under_a_constant_rate():
    assert write({"training.num_epochs": 20}).epoch_keys[:10] == write({"training.num_epochs": 10}).epoch_keys
    assert len(set(write({"training.num_epochs": 20}).epoch_keys)) == 20


def test_another_number_of_epochs_changes_every_epochs_key_under_a_cosine():
    cosine = {"optimizer.schedule": "cosine"}
    short, long = (write(cosine, {"training.num_epochs": number}) for number in (10, 20))
    assert set(short.epoch_keys).isdisjoint(long.epoch_keys)
    assert (short.dataset, short.start, short.loaders) == (long.dataset, long.start, long.loaders)


def test_the_epochs_on_all_rows_begin_where_the_others_do_and_their_number_changes_no_key():
    recipe = write({"training.refit_on_all": True, "training.num_epochs": 8})
    _, on_all = recipe.fits
    assert (on_all.dataset, on_all.start, on_all.num_epochs) == (recipe.dataset, recipe.start, 8)
    assert recipe.on_all_rows(5).epoch_keys == on_all.epoch_keys[:5]
    assert len(write().fits) == 1
    assert recipe.evaluation("val", 3).ingredients["weights"] == recipe.epoch_keys[2]
    saved = recipe.saving("model", 3, 5, []).ingredients
    keys_saved = [saved[name] for name in ("weights", "served", "epochs")]
    assert keys_saved == [recipe.epoch_keys[2], on_all.epoch_keys[2], recipe.epoch_keys[4]]
    assert [fit.is_on_all_rows for fit in recipe.fits] == [False, True]


def test_no_two_steps_have_one_key():
    recipe = write({"training.num_epochs": 10})
    on_all = recipe.on_all_rows(10)
    evaluations = [recipe.evaluation(split, epoch).key for split in ("train", "val", "test") for epoch in (1, 2)]
    savings = [
        recipe.saving(name, best, last, evaluations[:number]).key
        for name, best, last, number in [("a", 1, 2, 3), ("b", 1, 2, 3), ("a", 2, 2, 3), ("a", 1, 3, 3), ("a", 1, 2, 2)]
    ]
    first = [recipe.dataset.key, recipe.loaders.key, recipe.start.key, on_all.loaders.key]
    everything = [*first, *recipe.epoch_keys, *on_all.epoch_keys, *evaluations, *savings]
    assert len(set(everything)) == len(everything)
    assert all(len(key) == 64 for key in everything)


def test_ingredients_are_named_so_that_a_change_can_be_told():
    recipe = write()
    settings = {section: names_of(section) for section in ("data", "loader", "model", "optimizer")}
    compute = {"compute.engine", "compute.precision", "compute.matmul_precision"}
    loop = {"training.loss", "training.step", "training.accumulate_batches", "training.max_grad_norm", "training.num_epochs"}
    loop |= {"training.class_weights", "training.label_smoothing", "training.monitor", "training.regularization"}
    names = {
        "dataset": {
            *settings["data"] - {"data.inputs", "data.predict_factory"},
            "seed",
            "polars",
            "numpy",
            "duckdb",
            "charset-normalizer",
        },
        "loaders": {"data set", *settings["loader"] - {*keys.READERS}},
        "start": {"data set", "seed", *settings["model"], *settings["optimizer"], *compute, "processor", "torch", "first weights"},
        "epoch": {*settings["loader"] - {*keys.READERS}, *loop},
        "evaluate val": {"weights", "split", "processor", "torch", "torchmetrics"},
        "save": {"name", "weights", "epochs", "metrics", "served"},
    }
    steps = [recipe.dataset, recipe.loaders, recipe.start, recipe.epoch, recipe.evaluation("val", 1), recipe.saving("a", 1, 1, [])]
    assert {step.name: {name for name in step.ingredients if not name.startswith("code.")} for step in steps} == names
    assert Recipe.model_validate_json(recipe.model_dump_json()).epoch_keys == recipe.epoch_keys


def names_of(section: str) -> set[str]:
    return {name for name, _ in walk_settings(resolve_settings({})[0]) if name.startswith(f"{section}.")}


def test_the_order_of_ingredients_is_none():
    assert digest_json({"a": 1, "b": {"c": 2, "d": 3}}) == digest_json({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_recipe_says_which_bytes_it_was_written_for():
    assert write().source_digests == [SOURCE, None]
    assert write(test_source=OTHER_SOURCE).source_digests == [SOURCE, OTHER_SOURCE]


@pytest.mark.parametrize(("record", "field"), [(write(), "processor"), (write().start, "name")], ids=["recipe", "step"])
def test_a_recipe_and_its_steps_cannot_be_changed_and_take_no_other_fields(record, field):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, field, "other")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        type(record).model_validate({**record.model_dump(), "other": 1})


def test_another_process_makes_the_same_keys():
    """Whatever its hash seed and working directory."""
    script = (
        "import json, sys; from refit.runs.keys import write_recipe; from refit.settings import resolve_settings\n"
        f"recipe = write_recipe(resolve_settings({BASE!r})[0], {SOURCE!r}, None, {PROCESSOR!r}, {PROCESSOR!r})\n"
        "saving = recipe.saving('model', 1, 2, [recipe.evaluation('val', 1).key])\n"
        "print(json.dumps([recipe.dataset.key, recipe.loaders.key, recipe.start.key, *recipe.epoch_keys, saving.key]))"
    )
    recipe = write()
    saving = recipe.saving("model", 1, 2, [recipe.evaluation("val", 1).key])
    expected = [recipe.dataset.key, recipe.loaders.key, recipe.start.key, *recipe.epoch_keys, saving.key]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout) == expected


@pytest.mark.parametrize(
    ("roots", "without_a_say", "counted"),
    [
        (["refit.tables.dataset"], WITHOUT_A_SAY | READ_LATER | PROCESSORS, find_maker(DataSettings()).list_code()),
        (
            ["refit.items.making"],
            WITHOUT_A_SAY | PROCESSORS | READ_LATER - OWN,
            find_maker(DataSettings(factory="a:b")).list_code(),
        ),
        (["refit.training.loop", *keys.ENGINE_CODE], WITHOUT_A_SAY, keys.TRAINING_CODE),
        (
            ["refit.training.evaluation", "refit.models.building", "refit.data.live_items", "refit.training.objectives"],
            WITHOUT_A_SAY,
            keys.EVALUATION_CODE,
        ),
    ],
    ids=["table", "items", "training", "evaluation"],
)
def test_all_code_that_computes_is_an_ingredient(roots, without_a_say, counted):
    imports = grimp.build_graph("refit")
    assert set(roots).union(*map(imports.find_upstream_modules, roots)) - without_a_say == set(counted)


def test_the_code_that_computes_a_step_is_an_ingredient_of_it():
    recipe = write()
    for step, definition in [
        (recipe.dataset, "fit_columns"),
        (recipe.start, "train_epoch"),
        (recipe.evaluation("val", 1), "evaluate"),
    ]:
        assert f"code.{definition}" in step.ingredients


def test_of_the_architectures_only_the_one_that_is_trained_is_an_ingredient(tmp_path, monkeypatch):
    """With what it imports of its room; another one beside it changes nothing."""
    package = Path(shutil.copytree(Path(refit.__file__).parent, tmp_path / "refit", ignore=shutil.ignore_patterns("__pycache__")))
    monkeypatch.setattr(code, "__file__", str(package / "code.py"))
    models = package / "models"
    (models / "layers.py").write_text("WIDTH = 8\n")
    (models / "wide.py").write_text("from refit.models.layers import WIDTH\n\ndef build_wide(): ...\n")
    mlp, wide = write(), write({"model.architecture": "wide"})
    assert "code.build_mlp" in mlp.start.ingredients
    assert {"code.build_wide", "code.WIDTH"} <= set(wide.start.ingredients)
    (models / "layers.py").write_text("WIDTH = 16\n")
    (models / "narrow.py").write_text("def build_narrow(): ...\n")
    assert changed_keys(mlp, write()) == set()
    assert changed_keys(wide, write({"model.architecture": "wide"})) == START
    assert all(build.__module__ == f"refit.models.{name}" for name, build in ARCHITECTURES.items())


def test_a_users_module_is_an_ingredient_of_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    factory = {"model.factory": "keyed_networks:build"}
    recipes = []
    for body in ("return 1", "return 1  # one", "return 2"):
        (tmp_path / "keyed_networks.py").write_text(f"def build(num_inputs, num_outputs):\n    {body}\n")
        recipes.append(write(factory))
    assert "code.keyed_networks" in recipes[0].start.ingredients
    assert changed_keys(recipes[0], recipes[1]) == set()
    assert changed_keys(recipes[0], recipes[2]) == START
    assert "keyed_networks" not in sys.modules, "code is read, not run"
