"""A project's folder: the work pool of its runs, and PROJECT_FOLDER in the worker's environment, which says where they work."""

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
    """Start a run in an empty folder, as the pull step of the deployments; the flow then enters the project's folder.

    Prefect puts the folder that a run starts in ahead of all packages on the import path, so an installed package would import
    a `torchvision.py` of the project. An error in a pull step would crash the run, and its page would not say why.
    """
    Path(APART).mkdir(exist_ok=True)
    return set_working_directory(str(Path(APART).resolve()))


def enter_project() -> None:
    """Change from there to the folder of the project; a run that did not start there stays where it is.

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
            f" start the worker with `{START_WORKER.format(pool='POOL')}` and the pool that `refit deploy` prints"
        )
    os.chdir(directory)
