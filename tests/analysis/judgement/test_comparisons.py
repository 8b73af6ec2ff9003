from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement.comparisons import Margins, any_of, compare, compare_twins
from analysis.judgement.effects import SKIP_FREE
from analysis.statistics.looks import Look
from analysis.statistics.proportions import RiskDifference
from analysis.statistics.resampling import sign_flip_tails
from harness.study.records import AnalysisPlan
from tests.analysis.judgement.conftest import MARGINS, PAPER, PAPER_FLOW, make

PLAIN = ("plain",)


def order(outcomes, quantity="accuracy", arm="after", baseline="before", pool=SKIP_FREE):
    member_C = outcomes.members(pool)
    return compare(outcomes, quantity, arm, baseline, member_C, margins=MARGINS, alpha=0.05)


def twins(outcomes):
    return compare_twins(outcomes, "accuracy", "after", "before", margins=MARGINS, alpha=0.05)


def plain(effects, **settings):
    return make(effects, architectures=PLAIN, **settings)


def test_margins_are_those_of_the_plan():
    plan = AnalysisPlan(grid="g", margin_accuracy=0.3, margin_gradient=1.5, margin_risk=0.2)
    margins = Margins.of_plan(plan)
    assert (margins.of("accuracy"), margins.risk) == (0.3, 0.2)
    assert margins.of("whole") == pytest.approx(np.log10(1.5))


def test_what_the_grid_cannot_compare_is_none():
    outcomes = plain([1.0])
    assert order(outcomes, arm="after-add") is None
    assert order(outcomes, pool=("resnet",)) is None
    assert twins(outcomes) is None


def test_a_mean_over_cells_is_tested_both_ways():
    found = order(plain([1.0, 0.6], sd=0.4))
    assert found.pooled.estimate == pytest.approx(0.8)
    assert found.p_up == found.pooled.p
    assert np.isnan(found.p_down)  # single cells speak against it
    assert found.p_average == found.pooled.p_equivalent(0.5)


def test_equality_is_as_sure_as_the_least_sure_cell():
    found = order(plain([0.1, 0.0, -0.3], sd=0.3))
    each = [stats.t.cdf((abs(effect) - 0.5) / (0.3 / np.sqrt(5)), 4) for effect in (0.1, 0.0, -0.3)]
    assert found.p_equal == pytest.approx(max(each))
    assert found.p_average < found.p_equal


@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("depths", [1, 4, 20])
def test_with_one_depth_at_the_margin_every_depth_is_called_equal_at_the_level(seeds, depths):
    """However sure the other depths are, and the mean over them."""
    grids = 4_000
    rng = np.random.default_rng(seeds * 100 + depths)
    outcomes = plain([0.0] * depths, seeds=seeds)
    accuracy_PCS = np.full((grids, *outcomes.accuracy_PCS.shape), 90.0)
    accuracy_PCS[:, 1] += rng.normal(0, 0.1, (grids, depths, seeds))
    accuracy_PCS[:, 1, -1] += 0.5
    wide = {"ran_PCS": outcomes.ran_PCS, "diverged_PCS": outcomes.diverged_PCS}
    wide = {name: np.broadcast_to(a, accuracy_PCS.shape) for name, a in wide.items()}
    found = order(replace(outcomes, accuracy_PCS=accuracy_PCS, **wide))
    assert np.mean(found.p_equal <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / grids)
    if depths == 20:
        assert np.mean(found.p_average <= 0.05) > 0.9


def test_one_cell_beyond_the_margin_speaks_at_its_corrected_level():
    found = order(plain([0.0, 0.0, 0.0, 2.0], sd=0.3))
    t = (2.0 - 0.5) / (0.3 / np.sqrt(5))
    assert found.p_beyond == pytest.approx(2 * 4 * stats.t.sf(t, 4))
    near = order(plain([0.45] * 4))
    assert near.pooled.p < 1e-6
    assert near.p_beyond > 0.5


