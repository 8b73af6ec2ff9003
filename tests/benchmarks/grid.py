"""A whole grid, wall time: harness.run and the tutorial's one Tune trial per training run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GRID = """
defaults: {dataset: digits, epochs: 12, warmup_epochs: 1, batch_size: 64, lr: 0.1,
           augmentation: none, probe_size: 128, pack_size: 5}
seeds: 5
grid:
  - {architecture: mlp, placement: [before, after, none], depth: [4, 8], width_factor: 0.25, lr: 0.05}
  - {architecture: [plain, resnet], placement: [before, after, none], depth: [8, 14], width_factor: 0.5}
"""


def measure_grid(*, repeats: int) -> list[dict[str, Any]]:
    """Seconds of each side, starts included, and their ratio."""
    seconds: dict[str, list[float]] = {"harness": [], "tutorial": []}
    for _ in range(repeats):
        for side, run in (("harness", _run_harness), ("tutorial", _run_tutorial)):
            with tempfile.TemporaryDirectory() as folder:
                grid = Path(folder) / "grid.yaml"
                grid.write_text(GRID, encoding="utf-8")
                begun = time.perf_counter()
                run(grid)
                seconds[side].append(time.perf_counter() - begun)
    return [
        {
            "grid": "90 trials, digits",
            **{f"{side} s": sorted(times)[len(times) // 2] for side, times in seconds.items()},
            "ratio": sorted(seconds["tutorial"])[repeats // 2]
            / sorted(seconds["harness"])[repeats // 2],
        }
    ]


def _run_harness(grid: Path) -> None:
    command = [sys.executable, "-m", "harness.run", str(grid), "-q"]
    subprocess.run([*command, "--results", str(grid.parent / "rows")], check=True)


def _run_tutorial(grid: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.grid", str(grid)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109 - an environment is text
    )


def _train_all_like_the_tutorial(grid: Path) -> None:
    import ray
    from ray import tune

    from harness.study.grid import load_grid

    trials = load_grid(grid, ["pack_size=1"]).trials  # the tutorial knows no packs

    def train(config: dict[str, Any]) -> None:
        from harness.training.images import load_images
        from tests.benchmarks.tutorial import train_like_the_tutorial

        train_like_the_tutorial(trials[config["trial"]], load_images("digits"), tune.report)

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"trial": tune.grid_search(list(range(len(trials))))},
        run_config=tune.RunConfig(storage_path=str(grid.parent / "tutorial")),
    ).fit()
    ray.shutdown()


if __name__ == "__main__":
    _train_all_like_the_tutorial(Path(sys.argv[1]))
