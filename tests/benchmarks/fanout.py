"""Trials that do nothing: what the harness, Tune's defaults and bare Ray tasks cost per trial.

`python -m tests.benchmarks.fanout SIDE TRIALS` measures one size of one side, larger ones too.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import read_peak_memory

SIDES = {
    "run": (100, 10_000),
    "fan-out": (100, 500, 2_000, 10_000),
    "one by one": (500,),
    "tune defaults": (100,),
    "bare tasks": (100, 500, 2_000, 10_000),
}
"""How many trials each side is asked for; Tune's defaults take seconds a trial.

`run` is the whole command, from the grid to the last line it prints; `fan-out` its middle, from the
missing trials to their rows; `one by one` the same with a Tune trial for each, as for long trials.
"""

GRID = """
defaults: {{dataset: digits, epochs: 1, warmup_epochs: 0, augmentation: none}}
seeds: {seeds}
grid:
  - {{architecture: mlp, placement: [before, after], depth: 1}}
"""


def measure_fanout() -> list[dict[str, Any]]:
    """Milliseconds per no-op trial, driver memory and files, each size in a process of its own."""
    rows: list[dict[str, Any]] = []
    for side, sizes in SIDES.items():
        for size in sizes:
            done = subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.fanout", side, str(size)],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109 - an environment is text
            )
            seconds, memory, files = map(float, done.stdout.split()[-3:])
            rows.append(
                {
                    "side": side,
                    "trials": size,
                    "seconds": seconds,
                    "ms per trial": 1e3 * seconds / size,
                    "driver MB": memory / 1e6,
                    "files": int(files),
                }
            )
    return rows


def _run(side: str, size: int) -> None:
    measures: dict[str, Callable[[int, Path], float]] = {
        "run": _run_command,
        "fan-out": partial(_fan_out, seconds=None),
        "one by one": partial(_fan_out, seconds=1_000.0),
        "tune defaults": _run_tune,
        "bare tasks": _run_tasks,
    }
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            seconds = measures[side](size, Path(folder))
        memory = read_peak_memory()
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
    print(seconds, memory, files)


def _run_command(size: int, folder: Path) -> float:
    from harness.cluster import fanout
    from harness.run import main

    grid = folder / "grid.yaml"
    grid.write_text(GRID.format(seeds=size // 2), encoding="utf-8")
    fanout.train_missing = partial(fanout.train_missing, train=_train_nothing)
    begun = time.perf_counter()
    code = main([str(grid), "--quiet", "--results", str(folder / "rows")])
    assert code == 0, code
    return time.perf_counter() - begun


def _fan_out(size: int, folder: Path, *, seconds: float | None) -> float:
    """`seconds` is what a trial is said to take; the harness's own guess, if None."""
    from harness.cluster.fanout import train_missing
    from harness.cluster.forecast import Forecast
    from harness.cluster.request import Request
    from harness.progress import Progress
    from harness.results.store import Store
    from tests.builders import make_trial

    trials = [make_trial(seed=seed) for seed in range(size)]
    forecast = Forecast()
    begun = time.perf_counter()
    train_missing(
        trials,
        Store(folder),
        Request(),
        run="benchmark",
        estimate=forecast.seconds if seconds is None else lambda _: seconds,
        limit=forecast.limit,
        watcher=Progress(trials, forecast),
        stop=threading.Event(),
        train=_train_nothing,
    )
    return time.perf_counter() - begun


def _train_nothing(start: Any) -> list[Any]:
    from tests.builders import make_rows

    return [make_rows(trial) for trial in start.pack]


def _run_tune(size: int, folder: Path) -> float:
    import ray
    from ray import tune

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    begun = time.perf_counter()
    tune.Tuner(
        lambda _config: {"done": 1},
        param_space={"trial": tune.grid_search(list(range(size)))},
        run_config=tune.RunConfig(storage_path=str(folder)),
    ).fit()
    seconds = time.perf_counter() - begun
    ray.shutdown()
    return seconds


def _run_tasks(size: int, folder: Path) -> float:
    import ray

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    task = ray.remote(lambda: None)
    begun = time.perf_counter()
    ray.get([task.remote() for _ in range(size)])
    seconds = time.perf_counter() - begun
    ray.shutdown()
    return seconds


if __name__ == "__main__":
    _run(sys.argv[1], int(sys.argv[2]))
