"""Compute what a number of seeds can show, before and after they are run.

Everything is exact for normal differences: noncentral t for "is there a difference", an integral
over the chi distribution of the standard error for "is it smaller than the margin".
Needs numpy and scipy only: the harness uses it for the smallest difference a grid can detect.

Legend of shape suffixes: K nodes of Gauss and Legendre's quadrature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.statistics.looks import Look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEEDS_LIMIT = 10_000
"""The limit of every search: no study plans for more seeds."""
_NODE_K, _WEIGHT_K = np.polynomial.legendre.leggauss(128)  # on [-1, 1]


def t_power(ratio: float, df: float, *, alpha: float = 0.05) -> float:
    """Probability that the two-sided t test finds a true difference.

    Units:
        ratio: the true difference over its standard error.

    >>> round(t_power(0.0, 9), 3)
    0.05
    """
    critical = special.stdtrit(df, 1 - alpha / 2)
    # P(t > c) on either side. The far side is 1 - P(t' < c) with the noncentrality negated: in the
    # other form the tail is so thin that scipy gives NaN.
    right, wrong = 1 - special.nctdtr(df, np.array([ratio, -ratio]), critical)
    return float(right + wrong)


def tost_power(margin_ratio: float, df: float, *, ratio: float = 0.0, alpha: float = 0.05) -> float:
    """Probability that two one-sided t tests show the difference to lie within the margin.

    Both tests pass where |estimate| < margin - t * s; this is integrated over the distribution of
    the standard error s, as Owen's Q functions do.

    Units:
        margin_ratio: the margin over the true standard error of the estimate.
        ratio: the true difference over the same.
    Source:
        Phillips 1990, doi:10.1007/BF01063556; Owen 1965, doi:10.1093/biomet/52.3-4.437.
    """
    critical = special.stdtrit(df, 1 - alpha)
    # s / sigma = sqrt(chi2 / df); beyond margin / critical no estimate can pass.
    low, high = np.sqrt(special.chdtri(df, np.array([1 - 1e-14, 1e-14])) / df)
    high = min(high, margin_ratio / critical)
    if high <= low:
        return 0.0
    s_K = low + (high - low) * (_NODE_K + 1) / 2
    log_density_K = (
        np.log(2)
        + (df / 2) * np.log(df / 2)
        - special.gammaln(df / 2)
        + (df - 1) * np.log(s_K)
        - df * s_K**2 / 2
    )
    half_width_K = margin_ratio - critical * s_K
    passes_K = special.ndtr(half_width_K - ratio) - special.ndtr(-half_width_K - ratio)
    return float((high - low) / 2 * np.sum(_WEIGHT_K * passes_K * np.exp(log_density_K)))


def detectable_difference(
    sd: float, pairs: int, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest true difference that `pairs` pairs find with the given power, in the unit of `sd`.

    Units:
        sd: standard deviation of the paired differences.
    Raises:
        ValueError: fewer than 2 pairs.

    >>> round(detectable_difference(1.0, 10), 3)
    0.996
    """
    if pairs < 2:
        raise ValueError(f"a t test needs 2 pairs, not {pairs}")
    df = pairs - 1
    # At this ratio the power exceeds any request: it is far above the t quantile.
    top = 10 * float(special.stdtrit(df, 1 - alpha / 2)) + 10
    ratio = _find_root(lambda ratio: t_power(ratio, df, alpha=alpha) - power, 0.0, top)
    return float(ratio * sd / np.sqrt(pairs))


