import numpy as np
import pingouin
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from analysis.statistics.contrasts import (
    estimate_cells,
    estimate_contrast,
    mean_weights,
    trend_weights,
    twin_weights,
)
from analysis.statistics.looks import Look
from analysis.statistics.resampling import sign_flip_test

# Student's sleep data as in R: extra hours of sleep of ten patients under two drugs.
SLEEP_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SLEEP_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])


def pooled(diff_CS, weight_C=None, block_C=None, floor=0.0):
    diff_CS = np.asarray(diff_CS, float)
    weight_C = np.full(len(diff_CS), 1 / len(diff_CS)) if weight_C is None else weight_C
    block_C = np.arange(len(diff_CS)) if block_C is None else block_C
    return estimate_contrast(diff_CS, np.asarray(weight_C), block_C=block_C, floor=floor)


def draw(*shape, seed=0, sd=1.0):
    return np.random.default_rng(seed).normal(0.3, sd, shape)


def test_one_cell_is_the_paired_t_test_of_the_published_sleep_data():
    """R: t.test(extra ~ group, data = sleep, paired = TRUE)."""
    found = pooled([SLEEP_1 - SLEEP_2])
    assert found.estimate == pytest.approx(-1.58)
    assert found.t == pytest.approx(-4.0621, abs=5e-5)
    assert found.df == 9
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    half = found.half_width(0.95)
    assert found.estimate - half == pytest.approx(-2.4598858, abs=5e-8)
    assert found.estimate + half == pytest.approx(-0.7001142, abs=5e-8)


def test_equivalence_agrees_with_the_published_paired_example_of_toster():
    """R: TOSTpaired.raw(n=65, m1=5.83, m2=5.75, sd1=1.17, sd2=1.30, r12=0.745, bounds -+0.34).

    Numbers from github.com/Lakens/TOSTER, tests/testthat/test-known_results.R.
    """
    sd = np.sqrt(1.17**2 + 1.30**2 - 2 * 0.745 * 1.17 * 1.30)
    noise_S = draw(65)
    diff_S = 0.08 + sd * (noise_S - noise_S.mean()) / noise_S.std(ddof=1)
    found = pooled([diff_S])
    assert found.df == 64
    assert (found.estimate + 0.34) / found.se == pytest.approx(3.803437, abs=1e-6)
    assert found.p_equivalent(0.34) == pytest.approx(0.01081349, abs=1e-8)
    assert pooled([-diff_S]).p_equivalent(0.34) == pytest.approx(0.01081349, abs=1e-8)
    for confidence, low, high in ((0.90, -0.1043032, 0.2643032), (0.95, -0.1406022, 0.3006022)):
        half = found.half_width(confidence)
        assert (found.estimate - half, found.estimate + half) == pytest.approx(
            (low, high), abs=1e-7
        )


@pytest.mark.parametrize(
    ("group", "control", "estimate", "low", "high", "p"),
    [
        ("test 1", "control 1", 0.48, 0.237, 0.73, 0.001),
        ("test 2", "control 1", -0.542, -0.975, -0.198, 0.014),
        ("test 3", "control 1", 0.174, -0.297, 0.706, 0.505),
        ("test 2", "test 1", -1.02, -1.36, -0.716, 0.000),
        ("test 3", "test 2", 0.716, 0.14, 1.22, 0.022),
    ],
)
def test_paired_differences_agree_with_the_published_example_of_dabest(
    group, control, estimate, low, high, p
):
    """Its tutorial on repeated measures, v2023.02.14: 20 pairs, BCa bootstrap, 5,000 reshuffles.

    github.com/ACCLAB/DABEST-python, docs/source/repeatedmeasures.rst.
    """
    random = np.random.RandomState(9999)
    populations = {
        "control 1": (3, 0.4),
        "control 2": (3.5, 0.75),
        "control 3": (3.25, 0.4),
        "test 1": (3.5, 0.5),
        "test 2": (2.5, 0.6),
        "test 3": (3, 0.75),
    }
    drawn = {
        name: stats.norm.rvs(loc=loc, scale=scale, size=20, random_state=random)
        for name, (loc, scale) in populations.items()
    }
    diff_S = drawn[group] - drawn[control]
    found = pooled([diff_S])
    half = found.half_width(0.95)
    assert found.estimate == pytest.approx(estimate, abs=5e-3)
    # t and bootstrap are two methods: at 20 pairs they agree to a sixth of the interval's length.
    tolerance = (high - low) / 6
    assert (found.estimate - half, found.estimate + half) == pytest.approx(
        (low, high), abs=tolerance
    )
    sampled = sign_flip_test(diff_S, rng=np.random.default_rng(0))
    error = np.sqrt(max(p, 0.001) * (1 - p) * (1 / 5_000 + 1 / 9_999))
    assert sampled == pytest.approx(p, abs=3 * error + 5e-4)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.5])
