import numpy as np
import pytest
from scipy import stats

from analysis.judgement.evidence import CLAIMS, call, compare, compare_twins, weigh
from analysis.judgement.outcomes import Cell, Outcomes, name_arm

WORDS = ("supported", "inconclusive", "equivalent", "equivalent", "supported")
BOTH = ("plain", "resnet")


def make(
    effects,
    *,
    flow=0.0,
    none=-5.0,
    seeds=5,
    sd=0.2,
    architectures=BOTH,
    placements=("before", "after", "none"),
    diverges=None,
    missing=None,
    path=0.0,
    rng=0,
):
    """Outcomes by hand: `effects` of `after` per depth, for every architecture or by its name.

    The sample mean and spread are exactly those asked for, so that a test of a rule does not
    depend on luck.
    """
    effects = effects if isinstance(effects, dict) else dict.fromkeys(architectures, effects)
    flow = flow if isinstance(flow, dict) else dict.fromkeys(architectures, flow)
    cells = [
        Cell(architecture=name, depth=8 + 6 * d)
        for name in architectures
        for d in range(len(effects[name]))
    ]
    rng = np.random.default_rng(rng)

    def noise(spread):
        drawn_CS = rng.normal(size=(len(cells), seeds))
        drawn_CS -= drawn_CS.mean(-1, keepdims=True)
        scale = drawn_CS.std(-1, ddof=1, keepdims=True) if seeds > 1 else 1.0
        return spread * drawn_CS / np.where(scale > 0, scale, 1.0)

    effect_C1 = np.array([[e] for name in architectures for e in effects[name]])
    flow_C1 = np.array([[flow[cell.architecture]] for cell in cells])
    accuracy_PCS = np.full((len(placements), len(cells), seeds), 90.0)
    flow_PCS = np.full_like(accuracy_PCS, -1.0)
    block_CS, flow_noise_CS = noise(1.0), noise(0.03)
    for p, placement in enumerate(placements):
        accuracy_PCS[p] += block_CS
        if placement == "after":
            accuracy_PCS[p] += effect_C1 + noise(sd) + path * flow_noise_CS
            flow_PCS[p] += flow_C1 + flow_noise_CS
            continue
        flow_PCS[p] += noise(0.03)
        if placement == "none":
            accuracy_PCS[p] += none + noise(sd)
        elif placement == name_arm("before", "after"):
            accuracy_PCS[p] += effect_C1 + noise(sd)
        elif placement == name_arm("after", "before"):
            accuracy_PCS[p] += noise(sd)
    diverged_PCS = np.zeros(accuracy_PCS.shape, bool)
    for placement, c, s in diverges or ():
        diverged_PCS[placements.index(placement), c, s] = True
    ran_PCS = np.ones(accuracy_PCS.shape, bool)
    for placement, c, s in missing or ():
        ran_PCS[placements.index(placement), c, s] = False
    trained_PCS = ran_PCS & ~diverged_PCS
    return Outcomes(
        dataset="digits",
        recipe="common",
        cells=tuple(cells),
        placements=tuple(placements),
        seeds=tuple(range(seeds)),
        block_C=np.arange(len(cells)),
        accuracy_PCS=np.where(trained_PCS, accuracy_PCS, np.nan),
        flow_PCS=np.where(trained_PCS, flow_PCS, np.nan),
        ran_PCS=ran_PCS,
        diverged_PCS=diverged_PCS & ran_PCS,
        planned_PCS=np.ones(accuracy_PCS.shape, bool),
        wall_time_PCS=np.full(accuracy_PCS.shape, 36.0),
    )


def words(outcomes, **changes):
    settings = {"margin_accuracy": 0.5, "margin_flow": 0.0969, "alpha": 0.05} | changes
    evidence = weigh(outcomes, **settings)
    called = call(
        evidence.affirms_M,
        evidence.contradicts_M,
        evidence.equates_M,
        words=evidence.words,
        alpha=settings["alpha"],
    )
    return dict(zip(CLAIMS, called.word_M.tolist(), strict=True)) | {
        "consistent": bool(called.is_consistent_M.any())
    }


def order(outcomes, pool=("plain",), **changes):
    settings = {"margin": 0.5, "alpha": 0.05} | changes
    return compare(outcomes, "accuracy", "after", "before", pool, **settings)


PAPER = {"plain": [1.0] * 4, "resnet": [0.0] * 4}
PAPER_FLOW = {"plain": 0.3, "resnet": 0.0}


