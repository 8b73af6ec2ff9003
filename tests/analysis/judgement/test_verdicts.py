import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement import sentences
from analysis.judgement.effects import AFTER_AS_BEFORE
from analysis.judgement.evidence import weigh
from analysis.judgement.robustness import find_disagreement
from analysis.judgement.verdicts import judge, judge_outcomes
from analysis.load import load_results
from analysis.statistics.looks import Look
from analysis.statistics.power import sd_upper_bound, seeds_needed_to_settle, tost_power
from harness.study.records import CLAIMS, AnalysisPlan
from tests.analysis.conftest import Study, always, write_study
from tests.analysis.judgement.conftest import GRAFTED, MARGINS, PAPER, PAPER_FLOW, make

PLAN = AnalysisPlan(grid="g")


def verdicts(*studies, plan=PLAN):
    return {verdict.claim: verdict for verdict in judge_outcomes(studies, plan)}


@pytest.fixture(scope="module")
def paper():
    return verdicts(make(PAPER, flow=PAPER_FLOW))


def test_rows_on_disk_are_judged_from_first_to_last(tmp_path):
    study = Study(
        accuracy=lambda t: 2.0 * (t.architecture == "plain" and t.placement == "after"),
        gradient=lambda t: 0.3 * (t.architecture == "plain" and t.placement == "after"),
        seeds=range(12),
        trial_sd=0.15,
    )
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    found = {verdict.claim: verdict for verdict in judge(load_results(str(tmp_path)))}
    assert {claim: verdict.word for claim, verdict in found.items()} == {
        "C1": "supported",
        "C2": "inconclusive",
        "C3": "equivalent",
        "C4": "equivalent",
        "C5": "supported",
    }
    effect = found["C1"].headline
    assert (
        f"the standard error is {effect.se:.2f} points over seeds, and {effect.test_se:.2f} from "
        "the finite test set"
    ) in found["C1"].reason
    early = {v.claim: v for v in judge(load_results(str(tmp_path)), look=Look((0.2,)))}
    assert early["C3"].word != "equivalent"  # at a fifth of what is planned


def test_no_row_at_all_is_inconclusive_and_says_what_is_missing(tmp_path):
    write_study(tmp_path, Study(is_lost=always), rng=np.random.default_rng(0))
    for verdict in judge(load_results(str(tmp_path))):
        assert (verdict.word, verdict.answer) == ("inconclusive", "open")
        assert "pairs of after and before are missing" in verdict.reason
        assert "that did not run" in verdict.settle
        assert np.isnan(verdict.p)


def test_a_verdict_says_its_numbers(paper):
    effect = paper["C1"].headline
    numbers = f"+1.00 points [{effect.low:+.2f}, {effect.high:+.2f}] (20 pairs in 4 cells)"
    assert f"CNNs without skips: after minus before is {numbers}" in paper["C1"].sentence
    assert "; after minus none is +6.00 points [" in paper["C1"].sentence
    for told in ("2.00 [", "at initialisation", "in the first epoch", "over the whole training"):
        assert told in paper["C2"].sentence
    assert "within ±0.5 points" in paper["C3"].sentence
    assert "90 %" in paper["C3"].sentence
    assert paper["C5"].sentence.startswith("What batch norm after ReLU gains, without")


def test_what_an_equality_claims_is_borne_out_by_equivalence_at_every_depth(paper):
    holds = {claim: verdict.holds for claim, verdict in paper.items()}
    assert holds == {"C1": True, "C2": None, "C3": True, "C4": True, "C5": True}
    nothing = verdicts(make([0.0] * 4))
    assert (nothing["C1"].holds, nothing["C3"].holds) == (False, True)
    average = verdicts(make([0.0, 0.0, 0.0, 0.45], sd=0.3))["C3"]
    assert (average.word, average.holds, average.answer) == ("equivalent on average", None, "open")
    assert "on average" in average.sentence


