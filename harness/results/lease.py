"""Record which runs are active in a results folder.

Two drivers on one folder lose no data, because a trial is committed only once; they would only
train the same trials twice. So each run touches its own file, `active/<run>.json`, and a run that
finds another one alive stops, unless it was told to join. Processes that take trials one by one (`harness.work`) also
say there which pack they are at, so that nobody else trains it meanwhile.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.study.errors import ActiveRunError, StoreError

if TYPE_CHECKING:
    from harness.results.places import File, Place
    from harness.results.store import Store

HEARTBEAT = 10.0  # seconds between two heartbeats
STALE_AFTER = 60.0  # seconds without a heartbeat after which a run counts as dead
LARGEST_CLAIM = 65_536  # bytes; ours have a few hundred

_log = logging.getLogger(__name__)

_FACTS = {"host", "pid", "machine", "started"}
"""The fields of our claims, and `_MORE`."""

_MORE = {"progress", "at", "shares"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A run, as its file in `active/` tells it."""

    words: str
    is_alive: bool
    progress: tuple[str, ...]
    """How far it is, in lines, as it was at the last heartbeat."""
    age: float
    """Seconds since then."""


class Lease:
    """A run's claim to a results folder, renewed by a thread while the `with` block lasts.

    The claim ends as soon as `stop` is set, because the run may be killed before it ends: `ray job
    stop` kills after 3 s. A trial that still commits after that is committed once, as always.

    Raises:
        ActiveRunError: on entering, another run is alive and `join` is false; of runs that share,
            because they say pack by pack what they are at, one that does not. Two runs that start
            at the same instant may both get this; start one of them again.
        StoreError: the folder cannot be written, or holds someone else's files.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        join: bool = False,
        shares: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        self._store = store
        self._place = store.place
        self._location = store.location
        self.run = run
        self._name = f"{run}.json"
        self._path = f"active/{self._name}"
        self._join = join
        self._shares = shares
        self._started = datetime.now(UTC)
        self._over = threading.Event()
        self._stop = stop or self._over
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._at: tuple[str, float] | None = None
        """The pack that this run is at, and since when: seconds since 1970."""
        self._writing = threading.Lock()
        self.describe: Callable[[], Sequence[str]] = tuple
        """How far the run is, in lines: each heartbeat carries it to those who watch the folder."""

    def __enter__(self) -> Self:
        self._store.refuse_foreign_folder()
        self.renew()
        others = [
            _describe(claim, file)
            for claim, file in self._list_alive()
            if not (self._shares and claim.get("shares"))
        ]
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
        with suppress(StoreError):  # `leave` may have written it anew after the stop
            self._place.remove(self._path)

    def has_company(self) -> bool:
        """Is another run alive in the folder?"""
        return next(self._list_alive(), None) is not None

    def renew(self) -> None:
        """Write a heartbeat."""
        with self._writing:
            claim = {
                "host": platform.node(),
                "pid": os.getpid(),
                "machine": _machine(),
                "started": self._started.isoformat(timespec="seconds"),
                "progress": self._list_progress(),
                **({"at": self._at} if self._at else {}),
                **({"shares": True} if self._shares else {}),
            }
            self._place.replace(self._path, json.dumps(claim).encode())

    def take(self, pack: str) -> bool:
        """Say that this run is at a pack now; False where another that is alive has said so before.

        A hint that saves work, no lock: where clocks differ two may get the same pack.
        """
        if self._is_taken(pack):
            return False
        self._at = pack, time.time()
        self.renew()
        if self._is_taken(pack):  # both have looked, then both have said so: one goes on
            self.leave()
            return False
        return True

    def leave(self) -> None:
        """Say that this run is at no pack."""
        self._at = None
        self.renew()

    def _is_taken(self, pack: str) -> bool:
        since = self._at[1] if self._at and self._at[0] == pack else math.inf
        for claim, file in self._list_alive():
            match claim.get("at"):
                case [str(theirs), float(then)] if theirs == pack:
                    if (then, file.name) < (since, self._name):
                        return True
        return False

    def _list_progress(self) -> list[str]:
        try:
            return list(self.describe())
        except Exception:  # noqa: BLE001  in a thread: a claim must not go stale for want of words
            _log.warning("no words for a heartbeat", exc_info=True)
            return []

    def _beat(self) -> None:
        renewed = time.monotonic()
        while not (self._over.wait(min(1.0, HEARTBEAT)) or self._stop.is_set()):
            if time.monotonic() >= renewed + HEARTBEAT:
                renewed = time.monotonic()
                with suppress(StoreError):  # the run gets the same error when it writes a trial
                    self.renew()
        with suppress(StoreError):  # ending the run matters more; the claim goes stale
            self._place.remove(self._path)

    def find_last_sign(self, files: Iterable[File]) -> float | None:
        """The file server's time of this run's last heartbeat; None where its file is gone.

        Ages are measured from this time: the clocks of machines differ, and other files may have
        any date. `files` are those of `active/`.
        """
        return next((file.modified for file in files if file.name == self._name), None)

    def _list_alive(self) -> Iterator[tuple[dict[str, Any], File]]:
        """The claims of other runs that are alive; removes those of dead runs."""
        files = self._place.list_files("active")
        now = self.find_last_sign(files) or time.time()
        for file in files:
            if file.name == self._name or not _may_be_a_claim(file):
                continue
            claim = _read_claim(self._place, f"active/{file.name}")
            if _is_alive(claim, file, now):
                yield claim, file
            elif _is_ours(claim):
                self._place.remove(f"active/{file.name}")


def hold(store: Store, command: str, *, join: bool = False) -> Lease:
    """The claim of a command that changes a folder without training."""
    return Lease(store, f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}", join=join)


def list_claims(place: Place, *, now: float) -> list[Claim]:
    """The runs that are alive, and those that ended without a word; changes no file.

    Units:
        now: seconds since 1970.
    """
    files = filter(_may_be_a_claim, place.list_files("active"))
    claims = [(_read_claim(place, f"active/{file.name}"), file) for file in files]
    return [
        Claim(
            _describe(claim, file),
            is_alive,
            _read_progress(claim),
            max(0.0, now - file.modified),
        )
        for claim, file in claims
        if (is_alive := _is_alive(claim, file, now)) or _is_ours(claim)
    ]


def _read_progress(claim: dict[str, Any]) -> tuple[str, ...]:
    lines = claim.get("progress")
    return tuple(map(str, lines)) if isinstance(lines, list) else ()


def _may_be_a_claim(file: File) -> bool:
    return file.name.endswith(".json") and not file.name.startswith(".")


def _is_ours(claim: dict[str, Any]) -> bool:
    return claim.keys() - _MORE == _FACTS


def _is_alive(claim: dict[str, Any], file: File, now: float) -> bool:
    # The file server cannot have given a date that far in the future.
    return abs(now - file.modified) <= STALE_AFTER and not _is_dead(claim)


def _describe(claim: dict[str, Any], file: File) -> str:
    """The run that a file of `active/` belongs to, in words."""
    name = file.name.removesuffix(".json")
    host, pid, started = (claim.get(key) for key in ("host", "pid", "started"))
    return f"{name} on {host} (process {pid}) since {started}"


def _read_claim(place: Place, path: str) -> dict[str, Any]:
    try:
        claim = json.loads(place.read(path, largest=LARGEST_CLAIM) or b"{}")
    except (ValueError, RecursionError):  # not a file of ours
        return {}
    return claim if isinstance(claim, dict) else {}


def _machine() -> str:
    """The boot and the pid namespace: process ids are comparable only where both are equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()


def _is_dead(claim: dict[str, Any]) -> bool:
    """Has the claim's process on this machine ended? False where this machine cannot know."""
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
