import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from refit.errors import ConflictError, SettingsError, StoreError
from refit.refs import SavedModel
from refit.registry.ledger import append_entry, entry_path, load_ledger
from refit.registry.versions import (
    add_version,
    check_version,
    find_edited,
    find_saved,
    find_version,
    list_aliases,
    list_earlier,
    list_models,
    list_versions,
    load_part,
    locate,
    move_alias,
    read_alias,
    read_files,
    read_record,
    read_version,
    repair,
    resolve_reference,
    rollback,
    version_folder,
)
from refit.store.store import Store


@pytest.fixture(params=["disk", "memory"])
def any_store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store")


def add_versions(store: Store, num_versions: int) -> Store:
    """The store with versions of model `a` that know the digests of their files."""
    for _ in range(num_versions):
        weights = random.randbytes(100)
        record = {"files": {"model.pt": hashlib.sha256(weights).hexdigest()}}
        add_version(store, "a", {"model.pt": weights}, record)
    return store


def promote(store: Store, version: int, alias: str = "champion") -> None:
    move_alias(store, "a", version, expected=read_alias(store, "a", alias), why=f"v{version} is better", alias=alias)


def alias_file(store: Store, alias: str = "champion") -> Path:
    return Path(store.root) / f"models/a/aliases/{alias}.json"


def test_versions_are_numbered_from_one_for_each_model(any_store):
    assert list_models(any_store) == []
    assert list_versions(any_store, "a") == []
    assert [add_version(any_store, "a", {"x": b"1"}, {}) for _ in range(3)] == [1, 2, 3]
    assert add_version(any_store, "b", {"x": b"1"}, {}) == 1
    assert list_versions(any_store, "a") == [1, 2, 3]
    assert list_models(any_store) == ["a", "b"]


def test_ten_comes_after_nine(any_store):
    for number in range(1, 12):
        assert add_version(any_store, "a", {"x": b""}, {}) == number
    assert list_versions(any_store, "a") == list(range(1, 12))
    assert find_version(any_store, "a") == version_folder("a", 11)


def test_a_version_holds_its_files_and_never_changes(any_store):
    number = add_version(any_store, "a", {"x": b"first", "y": b""}, {})
    add_version(any_store, "a", {"x": b"second"}, {})
    assert any_store.read(f"{version_folder('a', number)}/x") == b"first"


def test_a_number_is_not_given_again_while_a_later_version_is_there(store):
    for _ in range(3):
        add_version(store, "a", {"x": b""}, {})
    shutil.rmtree(Path(store.root) / "models/a/v2")
    assert add_version(store, "a", {"x": b""}, {}) == 4
    assert list_versions(store, "a") == [1, 3, 4]


def test_a_reference_is_a_name_or_a_name_with_its_version(any_store):
    for _ in range(2):
        add_version(any_store, "a", {"x": b""}, {})
    assert find_version(any_store, "a") == "models/a/v2"
    assert find_version(any_store, "a@v1") == "models/a/v1"
    assert find_version(any_store, "a@1") == "models/a/v1"


def test_a_name_alone_means_the_newest_version_or_the_alias_that_is_asked_for(any_store):
    for _ in range(2):
        add_version(any_store, "a", {"x": b""}, {"files": {}})
    with pytest.raises(
        StoreError, match=r"a@champion: expected a version of 'a' in .*, found no champion; .*; `refit promote a@v2` makes one"
    ):
        resolve_reference(any_store, "a", "champion")
    move_alias(any_store, "a", 1, expected=None, why="")
    found = [resolve_reference(any_store, *wanted) for wanted in (("a",), ("a", "champion"), ("a@v2", "champion"), ("a@champion",))]
    assert found == [("a", 2), ("a", 1), ("a", 2), ("a", 1)]


def test_an_unknown_model_is_refused_with_those_there_are(any_store):
    with pytest.raises(StoreError, match=r"b: expected a model in .*, found no 'b'; models there: none$"):
        find_version(any_store, "b")
    add_version(any_store, "a", {"x": b""}, {})
    add_version(any_store, "c", {"x": b""}, {})
    with pytest.raises(StoreError, match=r"b@v1: expected a model in .*, found no 'b'; models there: a, c"):
        find_version(any_store, "b@v1")


