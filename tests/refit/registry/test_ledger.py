import getpass
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from refit.errors import ConflictError, SettingsError, StoreError
from refit.registry import ledger as ledger_module
from refit.registry.ledger import (
    LostEntryError,
    append_entry,
    entry_path,
    find_highest,
    find_newest,
    load_ledger,
    read_back,
    record_opening,
    repair_ledger,
)
from refit.store.store import Store


@pytest.fixture(params=["disk", "memory"])
def any_store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store")


@pytest.fixture
def ledger(store) -> list[Path]:
    """Four entries, and the file of each."""
    for number in range(1, 5):
        append_entry(store, "a", action="keep", why=f"reason {number}", before=1, after=number)
    return [Path(store.root) / entry_path("a", number) for number in range(1, 5)]


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_model_that_nothing_was_decided_of_has_no_entries(any_store):
    assert load_ledger(any_store, "a") == []
    assert find_newest(any_store, "a") == 0
    assert list(read_back(any_store, "a", 0)) == []


def test_an_entry_says_who_decided_what_when_and_on_what_grounds(any_store, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    details = {"score": "accuracy", "difference": 0.02, "worse": [{"name": "class a", "bound": None}]}
    moved = append_entry(any_store, "a", action="promote", why="it is better", alias="champion", before=1, after=2, details=details)
    (entry,) = load_ledger(any_store, "a")
    assert entry == moved
    assert entry.who == f"ann@{socket.gethostname()}"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry.at)
    assert abs(datetime.fromisoformat(entry.at) - datetime.now(UTC)) < timedelta(minutes=1)
    assert (entry.action, entry.alias, entry.before, entry.after, entry.why) == ("promote", "champion", 1, 2, "it is better")
    assert entry.details == details


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no entry")])
def test_a_user_without_a_name_is_known_by_number(store, monkeypatch, error):
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)
    assert append_entry(store, "a", action="keep", why="no better").who == f"{os.getuid()}@{socket.gethostname()}"


@pytest.mark.parametrize("action", ["open", "promote", "keep", "rollback"])
def test_every_kind_of_decision_has_its_entry(any_store, action):
    append_entry(any_store, "a", action=action, why="a reason")
    assert [entry.action for entry in load_ledger(any_store, "a")] == [action]


def test_entries_are_files_that_people_can_find_and_read(store):
    append_entry(store, "a", action="keep", why="no better")
    lines = Path(store.root, "models/a/ledger/000001.json").read_text().splitlines()
    assert ' "why": "no better",' in lines


def test_the_highest_version_that_was_spoken_of_is_never_forgotten(any_store):
    """By number, whichever way an entry speaks of it, and whatever comes later."""
    assert find_highest(any_store, "a") == 0
    spoken_of = [(None, None, 0), (None, 2, 2), (5, None, 5), (None, None, 5), (3, 4, 5), (6, 1, 6)]
    for before, after, highest in spoken_of:
        append_entry(any_store, "a", action="keep", why="no better", before=before, after=after)
        assert find_highest(any_store, "a") == highest
    assert [entry.highest for entry in load_ledger(any_store, "a")] == [0, 2, 5, 5, 5, 6]


def test_each_entry_has_the_digest_of_the_one_before(any_store):
    for _ in range(12):
        append_entry(any_store, "a", action="keep", why="no better")
    entries = load_ledger(any_store, "a")
    assert [entry.number for entry in entries] == list(range(1, 13))
    digests = [hashlib.sha256(any_store.read(entry_path("a", number))).hexdigest() for number in range(1, 13)]
    assert [entry.previous for entry in entries] == ["", *digests[:-1]]


def test_the_entries_of_one_model_are_none_of_anothers(any_store):
    append_entry(any_store, "a", action="keep", why="of a")
    append_entry(any_store, "b", action="keep", why="of b")
    assert [entry.why for entry in load_ledger(any_store, "b")] == ["of b"]


def test_other_files_beside_the_entries_are_none(store, ledger):
    for name in ("notes.txt", "000009.json.bak", "7.json"):
        (ledger[0].parent / name).write_text("not mine")
    assert len(load_ledger(store, "a")) == 4


