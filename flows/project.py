"""The folder that runs of deployments start in: PROJECT_FOLDER, in the environment of their worker."""

import os
from pathlib import Path
from typing import Any

from prefect.deployments.steps.pull import set_working_directory

from refit.errors import SettingsError

START_WORKER = "PROJECT_FOLDER=$PWD prefect worker start --pool refit-pool --type process"
LOST = "no-project-folder"


def enter_project(directory: str = "") -> dict[str, Any]:
    """Start a run in its project's folder: the pull step of the deployments.

    Without one it starts in an empty folder, and fails at once by `check_project`: what a pull step raises would crash it, with no
    word of the reason on its page, and the server would start it again.

    Args:
        directory: What PROJECT_FOLDER says; empty where it is not set.
    """
    if directory and Path(directory).is_dir():
        return set_working_directory(directory)
    Path(LOST).mkdir()
    return set_working_directory(str(Path(LOST).resolve()))


def check_project() -> None:
    """Check that the pull step found the folder of the project.

    Raises:
        SettingsError: PROJECT_FOLDER is not set on the worker, or names no folder.
    """
    if Path.cwd().name == LOST:
        directory = os.environ.get("PROJECT_FOLDER")
        raise SettingsError(
            "PROJECT_FOLDER: expected the folder of `refit.toml` in the worker's environment,"
            f" found {f'no folder {directory}' if directory else 'none'}; start the worker by `{START_WORKER}`"
        )
