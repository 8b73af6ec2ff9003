"""Exact and resampling tests, which do not assume that differences are normal.

Legend of shape suffixes: P pairs, W pairs of pairs, V sign vectors, R rows of pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXACT_PAIRS = 16
_EXACT_PAIRS_OF_MANY = 12
"""Most pairs for which every sign vector is tried: for one set of pairs, for many at once."""
_ROWS_AT_ONCE = 500
_EXACT_RANKS, _EXACT_RANKS_WITH_TIES = 50, 13
_WRITTEN_OUT = 1_000
"""Most pairs of which all averages are held at once: half a million."""
_HALVINGS = 64  # more than a float has digits


def sign_flip_test(
    diff_P: NDArray[np.float64], *, draws: int = 9_999, rng: np.random.Generator
) -> float:
    """Two-sided p-value of "the paired differences are symmetric about zero".

    Exact while the pairs are few: every sign vector is tried. Beyond that Monte Carlo, with the
    observed vector counted in, so that p is never zero. To test a weighted mean, pass differences
    times their weights.

    Shapes:
        diff_P: (P,), one difference per pair, arm minus baseline.
    Units:
        diff_P in any unit; p does not depend on it.
    Raises:
        ValueError: fewer than 2 pairs, or a difference that is not finite.
    Source:
        Phipson & Smyth 2010, doi:10.2202/1544-6115.1585, eq. 2.

    >>> sign_flip_test(np.array([1.0, 2.0, 3.0]), rng=np.random.default_rng(0))
    0.25
    """
    _check(diff_P)
    pairs = len(diff_P)
    if pairs <= _EXACT_PAIRS:
        # A vector and its negative give sums of equal size, so the first sign stays positive.
        bit_VP = np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs) & 1
        return float(_is_as_extreme(1 - 2 * bit_VP, diff_P).mean())
    sign_VP = rng.choice(np.array([-1, 1], dtype=np.int8), size=(draws, pairs))
    return float((1 + _is_as_extreme(sign_VP, diff_P).sum()) / (1 + draws))


def sign_flip_floor(diff_P: NDArray[np.float64], *, draws: int = 9_999) -> float:
    """Smallest p-value that `sign_flip_test` can give with pairs like these.

    A difference of zero has no sign to flip, so it does not lower the floor.

    >>> sign_flip_floor(np.array([1.0, 2.0, 3.0]))
    0.25
    """
    exact = 2.0 ** (1 - int(np.count_nonzero(diff_P)))
    return min(1.0, exact if len(diff_P) <= _EXACT_PAIRS else max(exact, 1 / (1 + draws)))


def signed_rank_test(diff_P: NDArray[np.float64]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; 1 where no pair differs.

    Shapes:
        diff_P: (P,), one difference per pair.
    Raises:
        ValueError: fewer than 2 pairs, or a difference that is not finite.
    Source:
        Wilcoxon 1945, doi:10.2307/3001968. Ties, zeros and the normal approximation for many
        pairs as in scipy.stats.wilcoxon, which takes a second to import and tries signs one by one.
    """
    _check(diff_P)
    nonzero_P = diff_P[diff_P != 0]
    if not len(nonzero_P):
        return 1.0
    _, place_P, ties = np.unique(np.abs(nonzero_P), return_inverse=True, return_counts=True)
    twice_P = (2 * np.cumsum(ties) - ties + 1)[place_P]  # ranks, doubled: ties share halves
    twice = int(twice_P[nonzero_P > 0].sum())
    has_ties = len(nonzero_P) < len(diff_P) or ties.max() > 1
    if len(diff_P) <= (_EXACT_RANKS_WITH_TIES if has_ties else _EXACT_RANKS):
        chances = np.ones(1)
        for rank in twice_P:
            chances = np.pad(chances / 2, (0, rank)) + np.pad(chances / 2, (rank, 0))
        return float(min(1.0, 2 * min(chances[: twice + 1].sum(), chances[twice:].sum())))
    pairs = len(nonzero_P)
    spread = np.sqrt((pairs * (pairs + 1) * (2 * pairs + 1) - (ties**3 - ties).sum() / 2) / 24)
    excess = abs(twice / 2 - pairs * (pairs + 1) / 4)
    return float(2 * special.ndtr(-excess / spread))