def test_equivalence_agrees_with_statsmodels(margin):
    found = pooled([SLEEP_1 - SLEEP_2]).p_equivalent(margin)
    assert found == pytest.approx(ttost_paired(SLEEP_1, SLEEP_2, -margin, margin)[0])


@pytest.mark.parametrize("margin", [0.5, 2.5])
def test_equivalence_agrees_with_pingouin(margin):
    found = pooled([SLEEP_1 - SLEEP_2]).p_equivalent(margin)
    oracle = pingouin.tost(SLEEP_1, SLEEP_2, bound=margin, paired=True)
    assert found == pytest.approx(float(oracle["pval"].iloc[0]))


def test_the_minimal_effect_test_is_a_one_sided_t_test_against_the_margin():
    diff_S = SLEEP_1 - SLEEP_2
    expected = stats.ttest_1samp(diff_S, -0.5, alternative="less").pvalue
    assert pooled([diff_S]).p_beyond(0.5) == pytest.approx(expected)


def test_equivalence_passes_just_where_the_90_percent_interval_reaches_the_margin():
    found = pooled([draw(6)])
    reach = abs(found.estimate) + found.half_width(0.90)
    assert found.p_equivalent(float(reach)) == pytest.approx(0.05)


def test_two_nested_cells_are_welchs_t_test():
    """The difference of two independent means: scipy's unequal-variance test."""
    first_S, second_S = draw(5), draw(5, seed=1, sd=3)
    found = pooled([first_S, second_S], weight_C=[1, -1])
    oracle = stats.ttest_ind(first_S, second_S, equal_var=False)
    assert found.t == pytest.approx(oracle.statistic)
    assert found.df == pytest.approx(oracle.df)
    assert found.p == pytest.approx(oracle.pvalue)


def test_crossed_cells_are_the_t_test_of_each_seeds_mean():
    diff_CS = draw(3, 6) + draw(6, seed=2)
    found = pooled(diff_CS, block_C=np.zeros(3, int))
    oracle = stats.ttest_1samp(diff_CS.mean(0), 0)
    assert found.t == pytest.approx(oracle.statistic)
    assert found.df == 5
    assert found.p == pytest.approx(oracle.pvalue)


def test_incomplete_crossed_cells_follow_the_formula_term_by_term():
    """The slow twin of se^2 = sum_s (sum_c w_c (d_cs - m_c) / sqrt(n_c (n_c - 1)))^2."""
    diff_CS = draw(3, 7)
    diff_CS[0, 2] = diff_CS[1, 5] = diff_CS[1, 6] = np.nan
    weight_C = np.array([0.5, 0.3, 0.2])
    variance = 0.0
    for s in range(7):
        total = 0.0
        for c in range(3):
            if np.isfinite(diff_CS[c, s]):
                n = np.isfinite(diff_CS[c]).sum()
                deviation = diff_CS[c, s] - np.nanmean(diff_CS[c])
                total += weight_C[c] * deviation / np.sqrt(n * (n - 1))
        variance += total**2
    found = pooled(diff_CS, weight_C, np.zeros(3, int))
    assert found.se == pytest.approx(np.sqrt(variance))
    assert found.df == 6
    assert found.estimate == pytest.approx(weight_C @ np.nanmean(diff_CS, axis=1))


def test_blocks_add_their_variances_and_share_the_degrees_of_freedom():
    diff_CS = draw(4, 5)
    block_C = np.array([0, 0, 1, 1])
    found = pooled(diff_CS, block_C=block_C)
    halves = [pooled(diff_CS[block_C == b], block_C=[0, 0]).se ** 2 / 4 for b in (0, 1)]
    assert found.se**2 == pytest.approx(sum(halves))
    assert found.df == pytest.approx(sum(halves) ** 2 / sum(v**2 / 4 for v in halves))


def test_a_block_shared_through_a_seed_is_not_counted_as_two():
    """The same cell twice knows no more than once; taken as independent it would seem to."""
    diff_S = draw(6)
    twice = pooled([diff_S, diff_S], block_C=np.array([0, 0]))
    assert twice.se == pytest.approx(pooled([diff_S]).se)
    assert pooled([diff_S, diff_S]).se < twice.se


def test_a_spread_below_the_resolution_is_lifted_to_it():
    step = 100 / 360  # one image of the digits' test part, in points
    found = pooled([[0.0, 0.0, 0.0, 0.0]], floor=step**2 / 6)
    assert found.se == pytest.approx(step / np.sqrt(6 * 4))
    assert np.isnan(pooled([[0.0, 0.0, 0.0, 0.0]]).se)
    assert pooled([draw(4)], floor=1e-9).se == pooled([draw(4)]).se


def test_one_pair_has_an_estimate_and_no_error():
    found = pooled([[0.7, np.nan]])
    assert found.estimate == 0.7
    assert np.isnan([found.se, found.p, found.p_equivalent(1.0), found.half_width(0.95)]).all()


