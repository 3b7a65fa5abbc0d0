import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from refit.errors import DataError, StoreError
from refit.store.disk import is_alive
from refit.store.outputs import replacing
from refit.store.store import DAMAGED, LOCKS, MODELS, OBJECTS, TEMPORARY, Store
from refit.tables.sources.opening import open_source


@pytest.fixture(params=["disk", "memory"])
def any_store(request, tmp_path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/store")


@pytest.mark.parametrize("data", [b"", b"a", bytes(range(256)) * 1000])
def test_bytes_come_back_by_their_sha256(any_store, data):
    digest = any_store.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert any_store.get(digest) == data


def test_a_file_goes_in_and_comes_out_as_its_bytes_would(any_store):
    with any_store.temporary_folder() as folder:
        for name in ("first", "again"):
            (folder / name).write_bytes(b"abc")
        digests = {any_store.put_file(folder / name) for name in ("first", "again")}
        (folder / "unused").write_bytes(b"abd")
    assert digests == {any_store.put(b"abc")}
    with any_store.local_file(*digests) as path:
        assert path.read_bytes() == b"abc"
    assert not folder.exists()


def test_a_temporary_folder_is_on_the_disk_of_the_store_or_among_those_of_the_system(store):
    with store.temporary_folder() as folder:
        assert folder.parent == Path(store.root, "tmp")
    with Store(f"memory://{uuid.uuid4().hex}").temporary_folder() as folder:
        assert folder.parent == Path(tempfile.gettempdir())
        assert folder.name.startswith("refit-")


def test_a_file_to_put_that_is_not_there_is_an_error_that_names_it(any_store, tmp_path):
    with pytest.raises(StoreError, match=f"{tmp_path}/none: expected a file of the store, found none"):
        any_store.put_file(tmp_path / "none")


@pytest.mark.parametrize(("error", "found"), [(OSError("no space"), StoreError), (ValueError("halfway"), ValueError)])
def test_a_temporary_folder_is_removed_when_its_block_fails(any_store, error, found):
    folders = []

    def fail() -> None:
        with any_store.temporary_folder() as folder:
            folders.append(folder)
            (folder / "a").write_bytes(b"abc")
            raise error

    with pytest.raises(found, match=str(error)) as raised:
        fail()
    assert not folders[0].exists()
    assert isinstance(error, ValueError) or str(raised.value).startswith(f"{folders[0]}: expected a store that can be")


def test_the_store_has_what_was_put_in_its_size(any_store):
    digest = any_store.put(b"abc")
    assert any_store.has(digest, 3)
    assert not any_store.has(digest, 4)
    assert not any_store.has("0" * 64, 3)


def test_bytes_that_are_there_are_not_written_again(store):
    digest = store.put(b"abc")
    (path,) = (path for path in Path(store.root).rglob("*") if path.is_file())
    os.utime(path, (1, 1))
    before, now = path.stat(), time.time()
    assert store.put(b"abc") == digest
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime > now - 1, "marked as new"


def test_a_file_whose_bytes_are_there_does_not_replace_them(store):
    path = Path(store.root, store.object_path(store.put(b"abc")))
    before = path.stat().st_ino
    put_file(store, "")
    assert path.stat().st_ino == before


def test_a_lock_of_a_store_far_away_is_none_and_leaves_nothing_on_this_machine():
    store = Store(f"memory://{uuid.uuid4().hex}/store")
    with store.lock("a", pytest.fail), store.lock("a", pytest.fail):
        assert not Path(store.root).exists()


@pytest.mark.usefixtures("no_links")
def test_a_lock_that_fails_otherwise_is_told_as_it_is(store, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StoreError, match="expected a store that can be read and written, found: Input/output error"):
        store.create("a/1.json", b"first")


def test_an_object_cut_short_is_written_anew_by_the_next_put(store):
    digest = store.put(b"abc")
    (path,) = (path for path in Path(store.root).rglob("*") if path.is_file())
    path.write_bytes(b"ab")
    assert store.put(b"abc") == digest
    assert store.get(digest) == b"abc"


@pytest.mark.parametrize("damaged", [b"abd", b"ab", b"", b"abcd"])
def test_damaged_bytes_are_refused_by_path(store, damaged):
    digest = store.put(b"abc")
    (path,) = (path for path in Path(store.root).rglob("*") if path.is_file())
    path.write_bytes(damaged)
    aside = Path(store.root) / "damaged" / digest
    message = f"{path}: expected bytes with this digest, found others, now in {aside}; run again to rebuild it"
    with pytest.raises(StoreError, match=re.escape(message)):
        store.get(digest)
    assert aside.read_bytes() == damaged
    assert not path.exists()


def damage(store: Store, digest: str, content: bytes) -> None:
    store.files.pipe_file(f"{store.root}/{store.object_path(digest)}", content)


def test_a_damaged_object_is_set_aside_and_can_be_put_again_and_again(any_store):
    for content in (b"abd", b"abe"):
        digest = any_store.put(b"abc")
        damage(any_store, digest, content)
        assert any_store.has(digest, 3), "as large as it was: only its content tells"
        assert not any_store.is_whole(digest)
        assert not any_store.has(digest, 3)
        assert any_store.names("damaged") == [digest]
        assert any_store.read(f"damaged/{digest}") == content
    assert any_store.put(b"abc") == digest
    assert any_store.is_whole(digest)
    assert any_store.get(digest) == b"abc"


def test_what_is_missing_is_not_whole_and_nothing_is_set_aside(any_store):
    assert not any_store.is_whole("0" * 64)
    assert any_store.names("damaged") == []


def test_a_file_is_written_replaced_and_removed_by_its_path(any_store):
    assert not any_store.exists("results/a.json")
    any_store.write("results/a.json", b"first")
    any_store.write("results/a.json", b"second")
    assert any_store.exists("results/a.json")
    assert any_store.read("results/a.json") == b"second"
    any_store.remove("results/a.json")
    assert not any_store.exists("results/a.json")
    any_store.remove("results/a.json")


def test_files_are_listed_by_folder_with_size_and_time_of_change(any_store):
    before = time.time()
    for path, data in [("runs/a.json", b"1"), ("objects/ab/c", b"abc"), ("objects/d", b""), ("models/m", b"1")]:
        any_store.write(path, data)
    found = any_store.list_files(["none", "objects", "runs"])
    assert {path: size for path, (size, _) in found.items()} == {"objects/ab/c": 3, "objects/d": 0, "runs/a.json": 1}
    assert all(before - 1 <= changed_at <= time.time() + 1 for _, changed_at in found.values())


def test_the_time_of_change_is_the_file_s(store):
    store.write("runs/a.json", b"1")
    os.utime(Path(store.root, "runs/a.json"), (5, 1000))
    assert store.list_files(["runs"]) == {"runs/a.json": (1, 1000)}


def test_a_file_that_an_object_store_does_not_take_is_an_error_that_names_it(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(store.files, "pipe_file", refuse)
    with pytest.raises(StoreError, match=r"ledger/1\.json: expected a store that can be read and written, found: not yours; free"):
        store.create("ledger/1.json", b"first")


def test_a_file_is_created_only_where_there_is_none(any_store):
    assert any_store.create("ledger/1.json", b"first")
    assert not any_store.create("ledger/1.json", b"second")
    assert any_store.read("ledger/1.json") == b"first"
    any_store.remove("ledger/1.json")
    assert any_store.create("ledger/1.json", b"third")
    assert any_store.read("ledger/1.json") == b"third"
    assert any_store.names("tmp") == []


def test_files_are_read_together_in_the_order_that_they_are_named_in(any_store):
    for name in "cab":
        any_store.write(f"[{name}]/*", name.encode())
    assert any_store.read_together(["[b]/*", "none", "[c]/*", "[a]/*"]) == [b"b", None, b"c", b"a"]
    assert any_store.read_together([]) == []


def test_missing_bytes_are_refused_by_path(any_store):
    digest = "ab" + "0" * 62
    with pytest.raises(StoreError, match=f"ab/{'0' * 62}: expected an object of the store, found none"):
        any_store.get(digest)


def test_a_published_folder_holds_all_its_files(any_store):
    contents = {"a.txt": b"1", "b.bin": bytes(range(256)), "empty": b""}
    assert any_store.publish("models/m/v1", contents)
    assert any_store.is_published("models/m/v1")
    assert {name: any_store.read(f"models/m/v1/{name}") for name in contents} == contents
    assert any_store.names("models/m") == ["v1"]


def test_a_folder_that_is_there_is_left_as_it_is(any_store):
    any_store.publish("models/m/v1", {"a.txt": b"first"})
    assert not any_store.publish("models/m/v1", {"a.txt": b"second", "b.txt": b""})
    assert any_store.read("models/m/v1/a.txt") == b"first"
    with pytest.raises(StoreError, match=r"b\.txt"):
        any_store.read("models/m/v1/b.txt")


FAILS_HALFWAY = {"a.txt": b"1", "b.txt": "text where bytes belong", "c.txt": b"3"}


def test_a_name_that_a_file_has_is_an_error_and_nothing_is_left(store):
    store.write("models/m/v1", b"a file")
    with pytest.raises(StoreError, match=r"models/m/v1: expected a store that can be read and written, found: Not a directory"):
        store.publish("models/m/v1", {"a": b""})
    assert store.names("tmp") == []
    assert store.read("models/m/v1") == b"a file"


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENOTEMPTY])
def test_either_way_in_which_a_system_says_that_a_folder_is_there_is_understood(store, monkeypatch, code):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", refuse)
    assert store.publish("models/m/v1", {"a": b""}) is False
    assert store.names("tmp") == []