def test_an_entry_that_was_edited_is_named(store, ledger):
    edit(ledger[1], why="another reason")
    message = rf"{ledger[1]}: expected entry 2 of the ledger, found other bytes than were written; put it back from a backup, or"
    with pytest.raises(LostEntryError, match=message) as lost:
        load_ledger(store, "a")
    assert lost.value.number == 2


@pytest.mark.parametrize("read", [load_ledger, find_highest, lambda store, name: next(read_back(store, name, 4))])
def test_a_last_entry_that_was_edited_or_removed_is_named_by_every_reader(store, ledger, read):
    edit(ledger[3], after=1)
    with pytest.raises(LostEntryError, match=rf"{ledger[3]}: expected entry 4 of the ledger, found other bytes than were written"):
        read(store, "a")
    ledger[3].unlink()
    with pytest.raises(LostEntryError, match=rf"{ledger[3]}: expected entry 4 of the ledger, found none; put it back"):
        read(store, "a")


def test_a_ledger_of_which_all_entries_were_removed_is_not_taken_for_a_new_one(store, ledger):
    for file in ledger:
        file.unlink()
    for act in (lambda: find_highest(store, "a"), lambda: append_entry(store, "a", action="keep", why="")):
        with pytest.raises(LostEntryError, match=r"000004\.json: expected entry 4 of the ledger, found none"):
            act()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_head_that_is_missing_or_damaged_is_named_and_written_anew_by_repair(store, ledger, content):
    head = ledger[0].parent / "head.json"
    head.unlink() if content is None else head.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{head}: expected number and digest of the newest entry, found .*`refit repair a`"):
        load_ledger(store, "a")
    assert repair_ledger(store, "a") == []
    assert [entry.number for entry in load_ledger(store, "a")] == [1, 2, 3, 4]
    edit(ledger[3], after=1)
    with pytest.raises(LostEntryError, match=r"000004\.json"):
        load_ledger(store, "a")


def test_a_writer_that_was_killed_before_it_wrote_the_head_has_written_its_entry(store, ledger):
    head = ledger[0].parent / "head.json"
    before = head.read_bytes()
    append_entry(store, "a", action="keep", why="reason 5")
    head.write_bytes(before)
    assert [entry.number for entry in load_ledger(store, "a")] == [1, 2, 3, 4, 5]
    append_entry(store, "a", action="keep", why="reason 6")
    assert json.loads(head.read_text())["number"] == 6
    assert [entry.number for entry in load_ledger(store, "a")] == [1, 2, 3, 4, 5, 6]


def test_an_entry_without_a_head_has_to_follow_the_one_that_has(store, ledger):
    head = ledger[0].parent / "head.json"
    before = head.read_bytes()
    append_entry(store, "a", action="keep", why="reason 5")
    head.write_bytes(before)
    edit(Path(store.root) / entry_path("a", 5), previous="0" * 64)
    with pytest.raises(LostEntryError, match=r"000005\.json: expected entry 5 of the ledger, found other bytes"):
        next(read_back(store, "a", 5))


