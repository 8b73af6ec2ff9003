"""Set damaged and foreign files aside, so that the next run trains their trials again."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from harness.results.lease import Lease, hold
from harness.results.places import TEMPORARY
from harness.results.snapshot import take_snapshot
from harness.results.store import NAMES, ROOT_FILES, TABLES, Store
from harness.study.errors import DamagedFileError
from harness.study.wording import format_count

ORPHAN_AGE = 120.0
"""Seconds; younger files may belong to a worker that is about to finish its trial."""

PARTIAL_AGE = 30 * 86_400.0
"""Seconds after which nobody resumes an interrupted training."""

_SWEPT = {
    "partial": re.compile(r"[0-9a-f]{16}\.pt"),
    **NAMES,
    "active": re.compile(r".+\.json"),
    "": re.compile("|".join(map(re.escape, ROOT_FILES))),
}
"""Folder -> the names we write in it. `trials` comes after its companions, so that a trial that
finishes during the sweep is not taken for an orphan."""

_BEACON = re.compile(r"\.preflight-[0-9a-f]{16}(-[0-9a-f]{8})?")
"""The names of the files that a check of the cluster writes to `active`."""


def repair(store: Store, *, join: bool = False) -> list[str]:
    """Set damaged and foreign files aside, so that they are trained again; returns lines of report.

    Raises:
        ActiveRunError: a run is active in the folder, and `join` is false.
        StoreError: there are no results, or the place cannot be used.
    """
    store.refuse_emptiness()
    with hold(store, "repair", join=join):
        damage = find_damage(store)
        moved = set_aside(store, damage)
    return [
        *(f"{error.path}: {error.reason}" for error in damage),
        f"{store.location}: {format_count(len(moved), 'file')} set aside below damaged/",
    ]


def find_damage(store: Store) -> list[DamagedFileError]:
    """Every file whose content does not match its name, each once. Reads every file."""
    return list(take_snapshot(store, whole_up_to=math.inf).damage)


def set_aside(store: Store, damage: Iterable[DamagedFileError]) -> list[str]:
    """Move damaged files, and others of the same trial, below `damaged/`; returns their paths.

    The row in `trials/` moves first: at any moment a trial is either finished and whole or missing.
    """
    folder = f"damaged/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    moved: list[str] = []
    for error in damage:
        for path in _companions(error.path):
            within, _, name = path.rpartition("/")
            if name in {entry.name for entry in store.place.list_entries(within)}:
                store.place.move(path, f"{folder}/{path}")
                moved.append(path)
    return moved


def sweep(store: Store, lease: Lease) -> list[str]:
    """Remove the files that dead attempts left, once they are old enough; returns their paths.

    Removes only files with names that we write: the others are not ours.
    """
    listing = {folder: store.place.list_files(folder) for folder in _SWEPT}
    finished = {file.name for file in listing["trials"]}
    # By the file server's clock: a machine's may differ, and any other file may have any date.
    now = lease.find_last_sign(listing["active"])
    if now is None:
        return []
    swept = [
        f"{folder}/{file.name}".lstrip("/")
        for folder, files in listing.items()
        for file in files
        if _is_left_over(folder, file.name, finished, age=now - file.modified)
    ]
    for path in swept:
        store.place.remove(path)
    return swept


def _companions(path: str) -> list[str]:
    """The files that belong together, first the one that marks them finished."""
    folder, _, name = path.partition("/")
    return [f"{table}/{name}" for table in reversed([*TABLES])] if folder in TABLES else [path]


def _is_left_over(folder: str, name: str, finished: Collection[str], *, age: float) -> bool:
    """Is this a file of ours that is no longer needed? `finished` are the names in `trials/`."""
    if age <= ORPHAN_AGE:
        return False
    ours = _SWEPT[folder]
    if half := TEMPORARY.fullmatch(name):
        return bool(ours.fullmatch(half["of"]))
    if folder == "active":
        return bool(_BEACON.fullmatch(name))
    if not ours.fullmatch(name):
        return False
    if folder == "partial":
        return age > PARTIAL_AGE or name.replace(".pt", ".parquet") in finished
    return folder in {"epochs", "gradients"} and name not in finished