def test_a_cell_opposes_only_at_its_corrected_level_and_then_withholds_the_way_up():
    """p = 0.02 in the last of four depths: significant alone, and not among four."""
    alone = order(plain([0.5, 0.5, 0.5, -1.0], sd=0.6))
    assert 0.05 / 4 < alone.parts.p[3] < 0.05
    assert not alone.is_opposed_up
    opposed = order(plain([2.0, 2.0, 2.0, -2.0], sd=0.6))
    assert opposed.is_opposed_up
    assert np.isnan(opposed.p_up)  # withheld: no test gave this
    assert opposed.p_down == 1.0 or np.isnan(opposed.p_down)


def test_a_thin_cell_is_named_and_decides_nothing():
    missing = [("after", 0, s) for s in (0, 1, 2)]
    whole, thin = order(plain([3.0, 1.0, 1.0])), order(plain([3.0, 1.0, 1.0], missing=missing))
    assert thin.is_short_K.tolist() == [True, False, False]
    assert thin.pairs_K.tolist() == [2, 5, 5]
    assert (thin.planned, thin.run) == (15, 12)
    assert thin.pooled.estimate == pytest.approx(1.0)
    assert whole.pooled.estimate == pytest.approx(5 / 3)
    assert thin.p_up < 0.01


def test_readings_that_are_no_number_count_as_no_pairs():
    outcomes = plain([0.0] * 2, flow=0.3)
    outcomes.flow_PCS["whole"][1, 0, 2:] = np.nan
    found = order(outcomes, "whole")
    assert found.is_short_K.tolist() == [True, False]
    assert found.pairs_K.tolist() == [2, 5]
    assert order(outcomes, "first").pairs_K.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("level", "dull"), [(90.0, False), (99.9, True), (99.0, False), (10.0, True), (10.5, True)]
)
def test_cells_at_chance_or_with_less_to_gain_than_the_margin_decide_nothing(level, dull):
    found = order(plain([0.0] * 2, sd=0.01, level=level))
    if level < 11:  # the noise of a trial must not lift it above chance
        outcomes = plain([0.0] * 2)
        found = order(replace(outcomes, accuracy_PCS=np.full((3, 2, 5), level)))
    assert found.is_uninformative_K.tolist() == [dull] * 2
    if dull:
        assert np.isnan([found.p_up, found.p_equal, found.p_beyond, found.p_average]).all()


def test_an_arm_at_its_ceiling_beside_one_that_is_not_is_a_difference_that_shows():
    found = order(plain([1.7] * 2, level=98.0, sd=0.05))
    assert not found.is_uninformative_K.any()
    assert found.p_up < 0.001
    collapsed = [("none", c, s) for c in range(2) for s in range(5)]
    against_none = order(plain([1.7] * 2, level=98.0, collapses=collapsed), baseline="none")
    assert not against_none.is_uninformative_K.any()
    assert against_none.p_up < 0.01


def test_a_cell_that_does_not_vary_shows_neither_equality_nor_difference():
    outcomes = plain([0.0, 0.1], images=0)
    outcomes.accuracy_PCS[1, 0] = outcomes.accuracy_PCS[0, 0]
    found = order(outcomes)
    assert found.p_equal == 1.0
    both = outcomes.accuracy_PCS.copy()
    both[1] = both[0] + 2.0
    still = order(replace(outcomes, accuracy_PCS=both.round(0)))
    assert np.isnan([still.pooled.se, still.p_up, still.p_average]).all()
    assert still.p_equal == 1.0


def test_the_risk_of_not_training_is_a_part_of_its_own():
    """`after` fails in 12 of 40 pairs, `before` in none, and the rest are equal."""
    diverges = [("after", c, s) for c in range(4) for s in range(3)]
    found = order(plain([0.0] * 8, sd=0.02, diverges=diverges))
    assert found.p_down == pytest.approx(2 * stats.binomtest(0, 12).pvalue)
    risk = RiskDifference(arm_only=np.array(12), baseline_only=np.array(0), pairs=np.array(40))
    assert found.risk == risk
    assert found.p_equal == risk.p_equivalent(0.1) == found.p_average
    assert found.p_beyond == pytest.approx(min(1, 3 * float(risk.p_beyond(0.1))))
    low, high = found.risk_interval(0.95)
    assert low < 0.3 < high