@pytest.mark.usefixtures("ledger")
def test_an_entry_stands_though_the_head_cannot_be_written(store, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", fail)
        assert append_entry(store, "a", action="keep", why="reason 5").number == 5
    assert [entry.number for entry in load_ledger(store, "a")] == [1, 2, 3, 4, 5]


def test_what_is_no_name_of_a_model_has_no_ledger(store):
    with pytest.raises(SettingsError, match=r"expected the name of a model, found '\.\./a'; use a-z"):
        append_entry(store, "../a", action="keep", why="no better")


def test_the_first_entry_follows_none(store, ledger):
    for file in (*ledger[1:], ledger[0].parent / "head.json"):
        file.unlink()
    assert [entry.number for entry in load_ledger(store, "a")] == [1]
    edit(ledger[0], previous="0" * 64)
    with pytest.raises(LostEntryError, match=r"000001\.json: expected entry 1 of the ledger, found other bytes"):
        load_ledger(store, "a")


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


@pytest.mark.parametrize(
    ("spoilt", "spoil"),
    [
        ([4], tear),
        ([4], Path.unlink),
        ([4], lambda file: edit(file, after=1)),
        ([2], tear),
        ([2], lambda file: edit(file, after=1)),
        ([1, 2, 3, 4], Path.unlink),
        ([2, 3], tear),
        ([1, 3], Path.unlink),
    ],
)
def test_after_a_repair_all_other_entries_are_read_and_their_changes_are_found(store, ledger, spoilt, spoil):
    for number in spoilt:
        spoil(ledger[number - 1])
    with pytest.raises(LostEntryError):
        load_ledger(store, "a")
    assert repair_ledger(store, "a") == spoilt
    rest = [number for number in (1, 2, 3, 4) if number not in spoilt]
    assert [entry.number for entry in load_ledger(store, "a")] == [*rest, 5]
    assert repair_ledger(store, "a") == []
    assert append_entry(store, "a", action="keep", why="goes on").number == 6
    told = load_ledger(store, "a")[-2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told.at)
    assert (told.action, told.why) == ("repair", f"lost: {', '.join(f'entry {number}' for number in spoilt)}")
    for number in [*rest, 5, 6]:
        file = Path(store.root) / entry_path("a", number)
        before = file.read_bytes()
        edit(file, why="another reason")
        with pytest.raises(LostEntryError, match=rf"{file}: expected entry {number} of the ledger, found other bytes"):
            load_ledger(store, "a")
        file.write_bytes(before)


def test_only_a_repair_says_what_is_lost(store, ledger):
    append_entry(store, "a", action="keep", why="reason 5", details={"lost": {"2": ""}})
    edit(ledger[1], why="another reason")
    with pytest.raises(LostEntryError, match=r"000002\.json: expected entry 2 of the ledger, found other bytes"):
        load_ledger(store, "a")


def test_a_ledger_is_repaired_more_than_once(store, ledger):
    tear(ledger[1])
    assert repair_ledger(store, "a") == [2]
    append_entry(store, "a", action="keep", why="reason 6")
    tear(ledger[3])
    assert repair_ledger(store, "a") == [4]
    assert [entry.number for entry in load_ledger(store, "a")] == [1, 3, 5, 6, 7]


def test_an_entry_that_was_removed_is_named(store, ledger):
    ledger[1].unlink()
    with pytest.raises(StoreError, match=rf"{ledger[1]}: expected entry 2 of the ledger, found none; put it back from a backup"):
        load_ledger(store, "a")


def test_an_entry_that_is_there_but_cannot_be_read_is_told_from_one_that_is_gone(store, ledger):
    ledger[1].unlink()
    ledger[1].mkdir()
    with pytest.raises(
        StoreError, match=rf"{ledger[1].name}: expected a store that can be read and written, found: Is a directory"
    ):
        load_ledger(store, "a")


def test_a_head_that_is_there_but_cannot_be_read_is_told_from_one_that_is_gone(store, ledger):
    head = ledger[0].parent / "head.json"
    head.unlink()
    head.mkdir()
    with pytest.raises(StoreError, match=rf"{head}: expected a store that can be read and written, found: Is a directory"):
        load_ledger(store, "a")


def test_an_entry_that_was_put_between_is_named_though_all_numbers_are_right(store, ledger):
    for number in (4, 3):
        edit(ledger[number - 1], number=number + 1)
        ledger[number - 1].rename(Path(store.root) / entry_path("a", number + 1))
    ledger[2].write_bytes(ledger[1].read_bytes())
    edit(ledger[2], number=3, previous=hashlib.sha256(ledger[1].read_bytes()).hexdigest())
    with pytest.raises(LostEntryError, match=r"000005\.json: expected entry 5 of the ledger, found other bytes than were written"):
        load_ledger(store, "a")


def test_a_first_entry_that_was_removed_is_named(store, ledger):
    ledger[0].unlink()
    with pytest.raises(StoreError, match=rf"{ledger[0]}: expected entry 1 of the ledger, found none"):
        load_ledger(store, "a")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Invalid JSON"),
        (b'{"number": 2}', "Field required"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "Input should be"),
    ],
)
def test_an_entry_that_is_none_is_named(store, ledger, content, found):
    ledger[1].write_bytes(content)
    with pytest.raises(StoreError, match=rf"{ledger[1]}: expected entry 2 of the ledger, found {found}.*; put it back"):
        load_ledger(store, "a")


