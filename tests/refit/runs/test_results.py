import hashlib
import json

import pytest

from refit.refs import EpochResult, Ref
from refit.registry.versions import add_version
from refit.runs.results import find_last_epoch, find_refs, load_result, load_usable_result, result_path
from refit.training.checkpoints import save_report
from refit.training.loop import EpochLog

KEYS = [f"{epoch:064x}" for epoch in range(1, 6)]


def keep(store, key: str, content: dict) -> None:
    """As it is kept, without its class."""
    store.write(result_path(key), json.dumps({"data": content}).encode())


def keep_epoch(store, epoch: int) -> EpochResult:
    figures = {"train_loss": 0.5, "val_loss": None, "val_score": None}
    log = EpochLog(epoch=epoch, batch_losses=[0.5], lr=0.1, grad_norm=1.0, rows_per_second=1.0, seconds=1.0, **figures)
    data = f"checkpoint {epoch}".encode()
    checkpoint = Ref(kind="checkpoint", digest=store.put(data), size=len(data))
    result = EpochResult(epoch=epoch, checkpoint=checkpoint, log=save_report("log", log, store), **figures)
    keep(store, KEYS[epoch - 1], result.model_dump())
    return result


@pytest.fixture
def epochs(store) -> list[EpochResult]:
    """Four of five epochs."""
    return [keep_epoch(store, epoch) for epoch in (1, 2, 3, 4)]


def damage(store, ref: Ref) -> None:
    content = store.read(store.object_path(ref.digest))
    store.write(store.object_path(ref.digest), bytes([content[0] ^ 1]) + content[1:])


def remove(store, ref: Ref) -> None:
    store.remove(store.object_path(ref.digest))


def test_a_result_comes_back_as_it_was_kept(store):
    content = {"name": "a", "nested": [1, None, {"b": 0.1}]}
    keep(store, KEYS[0], content)
    assert load_result(KEYS[0], store) == content


@pytest.mark.parametrize(
    "record",
    [None, b"", b"{", b"[]", b"{}", b'{"data": "{"}', b'{"data": null}', b'{"result": {}}', b"\xff"],
)
def test_what_cannot_be_read_is_no_result(store, record):
    if record is not None:
        store.write(result_path(KEYS[0]), record)
    assert load_result(KEYS[0], store) is None
    assert load_usable_result(KEYS[0], store) is None
    assert find_last_epoch(KEYS, store) == 0


def test_refs_are_found_however_deep():
    refs = [Ref(kind=kind, digest=str(n) * 64, size=n) for n, kind in enumerate(["dataset", "arrays", "log", "metrics"])]
    content = {**refs[0].model_dump(), "splits": {"train": refs[1].model_dump(), "more": {"log": refs[2].model_dump()}}}
    assert find_refs({"a": 1, "snapshot": content, "metrics": refs[3].model_dump(), "none": None}) == refs
    assert find_refs(None) == []
    for without in ("kind", "digest", "size"):
        assert find_refs({name: value for name, value in refs[0].model_dump().items() if name != without}) == []


def test_a_result_is_usable_if_all_it_refers_to_is_whole(store):
    data = {name: Ref(kind="arrays", digest=store.put(name.encode()), size=len(name)) for name in ("train", "test")}
    manifest = Ref(kind="dataset", digest=store.put(b"manifest"), size=8)
    content = {**manifest.model_dump(), "splits": {name: ref.model_dump() for name, ref in data.items()}}
    keep(store, KEYS[0], content)
    for ref in (manifest, *data.values()):
        original = store.read(store.object_path(ref.digest))
        assert load_usable_result(KEYS[0], store) == content
        damage(store, ref)
        assert load_usable_result(KEYS[0], store) is None
        assert load_usable_result(KEYS[0], store) is None
        store.put(original)
        assert load_usable_result(KEYS[0], store) == content
        remove(store, ref)
        assert load_usable_result(KEYS[0], store) is None
        store.put(original)