def hodges_lehmann(diff_P: NDArray[np.float64]) -> float:
    """Median of the averages of all pairs of differences, each paired with itself too.

    Of many pairs the averages, whose number is a square, are not written out: they are counted below
    a value, which is then halved in on, to the last digits.

    Source:
        Hodges & Lehmann 1963, doi:10.1214/aoms/1177704172.

    >>> hodges_lehmann(np.array([0.0, 1.0, 5.0]))
    1.75
    """
    _check(diff_P)
    if len(diff_P) <= _WRITTEN_OUT:
        first_W, second_W = np.triu_indices(len(diff_P))
        return float(np.median((diff_P[first_W] + diff_P[second_W]) / 2))
    sorted_P = np.sort(diff_P)
    averages = len(diff_P) * (len(diff_P) + 1) // 2
    middle = {(averages + 1) // 2, averages // 2 + 1}
    return float(np.mean([_find_average(sorted_P, rank) for rank in middle]))


def _find_average(sorted_P: NDArray[np.float64], rank: int) -> float:
    """The `rank`-th smallest of the averages of all pairs, from 1."""
    low, high = float(sorted_P[0]), float(sorted_P[-1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # Each pair of two is counted twice here, each paired with itself once.
        twice = np.searchsorted(sorted_P, 2 * middle - sorted_P, side="right").sum()
        if twice + np.searchsorted(sorted_P, middle, side="right") >= 2 * rank:
            high = middle
        else:
            low = middle
    return high


def superiority(diff_P: NDArray[np.float64]) -> float:
    """Share of pairs that the arm wins; a tie counts half.

    >>> superiority(np.array([0.0, 1.0, -1.0, 2.0]))
    0.625
    """
    return float(np.mean(diff_P > 0) + np.mean(diff_P == 0) / 2)


def sign_flip_tails(
    diff_P: NDArray[np.float64], *, draws: int = 1_999, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sided p-values of "the differences are symmetric about zero", for many rows at once.

    The first tests against positive differences, the second against negative ones. Exact while the
    pairs are few, then Monte Carlo with the observed signs counted in, the same in all rows.

    Shapes:
        diff_P: (..., P), one difference per pair; NaN where there is none, which adds nothing.
        The results have shape (...), NaN where no pair differs.

    >>> above, below = sign_flip_tails(np.array([1.0, 2.0, 3.0]), rng=np.random.default_rng(0))
    >>> float(above), float(below)
    (0.125, 1.0)
    """
    rows_RP = np.nan_to_num(diff_P).reshape(-1, diff_P.shape[-1])
    pairs = rows_RP.shape[-1]
    is_exact = pairs <= _EXACT_PAIRS_OF_MANY
    if is_exact:
        sign_VP = 1.0 - 2 * (np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1)
    else:
        sign_VP = rng.choice(np.array([-1.0, 1.0]), size=(draws, pairs))
    observed = 0 if is_exact else 1
    p_2R = np.empty((2, len(rows_RP)))
    for first in range(0, len(rows_RP), _ROWS_AT_ONCE):
        part_RP = rows_RP[first : first + _ROWS_AT_ONCE]
        excess_RV = part_RP @ sign_VP.T - part_RP.sum(-1, keepdims=True)
        slack_R1 = 1e-9 * np.abs(part_RP).sum(-1, keepdims=True)
        for tail, reached_RV in enumerate((excess_RV >= -slack_R1, excess_RV <= slack_R1)):
            p_2R[tail, first : first + len(part_RP)] = (reached_RV.sum(-1) + observed) / (
                len(sign_VP) + observed
            )
    p_2R = np.where(rows_RP.any(-1), p_2R, np.nan)
    above, below = (p_R.reshape(diff_P.shape[:-1]) for p_R in p_2R)
    return above, below


def _check(diff_P: NDArray[np.float64]) -> None:
    if len(diff_P) < 2:
        raise ValueError(f"a paired test needs 2 pairs, not {len(diff_P)}")
    if not np.all(np.isfinite(diff_P)):
        raise ValueError("a paired difference is not finite")


def _is_as_extreme(sign_VP: NDArray[np.integer], diff_P: NDArray[np.float64]) -> NDArray[np.bool_]:
    observed = abs(diff_P.sum())
    # Accuracies are counts divided by the number of images: differences that are equal as counts
    # may differ by rounding, but are still ties.
    slack = 1e-9 * np.abs(diff_P).sum()
    return np.abs(sign_VP @ diff_P) >= observed - slack
