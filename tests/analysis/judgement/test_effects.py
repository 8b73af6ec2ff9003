from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from analysis.judgement import effects as effects_module
from analysis.judgement.effects import (
    RESIDUAL,
    SKIP_FREE,
    find_effects,
    find_twins,
)
from analysis.judgement.outcomes import WINDOWS, Cell, Outcomes
from analysis.load import load_results
from analysis.statistics.looks import Look
from analysis.statistics.multiplicity import holm
from harness.study.records import AnalysisPlan
from harness.study.trials import EVERY_PROGRAM
from tests.analysis.conftest import Study, effects_of, write_study

PLAN = AnalysisPlan(grid="g")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All architectures of the small grids, two points and 0.3 dex for `after` in `plain`."""
    folder = tmp_path_factory.mktemp("study")
    study = Study(
        architectures=["mlp", "plain", "resnet", "densenet"],
        placements=["before", "after", "none", "after-add"],
        depths=[10, 16],
        seeds=range(4),
        accuracy=lambda t: 2.0 * (t.architecture == "plain" and t.placement == "after"),
        gradient=lambda t: 0.3 * (t.architecture == "plain" and t.placement == "after"),
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    return load_results(str(folder))


@pytest.fixture(scope="module")
def effects(results):
    return effects_of("accuracy", results)


def pick(effects, **wanted):
    (found,) = (e for e in effects if all(getattr(e, k) == v for k, v in wanted.items()))
    return found


def make_outcomes(accuracy_PCS, *, cells=None, **changes):
    """Outcomes of `before`, `after` (and `none`) by hand, in percent."""
    accuracy_PCS = np.asarray(accuracy_PCS, float)
    placements, count, seeds = accuracy_PCS.shape[-3:]
    ran_PCS = np.isfinite(accuracy_PCS)
    return Outcomes(
        **{
            "dataset": "digits",
            "recipe": "common",
            "cells": cells
            or tuple(Cell(architecture="plain", depth=8 + 6 * c) for c in range(count)),
            "placements": ("before", "after", "none")[:placements],
            "seeds": tuple(range(seeds)),
            "block_C": np.arange(count),
            "accuracy_PCS": accuracy_PCS,
            "flow_PCS": dict.fromkeys(WINDOWS, np.zeros_like(accuracy_PCS)),
            "ran_PCS": ran_PCS,
            "diverged_PCS": np.zeros(accuracy_PCS.shape, bool),
            "planned_PCS": np.ones(accuracy_PCS.shape[-3:], bool),
            "wall_time_PCS": np.ones(accuracy_PCS.shape[-3:]),
        }
        | changes
    )


def pairs_of(results, architecture, depth, arm, baseline):
    rows = results.trials.query("architecture == @architecture and depth == @depth")
    by_seed = rows.pivot_table(index="seed", columns="placement", values="test_accuracy")
    return 100 * by_seed[arm], 100 * by_seed[baseline]


@pytest.mark.parametrize("baseline", ["before", "none"])
@pytest.mark.parametrize("architecture", ["mlp", "plain", "resnet", "densenet"])
def test_a_cell_is_the_paired_t_test_of_its_rows(results, effects, architecture, baseline):
    effect = pick(
        effects, kind="cell", architecture=architecture, depth=16, arm="after", baseline=baseline
    )
    arm_P, baseline_P = pairs_of(results, architecture, 16, "after", baseline)
    oracle = stats.ttest_rel(arm_P, baseline_P)
    interval = oracle.confidence_interval(0.95)
    assert effect.estimate == pytest.approx((arm_P - baseline_P).mean())
    assert effect.p == pytest.approx(oracle.pvalue)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    narrow = oracle.confidence_interval(0.90)
    assert (effect.low90, effect.high90) == pytest.approx((narrow.low, narrow.high))
    side, bound = ("greater", 0.5) if effect.estimate > 0 else ("less", -0.5)
    beyond = stats.ttest_1samp(arm_P - baseline_P, bound, alternative=side)
    assert effect.p_minimal == pytest.approx(beyond.pvalue)
    assert effect.p_tost == pytest.approx(ttost_paired(arm_P, baseline_P, -0.5, 0.5)[0])
    assert effect.differences == pytest.approx(list(arm_P - baseline_P))
    assert effect.seeds == (0, 1, 2, 3)
    assert effect.sd == pytest.approx((arm_P - baseline_P).std())
    images_P = np.rint((arm_P - baseline_P) * 20)  # of 2,000: ties are ties
    flips = stats.permutation_test(
        (images_P,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert effect.p_sign_flip == pytest.approx(flips.pvalue)
    assert effect.correlation == pytest.approx(np.corrcoef(arm_P, baseline_P)[0, 1])


def test_a_pool_is_the_mean_of_its_cells_with_their_variances_added(effects):
    pooled = pick(effects, kind="pooled", label="skip-free CNNs", arm="after", baseline="before")
    cells = [
        pick(effects, kind="cell", label=label, arm="after", baseline="before")
        for label in ("plain-10", "plain-16")
    ]
    assert pooled.estimate == pytest.approx(np.mean([cell.estimate for cell in cells]))
    assert pooled.se == pytest.approx(np.sqrt(sum(cell.se**2 for cell in cells)) / 2)
    assert 3 <= pooled.df <= 6
    assert (pooled.cells, pooled.pairs, pooled.pairs_planned) == (2, 8, 8)
    assert np.isnan([pooled.p_sign_flip, pooled.p_sign_flip_floor]).all()
    assert pooled.sd == pytest.approx(np.sqrt(np.mean([cell.sd**2 for cell in cells])))


def test_the_correlation_within_pairs_is_averaged_over_cells():
    rng = np.random.default_rng(7)
    accuracy_PCS = 90 + rng.normal(size=(2, 3, 6))
    accuracy_PCS[1, 0] += 3 * accuracy_PCS[0, 0]
    (pooled,) = (
        e
        for e in find_effects("accuracy", [make_outcomes(accuracy_PCS)], PLAN)
        if e.kind == "pooled"
    )
    of_cells = [np.corrcoef(*accuracy_PCS[:, c])[0, 1] for c in range(3)]
    assert pooled.correlation == pytest.approx(np.mean(of_cells))
    assert np.ptp(of_cells) > 0.5


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_test_sets_part_is_the_two_way_analysis_of_variance(seeds):
    """The slow twin: mean squares of images and of the rest, from their sums of squares."""
    rng = np.random.default_rng(3)
    lift_N = rng.normal(0, 1.5, size=300)
    ease_PSN = rng.normal(size=(2, seeds, 300)) + np.stack([np.zeros(300), lift_N])[:, None]
    correct_PCSN = (ease_PSN > 0).astype(np.int8)[:, None]
    outcomes = make_outcomes(100 * correct_PCSN.mean(-1), correct_PCSN=correct_PCSN)
    effect = pick(find_effects("accuracy", [outcomes], PLAN), kind="cell")
    d_SN = correct_PCSN[1, 0].astype(float) - correct_PCSN[0, 0]
    images = seeds * ((d_SN.mean(0) - d_SN.mean()) ** 2).sum() / 299
    rest = sum(
        (d_SN[s, i] - d_SN[s].mean() - d_SN[:, i].mean() + d_SN.mean()) ** 2
        for s in range(seeds)
        for i in range(300)
    ) / ((seeds - 1) * 299)
    assert effect.test_se == pytest.approx(100 * np.sqrt((images - rest) / seeds / 300))


def test_the_interaction_is_plain_minus_resnet(effects):
    interaction = pick(effects, kind="interaction")
    plain, resnet = (
        pick(effects, kind="pooled", label=label, arm="after", baseline="before")
        for label in ("skip-free CNNs", "residual networks")
    )
    assert interaction.estimate == pytest.approx(plain.estimate - resnet.estimate)
    assert interaction.se == pytest.approx(np.hypot(plain.se, resnet.se))
    assert interaction.family == "C5"
    assert interaction.pairs == plain.pairs == resnet.pairs
    assert interaction.pairs_planned == plain.pairs_planned


def test_a_trend_is_points_per_doubling_and_has_no_margin(effects):
    trend = pick(effects, kind="trend", architecture="plain")
    first, last = (
        pick(effects, kind="cell", label=label, arm="after", baseline="before").estimate
        for label in ("plain-10", "plain-16")
    )
    assert trend.estimate == pytest.approx((last - first) / np.log2(16 / 10))
    assert trend.unit == "percentage points per doubling"
    assert np.isnan([trend.margin, trend.p_tost]).all()


def test_networks_that_are_no_cnn_or_not_residual_decide_nothing(effects):
    families = {
        architecture: pick(
            effects,
            kind="cell",
            architecture=architecture,
            depth=10,
            arm="after",
            baseline="before",
        ).family
        for architecture in ("mlp", "plain", "resnet", "densenet")
    }
    apart = "exploratory: after - before"
    assert families == {"mlp": apart, "plain": "C1", "resnet": "C3", "densenet": apart}


def test_any_other_placement_is_compared_with_before_and_decides_nothing(effects):
    others = [effect for effect in effects if effect.arm == "after-add"]
    assert {effect.baseline for effect in others} == {"before"}
    assert {effect.family for effect in others} == {"exploratory: after-add - before"}


@pytest.mark.parametrize(
    ("placements", "compared"),
    [
        (["after", "before", "none"], ["after/before", "after/none", "before/none"]),
        (["none", "before", "mine", "after"], ["after/before", "mine/before", "after/none"]),
        (["mine", "yours", "none", "theirs"], ["yours/mine", "theirs/mine", "mine/none"]),
        (["before"], []),
        (["none"], []),
        (["none", "mine"], ["mine/none"]),
        (["after", "mine"], ["mine/after"]),
    ],
)
def test_grids_without_the_usual_placements_are_compared_too(placements, compared):
    found = [f"{arm}/{baseline}" for arm, baseline in effects_module._comparisons(placements)]
    assert set(compared) <= set(found)
    assert len(found) == len(set(found))
    assert found[:1] == compared[:1]
    first = {"baseline": found[0].partition("/")[2]} if found else {}
    if "before" in placements and first:
        assert first["baseline"] == "before"


def test_the_networks_of_the_claims_are_known_to_the_harness():
    """The analysis imports nothing that trains, so it names them; torchvision's own among them."""
    assert set(SKIP_FREE) <= set(EVERY_PROGRAM)
    assert set(RESIDUAL) <= set(EVERY_PROGRAM)
    for architecture in (*SKIP_FREE, *RESIDUAL):
        assert {"before", "after", "none"} <= set(EVERY_PROGRAM[architecture])
    assert not any("+" in EVERY_PROGRAM[name]["before"] for name in SKIP_FREE)
    assert all("+" in EVERY_PROGRAM[name]["before"] for name in RESIDUAL)


