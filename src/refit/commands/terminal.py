"""What all commands of `refit` share: the app, options, exit codes, standard output and errors."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.text import Text

from refit.errors import DataError, RefitError, SettingsError
from refit.settings import Section, SettingsTree, StoreSettings, resolve_settings
from refit.store.store import Store
from refit.texts import escape_controls, hide_secrets, show_line

COMPLETED, FAILED, REFUSED, ALARMED = 0, 1, 2, 3


class StoreTree(Section):
    """The only settings that commands about saved versions need."""

    store: StoreSettings = StoreSettings()


Given = Annotated[SettingsTree | None, Parameter(name="*")]
StoreGiven = Annotated[StoreTree | None, Parameter(name="*")]
SettingsFile = Annotated[Path | None, Parameter(name="--settings")]
DryRun = Annotated[bool, Parameter(name="--dry-run", negative=())]
Switch = Annotated[bool, Parameter(negative=())]
Trust = Annotated[bool, Parameter(name="--trust", negative=())]
AsJson = Annotated[bool, Parameter(name="--json", negative=())]

app = App(
    name="refit",
    help="Scheduled retraining of PyTorch models, correct to the bit.",
    default_parameter=Parameter(name_transform=str, negative_iterable=(), negative_none=()),
)


def as_given(given: Section | None, trust: bool = False) -> dict[str, Any]:
    """The settings that were given as flags; `trust` is short for `store.trust`."""
    flags = {} if given is None else given.model_dump(exclude_unset=True)
    return {**flags, "store": {**flags.get("store", {}), "trust": True}} if trust else flags


def open_store(given: StoreTree | None, settings_file: Path | None) -> Store:
    """The store that the settings name."""
    return Store(resolve_settings(as_given(given), settings_file)[0].store.url)


def say(text: str) -> None:
    """Print lines on standard output, with control characters escaped."""
    for line in text.split("\n"):
        print(escape_controls(line))


def cell(text: str) -> Text:
    """Build a table cell from any text: no markup, no control characters."""
    return Text("\n".join(map(escape_controls, text.split("\n"))))


def complain(error: BaseException) -> int:
    """Print an error on stderr, with a traceback unless it is a `RefitError`; return the exit code."""
    console = Console(stderr=True, soft_wrap=True)
    if not isinstance(error, RefitError):
        import traceback

        sys.stderr.write(hide_secrets("".join(traceback.format_exception(error))))
    for line in str(error).splitlines():
        console.print(f"error: {show_line(line)}", style="red", markup=False, highlight=False)
    return REFUSED if isinstance(error, SettingsError | DataError) else FAILED


def open_console() -> Console:
    """Open standard output as a console. If it is not a terminal, it is as wide as COLUMNS says, or 200 characters."""
    return Console() if sys.stdout.isatty() or os.environ.get("COLUMNS") else Console(width=200)
