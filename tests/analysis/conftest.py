"""Results folders of known truth, written by the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from analysis import report
from analysis.judgement.effects import Effect, find_effects
from analysis.judgement.outcomes import collect_outcomes
from analysis.load import Results
from harness.results import Plan, Store, to_table
from harness.results.tables import schema_of
from harness.study.records import AnalysisPlan, EpochRow, GradientRow, TrialRow
from harness.study.trials import PROGRAMS, Trial, expand
from tests.builders import make_failure

TEST_IMAGES = 2_000
STEPS_PER_EPOCH = 40


@pytest.fixture(scope="session", autouse=True)
def _few_simulated_grids():
    """How often verdicts err has tests of its own; behind each report it would take seconds."""
    with mock.patch.object(report, "REPLICATES", 40):
        yield


def _in_haste(function):
    """No power fails here, and waiting for the disk is most of the time."""
    return mock.patch("os.fsync", new=int)(function)


EARLY_STEPS = (0, 1, 2, 5, 10, 30)
_STARTED = datetime(2026, 11, 22, 9, tzinfo=UTC)


def never(trial: Trial) -> bool:
    """No trial at all."""
    return False


def always(trial: Trial) -> bool:
    """Every trial."""
    return True


def nothing(trial: Trial) -> float:
    """No difference from the others."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """A grid, and what is true of it.

    Units:
        accuracy and its standard deviations in percentage points, gradient in dex.
    """

    name: str = "simulated"
    dataset: str = "digits"
    architectures: Sequence[str] = ("plain", "resnet")
    placements: Sequence[str] = ("before", "after", "none")
    depths: Sequence[int] = (8, 14)
    seeds: Sequence[int] = range(5)
    epochs: int = 6
    programs: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: PROGRAMS)
    plan: AnalysisPlan = field(default_factory=lambda: AnalysisPlan(grid="simulated"))
    settings: Mapping[str, Any] = field(default_factory=dict)

    accuracy: Callable[[Trial], float] = nothing
    """Added by what the trial is to the 90 points that it would have otherwise."""
    gradient: Callable[[Trial], float] = nothing
    """Added to log10 of the gradient flow of every layer."""
    block_sd: float = 0.6
    """Shared by the placements of a block."""
    trial_sd: float = 0.3
    """Of the trial alone: a paired difference has sqrt(2) times as much."""

    is_lost: Callable[[Trial], bool] = never
    fails: Callable[[Trial], bool] = never
    diverges: Callable[[Trial], bool] = never

    @property
    def trials(self) -> tuple[Trial, ...]:
        settings = {"dataset": self.dataset, "epochs": self.epochs, "augmentation": "none"}
        products = [
            {
                "architecture": [architecture],
                "placement": [p for p in self.placements if p in self.programs[architecture]],
                "depth": self.depths,
                **{name: [value] for name, value in {**settings, **self.settings}.items()},
            }
            for architecture in self.architectures
        ]
        return tuple(expand(products, list(self.seeds), programs=self.programs))


@_in_haste
def write_study(folder: Path, study: Study, *, rng: np.random.Generator) -> tuple[Trial, ...]:
    """Write the results of `study`; lost and failed trials leave no row, as in a real run."""
    trials, store = study.trials, Store(folder)
    write_plan(folder, trials, replace(study.plan, grid=study.name))
    block_noise = {trial.block_seed: rng.normal(0, study.block_sd) for trial in trials}
    hardness_I = rng.normal(size=TEST_IMAGES)
    for number, trial in enumerate(trials):
        noise_rng = np.random.default_rng([number, *rng.bytes(8)])
        if study.is_lost(trial):
            continue
        if study.fails(trial):
            write_failure(folder, trial)
            continue
        points = 90 + study.accuracy(trial) + block_noise[trial.block_seed]
        points += noise_rng.normal(0, study.trial_sd)
        diverged = study.diverges(trial)
        row = _trial_row(
            trial, number, points=points, diverged=diverged, hardness_I=hardness_I, rng=noise_rng
        )
        gradients = _gradients(row, dex=study.gradient(trial), rng=noise_rng)
        tables = {
            "epochs": pa.table(_epochs(row), schema_of(EpochRow)),
            "gradients": pa.table(gradients, schema_of(GradientRow)),
            "trials": to_table([row], TrialRow),
        }
        store.write_tables(trial.id, tables)
    return trials


def effects_of(quantity: str, results: Results) -> tuple[Effect, ...]:
    """All effects on accuracy or on gradient flow."""
    return find_effects(quantity, collect_outcomes(results), results.plan)


def write_plan(
    folder: Path,
    trials: Sequence[Trial],
    plan: AnalysisPlan,
    *,
    file: str = "plan.parquet",
    written: datetime = _STARTED,
    finished_before: int = 0,
) -> None:
    """Write plan.parquet, or another plan that the folder has had."""
    source = f"name: {plan.grid}\n"
    content = Plan(plan, tuple(trials), source, written, finished_before).encode()
    Store(folder).place.replace(file, content)


@mock.patch("os.fsync", new=int)  # its own: one patch cannot be entered twice
def write_failure(folder: Path, trial: Trial, *, attempt: int = 1) -> None:
    """Write the row of one attempt that broke."""
    Store(folder).write_failure(
        make_failure(
            trial,
            attempt=attempt,
            run="run-1",
            kind="out of memory",
            message="OutOfMemoryError: CUDA out of memory",
            traceback="Traceback (most recent call last):\n  ...\nOutOfMemoryError: CUDA out of memory",
            failed_at=_STARTED,
            host="node-1",
            code_digest="c0ffee",
        )
    )


def _trial_row(
    trial: Trial,
    number: int,
    *,
    points: float,
    diverged: bool,
    hardness_I: np.ndarray,
    rng: np.random.Generator,
) -> TrialRow:
    wrong = round(TEST_IMAGES * (1 - min(points, 100) / 100))
    order_I = np.argsort(hardness_I + rng.normal(0, 0.5, TEST_IMAGES))
    right_I = np.ones(TEST_IMAGES, bool)
    right_I[order_I[TEST_IMAGES - wrong :]] = False
    accuracy = float("nan") if diverged else float(right_I.mean())
    epochs = trial.epochs // 2 if diverged else trial.epochs
    started = _STARTED + timedelta(seconds=3 * number)
    seconds = trial.depth * trial.epochs / 60 * float(rng.uniform(0.9, 1.2))
    return TrialRow(
        **asdict(trial),
        trial_id=trial.id,
        arm=trial.arm,
        status="diverged" if diverged else "done",
        epochs_trained=epochs,
        steps=epochs * STEPS_PER_EPOCH,
        train_loss=float("nan") if diverged else 0.1,
        train_accuracy=float("nan") if diverged else min(accuracy + 0.03, 1),
        validation_loss=float("nan") if diverged else 0.3,
        validation_accuracy=accuracy,
        test_loss=float("nan") if diverged else 0.3,
        test_accuracy=accuracy,
        test_correct=b"" if diverged else np.packbits(right_I).tobytes(),
        calibration_error=float("nan") if diverged else 0.05,
        class_accuracy=b"" if diverged else np.full(10, accuracy).tobytes(),
        **_folding(trial, diverged=diverged),
        parameters=272_474,
        wall_time=seconds,
        probe_time=0.08 * seconds,
        peak_memory=400 * 2**20,
        attempt=1,
        run="run-1",
        started=started,
        finished=started + timedelta(seconds=seconds),
        host="node-1",
        worker=4711,
        device_kind="cpu",
        device="EPYC",
        driver="",
        python="3.11.9",
        torch="2.15.0",
        torchvision="0.29.2",
        cuda="",
        deterministic="use_deterministic_algorithms",
        commit="0123456789abcdef0123456789abcdef01234567",
        dirty=False,
        code_digest="c0ffee",
        training_version=1,
    )


def _folding(trial: Trial, *, diverged: bool) -> dict[str, float]:
    """Batch norm ahead of a conv folds with an error; without batch norm there is none to fold."""
    shares = [1.0, 1e-7, 0.0] if trial.placement == "before" else [0.5, 0.12, 0.03]
    names = ("folded_norms", "folding_error", "folding_flips")
    is_told = not diverged and "norm" in trial.program
    return dict(zip(names, shares if is_told else [float("nan")] * 3, strict=True))


def _epochs(row: TrialRow) -> dict[str, Any]:
    epoch_E = np.arange(1, row.epochs_trained + 1)
    progress_E = (1 - np.exp(-3 * epoch_E / row.epochs)) / (1 - np.exp(-3))
    reached = 0.5 if row.status == "diverged" else row.test_accuracy
    return {
        "trial_id": [row.trial_id] * len(epoch_E),
        "epoch": epoch_E,
        "step": epoch_E * STEPS_PER_EPOCH,
        "lr": row.lr * (1 + np.cos(np.pi * epoch_E / row.epochs)) / 2,
        "train_loss": 2.3 * (1 - progress_E),
        "train_accuracy": reached * progress_E,
        "validation_loss": 2.3 * (1 - 0.9 * progress_E),
        "validation_accuracy": reached * progress_E,
        "wall_time": np.full(len(epoch_E), row.wall_time / max(row.epochs, 1)),
    }


def _gradients(row: TrialRow, *, dex: float, rng: np.random.Generator) -> dict[str, Any]:
    """Flow that shrinks towards the input without batch norm and grows with it."""
    ends = [epoch * STEPS_PER_EPOCH for epoch in range(1, row.epochs_trained + 1)]
    steps = sorted({step for step in (*EARLY_STEPS, *ends) if step <= row.steps})
    layers = row.depth
    step_R = np.repeat(steps, layers)
    layer_R = np.tile(np.arange(layers), len(steps))
    has_norm = "norm" in row.program
    slope = -0.04 if has_norm else 0.15
    log_R = -1.5 + dex + slope * (layer_R - layers / 2) - 0.3 * np.log10(1 + step_R)
    log_R = log_R + rng.normal(0, 0.03) + rng.normal(0, 0.05, len(log_R))
    flow_R = 10.0**log_R
    columns = {f.name: np.full(len(flow_R), 0.5) for f in fields(GradientRow)}
    return {
        **columns,
        "trial_id": [row.trial_id] * len(flow_R),
        "step": step_R,
        "epoch": step_R / STEPS_PER_EPOCH,
        "layer": [f"blocks.{index}.conv" for index in layer_R],
        "layer_index": layer_R,
        "actgrad_total": flow_R,
        "actgrad_rel": flow_R / 8,
        "wgrad_norm": flow_R * 2,
        "weight_norm": np.full(len(flow_R), 4.0),
        "effective_grad": flow_R * 8,
        "qa_sum": rng.normal(0, 1e-7, len(flow_R)) + (0.0 if has_norm else np.nan),
        "qa_dot": rng.normal(0, 1e-7, len(flow_R)) + (0.0 if has_norm else 1.0),
    }


@pytest.fixture
def results_folder(tmp_path: Path) -> Path:
    """Results where skip-free networks gain two points from `after` and residual ones nothing."""
    study = Study(
        accuracy=lambda t: 2.0 * (t.architecture == "plain" and t.placement == "after"),
        gradient=lambda t: 0.3 * (t.architecture == "plain" and t.placement == "after"),
    )
    write_study(tmp_path / "results", study, rng=np.random.default_rng(0))
    return tmp_path / "results"