def test_an_average_of_cells_that_oppose_each_other_says_so():
    found = verdicts(make([2.0, -2.0, 2.0, -2.0], none=-9.0))["C1"]
    assert "single cells differ significantly in opposite directions" in found.reason
    assert found.holds is None
    assert found.more_seeds is None


def test_the_headline_is_the_effect_that_decides(paper):
    decides = {
        claim: (v.headline.quantity, v.headline.kind, v.headline.label, v.headline.baseline)
        for claim, v in paper.items()
    }
    assert decides == {
        "C1": ("accuracy", "pooled", "skip-free CNNs", "before"),
        "C2": ("accuracy", "pooled", "skip-free CNNs", "before"),
        "C3": ("accuracy", "pooled", "residual networks", "before"),
        "C4": ("gradient", "pooled", "residual networks", "before"),
        "C5": ("accuracy", "interaction", "plain minus resnet", "before"),
    }
    comparison = weigh(make(PAPER, flow=PAPER_FLOW), margins=MARGINS, alpha=0.05).comparisons
    assert paper["C3"].p == comparison["C3"][0].p_equal


def test_too_few_seeds_say_so_and_print_no_p():
    for verdict in verdicts(make(PAPER, flow=PAPER_FLOW, seeds=2)).values():
        assert verdict.word == "inconclusive"
        assert "have fewer than 3 pairs, and decide nothing" in verdict.reason
        assert verdict.settle == "at least 3 seeds in every cell"
        assert np.isnan(verdict.p)
        assert "p =" not in verdict.reason
        assert "no test decides" in verdict.reason


def test_where_a_rule_withholds_a_difference_its_p_is_not_printed():
    """What is left is the p of the test of equality."""
    diverges = [("after", c, s) for c in range(8) for s in range(2)]
    outcomes = make(
        [1.0] * 8, architectures=("plain",), diverges=diverges, placements=("before", "after")
    )
    verdict = verdicts(outcomes)["C1"]
    assert "point opposite ways" in verdict.reason
    (order,) = weigh(outcomes, margins=MARGINS, alpha=0.05).comparisons["C1"]
    assert order.pooled.p < 1e-6
    assert verdict.p == order.p_equal > 0.9


def test_a_p_value_too_small_to_print_is_bounded(paper):
    assert "p < 0.0001" in paper["C1"].reason
    for verdict in paper.values():
        assert "p = 0;" not in verdict.reason
        assert not re.search(r"\de-", verdict.reason)
        assert "nan" not in verdict.sentence + verdict.reason + verdict.settle


def test_a_thin_cell_and_a_dull_one_are_named_and_do_not_veto():
    outcomes = make(PAPER, flow=PAPER_FLOW, missing=[("after", 0, s) for s in range(3)])
    outcomes.accuracy_PCS[:, 1] = 10.0
    found = verdicts(outcomes)["C1"]
    assert found.word == "supported"
    assert "1 of 4 cells of after and before has fewer than 3 pairs" in found.reason
    assert "1 of 4 cells of after and before is uninformative" in found.reason
    assert "(10 pairs in 2 of 4 cells)" in found.sentence


@pytest.mark.parametrize("level", [10.0, 99.9])
def test_networks_that_learned_nothing_or_everything_are_told_as_that(level):
    outcomes = make([0.0] * 4)
    found = verdicts(replace(outcomes, accuracy_PCS=np.full_like(outcomes.accuracy_PCS, level)))
    for claim in ("C1", "C3", "C5"):
        assert "uninformative" in found[claim].reason
        assert found[claim].settle == "networks that learn something and leave something to gain"


def test_divergences_are_a_risk_with_an_interval():
    diverges = [("after", 4 + c, 0) for c in range(4)]
    found = verdicts(make([0.0] * 4, seeds=8, diverges=diverges))["C3"]
    assert "pairs after alone failed to train in 4 and before alone in 0" in found.sentence
    assert "a difference in risk of +12 points [+" in found.sentence
    assert "after fails to train more often than before by +12 points [90 %:" in found.reason
    assert found.settle == "more seeds or a recipe under which both placements train"
    assert np.isnan(found.smallest_margin)