def test_a_cell_of_weight_zero_takes_no_part():
    diff_CS = draw(3, 5)
    diff_CS[2] = np.nan
    assert pooled(diff_CS, [0.5, 0.5, 0]).p == pooled(diff_CS[:2]).p


def test_replicates_are_estimated_each_by_itself():
    diff_RCS = draw(4, 3, 5)
    diff_RCS[1, 0, 0] = np.nan
    weight_RC = mean_weights(diff_RCS, np.ones(3, bool))
    together = estimate_contrast(diff_RCS, weight_RC, block_C=np.arange(3))
    alone = [pooled(diff_CS) for diff_CS in diff_RCS]
    np.testing.assert_allclose(together.p, [one.p for one in alone])
    cells = estimate_cells(diff_RCS)
    np.testing.assert_allclose(cells.p[2], [pooled([diff_S]).p for diff_S in diff_RCS[2]])


def test_a_mean_leaves_out_cells_that_cannot_be_estimated():
    diff_CS = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    np.testing.assert_allclose(mean_weights(diff_CS, np.array([True, True, True])), [0.5, 0, 0.5])
    np.testing.assert_allclose(mean_weights(diff_CS, np.array([True, False, False])), [1, 0, 0])
    np.testing.assert_allclose(mean_weights(diff_CS, np.array([False, True, False])), [0, 0, 0])


def test_a_trend_is_the_least_squares_slope_on_log2_depth():
    diff_CS = draw(4, 5)
    depth_C = np.array([8, 14, 20, 44.0])
    weight_C = trend_weights(diff_CS, np.ones(4, bool), depth_C)
    oracle = stats.linregress(np.log2(depth_C), diff_CS.mean(1))
    assert pooled(diff_CS, weight_C).estimate == pytest.approx(oracle.slope)
    assert not trend_weights(diff_CS, np.array([True, False, False, False]), depth_C).any()


def test_twins_count_only_where_both_are_there():
    diff_CS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [np.nan, 7.0]])
    twin_KC = np.array([[1.0, 0, -1, 0], [0, 1.0, 0, -1]])
    np.testing.assert_allclose(twin_weights(diff_CS, twin_KC), [1, 0, -1, 0])


@given(st.floats(-3, 3), st.floats(0.1, 10))
def test_units_and_signs_carry_through(shift, scale):
    diff_CS = draw(3, 5)
    base, moved = pooled(diff_CS), pooled(-scale * diff_CS + shift)
    assert moved.estimate == pytest.approx(-scale * base.estimate + shift)
    assert moved.se == pytest.approx(scale * base.se)
    assert moved.df == pytest.approx(base.df)


@pytest.mark.parametrize("block_C", [np.arange(4), np.zeros(4, int), np.array([0, 0, 1, 1])])
@pytest.mark.parametrize("missing", [0.0, 0.25])
def test_intervals_hold_the_truth_as_often_as_they_say(block_C, missing):
    """Unequal spreads, seeds that share luck within a block, complete or with losses."""
    grids, seeds = 4_000, 6
    rng = np.random.default_rng(0)
    sd_C1 = np.array([[0.5], [1.0], [1.5], [2.0]])
    luck_RGS = rng.normal(size=(grids, block_C.max() + 1, seeds))
    diff_RCS = sd_C1 * (rng.normal(size=(grids, 4, seeds)) + luck_RGS[:, block_C])
    diff_RCS[rng.random(diff_RCS.shape) < missing] = np.nan
    found = estimate_contrast(diff_RCS, mean_weights(diff_RCS, np.ones(4, bool)), block_C=block_C)
    covers = np.mean(np.abs(found.estimate) <= found.half_width(0.95))
    assert 0.93 - 3 * np.sqrt(0.93 * 0.07 / grids) <= covers
    assert covers <= 0.97 + 3 * np.sqrt(0.97 * 0.03 / grids)


def test_an_early_look_makes_every_p_larger_and_the_interval_longer():
    """And each p still reaches its level just where the interval reaches the margin."""
    look = Look((0.5,))
    diff_CS = draw(2, 6)
    only, early = (
        estimate_contrast(diff_CS, np.full(2, 0.5), block_C=np.arange(2), look=each)
        for each in (Look(), look)
    )
    assert early.estimate == only.estimate
    assert early.se == only.se
    for margin in (0.05, 1.5):
        assert early.p_equivalent(margin) >= only.p_equivalent(margin)
        assert early.p_beyond(margin) >= only.p_beyond(margin)
    assert early.p > only.p
    reach = float(abs(early.estimate) + early.half_width(0.90))
    assert early.half_width(0.90) > only.half_width(0.90)
    assert early.p_equivalent(reach) == pytest.approx(0.05, rel=1e-3)
    assert estimate_cells(diff_CS, look=look).look == look
