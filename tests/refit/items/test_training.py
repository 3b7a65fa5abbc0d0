"""Whole runs on the user's own data sets, which have the bits of a plain loop over a DataLoader."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

import refit
from refit.data.live_items import ItemLoader
from refit.errors import DataError, RefitError, SettingsError
from refit.items import kept
from refit.promotion.comparison import Verdict, compare
from refit.registry import versions
from refit.registry.differences import find_differences
from refit.reports import figures
from refit.runs.garbage import find_garbage
from refit.runs.keys import digest_json
from refit.runs.recipes import forecast
from refit.serving.item_scoring import score_items
from refit.settings import resolve_settings
from refit.store.store import Store
from refit.training import trainer
from refit.training.checkpoints import digest_weights
from refit.training.steps import Steps

NUM_EPOCHS = 3


def name_settings(factory: str, store: str = "store", **sections) -> dict:
    return {
        "data": {"factory": f"own_data:{factory}", **sections.pop("data", {})},
        "model": {"factory": "own_data:Net", **sections.pop("model", {})},
        "loader": {"batch_size": 8, **sections.pop("loader", {})},
        "optimizer": {"name": "sgd", "lr": 0.1, **sections.pop("optimizer", {})},
        "training": {"num_epochs": NUM_EPOCHS, **sections.pop("training", {})},
        "store": {"url": store, "trust": True},
        **sections,
    }


def train(factory: str, **sections) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, and the weights of the last epoch."""
    result = refit.train(name_settings(factory, **sections), report=lambda _: None)
    log = json.loads(Path(result.model.path, "log.json").read_text())
    weights = refit.load_model(result.model.path, trust=True).module.state_dict()
    return [loss for epoch in log for loss in epoch["batch_losses"]], weights


def assert_equal(found, expected) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(weights, expected[1][name]) for name, weights in found[1].items())


@pytest.mark.parametrize("factory", ["toy", "pairs", "named"])
def test_items_of_any_kind_give_the_bits_of_the_plain_loop(factory):
    import own_data

    found = train(factory, training={"num_epochs": 1})
    assert_equal(found, own_data.train_plainly(getattr(own_data, factory)()["train"], 1, num_inputs=4))