def test_a_depth_that_never_trains_does_not_drown_among_many_that_do():
    found = order(plain([0.0] * 20, sd=0.02, diverges=[("after", 7, s) for s in range(5)]))
    assert found.risk.p_equivalent(0.1) < 0.05
    assert np.isnan([found.p_equal, found.p_average]).all()


def test_a_divergence_of_both_arms_speaks_for_neither():
    diverges = [(arm, 0, 0) for arm in ("after", "before")]
    found, whole = order(plain([0.1] * 4, diverges=diverges)), order(plain([0.1] * 4))
    assert not found.is_discordant
    assert (found.run, found.pairs_K[0]) == (20, 4)
    assert found.p_up == found.pooled.p
    assert found.p_equal >= whole.p_equal


def test_a_collapse_is_an_outcome_as_a_divergence_is():
    """One that trained and learned nothing is in no mean, and in the risk."""
    place = [("after", 0, 0), ("after", 1, 2)]
    found = [order(plain([0.3] * 4, **{how: place})) for how in ("diverges", "collapses")]
    assert found[0].risk == found[1].risk
    assert found[0].risk.arm_only == 2
    assert found[0].pooled.estimate == pytest.approx(float(found[1].pooled.estimate))


def test_one_divergence_halves_the_level_and_vetoes_nothing():
    """In the arm that is better where it trains, too."""
    without = order(plain([1.0] * 4))
    for arm in ("before", "after"):
        found = order(plain([1.0] * 4, diverges=[(arm, 0, 0)]))
        assert found.p_up == pytest.approx(2 * found.pooled.p)
        assert found.p_up < 0.001
    assert without.p_up == without.pooled.p


def test_accuracy_and_risk_that_point_opposite_ways_withhold_both():
    diverges = [("after", c, s) for c in range(8) for s in range(2)]
    found = order(plain([1.0] * 8, diverges=diverges))
    assert found.is_split
    assert np.isnan([found.p_up, found.p_down]).all()
    assert not np.isnan(found.p_beyond)


def test_flow_has_no_part_of_risk():
    diverges = [("after", c, s) for c in range(4) for s in range(2)]
    found = order(plain([0.0] * 4, flow=0.3, diverges=diverges), "whole")
    assert found.p_up == found.pooled.p
    assert found.p_equal > 0.5


def test_an_arm_that_never_trains_is_judged_by_its_risk():
    diverges = [("none", c, s) for c in range(4) for s in range(5)]
    found = order(plain([1.0] * 4, diverges=diverges), baseline="none")
    assert np.isnan(found.pooled.estimate)
    assert found.is_short_K.all()
    assert found.p_up < 0.002  # every one of twenty scores lies above


def test_a_true_point_over_none_is_not_hidden_by_trials_at_chance():
    """Ten positive pairs of ten, one of them by eighty points: no t test sees them."""
    outcomes = plain([1.0, 1.0], none=0.0, collapses=[("none", 0, 0)])
    found = order(outcomes, baseline="none")
    diff_CS = outcomes.scores_of("after") - outcomes.scores_of("none")
    assert (diff_CS > 0).all()
    assert stats.ttest_1samp(diff_CS.ravel(), 0).pvalue > 0.2
    flips, _ = sign_flip_tails(diff_CS.ravel(), rng=np.random.default_rng(0))
    assert flips == 2**-10
    assert found.p_up <= 2 * 2 * 2**-10
    # Two-sided and by either of two ways; the t test of those that trained is the other.
    assert found.p_up == pytest.approx(2 * min(2 * flips, found.pooled.p))


def test_scores_at_chance_can_also_speak_for_none():
    outcomes = plain(
        [0.0] * 2, none=0.0, collapses=[("after", c, s) for c in (0, 1) for s in range(5)]
    )
    found = order(outcomes, baseline="none")
    assert found.p_down < 0.01
    assert not found.p_up < 1