def test_a_version_is_usable_if_all_its_files_are_whole(store):
    files = {"model.pt": b"weights", "card.md": b"card"}
    record = {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    number = add_version(store, "a", files, record)
    content = {"name": "a", "version": number, "path": "", "weights_digest": ""}
    keep(store, KEYS[0], content)
    assert load_usable_result(KEYS[0], store) == content
    store.write("models/a/v1/card.md", b"cards")
    assert load_usable_result(KEYS[0], store) is None


@pytest.mark.parametrize(
    ("content", "is_usable"), [({"name": "a", "version": 1}, False), ({"name": "a"}, True), ({"version": 1}, True)]
)
def test_a_name_with_a_version_is_that_of_a_version_that_must_be_there(store, content, is_usable):
    keep(store, KEYS[0], content)
    assert (load_usable_result(KEYS[0], store) == content) == is_usable


def test_results_are_where_prefect_is_told_to_keep_them():
    assert result_path("key") == "results/key.json"


def test_an_epochs_result_is_usable_without_its_checkpoint_but_not_without_its_log(store, epochs):
    remove(store, epochs[0].checkpoint)
    assert load_usable_result(KEYS[0], store) == epochs[0].model_dump()
    remove(store, epochs[0].log)
    assert load_usable_result(KEYS[0], store) is None


@pytest.mark.usefixtures("epochs")
def test_training_goes_on_from_the_last_of_the_epochs_that_follow_one_another(store):
    assert find_last_epoch(KEYS, store) == 4
    assert find_last_epoch(KEYS[:3], store) == 3
    assert find_last_epoch([], store) == 0
    assert find_last_epoch(KEYS[4:], store) == 0


def test_nothing_is_found_in_a_store_that_is_not_there(store):
    assert find_last_epoch(KEYS, store) == 0
    assert find_last_epoch(KEYS, store, warn=print) == 0


@pytest.mark.usefixtures("epochs")
@pytest.mark.parametrize(("hole", "last"), [(1, 0), (2, 1), (4, 3)])
def test_an_epoch_after_a_hole_does_not_count(store, hole, last):
    store.remove(result_path(KEYS[hole - 1]))
    assert find_last_epoch(KEYS, store) == last


def test_an_epoch_without_its_log_does_not_count_nor_those_after_it(store, epochs):
    remove(store, epochs[2].log)
    assert find_last_epoch(KEYS, store) == 2


def test_checkpoints_of_earlier_epochs_may_be_pruned_or_damaged(store, epochs):
    remove(store, epochs[0].checkpoint)
    remove(store, epochs[1].checkpoint)
    damage(store, epochs[2].checkpoint)
    said = []
    assert find_last_epoch(KEYS, store, warn=said.append) == 4
    assert said == []


@pytest.mark.parametrize("break_it", [damage, remove])
def test_a_broken_last_checkpoint_is_named_and_the_one_before_it_is_used(store, epochs, break_it):
    path = store.location(store.object_path(epochs[3].checkpoint.digest))
    break_it(store, epochs[3].checkpoint)
    said = []
    assert find_last_epoch(KEYS, store, warn=said.append) == 3
    before = f"epoch 3, {epochs[2].checkpoint.digest[:12]}"
    assert said == [f"checkpoint {path} of epoch 4 is damaged or gone; going on from that of {before}"]


def test_broken_checkpoints_are_passed_over_one_after_the_other_to_the_start(store, epochs):
    for epoch in epochs:
        damage(store, epoch.checkpoint)
    said = []
    assert find_last_epoch(KEYS, store, warn=said.append) == 0
    assert [message.partition(" of ")[2].partition(" is ")[0] for message in said] == ["epoch 4", "epoch 3", "epoch 2", "epoch 1"]
    assert said[-1].endswith("going on from that of the start")


def test_results_are_dropped_only_if_told_to_and_only_those_of_broken_checkpoints(store, epochs):
    damage(store, epochs[3].checkpoint)
    remove(store, epochs[2].checkpoint)
    assert find_last_epoch(KEYS, store) == 2
    assert [load_result(key, store) is not None for key in KEYS] == [True, True, True, True, False]
    assert find_last_epoch(KEYS, store, warn=print) == 2
    assert [load_result(key, store) is not None for key in KEYS] == [True, True, False, False, False]
    keep_epoch(store, 3)
    assert find_last_epoch(KEYS, store, warn=print) == 3


def test_a_damaged_log_does_not_count_as_one(store, epochs):
    """As `load_usable_result` sees it: whoever goes by both finds one answer."""
    damage(store, epochs[1].log)
    last = find_last_epoch(KEYS, store)
    assert all(load_usable_result(key, store) is not None for key in KEYS[:last])
