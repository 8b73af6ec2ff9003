"""Beyond accuracy: against scipy's paired t, and no trial is dropped for not getting there."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.judgement.outcomes import collect_outcomes
from analysis.judgement.practice import QUANTITIES, TARGET_SHARE, as_frame, measure_practice
from analysis.load import load_results
from tests.analysis.conftest import Study, write_study

SMALL = Study(architectures=("plain",), placements=("before", "after"), depths=(8,), seeds=range(4))


@pytest.fixture
def results_of(tmp_path):
    """The results of a study, with some columns of its trials replaced: name -> value, or f(row)."""

    def load(study=SMALL, **columns):
        write_study(tmp_path / study.name, study, rng=np.random.default_rng(0))
        results = load_results(str(tmp_path / study.name))
        trials = results.trials
        for name, value in columns.items():
            rows = trials.to_dict("records")
            trials = trials.assign(
                **{name: [value(row) if callable(value) else value for row in rows]}
            )
        return replace(results, trials=trials)

    return load


def measure(results):
    """Every row, by (kind, label, arm, quantity)."""
    practices = measure_practice(results, collect_outcomes(results))
    return {(p.kind, p.label, p.arm, p.quantity): p for p in practices}


def with_epochs(results, curve):
    """The results with `curve(row)` as validation accuracy after each epoch of a trial."""
    epochs = [
        {"trial_id": row["trial_id"], "epoch": epoch, "validation_accuracy": accuracy}
        for row in results.trials.to_dict("records")
        for epoch, accuracy in enumerate(curve(row), start=1)
    ]
    return replace(results, epochs=pd.DataFrame(epochs))


def test_epochs_to_the_target_are_paired_and_one_that_never_gets_there_counts_with_all(results_of):
    def curve(row):
        if row["placement"] == "before":
            return (
                [0.5, 0.6, 0.7, 0.8, 0.8, 0.8] if row["seed"] else [0.5, 0.7, 0.81, 0.8, 0.8, 0.8]
            )
        return [0.1] * 6 if row["seed"] == 3 else [0.79, 0.8, 0.8, 0.8, 0.8, 0.8]

    results = results_of(validation_accuracy=0.8)
    found = measure(with_epochs(results, curve))
    of_after = {name: found["cell", "plain-8", "after", name] for name in QUANTITIES}
    assert of_after["target"].mean == pytest.approx(100 * TARGET_SHARE * 0.8)
    assert of_after["reached"].mean == 75
    assert of_after["epochs"].mean == pytest.approx((1 + 1 + 1 + 6) / 4)
    assert found["cell", "plain-8", "before", "epochs"].mean == pytest.approx((3 + 4 + 4 + 4) / 4)
    assert of_after["epochs"].difference == pytest.approx(np.mean([-2, -3, -3, 2]))
    expected = stats.ttest_1samp([-2, -3, -3, 2], 0).confidence_interval()
    assert (of_after["epochs"].low, of_after["epochs"].high) == pytest.approx(tuple(expected))


def test_a_trial_that_diverged_never_got_there_and_has_nothing_else(results_of):
    study = replace(SMALL, diverges=lambda t: t.placement == "after" and t.seed == 1)
    found = measure(results_of(study))
    epochs = found["cell", "plain-8", "after", "epochs"]
    assert (epochs.trials, epochs.pairs) == (4, 4)
    assert found["cell", "plain-8", "after", "reached"].mean == 75
    for name in ("gap", "calibration", "worst_class", "folded", "folding_error", "folding_flips"):
        assert found["cell", "plain-8", "after", name].trials == 3, name


def test_a_trial_without_a_row_is_no_outcome(results_of):
    study = replace(SMALL, is_lost=lambda t: t.placement == "after" and t.seed == 1)
    found = measure(results_of(study))
    for name in QUANTITIES:
        assert found["cell", "plain-8", "after", name].trials == 3, name
        assert found["cell", "plain-8", "after", name].pairs == 3, name


def test_a_network_that_guesses_is_not_called_well_calibrated(results_of):
    study = replace(SMALL, accuracy=lambda t: -80.0 * (t.placement == "after" and t.seed == 0))
    found = measure(results_of(study, calibration_error=lambda row: 0.1 * (row["seed"] > 0)))
    assert found["cell", "plain-8", "after", "calibration"].mean == pytest.approx(10)
    assert found["cell", "plain-8", "after", "epochs"].trials == 4


@pytest.mark.parametrize(
    ("quantity", "column"),
    [("calibration", "calibration_error"), ("folding_error", "folding_error")],
)
def test_a_difference_is_the_paired_t_of_the_column_in_percent(results_of, quantity, column):
    trials = [(placement, seed) for placement in ("before", "after") for seed in range(4)]
    drawn = dict(zip(trials, np.random.default_rng(5).random(8), strict=True))
    results = results_of(**{column: lambda row: drawn[row["placement"], row["seed"]]})
    told = measure(results)["cell", "plain-8", "after", quantity]
    diff_S = [100 * (drawn["after", seed] - drawn["before", seed]) for seed in range(4)]
    low, high = stats.ttest_1samp(diff_S, 0).confidence_interval()
    assert (told.difference, told.low, told.high) == pytest.approx((np.mean(diff_S), low, high))


def test_the_gap_is_training_minus_test_accuracy_and_the_worst_class_the_lowest(results_of):
    shares = np.array([0.9, math.nan, 0.25, 0.7])
    results = results_of(
        train_accuracy=lambda row: row["test_accuracy"] + 0.04,
        class_accuracy=shares.tobytes(),
    )
    found = measure(results)
    assert found["cell", "plain-8", "after", "gap"].mean == pytest.approx(4)
    assert found["cell", "plain-8", "after", "worst_class"].mean == pytest.approx(25)


def test_rows_without_classes_have_no_worst_one(results_of):
    found = measure(results_of(class_accuracy=b""))
    assert math.isnan(found["cell", "plain-8", "after", "worst_class"].mean)


def test_an_architecture_is_the_mean_of_its_cells(results_of):
    found = measure(results_of(replace(SMALL, depths=(8, 14))))
    for name in QUANTITIES:
        of_cells = [found["cell", f"plain-{depth}", "after", name] for depth in (8, 14)]
        whole = found["architecture", "plain", "after", name]
        assert whole.mean == pytest.approx(np.mean([cell.mean for cell in of_cells]))
        assert whole.difference == pytest.approx(np.mean([cell.difference for cell in of_cells]))
        assert whole.pairs == 8


def test_the_baseline_has_no_difference_and_an_arm_without_batch_norm_nothing_to_fold(results_of):
    found = measure(results_of(replace(SMALL, placements=("before", "none"))))
    assert math.isnan(found["cell", "plain-8", "before", "gap"].difference)
    assert math.isnan(found["cell", "plain-8", "none", "folding_error"].mean)
    assert found["cell", "plain-8", "before", "folding_error"].mean == pytest.approx(1e-5)


def test_no_arm_changes_because_the_grid_gets_another(results_of):
    few, more = (
        measure(
            results_of(replace(SMALL, name=name, placements=placements, trial_sd=0, block_sd=0))
        )
        for name, placements in (
            ("few", ("before", "after")),
            ("more", ("before", "after", "none")),
        )
    )
    for key, told in few.items():
        if "worst" not in key[3]:
            assert more[key].mean == pytest.approx(told.mean, nan_ok=True), key


def test_the_table_has_every_number(results_of):
    practices = list(measure_practice(results := results_of(), collect_outcomes(results)))
    frame = as_frame(practices)
    assert len(frame) == 2 * 2 * len(QUANTITIES)  # a cell and its architecture, two arms
    assert list(frame.columns[:2]) == ["dataset", "recipe"]