@pytest.mark.parametrize("wanted", ["v3", "v0", "v01", "vv1", "latest", "-1"])
def test_an_unknown_version_is_refused_with_those_there_are(any_store, wanted):
    for _ in range(2):
        add_version(any_store, "a", {"x": b""}, {})
    with pytest.raises(
        StoreError, match=rf"a@{wanted}: expected a version of 'a' in .*, found no {wanted}; versions there: v1, v2"
    ):
        find_version(any_store, f"a@{wanted}")


def test_other_things_in_a_models_folder_are_no_versions(store):
    add_version(store, "a", {"x": b""}, {})
    for name in ("notes", "v2.bak", "vx", ".writing-v3"):
        (Path(store.root) / "models/a" / name).mkdir()
    (Path(store.root) / "models/a/v9").write_text("a file")
    (Path(store.root) / "models/readme.txt").write_text("a file")
    assert list_versions(store, "a") == [1]
    assert list_models(store) == ["a"]


def test_a_version_that_failed_halfway_is_not_seen_and_the_next_gets_a_number(any_store):
    add_version(any_store, "a", {"x": b""}, {})
    with pytest.raises(TypeError):
        add_version(any_store, "a", {"x": b"", "y": "text where bytes belong"}, {})
    assert list_versions(any_store, "a") == [1]
    assert find_version(any_store, "a") == "models/a/v1"
    number = add_version(any_store, "a", {"x": b"whole"}, {})
    assert list_versions(any_store, "a") == [1, number]
    assert any_store.read(f"{find_version(any_store, 'a')}/x") == b"whole"


SAVE = """
import sys
from refit.registry.versions import add_version
from refit.store.store import Store
input()
for i in range(5):
    content = f"{sys.argv[2]} {i}"
    print(add_version(Store(sys.argv[1]), "a", {"x": content.encode()}, {}), content, sep="\\t")
"""


def test_processes_that_save_at_once_get_versions_of_their_own(store):
    command = [sys.executable, "-c", SAVE, store.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(n)], **pipes) for n in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line.split("\t") for process in processes for line in process.communicate(timeout=60)[0].splitlines()]
    saved = [(int(number), content) for number, content in lines]
    assert sorted(number for number, _ in saved) == list_versions(store, "a") == list(range(1, 21))
    assert all(store.read(f"{version_folder('a', number)}/x").decode() == content for number, content in saved)


def test_threads_that_save_at_once_in_an_object_store_get_versions_of_their_own():
    url = f"memory://{uuid.uuid4().hex}"
    barrier, saved = threading.Barrier(4), []

    def save(writer: int) -> None:
        barrier.wait()
        saved.extend((add_version(Store(url), "a", {"x": f"{writer} {i}".encode()}, {}), f"{writer} {i}") for i in range(5))

    threads = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(url)
    assert sorted(number for number, _ in saved) == list_versions(store, "a") == list(range(1, 21))
    assert all(store.read(f"{version_folder('a', number)}/x").decode() == content for number, content in saved)


def test_an_alias_that_was_never_set_names_nothing(any_store):
    assert read_alias(any_store, "a") is None
    add_versions(any_store, 1)
    assert read_alias(any_store, "a") is None
    with pytest.raises(StoreError, match=r"a@champion: expected a version .* versions there: v1; aliases there: none; "):
        find_version(any_store, "a@champion")


def test_a_promotion_moves_the_champion_and_the_ledger_says_why(any_store):
    add_versions(any_store, 2)
    move_alias(any_store, "a", 1, expected=None, why="the first")
    moved = move_alias(any_store, "a", 2, expected=1, why="it is better", details={"difference": 0.1})
    assert read_alias(any_store, "a") == 2
    assert find_version(any_store, "a@champion") == "models/a/v2"
    assert load_ledger(any_store, "a")[-1] == moved
    assert (moved.action, moved.alias, moved.before, moved.after, moved.why) == ("promote", "champion", 1, 2, "it is better")
    assert moved.details == {"difference": 0.1}


