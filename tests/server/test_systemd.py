"""What systemd itself says of the units."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from refit.errors import SettingsError
from refit.server.project import name_pool
from refit.server.systemd import write_units


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "systemd" / "user"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units_whatever_the_folder_is_called(place, tmp_path, monkeypatch):
    folder = tmp_path / 'a "b" %h $HOME \\n ü'
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}):
        written = write_units(folder, name_pool(folder))
    assert [path.parent for path in written] == [place, place]
    checked = subprocess.run(["systemd-analyze", "verify", "--user", *written], capture_output=True, text=True, env=os.environ)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_server_elsewhere_gets_no_unit(place, tmp_path):
    with temporary_settings({PREFECT_API_URL: "https://prefect.example/api"}):
        (worker,) = write_units(tmp_path, "refit-fish-1234abcd")
    assert worker == place / "refit-worker-fish-1234abcd.service"
    text = worker.read_text()
    assert '"PREFECT_API_URL=https://prefect.example/api"' in text
    assert f'"PROJECT_FOLDER={tmp_path}"' in text
    assert "worker start --pool refit-fish-1234abcd" in text


def test_a_path_that_no_unit_can_hold_is_refused(place, tmp_path):
    with pytest.raises(SettingsError, match=r"--systemd: expected paths of one line, found '.*a\\nb'; rename that folder"):
        write_units(tmp_path / "a\nb", "refit-x")
    assert not place.exists()
    place.parent.mkdir(parents=True)
    place.write_text("")
    with pytest.raises(SettingsError, match=r"--systemd: expected a folder for units, found: .*File exists"):
        write_units(tmp_path, "refit-x")
