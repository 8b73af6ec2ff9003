from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement import simulation as module
from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER
from analysis.judgement.outcomes import WINDOWS, collect_outcomes
from analysis.judgement.simulation import (
    PLACEMENTS,
    Rate,
    Truth,
    calibrate,
    find_design,
    make_reference_design,
    simulate,
    take_seeds,
)
from analysis.load import load_results
from analysis.statistics.looks import Look
from tests.analysis.conftest import Study, write_study


def rng(seed=0):
    return np.random.default_rng(seed)


def truth(design, effect=0.0, flow=0.0, **changes):
    count = len(design.cells)
    flows = dict.fromkeys(WINDOWS, np.full(count, flow))
    return Truth(effect_C=np.full(count, effect), flow_C=flows, **changes)


@pytest.fixture(scope="module")
def rates():
    return calibrate(make_reference_design(), replicates=1_000, rng=rng())


def test_every_promise_is_kept_at_five_seeds_four_depths_and_two_families(rates):
    assert not [rate for rate in rates if not rate.is_kept]
    assert sum(bool(rate.promise) for rate in rates) >= 40


@pytest.mark.parametrize(
    ("scenario", "measure", "low", "high"),
    [
        ("no effect anywhere", "any claim finds a difference where none is", np.nan, 0.05),
        ("no effect anywhere", "95 % interval of C1 holds the truth", 0.93, 0.97),
        ("no effect, 3 looks", "any claim finds a difference where none is", np.nan, 0.05),
        ("no effect, 3 looks", "95 % interval of C3 holds the truth", 0.93, np.nan),
        ("as the paper says", "C1 supported", 0.95, np.nan),
        ("one depth off by 1 margins", "C3 equivalent", np.nan, 0.05),
        ("one depth off by 1.5 margins", "C4 equivalent", np.nan, 0.05),
        ("a gain that step sizes do not carry", "C2 supported", np.nan, 0.05),
        ("a gain that step sizes carry one way only", "C2 contradicted", np.nan, 0.05),
        ("flow is higher in the first epoch only", "C4 equivalent", np.nan, 0.05),
        ("'after' diverges in 30% of its trials", "C3 equivalent", np.nan, 0.05),
        (
            "'none' learns nothing in 20% of its trials, 'after' gains",
            "C1 supported",
            0.95,
            np.nan,
        ),
        ("nothing learned anywhere", "any word at all", np.nan, 0.01),
        ("nothing left to learn", "any word at all", np.nan, 0.01),
    ],
)
def test_what_is_promised(rates, scenario, measure, low, high):
    (rate,) = (r for r in rates if (r.scenario, r.measure) == (scenario, measure))
    assert [rate.low, rate.high] == pytest.approx([low, high], nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sd", [0.2, 0.5, 1.0])
def test_errors_are_bounded_in_other_designs_too(seeds, sd):
    design = replace(make_reference_design(seeds=seeds, sd=sd), promises_power=False)
    assert all(rate.is_kept for rate in calibrate(design, replicates=4_000, rng=rng()))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_lie_in_the_estimator_breaks_a_promise(monkeypatch, factor):
    honest = module.weigh

    def weigh(outcomes, **settings):
        evidence = honest(outcomes, **settings)
        lies = {
            claim: tuple(
                replace(one, pooled=replace(one.pooled, se=factor * one.pooled.se))
                for one in several
            )
            for claim, several in evidence.comparisons.items()
        }
        return replace(evidence, comparisons=lies)

    monkeypatch.setattr(module, "weigh", weigh)
    rates = calibrate(make_reference_design(), replicates=300, rng=rng())
    assert not all(rate.is_kept for rate in rates if "interval" in rate.measure)


def test_a_look_that_forgets_those_before_it_breaks_a_promise(monkeypatch):
    """Fourteen looks by which nothing is paid."""
    monkeypatch.setattr(module, "Look", lambda _: Look())
    design = make_reference_design(seeds=16, depths=(8,))
    rates = calibrate(design, replicates=300, rng=rng())
    broken = {rate.scenario for rate in rates if not rate.is_kept}
    assert "no effect, 14 looks" in broken


def test_a_bar_allows_for_three_monte_carlo_errors():
    rate = Rate(scenario="s", measure="m", share=0.05, low=np.nan, high=0.05, replicates=10_000)
    error = np.sqrt(0.05 * 0.95 / 10_000)
    assert rate.error == pytest.approx(error)
    assert replace(rate, share=0.05 + 2.9 * error).is_kept
    assert not replace(rate, share=0.05 + 3.1 * error).is_kept
    assert not replace(rate, share=0.05 - 0.0066, low=0.05, high=np.nan).is_kept
    assert not replace(rate, high=0.0, share=0.0001).is_kept
    assert replace(rate, high=np.nan, share=1.0).is_kept


def test_simulated_grids_have_the_truth_and_the_spread_asked_for():
    design = make_reference_design(sd=0.7, flow_sd=0.05)
    effect_C = np.arange(len(design.cells)) / 10
    asked = replace(
        truth(design, flow=0.3, none_effect=-2.0, carried=(1.0, 0.25)), effect_C=effect_C
    )
    outcomes = simulate(design, asked, replicates=4_000, rng=rng())
    diff_RCS = outcomes.difference("accuracy", "after", "before")
    np.testing.assert_allclose(diff_RCS.mean((0, 2)), effect_C, atol=0.03)
    np.testing.assert_allclose(diff_RCS.std((0, 2)), 0.7, rtol=0.03)
    for window in WINDOWS:
        flow_RCS = outcomes.difference(window, "after", "before")
        assert flow_RCS.mean() == pytest.approx(0.3, abs=0.002)
        assert flow_RCS.std() == pytest.approx(0.05, rel=0.02)
    for arm, expected_C in (
        ("none", np.full(len(design.cells), -2.0)),
        (AFTER_AS_BEFORE, 0.0 * effect_C),
        (BEFORE_AS_AFTER, 0.25 * effect_C),
    ):
        found_C = outcomes.difference("accuracy", arm, "before").mean((0, 2))
        np.testing.assert_allclose(found_C, expected_C, atol=0.03)


def test_simulated_grids_lose_diverge_and_collapse_as_often_as_asked():
    design = make_reference_design()
    asked = truth(design, divergence={"after": 0.3}, missing=0.2, collapse=0.1)
    outcomes = simulate(design, asked, replicates=2_000, rng=rng())
    assert outcomes.ran_PCS.mean() == pytest.approx(0.8, abs=0.01)
    assert outcomes.diverged_PCS[:, 1].mean() == pytest.approx(0.3 * 0.8, abs=0.01)
    assert not outcomes.diverged_PCS[:, [0, *range(2, len(PLACEMENTS))]].any()
    is_done = outcomes.ran_PCS & ~outcomes.diverged_PCS
    np.testing.assert_array_equal(np.isfinite(outcomes.accuracy_PCS), is_done)
    none = PLACEMENTS.index("none")
    is_untrained = is_done[:, none] & ~outcomes.trained_PCS[:, none]
    assert is_untrained.sum() / is_done[:, none].sum() == pytest.approx(0.1, abs=0.01)


def test_an_earlier_look_sees_the_first_seeds_alone():
    design = make_reference_design(seeds=6)
    outcomes = simulate(design, truth(design), replicates=3, rng=rng())
    look = Look((0.5,))
    early = take_seeds(outcomes, 3, look)
    assert (early.seeds, early.look) == ((0, 1, 2), look)
    diffs = [o.difference("init", "after", "before")[..., :3] for o in (early, outcomes)]
    np.testing.assert_array_equal(*diffs)
    assert early.planned_PCS.shape == early.ran_PCS.shape[1:]


def test_the_generator_decides_and_repeats():
    design = make_reference_design(depths=(8, 14), seeds=4)
    first, again, other = (calibrate(design, replicates=20, rng=rng(seed)) for seed in (0, 0, 1))
    shares = [[rate.share for rate in rates] for rates in (first, again, other)]
    assert shares[0] == shares[1] != shares[2]


def test_a_real_study_is_simulated_at_its_own_spread(tmp_path):
    write_study(tmp_path, Study(seeds=range(6), trial_sd=0.5), rng=rng())
    results = load_results(str(tmp_path))
    (outcomes,) = collect_outcomes(results)
    design = find_design(outcomes, results.plan)
    for quantity, sd_C in (("accuracy", design.sd_C), ("whole", design.flow_sd_C)):
        diff_CS = outcomes.difference(quantity, "after", "before")
        np.testing.assert_allclose(sd_C, diff_CS.std(-1, ddof=1))
    assert (design.cells, design.seeds) == (outcomes.cells, 6)
    assert not design.promises_power
    assert design.name == "digits common"
    np.testing.assert_array_equal(design.block_C, outcomes.block_C)
    assert find_design(take_seeds(outcomes, 1, Look()), results.plan) is None


def test_power_is_promised_to_designs_as_large_and_as_quiet_as_the_reference():
    promised = {
        (seeds, sd): make_reference_design(seeds=seeds, sd=sd).promises_power
        for seeds in (4, 5, 8)
        for sd in (0.2, 0.25, 0.3)
    }
    assert {key for key, promises in promised.items() if promises} == {
        (seeds, sd) for seeds in (5, 8) for sd in (0.2, 0.25)
    }
