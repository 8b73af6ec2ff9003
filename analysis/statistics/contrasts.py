"""Estimate weighted sums of cell means, with one estimator for everything that is asked.

What is asked is said by the weights over cells: a mean, a trend with depth, plain minus residual.

Legend of shape suffixes: C cells, S seeds, G blocks that share seeds, K parts or twins, `...` any
leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_FREE = 0.25
"""Degrees of freedom below which no cell's residuals count, for lack of any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A weighted sum of cell means with its standard error; every test comes from the same t.

    Shapes:
        All (...), one entry per replicate of the grid, or () for the one real grid.
    """

    estimate: NDArray[np.float64]
    se: NDArray[np.float64]
    df: NDArray[np.float64]

    @property
    def t(self) -> NDArray[np.float64]:
        """The estimate in standard errors."""
        return self.estimate / self.se

    @property
    def p(self) -> NDArray[np.float64]:
        """Two-sided p-value of "there is no difference"."""
        return 2 * special.stdtr(self.df, -np.abs(self.t))

    def p_equivalent(self, margin: float) -> NDArray[np.float64]:
        """The larger of the two one-sided p-values of "it is at least the margin" (TOST).

        Source:
            Schuirmann 1987, doi:10.1007/BF01068419.
        """
        return special.stdtr(self.df, (np.abs(self.estimate) - margin) / self.se)

    def p_beyond(self, margin: float) -> NDArray[np.float64]:
        """P-value of "it is at most the margin" (minimal-effect test).

        Source:
            Murphy & Myors 1999, doi:10.1037/0021-9010.84.2.234.
        """
        return special.stdtr(self.df, (margin - np.abs(self.estimate)) / self.se)

    def half_width(self, confidence: float) -> NDArray[np.float64]:
        """Half the length of the interval around the estimate."""
        return special.stdtrit(self.df, (1 + confidence) / 2) * self.se


def estimate_contrast(
    diff_CS: NDArray[np.float64],
    weight_C: NDArray[np.float64],
    *,
    block_C: NDArray[np.intp],
    floor: float = 0.0,
) -> Contrast:
    """Weighted sum of the cells' mean paired differences: the one estimator of this package.

    The harness derives its random streams from a block seed of (data set, architecture, depth,
    seed, stage). So within one architecture and depth the seeds are *crossed* with whatever else
    varies (batch sizes, say): seed 3 is the same randomness in each of these cells, and their
    deviations are summed seed by seed before they are squared. Across architectures and depths
    seeds are *nested*: seed 3 of plain-8 and of plain-14 share nothing but the number, the
    variances add, and Welch and Satterthwaite give the degrees of freedom::

        se_g^2 = sum_s (sum_{c in g} w_c (d_cs - m_c) / sqrt(n_c (n_c - 1)))^2
        se^2   = sum_g se_g^2          df = se^4 / sum_g (se_g^4 / (seeds_g - 1))

    With one block in which all seeds are crossed this is the clustered t with seeds - 1 degrees
    of freedom; with one cell it is the paired t test.

    Shapes:
        diff_CS: (..., C, S), NaN where there is no pair; column s is the same seed everywhere.
        weight_C: (..., C); a cell of weight 0 takes no part.
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
    )