def test_an_alias_is_a_small_file_that_other_programs_can_read(store):
    add_versions(store, 1)
    promote(store, 1)
    assert json.loads(alias_file(store).read_text()) == {"version": 1, "entry": 1}


def test_aliases_move_apart_from_one_another(any_store):
    add_versions(any_store, 3)
    promote(any_store, 1)
    promote(any_store, 3, "shadow")
    promote(any_store, 2)
    assert [read_alias(any_store, "a", alias) for alias in ("champion", "shadow")] == [2, 3]
    assert find_version(any_store, "a@shadow") == "models/a/v3"
    with pytest.raises(StoreError, match=r"a@other: .*found no other; .*; aliases there: champion, shadow"):
        find_version(any_store, "a@other")
    rollback(any_store, "a", "v2 is slow")
    assert [read_alias(any_store, "a", alias) for alias in ("champion", "shadow")] == [1, 3]


def test_aliases_are_listed_with_the_moves_that_set_them_the_champion_first(any_store):
    add_versions(any_store, 2)
    assert list_aliases(any_store, "a") == {}
    for version, alias in [(1, "shadow"), (1, "before"), (2, "before"), (2, "champion")]:
        promote(any_store, version, alias)
    found = list_aliases(any_store, "a")
    assert [(alias, entry.after, entry.number) for alias, entry in found.items()] == [
        ("champion", 2, 4),
        ("before", 2, 3),
        ("shadow", 1, 1),
    ]


def test_other_files_beside_the_aliases_are_none(store):
    add_versions(store, 1)
    promote(store, 1)
    for name in ("notes.txt", "v2.json", "Shadow.json"):
        (alias_file(store).parent / name).write_text("not mine")
    assert list(list_aliases(store, "a")) == ["champion"]
    with pytest.raises(StoreError, match=r"; aliases there: champion; take one of these$"):
        find_version(store, "a@other")


def test_a_champion_whose_folder_is_gone_is_not_found(store):
    add_versions(store, 2)
    promote(store, 2)
    (Path(store.root) / "models/a/v2").rename(Path(store.root) / "gone")
    with pytest.raises(StoreError, match=r"a@champion: expected a version of 'a' in .*, found no v2; versions there: v1"):
        find_version(store, "a@champion")


def test_what_is_saved_after_a_champion_was_deleted_is_not_taken_for_it(store):
    add_versions(store, 2)
    promote(store, 2)
    append_entry(store, "a", action="keep", why="no better", before=2, after=1)
    for number in (1, 2):
        (Path(store.root) / f"models/a/v{number}").rename(Path(store.root) / f"gone{number}")
    assert add_version(store, "a", {"x": b"other"}, {}) == 3
    assert read_alias(store, "a") == 2
    with pytest.raises(StoreError, match=r"a@champion: expected a version of 'a' in .*, found no v2; versions there: v3"):
        find_version(store, "a@champion")


def test_the_number_of_a_version_that_was_turned_down_and_deleted_is_not_given_again(store):
    add_versions(store, 1)
    promote(store, 1)
    add_versions(store, 1)
    append_entry(store, "a", action="keep", why="no better", before=1, after=2)
    (Path(store.root) / "models/a/v2").rename(Path(store.root) / "gone")
    assert add_version(store, "a", {"x": b"other"}, {}) == 3


def test_nothing_is_saved_under_a_ledger_that_cannot_be_read(store):
    add_versions(store, 1)
    promote(store, 1)
    store.write(entry_path("a", 1), b"{")
    with pytest.raises(StoreError, match=r"000001\.json: expected entry 1 of the ledger"):
        add_version(store, "a", {"x": b""}, {})
    assert list_versions(store, "a") == [1]