def test_an_entry_in_the_place_of_another_is_named(store, ledger):
    ledger[2].write_bytes(ledger[0].read_bytes())
    with pytest.raises(StoreError, match=rf"{ledger[2]}: expected entry 3 of the ledger, found entry 1; put it back"):
        load_ledger(store, "a")


def test_nothing_is_appended_to_an_entry_that_is_damaged(store, ledger):
    ledger[3].write_bytes(b"{")
    with pytest.raises(StoreError, match=r"000004\.json: expected entry 4 of the ledger"):
        append_entry(store, "a", action="keep", why="no better")
    assert find_newest(store, "a") == 4


def test_reading_back_stops_where_the_reader_does(store, ledger):
    ledger[0].write_bytes(b"damaged")
    entries = read_back(store, "a", 4)
    assert [next(entries).number for _ in range(3)] == [4, 3, 2]
    with pytest.raises(StoreError, match=r"000001\.json"):
        next(entries)


def test_reading_back_asks_for_more_entries_each_time_up_to_a_limit_and_for_each_once(any_store, monkeypatch):
    for _ in range(21):
        append_entry(any_store, "a", action="keep", why="no better")
    asked, read_together = [], any_store.read_together
    monkeypatch.setattr(ledger_module, "READ_TOGETHER", 8)
    monkeypatch.setattr(any_store, "read", None)
    monkeypatch.setattr(any_store, "read_together", lambda paths: asked.append(len(paths)) or read_together(paths))
    assert next(read_back(any_store, "a", 21)).number == 21
    assert asked == [1, 1], "the head and the newest entry"
    assert len(list(read_back(any_store, "a", 21))) == 21
    assert asked[2:] == [1, 1, 4, 8, 8]


def test_an_expected_number_that_is_taken_is_a_conflict(any_store):
    append_entry(any_store, "a", action="keep", why="first", expected_number=1)
    with pytest.raises(ConflictError, match=r"000001\.json: expected to write this entry, found one by another process; .* decide"):
        append_entry(any_store, "a", action="keep", why="second", expected_number=1)
    assert [entry.why for entry in load_ledger(any_store, "a")] == ["first"]


APPEND = """
import sys
from refit.registry.ledger import append_entry
from refit.store.store import Store
input()
for i in range(10):
    append_entry(Store(sys.argv[1]), "a", action="keep", why=f"{sys.argv[2]} {i}")
"""


def test_processes_that_append_at_once_make_one_chain(store):
    command = [sys.executable, "-c", APPEND, store.url]
    processes = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, text=True) for n in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    entries = load_ledger(store, "a")
    assert len(entries) == 40
    for writer in range(4):
        assert [entry.why for entry in entries if entry.why.startswith(f"{writer} ")] == [f"{writer} {i}" for i in range(10)]
    assert store.names("tmp") == []


def test_reading_back_fails_no_sooner_than_at_the_entry_that_is_damaged(any_store):
    for number in range(1, 41):
        append_entry(any_store, "a", action="keep", why="no better", after=number)
    any_store.write(entry_path("a", 30), b"{")
    with pytest.raises(StoreError, match=r"000030\.json: expected entry 30 of the ledger, found"):
        list(read_back(any_store, "a", 40))
    entries = read_back(any_store, "a", 40)
    assert [next(entries).number for _ in range(10)] == [*range(40, 30, -1)]


def test_test_rows_know_how_many_versions_they_have_judged(any_store):
    assert [record_opening(any_store, "a", version, "1" * 64) for version in (1, 2, 4)] == [0, 1, 2]
    assert record_opening(any_store, "a", 5, "2" * 64) == 0
    append_entry(any_store, "a", action="keep", why="no better", after=5, details={"test_rows": "1" * 64})
    assert record_opening(any_store, "a", 6, "1" * 64) == 3
    assert record_opening(any_store, "a", 6, "2" * 64) == 1
    assert record_opening(any_store, "b", 1, "1" * 64) == 0


def test_a_version_that_is_judged_again_after_a_crash_counts_once(any_store):
    for _ in range(2):
        assert [record_opening(any_store, "a", version, "1" * 64) for version in (1, 2)] == [0, 1]
    assert [(entry.action, entry.after) for entry in load_ledger(any_store, "a")] == [("open", 1), ("open", 2)]