def test_what_the_paper_says_is_recognised():
    found = words(make(PAPER, flow=PAPER_FLOW))
    assert found == {
        "C1": "supported",
        "C2": "inconclusive",
        "C3": "equivalent",
        "C4": "equivalent",
        "C5": "supported",
        "consistent": False,
    }


def test_the_opposite_is_contradicted():
    found = words(make({"plain": [-1.0] * 4, "resnet": [1.2] * 4}, flow=-0.3))
    assert {found[claim] for claim in CLAIMS} == {"contradicted"}


def test_nothing_is_equivalent_everywhere():
    found = words(make([0.0] * 4))
    assert {found[claim] for claim in CLAIMS} == {"equivalent"}


def test_a_small_but_certain_gain_supports_a_direction_and_an_equality_alike():
    found = words(make([0.25] * 4, sd=0.1))
    assert (found["C1"], found["C3"]) == ("supported", "equivalent")


def test_one_order_must_beat_no_norm_too():
    assert words(make(PAPER, none=3.0))["C1"] == "contradicted"
    assert words(make(PAPER, none=1.0))["C1"] == "inconclusive"


def test_a_grid_without_none_is_judged_on_the_order_alone():
    assert words(make(PAPER, placements=("before", "after")))["C1"] == "supported"


def test_the_larger_p_counts_where_both_must_hold():
    outcomes = make(PAPER, none=0.6)
    evidence = weigh(outcomes, margin_accuracy=0.5, margin_flow=0.1, alpha=0.05)
    order, norm = evidence.comparisons["C1"]
    assert norm.p_up > order.p_up
    assert evidence.affirms_M[0] == norm.p_up


def test_an_effect_that_flips_its_sign_with_depth_is_never_equivalent():
    found = words(make([2.0, -2.0, 2.0, -2.0]))
    assert found["C1"] != "equivalent"
    assert found["C3"] == "contradicted"  # single depths lie beyond the margin
    small = words(make([0.45, -0.45, 0.45, -0.45], sd=0.3))
    assert small["C3"] == "inconclusive"


def test_a_single_depth_that_goes_the_other_way_withholds_support():
    outcomes = make({"plain": [2.0, 2.0, 2.0, -1.0], "resnet": [0.0] * 4})
    comparison = order(outcomes)
    assert comparison.pooled.p < 1e-6
    assert comparison.is_opposed_up
    assert words(outcomes)["C1"] == "inconclusive"


def test_a_single_depth_opposes_only_at_its_corrected_level():
    """p = 0.02 in the last of four depths: significant alone, and not among four."""
    found = order(make([0.5, 0.5, 0.5, -1.0], sd=0.6))
    assert 0.05 / 4 < found.parts.p[3] < 0.05
    assert not found.is_opposed_up
    assert order(make([0.5, 0.5, 0.5, -2.0], sd=0.6)).is_opposed_up


def test_equality_needs_every_depth_or_their_agreement():
    agreeing = order(make([0.2, -0.1, 0.15, -0.2], sd=0.3))
    assert agreeing.is_homogeneous
    assert agreeing.p_equal == agreeing.pooled.p_equivalent(0.5)
    # Significantly different from each other, yet each by itself within the margin.
    precise = order(make([0.3, -0.3, 0.3, -0.3], sd=0.05))
    assert precise.p_heterogeneity < 1e-4
    assert precise.is_homogeneous
    three_of_four = order(make([0.0, 0.0, 0.0, 0.45], sd=0.1))
    assert not three_of_four.is_homogeneous
    apart = order(make([0.4, -0.4, 0.4, -0.4], sd=0.3))
    assert not apart.is_homogeneous
    assert apart.p_equal == 1.0


def test_a_depth_estimated_beyond_the_margin_withholds_equality():
    """Too noisy a depth to differ significantly, and too far out to be ignored."""
    outcomes = make([0.0, 0.0, 0.0, 0.55], sd=0.6)
    comparison = order(outcomes)
    assert comparison.p_heterogeneity > 0.1
    assert not comparison.is_homogeneous


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_pairs_nothing_is_decided(seeds):
    found = words(make(PAPER, flow=PAPER_FLOW, seeds=seeds, sd=0.01))
    assert {found[claim] for claim in CLAIMS} == {"inconclusive"}