def save_under(store: Store, key: str | None) -> int:
    record = {"key": key, "files": {"x": hashlib.sha256(b"1").hexdigest()}}
    return add_version(store, "a", {"x": b"1"}, record)


def test_what_was_saved_under_a_key_is_found_only_as_long_as_it_is_the_newest(any_store):
    assert find_saved(any_store, "a", "key") is None
    save_under(any_store, None)
    assert find_saved(any_store, "a", "key") is None
    number = save_under(any_store, "key")
    assert [find_saved(any_store, "a", key) for key in ("key", "other")] == [number, None]
    save_under(any_store, "other")
    assert find_saved(any_store, "a", "key") is None


@pytest.mark.parametrize("file", ["x", "version.json"])
def test_what_was_saved_under_a_key_is_not_found_where_it_is_damaged(store, file):
    store.write(f"{version_folder('a', save_under(store, 'key'))}/{file}", b"{")
    assert find_saved(store, "a", "key") is None


def test_a_part_of_a_version_is_its_json(any_store):
    add_version(any_store, "a", {"metrics.json": b'{"test": [0.5]}', "log.json": b"{"}, {})
    assert load_part(any_store, "a", 1, "metrics") == {"test": [0.5]}
    with pytest.raises(StoreError, match=r"a/v1/log\.json: expected JSON, found a damaged file: .*; put it back from a backup"):
        load_part(any_store, "a", 1, "log")
    with pytest.raises(StoreError, match=r"models/a/v1/settings\.json: expected a file of the store, found none"):
        load_part(any_store, "a", 1, "settings")


def test_a_version_s_handle_says_where_it_is_in_this_store_and_what_its_weights_are(any_store):
    for digest in ("1" * 64, "2" * 64):
        add_version(any_store, "a", {}, {"weights_digest": digest})
    model = read_version(any_store, "a", 1)
    assert model == SavedModel(name="a", version=1, path=any_store.location("models/a/v1"), weights_digest="1" * 64)
    assert locate(model.model_copy(update={"path": "/elsewhere"}), any_store) == model
    record = {"weights_digest": "1" * 64, "held_back": {"weights_digest": "3" * 64}}
    add_version(any_store, "b", {}, record)
    assert read_version(any_store, "b", 1).held_back_digest == "3" * 64
    with pytest.raises(StoreError, match=r"a@v3: expected a version of 'a' in .*, found no v3; versions there: v1, v2"):
        read_version(any_store, "a", 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "JSON, found a damaged file: .*"),
        (b'{"name": "a", "version": 1}', "`weights_digest`, found none"),
        (b'{"name": "a", "weights_digest": "1"}', "a version's record with name and number, found other"),
        (b'{"version": 1, "weights_digest": "1"}', "a version's record with name and number, found other"),
        (b"[1]", "a version's record with name and number, found other"),
    ],
)
def test_a_version_whose_record_is_damaged_has_no_handle(any_store, content, expected):
    add_version(any_store, "a", {}, {})
    any_store.write("models/a/v1/version.json", content)
    with pytest.raises(StoreError, match=rf"v1/version\.json: expected {expected}.*; put it back from a backup"):
        read_version(any_store, "a", 1)


def test_a_record_names_its_version_so_that_swapped_and_renamed_folders_are_refused(store):
    folder = Path(store.root) / "models/a"
    for _ in range(3):
        add_version(store, "a", {}, {"files": {}, "weights_digest": "1" * 64, "key": "key"})
    for number in (1, 2, 3):
        assert read_record(store, "a", number).items() >= {"name": "a", "version": number}.items()
        check_version(store, "a", number)
    for old, new in (("v2", "t"), ("v3", "v2"), ("t", "v3")):
        (folder / old).rename(folder / new)
    message = (
        rf"{folder}/v2/version\.json: expected the record of a@v2, found that of a@v3; put the folders back as they were, or take"
    )
    for read in (check_version, read_version, read_record):
        with pytest.raises(StoreError, match=message):
            read(store, "a", 2)
    assert find_saved(store, "a", "key") is None
    (folder / "v1").rename(folder / "v9")
    with pytest.raises(StoreError, match="expected the record of a@v9, found that of a@v1"):
        check_version(store, "a", 9)
    (folder / "v9").rename(folder / "v1")
    folder.rename(folder.with_name("b"))
    with pytest.raises(StoreError, match="expected the record of b@v1, found that of a@v1"):
        read_record(store, "b", 1)