def test_a_twin_differs_in_its_skips_and_in_nothing_else():
    def cell(architecture, *settings, variant=""):
        return Cell(architecture=architecture, depth=8, variant=variant, settings=settings)

    cells = [
        cell("plain", 64),
        cell("resnet", 128),
        cell("resnet", 64, variant="batch_size=64"),
        cell("plain", 256),
    ]
    twin_KC = find_twins(cells, np.ones(4, bool))
    np.testing.assert_array_equal(twin_KC, [[1, 0, -1, 0]])


def test_holm_runs_within_each_family_of_cells(effects):
    for family in {effect.family for effect in effects}:
        cells = [e for e in effects if e.family == family and e.kind == "cell" and not e.window]
        expected = holm([cell.p for cell in cells]) if cells else []
        assert [cell.p_holm for cell in cells] == pytest.approx(list(expected))
    assert len([e for e in effects if e.family == "C1" and e.kind == "cell"]) == 4
    assert all(np.isnan(e.p_holm) for e in effects if e.kind != "cell")


def test_each_study_has_families_of_its_own():
    outcomes = make_outcomes(90 + np.random.default_rng(0).normal(size=(2, 3, 5)))
    tuned = replace(outcomes, recipe="tuned")
    alone, both = (
        find_effects("accuracy", studies, PLAN) for studies in ([tuned], [outcomes, tuned])
    )
    own = [e.p_holm for e in both if e.recipe == "tuned" and e.kind == "cell"]
    assert own == [e.p_holm for e in alone if e.kind == "cell"]


