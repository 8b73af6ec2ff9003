"""Seconds and memory of loading, judging and drawing, as a results folder grows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from harness.records import AnalysisPlan
from harness.store import Store
from harness.trials import PROGRAMS, expand
from tests.harness.conftest import make_rows

SIZES = (100, 1_000, 10_000)
PLACEMENTS = ("before", "after")


def measure_report() -> list[dict[str, Any]]:
    """Wall time and peak memory of `python -m analysis.report` on simulated rows."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _simulate(folder, size)
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "analysis.report", folder], stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            rows.append(
                {
                    "trials": size,
                    "seconds": time.perf_counter() - begun,
                    "peak MB": usage.ru_maxrss * 1024 / 1e6,
                }
            )
    return rows


def _simulate(folder: str, size: int) -> None:
    depths = [6 * n + 2 for n in range(1, 6)]
    product = {
        "dataset": ["digits"],
        "architecture": ["plain", "resnet"],
        "placement": list(PLACEMENTS),
        "depth": depths,
        "epochs": [2],
    }
    seeds = range(size // (2 * len(PLACEMENTS) * len(depths)))
    trials = list(expand([product], list(seeds), programs=PROGRAMS))
    store = Store(folder)
    store.write_plan(AnalysisPlan(grid="benchmark"), trials, "simulated")
    for trial in trials:
        store.write_trial(make_rows(trial))
