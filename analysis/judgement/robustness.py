"""What other methods say of a deciding effect: printed beside the verdict, never deciding it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import find_twins
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.sentences import format_p
from analysis.statistics.contrasts import estimate_contrast, find_ends, mean_weights, twin_weights
from analysis.statistics.resampling import (
    hodges_lehmann,
    sign_flip_floor,
    sign_flip_test,
    signed_rank_test,
    superiority,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from analysis.judgement.comparisons import Comparison
    from analysis.judgement.outcomes import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The deciding contrast on gradient flow, with the layers reduced otherwise than by their mean.

    Units:
        log10.
    """

    name: str
    """"at the first layer"."""
    estimate: float
    low: float
    """95 % interval."""
    high: float
    p: float
    """Two-sided, "no difference"."""
    p_minimal: float
    """Minimal effect: "the difference is at most the margin" is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """What other methods say of the deciding effect.

    A pair of an interaction is a pair of pairs: the difference of the skip-free twin minus that
    of the residual one. Twins share no randomness, so which two are put together does not matter.
    """

    p_sign_flip: float
    """Sign-flip permutation of all pairs of the pool, two-sided."""
    p_sign_flip_floor: float
    """Smallest value that p can take with so many pairs."""
    p_signed_rank: float
    """Wilcoxon signed-rank, all pairs of the pool, two-sided."""
    hodges_lehmann: float
    """Median of the pairwise averages of the differences, in the effect's unit."""
    superiority: float
    """P(arm > baseline): share of pairs the arm wins, ties counted half."""
    estimate_at_chance: float
    """The estimate with diverged trials scored at chance; NaN for gradient flow, and where trials
    diverged on a data set whose chance is not known."""
    other_flows: tuple[Sensitivity, ...]
    """Of gradient flow, its other reductions; empty of accuracy."""


def cross_check(
    outcomes: Outcomes, one: Comparison, *, rng: np.random.Generator
) -> Robustness | None:
    """What other methods say of the pooled effect; None where there is none."""
    diff_CS = outcomes.difference(one.quantity, one.arm, one.baseline)
    if one.is_interaction:
        twin_KC = find_twins(outcomes.cells, one.is_member_C)
        plain_K, residual_K = find_ends(twin_KC).T
        diff_KS = diff_CS[plain_K] - diff_CS[residual_K]
    else:
        diff_KS = diff_CS[one.is_member_C]
    diff_KS = diff_KS[one.is_judged_K]
    is_paired_KS = np.isfinite(diff_KS)
    if is_paired_KS.sum() < 2 or np.isnan(one.pooled.se):
        return None
    share_K = 1 / (len(diff_KS) * np.maximum(is_paired_KS.sum(-1, keepdims=True), 1))
    diff_P = diff_KS[is_paired_KS]
    weighted_P = (diff_KS * share_K)[is_paired_KS]
    p_values = (
        sign_flip_test(weighted_P, rng=rng),
        sign_flip_floor(weighted_P),
        signed_rank_test(diff_P),
    )
    look = one.pooled.look
    p_sign_flip, floor, p_signed_rank = look.repeated_two_sided(p_values).tolist()
    return Robustness(
        p_sign_flip=p_sign_flip,
        p_sign_flip_floor=floor,
        p_signed_rank=p_signed_rank,
        hodges_lehmann=hodges_lehmann(diff_P),
        superiority=superiority(diff_P),
        estimate_at_chance=_score_at_chance(outcomes, one),
        other_flows=tuple(_vary_flow(outcomes, one)) if one.quantity in WINDOWS else (),
    )


def find_disagreement(word: str, one: Comparison, panel: Robustness | None, *, alpha: float) -> str:
    """Where the panel disagrees with the verdict in sign or word; empty where it agrees."""
    if panel is None or word in {"inconclusive", "equivalent on average"}:
        return ""
    found = []
    sign = np.sign(one.pooled.estimate)
    if word == "contradicted" and not one.pooled.p <= alpha:
        return ""  # it rests on a single cell or on divergences, of which the panel knows nothing
    if word == "equivalent":
        if abs(panel.hodges_lehmann) >= one.margin:
            found.append("the Hodges-Lehmann estimate lies outside the margin")
        found += [
            f"flow {other.name} differs beyond the margin ({format_p(other.p_minimal)})"
            for other in panel.other_flows
            if other.p_minimal <= alpha
        ]
    else:
        # The floor is that of every test on signs; above alpha they have no say.
        can_reject = panel.p_sign_flip_floor <= alpha
        if can_reject and panel.p_sign_flip > alpha:
            found.append(f"the sign-flip test has {format_p(panel.p_sign_flip)}")
        if sign * panel.hodges_lehmann < 0:
            found.append("the Hodges-Lehmann estimate has the other sign")
        found += [
            f"flow {other.name} differs the other way ({format_p(other.p)})"
            for other in panel.other_flows
            if other.p <= alpha and sign * other.estimate < 0
        ]
        if sign * panel.estimate_at_chance < 0:
            found.append("scoring divergences at chance turns the sign")
    return "; ".join(found)


def _vary_flow(outcomes: Outcomes, one: Comparison) -> Iterator[Sensitivity]:
    for name, flow_PCS in outcomes.other_flows.items():
        varied = replace(outcomes, flow_PCS=flow_PCS)
        diff_CS = varied.difference(one.quantity, one.arm, one.baseline)
        contrast = estimate_contrast(
            diff_CS,
            _weights_of(outcomes, one, diff_CS),
            block_C=outcomes.block_C,
            floor=outcomes.floor(one.quantity),
            look=one.pooled.look,
        )
        half = contrast.half_width(0.95)
        yield Sensitivity(
            name=name,
            estimate=float(contrast.estimate),
            low=float(contrast.estimate - half),
            high=float(contrast.estimate + half),
            p=float(contrast.p),
            p_minimal=float(contrast.p_beyond(one.margin)),
        )


def _weights_of(
    outcomes: Outcomes, one: Comparison, diff_CS: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights over all cells of the contrast that `one` stands on."""
    if one.is_interaction:
        twin_KC = find_twins(outcomes.cells, one.is_member_C)
        return twin_weights(diff_CS, twin_KC[one.is_judged_K])
    is_judged_C = np.zeros(len(outcomes.cells), bool)
    is_judged_C[np.flatnonzero(one.is_member_C)[one.is_judged_K]] = True
    return mean_weights(diff_CS, is_judged_C)


def _score_at_chance(outcomes: Outcomes, one: Comparison) -> float:
    """The estimate with diverged trials scored as guessing; NaN where guessing is not known."""
    if one.quantity != "accuracy":
        return float("nan")
    diff_CS = outcomes.scores_of(one.arm) - outcomes.scores_of(one.baseline)
    if np.isnan(outcomes.chance) and outcomes.diverged_PCS.any():
        return float("nan")
    weight_C = _weights_of(outcomes, one, diff_CS)
    return float(estimate_contrast(diff_CS, weight_C, block_C=outcomes.block_C).estimate)
