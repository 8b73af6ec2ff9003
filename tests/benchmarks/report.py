"""Seconds and memory of loading, judging and drawing, as a results folder grows."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.results.store import Store
from harness.results.tables import schema_of
from harness.study.grid import load_grid
from harness.study.records import AnalysisPlan, ChoiceRow, EpochRow, GradientRow
from harness.study.trials import PROGRAMS, Trial, expand
from harness.study.tuning import apply_choices, choose, expand_tuning
from harness.training.gradients import EARLY_STEPS
from tests.builders import make_rows

SIZES = (100, 1_000, 10_000)
PLACEMENTS = ("before", "after")
STEPS_PER_EPOCH = 390
TEST_IMAGES = 10_000
PREDICTABLE = 0.9
"""Share of the test images that every network gets right; on the others they differ."""

REPORT = """
import sys
from analysis.report import main
from tests.benchmarks.timing import read_peak_memory
code = main(sys.argv[1:])
print(read_peak_memory())
sys.exit(code)
"""


def measure_report() -> list[dict[str, Any]]:
    """Wall time and peak memory of `python -m analysis.report` on simulated rows.

    The readings of gradient flow are as many as those of trials of 200 epochs on CIFAR-10; the
    last line is grids/full.yaml, every trial of its three stages.
    """
    grids = {str(size): make_grid(size) for size in SIZES} | {"full.yaml": make_full_grid()}
    return [_measure(name, trials) for name, trials in grids.items()]


def _measure(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        simulate(Store(folder), trials)
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", REPORT, folder], check=True, capture_output=True, text=True
        )
        return {
            "grid": name,
            "trials": len(trials),
            "seconds": time.perf_counter() - begun,
            "peak MB": int(done.stdout.split()[-1]) / 1e6,
            "page MB": Path(folder, "report", "index.html").stat().st_size / 1e6,
        }


def make_grid(size: int) -> list[Trial]:
    """Two families at five depths, and as many seeds as it takes."""
    depths = [6 * n + 2 for n in range(1, 6)]
    product = {
        "architecture": ["plain", "resnet"],
        "placement": list(PLACEMENTS),
        "depth": depths,
    }
    seeds = range(size // (2 * len(PLACEMENTS) * len(depths)))
    return list(expand([product], list(seeds), programs=PROGRAMS))


def make_full_grid() -> list[Trial]:
    """The trials of grids/full.yaml: those that tune, the study, and the study as tuned."""
    grid = load_grid("grids/full.yaml")
    assert grid.tuning is not None
    tuning = expand_tuning(grid.trials, grid.tuning)
    choices = choose(grid.trials, grid.tuning, [make_rows(trial).trial for trial in tuning])
    return [*tuning, *grid.trials, *apply_choices(grid.trials, choices)]


def simulate(
    store: Store,
    trials: Sequence[Trial],
    *,
    choices: Sequence[ChoiceRow] = (),
    plan: AnalysisPlan | None = None,
) -> None:
    """Fill a results folder with as many rows as training would, of what a network could do."""
    store.write_plan(plan or AnalysisPlan(grid="benchmark"), trials, "simulated")
    store.write_choices(choices)
    for number, trial in enumerate(trials):
        store.write_tables(trial.id, _simulate_trial(trial, np.random.default_rng(number)))


def _simulate_trial(trial: Trial, rng: np.random.Generator) -> dict[str, pa.Table]:
    """The tables of one trial; what no report reads is constant, and takes no room on disk."""
    shared = np.random.default_rng(trial.block_seed % 2**32)
    gain = 0.02 * (trial.architecture == "plain" and trial.placement == "after")
    accuracy = 0.93 + gain + shared.normal(0, 2e-3) + rng.normal(0, 2e-3)
    right_I = rng.random(TEST_IMAGES) < (accuracy - PREDICTABLE) / (1 - PREDICTABLE)
    right_I[: int(PREDICTABLE * TEST_IMAGES)] = True
    steps = trial.epochs * STEPS_PER_EPOCH
    row = make_rows(
        trial,
        dataset=trial.dataset,
        steps=steps,
        test_accuracy=float(right_I.mean()),
        test_correct=np.packbits(right_I).tobytes(),
        wall_time=60.0 * trial.depth,
        probe_time=1.0 * trial.depth,
    ).trial
    epoch_E = np.arange(1, trial.epochs + 1)
    step_R = np.union1d(EARLY_STEPS, epoch_E * STEPS_PER_EPOCH)
    layers = np.arange(trial.depth)
    layer_G = np.tile(layers, len(step_R))
    step_G = np.repeat(step_R, len(layers))
    slope = 0.01 if trial.placement == "before" else 0.02
    log_G = -1 - slope * layer_G - 0.3 * np.log10(1 + step_G) + rng.normal(0, 0.1, len(step_G))
    return {
        "epochs": _tabulate(EpochRow, trial_id=[trial.id] * len(epoch_E), epoch=epoch_E),
        "gradients": _tabulate(
            GradientRow,
            trial_id=[trial.id] * len(step_G),
            step=step_G,
            epoch=step_G / STEPS_PER_EPOCH,
            layer=[f"blocks.{layer}.conv" for layer in layer_G],
            layer_index=layer_G,
            actgrad_total=_as_float32(10**log_G),
            qa_sum=_as_float32(rng.normal(0, 1e-7, len(step_G))),
            qa_dot=_as_float32(rng.normal(0, 1e-7, len(step_G))),
        ),
        "trials": pa.Table.from_pylist([asdict(row)], schema_of(type(row))),
    }


def _tabulate(record: type, **columns: Any) -> pa.Table:
    """A table of these columns, and ones in the others, all of which are numbers."""
    ones = np.ones(len(columns["trial_id"]), int)
    return pa.table({field.name: ones for field in fields(record)} | columns, schema_of(record))


def _as_float32(values: np.ndarray) -> np.ndarray:
    """As the probe measures them: half of the bits are zero, which is what compresses."""
    return values.astype(np.float32).astype(np.float64)