def test_a_claim_the_grid_cannot_test_says_what_to_add():
    found = verdicts(make({"plain": [1.0] * 3}, architectures=("plain",)))
    assert found["C3"].headline is None
    assert found["C3"].settle == (
        "add resnet or preresnet with placements after and before to the grid"
    )
    assert found["C1"].family_size == 5


def test_two_studies_are_one_family_and_each_has_its_own_words():
    both = judge_outcomes(
        [make(PAPER, flow=PAPER_FLOW), replace(make([0.0] * 4), recipe="tuned")], PLAN
    )
    assert [(v.recipe, v.claim) for v in both[4:6]] == [("common", "C5"), ("tuned", "C1")]
    assert {verdict.family_size for verdict in both} == {10}
    assert (both[0].word, both[5].word) == ("supported", "equivalent")
    alone = verdicts(make(PAPER, flow=PAPER_FLOW))["C1"]
    assert both[0].p == alone.p
    assert both[0].p_holm > alone.p_holm
    assert all(effect.recipe == "tuned" for effect in both[5].effects)
    assert judge_outcomes([], PLAN) == ()
    assert [v.claim for v in both[:5]] == list(CLAIMS)


def test_an_early_look_widens_what_is_printed_and_quoted():
    once = make([0.3] * 4, sd=0.5, diverges=[("after", 0, 0)])
    early = verdicts(replace(once, look=Look((0.5,))))["C1"]
    late = verdicts(once)["C1"]
    assert early.p > late.p
    assert early.headline.high > late.headline.high
    assert f"{early.headline.high:+.2f}]" in early.sentence
    risk = f"[{100 * early.headline.risk_low:+.0f}, {100 * early.headline.risk_high:+.0f}]"
    assert risk in early.sentence
    assert risk not in late.sentence
    assert early.robustness.p_sign_flip > late.robustness.p_sign_flip
    assert early.smallest_margin > late.smallest_margin or np.isnan(late.smallest_margin)


def test_without_a_gain_there_is_nothing_to_explain():
    verdict = verdicts(make([0.0] * 4, flow=0.3, placements=GRAFTED))["C2"]
    assert (verdict.answer, verdict.holds) == ("no gain to explain", None)
    assert "nothing to explain" in verdict.reason
    assert verdict.settle == "a study in which the order makes a difference to accuracy"
    assert np.isnan(verdict.smallest_margin)


def test_a_gain_that_is_not_shown_is_not_shown_to_be_none():
    verdict = verdicts(make([0.3] * 4, sd=1.0, flow=0.3, placements=GRAFTED))["C2"]
    assert verdict.answer == "open"
    assert verdict.reason.startswith("it is not shown that after gains accuracy and ")
    worse = verdicts(make([-1.0] * 4, flow=0.3, placements=GRAFTED))["C2"]
    assert worse.answer == "no gain to explain"


def test_what_only_goes_together_is_consistent_and_asks_for_an_intervention(paper):
    verdict = paper["C2"]
    assert verdict.grade == "inconclusive (consistent, cause not tested)"
    assert "cannot tell a cause from what goes with it" in verdict.reason
    assert verdict.settle.startswith("arms that borrow each other's step sizes")
    assert verdict.more_seeds is None


