import sys

import pytest

from flows import own_server
from refit.errors import StoreError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder without anything of Prefect, in a process that has not imported it."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.setattr(own_server, "HOME", tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / ".env").write_text("REFIT_SEED=1")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = ['prefect']\n")


def test_no_server_is_named_where_nothing_of_prefect_is_set():
    assert not own_server.is_server_named()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("home/profiles.toml", "active = 'ours'"),
        ("prefect.toml", "[api]\nurl = 'http://server/api'"),
        (".env", "PREFECT_API_URL=http://server/api"),
        ("pyproject.toml", "[tool.prefect.api]\nurl = 'http://server/api'"),
    ],
)
def test_a_file_that_can_name_one_has_prefect_asked(tmp_path, path, text):
    (tmp_path / path).write_text(text)
    assert own_server.is_server_named()


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"])
def test_so_has_the_environment(monkeypatch, name):
    monkeypatch.setenv(name, "anything")
    assert own_server.is_server_named()


def test_so_has_a_process_that_knows_prefect_already(monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect", own_server)
    assert own_server.is_server_named()


def test_a_place_where_prefect_cannot_keep_its_database_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(own_server, "HOME", tmp_path / "file")
    with pytest.raises(StoreError, match=r"^PREFECT_HOME: .*/file"), own_server.starting_server():
        pass
