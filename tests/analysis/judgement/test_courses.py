"""Along training: each number against an obvious twin that loops over the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement import courses
from analysis.judgement.courses import follow_arms, follow_orders
from analysis.judgement.outcomes import collect_outcomes
from analysis.load import load_results
from analysis.statistics.looks import Look
from harness.study.records import AnalysisPlan
from tests.analysis.conftest import Study, write_plan, write_study
from tests.analysis.judgement.test_studies import write

SHORT, LONG = {"epochs": 2}, {"epochs": 12}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two lengths of training; a seed of `none` learns nothing, one of `after` diverges."""
    return write(
        tmp_path_factory.mktemp("lengths"),
        SHORT,
        LONG,
        accuracy=lambda t: -80.0 * ((t.placement, t.seed) == ("none", 0)),
        gradient=lambda t: 0.3 * (t.placement == "after"),
        diverges=lambda t: (t.placement, t.seed, t.epochs) == ("after", 4, 12),
    )


@pytest.fixture(scope="module")
def studies(results):
    return collect_outcomes(results)


def values(results, *, architecture, placement, epochs, at):
    """Seed -> (validation accuracy in percent, mean log10 of flow) at an epoch's end."""
    found = {}
    for trial in results.trials.to_dict("records"):
        wanted = (architecture, placement, epochs, "done")
        if (*(trial[n] for n in ("architecture", "placement", "epochs", "status")),) != wanted:
            continue
        records = results.epochs[results.epochs["trial_id"] == trial["trial_id"]]
        (share,) = records.loc[records["epoch"] == at, "validation_accuracy"]
        flows = results.readings[results.readings["trial_id"] == trial["trial_id"]]
        (flow,) = flows.loc[flows["epoch"] == at, "mean"]
        found[trial["seed"]] = (100 * share, flow)
    return found


@pytest.mark.parametrize("epochs", [2, 12])
def test_the_band_is_bonferronis_over_the_times_shown_and_paired_by_seed(results, studies, epochs):
    found = [
        one
        for one in follow_orders(results, studies)
        if (one.networks, one.epochs) == ("resnet", epochs)
    ]
    for place, quantity in enumerate(("accuracy", "gradient")):
        course = [one for one in found if one.quantity == quantity]
        last = course[-1]
        assert (last.epoch, len(course)) == (epochs, min(len(course), 8))
        arm, baseline = (
            values(results, architecture="resnet", placement=p, epochs=epochs, at=epochs)
            for p in ("after", "before")
        )
        pairs = [arm[seed][place] - baseline[seed][place] for seed in arm]
        assert last.pairs == len(pairs) == (5 if epochs == 2 else 4)
        # An image of the 180 to validate on is 0.56 points: no spread can be told below rounding.
        rounding = (100 / 180) ** 2 / 6 if quantity == "accuracy" else 0.0
        error = math.sqrt(max(np.var(pairs, ddof=1), rounding) / len(pairs))
        low, high = stats.t.interval(1 - 0.05 / len(course), len(pairs) - 1, np.mean(pairs), error)
        numbers = (np.mean(pairs), low, high)
        if quantity == "gradient":
            numbers = tuple(10**number for number in numbers)
        assert (last.estimate, last.low, last.high) == pytest.approx(numbers)


def test_lengths_are_never_averaged(results, studies):
    found = list(follow_orders(results, studies))
    assert {one.epochs for one in found} == {2, 12}
    assert all(one.cells == 1 for one in found)
    assert max(one.epoch for one in found if one.epochs == 2) == 2


def test_every_length_is_followed_though_one_decides_and_says_which_networks_it_has(tmp_path):
    shapes = (
        ((8, 14), SHORT),
        ((8,), LONG),
        ((8,), LONG | {"final_norm": True}),  # beside the claims, and no more than that
    )
    trials = [
        trial
        for depths, settings in shapes
        for trial in write_study(
            tmp_path,
            Study(depths=depths, architectures=("plain",), settings=settings),
            rng=np.random.default_rng(0),
        )
    ]
    write_plan(tmp_path, tuple(trials), AnalysisPlan(grid="g", epochs=2))
    results = load_results(str(tmp_path))
    found = list(follow_orders(results, collect_outcomes(results)))
    assert {(one.networks, one.epochs, one.cells) for one in found} == {
        *(("plain", 2, 2), ("plain-8", 12, 1))
    }


def test_a_later_look_widens_the_band(results, studies):
    early = tuple(replace(one, look=Look((0.5, 1.0))) for one in studies)
    for only, several in zip(
        follow_orders(results, studies), follow_orders(results, early), strict=True
    ):
        assert several.high - several.low > only.high - only.low


def test_the_band_errs_on_a_course_no_more_often_than_it_says(tmp_path, monkeypatch):
    """No difference in truth: in 400 draws at most 5 % of bands miss zero anywhere, and 3 errors."""
    monkeypatch.setattr(courses, "QUANTITIES", ("accuracy",))
    results = write(tmp_path, LONG, architectures=("plain",))
    studies = collect_outcomes(results)
    rng = np.random.default_rng(0)
    misses, draws = 0, 400
    few = results.epochs[results.epochs["epoch"] <= 4]
    for _ in range(draws):
        noisy = replace(
            results, epochs=few.assign(validation_accuracy=0.8 + rng.normal(0, 0.01, len(few)))
        )
        misses += any(it.low > 0 or it.high < 0 for it in follow_orders(noisy, studies))
    assert misses / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_a_curve_is_the_mean_of_the_seeds_that_trained(results, studies):
    (point,) = (
        one
        for one in follow_arms(results, studies)
        if (one.architecture, one.arm, one.epochs, one.epoch) == ("plain", "none", 12, 8)
    )
    percents = values(results, architecture="plain", placement="none", epochs=12, at=8)
    trained = [percent for seed, (percent, _) in percents.items() if seed != 0]
    low, high = stats.t.interval(0.95, len(trained) - 1, np.mean(trained), stats.sem(trained))
    assert (point.trials, point.ran, point.variant) == (4, 5, "")
    assert (point.mean, point.low, point.high) == pytest.approx((np.mean(trained), low, high))


def test_of_two_trials_no_interval_is_told(tmp_path):
    results = write(tmp_path, SHORT, architectures=("plain",), seeds=range(2))
    points = list(follow_arms(results, collect_outcomes(results)))
    assert len(points) == 3 * 2
    assert all(math.isnan(point.low) and math.isfinite(point.mean) for point in points)
    assert not list(follow_orders(results, collect_outcomes(results)))
