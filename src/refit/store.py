"""Bytes by their digest, and model versions as folders, on a local disk or any fsspec file system; all writes atomic."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from refit.errors import StoreError

TEMPORARY_PREFIX = ".writing-"
CLAIM, COMPLETE = ".claim", ".complete"


class Store:
    """The place where a run keeps what must outlive it.

    Args:
        url: A folder, or any fsspec URL (`s3://bucket/prefix`, `memory://name`). It is made when first written to.

    Raises:
        StoreError: The URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"store.url: expected a folder or an fsspec URL, found {url!r}: {error}") from error
        self.root = self.root.rstrip("/")

    def put(self, data: bytes) -> str:
        """Keep `data` and return its SHA-256; bytes that are there already are not written again."""
        digest = hashlib.sha256(data).hexdigest()
        if not self.has(digest, len(data)):
            self._write(self._object_path(digest), data)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            StoreError: They are missing, or are no longer what was written.
        """
        path = self._object_path(digest)
        try:
            data: bytes = self.files.cat_file(path)
        except OSError as error:
            raise StoreError(f"{path}: expected an object of the store, found none ({error}); run again to make it anew") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"{path}: expected bytes with this digest, found others; remove the file and run again")
        return data

    def has(self, digest: str, size: int) -> bool:
        """Whether an object of this digest and size in bytes is there; `get` checks its content."""
        try:
            return bool(self.files.size(self._object_path(digest)) == size)
        except OSError:
            return False

    def publish(self, folder: str, contents: Mapping[str, bytes]) -> bool:
        """Make `folder` (relative to the store) with these files, wholly or not at all.

        On a disk the folder appears by one rename. Object stores have none: there a conditional write of `CLAIM` takes the
        name, and the folder counts as published once `COMPLETE` is written, last.

        Returns:
            False if another writer has the name already; it is left as it is.
        """
        path = f"{self.root}/{folder}"
        with _naming_store_errors(path):
            if isinstance(self.files, LocalFileSystem):
                return _publish_by_rename(Path(path), contents)
            try:
                self.files.pipe_file(f"{path}/{CLAIM}", b"", mode="create")
            except FileExistsError:
                return False
            for name, data in {**contents, COMPLETE: b""}.items():
                self.files.pipe_file(f"{path}/{name}", data)
            return True

    def is_published(self, folder: str) -> bool:
        """Whether `folder` is there, wholly."""
        path = f"{self.root}/{folder}"
        return bool(self.files.isdir(path) if isinstance(self.files, LocalFileSystem) else self.files.exists(f"{path}/{COMPLETE}"))

    def read(self, path: str) -> bytes:
        """Return the bytes of a published file, `path` relative to the store.

        Raises:
            StoreError: It cannot be read.
        """
        with _naming_store_errors(f"{self.root}/{path}"):
            data: bytes = self.files.cat_file(f"{self.root}/{path}")
            return data

    def names(self, folder: str) -> list[str]:
        """Names of what lies in `folder`, sorted, without anything half-written; empty where there is no such folder."""
        self.files.invalidate_cache()
        try:
            paths = self.files.ls(f"{self.root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))

    def location(self, path: str) -> str:
        """Where `path`, relative to the store, is: a full path on a disk, a URL elsewhere."""
        return str(self.files.unstrip_protocol(f"{self.root}/{path}")).removeprefix("file://")

    def _object_path(self, digest: str) -> str:
        return f"{self.root}/objects/{digest[:2]}/{digest[2:]}"

    def _write(self, path: str, data: bytes) -> None:
        with _naming_store_errors(path):
            if isinstance(self.files, LocalFileSystem):
                _write_by_rename(Path(path), data)
            else:
                self.files.pipe_file(path, data)


@contextlib.contextmanager
def _naming_store_errors(path: str) -> Iterator[None]:
    """Turn a full disk, a missing permission or a broken connection into a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: expected a store that can be read and written, found {error}; mend store.url") from error


def _write_by_rename(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _publish_by_rename(folder: Path, contents: Mapping[str, bytes]) -> bool:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, data in contents.items():
            _write_by_rename(temporary / name, data)
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync_folder(folder.parent)
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
