from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis.judgement import verdicts as claims
from analysis.judgement.evidence import CLAIMS, call, weigh
from analysis.judgement.verdicts import judge, judge_outcomes
from analysis.load import load_results
from analysis.statistics.power import (
    pocock_level,
    sd_upper_bound,
    seeds_needed_to_settle,
    t_power,
    tost_power,
)
from harness.study.records import AnalysisPlan
from tests.analysis.conftest import Study, always, write_study
from tests.analysis.judgement.test_evidence import GRAFTED, PAPER, PAPER_FLOW, make

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
        seeds=range(8),
    )
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    found = {verdict.claim: verdict.word for verdict in judge(load_results(str(tmp_path)))}
    assert found.pop("C2") == "inconclusive"
    assert found == {
        "C1": "supported",
        "C3": "equivalent",
        "C4": "equivalent",
        "C5": "supported",
    }


def test_no_row_at_all_is_inconclusive_and_says_what_is_missing(tmp_path):
    write_study(tmp_path, Study(is_lost=always), rng=np.random.default_rng(0))
    for verdict in judge(load_results(str(tmp_path))):
        assert verdict.word == "inconclusive"
        assert "0 pairs" in verdict.reason
        assert "3 seeds" in verdict.settle


def test_a_verdict_says_its_numbers(paper):
    effect = paper["C1"].headline
    numbers = f"+1.00 points [{effect.low:+.2f}, {effect.high:+.2f}] (20 pairs in 4 cells)"
    assert f"Skip-free CNNs: after minus before is {numbers}" in paper["C1"].sentence
    assert "; after minus none is +6.00 points [" in paper["C1"].sentence
    assert "gradient flow of after over before is 2.00 [" in paper["C2"].sentence
    assert "within ±0.5 points" in paper["C3"].sentence
    assert "90 %" in paper["C3"].sentence
    assert "within 0.80 to 1.25" in paper["C4"].sentence
    assert paper["C5"].sentence.startswith("Without skips")


def test_what_an_equality_claims_is_borne_out_by_equivalence(paper):
    assert {claim: verdict.holds for claim, verdict in paper.items()} == {
        "C1": True,
        "C2": None,
        "C3": True,
        "C4": True,
        "C5": True,
    }
    nothing = verdicts(make([0.0] * 4))
    assert nothing["C1"].word == nothing["C3"].word == "equivalent"
    assert (nothing["C1"].holds, nothing["C3"].holds) == (False, True)


def test_the_headline_is_the_effect_that_decides(paper):
    decides = {
        claim: (v.headline.quantity, v.headline.kind, v.headline.label, v.headline.baseline)
        for claim, v in paper.items()
    }
    assert decides == {
        "C1": ("accuracy", "pooled", "skip-free CNNs", "before"),
        "C2": ("gradient", "pooled", "skip-free CNNs", "before"),
        "C3": ("accuracy", "pooled", "residual networks", "before"),
        "C4": ("gradient", "pooled", "residual networks", "before"),
        "C5": ("accuracy", "interaction", "plain minus resnet", "before"),
    }
    assert paper["C3"].p == pytest.approx(paper["C3"].headline.p_tost)


def test_one_seed_is_inconclusive_and_says_why():
    for verdict in verdicts(make(PAPER, flow=PAPER_FLOW, seeds=1)).values():
        assert verdict.word == "inconclusive"
        assert "has 1 pair of after and before, and 3 are needed" in verdict.reason
        assert verdict.settle == "at least 3 seeds in every cell"
        assert np.isnan(verdict.p)


def test_divergences_are_named_in_the_reason():
    found = verdicts(make([0.0] * 4, seeds=8, diverges=[("after", 4, 0)]))
    assert "only after diverged in 1 pair and only before in 0" in found["C3"].reason
    assert "(31 of 32 pairs in 4 cells); divergences in 32 pairs: after alone 1" in (
        found["C3"].sentence
    )
    assert np.isnan(found["C3"].smallest_margin)


def test_a_claim_the_grid_cannot_test_says_what_to_add():
    found = verdicts(make({"plain": [1.0] * 3}, architectures=("plain",)))
    assert found["C3"].headline is None
    assert found["C3"].settle == (
        "add resnet or preresnet with placements after and before to the grid"
    )
    assert found["C1"].family_size == 5


