"""Estimate weighted sums of cell means, with one estimator for every question.

The weights over cells state the question: a mean, a trend with depth, plain minus residual.

Legend of shape suffixes: C cells, S seeds, G blocks that share seeds, K parts or twins, `...` any
leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.statistics.looks import ONLY_LOOK, Look

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A weighted sum of cell means with its standard error; every test comes from the same t.

    Shapes:
        All (...), one entry per replicate of the grid, or () for the one real grid.
    """

    estimate: NDArray[np.float64]
    se: NDArray[np.float64]
    df: NDArray[np.float64]
    look: Look = ONLY_LOOK
    """This look at the data: every p-value and interval accounts for the looks before it."""

    @property
    def t(self) -> NDArray[np.float64]:
        """The estimate in standard errors."""
        return self.estimate / self.se

    @property
    def p(self) -> NDArray[np.float64]:
        """Two-sided p-value of "there is no difference"."""
        return self.look.repeated_two_sided(2 * special.stdtr(self.df, -np.abs(self.t)))

    def p_equivalent(self, margin: float) -> NDArray[np.float64]:
        """The larger of the two one-sided p-values of "it is at least the margin" (TOST).

        Source:
            Schuirmann 1987, doi:10.1007/BF01068419.
        """
        return self.look.repeated(
            special.stdtr(self.df, (np.abs(self.estimate) - margin) / self.se)
        )

    def p_beyond(self, margin: float) -> NDArray[np.float64]:
        """P-value of "it is at most the margin" (minimal-effect test).

        Source:
            Murphy & Myors 1999, doi:10.1037/0021-9010.84.2.234.
        """
        return self.look.repeated(
            special.stdtr(self.df, (margin - np.abs(self.estimate)) / self.se)
        )

    def half_width(self, confidence: float) -> NDArray[np.float64]:
        """Half the length of the interval around the estimate."""
        return special.stdtrit(self.df, 1 - self.look.nominal((1 - confidence) / 2)) * self.se


def estimate_contrast(
    diff_CS: NDArray[np.float64],
    weight_C: NDArray[np.float64],
    *,
    block_C: NDArray[np.intp],
    floor: float = 0.0,
    look: Look = ONLY_LOOK,
) -> Contrast:
    """Weighted sum of the cells' mean paired differences: the only estimator of this package.

    The harness derives its random streams from a block seed of (data set, architecture, depth,
    seed, stage). So within one architecture and depth the seeds are *crossed* with every other
    factor (for example batch size): seed 3 is the same randomness in each of these cells, and
    their deviations are summed seed by seed before they are squared. Across architectures and
    depths seeds are *nested*: seed 3 of plain-8 and of plain-14 share only the number, the
    variances add, and Welch and Satterthwaite give the degrees of freedom::

        se_g^2 = sum_s (sum_{c in g} w_c (d_cs - m_c) / sqrt(n_c (n_c - 1)))^2
        se^2   = sum_g se_g^2          df = se^4 / sum_g (se_g^4 / (seeds_g - 1))

    With one block in which all seeds are crossed this is the clustered t with seeds - 1 degrees
    of freedom; with one cell it is the paired t test.

    Shapes:
        diff_CS: (..., C, S), NaN where there is no pair; column s is the same seed everywhere.
        weight_C: (..., C); a cell of weight 0 is left out.
        block_C: (C,), equal where cells share their block seeds.
    Units:
        The result is in the unit of diff_CS times that of the weights; floor is a variance of
        one difference, in the unit of diff_CS squared.
    Source:
        Satterthwaite 1946, doi:10.2307/3002019; Welch 1947, doi:10.1093/biomet/34.1-2.28; the
        small-sample factor n (n - 1) of the clustered sum is CR2 for a mean, Bell & McCaffrey
        2002, Survey Methodology 28:169-181.
    """
    is_used_C = weight_C != 0
    pairs_C, mean_C, deviation_CS = cell_moments(diff_CS)
    scale_C = np.sqrt(np.maximum(pairs_C * (pairs_C - 1), 1))
    share_CS = np.where(is_used_C[..., None], (weight_C / scale_C)[..., None] * deviation_CS, 0.0)
    floor_C = np.where(is_used_C, weight_C**2 * floor / np.maximum(pairs_C, 1), 0.0)

    blocks, block_C = np.unique(block_C, return_inverse=True)
    is_in_GC = np.arange(len(blocks))[:, None] == block_C
    share_GS = np.einsum("gc,...cs->...gs", is_in_GC.astype(float), share_CS)
    variance_G = np.maximum((share_GS**2).sum(-1), floor_C @ is_in_GC.T)
    is_paired_CS = ~np.isnan(diff_CS) & is_used_C[..., None]
    seeds_G = (np.einsum("gc,...cs->...gs", is_in_GC.astype(float), is_paired_CS) > 0).sum(-1)

    variance = variance_G.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = np.where(is_used_C, weight_C * mean_C, 0.0).sum(-1)
        df = variance**2 / (variance_G**2 / np.maximum(seeds_G - 1, 1)).sum(-1)
    has_mean = is_used_C.any(-1) & ((pairs_C >= 1) | ~is_used_C).all(-1)
    exists = has_mean & ((pairs_C >= 2) | ~is_used_C).all(-1) & (variance > 0)
    return Contrast(
        estimate=np.where(has_mean, estimate, np.nan),
        se=np.where(exists, np.sqrt(variance), np.nan),
        df=np.where(exists, df, np.nan),
        look=look,
    )


