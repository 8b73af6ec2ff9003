"""The difference at each length of training: against scipy, and with networks that lack a length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement.effects import find_effects
from analysis.judgement.lengths import compare_lengths
from analysis.judgement.outcomes import collect_outcomes
from analysis.load import load_results
from analysis.statistics.looks import Look
from harness.study.records import AnalysisPlan
from tests.analysis.conftest import Study, never, write_plan, write_study
from tests.analysis.judgement.test_studies import write


def speedy(trial):
    """Two points while training is short, nothing at its end."""
    return 2.0 * (trial.placement == "after" and trial.epochs == 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lengths"), {"epochs": 2}, {"epochs": 6}, accuracy=speedy)


def test_a_difference_of_speed_is_there_at_first_and_gone_at_the_end(results):
    found = list(compare_lengths(collect_outcomes(results), results.plan))
    assert [(one.networks, one.epochs, one.pairs) for one in found] == [
        ("plain", 2, 5),
        ("plain", 6, 5),
        ("resnet", 2, 5),
        ("resnet", 6, 5),
    ]
    short, long = found[:2]
    assert short.low < 2.0 < short.high
    assert short.low > 0
    assert long.low < 0.0 < long.high
    assert long.change_high < 0
    assert np.isnan(short.change_low)


def test_a_change_is_paired_by_seed(results):
    (long,) = (
        one
        for one in compare_lengths(collect_outcomes(results), results.plan)
        if (one.networks, one.epochs) == ("resnet", 6)
    )
    rows = results.trials[results.trials["architecture"] == "resnet"]
    wide = rows.pivot_table(
        index="seed", columns=["epochs", "placement"], values="test_accuracy", aggfunc="first"
    )
    difference = {n: 100 * (wide[n]["after"] - wide[n]["before"]) for n in (2, 6)}
    for told, pairs in (
        ((long.estimate, long.low, long.high), difference[6]),
        ((long.change, long.change_low, long.change_high), difference[6] - difference[2]),
    ):
        low, high = stats.t.interval(0.95, 4, pairs.mean(), stats.sem(pairs))
        assert told == pytest.approx((pairs.mean(), low, high))


def test_a_cell_is_as_sure_as_its_own_seeds_make_it_in_every_table(results):
    """Trainings of 2 epochs stopped at the first of two looks; those of 6 went on."""
    (whole,) = collect_outcomes(results, Look((0.6, 1.0)))
    planned_PCS = whole.planned_PCS.copy()
    planned_PCS[:, [cell.epochs == 2 for cell in whole.cells], 3:] = False
    outcomes = replace(
        whole,
        planned_PCS=planned_PCS,
        accuracy_PCS=np.where(planned_PCS, whole.accuracy_PCS, np.nan),
    )
    effects = [
        one
        for one in find_effects("accuracy", (outcomes,), results.plan)
        if (one.kind, one.arm, one.baseline) == ("cell", "after", "before")
    ]
    lengths = compare_lengths((outcomes,), results.plan)
    told = [(one.estimate, one.low, one.high) for one in lengths]
    shown = {one.label: (one.estimate, one.low, one.high) for one in effects}
    np.testing.assert_allclose(
        told, [shown[f"{name}-8, {n} epochs"] for name in ("plain", "resnet") for n in (2, 6)]
    )
    thin, thick = (one.high - one.low for one in effects[:2])
    assert thin > 2 * thick


@pytest.mark.parametrize(("arm", "times"), [("after-add", 1), ("after-relu", 2.4)])
def test_an_arm_that_no_claim_speaks_of_is_looked_at_once(results, arm, times):
    """It has three seeds of five, all that it was to get; another arm with three stopped at a look."""
    (whole,) = collect_outcomes(results, Look((0.6, 1.0)))
    planned_PCS = whole.planned_PCS.copy()
    planned_PCS[whole.placements.index("after"), :, 3:] = False
    names = tuple(arm if name == "after" else name for name in whole.placements)
    outcomes = replace(
        whole,
        placements=names,
        planned_PCS=planned_PCS,
        ran_PCS=whole.ran_PCS & planned_PCS,
        accuracy_PCS=np.where(planned_PCS, whole.accuracy_PCS, np.nan),
    )
    told = [
        one
        for one in find_effects("accuracy", (outcomes,), results.plan)
        if (one.kind, one.arm, one.baseline) == ("cell", arm, "before")
    ]
    assert told
    for one in told:
        by_itself = stats.t.ppf(0.975, one.pairs - 1) * one.sd / one.pairs**0.5
        assert (one.high - one.low) / 2 >= by_itself * times * 0.999
        assert ((one.high - one.low) / 2 == pytest.approx(by_itself)) == (times == 1)


def test_a_network_that_lacks_a_length_is_in_none(tmp_path):
    results = write(
        tmp_path,
        {"epochs": 2},
        {"epochs": 6},
        {"epochs": 2, "width_factor": 0.5},
        architectures=("plain",),
        accuracy=lambda t: 5.0 * (t.placement == "after" and t.width_factor == 0.5),
    )
    found = list(compare_lengths(collect_outcomes(results), results.plan))
    assert [one.cells for one in found] == [1, 1]
    assert all(one.estimate < 2 for one in found)


def test_what_only_some_networks_have_is_compared_in_these_alone(tmp_path):
    results = write(
        tmp_path,
        {"epochs": 2},
        {"epochs": 6},
        {"epochs": 2, "width_factor": 0.5},
        {"epochs": 6, "width_factor": 0.5},
        {"epochs": 12},
        architectures=("plain",),
    )
    studies = collect_outcomes(replace(results, plan=replace(results.plan, epochs=6)))
    found = list(compare_lengths(studies, results.plan))
    assert [(one.networks, one.epochs, one.cells) for one in found] == [
        *(("plain", epochs, 2) for epochs in (2, 6)),
        *(("plain-8", epochs, 1) for epochs in (2, 6, 12)),
    ]


def test_one_length_is_no_comparison(tmp_path):
    results = write(tmp_path, {"epochs": 2}, architectures=("plain",))
    assert not list(compare_lengths(collect_outcomes(results), results.plan))


def stop_early(folder, *, is_lost=never):
    """The deciding length goes on to ten seeds, the other ends at the first look's five."""
    trials = [
        trial
        for epochs, seeds in ((2, 5), (6, 10))
        for trial in write_study(
            folder,
            Study(depths=(8,), seeds=range(seeds), settings={"epochs": epochs}, is_lost=is_lost),
            rng=np.random.default_rng(epochs),
        )
    ]
    write_plan(folder, tuple(trials), AnalysisPlan(grid="g", epochs=6, looks=(5, 10)))
    results = load_results(str(folder))
    studies = collect_outcomes(results, Look((0.5, 1.0)))
    return {
        (one.networks, one.epochs): one for one in compare_lengths(studies, results.plan)
    }, studies


def test_what_never_gets_more_seeds_is_looked_at_once(tmp_path):
    found, (outcomes,) = stop_early(tmp_path)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    for (name, epochs), one in found.items():
        (c,) = (
            c
            for c, cell in enumerate(outcomes.cells)
            if (cell.architecture, cell.epochs) == (name, epochs)
        )
        diff_P = diff_CS[c][np.isfinite(diff_CS[c])]
        high = stats.t.interval(0.95, len(diff_P) - 1, diff_P.mean(), stats.sem(diff_P))[1]
        if epochs == 2:
            assert one.high == pytest.approx(high)
        else:
            assert one.high > high


def test_while_one_of_its_trials_is_missing_it_is_not_at_its_end(tmp_path):
    whole, _ = stop_early(tmp_path / "whole")
    found, _ = stop_early(tmp_path / "lost", is_lost=lambda t: (t.epochs, t.seed) == (2, 0))
    width = {
        name: of["plain", 2].high - of["plain", 2].low
        for name, of in (("whole", whole), ("lost", found))
    }
    assert width["lost"] > 2 * width["whole"]
