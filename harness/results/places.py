"""Store bytes in a folder or a bucket, with the same guarantees.

A file appears whole or not at all, even if its writer is killed. `create` never changes a file that
exists; `replace` swaps in a new one atomically. Paths are relative to the place, with "/".
Nothing is created before the first write.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from harness.study.errors import StoreError

LARGEST_FILE = 1 << 28
"""Bytes; no file of ours is larger, and a foreign file must not fill the memory."""

_A_FILE = "a file stands where a folder is needed; move it away, or name another folder"
_REASONS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.ENOTDIR: _A_FILE,
    errno.EEXIST: _A_FILE,
    errno.EISDIR: "a folder stands where a file is needed; move it away",
    errno.ENAMETOOLONG: "a name in it is too long for this disk",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOENT: "cannot be made here; name another folder",
    errno.EIO: "the disk reports an input/output error",
}
"""What an error number means to the person who has to act."""

_BUCKET_REASONS = {
    "NO_SUCH_BUCKET": "the bucket does not exist; create it",
    "ACCESS_DENIED": "access denied; check the credentials and the bucket's policy",
    "INVALID_ACCESS_KEY_ID": "the access key is unknown; check the credentials",
    "SLOW_DOWN": "the object store asks to slow down, even after retries",
    "NETWORK_CONNECTION": "the object store does not answer; check AWS_ENDPOINT_URL and the network",
}
"""The same for object stores: Arrow gives their errors a text and no number."""

_S3 = "s3://"

TEMPORARY = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{16}\.harness")
"""The names of files that are being written; `of` is the final name."""

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class File:
    """One file of a folder.

    Units:
        modified: seconds since 1970 by the clock of the file server; size: bytes.
    """

    name: str
    modified: float
    size: int
    oddity: str = ""
    """What the entry is if it is not a file, in words: "is a folder"."""


class LocalFolder:
    """A folder on a disk of this machine or on NFS."""

    readers = 2
    """Files to read at once: more would wait for each other."""
    asked_singly = 1_000
    """Most files for which checking each one is cheaper than listing all."""
    most_checked = 2_000
    """Finished trials whose every file is read before a run, at 4 ms each; of more, and of those in
    a bucket, where nothing tears a file and each one costs requests, only rows that are new."""
    indexed_from = 2_000
    """Files of `trials` read one by one from which an index of them is worth its write."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)

    def list_files(self, folder: str) -> list[File]:
        """The files of `folder` by name, hidden ones too; empty where there is no such folder."""
        return [entry for entry in self.list_entries(folder) if not entry.oddity]

    def list_entries(self, folder: str) -> list[File]:
        """The same, and every other entry there."""
        found: list[File] = []
        for entry in self._scan(folder):
            with suppress(FileNotFoundError):  # removed since it was listed
                if _is_file(entry):
                    status = entry.stat()
                    found.append(File(entry.name, status.st_mtime, status.st_size))
                else:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    what = "is a folder" if is_folder else "is a link or a pipe"
                    found.append(File(entry.name, 0.0, 0, what))
        return sorted(found, key=lambda file: file.name)

    def has(self, path: str) -> bool:
        """Does the file exist?"""
        with self._explained(path):
            return (self._root / path).is_file()

    def read(self, path: str, *, largest: int = LARGEST_FILE) -> bytes | None:
        """The file's content; None where there is no such file.

        Raises:
            ValueError: it is not a file, or it is larger than any file of ours.
            StoreError: the disk fails.
        """
        with self._explained(path), suppress(FileNotFoundError):
            status = (self._root / path).stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would block its reader
                raise ValueError("is not a file")
            _check_size(status.st_size, largest)
            return (self._root / path).read_bytes()
        return None

    def create(self, path: str, content: bytes, *, looked: bool = False) -> bool:  # noqa: ARG002
        """Write a file that does not exist yet; returns False and changes nothing if it does.

        `looked` says that the caller has just checked, so that a bucket need not. The commit is a
        hard link: it fails on an existing name, unlike a rename, so one writer wins, on NFS too.
        """
        target = self._root / path
        with self._explained(path), self._flushed(target, content) as temporary:
            try:
                target.hardlink_to(temporary)
            except FileExistsError:
                if not target.is_file():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                if target.exists():  # without hard links two writers may both get past this
                    return False
                temporary.rename(target)
            _sync_folder(target.parent)
            return True

    def replace(self, path: str, content: bytes | memoryview) -> None:
        """Write a file, in place of the one that may be there."""
        target = self._root / path
        with self._explained(path), self._flushed(target, content) as temporary:
            temporary.replace(target)
            _sync_folder(target.parent)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(path), suppress(FileNotFoundError):
            (self._root / path).unlink()

    def move(self, path: str, to: str) -> None:
        """Rename a file or a folder."""
        target = self._root / to
        with self._explained(path):
            _make_folder(target.parent)
            (self._root / path).rename(target)
            _sync_folder(target.parent)
            _sync_folder((self._root / path).parent)

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        with (
            self._explained(folder),
            suppress(FileNotFoundError),
            os.scandir(self._root / folder) as entries,
        ):
            return list(entries)
        return []

    @contextmanager
    def _flushed(self, target: Path, content: bytes | memoryview) -> Iterator[Path]:
        """A hidden file beside `target` with `content` synced to disk; removed afterwards."""
        _make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.harness")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield temporary
        finally:
            with suppress(OSError):  # already renamed; or the disk fails, and a sweep removes it
                temporary.unlink()

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self._root / path}: {explain(error)}") from error