@pytest.mark.parametrize(
    ("carried", "word", "qualifier"),
    [
        ((1.0, 1.0), "supported", ""),
        ((0.0, 0.0), "contradicted", ""),
        ((1.0, 0.0), "inconclusive", "the two directions conflict"),
    ],
)
def test_an_intervention_is_told_in_both_directions(carried, word, qualifier):
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED, carried=carried, seeds=10)
    verdict = verdicts(outcomes)["C2"]
    assert (verdict.word, verdict.qualifier) == (word, qualifier)
    for giver, share in zip(("before", "after"), carried, strict=True):
        told = (
            f"with the step sizes of {giver} in both orders after minus before is "
            f"{0 + (1 - share):+.2f} points"
        )
        assert told in verdict.sentence.replace("-0.00", "+0.00")
    missing = "it is not shown that the gain goes with the step sizes; "
    assert verdict.reason.startswith(missing) == (word == "inconclusive")


def test_an_arm_that_failed_the_manipulation_check_is_named():
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    outcomes = replace(outcomes, graft_errors={**outcomes.graft_errors, AFTER_AS_BEFORE: 0.3})
    verdict = verdicts(outcomes)["C2"]
    assert verdict.word == "inconclusive"
    assert f"{AFTER_AS_BEFORE} is not shown to take the step sizes it was given" in verdict.reason


def test_windows_that_disagree_depend_on_when():
    verdict = verdicts(make([0.0] * 4, windows={"first": 0.3}))["C4"]
    assert verdict.grade == "inconclusive (depends on when)"
    assert "2.00 [1" in verdict.sentence


def test_a_claim_that_holds_for_some_ways_only_says_for_which():
    outcomes = make(
        {"resnet": [0.0] * 4},
        architectures=("resnet",),
        placements=("before", "after", "after-relu"),
        others={"after-relu": 1.5},
    )
    verdict = verdicts(outcomes)["C3"]
    assert verdict.grade == "contradicted (equivalent for after only)"
    assert "; after-relu minus before is +1.50 points" in verdict.sentence


def test_a_control_that_shows_nothing_is_said_and_one_that_was_not_run_too():
    plan = replace(PLAN, control="none")
    blind = verdicts(make([0.0] * 4, none=0.0), plan=plan)["C3"]
    assert blind.grade == "inconclusive (the control shows no difference either)"
    assert "'none', which is known to differ, does not differ here either" in blind.reason
    assert np.isnan(blind.smallest_margin)
    for without in (PLAN, replace(PLAN, control="after-add")):
        assert "no positive control was run" in verdicts(make([0.0] * 4), plan=without)["C3"].reason
    assert "control" not in verdicts(make([0.0] * 4), plan=plan)["C3"].reason


def test_trials_that_are_missing_are_asked_for_first():
    missing = [("after", 4, s) for s in range(2)]
    found = verdicts(make([0.1] * 4, sd=0.25, missing=missing))["C3"]
    assert "2 of 20 pairs of after and before are missing" in found.reason
    assert found.settle.startswith("the 2 planned pairs that did not run; then ")


def test_differences_that_never_vary_decide_nothing():
    verdict = verdicts(make([0.0] * 4, sd=0.0, images=0))["C3"]
    assert verdict.word == "inconclusive"
    assert verdict.sentence == (
        "Residual networks: 20 pairs in 4 cells do not vary at all, so nothing tells a difference "
        "from chance."
    )
    gained = verdicts(make([2.0] * 4, sd=0.0, images=0))
    assert {gained[claim].word for claim in ("C1", "C2", "C3", "C5")} == {"inconclusive"}
    assert verdicts(make([0.0] * 4, sd=0.0))["C3"].word == "equivalent"


def test_at_the_smallest_margin_equivalence_would_just_be_called():
    """One family of five of which nothing else is shown: each one-sided test has a fifth."""
    outcomes = make({"resnet": [0.1, -0.2]}, architectures=("resnet",), sd=0.6, flow=0.2)
    verdict = verdicts(outcomes)["C3"]
    for factor, word in ((1 - 1e-6, "inconclusive"), (1 + 1e-6, "equivalent")):
        plan = replace(PLAN, margin_accuracy=factor * verdict.smallest_margin)
        found = verdicts(outcomes, plan=plan)["C3"].word
        assert found.partition(" ")[0] == word or (word, found) == (
            "inconclusive",
            "equivalent on average",
        )
        assert (found == "equivalent") == (word == "equivalent")
    t = (0.2 - verdict.smallest_margin) / (0.6 / np.sqrt(5))
    assert stats.t.cdf(t, 4) == pytest.approx(0.05 / 5)
    told = f"would be called equivalent is ±{verdict.smallest_margin:.3g} points"
    assert told in verdict.reason


