import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from refit.errors import StoreError
from refit.registry import (
    add_version,
    find_version,
    list_models,
    list_versions,
    move_alias,
    resolve_reference,
    version_folder,
)
from refit.store import Store


@pytest.fixture(params=["disk", "memory"])
def any_store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store")


def test_versions_are_numbered_from_one_for_each_model(any_store):
    assert list_models(any_store) == []
    assert list_versions(any_store, "a") == []
    assert [add_version(any_store, "a", {"x": b"1"}) for _ in range(3)] == [1, 2, 3]
    assert add_version(any_store, "b", {"x": b"1"}) == 1
    assert list_versions(any_store, "a") == [1, 2, 3]
    assert list_models(any_store) == ["a", "b"]


def test_ten_comes_after_nine(any_store):
    for number in range(1, 12):
        assert add_version(any_store, "a", {"x": b""}) == number
    assert list_versions(any_store, "a") == list(range(1, 12))
    assert find_version(any_store, "a") == version_folder("a", 11)


def test_a_version_holds_its_files_and_never_changes(any_store):
    number = add_version(any_store, "a", {"x": b"first", "y": b""})
    add_version(any_store, "a", {"x": b"second"})
    assert any_store.read(f"{version_folder('a', number)}/x") == b"first"


def test_a_number_is_not_given_again_while_a_later_version_is_there(store):
    for _ in range(3):
        add_version(store, "a", {"x": b""})
    (Path(store.root) / "models/a/v2/x").unlink()
    (Path(store.root) / "models/a/v2").rmdir()
    assert add_version(store, "a", {"x": b""}) == 4
    assert list_versions(store, "a") == [1, 3, 4]


def test_a_reference_is_a_name_or_a_name_with_its_version(any_store):
    for _ in range(2):
        add_version(any_store, "a", {"x": b""})
    assert find_version(any_store, "a") == "models/a/v2"
    assert find_version(any_store, "a@v1") == "models/a/v1"
    assert find_version(any_store, "a@1") == "models/a/v1"


def test_a_name_alone_means_the_newest_version_or_the_alias_that_is_asked_for(any_store):
    contents = {"x": b"", "version.json": b'{"files": {}}'}
    for _ in range(2):
        add_version(any_store, "a", contents)
    with pytest.raises(
        StoreError, match=r"a@champion: expected a version of 'a' in .*, found no champion; .*; `refit promote a@v2` makes one"
    ):
        resolve_reference(any_store, "a", "champion")
    move_alias(any_store, "a", 1, expected=None, why="")
    found = [resolve_reference(any_store, *wanted) for wanted in (("a",), ("a", "champion"), ("a@v2", "champion"), ("a@champion",))]
    assert found == [("a", 2), ("a", 1), ("a", 2), ("a", 1)]


def test_an_unknown_model_is_refused_with_those_there_are(any_store):
    with pytest.raises(StoreError, match=r"b: expected a model in .*, found no 'b'; models there: none"):
        find_version(any_store, "b")
    add_version(any_store, "a", {"x": b""})
    add_version(any_store, "c", {"x": b""})
    with pytest.raises(StoreError, match=r"b@v1: expected a model in .*, found no 'b'; models there: a, c"):
        find_version(any_store, "b@v1")


@pytest.mark.parametrize("wanted", ["v3", "v0", "v01", "vv1", "latest", "-1"])
def test_an_unknown_version_is_refused_with_those_there_are(any_store, wanted):
    for _ in range(2):
        add_version(any_store, "a", {"x": b""})
    with pytest.raises(
        StoreError, match=rf"a@{wanted}: expected a version of 'a' in .*, found no {wanted}; versions there: v1, v2"
    ):
        find_version(any_store, f"a@{wanted}")


def test_other_things_in_a_models_folder_are_no_versions(store):
    add_version(store, "a", {"x": b""})
    for name in ("notes", "v2.bak", "vx", ".writing-v3"):
        (Path(store.root) / "models/a" / name).mkdir()
    (Path(store.root) / "models/a/v9").write_text("a file")
    (Path(store.root) / "models/readme.txt").write_text("a file")
    assert list_versions(store, "a") == [1]
    assert list_models(store) == ["a"]


def test_a_version_that_failed_halfway_is_not_seen_and_the_next_gets_a_number(any_store):
    add_version(any_store, "a", {"x": b""})
    with pytest.raises(TypeError):
        add_version(any_store, "a", {"x": b"", "y": "text where bytes belong"})
    assert list_versions(any_store, "a") == [1]
    assert find_version(any_store, "a") == "models/a/v1"
    number = add_version(any_store, "a", {"x": b"whole"})
    assert list_versions(any_store, "a") == [1, number]
    assert any_store.read(f"{find_version(any_store, 'a')}/x") == b"whole"


SAVE = """
import sys
from refit.registry import add_version
from refit.store import Store
input()
for i in range(5):
    content = f"{sys.argv[2]} {i}"
    print(add_version(Store(sys.argv[1]), "a", {"x": content.encode()}), content, sep="\\t")
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
        saved.extend((add_version(Store(url), "a", {"x": f"{writer} {i}".encode()}), f"{writer} {i}") for i in range(5))

    threads = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(url)
    assert sorted(number for number, _ in saved) == list_versions(store, "a") == list(range(1, 21))
    assert all(store.read(f"{version_folder('a', number)}/x").decode() == content for number, content in saved)
