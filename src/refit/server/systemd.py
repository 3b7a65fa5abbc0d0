"""Systemd units that start a project's worker with the machine, and the server if it is on this machine."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from refit.errors import SettingsError

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
SERVER = """\
[Unit]
Description=Prefect server

[Service]
Environment={home}
ExecStart={refit} server --host {host} --port {port}
Restart=always
RestartSec=5

[Install]
WantedBy=default.target
"""
WORKER = """\
[Unit]
Description=Worker of {pool}
After=refit-server.service

[Service]
WorkingDirectory={folder}
Environment={home} {url} {project}
# For secrets, such as the keys of a store: one NAME=VALUE a line.
EnvironmentFile=-{secrets}
ExecStart={prefect} worker start --pool {pool}
Restart=always
RestartSec=10

[Install]
WantedBy=default.target
"""


def write_units(folder: Path, pool: str) -> list[Path]:
    """Write user units for the worker, and for the server if PREFECT_API_URL is on this machine.

    Args:
        folder: Of the project.
        pool: Its work pool.

    Raises:
        SettingsError: A path has a line break in it, or the units cannot be written.
    """
    place = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user"
    url = PREFECT_API_URL.value() or ""
    values = {
        "home": _quote(f"PREFECT_HOME={PREFECT_HOME.value()}"),
        "url": _quote(f"PREFECT_API_URL={url}"),
        "project": _quote(f"PROJECT_FOLDER={folder}"),
        "folder": _escape(str(folder)),
        "secrets": _escape(str(folder / "worker.env")),
        "pool": _escape(pool),
        **{name: _quote(str(Path(sys.executable).with_name(name))).replace("$", "$$") for name in ("refit", "prefect")},
    }
    units = {f"refit-worker-{pool.removeprefix('refit-')}.service": WORKER.format_map(values)}
    address = urlsplit(url)
    if address.hostname in LOOPBACK:
        units["refit-server.service"] = SERVER.format_map({**values, "host": address.hostname, "port": address.port or 80})
    return _write(place, units)


def _write(place: Path, units: Mapping[str, str]) -> list[Path]:
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            (place / name).write_text(text)
    except OSError as error:
        raise SettingsError(
            f"--systemd: expected a folder for units, found: {error}; set XDG_CONFIG_HOME, or permit writing"
        ) from error
    return [place / name for name in sorted(units)]


def _quote(word: str) -> str:
    """Quote a word in a line of a unit."""
    return '"{}"'.format(_escape(word).replace("\\", "\\\\").replace('"', '\\"'))


def _escape(text: str) -> str:
    """Escape a value that is the rest of a line."""
    if re.search(r"[\r\n]", text):
        raise SettingsError(f"--systemd: expected paths of one line, found {text!r}; rename that folder")
    return text.replace("%", "%%")
