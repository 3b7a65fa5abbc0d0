"""Objects by their digest, and model versions as folders, on a local disk or any fsspec file system. All writes are atomic."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from refit.errors import StoreError
from refit.store.disk import create_by_link, is_alive, open_files, publish_by_rename, sync_folder, try_lock, write_by_rename

OBJECTS, MODELS, DAMAGED, TEMPORARY, LOCKS = "objects", "models", "damaged", "tmp", "locks"
CLAIM, COMPLETE = ".claim", ".complete"
SECONDS_BETWEEN_TRIES = 0.2
NO_OBJECTS: Mapping[str, str] = {}


class Store:
    """The place for everything that must outlive a run.

    Args:
        url: A folder, or any fsspec URL (`s3://bucket/prefix`, `memory://name`). It is created by the first write.

    Raises:
        StoreError: The URL's protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.files, self.root = open_files(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StoreError(f"store.url: expected a folder or an fsspec URL, found {url!r}: {error}") from error
        self.root = self.root.rstrip("/")

    def put(self, data: bytes) -> str:
        """Keep `data` and return its SHA-256. An object that exists already is not written again, only marked as new."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._renew(digest, len(data)):
            self._write(f"{self.root}/{self.object_path(digest)}", data)
        return digest

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """Give a folder on this machine for files that `put_file` takes. It is removed after the block.

        An OSError in the block becomes a StoreError.
        """
        folder = self._temporary() if isinstance(self.files, LocalFileSystem) else Path(tempfile.mkdtemp(prefix="refit-"))
        try:
            with _naming_store_errors(str(folder)):
                folder.mkdir(parents=True, exist_ok=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def put_file(self, source: Path) -> str:
        """Like `put`, for a file in a `temporary_folder`, which is not read into memory and may be moved."""
        with _naming_store_errors(str(source)), source.open("rb+") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        path = f"{self.root}/{self.object_path(digest)}"
        with _naming_store_errors(path):
            if self._renew(digest, source.stat().st_size):
                return digest
            if not isinstance(self.files, LocalFileSystem):
                self.files.put_file(str(source), path)
            else:
                self.files.makedirs(Path(path).parent, exist_ok=True)
                source.replace(path)
                sync_folder(Path(path).parent)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            StoreError: The object is missing or damaged. A damaged one is moved to `damaged`.
        """
        with self._naming_object_errors(digest) as path:
            data: bytes = self.files.cat_file(path)
        self._check(digest, hashlib.sha256(data).hexdigest())
        return data

    @contextlib.contextmanager
    def local_file(self, digest: str) -> Iterator[Path]:
        """Give the bytes of `digest` as a read-only file on this machine; raises as `get` does."""
        if isinstance(self.files, LocalFileSystem):
            with self._naming_object_errors(digest) as path, open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            self._check(digest, found)
            yield Path(path)
        else:
            with self.temporary_folder() as folder:
                (folder / digest).write_bytes(self.get(digest))
                yield folder / digest

    def has(self, digest: str, size: int) -> bool:
        """Whether an object of this digest and size in bytes exists; only `get` checks its content."""
        try:
            return bool(self.files.size(f"{self.root}/{self.object_path(digest)}") == size)
        except OSError:
            return False

    def is_whole(self, digest: str) -> bool:
        """Whether the object exists and is undamaged; a damaged one is moved to `damaged`."""
        is_local = isinstance(self.files, LocalFileSystem)
        with contextlib.suppress(StoreError), self.local_file(digest) if is_local else contextlib.nullcontext(self.get(digest)):
            return True
        return False

    def are_whole(self, digests: Iterable[str]) -> bool:
        """Whether all of these objects exist and are undamaged."""
        return all(map(self.is_whole, digests))

    def write(self, path: str, data: bytes) -> None:
        """Write a file, `path` relative to the store, in one step, replacing an existing one.

        Raises:
            StoreError: The file cannot be written.
        """
        self._write(f"{self.root}/{path}", data)

    def create(self, path: str, data: bytes) -> bool:
        """Create a file, `path` relative to the store, in one step.

        Returns:
            False if it exists already; then it is left as it is.
        """
        whole_path = f"{self.root}/{path}"
        with _naming_store_errors(whole_path):
            if isinstance(self.files, LocalFileSystem):
                return create_by_link(Path(whole_path), data, self._temporary())
            try:
                self.files.pipe_file(whole_path, data, mode="create")
            except OSError:
                # Not every object store raises FileExistsError.
                if self.files.exists(whole_path):
                    return False
                raise
            return True

    def remove(self, path: str) -> None:
        """Remove a file, `path` relative to the store, if it exists; on a disk, also a folder with its content."""
        whole_path = f"{self.root}/{path}"
        with _naming_store_errors(whole_path), contextlib.suppress(FileNotFoundError):
            if isinstance(self.files, LocalFileSystem) and os.path.isdir(whole_path):
                shutil.rmtree(whole_path)
            else:
                self.files.rm_file(whole_path)

    def exists(self, path: str) -> bool:
        """Whether a file exists, `path` relative to the store."""
        with _naming_store_errors(f"{self.root}/{path}"):
            return bool(self.files.exists(f"{self.root}/{path}"))

    def try_out(self) -> None:
        """Create a file and remove it, to find out early whether the store can be written.

        Raises:
            StoreError: The store cannot be written, or its file system lacks what atomic writes need.
        """
        path = f"{TEMPORARY}/{self._temporary().name}"
        self.create(path, b"")
        self.remove(path)

    @contextlib.contextmanager
    def lock(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold a lock that one process of this machine can hold at a time. The system frees it when the process dies.

        Stores that are not on a disk have no locks, nor do some network shares. Two runs of one recipe then both do the work, and
        end with the same bits.

        Args:
            name: Name of the lock.
            on_wait: Called once if another process holds the lock.
        """
        if not isinstance(self.files, LocalFileSystem):
            yield
            return
        path = Path(self.root, LOCKS, name)
        with _naming_store_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        with file:
            if not try_lock(file):
                on_wait()
                while not try_lock(file):
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield

    def is_locked(self, name: str) -> bool:
        """Whether a process of this machine holds the lock."""
        path = Path(self.root, LOCKS, name)
        if not isinstance(self.files, LocalFileSystem) or not path.exists():
            return False
        with path.open("rb") as file:
            return not try_lock(file)

    def list_files(self, folders: Iterable[str]) -> dict[str, tuple[int, float]]:
        """List size in bytes and time of the last change (seconds since 1970) of each file in `folders`, by path in the store."""
        found = {}
        for folder in filter(self.exists, folders):
            with _naming_store_errors(f"{self.root}/{folder}"):
                for path, info in self.files.find(f"{self.root}/{folder}", detail=True).items():
                    changed_at = info.get("mtime") or self.files.modified(path).timestamp()
                    found[path.removeprefix(f"{self.root}/")] = (info["size"], changed_at)
        return found

    def list_leftovers(self, unchanged_since: float) -> dict[str, int]:
        """Find unfinished files of dead processes of this machine, and those of others that have not changed since a time.

        Args:
            unchanged_since: Seconds since 1970.

        Returns:
            Size in bytes of files and folders, by path relative to the store.
        """
        folder, found = Path(self.root, TEMPORARY), dict[str, int]()
        if not isinstance(self.files, LocalFileSystem) or not folder.is_dir():
            return found
        for path in folder.iterdir():
            with _naming_store_errors(str(path)), contextlib.suppress(FileNotFoundError):  # its writer has just finished
                parts = [part.stat() for part in (path, *path.rglob("*"))]
                is_old = max(part.st_mtime for part in parts) < unchanged_since
                match = re.fullmatch(rf"{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]{{8}}", path.name)
                if not is_alive(int(match[1])) if match else is_old:
                    found[f"{TEMPORARY}/{path.name}"] = sum(part.st_size for part in parts)
        return found

    def remove_leftovers(self) -> None:
        """Remove the unfinished files of killed processes of this machine."""
        for path in self.list_leftovers(unchanged_since=0):
            self.remove(path)

    def publish(self, folder: str, contents: Mapping[str, bytes], objects: Mapping[str, str] = NO_OBJECTS) -> bool:
        """Create `folder`, relative to the store, with these files, wholly or not at all.

        `objects` are more files, by the digests of objects that hold the same. A disk keeps their bytes once.

        On a disk the folder appears by one rename. Object stores have no renames. There, a conditional write of `CLAIM` takes the
        name, and the folder counts as published once `COMPLETE` is written, at the end.

        Returns:
            False if another writer has taken the name; its folder is left as it is.
        """
        path = f"{self.root}/{folder}"
        with _naming_store_errors(path):
            if isinstance(self.files, LocalFileSystem):
                links = {name: Path(self.root, self.object_path(digest)) for name, digest in objects.items()}
                return publish_by_rename(Path(path), contents, self._temporary(), links)
            if not self.create(f"{folder}/{CLAIM}", b""):
                return False
            for name, digest in objects.items():
                self.files.cp_file(f"{self.root}/{self.object_path(digest)}", f"{path}/{name}")
            for name, data in {**contents, COMPLETE: b""}.items():
                self.files.pipe_file(f"{path}/{name}", data)
            return True

    def is_published(self, folder: str) -> bool:
        """Whether `folder` exists and is complete."""
        if isinstance(self.files, LocalFileSystem):
            return bool(self.files.isdir(f"{self.root}/{folder}"))
        return self.exists(f"{folder}/{COMPLETE}")

    def read(self, path: str) -> bytes:
        """Return the bytes of a published file, `path` relative to the store.

        Raises:
            StoreError: The file cannot be read.
        """
        with _naming_store_errors(f"{self.root}/{path}"):
            data: bytes = self.files.cat_file(f"{self.root}/{path}")
            return data

    def read_together(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of each published file, None if it cannot be read. A remote store gets all requests at once."""
        found = self.files.cat_ranges([f"{self.root}/{path}" for path in paths], None, None)
        return [data if isinstance(data, bytes) else None for data in found]

    def names(self, folder: str) -> list[str]:
        """List the names of files and folders in `folder`, sorted; empty if there is no such folder."""
        paths: list[str] = []
        with _naming_store_errors(f"{self.root}/{folder}"), contextlib.suppress(FileNotFoundError):
            paths = self.files.ls(f"{self.root}/{folder}", detail=False)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def location(self, path: str) -> str:
        """Return the location of `path`, relative to the store: a full path on a disk, a URL elsewhere."""
        return str(self.files.unstrip_protocol(f"{self.root}/{path}")).removeprefix("file://")

    def object_path(self, digest: str) -> str:
        """Return the path of an object, relative to the store."""
        return f"{OBJECTS}/{digest[:2]}/{digest[2:]}"

    def _renew(self, digest: str, size: int) -> bool:
        """Mark an object on a disk as new; return False if it is missing or the store is remote."""
        is_there = isinstance(self.files, LocalFileSystem) and self.has(digest, size)
        if is_there:
            self.files.touch(f"{self.root}/{self.object_path(digest)}", truncate=False)
        return is_there

    @contextlib.contextmanager
    def _naming_object_errors(self, digest: str) -> Iterator[str]:
        """Give the path of an object; errors while reading it become StoreErrors."""
        path = f"{self.root}/{self.object_path(digest)}"
        try:
            yield path
        except FileNotFoundError as error:
            raise StoreError(f"{path}: expected an object of the store, found none; run again to rebuild it") from error
        except OSError as error:
            raise _unusable(path, error) from error

    def _check(self, digest: str, found: str) -> None:
        """Raise StoreError if an object's bytes have another digest, and move it out of the way."""
        if found == digest:
            return
        path, aside = f"{self.root}/{self.object_path(digest)}", f"{self.root}/{DAMAGED}/{digest}"
        with _naming_store_errors(path):
            self.files.makedirs(f"{self.root}/{DAMAGED}", exist_ok=True)
            self.files.mv(path, aside)
        raise StoreError(f"{path}: expected bytes with this digest, found others, now in {aside}; run again to rebuild it")

    def _temporary(self) -> Path:
        """Return a temporary path, whose name shows the process that writes it."""
        return Path(self.root, TEMPORARY, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")

    def _write(self, path: str, data: bytes) -> None:
        with _naming_store_errors(path):
            if isinstance(self.files, LocalFileSystem):
                write_by_rename(Path(path), data, self._temporary())
            else:
                self.files.pipe_file(path, data)


@contextlib.contextmanager
def _naming_store_errors(path: str) -> Iterator[None]:
    """Turn an OSError, such as a full disk or a broken connection, into a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{path}: expected a file of the store, found none; put it back from a backup")
    found = error.strerror or str(error)
    return StoreError(f"{path}: expected a store that can be read and written, found: {found}; free space or permit access there")
