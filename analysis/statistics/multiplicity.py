"""Correct p-values for multiple testing.

Legend of shape suffixes: M tests of one family, on the last axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def holm(p_M: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment: reject where the result is at most alpha.

    A test that could not be run (NaN) stays NaN and still counts: a family does not shrink
    because part of it failed.

    Shapes:
        p_M: (..., M), one family per row.
    Source:
        Holm 1979, Scandinavian Journal of Statistics 6:65-70.

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    >>> holm([0.01, float("nan")])
    array([0.02,  nan])
    """
    p_M = np.asarray(p_M, dtype=float)
    count = p_M.shape[-1]
    rank_M = np.argsort(p_M, axis=-1)  # NaN sorts last
    sorted_M = np.take_along_axis(p_M, rank_M, axis=-1)
    stepped_M = np.maximum.accumulate(sorted_M * np.arange(count, 0, -1), axis=-1)
    return _unsort(np.minimum(stepped_M, 1.0), rank_M)


def holm_level(p_M: ArrayLike, *, alpha: float) -> NDArray[np.float64]:
    """The largest p at which Holm would reject each test, given the p-values of the others.

    Shapes:
        p_M: (M,), one family; so is the result.

    >>> holm_level([0.01, 0.3], alpha=0.05)
    array([0.025, 0.05 ])
    """
    p_M = np.asarray(p_M, dtype=float)
    # A test without evidence of its own ranks last among the others.
    others_MM = np.where(np.eye(len(p_M), dtype=bool), np.nan, p_M)
    rejected_M = (holm(others_MM) <= alpha).sum(-1)
    return alpha / (len(p_M) - rejected_M)


def benjamini_hochberg(p_M: ArrayLike) -> NDArray[np.float64]:
    """Adjustment that bounds the false discovery rate: for exploratory maps only.

    NaN stays NaN and still counts.

    Shapes:
        p_M: (..., M), one family per row.
    Source:
        Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    array([0.03, 0.04, 0.04])
    """
    p_M = np.asarray(p_M, dtype=float)
    count = p_M.shape[-1]
    rank_M = np.argsort(p_M, axis=-1)
    sorted_M = np.take_along_axis(p_M, rank_M, axis=-1) * count / np.arange(1, count + 1)
    is_missing_M = np.isnan(sorted_M)
    stepped_M = np.minimum.accumulate(np.where(is_missing_M, np.inf, sorted_M)[..., ::-1], axis=-1)[
        ..., ::-1
    ]
    stepped_M = np.where(is_missing_M, np.nan, np.minimum(stepped_M, 1.0))
    return _unsort(stepped_M, rank_M)


def _unsort(sorted_M: NDArray[np.float64], rank_M: NDArray[np.intp]) -> NDArray[np.float64]:
    p_M = np.empty_like(sorted_M)
    np.put_along_axis(p_M, rank_M, sorted_M, axis=-1)
    return p_M