@pytest.mark.parametrize("alias", ["v3", "3", "ledger", "A", "", "a/b", "../x", "-a", "a.json"])
def test_what_reads_as_a_version_or_a_path_is_no_alias(store, alias):
    add_versions(store, 1)
    with pytest.raises(
        SettingsError, match=rf"a@{re.escape(alias)}: expected an alias such as `champion`, found '{re.escape(alias)}'"
    ):
        move_alias(store, "a", 1, expected=None, why="it is better", alias=alias)
    assert load_ledger(store, "a") == []


def test_who_promotes_on_an_outdated_view_is_told_what_happened_meanwhile(any_store, monkeypatch):
    add_versions(any_store, 3)
    monkeypatch.setenv("LOGNAME", "ann")
    with pytest.raises(ConflictError, match=r"a@champion: expected v1, found that it was never set; compare with that one"):
        move_alias(any_store, "a", 2, expected=1, why="it is better")
    promote(any_store, 1)
    with pytest.raises(ConflictError, match=r"a@champion: expected no version, found v1, by ann@.* at .*: v1 is better; .* again"):
        move_alias(any_store, "a", 2, expected=None, why="it is better")
    promote(any_store, 3)
    with pytest.raises(ConflictError, match=r"a@champion: expected v1, found v3, by ann@.*: v3 is better; compare with that one"):
        move_alias(any_store, "a", 2, expected=1, why="it is better")
    assert [entry.after for entry in load_ledger(any_store, "a")] == [1, 3]


PROMOTE = """
import sys
from refit.errors import ConflictError
from refit.registry.versions import move_alias
from refit.store.store import Store
store, writer = Store(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    try:
        move_alias(store, "a", writer, expected=int(line), why=f"{writer} says so")
        print("won", flush=True)
    except ConflictError as error:
        print(error, flush=True)
"""


