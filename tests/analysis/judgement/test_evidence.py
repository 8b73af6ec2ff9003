from dataclasses import replace

import numpy as np
import pytest

from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER
from analysis.judgement.evidence import Evidence, call, weigh
from analysis.judgement.outcomes import Cell
from analysis.judgement.simulation import Truth, make_reference_design, simulate
from harness.study.records import CLAIMS
from tests.analysis.judgement.conftest import GRAFTED, MARGINS, PAPER, PAPER_FLOW, make, words

WORDS = ("supported", "inconclusive", "equivalent", "equivalent", "supported")


def weigh_all(outcomes, **settings):
    return weigh(outcomes, margins=MARGINS, alpha=0.05, **settings)


def test_what_the_paper_says_is_recognised():
    assert words(make(PAPER, flow=PAPER_FLOW)) == {
        "C1": "supported",
        "C2": "inconclusive",
        "C3": "equivalent",
        "C4": "equivalent",
        "C5": "supported",
    }


def test_the_opposite_is_contradicted():
    found = words(make({"plain": [-1.0] * 4, "resnet": [1.2] * 4}, flow=-0.3))
    assert found.pop("C2") == "inconclusive"  # there is no gain to explain
    assert set(found.values()) == {"contradicted"}


def test_nothing_is_equivalent_everywhere_and_has_no_cause():
    found = words(make([0.0] * 4))
    assert found.pop("C2") == "inconclusive"
    assert set(found.values()) == {"equivalent"}


def test_a_small_but_certain_gain_supports_a_direction_and_an_equality_alike():
    found = words(make([0.25] * 4, sd=0.1))
    assert (found["C1"], found["C3"]) == ("supported", "equivalent")


def test_one_order_must_beat_no_norm_too():
    assert words(make(PAPER, none=3.0))["C1"] == "contradicted"
    assert words(make(PAPER, none=1.0))["C1"] == "inconclusive"
    assert words(make(PAPER, placements=("before", "after")))["C1"] == "supported"
    evidence = weigh_all(make(PAPER, none=0.6))
    order, norm = evidence.comparisons["C1"]
    assert evidence.affirms_M[0] == norm.p_up > order.p_up


def test_either_way_of_refuting_order_is_paid_for():
    evidence = weigh_all(make({"plain": [-0.3] * 4, "resnet": [0.0] * 4}, none=-0.2))
    against_before, against_none = evidence.comparisons["C1"]
    ways = [p for p in (against_before.p_down, against_none.p_down) if np.isfinite(p)]
    assert evidence.contradicts_M[0] == pytest.approx(len(ways) * min(ways))


def test_an_effect_that_flips_its_sign_with_depth_is_never_equivalent():
    found = words(make([2.0, -2.0, 2.0, -2.0]))
    assert (found["C1"], found["C3"]) == ("equivalent on average", "contradicted")
    assert words(make([0.45, -0.45, 0.45, -0.45], sd=0.3))["C3"] == "equivalent on average"


def test_equivalent_on_average_is_said_where_one_depth_is_not_shown_equal():
    found = words(make([0.0, 0.0, 0.0, 0.45], sd=0.3))
    assert (found["C1"], found["C3"]) == ("equivalent on average", "equivalent on average")


def test_cells_that_differ_surely_and_by_less_than_the_margin_are_equivalent():
    """Every way up or down is withheld: what is left is equality, and no contradiction."""
    outcomes = make([0.2, -0.2, 0.2, -0.2], sd=0.05, placements=("before", "after"))
    order = weigh_all(outcomes).comparisons["C1"][0]
    assert order.is_opposed_up
    assert order.is_opposed_down
    assert words(outcomes)["C1"] == "equivalent"


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_pairs_nothing_is_decided(seeds):
    found = words(make(PAPER, flow=PAPER_FLOW, seeds=seeds, sd=0.01))
    assert set(found.values()) == {"inconclusive"}