def test_two_studies_are_one_family():
    both = judge_outcomes(
        [make(PAPER, flow=PAPER_FLOW), replace(make(PAPER, flow=PAPER_FLOW), recipe="tuned")], PLAN
    )
    assert [(v.recipe, v.claim) for v in both[4:6]] == [("common", "C5"), ("tuned", "C1")]
    assert {verdict.family_size for verdict in both} == {10}
    alone = verdicts(make(PAPER, flow=PAPER_FLOW))["C1"]
    assert both[0].p == alone.p
    assert both[0].p_holm > alone.p_holm
    assert all(effect.recipe == "tuned" for effect in both[5].effects)


def test_each_study_has_its_own_words():
    both = judge_outcomes(
        [make(PAPER, flow=PAPER_FLOW), replace(make([0.0] * 4), recipe="tuned")], PLAN
    )
    words = {verdict.recipe: verdict.word for verdict in both if verdict.claim == "C1"}
    assert words == {"common": "supported", "tuned": "equivalent"}


def test_planned_looks_lower_the_level():
    one, three = (
        verdicts(make(PAPER), plan=replace(PLAN, looks=looks))["C1"].alpha for looks in (1, 3)
    )
    assert (one, three) == (0.05, pocock_level(0.05, 3))


@pytest.mark.parametrize(
    "outcomes",
    [
        make(PAPER, flow=PAPER_FLOW),
        make([0.2, -0.1, 0.1, 0.0], sd=0.8),
        make([0.3, -0.3, 0.3, -0.3], sd=0.2),  # cells that do not agree
        make(PAPER, flow=PAPER_FLOW, placements=GRAFTED),
    ],
    ids=["paper", "noisy", "flip", "grafts"],
)
def test_at_the_smallest_margin_equivalence_would_just_be_called(outcomes):
    margins = {"accuracy": 0.5, "gradient": np.log10(1.25)}

    def weigh_at(**changed):
        given = margins | changed
        return weigh(
            outcomes,
            margin_accuracy=given["accuracy"],
            margin_flow=given["gradient"],
            alpha=0.05,
        )

    honest = weigh_at()
    for position, (claim, verdict) in enumerate(verdicts(outcomes).items()):
        quantity = verdict.headline.quantity
        # Of the comparisons of C2 all but the order itself can show that flow is not the cause.
        parts = len(honest.comparisons[claim]) - 1 if claim == "C2" else 1
        words = []
        for factor in (1 - 1e-6, 1 + 1e-6):
            moved = weigh_at(**{quantity: factor * verdict.smallest_margin})
            one = next(
                one
                for one in moved.comparisons[claim]
                if (one.quantity, one.arm) == (quantity, verdict.headline.arm)
            )
            # The other claims stay at the margins of the plan, and so do the claim's other parts.
            affirms_M, equates_M = honest.affirms_M.copy(), honest.equates_M.copy()
            p = min(1.0, float(one.p_equal) * parts)
            (affirms_M if claim in {"C3", "C4"} else equates_M)[position] = p
            called = call(
                affirms_M,
                np.where(np.arange(5) == position, 1.0, honest.contradicts_M),
                equates_M,
                words=honest.words,
                alpha=0.05,
            )
            family_M = called.affirms_M if claim in {"C3", "C4"} else called.refutes_M
            words.append(bool(family_M[position] <= 0.05))
        assert words == [False, True], claim


def test_the_smallest_margin_of_a_claim_alone_is_the_end_of_its_interval():
    """One family of five of which nothing else is shown: each one-sided test has a fifth."""
    verdict = verdicts(make({"resnet": [0.1] * 2}, architectures=("resnet",), sd=0.9, flow=0.2))[
        "C3"
    ]
    effect = verdict.headline
    t = (abs(effect.estimate) - verdict.smallest_margin) / effect.se
    assert stats.t.cdf(t, effect.df) == pytest.approx(0.05 / 5)