def test_gradient_flow_is_judged_as_the_logarithm_of_a_ratio_at_the_margin_of_the_plan(results):
    for window in WINDOWS:
        effect = pick(
            effects_of("gradient", results), label="skip-free CNNs", family="C2", window=window
        )
        assert effect.unit == "log10 of the ratio"
        assert effect.margin == pytest.approx(np.log10(1.25))
        assert effect.estimate == pytest.approx(0.3, abs=5 * effect.se)
        assert np.isnan(effect.test_se)


def test_one_seed_gives_an_estimate_and_no_error():
    outcomes = make_outcomes([[[90.0]], [[91.0]]])
    effect = pick(find_effects("accuracy", [outcomes], PLAN), kind="cell")
    assert effect.estimate == 1.0
    assert np.isnan([effect.low, effect.p, effect.p_tost, effect.sd, effect.p_sign_flip]).all()


def test_no_pair_at_all_is_no_number():
    outcomes = make_outcomes([[[90.0, np.nan]], [[np.nan, 91.0]]])
    effect = pick(find_effects("accuracy", [outcomes], PLAN), kind="cell")
    assert (effect.pairs, effect.pairs_planned) == (0, 2)
    assert np.isnan([effect.estimate, effect.p]).all()


def test_divergences_are_counted_and_their_pairs_left_out():
    accuracy_PCS = np.array([[[90.0, 91, 92, 90]], [[92.0, np.nan, np.nan, 91]]])
    diverged_PCS = np.array([[[False] * 4], [[False, True, True, False]]])
    outcomes = make_outcomes(
        accuracy_PCS, diverged_PCS=diverged_PCS, ran_PCS=np.ones((2, 1, 4), bool)
    )
    effect = pick(find_effects("accuracy", [outcomes], PLAN), kind="cell")
    assert (effect.untrained_arm, effect.untrained_baseline, effect.untrained_both) == (2, 0, 0)
    assert effect.p_mcnemar == stats.binomtest(2, 2).pvalue
    assert effect.risk == 0.5
    assert effect.risk_low < 0
    assert 0.5 < effect.risk_high < 1
    assert effect.differences == (2.0, 1.0)
    assert effect.seeds == (0, 3)