def test_one_thin_cell_does_not_veto_what_the_others_carry():
    missing = [(arm, c, s) for arm in ("after",) for c in (0, 4) for s in (0, 1, 2)]
    whole, thin = (make(PAPER, flow=PAPER_FLOW, missing=m) for m in ((), missing))
    assert words(thin) == words(whole)


def test_readings_without_a_number_in_one_window_leave_flow_open():
    outcomes = make(PAPER, flow=PAPER_FLOW)
    outcomes.flow_PCS["first"][1] = np.nan
    assert words(outcomes)["C4"] == "inconclusive"


@pytest.mark.parametrize("level", [10.0, 99.9])
def test_networks_that_learned_nothing_or_everything_decide_nothing(level):
    outcomes = make([0.0] * 4, level=99.9, none=0.0, sd=0.01)
    if level == 10.0:
        outcomes = replace(outcomes, accuracy_PCS=np.full_like(outcomes.accuracy_PCS, 10.0))
    assert set(words(outcomes).values()) == {"inconclusive"}
    assert set(words(outcomes, control="none").values()) == {"inconclusive"}


def test_one_uninformative_cell_is_left_out_and_the_others_decide():
    outcomes = make(PAPER, flow=PAPER_FLOW)
    outcomes.accuracy_PCS[:, [0, 4]] = 10.0
    assert words(outcomes) == words(make(PAPER, flow=PAPER_FLOW))
    assert weigh_all(outcomes).comparisons["C3"][0].is_uninformative_K.tolist()[0]


@pytest.mark.parametrize("window", ["init", "first", "whole"])
def test_flow_must_be_equal_in_every_window(window):
    found = words(make([0.0] * 4, windows={window: 0.3}))
    assert found["C4"] == "inconclusive"
    assert words(make([0.0] * 4, flow=0.3))["C4"] == "contradicted"


@pytest.mark.parametrize("window", ["init", "first", "whole"])
def test_flow_must_be_higher_in_every_window_to_be_a_cause(window):
    grafted = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    assert words(grafted)["C2"] == "supported"
    grafted.flow_PCS[window][1, :4] -= 0.3
    assert words(grafted)["C2"] == "inconclusive"


@pytest.mark.parametrize(("off", "word"), [(0.0, "equivalent"), (1.5, "contradicted")])
def test_every_way_to_put_the_norm_after_must_be_equal(off, word):
    outcomes = make(
        {"resnet": [0.0] * 4},
        architectures=("resnet",),
        placements=("before", "after", "after-relu"),
        others={"after-relu": off},
    )
    assert words(outcomes)["C3"] == word
    outcomes.flow_PCS["init"][2] += off / 3
    assert words(outcomes)["C4"] == ("equivalent" if not off else "inconclusive")
    assert [one.arm for one in weigh_all(outcomes).comparisons["C3"]] == ["after", "after-relu"]


def test_after_add_is_no_way_to_put_the_norm_after():
    outcomes = make(
        {"resnet": [0.0] * 4},
        architectures=("resnet",),
        placements=("before", "after", "after-add"),
        others={"after-add": -9.0},
    )
    assert words(outcomes)["C3"] == "equivalent"


def test_a_positive_control_that_shows_nothing_leaves_no_equality():
    outcomes = make([0.0] * 4, none=0.0)
    assert words(outcomes)["C3"] == "equivalent"
    assert set(words(outcomes, control="none").values()) == {"inconclusive"}
    blind = weigh_all(outcomes, control="none").is_blind
    assert {claim: bool(is_so) for claim, is_so in blind.items()} == dict.fromkeys(
        ("C1", "C3", "C4", "C5"), True
    )


def test_a_positive_control_that_shows_leaves_all_as_it_is():
    outcomes = make([0.0] * 4)
    for window in outcomes.flow_PCS:
        outcomes.flow_PCS[window][2] -= 0.5
    assert words(outcomes, control="none") == words(outcomes)
    paper = make(PAPER, flow=PAPER_FLOW)
    assert words(paper, control="none")["C1"] == "supported"  # a difference needs no control
    assert words(paper, control="none")["C4"] == "inconclusive"  # its flow is as that of before