@pytest.mark.parametrize(("sd", "estimate"), [(0.5, 0.45), (0.4, 0.38)])
def test_more_seeds_are_planned_for_the_effect_seen_where_none_is_ruled_out(sd, estimate):
    """Within the margin, but surely not zero: how far from the margin decides."""
    found = verdicts(make([estimate] * 4, sd=sd, seeds=4))["C3"]
    effect = found.headline
    assert effect.low > 0
    deviation = sd_upper_bound(effect.se * np.sqrt(4), effect.df)

    def power(n):
        ratio, true = (value * np.sqrt(n) / deviation for value in (0.5, estimate))
        return tost_power(ratio, effect.df * (n - 1) / 3, ratio=true, alpha=0.01)

    assert power(4 + found.more_seeds - 1) < 0.8 <= power(4 + found.more_seeds)


def test_seeds_are_no_advice_where_cells_contradict_each_other():
    for effects in ([0.7, -0.7, 0.7, -0.7], [1.5, -1.5, 1.5, -1.5]):
        flip = verdicts(make(effects, sd=0.6))
        for claim in ("C1", "C3"):
            assert flip[claim].word == "inconclusive"
            assert flip[claim].more_seeds is None
            assert flip[claim].settle.startswith("a claim about each cell by itself")


def test_seeds_are_advice_where_cells_differ_but_lean_one_way():
    """Depths gain unequally, and together something: a direction is a matter of seeds."""
    found = verdicts(make([-0.1, 1.2, -0.1, 1.2], sd=0.9))
    assert found["C1"].word == "inconclusive"
    assert found["C1"].headline.low > 0
    assert found["C1"].more_seeds >= 1
    assert found["C3"].more_seeds is None


def test_the_plan_of_an_interaction_counts_the_seeds_of_a_cell():
    """Whatever the degrees of freedom of a twin: they depend on its two spreads."""
    outcomes = make({"plain": [0.35] * 2, "resnet": [0.0] * 2}, sd=0.5, seeds=6)
    outcomes.accuracy_PCS[1, 2:] = outcomes.accuracy_PCS[0, 2:]  # the residual twins do not vary
    outcomes.accuracy_PCS[1, 2:, 0] += 0.01
    found = verdicts(outcomes)["C5"]
    effect = found.headline
    deviation = sd_upper_bound(effect.se * np.sqrt(6), effect.df)

    def power(n):
        ratio = effect.estimate * np.sqrt(n) / deviation
        return t_power(ratio, effect.df * (n - 1) / 5, alpha=0.01)

    assert effect.low > 0
    assert power(6 + found.more_seeds - 1) < 0.8 <= power(6 + found.more_seeds)


def test_a_plan_for_unequal_cells_counts_their_average_seeds():
    missing = [("after", 0, s) for s in (0, 1)]
    found = verdicts(
        make({"resnet": [0.1] * 2}, sd=0.8, architectures=("resnet",), missing=missing)
    )["C3"]
    effect = found.headline
    needed = seeds_needed_to_settle(0.5, se=effect.se, df=effect.df, seeds=4.0, alpha=0.01)
    assert found.more_seeds == needed - 4


def test_trials_that_are_missing_are_asked_for_first():
    missing = [("after", 4, s) for s in range(3)]
    found = verdicts(make([0.1] * 4, sd=0.8, missing=missing))["C3"]
    assert "(17 of 20 pairs in 4 cells)" in found.sentence
    assert "3 of 20 pairs of after and before are missing" in found.reason
    assert found.settle.startswith("the 3 planned pairs that did not run; then ")
    none_more = verdicts(make([0.1] * 4, sd=0.1, missing=[("after", 4, s) for s in range(4)]))["C3"]
    assert none_more.settle == (
        "the 4 planned pairs that did not run; then at least 3 seeds in every cell"
    )


def test_trials_that_are_missing_do_not_hide_that_others_diverged():
    outcomes = make([0.1] * 4, sd=0.3, missing=[("after", 4, 0)], diverges=[("after", 5, 1)])
    assert verdicts(outcomes)["C3"].settle == (
        "the 1 planned pair that did not run; then a recipe under which both placements train"
    )


def test_flow_that_is_no_number_is_told_apart_from_divergence():
    outcomes = make(PAPER, flow=PAPER_FLOW)
    outcomes.flow_PCS[1] = np.nan
    for claim in ("C2", "C4"):
        verdict = verdicts(outcomes)[claim]
        assert "not one of 20 pairs gives a difference" in verdict.sentence
        assert "gradient flow is a number in 0 pairs, and 3 are needed" in verdict.reason
        assert verdict.settle == "readings of gradient flow that are numbers"