def test_readings_that_are_no_number_count_as_no_pairs():
    """Every trial of `plain` trained, and in one cell only two pairs have a flow."""
    outcomes = make(PAPER, flow=PAPER_FLOW, path=20.0, seeds=10)
    settings = {"margin": 0.0969, "alpha": 0.05}
    whole = compare(outcomes, "gradient", "after", "before", ("plain",), **settings)
    assert whole.p_up < 1e-6
    outcomes.flow_PCS[1, 0, 2:] = np.nan
    thin = compare(outcomes, "gradient", "after", "before", ("plain",), **settings)
    assert (thin.fewest_pairs, thin.fewest_trained) == (10, 2)
    assert thin.pooled.p < 1e-6
    assert (thin.p_up, thin.p_beyond, thin.p_equal) == (1.0, 1.0, 1.0)
    assert not words(outcomes)["consistent"]


def test_an_interaction_needs_three_trained_pairs_in_every_twin():
    """`after` gains without skips where it trains, but with them it trains in two pairs only."""
    diverges = [("after", 4, s) for s in (0, 1, 2)]
    twins = compare_twins(
        make(PAPER, diverges=diverges), "accuracy", "after", "before", margin=0.5, alpha=0.05
    )
    assert twins.pooled.p < 1e-6
    assert (twins.fewest_pairs, twins.fewest_trained) == (5, 2)
    assert (twins.p_up, twins.p_equal) == (1.0, 1.0)


def test_what_was_planned_and_what_ran_are_both_counted():
    missing = [("after", 0, 0), ("before", 1, 2)]
    diverges = [(arm, 2, 1) for arm in ("after", "before")]
    found = order(make(PAPER, missing=missing, diverges=diverges))
    assert (found.planned, found.run, found.both_diverged) == (20, 18, 1)


def test_one_thin_cell_withholds_the_word():
    missing = [("after", 0, s) for s in (0, 1, 2)]
    found = words(make(PAPER, flow=PAPER_FLOW, missing=missing))
    assert (found["C1"], found["C5"]) == ("inconclusive", "inconclusive")
    assert found["C3"] == "equivalent"


def test_nothing_is_equivalent_while_divergences_are_discordant():
    outcomes = make([0.0] * 4, seeds=8, diverges=[("after", 4, 0)])
    found = words(outcomes)
    assert found["C3"] == "inconclusive"
    assert found["C4"] == "inconclusive"
    assert found["C1"] == "equivalent"  # of the cells without a divergence
    assert found["C5"] == "inconclusive"


def test_a_divergence_of_both_arms_does_not_speak_for_either():
    diverges = [(arm, 4, 0) for arm in ("after", "before")]
    assert words(make([0.0] * 4, diverges=diverges))["C3"] == "equivalent"


def test_a_cell_that_hardly_ever_trains_is_not_equivalent():
    """Both arms diverge together in three of five pairs: no discordance, and too few that train."""
    diverges = [(arm, 4, s) for arm in ("after", "before") for s in range(3)]
    found = order(make([0.0] * 4, diverges=diverges), pool=("resnet",))
    assert (found.arm_only, found.baseline_only) == (0, 0)
    assert (found.fewest_pairs, found.fewest_trained) == (5, 2)
    assert found.p_equal == 1.0


def test_divergences_alone_can_contradict():
    """`after` diverges in 12 of 40 pairs, `before` in none, and the rest are equal."""
    diverges = [("after", c, s) for c in range(4) for s in range(3)]
    outcomes = make([0.0] * 8, architectures=("plain",), diverges=diverges)
    comparison = order(outcomes)
    assert comparison.p_down == pytest.approx(2 * stats.binomtest(0, 12).pvalue)
    assert words(outcomes)["C1"] == "contradicted"


def test_survivors_do_not_speak_for_the_arm_that_diverges():
    """Where `after` trains it is better, but it is the one that diverges."""
    outcomes = make(PAPER, diverges=[("after", 0, 0), ("after", 1, 0)])
    assert order(outcomes).p_up == 1.0
    assert words(outcomes)["C1"] == "inconclusive"


def test_divergences_of_the_baseline_halve_the_level():
    with_one = order(make(PAPER, diverges=[("before", 0, 0)]))
    assert with_one.p_up == pytest.approx(2 * with_one.pooled.p)
    without = order(make(PAPER))
    assert without.p_up == without.pooled.p


def test_a_divergent_arm_that_is_better_where_it_trains_contradicts_nothing():
    diverges = [("after", c, s) for c in range(3) for s in range(3)]
    outcomes = make([0.6] * 8, sd=0.8, architectures=("plain",), diverges=diverges)
    comparison = order(outcomes)
    assert comparison.pooled.p < 0.01
    assert not comparison.is_opposed_down  # no cell is significant by itself
    assert (comparison.p_up, comparison.p_down) == (1.0, 1.0)


