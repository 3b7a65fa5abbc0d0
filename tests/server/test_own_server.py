import os
import sys
import urllib.request
from pathlib import Path

import pytest

from refit.errors import SettingsError, StoreError
from refit.server import own_server
from refit.server.own_server import find_prefect_home


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


def test_a_user_without_a_home_has_one_in_prefects_folder(monkeypatch):
    def refuse() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", refuse)
    monkeypatch.setenv("HOME", "not this one")
    monkeypatch.setenv("PREFECT_HOME", "/srv/prefect")
    assert find_prefect_home() == Path("/srv/prefect")
    assert os.environ["HOME"] == "/srv/prefect"
    monkeypatch.delenv("PREFECT_HOME")
    with pytest.raises(SettingsError, match=r"PREFECT_HOME: expected a folder for Prefect's database, found neither it nor HOME"):
        find_prefect_home()


def test_a_server_of_this_process_is_reached_through_no_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    own_server._pass_proxies_by()
    assert urllib.request.proxy_bypass("127.0.0.1")
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    own_server._pass_proxies_by()
    assert [bool(urllib.request.proxy_bypass(host)) for host in ("127.0.0.1", "intern.example", "example.org")] == [
        True,
        True,
        False,
    ]


def test_a_place_where_prefect_cannot_keep_its_database_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(own_server, "HOME", tmp_path / "file")
    with pytest.raises(StoreError, match=r"^PREFECT_HOME: .*/file"), own_server.starting_server():
        pass
