"""A project's folder: the work pool of its runs, and PROJECT_FOLDER, in the environment of their worker, where they work."""

import hashlib
import os
import re
import socket
from pathlib import Path
from typing import Any

from prefect.deployments.steps.pull import set_working_directory

from refit.errors import SettingsError

START_WORKER = "PROJECT_FOLDER=$PWD prefect worker start --pool {pool}"
APART = "refit-run"


def name_pool(folder: Path) -> str:
    """Name the work pool of the project in a folder of this machine; workers of other projects poll others."""
    place = os.fsencode(f"{socket.gethostname()}:{folder.resolve()}")
    word = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    return "-".join(filter(None, ["refit", word, hashlib.sha256(place).hexdigest()[:8]]))


def start_apart() -> dict[str, Any]:
    """Start a run in an empty folder: the pull step of the deployments; the flow enters the project's.

    Prefect puts the folder that a run starts in ahead of all packages on the import path: a `torchvision.py` of the project would
    be what an installed package imports. And what a pull step raises would crash the run, with no word of the reason on its page.
    """
    Path(APART).mkdir(exist_ok=True)
    return set_working_directory(str(Path(APART).resolve()))


def enter_project() -> None:
    """Go from there to the folder of the project; a run that did not start there stays where it is.

    Raises:
        SettingsError: PROJECT_FOLDER is not set on the worker, or names no folder.
    """
    if Path.cwd().name != APART:
        return
    directory = os.environ.get("PROJECT_FOLDER")
    if not directory or not Path(directory).is_dir():
        raise SettingsError(
            "PROJECT_FOLDER: expected the folder of `refit.toml` in the worker's environment,"
            f" found {f'no folder {directory}' if directory else 'none'};"
            f" start the worker by `{START_WORKER.format(pool='POOL')}`, with the pool that `refit deploy` prints"
        )
    os.chdir(directory)
