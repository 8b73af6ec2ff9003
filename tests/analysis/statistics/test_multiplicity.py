import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from analysis.statistics.multiplicity import benjamini_hochberg, holm, holm_level

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(max_examples=20)  # statsmodels collects garbage on each call
@given(p_values)
def test_holm_agrees_with_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


@given(p_values)
def test_benjamini_hochberg_agrees_with_statsmodels(p):
    np.testing.assert_allclose(
        benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], atol=1e-300
    )


def test_benjamini_hochberg_rejects_four_in_the_example_of_its_paper():
    """Benjamini & Hochberg 1995, section 4.2: fifteen hypotheses on thrombolysis; Bonferroni three."""
    p = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
    ]
    assert (benjamini_hochberg(p) <= 0.05).sum() == 4
    assert (holm(p) <= 0.05).sum() == 3
    np.testing.assert_allclose(benjamini_hochberg(p)[:5], [0.0015, 0.003, 0.0095, 0.035625, 0.0603])


@given(st.lists(st.floats(1e-6, 1) | st.just(float("nan")), min_size=1, max_size=6))
def test_the_level_of_holm_is_where_the_answer_changes(p):
    level_M = holm_level(p, alpha=0.05)
    for number, level in enumerate(level_M):
        just_below, just_above = list(p), list(p)
        just_below[number], just_above[number] = level * (1 - 1e-9), level * (1 + 1e-9)
        assert holm(just_below)[number] <= 0.05
        assert holm(just_above)[number] > 0.05


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_an_untestable_member_stays_in_the_family(adjust):
    """As if it had been tested and had shown nothing."""
    tested = adjust([0.01, 0.02, 1.0])
    untested = adjust([0.01, 0.02, np.nan])
    np.testing.assert_allclose(untested[:2], tested[:2])
    assert np.isnan(untested[2])


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_each_row_is_a_family_of_its_own(adjust):
    p_RM = np.random.default_rng(0).random((4, 5))
    np.testing.assert_array_equal(adjust(p_RM), [adjust(p_M) for p_M in p_RM])


def test_holm_keeps_its_level_when_all_hypotheses_are_true():
    families = 20_000
    p_RM = np.random.default_rng(1).random((families, 6))
    wrong = (holm(p_RM) <= 0.05).any(-1).mean()
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / families)
    assert wrong >= 0.05 - 0.0013 - 3 * np.sqrt(0.05 * 0.95 / families)  # 1 - (1 - 0.05/6)^6