def test_a_publication_that_fails_halfway_is_not_there(any_store):
    with pytest.raises(TypeError):
        any_store.publish("models/m/v1", FAILS_HALFWAY)
    assert not any_store.is_published("models/m/v1")


def test_a_publication_that_fails_halfway_leaves_no_file_on_the_disk(store):
    with pytest.raises(TypeError):
        store.publish("models/m/v1", FAILS_HALFWAY)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []
    assert store.publish("models/m/v1", {"a.txt": b"1"})


def test_without_the_last_file_a_folder_of_an_object_store_is_not_published():
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.files.pipe_file(f"{store.root}/models/m/v1/.claim", b"")
    store.files.pipe_file(f"{store.root}/models/m/v1/model.pt", b"1")
    assert not store.is_published("models/m/v1")
    assert not store.publish("models/m/v1", {"model.pt": b"2"})


def test_an_object_store_s_folder_is_claimed_first_and_complete_last(monkeypatch):
    store, written = Store(f"memory://{uuid.uuid4().hex}"), []
    pipe_file = store.files.pipe_file
    monkeypatch.setattr(
        store.files, "pipe_file", lambda path, *given, **options: written.append(path) or pipe_file(path, *given, **options)
    )
    store.publish("models/m/v1", {"model.pt": b"1", "card.md": b"2"})
    assert [path.rsplit("/", 1)[1] for path in written] == [".claim", "model.pt", "card.md", ".complete"]


