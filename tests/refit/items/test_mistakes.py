"""What is wrong with a data set of the user's own is told before anything is trained."""

import multiprocessing
import random
from pathlib import Path

import pytest
import torch

import refit
from refit.data.own_dataset import forget_datasets
from refit.errors import RefitError
from refit.store.store import Store
from refit.training import trainer

train_epoch = trainer.train_epoch


def train(factory: str = "make", options=(), lines=None, max_bad_items=0, **loader):
    lines = [] if lines is None else lines
    settings = {
        "data": {"factory": f"mistakes:{factory}", "options": dict(options), "max_bad_items": max_bad_items},
        "model": {"factory": "mistakes:Net"},
        "loader": loader,
        "training": {"num_epochs": 1},
        "store": {"trust": True},
    }
    return refit.train(settings, report=lines.append)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "shape",
            r"^item 7 of the data set of mistakes:make: .* found float32 \(3,\), where item 0 is float32 \(4,\); return",
        ),
        (
            "type",
            r"^item 0 of .* found float64 \(4,\), where item 1 is float32 \(4,\); return tensors of one shape",
        ),
        ("text", r"^item 0 of .* the target a number or a tensor, found the target 'a'; return the number of its class"),
        ("nothing", r"^item 0 of .* the target a number or a tensor, found the target None; return one, or set"),
        (
            "vector",
            r"expected one class for each item of mistakes:make, found \(1,\) whole numbers; return the class",
        ),
        ("three", r"^item 0 of .* expected \(inputs, target\), .* found 3 parts; return both"),
        ("mapping", r"^item 0 of .* expected \(inputs, target\), .* found a dict; return both, or set training\.step"),
        ("target in a mapping", r"^item 0 of .* found the target \{'y': 0\}; return one, or set training\.step"),
        ("one class", r"expected items of at least two classes from mistakes:make, found one; add items"),
        (
            "named",
            r"^item \d+ of .* found in a batch, among its inputs, 'item \d+'; return tensors alone, or make them",
        ),
        ("fractional", r"^the data set of .* expected a number of items from `__len__`, found TypeError: .*; correct it"),
        ("few ids", r"^the data set of .* expected `ids` of each of its 40 items, found 2; name each item"),
        ("digest of more", r"^data\.factory: expected a text .* from its method `digest\(\)`, found TypeError: .*; correct it or"),
        ("lists", r"^item 7 of .* found a list of 3, where item 0 is a list of 4; return tensors of one shape"),
        ("more counted", r"^item 40 of .* found IndexError: .*, where `__len__` counts 45 items; mend"),
        ("sparse", r"^item 7 of .* expected inputs and target, found .*sparse.*; return dense tensors that hold numbers"),
        ("meta", r"^item 0 of .* expected inputs and target, found .*meta.*; return dense tensors that hold numbers"),
        ("divided", r"expected mistakes:make to return one data set, or a mapping of .*, found a list of 2; say which is which"),
    ],
)
def test_a_mistake_is_named(kind, message):
    with pytest.raises(RefitError, match=message):
        train(options={"kind": kind})


@pytest.mark.parametrize(("kind", "attribute"), [("open file", "opened"), ("open archive", "archive")])
def test_an_open_file_is_not_shared_among_loader_processes(kind, attribute):
    with pytest.raises(RefitError, match=rf"loader\.num_workers: .* found the open file `{attribute}` in the data set"):
        train(options={"kind": kind}, num_workers=2)


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_what_a_started_process_cannot_be_sent_is_named():
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(
            RefitError,
            match=r"loader\.num_workers: expected data sets of mistakes:make that can be sent .* AttributeError",
        ):
            train(options={"kind": "a lambda"}, num_workers=1)
    finally:
        multiprocessing.set_start_method(None, force=True)


@pytest.mark.parametrize("kind", ["bfloat16", "number"])
def test_items_of_other_types_are_trained_on(kind):
    assert train(options={"kind": kind}).is_new


@pytest.mark.parametrize("kind", ["texts", "tensors", "no digest"])
def test_attributes_that_hold_no_ids_or_paths_tell_no_items_apart(kind):
    result = train(options={"kind": kind})
    manifest = refit.load_model(result.model.path, trust=True).manifest
    hashes = [identity for split in manifest.splits for identity in manifest.load_identities(split, Store("refit-store")).hashes]
    assert len(set(hashes)) == 40


def test_a_factory_that_divides_at_random_divides_alike_whatever_was_drawn_before():
    assert train("divide").is_new
    random.seed(5)
    torch.manual_seed(5)
    assert not train("divide").is_new