class Bucket:
    """The objects under a prefix of an S3 bucket, or of a server that speaks the same protocol.

    There is no rename: one PUT is the commit. Arrow has no conditional PUT either, so `create` or
    its caller checks first. If two writers commit at the same instant, the later file stays, whole;
    for trials nothing is lost, because both trained the same trial.
    """

    readers = 16
    """Files to read at once: each waits for the network."""
    asked_singly = 5
    most_checked = 0
    indexed_from = 500

    def __init__(self, location: str) -> None:
        self._location = location.rstrip("/")
        self._root = self._location.removeprefix(_S3)  # not a URL: `?` and `#` are part of a key

    def list_files(self, folder: str) -> list[File]:
        """The files of `folder` by name; empty where there is no such folder."""
        return [entry for entry in self.list_entries(folder) if not entry.oddity]

    def list_entries(self, folder: str) -> list[File]:
        """The same and the folders there, in one request."""
        with self._explained(folder):
            selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
            found = [
                File(info.base_name, info.mtime_ns / 1e9, info.size)
                if info.type is fs.FileType.File
                else File(info.base_name, 0.0, 0, "is a folder")
                for info in self._bucket.get_file_info(selector)
            ]
            return sorted(found, key=lambda file: file.name)

    def has(self, path: str) -> bool:
        """Does the file exist? One request; `get_file_info` would make a second for folders."""
        with self._explained(path), suppress(FileNotFoundError):
            self._bucket.open_input_file(f"{self._root}/{path}").close()
            return True
        return False

    def read(self, path: str, *, largest: int = LARGEST_FILE) -> bytes | None:
        """The file's content; None where there is no such file.

        Raises:
            ValueError: it is larger than any file of ours.
            StoreError: the object store fails.
        """
        with (
            self._explained(path),
            suppress(FileNotFoundError),
            self._bucket.open_input_file(f"{self._root}/{path}") as file,
        ):
            _check_size(file.size(), largest)
            return file.read()
        return None

    def create(self, path: str, content: bytes, *, looked: bool = False) -> bool:
        """Write a file that does not exist yet; returns False and changes nothing if it does."""
        if not looked and self.has(path):
            return False
        self.replace(path, content)
        return True

    def replace(self, path: str, content: bytes | memoryview) -> None:
        """Write a file, in place of the one that may be there."""
        with self._explained(path):
            stream = self._bucket.open_output_stream(f"{self._root}/{path}")
            stream.write(content)  # not in a `with`: an exception would publish half a file
            stream.close()

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with self._explained(path), suppress(FileNotFoundError):
            self._bucket.delete_file(f"{self._root}/{path}")

    def move(self, path: str, to: str) -> None:
        """Rename a file or all files of a folder: each is removed once it has been copied."""
        with self._explained(path):
            source, target = f"{self._root}/{path}", f"{self._root}/{to}"
            if self._bucket.get_file_info(source).is_file:
                self._bucket.copy_file(source, target)
                self._bucket.delete_file(source)
                return
            for info in self._bucket.get_file_info(fs.FileSelector(source, recursive=True)):
                if info.is_file:
                    self._bucket.copy_file(info.path, f"{target}{info.path.removeprefix(source)}")
            self._bucket.delete_dir(source)

    @cached_property
    def _bucket(self) -> fs.S3FileSystem:
        """The object store, once it has answered; later requests get more time: it may be busy."""
        try:
            _connect(attempts=5).get_file_info(self._root)
        except OSError as error:
            if "NETWORK_CONNECTION" in str(error):
                raise
        return _connect(attempts=10)

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = str(error)
            reasons = (reason for code, reason in _BUCKET_REASONS.items() if code in text)
            raise StoreError(f"{self._location}/{path}: {next(reasons, text)}") from error


Place = LocalFolder | Bucket


def explain(error: OSError) -> str:
    """Say what went wrong, in words for the person who has to act."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def _connect(*, attempts: int) -> fs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        # Waits grow with each attempt: without an answer 5 attempts take seconds, 10 take minutes.
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        allow_delayed_open=True,  # one request per file written instead of three
    )


def complete_location(location: str) -> str:
    """The same location as an absolute one, which is valid for processes in any folder.

    Raises:
        StoreError: it is neither a path nor s3://bucket/prefix.
    """
    if not location.strip() or not location.isprintable():
        raise StoreError(
            f"{location!r} names no place for rows; give a folder, or s3://bucket/prefix"
        )
    if location.startswith(_S3):
        bucket = location.removeprefix(_S3).partition("/")[0]
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise StoreError(f"{location}: name a bucket, as in s3://bucket/prefix")
        return location
    if "://" in location or location.lower().startswith("s3:"):
        raise StoreError(f"{location}: results go to a folder or to s3://bucket/prefix")
    try:
        return str(Path(location).expanduser().absolute())
    except RuntimeError as error:  # `~` of an unknown user
        raise StoreError(f"{location}: {error}") from error


def open_place(location: str) -> Place:
    """The folder or bucket that a complete location names; it need not exist."""
    return Bucket(location) if location.startswith(_S3) else LocalFolder(location)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a loop of symbolic links
        return False


def _check_size(size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f"{size:,} bytes are more than a file of this store has")


def _make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, and sync each new name to disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # otherwise another writer was faster
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a folder: without it a new name in it may not survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)