@pytest.mark.parametrize("factory", ["files", "seldom"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_items_give_the_bits_of_the_plain_loop_over_seeded_ones(num_workers, factory):
    import own_data

    own_data.write_files()
    inputs = {"inputs": ["files"]}
    found = train(factory, data=inputs, loader={"num_workers": num_workers}, training={"num_epochs": 1})
    dataset = refit.seeded(getattr(own_data, factory)()["train"], seed=0)
    assert_equal(found, own_data.train_plainly(dataset, 1))


def test_items_of_several_lengths_are_collated_by_the_users_function():
    import own_data

    found = train("lengths", loader={"collate": "own_data:add_up"}, training={"num_epochs": 1})
    assert_equal(found, own_data.train_plainly(own_data.lengths()["train"], 1, collate_fn=own_data.add_up))


@pytest.mark.parametrize("factory", ["toy", "unwatched"])
def test_a_rate_that_goes_by_the_loss_gives_the_bits_of_the_plain_loop_also_after_an_interruption(factory, monkeypatch):
    import own_data

    options = {"schedule": "ReduceLROnPlateau", "schedule_options": {"patience": 0, "threshold": 0.5, "factor": 0.1}}
    given = {"optimizer": options, "training": {"num_epochs": 3}, "checkpoint": {"every_seconds": 1e-9}}
    plain = own_data.train_with_plateau(own_data.__dict__[factory](), 3, options["schedule_options"])
    assert_equal(train(factory, store="undisturbed", **given), plain)
    take, done = Steps.take, []

    def disturb(steps, *rest):
        done.append(rest)
        if len(done) in (12, 18):
            trainer._live.clear()
            raise OSError("disturbed")
        return take(steps, *rest)

    monkeypatch.setattr(Steps, "take", disturb)
    for _ in range(2):
        with pytest.raises(OSError, match="disturbed"):
            train(factory, **given)
    assert_equal(train(factory, **given), plain)


def test_weighted_items_come_as_from_the_plain_sampler():
    import own_data

    found = train("toy", loader={"sampler": "own_data:weigh"}, training={"num_epochs": 1})
    dataset = own_data.toy()["train"]
    sampler = WeightedRandomSampler(own_data.weigh(dataset.labels), len(dataset))
    assert_equal(found, own_data.train_plainly(dataset, 1, sampler=sampler))


def test_a_cache_of_items_gives_their_bits():
    import own_data

    own_data.write_files()
    given = {"inputs": ["files"], "options": {"is_random": False}}
    live = train("files", store="live", data=given)
    assert_equal(live, train("files", store="kept", data={**given, "cache": True}))
    with pytest.raises(
        DataError, match=r"data\.cache: expected items that are the same .*item 0 \(files/train/000\.npy\).* is random"
    ):
        train("files", data={"inputs": ["files"], "cache": True})


def add_file(number: int) -> None:
    np.save(f"files/train/{number:03}.npy", np.random.default_rng(number).standard_normal(4).astype(np.float32))


def read_cached(factory: str, store: str, lines=None, **data) -> str:
    """Train with a cache; return the digest of the record of the data set."""
    options = {"is_random": False} if factory == "files" else {}
    data = {"inputs": ["files"], "options": options, "cache": True, **data}
    settings = name_settings(factory, store, data=data, training={"num_epochs": 1})
    result = refit.train(settings, report=(lambda _: None) if lines is None else lines.append)
    manifest = refit.load_model(result.model.path, trust=True).manifest
    return digest_json(manifest.model_dump(mode="json"))


def test_a_cache_decodes_only_new_and_changed_files(monkeypatch):
    import own_data

    own_data.write_files()
    read_cached("files", "store")
    for number in (50, 51, 52):
        add_file(number)
    Path("files/train/001.npy").unlink()
    Path("files/train/002.npy").write_bytes(Path("files/train/000.npy").read_bytes())
    monkeypatch.setattr(kept, "NUM_CHECKED", 1)
    lines, read = [], []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path: read.append(path) or load(path))
    grown = read_cached("files", "store", lines)
    assert "data.cache: 48 of 52 items of the train data set are kept, reading the others" in lines
    assert {f"files/train/{number:03}.npy" for number in (2, 50, 51, 52)} <= {*read}
    assert len({path for path in read if "train" in path}) < 12
    assert grown == read_cached("files", "other")


def test_a_cache_is_made_anew_if_items_depend_on_more_than_their_own_file():
    import own_data

    own_data.write_files()
    read_cached("centred", "store")
    add_file(50)
    assert read_cached("centred", "store") == read_cached("centred", "other")
    Path("files/labels.csv").write_text("of which nobody knows whose they are")
    lines = []
    read_cached("centred", "store", lines)
    assert not [line for line in lines if "are kept" in line]


def test_an_epoch_that_was_interrupted_goes_on_without_reading_items_again(monkeypatch):
    import own_data

    own_data.write_files()
    given = {"data": {"inputs": ["files"]}, "checkpoint": {"every_seconds": 1e-9}}
    undisturbed = train("files", store="undisturbed", **given)
    gather_at, done = ItemLoader.gather_at, []

    def disturb(loader, order, first):
        done.append(first)
        if len(done) in (4, 9):
            raise OSError("disturbed")
        return gather_at(loader, order, first)

    monkeypatch.setattr(ItemLoader, "gather_at", disturb)
    for _ in range(2):
        with pytest.raises(OSError, match="disturbed"):
            train("files", **given)
    monkeypatch.setenv("READS", "reads.txt")
    assert_equal(train("files", **given), undisturbed)
    to_train, to_score = 50 * NUM_EPOCHS - 7 * 8, 12 * NUM_EPOCHS + 50 + 12 + 12
    assert len(Path("reads.txt").read_text().splitlines()) - to_train - to_score <= 20, "a few are read to try the model with"


def test_a_killed_loader_process_is_started_anew():
    import own_data

    own_data.write_files()
    with pytest.warns(UserWarning, match="starting the loader processes anew: DataLoader worker"):
        found = train("killing", data={"inputs": ["files"]}, loader={"num_workers": 2}, training={"num_epochs": 1})
    assert Path("killed").exists()
    assert_equal(found, own_data.train_plainly(refit.seeded(own_data.killing()["train"], 0), 1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_item_that_cannot_be_read_is_named(num_workers):
    import own_data

    own_data.write_files()
    with pytest.raises(DataError) as caught:
        train("failing", data={"inputs": ["files"]}, loader={"num_workers": num_workers})
    assert str(caught.value) == (
        "item 7 (files/train/007.npy) of the train data set of own_data:failing: expected inputs and target, found OSError: image"
        " file is truncated; mend its file or the data set, or leave such items out by data.max_bad_items"
    )


def test_random_items_without_a_digest_are_refused_before_training():
    with pytest.raises(DataError, match=r"expected items of own_data:noisy that are the same .* name the files .*data\.inputs"):
        train("noisy")


def test_what_the_factory_returns_is_checked():
    for factory, message in {
        "draw": r"item 0 of the data set of own_data:draw: expected \(inputs, target\).*found a tensor of \(60, 4\)",
        "misnamed": "expected own_data:misnamed to return one data set, or a mapping of `train`, .*, found `training`; rename",
        "write_files": "expected a map-style data set, with `__len__` and `__getitem__`, from .*, found a NoneType",
        "nothing": "data.factory: expected a function that can be imported",
        "weigh": r"expected own_data:weigh\(\) to return a data set, found TypeError",
    }.items():
        with pytest.raises(RefitError, match=message):
            train(factory)
    with pytest.raises(SettingsError, match=r"data\.options: expected arguments that own_data:toy takes.*`size`"):
        train("toy", data={"options": {"size": 3}})


def test_one_data_set_is_divided_by_what_each_item_holds_so_that_none_changes_sides():
    sides = {}
    for num_items in (60, 90):
        result = refit.train(
            name_settings("whole", data={"options": {"num_items": num_items}}, training={"num_epochs": 1}), report=lambda _: None
        )
        manifest = refit.load_model(result.model.path, trust=True).manifest
        hashes = {split: manifest.load_identities(split, Store("store")).hashes.tolist() for split in manifest.splits}
        assert sum(map(len, hashes.values())) == num_items
        assert all(hashes.values())
        for split, found in hashes.items():
            for one in found:
                assert sides.setdefault(one, split) == split


def test_why_tells_how_many_files_are_new_and_gone():
    import own_data

    own_data.write_files()
    given = name_settings("files", data={"inputs": ["files"]}, training={"num_epochs": 1})
    refit.train(given, report=lambda _: None)
    settings = resolve_settings(given)[0]
    assert all(step.is_done for step in forecast(settings, Store("store")))
    for number in (50, 51, 52):
        Path(f"files/train/{number:03}.npy").write_bytes(Path("files/train/000.npy").read_bytes())
    Path("files/train/001.npy").unlink()
    step = forecast(settings, Store("store"))[0]
    assert not step.is_done
    assert step.because == ["data.inputs: 3 new files, 1 gone file"]


def read_metrics(store: str = "store") -> dict:
    return json.loads(Path(store, "models/model/v1/metrics.json").read_text())


@pytest.mark.parametrize(
    ("loss", "function"), [(None, "mse_loss"), ("squared", "mse_loss"), ("absolute", "l1_loss"), ("huber", "huber_loss")]
)
def test_numbers_are_predicted_with_the_bits_of_the_plain_loop(loss, function):
    import own_data

    plain = getattr(torch.nn.functional, function)
    found = train("numbers", training={"num_epochs": 1, "loss": loss, "metrics": ["own_data:largest_error"]})
    dataset = own_data.numbers()["train"]
    expected = own_data.train_by(
        lambda model, it: plain(model(it[0]).squeeze(1), it[1].float()), dataset, lambda: own_data.Net(4, 1)
    )
    assert_equal(found, expected)
    test = read_metrics()["test"]
    assert set(test["figures"]) == {"RMSE", "MAE", "R²", "largest error"}
    model, data = refit.load_model("store/models/model/v1", trust=True), own_data.numbers()["test"]
    truth = torch.tensor([y for _, y in data])
    errors = torch.from_numpy(model.predict(data)).double() - truth
    assert test["figures"]["MAE"] == pytest.approx(errors.abs().mean().item())
    assert test["figures"]["largest error"] == pytest.approx(errors.abs().max().item())
    assert test["figures"]["R²"] == pytest.approx(1 - (errors.square().sum() / (truth - truth.mean()).square().sum()).item())


def test_several_labels_at_once_are_learned_with_the_bits_of_the_plain_loop():
    import own_data

    plain = torch.nn.functional.binary_cross_entropy_with_logits
    found = train("labels", training={"num_epochs": 1, "loss": "binary"})
    expected = own_data.train_by(lambda model, it: plain(model(it[0]), it[1].float()), own_data.labels()["train"], own_data.Net)
    assert_equal(found, expected)
    figures = read_metrics()["test"]["figures"]
    predicted = refit.load_model("store/models/model/v1", trust=True).predict(own_data.labels()["test"])
    truth = torch.stack([y for _, y in own_data.labels()["test"]]).bool().numpy()
    assert figures["label accuracy"] == pytest.approx((predicted == truth).mean())
    assert figures["exact match"] == pytest.approx((predicted == truth).all(axis=1).mean())


def test_a_step_of_the_users_own_gives_the_bits_of_the_plain_loop_and_scores_each_item_by_its_loss():
    import own_data

    found = train("toy", model={"factory": "own_data:AutoEncoder"}, training={"num_epochs": 1, "step": "own_data:restore"})
    dataset = own_data.toy()
    assert_equal(found, own_data.train_by(own_data.restore, dataset["train"], own_data.AutoEncoder))
    model = refit.load_model("store/models/model/v1", trust=True)
    x = torch.stack([x for x, _ in dataset["test"]])
    restored = torch.from_numpy(model.predict(x))
    assert read_metrics()["test"]["loss"] == pytest.approx((restored - x).square().mean().item(), rel=1e-6)


def test_outputs_that_do_not_fit_the_loss_are_refused_before_the_first_step():
    with pytest.raises(
        SettingsError, match=r"expected the model of own_data:Net to give float32 logits of \(1, 1\) .* found .*3\)"
    ):
        train("numbers", model={"factory": "own_data:Net", "options": {"num_outputs": 3}})
    with pytest.raises(SettingsError, match=r"training\.step own_data:restore: expected a loss for a batch of 3 items, .* found"):
        train("toy", model={"options": {"num_inputs": 4, "num_outputs": 3}}, training={"step": "own_data:restore"})
    with pytest.raises(
        SettingsError, match=r"model\.factory: expected a value for `num_outputs`, which training\.step alone knows"
    ):
        train("toy", model={"factory": "own_data:build_net"}, training={"step": "own_data:restore"})
    with pytest.raises(
        DataError, match=r"expected a vector of zeros and ones for each item .* as it is `binary`, found targets of"
    ):
        train("toy", training={"loss": "binary"})
    with pytest.raises(DataError, match=r"training\.loss: expected targets .* that are whole numbers, found torch\.float32"):
        train("numbers", training={"loss": "cross_entropy"})


def judge(factory: str, champion: int | None, **sections) -> Verdict:
    """Train a candidate, and compare it with the champion."""
    settings, _ = resolve_settings(name_settings(factory, **sections))
    candidate = refit.train(settings, report=lambda _: None).model
    return compare(candidate, champion, settings.promotion, Store("store"), settings)


@pytest.mark.parametrize(
    ("factory", "baseline", "training"),
    [
        ("toy_again", "majority class", {}),
        ("numbers_again", "mean of the targets", {}),
        ("labels_again", "shares of the labels", {"loss": "binary"}),
    ],
)
def test_a_candidate_of_any_kind_must_beat_the_baseline_and_the_champion_on_the_same_items(factory, baseline, training):
    first = judge(factory, None, training={**training, "num_epochs": 1}, optimizer={"name": "sgd", "lr": 1e-4})
    assert f"of the {baseline}" in first.reason
    second = judge(factory, 1, training={**training, "num_epochs": 30}, optimizer={"name": "adam", "lr": 0.01})
    assert second.decision.is_better
    assert second.judged_by == 1
    assert list(second.scores) == ["model@v2", "model@v1", baseline]
    assert second.decision.num_rows == 60
    assert not judge(
        factory, 2, training={**training, "num_epochs": 30}, optimizer={"name": "adam", "lr": 0.0101}
    ).decision.is_better


def test_the_first_model_of_a_step_has_nothing_to_be_compared_with_and_the_next_has_it():
    given = {"model": {"factory": "own_data:AutoEncoder"}}
    first = judge("toy", None, **given, training={"step": "own_data:restore", "num_epochs": 1})
    assert first.decision.is_better
    assert "the first of its name, with nothing to compare it with" in first.reason
    second = judge("toy", 1, **given, training={"step": "own_data:restore", "num_epochs": 40})
    assert second.decision.is_better
    assert second.decision.score == "negative_loss"


def test_it_is_told_how_far_targets_and_what_the_champion_says_have_moved():
    adam = {"optimizer": {"name": "adam", "lr": 0.02}, "training": {"num_epochs": 10}}
    judge("skewed", None, **adam)
    same = judge("skewed", 1, **adam, data={"options": {"seed": 1}})
    assert [(drift.column, drift.extent) for drift in same.drifts] == [
        ("target", "stable"),
        ("confidence, by model@v1", "stable"),
        ("predicted class, by model@v1", "stable"),
    ]
    moved = judge("skewed", 1, **adam, data={"options": {"share": 0.8, "seed": 2}})
    assert {drift.column: drift.extent for drift in moved.drifts} == dict.fromkeys(
        ["target", "confidence, by model@v1", "predicted class, by model@v1"], "shifted"
    )


@pytest.mark.parametrize(
    ("factory", "loss", "truth"),
    [("pictures_again", {}, "[012]"), ("numbers_again", {}, r"-?[\d.e-]+"), ("labels_again", {"loss": "binary"}, "none|[012, ]+")],
)
def test_the_worst_items_are_named_with_what_is_true_and_what_is_predicted(factory, loss, truth, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "draw_images", lambda images, captions: drawn.append((images, captions)) or b"PNG")
    options = {"model": {"options": {"num_inputs": 192}}} if factory == "pictures_again" else {}
    verdict = judge(factory, None, **options, training={"num_epochs": 10, **loss})
    assert len(verdict.worst) == 12
    assert [it.score for it in verdict.worst] == sorted(it.score for it in verdict.worst)
    assert all(re.fullmatch(truth, it.truth) and re.fullmatch(truth, it.predicted) for it in verdict.worst)
    if factory != "pictures_again":
        assert not drawn
        assert re.fullmatch(r"item \d+", verdict.worst[0].item)
        return
    import own_data

    dataset = own_data.pictures_again()["test"]
    model = refit.load_model("model@v1", store="store", trust=True)
    probabilities = model.predict_proba(dataset)[np.arange(len(dataset)), dataset.labels]
    order = probabilities.argsort()[:12]
    assert [it.item for it in verdict.worst] == [dataset.ids[place] for place in order]
    np.testing.assert_allclose([it.score for it in verdict.worst], probabilities[order], rtol=1e-5)
    ((images, captions),) = drawn
    expected = dataset[dataset.ids.index(verdict.worst[0].item)][0].permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(images[0], (expected - expected.min()) / (expected.max() - expected.min()))
    assert captions[0] == f"{verdict.worst[0].truth} → {verdict.worst[0].predicted}"


def test_items_that_the_champion_has_learned_from_judge_no_candidate():
    judge("toy_again", None, training={"num_epochs": 1})
    verdict = judge("toy_again", 1, training={"num_epochs": 1}, data={"options": {"first": 100}})
    assert verdict.num_left_out == 40
    assert "without rows that were learned from (40 by the champion)" in verdict.reason


def test_a_network_with_frozen_layers_and_weights_to_start_from_gives_the_bits_of_the_plain_loop():
    import own_data

    torch.manual_seed(7)
    kept = {f"layers.{name}": value for name, value in own_data.Net().layers.state_dict().items() if name.startswith("0.")}
    torch.save({"state_dict": {**kept, "head.weight": torch.ones(3)}}, "published.pt")
    given = {"factory": "own_data:Tuned", "weights": "published.pt"}
    optimizer = {"name": "adam", "lr": 0.05, "lr_factors": {"layers.3.bias": 0.1}}
    found = train("toy", model=given, optimizer=optimizer, training={"num_epochs": 2})

    torch.manual_seed(0)
    model = own_data.Tuned()
    model.load_state_dict(kept, strict=False)
    head = model.layers[3]
    plain = torch.optim.Adam([{"params": [head.weight]}, {"params": [head.bias], "lr": 0.005}], lr=0.05)
    losses = []
    for _ in range(2):
        for x, y in torch.utils.data.DataLoader(own_data.toy()["train"], 8, shuffle=True):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            plain.zero_grad()
            loss.backward()
            plain.step()
            losses.append(loss.item())
    assert_equal(found, (losses, model.state_dict()))
    assert torch.equal(found[1]["layers.0.weight"], kept["layers.0.weight"])

    torch.save({"other": torch.ones(2)}, "published.pt")
    with pytest.raises(
        SettingsError, match=r"model\.weights: expected weights of the names and shapes .*, found `other` in published"
    ):
        train("toy", model=given, optimizer=optimizer)


def test_frozen_weights_are_kept_once_for_all_checkpoints_and_versions(tmp_path):
    import own_data

    store, saved = Store("store"), []
    for lr in (0.1, 0.2):
        given = name_settings("toy", model={"factory": "own_data:Tuned"}, optimizer={"lr": lr}, training={"num_epochs": 2})
        saved.append(refit.train(given, report=lambda _: None).model)
    torch.manual_seed(0)
    frozen = own_data.Tuned().layers[0].weight
    files = [path for path in Path("store").rglob("*") if path.is_file()]
    holding = [path for path in files if frozen.detach().numpy().tobytes() in path.read_bytes()]
    assert len({path.stat().st_ino for path in holding}) == 1
    for version in saved:
        shutil.copytree(version.path, tmp_path / "moved" / f"v{version.version}")
        model = refit.load_model(tmp_path / "moved" / f"v{version.version}", trust=True)
        assert digest_weights(model.module.state_dict()) == version.weights_digest
        plain = torch.load(f"{version.path}/frozen.pt") | torch.load(f"{version.path}/model.pt")
        own_data.Tuned().load_state_dict(plain)
    for path in files:
        os.utime(path, (0, 0))
    for run in store.names("runs"):
        store.remove(f"runs/{run}")
    assert not {str(path.relative_to("store")) for path in holding} & find_garbage(store).keys()


def test_lost_frozen_weights_are_made_anew():
    given = name_settings("toy", model={"factory": "own_data:Tuned"}, training={"num_epochs": 2})
    first = refit.train(given, report=lambda _: None).model
    digest = versions.read_record(Store("store"), "model", 1)["frozen"]
    Path("store", Store("store").object_path(digest)).unlink()
    Path(first.path, "version.json").unlink()
    again = refit.train(given, report=lambda _: None)
    assert (again.is_new, again.model.weights_digest) == (True, first.weights_digest)


def test_weights_that_a_step_of_the_users_own_changes_are_kept_with_each_checkpoint(monkeypatch):
    training = {"num_epochs": 3, "step": "own_data:teach"}
    model = {"factory": "own_data:Taught", "options": {"num_inputs": 4, "num_outputs": 3}}
    found = train("toy", model=model, training=training)
    build_state = trainer._build_state
    monkeypatch.setattr(trainer, "_build_state", lambda *given: trainer._live.clear() or build_state(*given))
    monkeypatch.setattr(trainer, "_live_key", lambda *_: os.urandom(8).hex())  # so that each epoch loads its checkpoint
    assert_equal(train("toy", store="other", model=model, training=training), found)


def test_objects_of_a_session_are_trained_and_only_there(capsys):
    import own_data

    class Small(own_data.Net):
        pass

    x, y = own_data.draw()
    given = {"loader": {"batch_size": 8}, "optimizer": {"name": "sgd", "lr": 0.1}, "training": {"num_epochs": 1}}
    datasets = {"train": own_data.ToyDataset(x, y), "test": own_data.ToyDataset(x[:9], y[:9])}
    result = refit.train(given, datasets=datasets, model=Small)
    assert "data and model: from this session; a deployment could not make it anew" in capsys.readouterr().out
    _, expected = own_data.train_plainly(datasets["train"], 1)
    weights = refit.load_model(result.model.path, trust=True).module.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert not refit.train(given, datasets=datasets, model=Small).is_new
    more = {**datasets, "train": own_data.ToyDataset(-x, y)}
    assert refit.train(given, datasets=more, model=Small).is_new
    assert refit.load_model(
        refit.train(given, datasets=datasets, model=own_data.Net).model.path, trust=True
    ).settings.model.factory == ("own_data:Net")
    with pytest.raises(
        SettingsError, match="model: expected a class or a function that makes a model, found a Small, whose weights"
    ):
        refit.train(given, datasets=datasets, model=Small())


def test_what_a_session_gave_is_unknown_to_another_process(monkeypatch):
    import own_data

    from refit.data import own_functions

    x, y = own_data.draw()
    given = {"training": {"num_epochs": 1}, "model": {"factory": "own_data:Net"}}
    path = refit.train(given, datasets={"train": own_data.ToyDataset(x, y)}, model=lambda: own_data.Net()).model.path
    monkeypatch.setattr(own_functions, "_given", {})
    with pytest.raises(
        SettingsError, match=r"model\.factory: expected the object that `refit\.train` was given in a session, found"
    ):
        refit.load_model(path, trust=True)


def test_the_items_of_a_source_are_scored_by_name():
    import own_data

    own_data.write_files()
    result = refit.train(name_settings("files", data={"inputs": ["files"]}, training={"num_epochs": 1}), report=lambda _: None)
    model = refit.load_model(result.model.path, trust=True)
    score_items(model, "own_data:to_score", "files/test", "scored.parquet", "model@v1")
    scored = pl.read_parquet("scored.parquet")
    assert scored.columns == ["item", "class", *(f"probability of {name}" for name in ("cat", "dog", "owl")), "model"]
    assert scored["item"].to_list() == [f"files/test/{number:03}.npy" for number in range(12)]
    assert scored["class"].to_list() == model.predict(own_data.to_score("files/test")).tolist()
    assert scored["model"].unique().to_list() == ["model@v1"]
    for factory, source, message in [
        (None, "files/test", r"data\.predict_factory: expected your function .* found none; set it"),
        ("own_data:draw", "x", r"expected own_data:draw\('x'\) to return a data set, found TypeError"),
        ("own_data:to_score", "nowhere", "nowhere: expected items to score, found none"),
    ]:
        with pytest.raises(RefitError, match=message):
            score_items(model, factory, source, "scored.parquet", "model@v1")


def test_files_that_change_after_the_data_set_was_built_stop_the_run():
    import own_data

    own_data.write_files()

    def change(line):
        if line.startswith("epoch 1/"):
            Path("files/train/003.npy").write_bytes(Path("files/train/000.npy").read_bytes())

    with pytest.raises(DataError, match=r"data\.inputs: expected the same bytes as when the run began, found others; run again"):
        refit.train(name_settings("files", data={"inputs": ["files"]}), report=change)


def test_a_stored_data_set_of_a_function_that_settings_do_not_name_is_not_opened():
    result = refit.train(name_settings("toy", training={"num_epochs": 1}), report=lambda _: None)
    mine = {**name_settings("noisy"), "store": {"url": "store"}}
    settings, _ = resolve_settings(mine)
    with pytest.raises(
        SettingsError, match=r"data\.factory: expected `own_data:noisy`, as set here, found a stored .*`own_data:toy`"
    ):
        compare(result.model, None, settings.promotion, Store("store"), settings)


def test_versions_of_a_step_differ_in_what_they_have_alone():
    given = {"model": {"factory": "own_data:AutoEncoder"}, "training": {"num_epochs": 1, "step": "own_data:restore"}}
    for seed in (0, 1):
        train("toy", **given, seed=seed)
    found = find_differences(Store("store"), ("model", 1), ("model", 2))
    assert {name for _, name in found.metrics} == {"loss"}