def test_an_item_with_nan_is_named_where_the_loss_is_not_finite():
    told = []
    with pytest.raises(RefitError, match=r"^epoch 1, batch 1: expected a finite loss, found nan; lower optimizer\.lr"):
        train(options={"kind": "NaN"}, lines=told)
    assert "the data set: NaN or infinite numbers in the inputs of 2 of 40 items, first in item 7" in told
    with pytest.raises(
        RefitError, match=r"found nan; item [79] of the train data set has NaN or infinite numbers, mend it or leave"
    ):
        train("read_by_digest", options={"kind": "NaN"})


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 8), (2, 8), (0, 1)])
def test_an_odd_item_is_named_by_whoever_reads_it(num_workers, batch_size):
    with pytest.raises(
        RefitError, match=r"^item 7 of the train data set .* found float32 \(3,\), where item \d+ is float32 \(4,\)"
    ):
        train("read_by_digest", options={"kind": "shape"}, num_workers=num_workers, batch_size=batch_size)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("some fractions", "the data set: 1 of 40 targets are fractions, first that of item 7, the others whole numbers: all are"),
        ("own generator", "the data set: item 1 differs each time that it is read, whatever is seeded, so that weights depend on"),
        (
            "equal ids",
            "the data set: 8 of 40 items have the id of an earlier one, first item 2 (a): those of one id",
        ),
    ],
)
def test_what_may_be_meant_is_told_and_kept_with_the_version(kind, expected):
    told = []
    model = {"kind": kind}
    found = train(options=model, lines=told)
    assert [line for line in told if line.startswith(expected)]
    assert [line for line in refit.load_model(found.model.path, trust=True).manifest.remarks if line.startswith(expected)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:starting the loader processes anew")
def test_a_loader_process_that_dies_in_the_first_pass_is_started_anew_up_to_three_times(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # seconds until a death is noticed
    assert train("dying", options={"always": False}, num_workers=1).is_new
    with pytest.raises(
        RefitError,
        match=r"^loader\.num_workers: expected loader processes that live until item [5-7] of the train data set and"
        r" those soon after it are read, found 3 times that ",
    ):
        train("dying", options={"always": True}, num_workers=1)


@pytest.mark.parametrize(("factory", "options"), [("make", {"kind": "bfloat16"}), ("read_by_digest", {"kind": "bfloat16"})])
def test_too_little_shared_memory_is_named_in_the_first_pass_and_in_training(factory, options, monkeypatch):
    """Where sending fails, in a thread of the loader process, whoever reads waits for ever."""

    def fail(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(
        RefitError,
        match=r"^loader\.num_workers: expected room to send items .* found unable to allocate shared memory.*; give more",
    ):
        train(factory, options, num_workers=1)


def test_a_data_set_is_asked_once_for_its_digest():
    train("counting")
    assert sorted(Path("digests").read_text()) == sorted("traintest")


@pytest.mark.parametrize(("rows", "found"), [([], "none"), ("text", "a str"), (None, "a NoneType")])
def test_what_cannot_be_predicted_is_refused(rows, found):
    model = refit.load_model(train(options={"kind": "number"}).model.path, trust=True)
    with pytest.raises(
        RefitError, match=f"expected items to predict, in a data set, or a batch of inputs as tensors, found {found};"
    ):
        model.predict(rows)


def test_test_items_that_are_learned_from_are_counted():
    told = []
    train("read_by_digest", options={"kind": "bfloat16"}, lines=told)
    assert "test split: 6 of 6 items are train or validation items, too, and flatter the scores" in told


def test_test_items_of_another_shape_are_refused_before_training():
    message = (
        r"^item 0 of the test data set of .* found float32 \(2\), where train items are float32 \(4\); return tensors of one shape"
    )
    with pytest.raises(RefitError, match=message):
        train("other_test_items")


@pytest.mark.parametrize("is_live", [False, True])
def test_items_that_cannot_be_used_are_left_out_in_each_run(is_live):
    told = []
    options = {"is_live": is_live}
    found = train("flawed", options, told, max_bad_items=4)
    expected = [
        "left out 4 of 60 items, which cannot be used (data.max_bad_items: 4)",
        "left out: item 3 of the train data set, found OSError: image file is truncated",
        "left out: item 7 of the train data set, found float32 (3,), where item 0 is float32 (4,)",
        "left out: item 9 of the train data set, found NaN or infinite numbers",
        "left out: item 11 of the train data set, found the target 5",
    ]
    assert [line for line in told if line.startswith("left out")] == expected
    manifest = refit.load_model(found.model.path, trust=True).manifest
    assert manifest.remarks == expected
    assert (manifest.splits["train"].rows, manifest.splits["test"].rows) == (36, 20)
    assert "- `left out: item 11 of the train data set, found the target 5`" in Path(found.model.path, "card.md").read_text()
    assert not train("flawed", options, max_bad_items=4, num_workers=2).is_new
    forget_datasets()
    without = train("flawed", {**options, "is_whole": False})
    assert without.model.weights_digest == found.model.weights_digest


def test_more_items_that_cannot_be_used_are_refused_and_counted():
    with pytest.raises(
        RefitError,
        match=r"^item 3 of the train data set of mistakes:flawed: .* found OSError.*; 4 of 60 items cannot be used, and"
        r" data\.max_bad_items, which is 3, leaves out no more than that$",
    ):
        train("flawed", max_bad_items=3, num_workers=2)


def test_an_item_that_fails_only_in_training_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(trainer, "train_epoch", lambda *given: Path("read").touch() or train_epoch(*given))
    with pytest.raises(
        RefitError, match=r"^item \d+ of the train data set .* stale file handle; it could be used when the data set"
    ):
        train("flawed", {"fails_later": True}, max_bad_items=4)