def test_of_processes_that_promote_at_once_one_wins_and_the_others_are_told_which(store):
    add_versions(store, 5)
    promote(store, 5)
    command = [sys.executable, "-c", PROMOTE, store.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {writer: subprocess.Popen([*command, str(writer)], **pipes) for writer in range(1, 5)}
    for num_moves in range(2, 12):
        champion = read_alias(store, "a")
        writers = [writer for writer in processes if writer != champion]
        for writer in writers:
            processes[writer].stdin.write(f"{champion}\n")
            processes[writer].stdin.flush()
        said = {writer: processes[writer].stdout.readline().strip() for writer in writers}
        (winner,) = (writer for writer in writers if said[writer] == "won")
        assert read_alias(store, "a") == winner
        expected = rf"a@champion: expected v{champion}, found v{winner}, by .*: {winner} says so; compare .* decide again"
        assert all(re.fullmatch(expected, said[writer]) for writer in writers if writer != winner)
        assert len(load_ledger(store, "a")) == num_moves
    for process in processes.values():
        process.communicate(timeout=30)


OPEN = """
import sys, time
from refit.registry.ledger import append_entry
from refit.store.store import Store
store = Store(sys.argv[1])
print("begins", flush=True)
while True:
    append_entry(store, "a", action="open", why="", after=1)
    time.sleep(0.001)
"""


def test_entries_that_move_nothing_do_not_come_between(store):
    add_versions(store, 2)
    process = subprocess.Popen([sys.executable, "-c", OPEN, store.url], stdout=subprocess.PIPE)
    process.stdout.readline()
    for turn in range(10):
        promote(store, 1 + turn % 2)
    process.kill()
    process.communicate(timeout=30)
    entries = load_ledger(store, "a")
    assert [entry.after for entry in entries if entry.action == "promote"] == [1, 2] * 5
    assert any(entry.action == "open" for entry in entries[1:-1])


def test_rollbacks_pop_what_promotions_pushed(any_store):
    """Against a stack, over random promotions and rollbacks."""
    add_versions(any_store, 4)
    promote(any_store, 1)
    chance, stack = random.Random(0), [1]
    for _ in range(40):
        if len(stack) > 1 and chance.random() < 0.5:
            before = stack.pop()
            entry = rollback(any_store, "a", "it is slow")
            assert (entry.action, entry.before, entry.after) == ("rollback", before, stack[-1])
        elif (version := chance.randint(1, 4)) != stack[-1]:
            stack.append(version)
            promote(any_store, version)
        assert read_alias(any_store, "a") == stack[-1]
    load_ledger(any_store, "a")


def test_the_versions_that_rollbacks_would_go_back_to_are_listed_in_turn(any_store):
    add_versions(any_store, 3)
    assert list(list_earlier(any_store, "a")) == []
    for version, alias in [(1, "champion"), (1, "shadow"), (3, "shadow"), (2, "champion")]:
        promote(any_store, version, alias)
    append_entry(any_store, "a", action="keep", why="no better", alias="champion", before=2, after=3)
    promote(any_store, 3)
    assert list(list_earlier(any_store, "a")) == [2, 1]
    rollback(any_store, "a", "it is slow")
    assert list(list_earlier(any_store, "a")) == [1]
    assert list(list_earlier(any_store, "a", "shadow")) == [1]


def test_a_promotion_to_where_the_alias_is_gives_rollback_nothing_to_undo(any_store):
    add_versions(any_store, 2)
    for version in (1, 2, 2):
        promote(any_store, version)
    assert rollback(any_store, "a", "it is slow").after == 1


def test_there_is_nothing_before_the_first_promotion(any_store):
    add_versions(any_store, 2)
    with pytest.raises(StoreError, match=r"a@champion: expected a version before the present one, found that it was never set"):
        rollback(any_store, "a", "it is slow")
    promote(any_store, 1)
    with pytest.raises(StoreError, match=r"a@champion: expected a version before .*, found only v1; promote another version"):
        rollback(any_store, "a", "it is slow")
    promote(any_store, 2)
    rollback(any_store, "a", "it is slow")
    with pytest.raises(StoreError, match=r"found only v1"):
        rollback(any_store, "a", "it is slow, too")
    assert read_alias(any_store, "a") == 1


@pytest.mark.parametrize("name", ["../a", "a/../a", "/a", "a/b", "..", "", "A", "a\n", "a" * 65])
def test_what_is_no_name_of_a_model_leads_nowhere(store, name):
    add_versions(store, 1)
    shutil.copytree(f"{store.root}/models/a", f"{store.root}/a")
    message = rf"expected the name of a model, found {re.escape(repr(name))}; use a-z, 0-9, _ and -"
    with pytest.raises(SettingsError, match=message):
        resolve_reference(store, f"{name}@v1")
    for act in (
        lambda: read_alias(store, name),
        lambda: move_alias(store, name, 1, expected=None, why=""),
        lambda: append_entry(store, name, action="keep", why=""),
        lambda: check_version(store, name, 1),
    ):
        with pytest.raises(SettingsError, match=message):
            act()
    assert not [*Path(store.root).rglob("ledger")]


def test_other_folders_beside_the_models_are_none(store):
    add_versions(store, 1)
    Path(store.root, "models", ".DS_Store").touch()
    Path(store.root, "models", "Backup of a", "v1").mkdir(parents=True)
    assert list_models(store) == ["a"]


def spoil(store: Store, version: int, file: str, content: bytes | None) -> Path:
    path = Path(store.root) / f"models/a/v{version}/{file}"
    path.unlink() if content is None else path.write_bytes(content)
    return path


DAMAGES = [
    ("model.pt", b"other", "expected bytes with the digest in version.json, found others"),
    ("model.pt", None, "expected a file of a saved version, found none"),
    ("version.json", None, "expected a file of a saved version, found none"),
    ("version.json", b"\xff", "expected JSON, found a damaged file: .*"),
    ("version.json", b"{garbage", "expected JSON, found a damaged file: .*"),
    ("version.json", b"{}", "expected a version's record with name and number, found other JSON"),
    ("version.json", b"[1]", "expected a version's record with name and number, found other JSON"),
    ("version.json", b'{"name": "a", "version": 1}', "expected `files`, their digests, found none"),
    ("version.json", b'{"name": "a", "version": 1, "files": 1}', "expected `files`, their digests, found none"),
]


def test_the_files_of_a_version_are_read_with_their_record_first(store):
    add_versions(store, 1)
    files = list(read_files(store, version_folder("a", 1)))
    assert [name for name, _ in files] == ["version.json", "model.pt"]
    assert all(data == store.read(f"{version_folder('a', 1)}/{name}") for name, data in files)


def test_a_record_that_names_files_elsewhere_is_damaged(store):
    add_versions(store, 1)
    for file in ("../v1/model.pt", "/etc/passwd", "..", ".hidden", ""):
        spoil(store, 1, "version.json", json.dumps({"name": "a", "version": 1, "files": {file: "0" * 64}}).encode())
        with pytest.raises(
            StoreError, match=rf"v1/version\.json: expected names of files in its own folder .*, found '{file}'; put"
        ):
            check_version(store, "a", 1)


@pytest.mark.parametrize(("file", "content", "found"), DAMAGES)
def test_a_damaged_version_is_named_and_neither_promoted_nor_rolled_back_to(store, file, content, found):
    add_versions(store, 2)
    check_version(store, "a", 1)
    promote(store, 1)
    promote(store, 2)
    path = spoil(store, 1, file, content)
    message = rf"{path}: {found}; put it back from a backup, or take another version"
    with pytest.raises(StoreError, match=message):
        check_version(store, "a", 1)
    with pytest.raises(StoreError, match=message):
        rollback(store, "a", "it is slow")
    with pytest.raises(StoreError, match=message):
        promote(store, 1)
    assert read_alias(store, "a") == 2
    assert len(load_ledger(store, "a")) == 2


def test_a_version_that_is_not_there_cannot_be_promoted(any_store):
    add_versions(any_store, 1)
    with pytest.raises(StoreError, match=r"a@v2: expected a version of 'a' in .*, found no v2; versions there: v1"):
        move_alias(any_store, "a", 2, expected=None, why="it is better")
    assert load_ledger(any_store, "a") == []


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"\xff", b'{"version": 1, "entry": 1}'],
    ids=["missing", "empty", "half", "no text", "behind"],
)
def test_an_alias_file_that_does_not_say_what_the_ledger_does_is_put_right(store, content):
    add_versions(store, 3)
    promote(store, 1)
    promote(store, 2)
    right = alias_file(store).read_bytes()
    alias_file(store).unlink() if content is None else alias_file(store).write_bytes(content)
    assert read_alias(store, "a") == 2
    assert alias_file(store).read_bytes() == right
    alias_file(store).unlink() if content is None else alias_file(store).write_bytes(content)
    assert rollback(store, "a", "it is slow").after == 1


