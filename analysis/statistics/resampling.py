"""Exact and resampling tests: what can be said without assuming that differences are normal.

Legend of shape suffixes: P pairs, W pairs of pairs, V sign vectors, D draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special, stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_EXACT_PAIRS = 16
"""Up to here every sign vector is tried."""


def sign_flip_test(
    diff_P: NDArray[np.float64], *, draws: int = 9_999, rng: np.random.Generator
) -> float:
    """Two-sided p-value of "the paired differences are symmetric about zero".

    Exact while the pairs are few: every sign vector is tried. Beyond that Monte Carlo, with the
    observed vector counted in, so that p is never zero. Differences times their weights test a
    weighted mean.

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
        # A vector and its negative give equal sums: the first sign stays up.
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
        Wilcoxon 1945, doi:10.2307/3001968; ties and zeros as in scipy.stats.wilcoxon.
    """
    _check(diff_P)
    if not np.any(diff_P):
        return 1.0
    return float(stats.wilcoxon(diff_P).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def hodges_lehmann(diff_P: NDArray[np.float64]) -> float:
    """Median of the averages of all pairs of differences, each with itself included.

    Source:
        Hodges & Lehmann 1963, doi:10.1214/aoms/1177704172.

    >>> hodges_lehmann(np.array([0.0, 1.0, 5.0]))
    1.75
    """
    _check(diff_P)
    first_W, second_W = np.triu_indices(len(diff_P))
    return float(np.median((diff_P[first_W] + diff_P[second_W]) / 2))


def superiority(diff_P: NDArray[np.float64]) -> float:
    """Share of pairs that the arm wins, ties counted half.

    >>> superiority(np.array([0.0, 1.0, -1.0, 2.0]))
    0.625
    """
    return float(np.mean(diff_P > 0) + np.mean(diff_P == 0) / 2)


def mcnemar_test(arm_only: ArrayLike, baseline_only: ArrayLike) -> NDArray[np.float64]:
    """Exact two-sided p-value of "either arm is as likely to be the one that diverges".

    Given how many pairs are discordant, the arm's share of them is binomial with chance 1/2.
    Without a discordant pair p is 1.

    Shapes:
        arm_only, baseline_only: counts of discordant pairs, any shape.
    Source:
        McNemar 1947, doi:10.1007/BF02295996, in its exact form.

    >>> float(mcnemar_test(0, 6))
    0.03125
    """
    fewer = np.minimum(arm_only, baseline_only)
    discordant = np.add(arm_only, baseline_only)
    return np.minimum(1.0, 2 * special.bdtr(fewer, discordant, 0.5))


def product_interval(
    a: float,
    se_a: float,
    df_a: float,
    b: float,
    se_b: float,
    df_b: float,
    *,
    draws: int = 20_000,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """95 % Monte-Carlo interval of a * b, each drawn from its own t distribution.

    The product of two estimates is skewed, so estimate +- 2 standard errors would be wrong.

    Source:
        MacKinnon, Lockwood & Williams 2004, doi:10.1207/s15327906mbr3901_4.
    """
    a_D = a + se_a * rng.standard_t(df_a, draws)
    b_D = b + se_b * rng.standard_t(df_b, draws)
    low, high = np.quantile(a_D * b_D, [0.025, 0.975])
    return float(low), float(high)


def _check(diff_P: NDArray[np.float64]) -> None:
    if len(diff_P) < 2:
        raise ValueError(f"a paired test needs 2 pairs, not {len(diff_P)}")
    if not np.all(np.isfinite(diff_P)):
        raise ValueError("a paired difference is not finite")


def _is_as_extreme(sign_VP: NDArray[np.integer], diff_P: NDArray[np.float64]) -> NDArray[np.bool_]:
    observed = abs(diff_P.sum())
    # Accuracies are counts of images over their number: differences that are equal as counts
    # differ by rounding, and are ties all the same.
    slack = 1e-9 * np.abs(diff_P).sum()
    return np.abs(sign_VP @ diff_P) >= observed - slack
