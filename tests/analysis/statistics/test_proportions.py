import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar

from analysis.statistics.proportions import RiskDifference, mcnemar_test


def risk(arm_only, baseline_only, pairs):
    return RiskDifference(
        arm_only=np.array(arm_only), baseline_only=np.array(baseline_only), pairs=np.array(pairs)
    )


def score_of_the_likelihood(b, c, n, delta):
    """The slow twin: the discordant shares fitted by search, under a difference of `delta`."""

    def loss(q):  # the baseline's share; the arm's is q + delta
        shares = np.array([q + delta, q, 1 - 2 * q - delta])
        counts = np.array([b, c, n - b - c])
        return -np.sum(counts * np.log(np.maximum(shares, 1e-300)))

    least, most = max(0.0, -delta), (1 - delta) / 2
    q = optimize.minimize_scalar(
        loss, bounds=(least, most), method="bounded", options={"xatol": 1e-13}
    ).x
    return (b - c - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))


@pytest.mark.parametrize("delta", [-0.4, -0.1, -0.013, 0.05, 0.1, 0.35])
@pytest.mark.parametrize(
    ("b", "c", "n"), [(3, 1, 20), (1, 3, 20), (0, 5, 12), (6, 0, 40), (7, 7, 25), (2, 9, 11)]
)
def test_the_score_is_that_of_the_fitted_likelihood(b, c, n, delta):
    expected = score_of_the_likelihood(b, c, n, delta)
    assert risk(b, c, n)._score(delta) == pytest.approx(expected, abs=1e-4)


def test_equivalence_and_what_lies_beyond_are_the_tails_of_the_score():
    found = risk(2, 1, 60)
    scores = [score_of_the_likelihood(2, 1, 60, delta) for delta in (0.1, -0.1)]
    assert found.p_equivalent(0.1) == pytest.approx(
        max(stats.norm.cdf(scores[0]), stats.norm.sf(scores[1])), abs=1e-6
    )
    large = risk(20, 2, 60)
    score = score_of_the_likelihood(20, 2, 60, 0.1)
    assert large.p_beyond(0.1) == pytest.approx(stats.norm.sf(score), abs=1e-6)
    assert large.swapped().p_beyond(0.1) == pytest.approx(float(large.p_beyond(0.1)))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 30), st.sampled_from([0.8, 0.95]))
def test_the_interval_ends_where_the_test_rejects(b, c, concordant, confidence):
    found = risk(b, c, b + c + concordant + 1)
    low, high = found.interval(confidence)
    critical = stats.norm.isf((1 - confidence) / 2)
    assert -1 <= low <= found.estimate <= high <= 1
    for end, score in ((low, critical), (high, -critical)):
        if abs(end) < 0.999:
            assert found._score(end) == pytest.approx(score, abs=1e-3)
    swapped = found.swapped().interval(confidence)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-9)


def test_no_event_in_n_pairs_still_has_an_interval():
    low, high = risk(0, 0, 40).interval(0.95)
    assert 0.05 < high < 0.12  # as wide as the score interval of nothing in 40: 3.84 / 43.84
    assert high == pytest.approx(1.959964**2 / (40 + 1.959964**2), abs=1e-6)
    assert low == pytest.approx(-high, abs=1e-9)


@pytest.mark.parametrize(("rate", "both"), [(0.02, 0.0), (0.1, 0.05), (0.3, 0.1)])
@pytest.mark.parametrize("pairs", [20, 80])
def test_intervals_cover_and_margins_hold_their_level(rate, both, pairs):
    draws, margin = 4_000, 0.1
    rng = np.random.default_rng(0)

    def draw(delta):
        counts = rng.multinomial(
            pairs, [rate + delta, rate, both, 1 - 2 * rate - delta - both], draws
        )
        return risk(counts[:, 0], counts[:, 1], np.full(draws, pairs))

    low, high = draw(0.05).interval(0.95)
    assert np.mean((low <= 0.05) & (high >= 0.05)) >= 0.93
    at_margin = draw(margin)
    bar = 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert np.mean(at_margin.p_equivalent(margin) <= 0.05) <= bar + 0.01  # a score test: nearly
    assert np.mean(at_margin.p_beyond(margin) <= 0.05) <= bar + 0.02


def test_more_pairs_at_one_equal_rate_show_equality_more_surely():
    p = [float(risk(n // 50, n // 50, n).p_equivalent(0.1)) for n in (50, 100, 200, 400)]
    assert p == sorted(p, reverse=True)
    assert p[-1] < 0.001


def test_any_leading_axes_are_judged_one_by_one():
    b, c, n = np.array([[0, 3], [5, 0]]), np.array([[2, 3], [0, 0]]), np.array([[9, 20], [20, 0]])
    found = risk(b, c, n)
    for place in np.ndindex(2, 2):
        one = risk(b[place], c[place], n[place])
        np.testing.assert_allclose(found.p_equivalent(0.1)[place], one.p_equivalent(0.1))
        np.testing.assert_allclose(
            [end[place] for end in found.interval(0.9)], one.interval(0.9), equal_nan=True
        )
    assert np.isnan(found.estimate[1, 1])


@given(st.integers(0, 15), st.integers(0, 15))
def test_mcnemar_agrees_with_statsmodels_and_with_the_binomial(arm_only, baseline_only):
    p = float(mcnemar_test(arm_only, baseline_only))
    assert p == pytest.approx(mcnemar([[3, arm_only], [baseline_only, 4]], exact=True).pvalue)
    assert risk(arm_only, baseline_only, 40).p == p
    if arm_only + baseline_only:
        assert p == pytest.approx(stats.binomtest(arm_only, arm_only + baseline_only).pvalue)


def test_mcnemar_agrees_with_the_published_survey_of_approval():
    """Agresti 1990, p. 350, as in R's help of mcnemar.test: binom.test(86, 86 + 150)."""
    assert mcnemar_test(86, 150) == pytest.approx(3.716e-05, abs=5e-9)