def pairs_needed(
    difference: float, sd: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest pairs that find a true difference with the given power; None beyond the limit.

    Units:
        difference and sd (of the paired differences) in one unit.

    >>> pairs_needed(1.0, 1.0)
    10
    """
    return _fewest(
        lambda n: t_power(difference * np.sqrt(n) / sd, n - 1, alpha=alpha) >= power, least=2
    )


def pairs_needed_to_equate(
    margin: float, sd: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest pairs that show equivalence with the given power if there is truly no difference.

    Units:
        margin and sd (of the paired differences) in one unit.

    >>> pairs_needed_to_equate(1.0, 1.0)
    11
    """
    return _fewest(
        lambda n: tost_power(margin * np.sqrt(n) / sd, n - 1, alpha=alpha) >= power, least=2
    )


def seeds_needed_to_settle(
    margin: float, *, se: float, df: float, seeds: float, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Fewest seeds per cell that settle a pooled effect either way; None beyond the limit.

    Settled either way: an effect as large as the margin is found, and no effect at all is shown
    to lie within the margin, each with the given power.

    The plan uses the upper 80 % bound of the standard deviation: if it used the estimate, half of
    all studies would be too small.

    Units:
        margin and se in one unit; `seeds` per cell and `df` are those that `se` came from.
    Source:
        Browne 1995, doi:10.1002/sim.4780141709 (planning on an upper bound).
    """
    deviation = sd_upper_bound(se * np.sqrt(seeds), df)

    def settles(n: int) -> bool:
        ratio = margin * np.sqrt(n) / deviation
        df_then = df * (n - 1) / (seeds - 1)
        return (
            tost_power(ratio, df_then, alpha=alpha) >= power
            and t_power(ratio, df_then, alpha=alpha) >= power
        )

    return _fewest(settles, least=3)


def seeds_needed_to_decide(
    estimate: float,
    margin: float,
    *,
    se: float,
    df: float,
    seeds: float,
    against_zero: bool,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """Fewest seeds per cell that give a verdict if the estimate is true; None beyond the limit.

    A verdict is that the effect lies within the margin, or that it differs from zero
    (`against_zero`) or by more than the margin.

    Units:
        estimate, margin and se in one unit; `seeds` per cell and `df` are those that `se` came
        from.
    """
    deviation = sd_upper_bound(se * np.sqrt(seeds), df)
    estimate = abs(estimate)

    def decides(n: int) -> bool:
        scale = np.sqrt(n) / deviation
        df_then = df * (n - 1) / (seeds - 1)
        if against_zero:
            differs = t_power(estimate * scale, df_then, alpha=alpha)
        else:
            critical = special.stdtrit(df_then, 1 - alpha)
            differs = 1 - special.nctdtr(df_then, (estimate - margin) * scale, critical)
        within = tost_power(margin * scale, df_then, ratio=estimate * scale, alpha=alpha)
        return max(differs, within) >= power

    return _fewest(decides, least=3)


def expected_seeds(
    effect: float,
    margin: float,
    *,
    sd: float,
    cells: int,
    looks: Sequence[int],
    alpha: float = 0.05,
) -> float:
    """Seeds that a study is expected to take, if it stops at the first look with a word.

    A word is that the mean over cells differs from zero, or that every cell lies within the margin.
    The last look ends the study either way.

    Units:
        effect, margin and sd (of the paired differences in a cell) in one unit; `looks` in seeds.

    >>> expected_seeds(1.0, 0.5, sd=0.25, cells=4, looks=(5, 10, 20))
    5.000...
    """
    shares = tuple(look / looks[-1] for look in looks)
    total, going_on, before = 0.0, 1.0, 0
    for number, seeds in enumerate(looks):
        total += (seeds - before) * going_on
        look, before = Look(shares[: number + 1]), seeds
        root, df = np.sqrt(seeds) / sd, seeds - 1
        differs = t_power(
            effect * root * np.sqrt(cells), df * cells, alpha=2 * look.nominal(alpha / 2)
        )
        within = tost_power(margin * root, df, ratio=effect * root, alpha=look.nominal(alpha))
        going_on = min(going_on, 1 - max(differs, within**cells))
    return float(total)


def sd_upper_bound(sd: float, df: float, *, confidence: float = 0.8) -> float:
    """One-sided upper confidence bound of a standard deviation, in its unit.

    >>> round(sd_upper_bound(1.0, 9), 3)
    1.293
    """
    return float(sd * np.sqrt(df / special.chdtri(df, confidence)))


def _find_root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy import optimize  # noqa: PLC0415  half a second, which not all callers spend

    return float(optimize.brentq(function, low, high))  # pyright: ignore[reportArgumentType]


def _fewest(suffices: Callable[[int], bool], *, least: int) -> int | None:
    """Smallest sufficient count, if all larger ones suffice too; None beyond the limit."""
    high = least
    while not suffices(high):
        if high >= SEEDS_LIMIT:
            return None
        high = min(2 * high, SEEDS_LIMIT)
    low = max(least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return low