def test_twins_are_compared_at_equal_depth_and_counted_in_the_thinner_cell():
    missing = [("after", 0, 0), ("before", 3, 1), ("before", 3, 2)]
    outcomes = make({"plain": [1.0, 2.0, 9.0], "resnet": [0.0, 0.5]}, missing=missing)
    found = twins(outcomes)
    assert found.is_member_C.tolist() == [True, True, False, True, True]
    assert found.pairs_K.tolist() == [3, 5]
    assert found.parts.estimate[1] == pytest.approx(1.5)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    of_parts = [np.nanmean(diff_CS[k]) - np.nanmean(diff_CS[3 + k]) for k in (0, 1)]
    assert found.pooled.estimate == pytest.approx(np.mean(of_parts))
    welch = stats.ttest_ind(diff_CS[1], diff_CS[4], equal_var=False)
    assert found.parts.p[1] == pytest.approx(welch.pvalue)


def test_a_twin_without_three_pairs_in_both_cells_decides_nothing():
    diverges = [("after", 4, s) for s in (0, 1, 2)]
    found = twins(make(PAPER, diverges=diverges))
    assert found.is_short_K.tolist() == [True, False, False, False]
    assert found.p_up == found.pooled.p  # trials that do not train are no test of an interaction
    assert found.p_up < 0.001


@pytest.mark.parametrize("quantity", ["accuracy", "first"])
@pytest.mark.parametrize("baseline", ["before", "none"])
def test_replicates_are_compared_each_by_itself(quantity, baseline):
    """Other losses, other divergences and other dull cells in each."""
    grids = [
        make(PAPER, flow=PAPER_FLOW, missing=[("after", 0, s) for s in range(3)]),
        make(PAPER, flow=PAPER_FLOW, diverges=[("after", 0, 0)], rng=1),
        make([0.0] * 4, level=99.9, none=0.0, sd=0.01),
        make([0.2, -2.0, 0.0, 0.0], collapses=[("none", 1, s) for s in range(5)]),
    ]
    arrays = ("accuracy_PCS", "ran_PCS", "diverged_PCS")
    together = replace(
        grids[0],
        flow_PCS={w: np.stack([g.flow_PCS[w] for g in grids]) for w in grids[0].flow_PCS},
        **{name: np.stack([getattr(g, name) for g in grids]) for name in arrays},
    )
    cases = [lambda o: order(o, quantity, baseline=baseline)]
    if (quantity, baseline) == ("accuracy", "before"):
        cases.append(twins)
    for ask in cases:
        found = ask(together)
        for r, grid in enumerate(grids):
            alone = ask(grid)
            for name in ("p_up", "p_down", "p_equal", "p_average", "p_beyond", "run"):
                np.testing.assert_allclose(getattr(found, name)[r], getattr(alone, name))
            for name in ("pairs_K", "is_short_K", "is_uninformative_K"):
                np.testing.assert_array_equal(getattr(found, name)[r], getattr(alone, name))
            for name in ("is_split", "is_opposed_up", "is_opposed_down", "is_discordant"):
                assert np.broadcast_to(getattr(found, name), 4)[r] == getattr(alone, name), name


@pytest.mark.parametrize("baseline", ["before", "none"])
def test_every_p_allows_for_the_looks_before_it(baseline):
    """At half of the information a test is as sure of everything, or less."""
    outcomes = plain(
        [0.45, 0.3], sd=0.3, none=0.2, diverges=[("before", 0, 0), ("none", 1, 1)], seeds=8
    )
    once, early = (
        order(replace(outcomes, look=look), baseline=baseline) for look in (Look(), Look((0.5,)))
    )
    for name in ("p_up", "p_equal", "p_average", "p_beyond"):
        assert getattr(early, name) >= getattr(once, name), name
    assert early.p_up > once.p_up
    assert np.subtract(*early.risk_interval(0.9)) < np.subtract(*once.risk_interval(0.9))


def test_one_of_several_ways_is_paid_for_by_those_that_could_be_tested():
    nan = np.array(np.nan)
    assert any_of(np.array(0.01), nan, np.array(0.5)) == 0.02
    assert np.isnan(any_of(nan, nan))
    np.testing.assert_allclose(
        any_of(np.array([0.01, np.nan, 0.7]), np.array([0.2, 0.03, 0.9])), [0.02, 0.03, 1.0]
    )