def test_an_alias_file_that_was_edited_moves_nothing_and_stays_until_it_is_repaired_or_another_version_promoted(store):
    add_versions(store, 3)
    promote(store, 1)
    promote(store, 2)
    assert find_edited(store, "a") == []
    for mend in (lambda: repair(store, "a"), lambda: promote(store, 3)):
        alias_file(store).write_text('{"version": 3, "entry": 2}')
        assert read_alias(store, "a") == 2
        (told,) = find_edited(store, "a")
        assert told == (
            f"{alias_file(store)}: expected v2, as entry 2 of the ledger says, found v3, written by hand; to make v3 the champion,"
            " `refit promote a@v3`, to keep v2, `refit repair a`"
        )
        mend()
        assert find_edited(store, "a") == []
    assert read_alias(store, "a") == 3


def test_a_rollback_to_a_version_that_is_gone_says_what_can_be_done(store):
    add_versions(store, 2)
    promote(store, 1)
    promote(store, 2)
    shutil.rmtree(Path(store.root, version_folder("a", 1)))
    with pytest.raises(StoreError, match=r"a@v1: .*found no v1; .*; put v1 back from a backup, or take one of these$"):
        rollback(store, "a", "it is slow")


def test_a_move_stands_where_only_the_alias_file_cannot_be_written(store):
    add_versions(store, 2)
    promote(store, 1)
    alias_file(store).unlink()
    alias_file(store).mkdir()
    promote(store, 2)
    assert read_alias(store, "a") == 2
    alias_file(store).rmdir()
    assert read_alias(store, "a") == 2
    assert json.loads(alias_file(store).read_text()) == {"version": 2, "entry": 2}


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(b"{")], ids=["gone", "torn"])
def test_a_ledger_that_has_lost_the_newest_move_is_not_believed_and_the_alias_file_outlives_its_repair(store, spoil, has_head):
    add_versions(store, 2)
    promote(store, 1)
    promote(store, 2)
    lost = Path(store.root) / entry_path("a", 2)
    spoil(lost)
    if not has_head:
        lost.with_name("head.json").unlink()
    for act in (read_alias, lambda *given: rollback(*given, "it is slow")):
        with pytest.raises(StoreError, match=r"(000002|head)\.json: expected .* by `refit repair a`"):
            act(store, "a")
    for _ in range(2):
        repair(store, "a")
        assert read_alias(store, "a") == 2
    moves = [(entry.before, entry.after) for entry in load_ledger(store, "a") if entry.alias == "champion"]
    assert moves == [(None, 1), (1, 2)]
    assert rollback(store, "a", "it is slow").after == 1


