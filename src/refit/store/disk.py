"""Atomic writes on a local disk, also on file systems that lack hard links, locks or fsync of folders."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from refit.errors import StoreError

UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""Errors of file systems that do not support an operation, such as network shares, FUSE and exFAT."""
NO_LINKS, NO_LOCKS = {*UNSUPPORTED, errno.EPERM}, {*UNSUPPORTED, errno.ENOLCK}


class _Remote:
    """A remote file system. It turns all errors of its package, such as missing credentials, into OSErrors."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._files, name)
        if not callable(found):
            return found

        def call(*given: Any, **named: Any) -> Any:
            try:
                return found(*given, **named)
            except (OSError, MemoryError, TypeError):  # a TypeError is a mistake in Refit
                raise
            except Exception as error:
                raise OSError(f"{type(error).__name__}: {error}") from error

        return call


def open_files(url: str, **options: Any) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path in it. The file system raises only OSErrors later.

    Raises:
        ImportError: The package for its protocol is not installed.
        ValueError: The protocol is unknown.
    """
    files, path = fsspec.url_to_fs(url, **options)
    return files if isinstance(files, LocalFileSystem) else _Remote(files), path


def try_lock(file: BinaryIO) -> bool:
    """Try to take the lock; return False if another process holds it. File systems without locks always grant it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_alive(process: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_by_rename(path: Path, data: bytes, temporary: Path) -> None:
    """Write a file in one step, replacing an existing one."""
    with _written_apart(path, data, temporary):
        os.replace(temporary, path)


def create_by_link(path: Path, data: bytes, temporary: Path) -> bool:
    """Create a file in one step; return False if it exists."""
    with _written_apart(path, data, temporary):
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_in_turn(path, temporary)
    return True


def _create_in_turn(path: Path, temporary: Path) -> bool:
    """Create a file without hard links, by renaming. That would replace an existing file, so processes check under a lock."""
    lock = temporary.parent.parent / "locks" / "create"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise StoreError(
                f"{path}: expected a file system with hard links, or with locks, found neither; keep the store on another"
            ) from error
        if path.exists():
            return False
        os.rename(temporary, path)
    return True


@contextlib.contextmanager
def _written_apart(path: Path, data: bytes, temporary: Path) -> Iterator[None]:
    """Write `data` to `temporary` and sync it; after the block, sync the folder of `path`, to which the caller has moved it."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_by_rename(folder: Path, contents: Mapping[str, bytes], temporary: Path, links: Mapping[str, Path]) -> bool:
    """Create a folder with its files, and links to others, in one step; return False if it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(parents=True)
    try:
        for name, data in contents.items():
            with (temporary / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name, path in links.items():
            _link(path, temporary / name)
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return True


def _link(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where there are no hard links."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in {*NO_LINKS, errno.EMLINK}:
            raise
        shutil.copyfile(source, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, if the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