def test_cells_that_share_seeds_are_not_taken_for_independent():
    """One depth at two batch sizes, and the same luck in both."""
    luck_S = np.array([0.0, 1.0, -1.0, 0.5])
    accuracy_PCS = np.stack([np.full((2, 4), 90.0), 91 + np.stack([luck_S, luck_S])])
    cells = tuple(
        Cell(architecture="plain", depth=8, variant=f"batch_size={size}") for size in (16, 128)
    )
    shared = make_outcomes(accuracy_PCS, cells=cells, block_C=np.zeros(2, int))
    nested = replace(shared, block_C=np.arange(2))
    se = [pick(find_effects("accuracy", [o], PLAN), kind="pooled").se for o in (shared, nested)]
    assert se[0] == pytest.approx(luck_S.std(ddof=1) / 2)
    assert se[1] == pytest.approx(se[0] / np.sqrt(2))


def test_the_test_sets_part_of_the_error_is_what_more_seeds_do_not_remove():
    """Images that favour an arm whatever the seed: the spread over test sets drawn anew."""
    rng = np.random.default_rng(0)
    images, seeds, draws = 500, 5, 400

    def draw(images):
        hardness_N = rng.normal(size=images)
        lift_N = rng.normal(0.3, 1.0, size=images)  # what `after` does to each image
        noise_PSN = rng.normal(0, 0.5, size=(2, seeds, images))
        ease_PSN = np.stack([hardness_N, hardness_N + lift_N])[:, None] + noise_PSN
        return (ease_PSN > 0).astype(np.int8)[:, None]

    def describe(correct_PCSN):
        outcomes = make_outcomes(100 * correct_PCSN.mean(-1), correct_PCSN=correct_PCSN)
        return pick(find_effects("accuracy", [outcomes], PLAN), kind="cell")

    effects = [describe(draw(images)) for _ in range(draws)]
    spread = np.std([effect.estimate for effect in effects])
    # With five seeds most of what moves the estimate here is the images.
    image_part = np.sqrt(np.mean([effect.test_se**2 for effect in effects]))
    seed_part = np.sqrt(np.mean([effect.se**2 for effect in effects]))
    assert image_part == pytest.approx(spread, rel=0.15)
    assert np.hypot(image_part, seed_part) >= 0.95 * spread
    assert describe(draw(100 * images)).test_se == pytest.approx(image_part / 10, rel=0.1)


