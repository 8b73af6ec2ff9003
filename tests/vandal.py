"""What befalls the files of a results folder under its runs: foreign ones appear, ours are spoilt."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path

from harness.results.snapshot import Snapshot

FILES = ("foreign file", "lease spoilt", "checkpoints spoilt")
"""The faults committed here."""

FOREIGN = (
    ".bashrc-{}",
    "notes-{}.txt",
    "trials/notes-{}.csv",
    "trials/.env-{}",
    "epochs/.picture-{}.png.harness",
    "failures/mine-{}.parquet",
    "partial/mine-{}.pt",
    "active/.profile-{}",
)
"""Names that the user of a folder could give; dots, and endings like ours, among them."""

LEASES = (b"", b"\xff\x00{", b"[" * 60_000, b'{"pid": "1", "host": null}', b"1e999")
"""What could stand in the file of a run that is not a run's."""

YEAR = 365 * 86_400.0


class Vandal:
    """Puts files into a results folder, spoils some that are there, and knows what must remain."""

    def __init__(self, results: Path, rng: random.Random) -> None:
        self._results = results
        self._rng = rng
        self._left: dict[str, tuple[bytes, int]] = {}

    @property
    def left(self) -> int:
        """Foreign files put there."""
        return len(self._left)

    def commit(self, fault: str) -> None:
        """Commit one of `FILES`."""
        match fault:
            case "foreign file":
                self._leave_foreign_file()
            case "lease spoilt":
                self._spoil_lease()
            case _:
                self._spoil_checkpoints()

    def count_harmed(self) -> int:
        """Foreign files that are gone or not as they were."""
        return sum(self._look_at(name) != before for name, before in self._left.items())

    def count_damaged(self, snapshot: Snapshot) -> int:
        """Files of ours whose content is not what their name promises."""
        return len({error.path for error in snapshot.damage} - self._left.keys())

    def _leave_foreign_file(self) -> None:
        """Of this year, the last or the next."""
        name = self._rng.choice(FOREIGN).format(self.left)
        self._leave(name, self._rng.randbytes(self._rng.randrange(2_000)))

    def _spoil_lease(self) -> None:
        """Of a run that goes on, or of one that never was."""
        content = self._rng.choice(LEASES)
        for path in (self._results / "active").glob("run-*.json"):
            path.write_bytes(content)
        self._leave(f"active/elsewhere-{self.left}.json", content)

    def _spoil_checkpoints(self) -> None:
        """Tear one half of them, and fill the other half with anything."""
        for path in (self._results / "partial").glob("[0-9a-f]*.pt"):
            with suppress(FileNotFoundError):  # finished meanwhile
                size = path.stat().st_size
                if self._rng.random() < 0.5:
                    os.truncate(path, self._rng.randrange(size + 1))
                else:
                    path.write_bytes(self._rng.randbytes(size))

    def _leave(self, name: str, content: bytes) -> None:
        path = self._results / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        date = time.time() + self._rng.choice((-YEAR, 0.0, YEAR))
        os.utime(path, (date, date))
        before = self._look_at(name)
        assert before is not None
        self._left[name] = before

    def _look_at(self, name: str) -> tuple[bytes, int] | None:
        path = self._results / name
        with suppress(FileNotFoundError):
            return path.read_bytes(), path.stat().st_mtime_ns
        return None