def test_differences_that_never_vary_ask_for_the_test_images():
    outcomes = make([0.0] * 4, sd=0.0)
    verdict = verdicts(outcomes)["C3"]
    assert verdict.sentence == (
        "Residual networks: 20 pairs in 4 cells do not vary at all, so nothing tells a difference "
        "from chance."
    )
    assert "test images" in verdict.settle
    known = verdicts(replace(outcomes, resolution=100 / 540))["C3"]
    assert known.word == "equivalent"


def test_a_cause_that_is_refuted_by_divergence_alone_quotes_it():
    """`after` never trains: it has no flow to compare, and yet it is not better."""
    diverges = [("after", c, s) for c in range(8) for s in range(5)]
    verdict = verdicts(make(PAPER, flow=PAPER_FLOW, diverges=diverges))["C2"]
    assert verdict.word == "contradicted"
    assert verdict.headline.quantity == "accuracy"
    assert verdict.reason.count("only after diverged in 20 pairs and only before in 0") == 1


def test_the_panel_of_an_interaction_pairs_the_twins():
    """Each pair of the skip-free twin less one of the residual twin; the main effect cancels."""
    outcomes = make({"plain": [1.6], "resnet": [0.8]}, sd=0.2, seeds=8)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    diff_S = diff_CS[0] - diff_CS[1]
    found = verdicts(outcomes)["C5"]
    assert found.word == "supported"
    assert found.robustness.p_sign_flip == found.robustness.p_sign_flip_floor == 2**-7
    assert found.robustness.p_signed_rank == pytest.approx(stats.wilcoxon(diff_S).pvalue)
    assert found.robustness.superiority == np.mean(diff_S > 0)
    walsh = [(a + b) / 2 for i, a in enumerate(diff_S) for b in diff_S[i:]]
    assert found.robustness.hodges_lehmann == pytest.approx(np.median(walsh))
    assert found.fragile == ""


def test_where_a_single_cell_refutes_the_panel_has_no_say():
    verdict = verdicts(make([2.0, -2.0, 2.0, -2.0]))["C3"]
    assert verdict.word == "contradicted"
    assert verdict.robustness.p_sign_flip > 0.05
    assert verdict.fragile == ""


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
    assert claims._tell_hours(hours) == told


def test_no_number_of_observed_seeds_is_said_to_show_a_cause():
    """Accuracy is open, and seeds would settle it: not why it is as it is."""
    outcomes = make([0.3] * 4, flow=0.1, sd=0.9)
    assert verdicts(outcomes)["C1"].more_seeds is not None
    assert verdicts(outcomes)["C2"].more_seeds is None
    assert verdicts(outcomes)["C2"].settle.startswith("arms that borrow each other's flow")


def test_what_is_missing_for_a_cause_is_told():
    verdict = verdicts(make(PAPER, flow=PAPER_FLOW))["C2"]
    assert "higher flow, higher accuracy and a path between them are not all shown" in (
        verdict.reason
    )


def test_an_open_claim_says_that_it_is_open():
    verdict = verdicts(make([0.2] * 2, sd=0.8, seeds=4))["C3"]
    assert verdict.reason.startswith("neither a difference nor its absence is shown; p = ")


def test_a_cell_estimated_beyond_the_margin_is_told_as_that():
    verdict = verdicts(make([0.0, 0.0, 0.0, 0.55], sd=0.6, seeds=8))["C3"]
    assert (
        "the mean accuracy of after and before differs by less than the margin, but the estimate "
        "of a single cell does not"
    ) in verdict.reason


def test_more_seeds_are_planned_to_settle_the_claim_either_way():
    found = verdicts(make([0.2] * 2, sd=0.8, seeds=4))["C3"]
    assert found.word == "inconclusive"
    needed = 4 + found.more_seeds
    effect = found.headline
    ratio = 0.5 * np.sqrt(needed) / sd_upper_bound(effect.se * np.sqrt(4), effect.df)
    df = effect.df * (needed - 1) / 3
    assert tost_power(ratio, df, alpha=0.01) >= 0.8
    assert t_power(ratio, df, alpha=0.01) >= 0.8
    fewer = 0.5 * np.sqrt(needed - 1) / sd_upper_bound(effect.se * np.sqrt(4), effect.df)
    assert tost_power(fewer, effect.df * (needed - 2) / 3, alpha=0.01) < 0.8
    # Two placements in two cells at 36 s each.
    assert found.device_hours == pytest.approx(found.more_seeds * 4 * 36 / 3600)
    assert found.settle.startswith(f"{found.more_seeds} more seeds per cell would settle this")
    assert found.settle.endswith(f", about {found.device_hours:.2g} device-hours")


