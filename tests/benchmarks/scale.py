"""Trials that do nothing, by the ten thousand: the run, and every command that looks at its folder.

`python -m tests.benchmarks.scale COMMAND FOLDER [TRIALS]` is one command; `measure` all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import read_peak_memory, show

SIZES = (10_000, 100_000)
CELLS = 200

GRID = """
defaults: {{dataset: digits, epochs: 1, warmup_epochs: 0, augmentation: none}}
seeds: {seeds}
grid:
  - architecture: [plain, resnet]
    placement: [before, after]
    depth: [8, 14, 20, 26, 32]
    batch_size: [16, 24, 32, 48, 64, 80, 96, 128, 192, 256]
"""

COMMANDS = ("run", "status", "resume", "report")
"""In the order in which they are given: `resume` is the same run with nothing left to do."""


def measure_scale(sizes: tuple[int, ...] = SIZES) -> list[dict[str, Any]]:
    """Seconds, milliseconds per trial and peak memory of each command, each in its own process.

    `own CPU s` is what the process itself computed, on a busy machine too.
    """
    return [row for size in sizes for row in _measure(size)]


def _measure(size: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        grid = Path(folder, "grid.yaml")
        grid.write_text(GRID.format(seeds=size // CELLS), encoding="utf-8")
        for command in COMMANDS:
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.scale", command, folder],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path.cwd())},
            )
            seconds = time.perf_counter() - begun
            own, peak = map(float, done.stdout.split()[-2:])
            yield {
                "trials": size,
                "command": command,
                "seconds": seconds,
                "ms per trial": 1e3 * seconds / size,
                "own CPU s": own,
                "peak MB": peak / 1e6,
            }


def _give(command: str, folder: Path) -> int:
    """Give one of the commands in this process; returns its exit code."""
    rows = str(folder / "rows")
    if command == "status":
        from harness.status import main

        return main([rows])
    if command == "report":
        from analysis.report import main

        return main([rows])
    from harness.cluster import fanout
    from harness.run import main

    fanout.train_missing = partial(fanout.train_missing, train=_train_nothing)
    return main([str(folder / "grid.yaml"), "--quiet", "--results", rows])


def _train_nothing(start: Any) -> list[Any]:
    """Rows that a report can judge: `after` is a little better, and no two seeds are alike."""
    from tests.builders import make_rows

    return [
        make_rows(
            trial,
            dataset=trial.dataset,
            test_accuracy=0.9
            + trial.block_seed % 1_009 / 1e5
            + 0.01 * (trial.placement == "after"),
        )
        for trial in start.pack
    ]


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        show("scale", measure_scale(tuple(map(int, sys.argv[2:])) or SIZES))
    else:
        assert _give(sys.argv[1], Path(sys.argv[2])) == 0
        print(time.process_time(), read_peak_memory())
