import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from prefect import flow, task
from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH

from refit.errors import DataError, SettingsError, StoreError, TrainingError
from refit.refs import Ref
from refit.runs.results import load_result, result_path
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED, results_in

pytestmark = pytest.mark.usefixtures("prefect_server")

KEY, OTHER_KEY = "1" * 64, "2" * 64

MAKING = """
from prefect import flow, task
from refit.refs import Ref
from refit.store.store import Store
from refit.tasks.caching import CACHED, RETRIED, results_in

made = []

@task(**CACHED, **RETRIED)
def make(key: str, url: str, kind: str = "metrics") -> Ref:
    made.append(key)
    return Ref(kind=kind, digest=Store(url).put(key.encode()), size=len(key))

@flow
def run(url: str, keys: list[str], refresh: bool = False, kind: str = "metrics") -> list:
    with results_in(Store(url), refresh):
        states = [make(key, url, kind, return_state=True) for key in keys]
        return [[state.name, state.result().model_dump()] for state in states]
"""


@pytest.fixture
def making(tmp_path, monkeypatch):
    """A module with a cached task, and a flow that calls it with some keys."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "making_flows.py").write_text(MAKING)
    yield importlib.import_module("making_flows")
    sys.modules.pop("making_flows")


def call(making, store: Store, *keys: str, **given) -> tuple[list[str], list[str]]:
    """Names of the task runs' states, and the keys of those whose body ran."""
    making.made.clear()
    states = making.run(store.url, list(keys), **given)
    return [name for name, _ in states], list(making.made)


def test_a_second_run_finds_the_result_of_the_first(making, store):
    assert call(making, store, KEY) == (["Completed"], [KEY])
    assert call(making, store, KEY) == (["Cached"], [])
    ((_, found),) = making.run(store.url, [KEY])
    assert found == Ref(kind="metrics", digest=store.put(KEY.encode()), size=64).model_dump()
    assert load_result(KEY, store) == found


def test_a_run_finds_what_it_made_itself(making, store):
    assert call(making, store, KEY, KEY) == (["Completed", "Cached"], [KEY])


def test_another_key_is_another_result(making, store):
    call(making, store, KEY)
    assert call(making, store, OTHER_KEY, KEY) == (["Completed", "Cached"], [OTHER_KEY])
    assert store.names("results") == [f"{KEY}.json", f"{OTHER_KEY}.json"]


def test_another_store_has_results_of_its_own(making, store, tmp_path):
    call(making, store, KEY)
    assert call(making, Store(str(tmp_path / "other")), KEY) == (["Completed"], [KEY])


def test_another_process_finds_the_result(making, store, tmp_path):
    ((_, mine),) = making.run(store.url, [KEY])
    script = (
        "import json, making_flows\n"
        f"print(json.dumps([making_flows.run({store.url!r}, [{KEY!r}, {OTHER_KEY!r}]), making_flows.made]))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PREFECT_LOCAL_STORAGE_PATH": str(PREFECT_LOCAL_STORAGE_PATH.value()),
    }
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    states, made = json.loads(finished.stdout.splitlines()[-1])
    assert [name for name, _ in states] == ["Cached", "Completed"]
    assert states[0][1] == mine
    assert made == [OTHER_KEY]
    assert call(making, store, OTHER_KEY) == (["Cached"], []), "and what it made is found here"


def damage(store: Store, digest: str) -> None:
    content = store.read(store.object_path(digest))
    store.write(store.object_path(digest), bytes([content[0] ^ 1]) + content[1:])


def delete(store: Store, digest: str) -> None:
    store.remove(store.object_path(digest))


@pytest.mark.parametrize("break_it", [damage, delete], ids=["one bit", "deleted"])
def test_a_result_whose_object_is_not_whole_is_made_again(making, store, break_it):
    call(making, store, KEY)
    digest = load_result(KEY, store)["digest"]
    break_it(store, digest)
    assert call(making, store, KEY) == (["Completed"], [KEY])
    assert store.get(digest) == KEY.encode()
    assert call(making, store, KEY) == (["Cached"], [])


