import numpy as np
import pytest
from scipy import special, stats

from analysis.statistics.contrasts import estimate_contrast
from analysis.statistics.looks import ONLY_LOOK, Look, find_bounds

EVERY_SEED = tuple(seeds / 20 for seeds in range(3, 21))


@pytest.mark.parametrize(
    ("fractions", "alpha", "bounds"),
    [
        # SeqBounds.jl's README, and R's rpact 4:
        # getDesignGroupSequential(sided = 1, typeOfDesign = "asOF", informationRates, alpha)
        ([0.25, 0.5, 0.75, 1], 0.05, [3.7496, 2.5399, 2.0160, 1.7201]),
        ([0.3, 0.6, 1], 0.025, [3.928572543, 2.669972010, 1.981024496]),
        ([0.15, 0.2, 0.9, 1], 0.05, [4.926803970, 4.232056223, 1.764476769, 1.754589714]),
        ([0.3, 0.5, 1], 0.005, [4.992725564, 3.801751815, 2.577586450]),
        # Jennison & Turnbull and R's gsDesign: two-sided 0.05, four looks.
        ([0.25, 0.5, 0.75, 1], 0.025, [4.3326, 2.9631, 2.3590, 2.0141]),
    ],
)
def test_bounds_are_those_of_other_programs(fractions, alpha, bounds):
    assert find_bounds(fractions, alpha) == pytest.approx(bounds, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.005])
def test_a_walk_crosses_by_each_look_as_often_as_is_spent_by_then(alpha):
    """The slow twin: two hundred thousand walks."""
    fractions, walks = np.array([0.2, 0.35, 0.8, 1.0]), 200_000
    steps = np.sqrt(np.diff(fractions, prepend=0)) * np.random.default_rng(0).normal(
        size=(walks, 4)
    )
    z = steps.cumsum(-1) / np.sqrt(fractions)
    by_then = np.maximum.accumulate(z > find_bounds(fractions, alpha), axis=-1).mean(0)
    spent = 2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(fractions))
    np.testing.assert_array_less(
        np.abs(by_then - spent), 3.5 * np.sqrt(spent * (1 - spent) / walks) + 1e-9
    )


def test_one_look_at_the_end_changes_nothing():
    p = np.array([0.0, 1e-9, 0.03, 1.0, np.nan])
    assert ONLY_LOOK.nominal(0.03) == 0.03
    np.testing.assert_array_equal(ONLY_LOOK.repeated(p), p)
    np.testing.assert_array_equal(ONLY_LOOK.repeated_two_sided(p), p)
    assert find_bounds([1.0], 0.03) == pytest.approx([stats.norm.isf(0.03)])


@pytest.mark.parametrize("fractions", [(0.5,), (0.25, 0.5), (0.3, 0.6, 1.0), EVERY_SEED])
@pytest.mark.parametrize("alpha", [1e-7, 0.0021, 0.025, 0.3])
def test_a_repeated_p_reaches_alpha_just_where_p_reaches_the_nominal_level(fractions, alpha):
    look = Look(fractions)
    nominal = look.nominal(alpha)
    assert nominal < alpha
    assert look.repeated(nominal) == pytest.approx(alpha, rel=2e-3)
    assert look.repeated_two_sided(2 * nominal) == pytest.approx(2 * alpha, rel=2e-3)


@pytest.mark.parametrize("fractions", [(0.1,), (0.3, 0.6), EVERY_SEED])
def test_a_repeated_p_rises_with_p_and_is_never_smaller(fractions):
    p = np.concatenate([np.logspace(-200, -3, 200), np.linspace(0.001, 1, 300)])
    repeated = Look(fractions).repeated(p)
    assert np.all(np.diff(repeated) >= 0)
    assert np.all(repeated >= p)
    assert repeated[-1] == 1.0
    assert np.isnan(Look(fractions).repeated(np.nan))


@pytest.mark.parametrize("fractions", [[0.5, 0.5], [0.5, 0.4], [0.0, 1.0], [0.5, 1.1]])
def test_shares_that_do_not_grow_up_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="growing shares"):
        find_bounds(fractions, 0.05)


@pytest.mark.parametrize("cells", [1, 4])
def test_t_tests_at_every_seed_from_3_to_20_keep_their_level_and_their_intervals(cells):
    """Eighteen looks, of which without a plan every third grid would find something."""
    grids = 6_000
    diff_RCS = np.random.default_rng(1).normal(size=(grids, cells, 20))
    rejected, missed, naive = np.zeros((3, grids), bool)
    for number, seeds in enumerate(range(3, 21)):
        found = estimate_contrast(
            diff_RCS[..., :seeds],
            np.full(cells, 1 / cells),
            block_C=np.arange(cells),
            look=Look(EVERY_SEED[: number + 1]),
        )
        rejected |= found.p <= 0.05
        missed |= np.abs(found.estimate) > found.half_width(0.95)
        naive |= 2 * special.stdtr(found.df, -np.abs(found.t)) <= 0.05
    bar = 0.05 + 3 * np.sqrt(0.05 * 0.95 / grids)
    assert naive.mean() > 0.15
    assert rejected.mean() <= bar
    assert np.mean(missed != rejected) <= 1e-3  # test and interval are one thing
    assert rejected.mean() >= 0.02  # and not without power


def test_equivalence_looked_for_at_every_seed_is_claimed_at_the_margin_at_its_level():
    grids = 6_000
    diff_RCS = 0.8 + np.random.default_rng(2).normal(size=(grids, 1, 20))
    equal = np.zeros(grids, bool)
    for number, seeds in enumerate(range(3, 21)):
        found = estimate_contrast(
            diff_RCS[..., :seeds],
            np.ones(1),
            block_C=np.zeros(1, int),
            look=Look(EVERY_SEED[: number + 1]),
        )
        equal |= found.p_equivalent(0.8) <= 0.05
    assert 0.01 <= equal.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / grids)
