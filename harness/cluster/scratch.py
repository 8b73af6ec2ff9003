"""Folders of a run on this machine: gone with it, or swept by the next run where it was killed.

Whose a folder is, and whether its owner lives, is told by a lock in it: the system lets go of it
when the process dies, however it does. A Ray session goes with the folder that names it.

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"harness-(code|tune)-[a-z0-9_]{8}")
_SESSION_NAME = re.compile(r"session_[0-9_-]+")
_LOCK = ".owner"
_SESSION = ".session"
"""The file that names the Ray session."""


@contextmanager
def make_scratch(what: str) -> Iterator[Path]:
    """An empty folder of this process, removed with all that is in it; a noted session as well.

    A session whose run has failed stays, with what Ray has logged there, until the next run.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"harness-{what}-"))
    with (folder / "unlocked").open("xb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "unlocked").rename(folder / _LOCK)  # never seen there without its owner
        try:
            yield folder
        except BaseException:
            if (folder / _SESSION).exists():
                for entry in folder.iterdir():
                    if entry.name not in {_LOCK, _SESSION}:
                        shutil.rmtree(entry, ignore_errors=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _remove(folder)


def note_session(folder: Path, session: str) -> None:
    """Let a Ray session go with a scratch folder."""
    (folder / _SESSION).write_bytes(os.fsencode(session))


def sweep_scratch() -> list[str]:
    """Remove what killed runs of this user have left; the folders."""
    return [
        str(folder)
        for folder in Path(tempfile.gettempdir()).glob("harness-*")
        if _NAME.fullmatch(folder.name) and _is_own_folder(folder) and _remove_if_dead(folder)
    ]


def _remove_if_dead(folder: Path) -> bool:
    with suppress(OSError), (folder / _LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner lives
        return _remove(folder)
    return False


def _remove(folder: Path) -> bool:
    """Remove a folder with its session; False where processes of the session still end."""
    with suppress(FileNotFoundError):
        session = Path(os.fsdecode((folder / _SESSION).read_bytes()))
        if _SESSION_NAME.fullmatch(session.name) and _is_own_folder(session):
            if _is_in_use(session):
                return False
            shutil.rmtree(session, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _is_own_folder(path: Path) -> bool:
    with suppress(OSError):
        status = path.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False


def _is_in_use(session: Path) -> bool:
    """Has a process a file of the session open, or is named after it? True where none can tell."""
    processes = [path for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid())]
    if not processes:
        return True
    within = f"{session}/"
    for process in processes:
        with suppress(OSError):  # gone meanwhile; or another user's, who has no part in it
            if os.fsencode(session.name) in (process / "cmdline").read_bytes():
                return True
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(link.readlink()).startswith(within):
                        return True
    return False
