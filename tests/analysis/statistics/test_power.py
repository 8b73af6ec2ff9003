import subprocess
import sys

import numpy as np
import pytest
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower

from analysis.statistics.power import (
    detectable_difference,
    pairs_needed,
    pairs_needed_to_equate,
    sd_upper_bound,
    seeds_needed_to_decide,
    seeds_needed_to_settle,
    t_power,
    tost_power,
)


def power_in_statsmodels(effect, pairs, alpha):
    sides = [
        TTestPower().power(effect, pairs, alpha / 2, alternative=side)
        for side in ("larger", "smaller")
    ]
    return np.nansum(sides)  # NaN stands where the wrong side's power is too small for scipy


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("pairs", [2, 3, 5, 10, 50])
@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 3.0])
def test_the_power_of_t_agrees_with_statsmodels(effect, pairs, alpha):
    expected = power_in_statsmodels(effect, pairs, alpha)
    assert t_power(effect * np.sqrt(pairs), pairs - 1, alpha=alpha) == pytest.approx(
        expected, abs=1e-6
    )


def test_the_power_of_t_is_its_level_without_an_effect_and_one_beyond_reach():
    assert t_power(0.0, 4) == pytest.approx(0.05)
    assert t_power(1e6, 1) == 1.0
    assert t_power(-2.0, 9) == pytest.approx(t_power(2.0, 9))


@pytest.mark.parametrize(
    ("cv", "subjects", "expected"), [(0.20, 20, 0.8346802), (0.25, 24, 0.7391155)]
)
def test_the_power_of_tost_agrees_with_powertost(cv, subjects, expected):
    """R's PowerTOST, 2x2 crossover at a true ratio of 0.95: the examples of its manual."""
    se = np.sqrt(np.log(1 + cv**2) * 2 / subjects)
    found = tost_power(np.log(1.25) / se, subjects - 2, ratio=np.log(0.95) / se)
    assert found == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("margin_ratio", "df", "ratio"), [(3, 4, 0), (4, 9, 1), (2.2, 30, -0.5)])
def test_the_power_of_tost_agrees_with_owens_q(margin_ratio, df, ratio):
    """The slow twin: the difference of two of Owen's Q functions, integrated as he wrote it."""
    critical = stats.t.ppf(0.95, df)
    reach = margin_ratio * np.sqrt(df) / critical

    def owens_q(t, delta):
        def integrand(x):
            return stats.norm.cdf(t * x / np.sqrt(df) - delta) * stats.chi.pdf(x, df)

        return integrate.quad(integrand, 0, reach, epsabs=1e-12)[0]

    expected = owens_q(-critical, ratio - margin_ratio) - owens_q(critical, ratio + margin_ratio)
    assert tost_power(margin_ratio, df, ratio=ratio) == pytest.approx(expected, abs=1e-9)


def test_equivalence_at_the_margin_is_claimed_at_most_at_the_level():
    assert tost_power(8.0, 9, ratio=8.0) == pytest.approx(0.05, abs=1e-6)
    assert tost_power(2.0, 9, ratio=2.0) < 0.05
    assert tost_power(0.5, 3) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("pairs", [3, 10, 40])
def test_the_detectable_difference_is_detected_with_the_power_asked_for(pairs):
    difference = detectable_difference(0.4, pairs, alpha=0.01, power=0.9)
    assert power_in_statsmodels(difference / 0.4, pairs, 0.01) == pytest.approx(0.9, abs=1e-6)


def test_three_seeds_have_a_fifth_of_the_chance_to_find_three_tenths_of_a_point():
    """As the design says of a paired difference that spreads by 0.28 points."""
    assert t_power(0.3 / (0.2 * np.sqrt(2)) * np.sqrt(3), 2) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("effect", [0.3, 0.8, 2.0])
def test_pairs_needed_are_the_fewest_that_suffice(effect):
    pairs = pairs_needed(effect, 1.0)
    assert (
        TTestPower().power(effect, pairs, 0.05) >= 0.8 > TTestPower().power(effect, pairs - 1, 0.05)
    )


def test_pairs_needed_to_equate_are_the_fewest_that_suffice():
    pairs = pairs_needed_to_equate(0.5, 0.6)
    power = [tost_power(0.5 * np.sqrt(n) / 0.6, n - 1) for n in (pairs - 1, pairs)]
    assert power[0] < 0.8 <= power[1]


def test_no_number_of_seeds_finds_nothing():
    assert pairs_needed(0.0, 1.0) is None
    assert pairs_needed(1e-9, 1.0) is None


def test_a_plan_stands_on_the_upper_bound_of_the_spread():
    rng = np.random.default_rng(0)
    sd_R = rng.normal(0, 2.0, (20_000, 6)).std(-1, ddof=1)
    bound_R = [sd_upper_bound(sd, 5) for sd in sd_R]
    share = np.mean(np.array(bound_R) >= 2.0)
    assert share == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / 20_000))


def test_the_seeds_that_settle_suffice_either_way():
    se, df, seeds, margin = 0.2, 12.0, 5.0, 0.5
    needed = seeds_needed_to_settle(margin, se=se, df=df, seeds=seeds, alpha=0.01)
    deviation = sd_upper_bound(se * np.sqrt(seeds), df)

    def powers(n):
        ratio, df_then = margin * np.sqrt(n) / deviation, df * (n - 1) / (seeds - 1)
        return t_power(ratio, df_then, alpha=0.01), tost_power(ratio, df_then, alpha=0.01)

    assert min(powers(needed)) >= 0.8 > min(powers(needed - 1))


def test_an_effect_at_the_margin_is_found_to_differ_but_never_placed():
    common = {"se": 0.1, "df": 8.0, "seeds": 5.0}
    assert seeds_needed_to_decide(0.5, 0.5, **common, against_zero=True) is not None
    assert seeds_needed_to_decide(0.5, 0.5, **common, against_zero=False) is None
    assert seeds_needed_to_decide(-0.9, 0.5, **common, against_zero=False) is not None
    assert seeds_needed_to_decide(0.1, 0.5, **common, against_zero=False) is not None


def test_one_pair_detects_nothing():
    with pytest.raises(ValueError, match="2 pairs, not 1"):
        detectable_difference(1.0, 1)


def test_power_needs_numpy_and_scipy_only():
    """The harness asks it for the smallest detectable difference before anything is installed."""
    code = "import sys, analysis.statistics.power; print(*({'pandas', 'pyarrow', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
