"""Compare two shares on the same pairs: how much more often does the arm fail than the baseline?

Legend of shape suffixes: `...` any leading axes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_HALVINGS = 40
"""Bisection steps in the search for an end of the interval: to 2 / 2^40."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskDifference:
    """The arm's risk minus the baseline's, from pairs: score tests and their interval.

    Shapes:
        All (...): counts of pairs in which only one of the two failed, and of all pairs.
    Units:
        Fractions.
    Source:
        Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B.
    """

    arm_only: NDArray[np.intp]
    baseline_only: NDArray[np.intp]
    pairs: NDArray[np.intp]

    @property
    def estimate(self) -> NDArray[np.float64]:
        """The observed difference; NaN where there are no pairs."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.arm_only - self.baseline_only) / self.pairs

    @property
    def p(self) -> NDArray[np.float64]:
        """Exact two-sided p-value of "both fail equally often" (McNemar)."""
        return mcnemar_test(self.arm_only, self.baseline_only)

    def p_equivalent(self, margin: float) -> NDArray[np.float64]:
        """The larger one-sided p-value of "the difference is at least the margin"."""
        return special.ndtr(np.maximum(self._score(margin), -self._score(-margin)))

    def p_beyond(self, margin: float) -> NDArray[np.float64]:
        """P-value of "the difference is at most the margin", in either direction.

        The larger of the score test's and the exact binomial's, since a normal score is not valid
        for a handful of pairs.
        """
        score = special.ndtr(np.minimum(-self._score(margin), self._score(-margin)))
        return np.maximum(score, self.p_excess(margin))

    def p_excess(self, margin: float) -> NDArray[np.float64]:
        """P-value of this excess if one arm never failed and the other failed at the margin.

        Exact, from the binomial distribution; 1 where there is no excess.
        """
        excess = np.abs(self.arm_only - self.baseline_only)
        return np.where(excess > 0, special.bdtrc(excess - 1, self.pairs, margin), 1.0)

    def over(self, is_member: NDArray[np.bool_]) -> RiskDifference:
        """The risk difference of some groups on the last axis."""
        return RiskDifference(
            arm_only=self.arm_only[..., is_member],
            baseline_only=self.baseline_only[..., is_member],
            pairs=self.pairs[..., is_member],
        )

    def pooled(self) -> RiskDifference:
        """The risk difference of all pairs together, summed over the groups on the last axis."""
        return RiskDifference(
            arm_only=self.arm_only.sum(-1),
            baseline_only=self.baseline_only.sum(-1),
            pairs=self.pairs.sum(-1),
        )

    def interval(self, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The differences that the score test does not reject, from lowest to highest."""
        if np.ndim(self.pairs) == 0:  # of thousands of effects, most count the same few failures
            return _interval_of(
                int(self.arm_only), int(self.baseline_only), int(self.pairs), confidence
            )
        return self._interval(confidence)

    def _interval(self, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        critical = float(special.ndtri((1 + confidence) / 2))
        high = self._solve(lambda delta: self._score(delta) > -critical)
        low = -self.swapped()._solve(lambda delta: self.swapped()._score(delta) > -critical)  # noqa: SLF001
        return low, high

    def swapped(self) -> RiskDifference:
        """The same difference with arm and baseline exchanged."""
        return RiskDifference(
            arm_only=self.baseline_only, baseline_only=self.arm_only, pairs=self.pairs
        )

    def _solve(self, lies_below) -> NDArray[np.float64]:  # noqa: ANN001
        """The largest difference that is not rejected, by bisection."""
        low = np.broadcast_to(self.estimate, np.shape(self.pairs)).astype(float)
        high = np.ones_like(low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            inside = lies_below(middle)
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return (low + high) / 2

    def _score(self, delta: ArrayLike) -> NDArray[np.float64]:
        """Score statistic, standard normal if the true difference is `delta`."""
        delta = np.asarray(delta, dtype=float)
        is_negative = delta < 0
        # Tango's formula fits the smaller discordant share: exchange the two for a negative delta.
        b = np.where(is_negative, self.baseline_only, self.arm_only)
        c = np.where(is_negative, self.arm_only, self.baseline_only)
        size, n = np.abs(delta), np.asarray(self.pairs, dtype=float)
        w = size * (2 * n - b + c) - (b + c)
        with np.errstate(invalid="ignore", divide="ignore"):
            q = (np.sqrt(w**2 + 8 * n * c * size * (1 - size)) - w) / (4 * n)
            variance = n * (2 * q + size * (1 - size))
            z = (b - c - n * size) / np.sqrt(variance)
        z = np.where(variance > 0, z, np.where(b - c - n * size < 0, -np.inf, 0.0))
        return np.where(is_negative, -z, z)


@functools.cache
def _interval_of(
    arm_only: int, baseline_only: int, pairs: int, confidence: float
) -> tuple[Any, Any]:
    counts = (np.asarray(count) for count in (arm_only, baseline_only, pairs))
    names = ("arm_only", "baseline_only", "pairs")
    return RiskDifference(**dict(zip(names, counts, strict=True)))._interval(confidence)  # noqa: SLF001


def mcnemar_test(arm_only: ArrayLike, baseline_only: ArrayLike) -> NDArray[np.float64]:
    """Exact two-sided p-value of "either arm is as likely to be the one that fails".

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
