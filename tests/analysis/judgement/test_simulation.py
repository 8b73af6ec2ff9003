from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER
from analysis.judgement.outcomes import WINDOWS, collect_outcomes
from analysis.judgement.simulation import (
    PLACEMENTS,
    Truth,
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
