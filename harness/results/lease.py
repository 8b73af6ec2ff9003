"""Which runs are going on in a results folder.

Two drivers on one folder lose nothing, because a trial is finished once only; they would merely
train the same trials twice. So each run touches a file of its own, `active/<run>.json`, and a run
that finds another one alive stops, unless it was told to join.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.study.errors import ActiveRunError, StoreError

if TYPE_CHECKING:
    from harness.results.places import File, Place
    from harness.results.store import Store

HEARTBEAT = 10.0  # seconds between two signs of life
STALE_AFTER = 60.0  # seconds without one, and a run counts as dead
LARGEST_CLAIM = 65_536  # bytes; ours have some hundred


class Lease:
    """A run's claim to a results folder, renewed by a thread while the `with` block lasts.

    Raises:
        ActiveRunError: on entering, another run is alive and `join` is false. Of two runs that
            start in the same instant both may hear this; starting again settles it.
        StoreError: the folder cannot be written.
    """

    def __init__(self, store: Store, run: str, *, join: bool = False) -> None:
        self._place = store.place
        self._location = store.location
        self._path = f"active/{run}.json"
        self._join = join
        self._started = datetime.now(UTC)
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self.renew()
        others = self._find_others()
        if others and not self._join:
            self._place.remove(self._path)
            raise ActiveRunError(
                f"{self._location}: another run is going on: {'; '.join(others)}. Wait for it, stop "
                f"it, or work beside it with --join. A run whose machine died counts as dead "
                f"{STALE_AFTER:.0f} s after its last sign of life"
            )
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._heart.join()
        with suppress(StoreError):  # the run's own end matters more; the claim goes stale
            self._place.remove(self._path)

    def renew(self) -> None:
        """Give a sign of life."""
        claim = {
            "host": platform.node(),
            "pid": os.getpid(),
            "machine": _machine(),
            "started": self._started.isoformat(timespec="seconds"),
        }
        self._place.replace(self._path, json.dumps(claim).encode())

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with suppress(StoreError):  # the run meets the same trouble when it writes a trial
                self.renew()

    def _find_others(self) -> list[str]:
        """The other runs that are alive, in words; what the dead have left is removed."""
        files = self._place.list_files("active")
        own = self._path.rpartition("/")[2]
        # By the file server's clock: machines' clocks differ.
        [now] = [file.modified for file in files if file.name == own]
        others: list[str] = []
        for file in files:
            if file.name == own or file.name.startswith("."):
                continue
            if claim := _describe_claim(self._place, file, now):
                others.append(claim)
            else:
                self._place.remove(f"active/{file.name}")
        return others


def list_claims(place: Place, *, now: float) -> list[str]:
    """The runs that are alive, in words; touches nothing.

    Units:
        now: seconds since 1970.
    """
    files = [file for file in place.list_files("active") if not file.name.startswith(".")]
    return [claim for file in files if (claim := _describe_claim(place, file, now))]


def _describe_claim(place: Place, file: File, now: float) -> str | None:
    """The run that a file of `active/` speaks for, in words; None where it is dead."""
    claim = _read_claim(place, f"active/{file.name}")
    if now - file.modified > STALE_AFTER or _is_dead(claim):
        return None
    name = file.name.removesuffix(".json")
    host, pid, started = (claim.get(key) for key in ("host", "pid", "started"))
    return f"{name} on {host} (process {pid}) since {started}"


def _read_claim(place: Place, path: str) -> dict[str, Any]:
    try:
        claim = json.loads(place.read(path, largest=LARGEST_CLAIM) or b"{}")
    except (ValueError, RecursionError):  # a stranger's
        return {}
    return claim if isinstance(claim, dict) else {}


def _machine() -> str:
    """What processes must share for their ids to mean the same: a boot and a pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()


def _is_dead(claim: dict[str, Any]) -> bool:
    """Is the process of a claim of this machine gone? False where that cannot be told from here."""
    pid = claim.get("pid")
    if claim.get("machine") != _machine() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or a number that no process can have
        return True
    except PermissionError:  # alive, and someone else's
        return False
    return False
