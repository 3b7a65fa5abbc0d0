"""Files that commands write for people: written beside their place, and moved there when they are complete."""

import contextlib
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from refit.errors import RefitError, SettingsError
from refit.settings import check_url
from refit.store.disk import is_alive, open_files, sync_folder
from refit.store.store import Store


def check_output(output: str, suffix: str) -> None:
    """Raise SettingsError if `output` does not end in `suffix`, is a folder, or has an unknown protocol."""
    check_url(output, "--output")
    if not output.lower().endswith(suffix):
        raise SettingsError(f"--output: expected a file ending in {suffix}, found {output}; rename it")
    files, path = _find_place(output)
    if files.isdir(path):
        raise SettingsError(f"--output: expected a file, found the folder {output}; name a file in it")


def check_outside(output: str, store: Store) -> None:
    """Raise SettingsError if `output` lies in the store, which holds only its own files."""
    files, path = _find_place(output)
    root = store.root
    if isinstance(files, LocalFileSystem):
        root, path = os.path.realpath(root), os.path.realpath(path)
    if files.protocol == store.files.protocol and path.startswith(f"{root}/"):
        raise SettingsError(f"--output: expected a file outside of the store, found {output} in {store.url}; write it elsewhere")


@contextlib.contextmanager
def replacing(output: str) -> Iterator[Path]:
    """Give a local path to write to. Its file becomes `output` when the block ends; after an error nothing is left.

    A killed process leaves a hidden file, which the next writer of the same output removes.

    Args:
        output: A path or fsspec URL. An existing file is replaced in one step.

    Raises:
        RefitError: `output` cannot be written.
    """
    files, path = _find_place(output)
    is_local = isinstance(files, LocalFileSystem)
    folder = Path(path).parent if is_local else Path(tempfile.gettempdir())
    temporary = folder / f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}-{Path(path).name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder, Path(path).name)
        yield temporary
        if is_local:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(folder)
        else:
            files.put_file(str(temporary), path)
    except OSError as error:
        raise RefitError(
            f"--output: expected a place that can be written, found {output}: {error.strerror or error};"
            " free space or permit access there"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _find_place(output: str) -> tuple[Any, str]:
    try:
        files, path = open_files(output)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"--output: expected a path or an fsspec URL, found {output!r}: {error}") from error
    return files, path


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove the unfinished files of killed writers of `name` on this machine."""
    pattern = re.compile(rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}-{re.escape(name)}")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                path.unlink()