def test_a_settled_claim_asks_for_nothing(paper):
    for claim in ("C1", "C3", "C4", "C5"):
        assert (paper[claim].settle, paper[claim].more_seeds) == ("", None)
        assert np.isnan(paper[claim].device_hours)


def test_an_observed_path_is_graded_and_asks_for_an_intervention():
    verdict = verdicts(make(PAPER, flow=PAPER_FLOW, path=20.0, seeds=10))["C2"]
    assert verdict.grade == "consistent, cause not tested"
    assert verdict.word == "inconclusive"
    assert "points per dex of flow" in verdict.reason
    assert verdict.settle == (
        "arms that borrow each other's flow, in the networks without skips: "
        "placement after with flow before, and placement before with flow after"
    )
    assert "cannot tell a cause from what goes with it" in verdict.reason


def test_an_intervention_is_part_of_the_sentence():
    verdict = verdicts(make(PAPER, flow=PAPER_FLOW, placements=GRAFTED))["C2"]
    assert (verdict.word, verdict.holds) == ("supported", True)
    assert "of before with the flow of after minus before +1.00 points" in verdict.sentence


def test_a_borrowed_flow_that_changes_nothing_is_what_the_sentence_quotes():
    outcomes = make(PAPER, flow=PAPER_FLOW, placements=GRAFTED)
    borrowed, before = 3, 0
    outcomes.accuracy_PCS[borrowed] = outcomes.accuracy_PCS[before] + np.linspace(-0.1, 0.1, 5)
    verdict = verdicts(outcomes)["C2"]
    assert (verdict.word, verdict.holds) == ("equivalent", False)
    assert "gradient flow of after over before is 2.00 [" in verdict.sentence
    assert "accuracy of before with the flow of after minus before is" in verdict.sentence
    assert verdict.headline.quantity == "accuracy"
    assert not verdict.fragile


def test_cells_that_disagree_are_a_reason():
    found = verdicts(make([0.4, -0.4, 0.4, -0.4], sd=0.3))["C3"]
    assert "the cells do not agree" in found.reason
    assert found.settle.startswith("a claim about each cell by itself")


def test_the_panel_never_decides_and_its_dissent_is_told():
    """One seed far out carries the mean; ranks and medians say the other sign."""
    outcomes = make({"plain": [0.0], "resnet": [0.0]}, seeds=8, sd=0.0)
    jump_S = np.array([-0.5, -0.52, -0.48, -0.51, -0.49, -0.47, -0.53, 9.0])
    outcomes.accuracy_PCS[1, 0] = outcomes.accuracy_PCS[0, 0] + jump_S
    verdict = verdicts(outcomes)["C1"]
    assert verdict.word == "inconclusive"
    assert verdict.fragile == ""
    assert verdict.robustness.superiority == 1 / 8
    assert verdict.robustness.hodges_lehmann < 0 < verdict.headline.estimate


def test_where_survivors_and_chance_disagree_nothing_is_decided():
    """`after` is worse where both train, but `before` is the one that diverges."""
    diverges = [("before", c, s) for c in range(4) for s in range(3)]
    outcomes = make({"plain": [-0.6] * 4, "resnet": [0.0] * 4}, seeds=10, diverges=diverges)
    verdict = verdicts(outcomes)["C1"]
    # Ten percent is chance on ten classes: three of ten pairs gain 80 points.
    assert verdict.robustness.estimate_at_chance == pytest.approx(23.6, abs=0.5)
    assert verdict.headline.estimate == pytest.approx(-0.6, abs=0.2)
    assert verdict.word == "inconclusive"


