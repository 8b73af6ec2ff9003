import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from analysis.statistics.resampling import (
    hodges_lehmann,
    mcnemar_test,
    product_interval,
    sign_flip_floor,
    sign_flip_test,
    signed_rank_test,
    superiority,
)

# Sixteenths add without rounding, so that ties are ties for any order of summing.
sixteenths = st.integers(-64, 64).map(lambda k: k / 16)
differences = arrays.arrays(float, st.integers(2, 8), elements=sixteenths)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(differences)
def test_few_pairs_are_flipped_in_every_way(diff_P):
    """The slow twin: all 2^P sign vectors, one after the other."""
    observed = abs(diff_P.sum())
    vectors = list(itertools.product([1, -1], repeat=len(diff_P)))
    extreme = sum(abs(np.dot(vector, diff_P)) >= observed for vector in vectors)
    assert sign_flip_test(diff_P, rng=rng()) == extreme / len(vectors)


@pytest.mark.parametrize("pairs", [3, 6, 9])
def test_the_exact_sign_flip_agrees_with_scipy(pairs):
    diff_P = rng(pairs).normal(0.4, 1, pairs)
    found = stats.permutation_test(
        (diff_P,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(diff_P, rng=rng()) == pytest.approx(found.pvalue)


@given(differences)
def test_no_p_lies_below_the_floor(diff_P):
    assert sign_flip_floor(diff_P) <= sign_flip_test(diff_P, rng=rng())


def test_the_floor_is_reached_when_all_pairs_agree():
    diff_P = np.array([0.3, 1.0, 2.0, 0.1, 0.7])
    assert sign_flip_test(diff_P, rng=rng()) == sign_flip_floor(diff_P) == 2 / 2**5


def test_a_difference_of_zero_does_not_lower_the_floor():
    assert sign_flip_floor(np.array([1.0, 2.0, 0.0])) == 2 / 2**2


def test_a_sampled_p_is_never_zero():
    diff_P = np.full(40, 1.0) + np.arange(40) / 100
    p = sign_flip_test(diff_P, draws=99, rng=rng())
    assert p == sign_flip_floor(diff_P, draws=99) == 1 / 100


def test_the_same_generator_repeats_a_sampled_p_and_another_changes_it():
    diff_P = rng(5).normal(0.1, 1, 30)
    assert sign_flip_test(diff_P, rng=rng(1)) == sign_flip_test(diff_P, rng=rng(1))
    assert len({sign_flip_test(diff_P, rng=rng(seed)) for seed in range(5)}) > 1


def test_a_sampled_p_estimates_the_exact_one():
    diff_P = rng(7).normal(0.4, 1, 17)
    exact = stats.permutation_test(
        (diff_P,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    draws = 20_000
    error = 3 * np.sqrt(exact * (1 - exact) / draws)
    assert sign_flip_test(diff_P, draws=draws, rng=rng()) == pytest.approx(exact, abs=error)


def test_weights_make_it_a_test_of_the_weighted_mean():
    diff_P, weight_P = rng(2).normal(0.5, 1, 7), np.array([1, 1, 1, 1, 3, 3, 3.0])
    found = stats.permutation_test(
        (diff_P,),
        lambda x: np.sum(weight_P * x),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=False,
    )
    assert sign_flip_test(weight_P * diff_P, rng=rng()) == pytest.approx(found.pvalue)


def test_the_signed_rank_test_knows_the_published_case():
    """Cureton's depression scores, example of R's wilcox.test: V = 40, one-sided p 0.01953."""
    first = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    second = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert signed_rank_test(np.subtract(first, second)) == pytest.approx(2 * 0.01953, abs=1e-5)


def test_pairs_that_never_differ_show_nothing():
    assert signed_rank_test(np.zeros(5)) == 1.0
    assert sign_flip_test(np.zeros(5), rng=rng()) == 1.0


@given(differences)
def test_the_hodges_lehmann_estimate_is_the_median_of_the_walsh_averages(diff_P):
    pairs = len(diff_P)
    averages = [(diff_P[i] + diff_P[j]) / 2 for i in range(pairs) for j in range(i, pairs)]
    assert hodges_lehmann(diff_P) == np.median(averages)


def test_one_outlier_hardly_moves_the_hodges_lehmann_estimate():
    diff_P = np.array([0.9, 1.0, 1.1, 1.05, 100.0])
    assert hodges_lehmann(diff_P) == pytest.approx(1.1, abs=0.1)


@given(differences)
def test_superiority_of_the_arms_adds_up_to_one(diff_P):
    assert superiority(diff_P) + superiority(-diff_P) == pytest.approx(1)


@given(st.integers(0, 15), st.integers(0, 15))
def test_mcnemar_agrees_with_statsmodels_and_with_the_binomial(arm_only, baseline_only):
    p = float(mcnemar_test(arm_only, baseline_only))
    assert p == pytest.approx(mcnemar([[3, arm_only], [baseline_only, 4]], exact=True).pvalue)
    if arm_only + baseline_only:
        assert p == pytest.approx(stats.binomtest(arm_only, arm_only + baseline_only).pvalue)


def test_mcnemar_agrees_with_the_published_survey_of_approval():
    """Agresti 1990, p. 350, as in R's help of mcnemar.test: binom.test(86, 86 + 150)."""
    assert mcnemar_test(86, 150) == pytest.approx(3.716e-05, abs=5e-9)


def test_mcnemar_takes_arrays():
    np.testing.assert_allclose(mcnemar_test([0, 0, 3], [0, 6, 3]), [1.0, 0.03125, 1.0])


def test_the_interval_of_a_product_agrees_with_the_exact_normal_case():
    """With b known, a * b is a scaled t."""
    low, high = product_interval(2.0, 0.5, 9, 3.0, 0.0, 9, draws=400_000, rng=rng())
    half = 3.0 * 0.5 * stats.t.ppf(0.975, 9)
    assert [low, high] == pytest.approx([6 - half, 6 + half], abs=0.03)


@pytest.mark.parametrize("swap", [False, True])
def test_the_interval_of_a_product_is_that_of_t_where_one_factor_is_sure(swap):
    sure, unsure = (2.0, 1e-9, 100.0), (1.0, 0.5, 3.0)
    first, second = (unsure, sure) if swap else (sure, unsure)
    found = product_interval(*first, *second, draws=200_000, rng=np.random.default_rng(0))
    half = stats.t.ppf(0.975, 3) * 0.5
    assert found == pytest.approx((2 * (1 - half), 2 * (1 + half)), abs=0.06)


def test_the_interval_of_a_product_depends_on_the_generator_alone():
    interval = [product_interval(1, 1, 5, 1, 1, 5, rng=rng(seed)) for seed in (0, 0, 1)]
    assert interval[0] == interval[1] != interval[2]


@pytest.mark.parametrize(
    "diff_P", [np.array([1.0]), np.array([1.0, np.nan]), np.array([np.inf, 0])]
)
@pytest.mark.parametrize(
    "test", [lambda d: sign_flip_test(d, rng=rng()), signed_rank_test, hodges_lehmann]
)
def test_too_few_pairs_and_differences_that_are_not_finite_are_refused(test, diff_P):
    with pytest.raises(ValueError, match="pair"):
        test(diff_P)


def test_differences_equal_as_counts_of_images_are_ties():
    """In percent of 10,000 images they differ in the last bits."""
    counts = np.array([3, 1, -2, 1, 5, -4])
    diff_P = 100 * ((9_000 + counts) / 10_000) - 100 * (9_000 / 10_000)
    assert sign_flip_test(diff_P, rng=rng()) == sign_flip_test(counts.astype(float), rng=rng())
