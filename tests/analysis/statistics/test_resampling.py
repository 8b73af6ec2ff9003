import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from analysis.statistics.resampling import (
    hodges_lehmann,
    sign_flip_floor,
    sign_flip_tails,
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


@pytest.mark.parametrize("digits", [1, 17])  # with one digit nearly all averages are ties
def test_the_averages_of_many_pairs_are_counted_and_not_written_out(digits):
    for pairs in (1_001, 1_200):
        diff_P = np.random.default_rng(pairs).normal(0.3, 1, pairs).round(digits)
        one_W, other_W = np.triu_indices(pairs)
        averages = (diff_P[one_W] + diff_P[other_W]) / 2
        assert hodges_lehmann(diff_P) == pytest.approx(np.median(averages), abs=1e-14)


def test_one_outlier_hardly_moves_the_hodges_lehmann_estimate():
    diff_P = np.array([0.9, 1.0, 1.1, 1.05, 100.0])
    assert hodges_lehmann(diff_P) == pytest.approx(1.1, abs=0.1)


@given(differences)
def test_superiority_of_the_arms_adds_up_to_one(diff_P):
    assert superiority(diff_P) + superiority(-diff_P) == pytest.approx(1)


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


@given(arrays.arrays(float, st.integers(2, 7), elements=sixteenths))
def test_one_sided_flips_are_tried_in_every_way(diff_P):
    """The slow twin; and the two sides make the two-sided test."""
    vectors = list(itertools.product([1, -1], repeat=len(diff_P)))
    reached = sum(np.dot(vector, diff_P) >= diff_P.sum() for vector in vectors)
    found = sign_flip_tails(diff_P, rng=rng())[0]
    if not diff_P.any():
        assert np.isnan(found)
        return
    assert found == reached / len(vectors)
    if diff_P.sum() > 0:
        assert sign_flip_test(diff_P, rng=rng()) == pytest.approx(2 * float(found))


@pytest.mark.parametrize("pairs", [6, 30])
def test_many_rows_are_flipped_each_by_itself_and_gaps_sum_to_nothing(pairs):
    diff_RKP = rng(3).normal(0.3, 1, (3, 2, pairs))
    diff_RKP[0, 1, 2:4] = np.nan
    together = sign_flip_tails(diff_RKP, rng=rng(1))[0]
    assert together.shape == (3, 2)
    for place in np.ndindex(3, 2):
        assert together[place] == sign_flip_tails(diff_RKP[place], rng=rng(1))[0]
    if pairs <= 12:
        rest_P = diff_RKP[0, 1][~np.isnan(diff_RKP[0, 1])]
        assert together[0, 1] == sign_flip_tails(rest_P, rng=rng())[0]


def test_a_sampled_one_sided_p_is_never_zero_and_estimates_the_exact_one():
    diff_P = rng(7).normal(0.4, 1, 17)
    exact = stats.permutation_test(
        (diff_P,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater"
    ).pvalue
    error = 3 * np.sqrt(exact * (1 - exact) / 20_000)
    assert sign_flip_tails(diff_P, draws=20_000, rng=rng())[0] == pytest.approx(exact, abs=error)
    assert sign_flip_tails(np.arange(1.0, 41), draws=99, rng=rng())[0] == 1 / 100


@settings(deadline=None, max_examples=40)  # scipy tries signs one by one
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=60).filter(any), st.booleans())
def test_the_signed_rank_test_agrees_with_scipy_with_and_without_ties(steps, is_broken):
    diff_P = np.array(steps, dtype=float)
    if is_broken:  # no ties and no zeros
        diff_P = diff_P + np.arange(1, len(diff_P) + 1) / 1_000
    assert signed_rank_test(diff_P) == pytest.approx(stats.wilcoxon(diff_P).pvalue, rel=1e-9)
