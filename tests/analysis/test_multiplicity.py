import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from analysis.multiplicity import benjamini_hochberg, holm

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(max_examples=20)  # statsmodels collects garbage on each call
@given(p_values)
def test_holm_agrees_with_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


@given(p_values)
def test_benjamini_hochberg_agrees_with_statsmodels(p):
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])


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