def test_an_object_becomes_a_file_of_a_folder_which_stays_without_it(any_store):
    digest = any_store.put(b"frozen")
    assert any_store.publish("models/m/v1", {"model.pt": b"1"}, {"frozen.pt": digest})
    any_store.remove(any_store.object_path(digest))
    assert any_store.read("models/m/v1/frozen.pt") == b"frozen"


def test_an_object_is_copied_where_there_are_no_links(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert store.publish("models/m/v1", {}, {"frozen.pt": store.put(b"frozen")})
    assert store.read("models/m/v1/frozen.pt") == b"frozen"


def test_temporaries_that_a_killed_writer_left_are_not_listed(store, start):
    store.publish("models/m/v1", {"a": b""})
    digest = kill_writers(store, start)
    assert store.names("models/m") == ["v1"]
    assert store.names("models/n") == []
    assert not store.has(digest, 3)


def test_a_folder_that_is_not_there_has_no_names(any_store):
    assert any_store.names("models") == []
    assert any_store.names("models/m/v1") == []


def test_names_are_sorted(any_store):
    for number in (3, 1, 2):
        any_store.publish(f"models/m/v{number}", {"a": b""})
    assert any_store.names("models/m") == ["v1", "v2", "v3"]


def test_others_may_read_a_published_folder(store):
    store.publish("models/m/v1", {"a": b""})
    assert (Path(store.root) / "models/m/v1").stat().st_mode & 0o777 == 0o755


PRELUDE = "import os, signal, socket, sys, time; from refit.store.store import Store; store = Store(sys.argv[1])\n"


@pytest.fixture
def start(store):
    """Start another process with `store` at hand; it says on standard output how far it has come."""
    processes = []

    def run(script: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PRELUDE + script, store.url]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield run
    for process in processes:
        with process:
            process.kill()


def kill_writers(store: Store, start) -> str:
    """Let an object and a folder be written by processes that die before the rename; return the object's digest."""
    deadly = "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    for act in ("store.put(b'abc')", "store.publish('models/n/v1', {'a': b'', 'b': b''})"):
        assert start(deadly + act).wait(timeout=30) == -signal.SIGKILL
    assert len(store.names("tmp")) == 2
    return hashlib.sha256(b"abc").hexdigest()


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(store, start):
    kill_writers(store, start)
    slow = "os.fsync = lambda _: (print('writing', flush=True), time.sleep(60))\nstore.put(b'slow')"
    alive = start(slow)
    assert alive.stdout.readline() == "writing\n"
    (Path(store.root) / "tmp" / f"another.host-{alive.pid}-0a1b2c3d").touch()
    store.remove_leftovers()
    hosts = {name.rsplit("-", 2)[0]: name for name in store.names("tmp")}
    assert set(hosts) == {socket.gethostname(), "another.host"}
    assert f"-{alive.pid}-" in hosts[socket.gethostname()]
    alive.kill()
    alive.wait(timeout=30)
    store.remove_leftovers()
    assert [name for name in store.names("tmp") if name.startswith(socket.gethostname())] == []


def test_leftovers_of_a_host_whose_name_begins_as_this_ones_stay(store, start, monkeypatch):
    """On a store that machines share, another's process cannot be asked whether it lives."""
    monkeypatch.setattr(socket, "gethostname", lambda: "trainer")
    gone = start("")
    gone.communicate(timeout=30)
    others = Path(store.root) / "tmp" / f"trainer-2-{gone.pid}-0a1b2c3d"
    others.parent.mkdir(parents=True)
    others.write_bytes(b"half")
    store.remove_leftovers()
    assert others.exists()


def test_a_process_is_alive_until_it_is_gone_and_if_another_user_s(start, monkeypatch):
    assert is_alive(os.getpid())
    gone = start("")
    gone.communicate(timeout=30)
    assert not is_alive(gone.pid)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert is_alive(1)


def test_files_of_others_among_the_temporary_ones_stay_until_they_are_old(store):
    for name in (".DS_Store", "other-host-1-00000000", "notes-7-x"):
        path = Path(store.root, "tmp", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1234")
    store.remove_leftovers()
    assert len(store.names("tmp")) == 3
    os.utime(path.parent / ".DS_Store", (1000, 1000))
    assert store.list_leftovers(unchanged_since=2000) == {"tmp/.DS_Store": 4}


def test_a_folder_among_the_temporary_files_is_as_old_as_the_newest_of_its_files(store):
    folder = Path(store.root, "tmp", "other-host-1-00000000")
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"1234")
    os.utime(folder, (1000, 1000))
    assert store.list_leftovers(unchanged_since=2000) == {}
    os.utime(folder / "a", (1000, 1000))
    assert store.list_leftovers(unchanged_since=2000) == {f"tmp/{folder.name}": folder.stat().st_size + 4}


def test_a_store_that_is_not_there_has_no_leftovers(any_store):
    any_store.remove_leftovers()


HOLD = "with store.lock('a', lambda: print('waits', flush=True)):\n    print('has it', flush=True)\n    sys.stdin.read()"


def test_a_second_process_waits_for_the_lock_until_the_first_lets_go(store, start):
    first = start(HOLD)
    assert first.stdout.readline() == "has it\n"
    assert store.is_locked("a")
    second = start(HOLD)
    assert second.stdout.readline() == "waits\n"
    first.stdin.close()
    first.wait(timeout=30)
    assert second.stdout.readline() == "has it\n"
    assert second.communicate(timeout=30)[0] == "", "on_wait is called once"
    assert not store.is_locked("a")


def test_the_lock_of_a_killed_process_is_free(store, start):
    first = start(HOLD)
    assert first.stdout.readline() == "has it\n"
    second = start(HOLD)
    assert second.stdout.readline() == "waits\n"
    first.kill()
    first.wait(timeout=30)
    assert second.stdout.readline() == "has it\n"
    second.communicate(timeout=30)
    waits = []
    with store.lock("a", lambda: waits.append(True)):
        assert store.is_locked("a")
    assert waits == []


def test_the_lock_is_asked_for_until_it_is_free_and_not_taken_before(store, monkeypatch):
    holder, sleeps = contextlib.ExitStack(), []
    holder.enter_context(store.lock("a", lambda: None))

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        if len(sleeps) == 3:
            holder.close()

    monkeypatch.setattr(time, "sleep", sleep)
    with store.lock("a", lambda: None):
        assert sleeps == [0.2] * 3
        assert store.is_locked("a")


def test_locks_of_other_names_do_not_wait_for_one_another(any_store):
    waits = []
    with any_store.lock("a", lambda: waits.append("a")), any_store.lock("b", lambda: waits.append("b")):
        assert not any_store.is_locked("c")
    assert waits == []


def test_a_lock_is_a_file_of_its_name(store):
    with store.lock("a", lambda: None):
        assert store.names("locks") == ["a"]
    assert not store.is_locked("b")


def test_the_lock_is_let_go_when_what_it_guards_fails(store):
    with pytest.raises(ValueError, match="halfway"), store.lock("a", lambda: None):
        raise ValueError("halfway")
    assert not store.is_locked("a")


FULL = """
import resource
from refit.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    {act}
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("act", "path"),
    [
        ("store.put(b'x' * 5000)", f"objects/{hashlib.sha256(b'x' * 5000).hexdigest()[:2]}"),
        ("store.write('results/a.json', b'x' * 5000)", "results/a.json"),
        ("store.create('ledger/1.json', b'x' * 5000)", "ledger/1.json"),
        ("store.publish('models/m/v1', {'a': b'small', 'b': b'x' * 5000})", "models/m/v1"),
    ],
    ids=["put", "write", "create", "publish"],
)
def test_a_disk_that_takes_no_more_is_an_error_that_names_the_path_and_nothing_is_left(store, start, act, path):
    store.write("results/a.json", b"before")
    printed, _ = start(FULL.format(act=act)).communicate(timeout=30)
    assert printed.startswith(f"{store.root}/{path}")
    assert ": expected a store that can be read and written, found: File too large; free space or permit access there" in printed
    assert store.names("tmp") == []
    assert store.read("results/a.json") == b"before"
    assert [file for file in Path(store.root).rglob("*") if file.is_file()] == [Path(store.root) / "results/a.json"]
    assert not store.is_published("models/m/v1")


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str, object]]:
    """What is asked of the disk, in order: syncs (path, and size of a file), and files and folders put in place (path, from)."""
    told: list[tuple[str, str, object]] = []
    sync = os.fsync

    def tell_sync(descriptor: int) -> None:
        path, size = os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size
        told.append(("sync", path, None if os.path.isdir(path) else size))
        sync(descriptor)

    def tell_placing(place: Callable[..., None]) -> Callable[..., None]:
        def told_place(source: str, target: str) -> None:
            told.append(("place", str(target), str(source)))
            place(source, target)

        return told_place

    monkeypatch.setattr(os, "fsync", tell_sync)
    for name in ("replace", "link", "rename"):
        monkeypatch.setattr(os, name, tell_placing(getattr(os, name)))
    return told


def put_file(store: Store, _: str) -> None:
    with store.temporary_folder() as folder:
        (folder / "a").write_bytes(b"abc")
        store.put_file(folder / "a")


ABC = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("act", "path"),
    [
        (lambda store, _: store.put(b"abc"), f"objects/{ABC[:2]}/{ABC[2:]}"),
        (put_file, f"objects/{ABC[:2]}/{ABC[2:]}"),
        (lambda store, path: store.write(path, b"abc"), "results/a.json"),
        (lambda store, path: store.create(path, b"abc"), "ledger/1.json"),
    ],
    ids=["put", "put_file", "write", "create"],
)
def test_a_file_is_whole_on_the_disk_before_it_has_its_name_and_the_name_is_on_the_disk_before_it_counts(store, calls, act, path):
    """So that after a power cut the name stands for all bytes or is not there."""
    act(store, path)
    target = Path(store.root, path)
    (_, temporary, _), *_ = calls
    assert calls == [("sync", temporary, 3), ("place", str(target), temporary), ("sync", str(target.parent), None)]


def test_an_output_is_whole_on_the_disk_before_it_has_its_name_and_the_name_is_on_the_disk_before_it_counts(calls, tmp_path):
    with replacing(f"{tmp_path}/out.txt") as path:
        path.write_text("abc")
    target = f"{tmp_path}/out.txt"
    assert calls == [("sync", str(path), 3), ("place", target, str(path)), ("sync", str(tmp_path), None)]


def test_a_folder_is_whole_on_the_disk_before_it_has_its_name_and_the_name_is_on_the_disk_before_it_counts(store, calls):
    store.publish("models/m/v1", {"a": b"abc", "b": b"abcd"})
    target, temporary = Path(store.root, "models/m/v1"), os.path.dirname(calls[0][1])
    assert calls == [
        ("sync", f"{temporary}/a", 3),
        ("sync", f"{temporary}/b", 4),
        ("sync", temporary, None),
        ("place", str(target), temporary),
        ("sync", str(target.parent), None),
    ]


def test_of_processes_that_publish_one_name_at_once_one_wins_wholly(store, start):
    script = "input(); print(store.publish('models/m/v1', {{f'file-{{i}}': b'{n}' for i in range(20)}}))"
    processes = [start(script.format(n=n)) for n in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = {n: process.communicate(timeout=30)[0] == "True\n" for n, process in enumerate(processes)}
    assert [process.returncode for process in processes] == [0] * 4
    (winner,) = (writer for writer, has_won in outcomes.items() if has_won)
    names = store.names("models/m/v1")
    assert len(names) == 20
    assert {store.read(f"models/m/v1/{name}") for name in names} == {str(winner).encode()}
    assert [path.name for path in (Path(store.root) / "models/m").iterdir()] == ["v1"]


def test_of_processes_that_create_one_file_at_once_one_wins(store, start):
    script = "input(); print([store.create(f'ledger/{{i}}.json', b'{n}' * 1000) for i in range(50)])"
    processes = [start(script.format(n=n)) for n in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outcomes = [json.loads(process.communicate(timeout=30)[0].lower()) for process in processes]
    for i, has_won in enumerate(zip(*outcomes, strict=True)):
        assert sum(has_won) == 1
        assert store.read(f"ledger/{i}.json") == str(has_won.index(True)).encode() * 1000
    assert store.names("tmp") == []


def test_processes_that_put_the_same_bytes_at_once_all_succeed(store, start):
    processes = [start("input(); print(store.put(b'x' * 1_000_000))") for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    digests = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert digests == {hashlib.sha256(b"x" * 1_000_000).hexdigest()}
    assert store.get(*digests) == b"x" * 1_000_000


def test_of_threads_that_publish_one_name_in_an_object_store_one_wins():
    url = f"memory://{uuid.uuid4().hex}"
    barrier, outcomes = threading.Barrier(4), []

    def publish(writer: int) -> None:
        barrier.wait()
        outcomes.append(Store(url).publish("models/m/v1", {"a": str(writer).encode()}))

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, False, False, True]


@pytest.fixture
def blocked(tmp_path) -> Store:
    """A store below a regular file, which not even root can write."""
    (tmp_path / "file").write_bytes(b"")
    return Store(str(tmp_path / "file" / "store"))


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.put(b"abc"),
        lambda store: store.publish("models/m/v1", {"a": b""}),
        lambda store: store.read("models/m/v1/a"),
        lambda store: store.get("0" * 64),
        lambda store: store.names("models"),
        lambda store: store.write("results/a.json", b""),
        lambda store: store.create("results/a.json", b""),
        lambda store: store.lock("a", lambda: None).__enter__(),
        lambda store: store.temporary_folder().__enter__(),
    ],
    ids=["put", "publish", "read", "get", "names", "write", "create", "lock", "temporary_folder"],
)
def test_a_store_that_cannot_be_used_is_an_error_that_names_it(blocked, act):
    with pytest.raises(StoreError, match=blocked.root):
        act(blocked)


def test_a_store_that_takes_no_file_is_an_error_that_names_it(blocked, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(StoreError, match=f"{blocked.root}/objects"):
        blocked.put_file(tmp_path / "a")


def test_the_store_is_made_when_it_is_first_written_to(tmp_path):
    store = Store(str(tmp_path / "new" / "store"))
    assert store.names("models") == []
    assert not store.has("0" * 64, 0)
    assert list(tmp_path.iterdir()) == []
    store.put(b"abc")
    assert (tmp_path / "new" / "store").is_dir()


@pytest.mark.parametrize("url", ["nosuch://x", "dropbox://x"], ids=["unknown", "not installed"])
def test_a_protocol_that_is_unknown_or_whose_package_is_not_installed_is_refused(url):
    with pytest.raises(StoreError, match=rf"store\.url: expected a folder or an fsspec URL, found '{url}': "):
        Store(url)


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_a_slash_at_the_end_of_the_url_means_nothing(tmp_path, protocol):
    one, other = (Store(f"{protocol}{tmp_path}/store{end}") for end in ("", "/"))
    one.write("runs/a.json", b"1")
    assert other.list_files(["runs"]).keys() == {"runs/a.json"}
    assert other.location("runs") == one.location("runs")


def test_a_store_may_be_the_root_of_its_file_system():
    assert [Store(url).location("models") for url in ("/", "memory://")] == ["/models", "memory:///models"]


def test_the_folders_of_a_store_have_the_names_that_they_have_had():
    """Otherwise nothing of a store would be found that an earlier version of Refit has written."""
    assert (OBJECTS, MODELS, DAMAGED, TEMPORARY, LOCKS) == ("objects", "models", "damaged", "tmp", "locks")


def test_what_other_processes_write_is_seen_as_no_listing_is_kept(any_store):
    assert any_store.files.storage_options["use_listings_cache"] is False


def test_writing_leaves_no_file_open(store):
    store.put(b"first")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        store.put(f"{number}".encode())
        store.publish(f"models/m/v{number}", {"a": b""})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_relative_store_stays_where_it_was_opened(tmp_path, monkeypatch):
    store = Store("store")
    digest = store.put(b"abc")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.get(digest) == b"abc"


def test_a_location_is_a_full_path_or_a_url(tmp_path):
    assert Store("store").location("models/m/v1") == str(tmp_path / "store/models/m/v1")
    assert Store("memory://bucket/store").location("models/m/v1") == "memory:///bucket/store/models/m/v1"


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def no_links(request, monkeypatch) -> None:
    """As network shares, exFAT and FUSE answer."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_a_file_is_created_wholly_and_once(store):
    store.try_out()
    assert store.create("a/1.json", b"first")
    assert not store.create("a/1.json", b"second")
    assert store.read("a/1.json") == b"first"
    assert store.names("tmp") == []


CREATE = """
import errno, os, sys
from refit.store.store import Store
def refuse(*_):
    raise OSError(errno.EPERM, "no")
os.link = refuse
store = Store(sys.argv[1])
input()
print(*(number for number in range(100) if store.create(f"a/{number}", sys.argv[2].encode())))
"""


def test_without_hard_links_processes_that_create_at_once_take_turns(store):
    command = [sys.executable, "-c", CREATE, store.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(n)], **pipes) for n in range(3)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    created = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(itertools.chain(*created), key=int) == [str(number) for number in range(100)]
    assert all(store.read(f"a/{number}") == str(n).encode() for n, mine in enumerate(created) for number in mine)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_runs_of_one_recipe_both_do_the_work(store):
    with store.lock("recipe", pytest.fail), store.lock("recipe", pytest.fail):
        assert not store.is_locked("recipe")
    store.try_out()
    assert store.create("a/1.json", b"first")