def test_more_seeds_are_planned_for_the_cell_that_needs_most():
    """A quiet cell that is settled already does not hide that a noisy one is not."""
    outcomes = make({"resnet": [0.0, 0.0]}, architectures=("resnet",), sd=[0.05, 0.5], seeds=5)
    found = verdicts(outcomes)["C3"]
    part = weigh(outcomes, margins=MARGINS, alpha=0.05).comparisons["C3"][0].parts
    needed = seeds_needed_to_settle(0.5, se=float(part.se[1]), df=4.0, seeds=5.0, alpha=0.01)
    assert found.more_seeds == needed - 5
    assert found.device_hours == pytest.approx(found.more_seeds * 4 * 36 / 3600)
    assert found.settle.startswith(f"{found.more_seeds} more seeds per cell would settle this")
    assert found.settle.endswith("device-hours")
    ended = replace(outcomes, look=Look((0.5, 1.0)))
    after_last = verdicts(ended)["C3"]
    assert after_last.settle.startswith(
        f"a new study of {5 + after_last.more_seeds} seeds per cell would settle this"
    )


def test_more_seeds_are_planned_for_the_effect_seen_where_none_is_ruled_out():
    """Within the margin, but surely not zero: how far from the margin decides, in each cell."""
    found = verdicts(make([0.25] * 4, sd=0.25, seeds=6))["C3"]
    assert found.headline.low > 0
    deviation = sd_upper_bound(0.25, 5)

    def power(n):
        ratio, true = (value * np.sqrt(n) / deviation for value in (0.5, 0.25))
        return tost_power(ratio, n - 1, ratio=true, alpha=0.01)

    assert power(6 + found.more_seeds - 1) < 0.8 <= power(6 + found.more_seeds)


@pytest.mark.parametrize(("effect", "sd"), [(0.5, 0.3), (0.49, 0.2), (0.0, 30.0)])
def test_beyond_ten_times_the_seeds_it_is_not_by_seeds(effect, sd):
    verdict = verdicts(make([effect] * 4, sd=sd, seeds=5))["C3"]
    assert verdict.word in {"inconclusive", "equivalent on average"}
    assert verdict.more_seeds is None
    assert verdict.settle.startswith("not by seeds")


def test_a_settled_claim_asks_for_nothing(paper):
    for claim in ("C1", "C3", "C4", "C5"):
        assert (paper[claim].settle, paper[claim].more_seeds) == ("", None)
        assert np.isnan(paper[claim].device_hours)


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        (0.001, "less than a device-minute"),
        (0.15, "about 9 device-minutes"),
        (5.52, "about 5.5 device-hours"),
        (1234.5, "about 1,234 device-hours"),
    ],
)
def test_device_time_is_told_in_a_unit_that_reads(hours, told):
    assert sentences._format_hours(hours) == told


def test_the_panel_of_an_interaction_pairs_the_twins():
    """Each pair of the skip-free twin less one of the residual twin; the main effect cancels."""
    outcomes = make({"plain": [1.6], "resnet": [0.8]}, sd=0.2, seeds=8)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    diff_S = diff_CS[0] - diff_CS[1]
    found = verdicts(outcomes)["C5"]
    assert (found.word, found.fragile) == ("supported", "")
    assert found.robustness.p_sign_flip == found.robustness.p_sign_flip_floor == 2**-7
    assert found.robustness.p_signed_rank == pytest.approx(stats.wilcoxon(diff_S).pvalue)
    walsh = [(a + b) / 2 for i, a in enumerate(diff_S) for b in diff_S[i:]]
    assert found.robustness.hodges_lehmann == pytest.approx(np.median(walsh))