def test_an_arm_that_never_trains_is_judged_by_its_divergences():
    diverges = [("none", c, s) for c in range(4) for s in range(5)]
    outcomes = make(PAPER, diverges=diverges)
    norm = compare(outcomes, "accuracy", "after", "none", ("plain",), margin=0.5, alpha=0.05)
    assert np.isnan(norm.pooled.estimate)
    assert norm.p_up == pytest.approx(2 * stats.binomtest(0, 20).pvalue)
    assert words(outcomes)["C1"] == "supported"


def test_where_no_pair_trains_nothing_is_found():
    arms = ("after", "before", "none")
    diverges = [(arm, c, s) for arm in arms for c in range(8) for s in range(5)]
    outcomes = make(PAPER, diverges=diverges)
    assert np.isnan(order(outcomes, pool=("resnet",)).p_beyond)
    found = words(outcomes)
    assert {found[claim] for claim in CLAIMS} == {"inconclusive"}


def test_observed_flow_that_accuracy_follows_is_consistent_and_no_more():
    outcomes = make(PAPER, flow=PAPER_FLOW, path=20.0, seeds=10)
    found = words(outcomes)
    assert found["C2"] == "inconclusive"
    assert found["consistent"]


def test_accuracy_that_falls_where_flow_rises_is_not_consistent():
    outcomes = make(PAPER, flow=PAPER_FLOW, path=-20.0, seeds=10)
    evidence = weigh(outcomes, margin_accuracy=0.5, margin_flow=0.0969, alpha=0.05)
    assert evidence.mediation.p < 0.01
    assert not words(outcomes)["consistent"]


GRAFTED = ("before", "after", "none", name_arm("before", "after"), name_arm("after", "before"))


def test_borrowed_flow_that_carries_accuracy_supports_the_cause():
    assert words(make(PAPER, flow=PAPER_FLOW, placements=GRAFTED))["C2"] == "supported"


def test_borrowed_flow_that_changes_nothing_refutes_the_cause():
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    borrowed, before = 3, 0
    outcomes.accuracy_PCS[borrowed] = outcomes.accuracy_PCS[before] + np.linspace(-0.1, 0.1, 5)
    assert words(outcomes)["C2"] == "equivalent"


def test_untestable_claims_stay_in_the_family():
    outcomes = make({"resnet": [0.0] * 4}, architectures=("resnet",))
    evidence = weigh(outcomes, margin_accuracy=0.5, margin_flow=0.0969, alpha=0.05)
    called = call(
        evidence.affirms_M,
        evidence.contradicts_M,
        evidence.equates_M,
        words=evidence.words,
        alpha=0.05,
    )
    assert np.isnan(evidence.affirms_M).tolist() == [True, True, False, False, True]
    assert np.nanmin(called.affirms_M) == pytest.approx(5 * np.nanmin(evidence.affirms_M))


def test_densenet_and_mlp_speak_for_no_claim():
    outcomes = make([1.0] * 4, architectures=("mlp", "densenet"))
    evidence = weigh(outcomes, margin_accuracy=0.5, margin_flow=0.1, alpha=0.05)
    assert all(not several for several in evidence.comparisons.values())
    assert set(words(outcomes).values()) == {"inconclusive", False}


def test_contradiction_of_an_equality_needs_more_than_a_difference_from_zero():
    found = order(make([0.45] * 4, sd=0.2))
    assert found.pooled.p < 1e-6
    assert found.p_beyond > 0.5


def test_one_cell_beyond_the_margin_contradicts_equality_at_its_corrected_level():
    found = order(make([0.0, 0.0, 0.0, 2.0], sd=0.3))
    t = (2.0 - 0.5) / (0.3 / np.sqrt(5))
    assert found.p_beyond == pytest.approx(2 * 4 * stats.t.sf(t, 4))


def test_twins_are_compared_at_equal_depth():
    outcomes = make({"plain": [1.0, 2.0, 9.0], "resnet": [0.0, 0.5]})
    twins = compare_twins(outcomes, "accuracy", "after", "before", margin=0.5, alpha=0.05)
    np.testing.assert_allclose(twins.parts.estimate, [1.0, 1.5])
    assert twins.pooled.estimate == pytest.approx(1.25)
    assert twins.is_member_C.tolist() == [True, True, False, True, True]


def test_divergences_that_favour_skips_withhold_the_interaction():
    without_skips, with_skips = 0, 4  # a cell of each
    for against in (("after", without_skips, 0), ("before", with_skips, 0)):
        assert words(make(PAPER, diverges=[against]))["C5"] == "inconclusive"
    for in_favour in (("before", without_skips, 0), ("after", with_skips, 0)):
        assert words(make(PAPER, diverges=[in_favour]))["C5"] == "supported"