@pytest.mark.usefixtures("no_links", "no_locks")
def test_without_links_and_locks_a_store_is_refused_at_its_first_file(store):
    with pytest.raises(
        StoreError, match=r"expected a file system with hard links, or with locks, found neither; keep the store on"
    ):
        store.try_out()
    assert store.names("tmp") == []


def test_a_file_system_that_cannot_sync_folders_is_written_to_all_the_same(store, monkeypatch):
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert store.get(store.put(b"1")) == b"1"
    assert store.create("a/1", b"1")
    assert store.publish("models/a/v1", {"x": b"1"})
    with replacing("out.txt") as path:
        path.write_text("1")
    assert Path("out.txt").read_text() == "1"


class _Locked(MemoryFileSystem):
    """A store far away without credentials, of which its package tells in its own way."""

    protocol = "locked"

    def _refuse(self, *_: object, **__: object) -> None:
        raise LookupError("Unable to locate credentials")

    exists = ls = cat_file = find = info = isfile = isdir = pipe_file = _refuse


def test_what_a_package_of_a_store_far_away_raises_is_a_store_error():
    fsspec.register_implementation("locked", _Locked, clobber=True)
    store = Store("locked://bucket/store")
    for act in (
        lambda: store.names("models"),
        lambda: store.exists("a"),
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.is_published("models/a/v1"),
        lambda: store.list_files(["objects"]),
        lambda: store.try_out(),
    ):
        with pytest.raises(StoreError, match=r"found: LookupError: .*Unable to locate credentials.*; free space or permit access"):
            act()


def test_s3_without_credentials_is_a_store_error(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"bucket/store/models: expected .*, found: NoCredentialsError: Unable to locate cred"):
        Store("s3://bucket/store").names("models")
    with pytest.raises(DataError, match=r"s3://bucket/rows\.csv: expected files that can be read, found NoCredentialsError"):
        open_source("s3://bucket/rows.csv").read()
