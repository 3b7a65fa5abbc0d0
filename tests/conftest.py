"""What all tests share: a folder of their own, the generators put back, and one Prefect server for those that ask for it."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from stand_in import backend, register

from refit.commands import cli
from refit.data.loaders import build_evaluation_loader, build_train_loader
from refit.registry.saving import save_version
from refit.reports import figures
from refit.runtime.devices import putting_defaults_back
from refit.settings import SettingsTree
from refit.store.store import Store
from refit.tables.dataset import build_dataset
from refit.tables.table_examples import load_manifest
from refit.training import trainer
from refit.training.checkpoints import save_state
from refit.training.evaluation import evaluate
from refit.training.loop import build_training_state, train_epoch
from refit.training.objective import Classification

# As in flows/local.py: Prefect reads these on import.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


register()  # before the first backward pass of the process, as PyTorch counts devices then
backend.is_on = False

SLOW_TIMEOUT_SECONDS = 1800


LONGEST = ("test_crashes", "test_docs", "test_compilation", "test_schedule", "test_commands", "test_guests")
"""Files of slow tests, of which each worker takes one at a time: started first, so that no worker has a long one left at the end.
`test_crashes` waits most of its time, and `test_nights` comes when that is over, so that the processors are never idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    for item in slow:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_SECONDS))
    first = [item for name in LONGEST for item in slow if item.path.stem == name]
    items[:] = [*first, *(item for item in items if item not in first)]


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database before its first run, to be copied into a `PREFECT_HOME`; Prefect takes 20 seconds to make one."""
    folder = pytestconfig.cache.mkdir(f"prefect-{version('prefect')}")
    database = folder / "prefect.db"
    with Store(str(folder)).lock("prefect.db", lambda: None):
        if not database.exists():
            home = tmp_path_factory.mktemp("home")
            mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            upgrade = [Path(sys.executable).with_name("prefect"), "server", "database", "upgrade", "--yes"]
            subprocess.run(upgrade, env={**mine, "PREFECT_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
            shutil.copy(home / "prefect.db", folder / "new.db")
            (folder / "new.db").rename(database)
    return database


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server, and a folder for what Prefect keeps of tasks that a test calls outside of `results_in`."""
    from prefect.settings import (
        PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    from refit.server import own_server
    from refit.server.api import await_own_server
    from refit.tasks.training import set_threads_aside

    set_threads_aside()  # before tests that do not train in a flow, too
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(prefect_database, home / "prefect.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home / 'prefect.db'}")  # not the developer's
        patch.setattr(own_server, "HOME", home)
        with own_server.starting_server() as (url, server):
            await_own_server(url, server)
    storage = tmp_path_factory.mktemp("storage")
    changes = {
        PREFECT_API_URL: url,
        PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True,  # each client would read all certificates, for a server without any
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOCAL_STORAGE_PATH: storage,
        PREFECT_LOGGING_TO_API_ENABLED: False,  # a tenth of a run's time; tests read `caplog`, and those of commands the server's
    }
    with temporary_settings(changes):
        yield


@pytest.fixture
def await_events(prefect_server: None) -> Callable[..., list[Any]]:  # noqa: ARG001
    """Read the events of a resource from the server, the earliest first, once there are so many."""
    from prefect.client.orchestration import get_client
    from prefect.events.filters import EventFilter, EventOrder, EventResourceFilter

    def read(resource: str, count: int) -> list[Any]:
        of_resource = EventFilter(resource=EventResourceFilter(id=[resource]), order=EventOrder.ASC)
        give_up_at = time.monotonic() + 60
        while True:
            with get_client(sync_client=True) as client:
                events = client.read_events(of_resource, limit=50).events
            if len(events) >= count:
                return events
            assert time.monotonic() < give_up_at, events
            time.sleep(0.1)

    return read


@pytest.fixture
def standin() -> Iterator[Any]:
    """An accelerator for the block, `standin:0`, and what PyTorch asks of it."""
    backend.__dict__.clear()
    backend.manual_seed_all(0)
    with putting_defaults_back():
        yield backend
    backend.is_on = False
    trainer._live.clear()
    trainer._crowded.clear()
    trainer._open_loaders.cache_clear()


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.env`, `refit.toml` or `refit-store` of the developer's is read or written."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().startswith("REFIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REFIT_TRAINING__BASELINE", "none")  # a second of each run; tests of neighbours ask for them


@pytest.fixture(autouse=True)
def _no_pictures_and_no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take a tenth of a run's time. Tests marked `pictures` draw."""
    if not request.node.get_closest_marker("pictures"):
        monkeypatch.setattr(figures, "_to_png", lambda _: b"")
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _generators_put_back() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    num_threads = torch.get_num_threads()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


NUM_ROWS = 60


@pytest.fixture
def refit(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run `refit ARGUMENTS` in this process: exit code, standard output, standard error."""

    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refit", *arguments])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def rows() -> pl.DataFrame:
    """Rows of every kind of column; `label` follows `size`."""
    numbers = range(NUM_ROWS)
    return pl.DataFrame(
        {
            "number": numbers,
            "size": [None if number % 7 == 3 else number % 2 * 3.0 + number / 50 for number in numbers],
            "colour": ["red" if number % 3 else "green" for number in numbers],
            "is_new": [number % 5 == 0 for number in numbers],
            "seen": [datetime(2024, 1, 1) + timedelta(hours=37 * number) for number in numbers],
            "label": ["yes" if number % 2 else "no" for number in numbers],
        }
    )


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory, rows) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    rows.write_csv(folder / "rows.csv")
    features = ["size", "colour", "is_new", "seen"]
    given = {
        "name": "toy",
        "data": {"source": str(folder / "rows.csv"), "target": "label", "features": features},
        "model": {"hidden_sizes": [16, 16]},
    }
    settings, store, cpu = SettingsTree.model_validate(given), Store(str(folder / "store")), torch.device("cpu")
    manifest = load_manifest(build_dataset(settings.data, settings.seed, store), store)
    state = build_training_state(settings.model, settings.optimizer, manifest.signature, seed=0, device=cpu)
    loader = build_train_loader(*manifest.load_split("train", store), batch_size=8, drop_last=False)
    logs = [train_epoch(state, loader, lambda _: 0.1, device=cpu)]
    test = build_evaluation_loader(*manifest.load_split("test", store))
    metrics = {"test": evaluate(state.model, test, Classification((*["no", "yes"],)), cpu, "fp32")}
    save_version(save_state(state, store), settings, manifest, logs, metrics, store)
    return folder / "store"


@pytest.fixture
def toy(trained_store) -> Store:
    """The store that commands find, with `toy@v1`, which no alias names."""
    shutil.copytree(trained_store, "refit-store")
    return Store("refit-store")