def test_an_edited_move_is_not_believed_and_repaired_by_the_alias_file(store):
    add_versions(store, 2)
    promote(store, 1)
    promote(store, 2)
    edited = Path(store.root) / entry_path("a", 2)
    edited.write_text(edited.read_text().replace('"after": 2', '"after": 1'))
    with pytest.raises(StoreError, match=r"000002\.json: expected entry 2 of the ledger, found other bytes than were written"):
        read_alias(store, "a")
    lost, (move,) = repair(store, "a")
    assert (lost, move.before, move.after, move.why) == ([2], 1, 2, "entry 2, which set it, is lost")
    assert read_alias(store, "a") == 2


def test_a_ledger_that_has_lost_all_moves_is_repaired_by_the_alias_file(store):
    add_versions(store, 1)
    promote(store, 1)
    (Path(store.root) / entry_path("a", 1)).write_bytes(b"{")
    lost, (move,) = repair(store, "a")
    assert (lost, move.before, move.after, move.number) == ([1], None, 1, 3)
    assert read_alias(store, "a") == 1


def test_a_repair_of_what_is_whole_changes_nothing(store):
    add_versions(store, 2)
    promote(store, 1)
    before = {path: path.read_bytes() for path in Path(store.root).rglob("*.json")}
    assert repair(store, "a") == ([], [])
    assert {path: path.read_bytes() for path in Path(store.root).rglob("*.json")} == before


def test_an_alias_file_without_any_ledger_is_not_believed(store):
    add_versions(store, 1)
    promote(store, 1)
    entry = Path(store.root) / entry_path("a", 1)
    for file in (entry, entry.with_name("head.json")):
        file.unlink()
        with pytest.raises(StoreError, match=r"(000001|head)\.json: expected .* by `refit repair a`"):
            read_alias(store, "a")


def test_what_was_decided_without_a_move_leaves_the_champion(any_store):
    add_versions(any_store, 2)
    promote(any_store, 1)
    append_entry(any_store, "a", action="keep", why="no better", alias="champion", before=1, after=2)
    assert read_alias(any_store, "a") == 1
    with pytest.raises(StoreError, match=r"found only v1"):
        rollback(any_store, "a", "it is slow")