@pytest.mark.parametrize(
    ("claim", "dissent", "told"),
    [
        ("C1", {"p_sign_flip": 0.2}, "the sign-flip test has p = 0.2"),
        ("C1", {"p_signed_rank": 0.07}, "the signed-rank test has p = 0.07"),
        ("C1", {"hodges_lehmann": -0.1}, "the Hodges-Lehmann estimate has the other sign"),
        ("C1", {"estimate_at_chance": -2.0}, "scoring divergences at chance turns the sign"),
        ("C3", {"rope_probability": 0.9}, "P(within the margin) is 0.90"),
        ("C3", {"hodges_lehmann": -0.6}, "the Hodges-Lehmann estimate lies outside the margin"),
        ("C1", {"p_signed_rank": 0.0625, "p_sign_flip_floor": 0.0625}, ""),
        ("C1", {}, ""),
    ],
)
def test_a_verdict_is_fragile_where_another_method_dissents(paper, claim, dissent, told):
    verdict = paper[claim]
    evidence = weigh(
        make(PAPER, flow=PAPER_FLOW), margin_accuracy=0.5, margin_flow=0.0969, alpha=0.05
    )
    panel = replace(verdict.robustness, **dissent)
    one = evidence.comparisons[claim][0]
    assert claims._find_disagreement(verdict.word, one, panel, alpha=0.05) == told


def test_the_panel_agrees_with_its_outside_oracles(paper):
    outcomes = make(PAPER, flow=PAPER_FLOW)
    diff_P = outcomes.difference("accuracy", "after", "before")[:4].ravel()
    panel = paper["C1"].robustness
    assert panel.p_signed_rank == pytest.approx(stats.wilcoxon(diff_P).pvalue)
    effect = paper["C1"].headline
    posterior = stats.t(effect.df, effect.estimate, effect.se)
    assert panel.rope_probability == pytest.approx(posterior.cdf(0.5) - posterior.cdf(-0.5))
    assert panel.superiority == np.mean(diff_P > 0)
    assert panel.p_sign_flip == panel.p_sign_flip_floor == 1 / 10_000