@pytest.mark.parametrize(
    ("carried", "word", "conflicts"),
    [
        ((1.0, 1.0), "supported", False),
        ((0.0, 0.0), "contradicted", False),
        ((1.0, 0.0), "inconclusive", True),
        ((0.0, 1.0), "inconclusive", True),
        ((0.5, 0.5), "inconclusive", False),
    ],
)
def test_a_gain_must_go_with_the_steps_in_both_directions(carried, word, conflicts):
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED, carried=carried, seeds=10, sd=0.25)
    assert words(outcomes)["C2"] == word
    assert weigh_all(outcomes).mechanism.is_conflicting(0.05) == conflicts


def test_without_a_gain_borrowed_steps_explain_nothing():
    outcomes = make([0.0] * 4, flow=0.3, placements=GRAFTED)
    evidence = weigh_all(outcomes)
    assert words(outcomes)["C2"] == "inconclusive"
    assert min(evidence.affirms_M[1], evidence.contradicts_M[1], evidence.equates_M[1]) == 1.0
    lost = make([-1.0] * 4, flow=-0.3, placements=GRAFTED)
    assert words(lost)["C2"] == "inconclusive"


@pytest.mark.parametrize("placements", [GRAFTED, GRAFTED[:3]])
def test_a_gain_beside_lower_or_equal_flow_refutes_the_cause(placements):
    lower = make(PAPER, flow=-0.3, placements=placements)
    equal = make(PAPER, flow=0.0, placements=placements)
    assert (words(lower)["C2"], words(equal)["C2"]) == ("contradicted", "equivalent")


@pytest.mark.parametrize("weakest", ["flow", "gain", "moved", "stayed"])
def test_a_cause_is_as_sure_as_its_weakest_part(weakest):
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    _, after, _, after_as_before, before_as_after = range(5)
    if weakest == "flow":
        outcomes.flow_PCS["first"][after] -= 0.285
    if weakest == "gain":
        outcomes.accuracy_PCS[[after]] -= 0.9
    if weakest == "moved":
        outcomes.accuracy_PCS[before_as_after] -= 0.85
    if weakest == "stayed":
        outcomes.accuracy_PCS[after_as_before] -= 0.42
    evidence = weigh_all(outcomes)
    gain, *flows = evidence.comparisons["C2"][:4]
    mechanism = evidence.mechanism
    parts = [gain.p_up, *(one.p_up for one in flows)]
    parts += [*(one.p_up for one in mechanism.moved), *(one.p_average for one in mechanism.stayed)]
    assert evidence.affirms_M[1] == max(parts)


def test_all_cells_with_both_arms_count_and_no_others():
    """The friendliest of four depths is not the study."""
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    planned_PCS = outcomes.planned_PCS.copy()
    planned_PCS[3:, 2:] = False
    outcomes = replace(outcomes, planned_PCS=planned_PCS)
    members = {one.is_member_C.sum() for one in weigh_all(outcomes).comparisons["C2"]}
    assert members == {2}
    planned_PCS[4] = False  # one direction is no intervention
    found = weigh_all(replace(outcomes, planned_PCS=planned_PCS))
    assert found.mechanism is None
    assert found.words[1] == "inconclusive"


@pytest.mark.parametrize("error", [0.02, np.nan, np.inf])
@pytest.mark.parametrize("arm", [AFTER_AS_BEFORE, BEFORE_AS_AFTER])
def test_an_arm_that_does_not_take_its_steps_or_was_not_checked_is_not_used(arm, error):
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    broken = replace(outcomes, graft_errors={**outcomes.graft_errors, arm: error})
    evidence = weigh_all(broken)
    assert evidence.unusable == (arm,)
    assert evidence.mechanism is None
    assert (words(outcomes)["C2"], words(broken)["C2"]) == ("supported", "inconclusive")