def test_a_checkpoint_may_be_gone(making, store):
    """Only the newest is needed, which `find_last_epoch` looks after."""
    call(making, store, KEY, kind="checkpoint")
    delete(store, load_result(KEY, store)["digest"])
    assert call(making, store, KEY) == (["Cached"], [])


@pytest.mark.parametrize("record", [b"", b"{", b"{}", None])
def test_a_result_that_cannot_be_read_is_made_again(making, store, record):
    call(making, store, KEY)
    store.remove(result_path(KEY)) if record is None else store.write(result_path(KEY), record)
    assert call(making, store, KEY) == (["Completed"], [KEY])
    assert call(making, store, KEY) == (["Cached"], [])


def test_refresh_makes_each_result_again_once(making, store):
    call(making, store, KEY)
    assert call(making, store, KEY, KEY, OTHER_KEY, refresh=True) == (["Completed", "Cached", "Completed"], [KEY, OTHER_KEY])
    assert call(making, store, KEY, OTHER_KEY) == (["Cached", "Cached"], [])


def test_results_in_needs_a_flow_run(store):
    with pytest.raises(RuntimeError, match="results_in: expected to be called in a flow run"), results_in(store, False):
        pass


def test_waits_between_tries_double_from_a_second():
    assert RETRIED["retries"] == 3
    assert RETRIED["retry_delay_seconds"](3) == [1, 2, 4]


def fail_with(store: Store, errors: list[BaseException]) -> int:
    """Run a task whose first tries raise these; return how many tries it had."""
    tries = []

    @task(**CACHED, **RETRIED)
    def fail(key: str) -> Ref:
        tries.append(key)
        if len(tries) <= len(errors):
            raise errors[len(tries) - 1]
        return Ref(kind="metrics", digest=store.put(b"made"), size=4)

    @flow
    def run() -> None:
        with results_in(store, False):
            fail.with_options(retry_delay_seconds=0)(KEY)

    run()
    return len(tries)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError("torn"), 1),
        (OSError("torn"), 3),
        (StoreError("full"), 2),
        (ConnectionResetError("gone"), 1),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 3),
        (TrainingError("no room"), 2),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 1),
        (torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), 3),
    ],
    ids=repr,
)
def test_what_can_pass_is_tried_again_up_to_three_times(store, error, number):
    causes = {StoreError: OSError("full"), TrainingError: torch.OutOfMemoryError("CUDA out of memory")}
    error.__cause__ = causes.get(type(error))
    assert fail_with(store, [error] * number) == number + 1
    assert load_result(KEY, store) is not None


def test_what_does_not_pass_fails_after_four_tries(store):
    errors = [OSError(f"torn {number}") for number in range(9)]
    with pytest.raises(OSError, match="torn 3"):
        fail_with(store, errors)


def test_running_out_of_memory_is_tried_again_once(store):
    assert fail_with(store, [MemoryError("full")]) == 2
    store.remove(result_path(KEY))
    with pytest.raises(MemoryError, match="full 2"):
        fail_with(store, [MemoryError(f"full {number}") for number in (1, 2, 3)])


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad"),
        SettingsError("bad"),
        TrainingError("bad"),
        StoreError("damaged"),
        ValueError("bad"),
        RuntimeError("bad"),
    ],
    ids=repr,
)
def test_what_a_user_has_to_mend_is_not_tried_again(store, error):
    with pytest.raises(type(error), match="first"):
        fail_with(store, [type(error)("first"), type(error)("second")])


def test_a_failure_is_no_result(store):
    with pytest.raises(DataError):
        fail_with(store, [DataError("bad")])
    assert store.names("results") == []
    assert fail_with(store, []) == 1, "it runs again"
    assert store.names("results") == [f"{KEY}.json"]
    assert fail_with(store, []) == 0