def test_the_panel_weighs_pairs_as_the_contrast_does():
    """Two cells count the same, though one has lost two of its pairs."""
    missing = [("after", 0, 0), ("after", 0, 1)]
    outcomes = make({"plain": [0.05, 0.2]}, architectures=("plain",), missing=missing, sd=0.6)
    diff_CS = outcomes.difference("accuracy", "after", "before")
    weighted_P = np.concatenate([diff_CS[0, 2:] / 3, diff_CS[1] / 5])
    oracle = stats.permutation_test(
        (weighted_P,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    panel = verdicts(outcomes)["C1"].robustness
    assert panel.p_sign_flip == pytest.approx(oracle.pvalue)


def test_where_nothing_trains_more_seeds_are_no_advice():
    diverges = [(arm, c, s) for arm in ("before", "after") for c in range(8) for s in range(5)]
    verdict = verdicts(make(PAPER, diverges=diverges))["C3"]
    assert verdict.sentence == (
        "Residual networks: not one of 20 pairs gives a difference; "
        "divergences in 20 pairs: both 20."
    )
    assert "in the thinnest cell of after and before both trained in 0 pairs" in verdict.reason
    assert verdict.settle == "a recipe under which both placements train"


def test_divergences_say_nothing_of_gradient_flow():
    diverges = [("after", c, s) for c in range(8) for s in range(5)]
    found = verdicts(make(PAPER, diverges=diverges))
    assert (found["C3"].word, found["C4"].word) == ("contradicted", "inconclusive")
    assert "nan" not in " ".join(v.sentence for v in found.values())


def test_the_generator_moves_the_panel_and_no_verdict():
    outcomes = make([0.15] * 4, sd=0.6)
    first, again, other = (
        judge_outcomes([outcomes], PLAN, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    p = [[v.robustness.p_sign_flip for v in found] for found in (first, again, other)]
    assert p[0] == p[1] != p[2]
    assert [v.word for v in first] == [v.word for v in other]


@pytest.mark.parametrize("claim", ["C3", "C4"])
def test_where_every_pair_diverges_in_one_arm_the_sentence_says_so(claim):
    diverges = [("after", c, s) for c in range(8) for s in range(5)]
    sentence = verdicts(make(PAPER, diverges=diverges))[claim].sentence
    assert "20 pairs gives a difference; divergences in 20 pairs: after alone 20." in sentence


def test_a_p_value_too_small_to_print_is_bounded(paper):
    assert "p < 0.0001" in paper["C1"].reason
    assert "e-" not in paper["C1"].reason


def test_guessing_on_an_unknown_data_set_is_not_made_up():
    diverges = [("before", 0, 0)]
    known = make(PAPER, diverges=diverges)
    unknown = replace(known, dataset="x-rays")
    scored = [
        verdicts(outcomes)["C1"].robustness.estimate_at_chance for outcomes in (known, unknown)
    ]
    assert np.isfinite(scored[0])
    assert np.isnan(scored[1])


@pytest.mark.parametrize(
    ("dataset", "chance"),
    [
        ("cifar100", 1.0),
        ("synthetic:3x32x32x10x60000", 10.0),
        ("synthetic:1x2x3x0x5", np.nan),
        ("synthetic:x", np.nan),
        ("imagefolder:flowers:64@0123456789abcdef", np.nan),
    ],
)
def test_guessing_is_known_of_data_sets_whose_classes_are(dataset, chance):
    assert claims._guess(dataset) == pytest.approx(chance, nan_ok=True)


def test_every_claim_is_judged_for_every_study():
    assert [v.claim for v in judge_outcomes([make(PAPER)], PLAN)] == list(CLAIMS)
    assert judge_outcomes([], PLAN) == ()


def test_other_scalars_of_flow_are_judged_beside_the_one_the_plan_fixed():
    outcomes = make(PAPER, flow=PAPER_FLOW, path=20.0, seeds=10, placements=GRAFTED)
    other_PCS = outcomes.flow_PCS.copy()
    other_PCS[1, :4] -= 0.6
    hardly_PCS = outcomes.flow_PCS.copy()
    hardly_PCS[1, :4] -= 0.302  # below zero, and not significantly
    outcomes = replace(
        outcomes,
        other_flows={
            "at the last reading": other_PCS,
            "the same": outcomes.flow_PCS,
            "at initialisation": hardly_PCS,
        },
    )
    found = verdicts(outcomes)
    effect = found["C2"].headline
    last, same, hardly = found["C2"].robustness.other_flows
    assert hardly.estimate < 0
    assert hardly.p > 0.05
    assert (same.estimate, same.p, same.p_minimal) == (effect.estimate, effect.p, effect.p_minimal)
    assert (same.low, same.high) == (effect.low, effect.high)
    assert last.estimate == pytest.approx(-0.3)
    assert found["C2"].word == "supported"
    assert found["C2"].fragile == "flow at the last reading differs the other way (p < 0.0001)"
    assert found["C4"].fragile == ""
    assert found["C1"].robustness.other_flows == ()


def test_equal_flow_is_fragile_where_another_scalar_of_it_differs():
    outcomes = make(PAPER, flow=PAPER_FLOW)
    other_PCS = outcomes.flow_PCS.copy()
    other_PCS[1, 4:] += 0.2
    slight_PCS = outcomes.flow_PCS.copy()
    slight_PCS[1, 4:] += 0.05
    other_flows = {"averaged over the layers": other_PCS, "at initialisation": slight_PCS}
    verdict = verdicts(replace(outcomes, other_flows=other_flows))["C4"]
    assert verdict.word == "equivalent"
    assert verdict.fragile == (
        "flow averaged over the layers differs beyond the margin (p < 0.0001)"
    )


def test_the_reason_gives_the_smallest_margin_and_the_test_sets_own_part(tmp_path):
    study = Study(accuracy=lambda t: 1.0 * (t.architecture == "plain" and t.placement == "after"))
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    found = {verdict.claim: verdict for verdict in judge(load_results(str(tmp_path)))}
    for claim, verdict in found.items():
        effect = verdict.headline
        quoted = f"±{verdict.smallest_margin:.3g} points"
        if effect.quantity == "gradient":
            low, high = (10 ** (sign * verdict.smallest_margin) for sign in (-1, 1))
            quoted = f"{low:.2f} to {high:.2f}"
        told = f"the smallest margin at which it would be called equivalent is {quoted}"
        assert (told in verdict.reason) == (verdict.word != "supported"), claim
        part = (
            f"the standard error is {effect.se:.2f} points over seeds, and "
            f"{effect.test_se:.2f} from the finite test set"
        )
        assert (part in verdict.reason) == (effect.quantity == "accuracy"), claim