def test_words_are_called_replicate_by_replicate():
    one, other = make(PAPER, flow=PAPER_FLOW), make([0.0] * 4)
    stacked = [
        np.stack([getattr(o, name) for o in (one, other)])
        for name in ("accuracy_PCS", "flow_PCS", "ran_PCS", "diverged_PCS")
    ]
    both = Outcomes(
        dataset="digits",
        recipe="common",
        cells=one.cells,
        placements=one.placements,
        seeds=one.seeds,
        block_C=one.block_C,
        accuracy_PCS=stacked[0],
        flow_PCS=stacked[1],
        ran_PCS=stacked[2],
        diverged_PCS=stacked[3],
        planned_PCS=one.planned_PCS,
        wall_time_PCS=one.wall_time_PCS,
    )
    evidence = weigh(both, margin_accuracy=0.5, margin_flow=0.0969, alpha=0.05)
    called = call(
        evidence.affirms_M,
        evidence.contradicts_M,
        evidence.equates_M,
        words=evidence.words,
        alpha=0.05,
    )
    for word_M, outcomes in zip(called.word_M, (one, other), strict=True):
        alone = words(outcomes)
        assert word_M.tolist() == [alone[claim] for claim in CLAIMS]


def test_affirming_comes_before_refuting_and_the_stronger_refutation_names_the_word():
    p = np.array([0.001, 0.5, 0.5, 0.5, 0.5])
    nothing = np.ones(5)
    called = call(p, p, nothing, words=WORDS, alpha=0.05)
    assert called.word_M[0] == "supported"
    called = call(nothing, p, p / 2, words=WORDS, alpha=0.05)
    assert called.word_M[0] == "equivalent"
    called = call(nothing, p, nothing, words=WORDS, alpha=0.05)
    assert called.word_M.tolist() == ["contradicted", *["inconclusive"] * 4]
    called = call(np.full(5, 0.011), nothing, nothing, words=WORDS, alpha=0.05)
    assert called.word_M[0] == "inconclusive"  # 5 * 0.011 > 0.05
    called = call(nothing, np.full(5, 0.011), nothing, words=WORDS, alpha=0.05)
    assert called.word_M[0] == "inconclusive"


def weigh_all(outcomes):
    evidence = weigh(outcomes, margin_accuracy=0.5, margin_flow=0.0969, alpha=0.05)
    return evidence, evidence.comparisons["C2"]


def test_either_way_of_refuting_order_is_paid_for():
    evidence, _ = weigh_all(make({"plain": [-0.3] * 4, "resnet": [0.0] * 4}, none=-0.5))
    against_before, against_none = evidence.comparisons["C1"]
    assert 0 < against_before.p_down < against_none.p_down
    assert evidence.contradicts_M[0] == pytest.approx(2 * against_before.p_down)


@pytest.mark.parametrize("weakest", ["flow", "order", "graft"])
def test_a_cause_is_as_sure_as_its_weakest_part(weakest):
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    after, borrowed, returned = 1, 3, 4
    if weakest == "flow":
        outcomes.flow_PCS[after] -= 0.27
    if weakest == "order":
        outcomes.accuracy_PCS[[after, returned]] -= 0.85
    if weakest == "graft":
        outcomes.accuracy_PCS[borrowed] -= 0.85
    evidence, (flow, order, *grafts) = weigh_all(outcomes)
    parts = {"flow": flow.p_up, "order": order.p_up, "graft": max(g.p_up for g in grafts)}
    assert max(parts, key=parts.get) == weakest
    assert evidence.affirms_M[1] == parts[weakest]


def test_a_borrowed_flow_that_harms_contradicts_the_cause():
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    outcomes.accuracy_PCS[3] -= 3.0
    evidence, (_, _, *grafts) = weigh_all(outcomes)
    assert evidence.contradicts_M[1] == pytest.approx(4 * min(g.p_down for g in grafts))
    assert words(outcomes)["C2"] == "contradicted"


@pytest.mark.parametrize(("p", "word"), [(0.05, "supported"), (0.0501, "inconclusive")])
def test_a_claim_is_affirmed_up_to_the_level_itself(p, word):
    one = np.ones(1)
    assert call(p * one, one, one, words=("supported",), alpha=0.05).word_M == [word]
    refuted = call(one, p * one, one, words=("supported",), alpha=0.05).word_M
    assert refuted == ["contradicted" if word == "supported" else word]