def test_observed_gain_and_flow_are_consistent_and_no_more():
    called = call([weigh_all(make(PAPER, flow=PAPER_FLOW))], alpha=0.05)
    assert called.is_consistent_M.tolist() == [False, True, False, False, False]
    grafted = call([weigh_all(make(PAPER, flow=PAPER_FLOW, placements=GRAFTED))], alpha=0.05)
    assert not grafted.is_consistent_M.any()


def test_one_divergence_in_many_pairs_leaves_every_word_as_it_was():
    """Whichever arm it hits."""
    whole = make(PAPER, flow=PAPER_FLOW, seeds=20)
    for arm in ("after", "before"):
        one = make(PAPER, flow=PAPER_FLOW, seeds=20, diverges=[(arm, 0, 0), (arm, 4, 0)])
        assert words(one) == words(whole)


def test_more_often_failing_alone_refutes_a_claim():
    diverges = [("after", c, s) for c in range(8) for s in range(3)]
    found = words(make([0.0] * 8, sd=0.1, seeds=8, diverges=diverges, architectures=("plain",)))
    assert found["C1"] == "contradicted"
    many = [("after", c, s) for c in range(8) for s in range(4)]
    found = words(make([0.0] * 8, sd=0.1, seeds=8, diverges=many, architectures=("resnet",)))
    assert found["C3"] == "contradicted"


def test_where_no_pair_trains_nothing_is_found():
    arms = ("after", "before", "none")
    diverges = [(arm, c, s) for arm in arms for c in range(8) for s in range(5)]
    assert set(words(make(PAPER, diverges=diverges)).values()) == {"inconclusive"}


def rate(design, truth, claim, word, *, grids=400):
    outcomes = simulate(design, truth, replicates=grids, rng=np.random.default_rng(0))
    called = call([weigh(outcomes, margins=MARGINS, alpha=0.05)], alpha=0.05)
    return np.mean(called.word_M[:, CLAIMS.index(claim)] == word)


def test_with_equal_divergence_more_seeds_show_equality_and_differences_more_often():
    """One percent in both orders; a rule by which one divergence vetoes falls from 55 to 4 %."""
    risks = {"before": 0.01, "after": 0.01}
    zero_C, one_C = np.zeros(8), np.ones(8)
    flow = dict.fromkeys(("init", "first", "whole"), zero_C)
    for claim, word, effect_C in (("C3", "equivalent", zero_C), ("C1", "supported", 0.4 * one_C)):
        truth = Truth(effect_C=effect_C, flow_C=flow, divergence=risks)
        shares = [
            rate(make_reference_design(seeds=seeds, sd=0.4), truth, claim, word)
            for seeds in (5, 10, 20, 40)
        ]
        assert np.all(np.diff(shares) >= -0.01), (claim, shares)
        assert shares[-1] > 0.98, (claim, shares)


@pytest.mark.parametrize("collapse", [0.05, 0.2])
def test_a_true_point_is_found_though_none_collapses_often(collapse):
    one_C, zero_C = np.ones(8), np.zeros(8)
    truth = Truth(
        effect_C=one_C,
        flow_C=dict.fromkeys(("init", "first", "whole"), zero_C),
        none_effect=0.0,
        collapse=collapse,
    )
    assert rate(make_reference_design(sd=0.4), truth, "C1", "supported") >= 0.95


def test_control_cells_are_not_judged():
    outcomes = make({"plain": [1.0, -5.0]}, architectures=("plain",))
    cells = (outcomes.cells[0], replace(outcomes.cells[1], beside="head"))
    assert words(outcomes)["C1"] != "supported"
    assert words(replace(outcomes, cells=cells))["C1"] == "supported"


