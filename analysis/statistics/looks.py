"""Look at a study more than once at the same error rate: alpha spending and repeated intervals.

The maximum information of a study is planned beforehand (usually as seeds). At a share `t` of it
the tests may have spent only a part of their error rate, so that each look has its own, stricter
nominal level, and its intervals are correspondingly wider::

    spent(t) = 2 - 2 Phi(z(1 - alpha / 2) / sqrt(t))        one-sided, O'Brien-Fleming-like

Looks may come at any time, planned or not: only the information at each of them matters.

Legend of shape suffixes: L looks, A levels, K nodes of the integration.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_LEVEL_A = np.concatenate([np.logspace(-12, -2, 61), np.linspace(0.015, 0.5, 40)])
"""One-sided error rates whose nominal levels are computed; others are interpolated."""
_NODE_K, _WEIGHT_K = np.polynomial.legendre.leggauss(96)  # on [-1, 1]
_SLACK = 1e-9
"""Shares of the information that differ by less are one."""
_FAR = 8.0
"""Standard deviations beyond which a normal density is treated as zero."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a study: the shares of information at this look and at all looks before it.

    A single look at all the information changes nothing: its levels are the error rates.

    Source:
        Lan & DeMets 1983, doi:10.1093/biomet/70.3.659; repeated p-values and intervals: Jennison &
        Turnbull 1989, doi:10.1111/j.2517-6161.1989.tb01774.x. Tests that are not normal enter by
        their p-values.
    """

    fractions: tuple[float, ...] = (1.0,)

    @property
    def is_only(self) -> bool:
        """Is this the only look, at the end?"""
        return self.fractions == (1.0,)

    def at(self, share: float) -> Look:
        """The look at a part of the study that has got this share of the trials of the others.

        >>> Look((0.3, 0.5, 1.0)).at(0.5)
        Look(fractions=(0.3, 0.5))
        """
        if share >= 1:
            return self
        own = share * self.fractions[-1]
        return Look((*(one for one in self.fractions if one < own - _SLACK), own))

    def nominal(self, alpha: float) -> float:
        """The one-sided level to test at now, when all looks together may err with `alpha`.

        >>> round(Look((0.5,)).nominal(0.05), 4)
        0.0056
        """
        return alpha if self.is_only else _nominal(self.fractions, alpha)

    def repeated(self, p: ArrayLike) -> NDArray[np.float64]:
        """The smallest one-sided error rate at which this look would reject, for its one-sided p.

        >>> float(Look().repeated(0.03))
        0.03
        """
        p = np.asarray(p, dtype=float)
        if self.is_only:
            return p
        nominal_A = _tabulate(self.fractions)
        with np.errstate(divide="ignore"):
            log_p = np.log(np.maximum(p, 1e-300))
        within = np.exp(np.interp(log_p, np.log(nominal_A), np.log(_LEVEL_A)))
        # Below the table the last ratio of levels is extrapolated; above it nothing rejects.
        below = p * (_LEVEL_A[0] / nominal_A[0])
        return np.where(
            np.isnan(p),
            np.nan,
            np.where(p < nominal_A[0], below, np.where(p > nominal_A[-1], 1.0, within)),
        )

    def repeated_two_sided(self, p: ArrayLike) -> NDArray[np.float64]:
        """The same for a two-sided p, whose halves are one-sided tests of half the error rate."""
        if self.is_only:
            return np.asarray(p, dtype=float)
        return np.minimum(1.0, 2 * self.repeated(np.asarray(p, dtype=float) / 2))


ONLY_LOOK = Look()
"""The only look at a study, taken at its end."""


@functools.cache
def _nominal(fractions: tuple[float, ...], alpha: float) -> float:
    return float(special.ndtr(-find_bounds(fractions, alpha)[-1]))


def find_bounds(fractions: Sequence[float], alpha: float) -> NDArray[np.float64]:
    """Critical values of a one-sided normal test at looks with these shares of the information.

    Shapes:
        fractions: (L,), increasing, above 0 and at most 1; the result is (L,) too.
    Raises:
        ValueError: the shares do not increase, or exceed 1.
    Source:
        Armitage, McPherson & Rowe 1969, doi:10.2307/2343787 (the recursive integral).

    >>> find_bounds([0.25, 0.5, 0.75, 1.0], 0.05).round(3)
    array([3.75 , 2.54 , 2.016, 1.72 ])
    """
    if np.any(np.diff([0.0, *fractions]) <= 0) or fractions[-1] > 1:
        raise ValueError(f"looks have growing shares of the information, up to 1: {fractions}")
    due_L = np.diff(_spent(np.asarray(fractions, dtype=float), alpha), prepend=0.0)
    bounds: list[float] = []
    # The density of the running sum while the study continues; it starts at zero.
    sum_K, mass_K, before = np.zeros(1), np.ones(1), 0.0
    for t, due in zip(fractions, due_L, strict=True):
        root, step = np.sqrt(t), np.sqrt(t - before)
        bounds.append(_find_bound(due, sum_K / step, mass_K, root / step))
        low, high = -_FAR * root, min(bounds[-1], _FAR) * root
        next_K = low + (high - low) * (_NODE_K + 1) / 2
        kernel_KK = np.exp(-(((next_K[:, None] - sum_K) / step) ** 2) / 2)
        density_K = kernel_KK @ mass_K / (np.sqrt(2 * np.pi) * step)
        sum_K, mass_K, before = next_K, density_K * _WEIGHT_K * (high - low) / 2, t
    return np.array(bounds)


def _find_bound(
    due: float, sum_K: NDArray[np.float64], mass_K: NDArray[np.float64], scale: float
) -> float:
    """The bound that the next sum crosses with probability `due`; out of reach if `due` is 0."""

    def excess(bound: float) -> float:
        return float(mass_K @ special.ndtr(sum_K - bound * scale)) - due

    if excess(_FAR + 2) >= 0:
        return _FAR + 2
    from scipy import optimize  # noqa: PLC0415  half a second, for studies with looks

    return float(optimize.brentq(excess, -_FAR, _FAR + 2, xtol=1e-10))  # pyright: ignore[reportArgumentType]


def _spent(t_L: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """The one-sided error rate spent at each share of the information."""
    return 2 * special.ndtr(-special.ndtri(1 - alpha / 2) / np.sqrt(t_L))


@lru_cache(maxsize=64)
def _tabulate(fractions: tuple[float, ...]) -> NDArray[np.float64]:
    """Nominal level at the last look for each of `_LEVEL_A`, strictly increasing."""
    nominal_A = special.ndtr(-np.array([find_bounds(fractions, alpha)[-1] for alpha in _LEVEL_A]))
    rising_A = np.maximum.accumulate(np.maximum(nominal_A, 1e-300))
    return np.asarray(rising_A * (1 + 1e-12 * np.arange(len(_LEVEL_A))), dtype=np.float64)