def estimate_cells(
    diff_CS: NDArray[np.float64], *, floor: float = 0.0, look: Look = ONLY_LOOK
) -> Contrast:
    """Each cell's own paired t: a `Contrast` of shape (..., C).

    Shapes:
        diff_CS: (..., C, S), NaN where there is no pair.
    """
    return estimate_contrast(
        diff_CS[..., :, None, :], np.ones(1), block_C=np.zeros(1, np.intp), floor=floor, look=look
    )


def mean_weights(
    diff_CS: NDArray[np.float64], is_member_C: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Equal weights over the member cells that have two pairs or more: (..., C)."""
    is_used_C = is_member_C & (cell_moments(diff_CS)[0] >= 2)
    return is_used_C / np.maximum(is_used_C.sum(-1, keepdims=True), 1)


def trend_weights(
    diff_CS: NDArray[np.float64], is_member_C: NDArray[np.bool_], depth_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights whose sum of cell means is the least-squares slope on log2(depth): (..., C).

    All zero where the usable cells have one depth only.

    Units:
        1 / doubling of the depth.
    """
    is_used_C = is_member_C & (cell_moments(diff_CS)[0] >= 2)
    doublings_C = np.log2(depth_C)
    center = (is_used_C * doublings_C).sum(-1, keepdims=True) / np.maximum(
        is_used_C.sum(-1, keepdims=True), 1
    )
    offset_C = np.where(is_used_C, doublings_C - center, 0.0)
    spread = (offset_C**2).sum(-1, keepdims=True)
    return np.where(spread > 1e-12, offset_C / np.maximum(spread, 1e-12), 0.0)


def find_ends(twin_KC: NDArray[np.float64]) -> NDArray[np.intp]:
    """The cell without skips and the cell with them, of each twin: (K, 2)."""
    return np.stack([twin_KC.argmax(-1), twin_KC.argmin(-1)], axis=-1)


def twin_weights(diff_CS: NDArray[np.float64], twin_KC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over twins of (skip-free minus residual), where both have two pairs or more: (..., C).

    Shapes:
        twin_KC: (K, C), one row per twin: +1 at the skip-free cell, -1 at the residual one.
    """
    has_pairs_C = cell_moments(diff_CS)[0] >= 2
    is_used_K = np.all(has_pairs_C[..., None, :] | (twin_KC == 0), axis=-1)
    return is_used_K @ twin_KC / np.maximum(is_used_K.sum(-1, keepdims=True), 1)


def cell_moments(
    diff_CS: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Pairs and mean of each cell, (..., C); deviations from it, 0 without a pair, (..., C, S)."""
    is_paired_CS = ~np.isnan(diff_CS)
    pairs_C = is_paired_CS.sum(-1)
    mean_C = np.where(is_paired_CS, diff_CS, 0.0).sum(-1) / np.maximum(pairs_C, 1)
    deviation_CS = np.where(is_paired_CS, diff_CS - mean_C[..., None], 0.0)
    return pairs_C, mean_C, deviation_CS