def estimate_cells(diff_CS: NDArray[np.float64], *, floor: float = 0.0) -> Contrast:
    """Each cell's own paired t: a `Contrast` of shape (..., C).

    Shapes:
        diff_CS: (..., C, S), NaN where there is no pair.
    """
    return estimate_contrast(
        diff_CS[..., :, None, :], np.ones(1), block_C=np.zeros(1, np.intp), floor=floor
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


def twin_weights(diff_CS: NDArray[np.float64], twin_KC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over twins of (skip-free minus residual), where both have two pairs or more: (..., C).

    Shapes:
        twin_KC: (K, C), one row per twin: +1 at the skip-free cell, -1 at the residual one.
    """
    has_pairs_C = cell_moments(diff_CS)[0] >= 2
    is_used_K = np.all(has_pairs_C[..., None, :] | (twin_KC == 0), axis=-1)
    return is_used_K @ twin_KC / np.maximum(is_used_K.sum(-1, keepdims=True), 1)


def heterogeneity_test(parts: Contrast, is_member: NDArray[np.bool_]) -> NDArray[np.float64]:
    """P-value of "all parts have the same effect", their variances free: (...).

    1 where there is one part only: it cannot differ from itself.

    Shapes:
        parts: (..., K) independent estimates.
        is_member: (K,) or (..., K), the parts to compare.
    Source:
        Welch 1951, doi:10.1093/biomet/38.3-4.330.
    """
    is_member = is_member & np.isfinite(parts.se)
    count = is_member.sum(-1)
    weight_K = np.where(is_member, 1 / np.where(is_member, parts.se, 1.0) ** 2, 0.0)
    total = np.maximum(weight_K.sum(-1, keepdims=True), 1e-300)
    estimate_K = np.where(is_member, parts.estimate, 0.0)
    center = (weight_K * estimate_K).sum(-1, keepdims=True) / total
    between = (weight_K * (estimate_K - center) ** 2).sum(-1)
    df_K = np.where(is_member, parts.df, 1.0)
    imbalance = np.where(is_member, (1 - weight_K / total) ** 2 / df_K, 0.0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f = between / (count - 1) / (1 + 2 * (count - 2) / (count**2 - 1) * imbalance)
        p = special.fdtrc(count - 1, (count**2 - 1) / (3 * imbalance), f)
    return np.where(count >= 2, p, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mediation:
    """Does a pair whose gradient flow differs more also differ more in accuracy?

    Shapes:
        All (...).
    Units:
        slope in percentage points per dex.
    """

    slope: NDArray[np.float64]
    se: NDArray[np.float64]
    df: NDArray[np.float64]

    @property
    def p(self) -> NDArray[np.float64]:
        """Two-sided p-value of "the slope is zero"."""
        return 2 * special.stdtr(self.df, -np.abs(self.slope / self.se))


def estimate_mediation(
    accuracy_CS: NDArray[np.float64],
    flow_CS: NDArray[np.float64],
    mean_flow_CS: NDArray[np.float64],
) -> Mediation:
    """The path from gradient flow to accuracy within pairs, cells pooled.

    The accuracy difference of each pair is regressed on its flow difference and on the pair's
    mean flow, all three centred within their cell: what differs between depths or architectures
    cannot pose as an effect of flow. The path from placement to flow is the contrast on flow.

    Cells need not be equally noisy: as in `estimate_contrast` each has its own variance, and Welch
    and Satterthwaite give the degrees of freedom. One variance for all would find a path that is
    not there in up to half of all grids whose noisy cells are also those where flow varies most.
    With h_c the leverage of cell c, x the flow difference as the mean flow leaves it, e residuals::

        v_c  = sum_s e_cs^2 / (n_c - h_c)
        se^2 = sum_c v_c sum_s x_cs^2 / (sum x^2)^2

    With one cell this is the t test of ordinary least squares.

    Shapes:
        All (..., C, S): differences of the pairs in accuracy and in flow, and their mean flow;
        NaN where a cell or a pair takes no part.
    Units:
        accuracy_CS in percentage points, the flows in dex.
    Source:
        Judd, Kenny & McClelland 2001, doi:10.1037/1082-989X.6.2.115; Montoya & Hayes 2017,
        doi:10.1037/met0000086.
    """
    is_usable_CS = np.isfinite(accuracy_CS) & np.isfinite(flow_CS) & np.isfinite(mean_flow_CS)
    y_CS, x_CS, mean_CS = (
        cell_moments(np.where(is_usable_CS, values_CS, np.nan))[2]
        for values_CS in (accuracy_CS, flow_CS, mean_flow_CS)
    )

    def dot(a_CS: NDArray[np.float64], b_CS: NDArray[np.float64]) -> NDArray[np.float64]:
        return (a_CS * b_CS).sum((-2, -1))[..., None, None]

    raw_xx, mm = dot(x_CS, x_CS), dot(mean_CS, mean_CS)
    pairs_C = is_usable_CS.sum(-1)
    df_ols = (pairs_C - (pairs_C > 0)).sum(-1) - 2
    with np.errstate(invalid="ignore", divide="ignore"):
        x_CS = x_CS - dot(x_CS, mean_CS) / mm * mean_CS
        xx = dot(x_CS, x_CS)
        slope = dot(x_CS, y_CS) / xx
        residual_CS = y_CS - slope * x_CS - dot(mean_CS, y_CS) / mm * mean_CS
        leverage_C = (pairs_C > 0) + (x_CS**2 / xx + mean_CS**2 / mm).sum(-1)
        # A cell that has drawn the line to itself has hardly a residual left to judge it by.
        df_C = np.maximum(pairs_C - leverage_C, _FEWEST_FREE)
        share_C = (x_CS**2 / xx**2).sum(-1) * (residual_CS**2).sum(-1) / df_C
        variance = share_C.sum(-1)
        df = variance**2 / (share_C**2 / df_C).sum(-1)
    is_spread = (xx > 1e-12 * raw_xx).all((-2, -1))
    exists = (df_ols >= 1) & is_spread & (variance > 0)
    return Mediation(
        slope=np.where(exists, slope[..., 0, 0], np.nan),
        se=np.where(exists, np.sqrt(variance), np.nan),
        df=np.where(exists, df, np.nan),
    )


def cell_moments(
    diff_CS: NDArray[np.float64],
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Pairs and mean of each cell, (..., C); deviations from it, zero without a pair, (..., C, S)."""
    is_paired_CS = ~np.isnan(diff_CS)
    pairs_C = is_paired_CS.sum(-1)
    mean_C = np.where(is_paired_CS, diff_CS, 0.0).sum(-1) / np.maximum(pairs_C, 1)
    deviation_CS = np.where(is_paired_CS, diff_CS - mean_C[..., None], 0.0)
    return pairs_C, mean_C, deviation_CS
