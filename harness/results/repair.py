"""Set damaged and foreign files aside, so that the next run trains their trials again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime

from harness.results.lease import Lease
from harness.results.store import Store
from harness.study.wording import format_count


def repair(store: Store, *, join: bool = False) -> list[str]:
    """Set aside what is damaged or foreign, so that it is trained again; what was done, in lines.

    Raises:
        ActiveRunError: a run is going on in the folder, and `join` is false.
        StoreError: the place refuses.
    """
    with hold(store, "repair", join=join):
        damage = store.find_damage()
        moved = store.set_aside(damage)
    return [
        *(f"{error.path}: {error.reason}" for error in damage),
        f"{store.location}: {format_count(len(moved), 'file')} set aside below damaged/",
    ]


def hold(store: Store, command: str, *, join: bool = False) -> AbstractContextManager[object]:
    return Lease(store, f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}", join=join)