def test_the_panel_weighs_pairs_as_the_contrast_does_and_leaves_out_what_it_leaves_out():
    """Two cells count the same, though one has lost two of its pairs; a thin third not at all."""
    missing = [("after", 0, 0), ("after", 0, 1), *(("after", 2, s) for s in range(3))]
    outcomes = make({"plain": [0.05, 0.2, 9.0]}, architectures=("plain",), missing=missing, sd=0.6)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    weighted_P = np.concatenate([diff_CS[0, 2:] / 3, diff_CS[1] / 5])
    oracle = stats.permutation_test(
        (weighted_P,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    panel = verdicts(outcomes)["C1"].robustness
    assert panel.p_sign_flip == pytest.approx(oracle.pvalue)
    assert panel.superiority == np.mean(diff_CS[:2][np.isfinite(diff_CS[:2])] > 0)


def test_the_generator_moves_the_panel_and_no_verdict():
    outcomes = make([0.15] * 4, sd=0.6)
    first, again, other = (
        judge_outcomes([outcomes], PLAN, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    p = [[v.robustness.p_sign_flip for v in found] for found in (first, again, other)]
    assert p[0] == p[1] != p[2]
    assert [v.word for v in first] == [v.word for v in other]


@pytest.mark.parametrize(
    ("claim", "dissent", "told"),
    [
        ("C1", {"p_sign_flip": 0.2}, "the sign-flip test has p = 0.2"),
        ("C1", {"hodges_lehmann": -0.1}, "the Hodges-Lehmann estimate has the other sign"),
        ("C1", {"estimate_at_chance": -2.0}, "scoring divergences at chance turns the sign"),
        ("C3", {"hodges_lehmann": -0.6}, "the Hodges-Lehmann estimate lies outside the margin"),
        ("C1", {"p_sign_flip": 0.0625, "p_sign_flip_floor": 0.0625}, ""),
        ("C1", {}, ""),
    ],
)
def test_a_verdict_is_fragile_where_another_method_dissents(paper, claim, dissent, told):
    verdict = paper[claim]
    evidence = weigh(make(PAPER, flow=PAPER_FLOW), margins=MARGINS, alpha=0.05)
    panel = replace(verdict.robustness, **dissent)
    one = evidence.comparisons[claim][0]
    assert find_disagreement(verdict.word, one, panel, alpha=0.05) == told


def test_two_reasonable_definitions_of_flow_that_disagree_are_in_the_headline():
    outcomes = make(PAPER, flow=PAPER_FLOW)
    other = {window: values.copy() for window, values in outcomes.flow_PCS.items()}
    for values in other.values():
        values[1, 4:] += 0.2
    same = outcomes.flow_PCS
    other_flows = {"at the first layer": other, "as its fall over the layers": same}
    verdict = verdicts(replace(outcomes, other_flows=other_flows))["C4"]
    assert verdict.grade == "equivalent (fragile)"
    assert verdict.fragile == "flow at the first layer differs beyond the margin (p < 0.0001)"
    twin = verdict.robustness.other_flows[1]
    assert (twin.low, twin.high) == (verdict.headline.low, verdict.headline.high)


def test_where_a_single_cell_refutes_the_panel_has_no_say():
    verdict = verdicts(make([2.0, -2.0, 2.0, -2.0]))["C3"]
    assert (verdict.word, verdict.fragile) == ("contradicted", "")


def test_guessing_on_an_unknown_data_set_is_not_made_up():
    known = make(PAPER, diverges=[("before", 0, 0)])
    scored = [
        verdicts(outcomes)["C1"].robustness.estimate_at_chance
        for outcomes in (known, replace(known, chance=float("nan")))
    ]
    assert np.isfinite(scored[0])
    assert np.isnan(scored[1])
