"""Many tiny trials in one run: what grows with their number, and what is left at the end.

`python -m tests.benchmarks.growth FOLDER TRIALS` is one run; it prints its seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.fanout import GRID
from tests.benchmarks.timing import read_peak_memory

SIZES = (200, 2_000)
"""Trials of a run."""


def measure_growth() -> list[dict[str, Any]]:
    """Memory and open files after the first trial and after the last; files and folders left."""
    return [_measure(size) for size in SIZES]


def _measure(size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="g-") as name:  # short: Ray puts sockets below it
        folder, temporary = Path(name), Path(name, "t")
        temporary.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.growth", name, str(size)],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path.cwd())},
        )
        row: dict[str, Any] = {"trials": size, "seconds": float(done.stdout)}
        for who in ("driver", "worker"):
            of_processes = list(_read_notes(folder / who))
            for index, what in ((1, "MB"), (0, "open files")):
                first, last = (max(notes[at][index] for notes in of_processes) for at in (0, -1))
                row[f"{who}: {what}"] = f"{first} -> {last}"
        left = (path.name for path in (*temporary.iterdir(), *temporary.glob("ray/*")))
        row["left in TMPDIR"] = " ".join(sorted(left)) or "-"
        row["in the results folder"] = " ".join(sorted(p.name for p in (folder / "rows").iterdir()))
        return row


def _read_notes(file: Path) -> Iterator[list[tuple[int, int]]]:
    """By process: open files, and megabytes held at most, after each trial."""
    notes: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in file.read_text(encoding="ascii").splitlines():
        process, files, memory = line.split()
        notes[process].append((int(files), int(memory)))
    yield from notes.values()


@dataclass(frozen=True, slots=True)
class Noting:
    """Trains as a worker does, and notes what its process holds."""

    folder: Path

    def __call__(self, start: Any) -> list[Any]:
        from harness.cluster.packs import train_with_torch

        rows = train_with_torch(start)
        note(self.folder / "worker")
        return rows


def note(file: Path) -> None:
    """Append a line about this process."""
    files = len(list(Path("/proc/self/fd").iterdir()))
    with file.open("a", encoding="ascii") as notes:
        notes.write(f"{os.getpid()} {files} {read_peak_memory() // 10**6}\n")


def _run(folder: Path, size: int) -> None:
    from harness import run
    from harness.cluster import fanout
    from harness.progress import Progress

    class NotingProgress(Progress):
        def note_finish(self, finish: Any) -> None:
            super().note_finish(finish)
            note(folder / "driver")

    run.Progress = NotingProgress
    fanout.train_missing = partial(fanout.train_missing, train=Noting(folder))
    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(seeds=size // 2), encoding="utf-8")
    begun = time.perf_counter()
    code = run.main([str(grid), "--quiet", "--results", str(folder / "rows")])
    assert code == 0, code
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    _run(Path(sys.argv[1]), int(sys.argv[2]))