def test_densenet_and_mlp_speak_for_no_claim_and_all_stay_in_the_family():
    evidence = weigh_all(make([1.0] * 4, architectures=("mlp", "densenet")))
    assert not any(evidence.comparisons.values())
    only = weigh_all(make({"resnet": [0.0] * 4}, architectures=("resnet",)))
    assert np.isnan(only.affirms_M).tolist() == [True, True, False, False, True]
    called = call([only], alpha=0.05)
    assert np.nanmin(called.affirms_M) == pytest.approx(5 * np.nanmin(only.affirms_M))


def test_words_are_called_replicate_by_replicate():
    grids = [
        make(PAPER, flow=PAPER_FLOW, placements=GRAFTED),
        make([0.0] * 4, placements=GRAFTED),
        make(PAPER, flow=PAPER_FLOW, placements=GRAFTED, carried=(0.0, 0.0), seeds=5),
        make([0.3, -0.3] * 2, placements=GRAFTED, none=0.0),
    ]
    both = replace(
        grids[0],
        flow_PCS={w: np.stack([g.flow_PCS[w] for g in grids]) for w in grids[0].flow_PCS},
        **{
            name: np.stack([getattr(g, name) for g in grids])
            for name in ("accuracy_PCS", "ran_PCS", "diverged_PCS")
        },
    )
    for control in ("", "none"):
        together = call([weigh_all(both, control=control)], alpha=0.05).word_M
        for word_M, outcomes in zip(together, grids, strict=True):
            assert word_M.tolist() == list(words(outcomes, control=control).values())


def evidence_of(affirms, contradicts, equates, averages=np.nan, claim_words=WORDS):
    ways = (affirms, contradicts, equates, averages)
    count = len(claim_words)
    arrays = [np.broadcast_to(np.asarray(way, float), count).copy() for way in ways]
    names = ("affirms_M", "contradicts_M", "equates_M", "averages_M")
    return Evidence(**dict(zip(names, arrays, strict=True)), words=claim_words, comparisons={})


def test_affirming_comes_first_and_the_stronger_refutation_names_the_word():
    def first(*ways, **settings):
        return call([evidence_of(*ways, **settings)], alpha=0.05).word_M[0]

    p = [0.001, 0.5, 0.5, 0.5, 0.5]
    assert first(p, p, 1.0) == "supported"
    assert first(1.0, p, np.array(p) / 2) == "equivalent"
    assert first(1.0, p, 1.0) == first(1.0, p, np.nan) == "contradicted"
    assert first(1.0, np.nan, p) == "equivalent"
    assert first(1.0, 1.0, 1.0, p) == "equivalent on average"
    assert first(1.0, p, 1.0, p) == "contradicted"
    assert first(np.nan, np.nan, np.nan) == "inconclusive"


@pytest.mark.parametrize(("p", "word"), [(0.05, "supported"), (0.0501, "inconclusive")])
def test_a_claim_is_affirmed_up_to_the_level_itself_after_holm_over_all_claims(p, word):
    one = evidence_of(p, 1.0, 1.0, claim_words=("supported",))
    assert call([one], alpha=0.05).word_M == [word]
    five = evidence_of(p / 5, 1.0, 1.0)
    assert call([five], alpha=0.05).word_M[0] == word
    two_studies = call([five, evidence_of(np.nan, np.nan, np.nan)], alpha=0.05)
    assert two_studies.word_M.shape == (10,)
    assert two_studies.word_M[0] == "inconclusive"


def test_cells_of_torchvision_are_members_and_those_without_after_are_not():
    outcomes = make({"plain": [1.0] * 2}, architectures=("plain",))
    cells = (Cell(architecture="torchvision/vgg11_bn", depth=11), outcomes.cells[1])
    planned_PCS = outcomes.planned_PCS.copy()
    planned_PCS[1, 1] = False
    outcomes = replace(outcomes, cells=cells, planned_PCS=planned_PCS)
    assert weigh_all(outcomes).comparisons["C1"][0].is_member_C.tolist() == [True, False]
