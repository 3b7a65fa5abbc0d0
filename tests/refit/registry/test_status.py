import hashlib
import json
from pathlib import Path

import pytest

from refit.registry.ledger import append_entry, entry_path
from refit.registry.status import list_damaged, read_status
from refit.registry.versions import add_version, move_alias, repair, report_path, rollback, version_folder
from refit.store.store import Store

CREATED = "2026-01-02T03:04:05+00:00"


@pytest.fixture
def model(store) -> Store:
    """Model `a` with three versions: v1 was the champion, v2 is, v3 was turned down."""
    for number in (1, 2, 3):
        weights = f"weights {number}".encode()
        record = {"created": CREATED, "files": {"model.pt": hashlib.sha256(weights).hexdigest()}}
        add_version(store, "a", {"model.pt": weights}, record)
    move_alias(store, "a", 1, expected=None, why="the first")
    move_alias(store, "a", 2, expected=1, why="more is right")
    append_entry(store, "a", action="keep", why="it may be luck", alias="champion", before=2, after=3)
    append_entry(store, "a", action="open", why="another look at the test rows", after=3)
    return store


def test_a_model_that_nothing_was_decided_of_has_no_champion(store):
    add_version(store, "a", {"model.pt": b""}, {})
    status = read_status(store, "a")
    assert (status.versions, status.champion, status.trained_at, status.promoted_at) == ([1], None, None, None)
    assert (status.decision, status.damaged) == (None, [])


def test_the_champion_has_two_ages_and_the_last_decision_may_be_of_another_version(model):
    status = read_status(model, "a")
    assert (status.versions, status.champion, status.trained_at) == ([1, 2, 3], 2, CREATED)
    assert (status.decision.action, status.decision.after, status.decision.why) == ("keep", 3, "it may be luck")
    assert status.promoted_at is not None
    assert status.promoted_at <= status.decision.at
    assert status.damaged == []


def test_after_a_rollback_the_earlier_version_is_champion_since_then(model):
    entry = rollback(model, "a", why="users complained")
    status = read_status(model, "a")
    assert (status.champion, status.promoted_at, status.decision) == (1, entry.at, entry)


def test_a_damaged_champion_is_named_and_the_rest_is_told_all_the_same(model):
    path = Path(model.root, version_folder("a", 2), "model.pt")
    path.write_bytes(b"other weights")
    status = read_status(model, "a")
    assert (status.champion, status.trained_at, status.decision.why) == (2, None, "it may be luck")
    (told,) = status.damaged
    assert str(path) in told


def test_a_damaged_ledger_is_named_once_and_hides_what_it_said(model):
    path = Path(model.root, entry_path("a", 4))
    path.write_text("{")
    status = read_status(model, "a")
    assert (status.versions, status.champion, status.decision) == ([1, 2, 3], None, None)
    (told,) = status.damaged
    assert str(path) in told


def test_an_old_damaged_entry_does_not_hide_the_champion(model):
    Path(model.root, entry_path("a", 1)).write_text("{}")
    status = read_status(model, "a")
    assert (status.champion, len(status.damaged)) == (2, 1)


def test_objects_that_were_set_aside_are_listed(store):
    assert list_damaged(store) == []
    digest = store.put(b"whole")
    path = Path(store.root, store.object_path(digest))
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert not store.is_whole(digest)
    assert list_damaged(store) == [f"{store.root}/damaged/{digest}"]


def test_an_edited_alias_file_and_a_ledger_that_was_cut_back_with_its_head_are_told(model):
    for number in (2, 3):
        model.write(report_path("a", number), b"<html>")
    assert read_status(model, "a").damaged == []
    ledger = Path(model.root, entry_path("a", 3)).parent
    alias = ledger.parent / "aliases" / "champion.json"
    alias.write_text('{"version": 1, "entry": 2}')
    (told,) = read_status(model, "a").damaged
    assert told.startswith(f"{alias}: expected v2, as entry 2 of the ledger says, found v1, written by hand")
    repair(model, "a")
    for number in (3, 4):
        Path(model.root, entry_path("a", number)).unlink()
    second = Path(model.root, entry_path("a", 2)).read_bytes()
    (ledger / "head.json").write_text(json.dumps({"number": 2, "digest": hashlib.sha256(second).hexdigest()}))
    assert read_status(model, "a").damaged == [
        f"{model.root}/{report_path('a', 3)}: expected the decision that this reports to be in the ledger, found 2 entries, none on"
        " v3; put the ledger and its head back from a backup"
    ]