def test_a_variance_estimated_below_zero_is_missing_and_not_zero():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(20):
        correct_PCSN = (rng.random((2, 1, 8, 4_000)) < 0.9).astype(np.int8)
        outcomes = make_outcomes(100 * correct_PCSN.mean(-1), correct_PCSN=correct_PCSN)
        found.append(pick(find_effects("accuracy", [outcomes], PLAN), kind="cell"))
    test_se = np.array([effect.test_se for effect in found])
    assert 3 <= np.isnan(test_se).sum() <= 17  # with no image effect about every other one
    assert np.all(np.isnan(test_se) | (test_se > 0))
    assert np.nanmax(test_se / [effect.se for effect in found]) < 1


def test_a_difference_far_from_the_others_of_its_cell_is_flagged_by_its_seed():
    accuracy_PCS = np.full((2, 3, 6), 90.0)
    accuracy_PCS[1] += [0.1, 0.2, 0.15, 0.12, 0.18, 0.14]
    accuracy_PCS[1, 0, 3] += 9.0
    accuracy_PCS[1, 1, 3] += 0.1  # within what chance does
    accuracy_PCS[:, 2, 4:] = np.nan
    accuracy_PCS[1, 2, 3] += 9.0  # four pairs are too few to tell
    outcomes = make_outcomes(accuracy_PCS, seeds=(0, 1, 2, 7, 8, 9))
    effects = find_effects("accuracy", [outcomes], PLAN)
    assert [e.outlier for e in effects if e.kind == "cell"] == [7, None, None]
    assert {e.outlier for e in effects if e.kind == "pooled"} == {None}


def test_dull_and_thin_cells_are_listed_and_left_out_of_the_pool():
    accuracy_PCS = 90 + np.random.default_rng(0).normal(size=(2, 3, 6))
    accuracy_PCS[:, 0] = 99.9
    accuracy_PCS[1, 1, 2:] = np.nan
    effects = find_effects("accuracy", [make_outcomes(accuracy_PCS)], PLAN)
    cells = [e for e in effects if e.kind == "cell"]
    assert [e.pairs for e in cells] == [6, 2, 6]
    pooled = pick(effects, kind="pooled")
    assert (pooled.estimate, pooled.p) == pytest.approx((cells[2].estimate, cells[2].p))


def test_every_number_of_an_effect_allows_for_the_looks_before_it():
    accuracy_PCS = 90 + np.random.default_rng(0).normal(size=(2, 2, 6))
    diverged_PCS = np.zeros((2, 2, 6), bool)
    diverged_PCS[1, 0, 0] = True
    accuracy_PCS[diverged_PCS] = np.nan
    once = make_outcomes(accuracy_PCS, diverged_PCS=diverged_PCS, ran_PCS=np.ones((2, 2, 6), bool))
    early = replace(once, look=Look((0.5,)))
    first, second = (find_effects("accuracy", [o], PLAN)[0] for o in (once, early))
    assert first.estimate == second.estimate
    for name in ("p", "p_sign_flip", "p_sign_flip_floor", "p_tost", "p_minimal", "p_holm"):
        assert getattr(second, name) > getattr(first, name) or getattr(first, name) == 1.0, name
    for low, high in (("low", "high"), ("low90", "high90"), ("risk_low", "risk_high")):
        assert getattr(second, low) < getattr(first, low)
        assert getattr(second, high) > getattr(first, high)


def test_the_control_arm_of_the_head_is_shown_beside_the_claims():
    cells = tuple(
        Cell(architecture="plain", depth=8, variant=f"final_norm={on}", beside="head" if on else "")
        for on in (False, True)
    )
    accuracy_PCS = 90 + np.random.default_rng(0).normal(size=(2, 2, 5))
    effects = find_effects("accuracy", [make_outcomes(accuracy_PCS, cells=cells)], PLAN)
    assert [e.family for e in effects if e.kind == "cell"] == ["C1", "exploratory: head"]
    assert pick(effects, kind="pooled", family="C1").pairs == 5


def test_beyond_exact_sign_flips_the_generator_decides_and_repeats():
    rng = np.random.default_rng(2)
    outcomes = make_outcomes(90 + rng.normal(size=(2, 1, 20)))
    p = [
        find_effects("accuracy", [outcomes], PLAN, rng=np.random.default_rng(seed))[0].p_sign_flip
        for seed in (0, 0, 1)
    ]
    assert p[0] == p[1] != p[2]
