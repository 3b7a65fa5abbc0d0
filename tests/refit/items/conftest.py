"""An empty folder to train in, beside the modules that users might have, imported anew for each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refit.data.own_dataset import forget_datasets


@pytest.fixture(autouse=True)
def _users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for module in ("mistakes", "own_data"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield
    forget_datasets()
