"""Weigh what a study says of each claim, and call it by a word.

`weigh` turns outcomes into p-values of what would affirm and what would refute each claim, and
`call` turns those into words. Both take arrays with any leading axes, so that simulated grids are
judged by the very functions that judge the real one.

Errors are bounded twice, each by Holm over all claims of the grid, tested or not: a claim wrongly
affirmed, and a claim wrongly refuted. Within one claim the null hypotheses of a difference and of
equivalence exclude each other, so a claim needs no further correction.

Legend of shape suffixes: M claims, C cells, S seeds, K parts, `...` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import GRAFTS, RESIDUAL, SKIP_FREE, find_twins
from analysis.statistics.contrasts import (
    Contrast,
    Mediation,
    estimate_cells,
    estimate_contrast,
    estimate_mediation,
    heterogeneity_test,
    mean_weights,
    twin_weights,
)
from analysis.statistics.multiplicity import holm
from analysis.statistics.resampling import mcnemar_test

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes

CLAIMS: tuple[str, ...] = ("C1", "C2", "C3", "C4", "C5")

FEWEST_PAIRS = 3
"""A cell with fewer pairs decides nothing: with two, any outlier is half the data."""
HETEROGENEITY_LEVEL = 0.10
"""Cells that differ at this level are not pooled into an equivalence. Stricter than the 0.05 of
the claims, since here it is the missed difference that would mislead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What one pooled contrast says for, against and of no difference.

    Shapes:
        pooled and all p-values: (...); parts: (..., K), the cells (or twins) pooled.
    Units:
        The p-values already carry every rule that can withhold a word: a rule that does sets
        them to 1.
    """

    quantity: str
    arm: str
    baseline: str
    is_member_C: NDArray[np.bool_]
    pooled: Contrast
    parts: Contrast
    margin: float
    planned: int
    """Pairs that the grid asks for, all cells together."""
    run: NDArray[np.intp]
    """Those of them with an outcome in both arms."""
    fewest_pairs: NDArray[np.intp]
    """With an outcome in both arms, in the thinnest cell."""
    fewest_trained: NDArray[np.intp]
    """With a difference, in the thinnest cell: both trained, and the reading is a number."""
    arm_only: NDArray[np.intp]
    """Pairs in which the arm alone diverged."""
    baseline_only: NDArray[np.intp]
    both_diverged: NDArray[np.intp]
    p_heterogeneity: NDArray[np.float64]
    is_homogeneous: NDArray[np.bool_]
    is_opposed_up: NDArray[np.bool_]
    """A cell is significantly below zero."""
    is_opposed_down: NDArray[np.bool_]
    p_up: NDArray[np.float64]
    """Of "the arm is not better", two-sided."""
    p_down: NDArray[np.float64]
    p_equal: NDArray[np.float64]
    """Of "the difference is at least the margin"."""
    p_beyond: NDArray[np.float64]
    """Of "no difference, pooled or in a cell, exceeds the margin"."""


def compare(
    outcomes: Outcomes,
    quantity: str,
    arm: str,
    baseline: str,
    pool: Sequence[str],
    *,
    margin: float,
    alpha: float,
) -> Comparison | None:
    """Compare two placements over the cells of some architectures; None if the grid has no pair.

    A divergence is an outcome of training, so that it speaks on accuracy; on gradient flow it can
    only withhold a word.

    Units:
        margin in the unit of the quantity; alpha is the level at which one cell speaks against
        the others.
    """
    is_member_C = outcomes.members(pool) & outcomes.are_planned(arm, baseline).any(-1)
    if not is_member_C.any():
        return None
    diff_CS = outcomes.difference(quantity, arm, baseline)[..., is_member_C, :]
    floor = outcomes.floor(quantity)
    everywhere_C = np.ones(diff_CS.shape[-2], bool)
    diverged = outcomes.count_divergences(arm, baseline, is_member_C)
    run_C = outcomes.have_run(arm, baseline)[..., is_member_C, :].sum(-1)
    return _weigh_contrast(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        pooled=estimate_contrast(
            diff_CS,
            mean_weights(diff_CS, everywhere_C),
            block_C=outcomes.block_C[is_member_C],
            floor=floor,
        ),
        parts=estimate_cells(diff_CS, floor=floor),
        margin=margin,
        alpha=alpha,
        planned=int(outcomes.are_planned(arm, baseline)[is_member_C].sum()),
        run=run_C.sum(-1),
        fewest_pairs=run_C.min(-1),
        fewest_trained=np.isfinite(diff_CS).sum(-1).min(-1),
        arm_only=diverged.arm_only,
        baseline_only=diverged.baseline_only,
        both_diverged=diverged.both,
        p_divergence=mcnemar_test(diverged.arm_only, diverged.baseline_only)
        if quantity == "accuracy"
        else None,
    )


def compare_twins(
    outcomes: Outcomes, quantity: str, arm: str, baseline: str, *, margin: float, alpha: float
) -> Comparison | None:
    """The same, for what a placement does without skips minus what it does with them.

    Divergences are no test of an interaction: they can only withhold a word here.
    """
    is_planned_C = np.asarray(outcomes.are_planned(arm, baseline).any(-1))
    twin_KC = find_twins(outcomes.cells, is_planned_C)
    if not len(twin_KC):
        return None
    diff_CS = outcomes.difference(quantity, arm, baseline)
    floor = outcomes.floor(quantity)
    is_member_C = np.any(twin_KC != 0, axis=0)
    run_C = outcomes.have_run(arm, baseline)[..., is_member_C, :].sum(-1)
    without, with_skips = (
        outcomes.count_divergences(arm, baseline, np.any(sign * twin_KC > 0, axis=0))
        for sign in (1, -1)
    )
    return _weigh_contrast(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        pooled=estimate_contrast(
            diff_CS, twin_weights(diff_CS, twin_KC), block_C=outcomes.block_C, floor=floor
        ),
        parts=estimate_contrast(
            diff_CS[..., np.stack([twin_KC.argmax(-1), twin_KC.argmin(-1)], axis=-1), :],
            np.array([1.0, -1.0]),
            block_C=np.arange(2),  # two architectures share no block seed
            floor=floor,
        ),
        margin=margin,
        alpha=alpha,
        planned=int(outcomes.are_planned(arm, baseline)[is_member_C].sum()),
        run=run_C.sum(-1),
        fewest_pairs=run_C.min(-1),
        fewest_trained=np.isfinite(diff_CS)[..., is_member_C, :].sum(-1).min(-1),
        arm_only=without.arm_only + with_skips.baseline_only,
        baseline_only=without.baseline_only + with_skips.arm_only,
        both_diverged=without.both + with_skips.both,
        p_divergence=None,
    )


def _weigh_contrast(
    *,
    pooled: Contrast,
    parts: Contrast,
    margin: float,
    alpha: float,
    planned: int,
    run: NDArray[np.intp],
    fewest_pairs: NDArray[np.intp],
    fewest_trained: NDArray[np.intp],
    arm_only: NDArray[np.intp],
    baseline_only: NDArray[np.intp],
    both_diverged: NDArray[np.intp],
    p_divergence: NDArray[np.float64] | None,
    quantity: str,
    arm: str,
    baseline: str,
    is_member_C: NDArray[np.bool_],
) -> Comparison:
    """Apply the rules that a mean over cells and an interaction have in common."""
    lean = np.sign(baseline_only - arm_only)  # +1: divergences speak for the arm
    is_discordant = arm_only + baseline_only > 0
    part_holm = holm(parts.p)
    is_opposed_up = np.asarray(((part_holm <= alpha) & (parts.estimate < 0)).any(-1))
    is_opposed_down = np.asarray(((part_holm <= alpha) & (parts.estimate > 0)).any(-1))
    # Where divergences are no evidence of their own, a pair that diverged is none at all.
    has_enough = (fewest_trained if p_divergence is None else fewest_pairs) >= FEWEST_PAIRS

    def direction(sign: int, *, is_opposed: NDArray[np.bool_]) -> NDArray[np.float64]:
        # Those that trained are a selection where divergences lean the other way.
        is_sound = (sign * pooled.estimate > 0) & (sign * lean >= 0)
        p = np.where(np.isnan(pooled.p), np.nan, np.where(is_sound, pooled.p, 1.0))
        if p_divergence is not None:
            is_contrary = (pooled.p <= alpha) & (sign * pooled.estimate < 0)
            p_lean = np.where((sign * lean > 0) & ~is_contrary, p_divergence, 1.0)
            p = np.where(is_discordant, _any_of(p, p_lean), p)
        return np.where(np.isnan(p), p, np.where(has_enough & ~is_opposed, p, 1.0))

    p_heterogeneity = heterogeneity_test(parts, np.isfinite(parts.se))
    passes_each = (parts.p_equivalent(margin) <= alpha).all(-1)
    lies_within = (np.abs(parts.estimate) < margin).all(-1)
    is_homogeneous = passes_each | ((p_heterogeneity > HETEROGENEITY_LEVEL) & lies_within)
    may_equate = is_homogeneous & ~is_discordant & (fewest_trained >= FEWEST_PAIRS)
    p_equal = pooled.p_equivalent(margin)

    p_parts = np.fmin.reduce(parts.p_beyond(margin), axis=-1) * np.isfinite(parts.se).sum(-1)
    p_beyond = _any_of(pooled.p_beyond(margin), p_parts)
    if p_divergence is not None:
        p_beyond = np.where(is_discordant, _any_of(p_beyond, p_divergence), p_beyond)
    return Comparison(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        pooled=pooled,
        parts=parts,
        margin=margin,
        planned=planned,
        run=run,
        fewest_pairs=fewest_pairs,
        fewest_trained=fewest_trained,
        arm_only=arm_only,
        baseline_only=baseline_only,
        both_diverged=both_diverged,
        p_heterogeneity=p_heterogeneity,
        is_homogeneous=is_homogeneous,
        is_opposed_up=is_opposed_up,
        is_opposed_down=is_opposed_down,
        p_up=direction(1, is_opposed=is_opposed_up),
        p_down=direction(-1, is_opposed=is_opposed_down),
        p_equal=np.where(np.isnan(p_equal), p_equal, np.where(may_equate, p_equal, 1.0)),
        p_beyond=np.where(has_enough | np.isnan(p_beyond), p_beyond, 1.0),
    )


def _any_of(*p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-value of "none of them", by Bonferroni; NaN where none could be tested."""
    return np.minimum(1.0, len(p_values) * np.fmin.reduce(p_values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """For each claim: p-values of what affirms it and of the two ways to refute it.

    Shapes:
        affirms_M, contradicts_M, equates_M: (..., M), in the order of `CLAIMS`; NaN: untestable.
    """

    affirms_M: NDArray[np.float64]
    contradicts_M: NDArray[np.float64]
    equates_M: NDArray[np.float64]
    words: tuple[str, ...]
    """What each claim is called where it is affirmed."""
    comparisons: Mapping[str, tuple[Comparison, ...]]
    """Of each claim, the deciding one first; empty where the grid cannot test it."""
    mediation: Mediation | None


def weigh(
    outcomes: Outcomes, *, margin_accuracy: float, margin_flow: float, alpha: float
) -> Evidence:
    """Test everything that the claims speak of, on one study.

    * C1 is affirmed by `after` above `before` and above `none` (where the grid has it): both must
      hold, so the larger p-value counts (intersection-union). It is refuted by either being
      below, or by equivalence with `before`.
    * C2 needs a higher flow, a higher accuracy, and a path between them. In arms that borrow each
      other's flow the path is a contrast like any other. Without such arms it is the slope of
      accuracy on flow within pairs (joint significance), and then the rows, being only observed,
      cannot show more than consistency. It is refuted by any of these pointing the other way, by
      equal flow, or by a borrowed flow that changes nothing.
    * C3 and C4 are affirmed by equivalence pooled, without differences between cells, and refuted
      by a difference beyond the margin, pooled or in a cell.
    * C5 is affirmed by `after` gaining more without skips than with them, between twins.

    Source:
        Berger 1982, doi:10.1080/00401706.1982.10487790 (intersection-union); MacKinnon et al.
        2002, doi:10.1037/1082-989X.7.1.83 (joint significance).
    """

    def on(
        quantity: str, arm: str, baseline: str, pool: Sequence[str], *, margin: float
    ) -> Comparison | None:
        return compare(outcomes, quantity, arm, baseline, pool, margin=margin, alpha=alpha)

    order = on("accuracy", "after", "before", SKIP_FREE, margin=margin_accuracy)
    norm = on("accuracy", "after", "none", SKIP_FREE, margin=margin_accuracy)
    flow = on("gradient", "after", "before", SKIP_FREE, margin=margin_flow)
    residual = on("accuracy", "after", "before", RESIDUAL, margin=margin_accuracy)
    residual_flow = on("gradient", "after", "before", RESIDUAL, margin=margin_flow)
    twins = compare_twins(
        outcomes, "accuracy", "after", "before", margin=margin_accuracy, alpha=alpha
    )
    grafts = [
        graft
        for arm, baseline in GRAFTS
        if (graft := on("accuracy", arm, baseline, SKIP_FREE, margin=margin_accuracy))
    ]
    mediation = _mediate(outcomes, order) if order and flow else None

    untested = np.full(outcomes.accuracy_PCS.shape[:-3], np.nan)
    tests = dict.fromkeys(CLAIMS, (untested, untested, untested))
    if order and norm:
        tests["C1"] = (
            np.maximum(order.p_up, norm.p_up),
            _any_of(order.p_down, norm.p_down),
            order.p_equal,
        )
    elif order:
        tests["C1"] = (order.p_up, order.p_down, order.p_equal)
    if order and flow and mediation:
        p_slope = np.where(mediation.slope > 0, mediation.p, 1.0)
        p_slope = np.where(np.isnan(mediation.p), np.nan, p_slope)
        paths = [graft.p_up for graft in grafts] or [p_slope]
        tests["C2"] = (
            np.maximum.reduce([flow.p_up, order.p_up, *paths]),
            _any_of(flow.p_down, order.p_down, *(graft.p_down for graft in grafts)),
            _any_of(flow.p_equal, *(graft.p_equal for graft in grafts)),
        )
    for claim, comparison in (("C3", residual), ("C4", residual_flow)):
        if comparison:
            tests[claim] = (comparison.p_equal, comparison.p_beyond, untested)
    if twins:
        tests["C5"] = (twins.p_up, twins.p_down, twins.p_equal)

    affirms_M, contradicts_M, equates_M = (
        np.stack([tests[claim][way] for claim in CLAIMS], axis=-1) for way in range(3)
    )
    found = {
        "C1": (order, norm),
        "C2": (flow, order, *grafts),
        "C3": (residual,),
        "C4": (residual_flow,),
        "C5": (twins,),
    }
    return Evidence(
        affirms_M=affirms_M,
        contradicts_M=contradicts_M,
        equates_M=equates_M,
        words=(
            "supported",
            "supported" if grafts else "inconclusive",
            "equivalent",
            "equivalent",
            "supported",
        ),
        comparisons={
            claim: tuple(one for one in several if one) if several[0] else ()
            for claim, several in found.items()
        },
        mediation=mediation,
    )


def _mediate(outcomes: Outcomes, order: Comparison) -> Mediation:
    is_member_C = order.is_member_C[:, None]
    flows = [outcomes.values_of("gradient", name) for name in (order.arm, order.baseline)]
    return estimate_mediation(
        np.where(is_member_C, outcomes.difference("accuracy", order.arm, order.baseline), np.nan),
        flows[0] - flows[1],
        (flows[0] + flows[1]) / 2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The words of all claims, and the p-values they rest on after Holm.

    Shapes:
        All (..., M).
    """

    word_M: NDArray[np.str_]
    is_consistent_M: NDArray[np.bool_]
    """What the rows could show of C2 they do show; never true of another claim."""
    affirms_M: NDArray[np.float64]
    refutes_M: NDArray[np.float64]


def call(
    affirms_M: NDArray[np.float64],
    contradicts_M: NDArray[np.float64],
    equates_M: NDArray[np.float64],
    *,
    words: Sequence[str],
    alpha: float,
) -> Call:
    """Turn p-values into words.

    Shapes:
        affirms_M, contradicts_M, equates_M: (..., M), one entry per claim; `words` (M,) says what
        each is called where it is affirmed.
    """
    affirms_M, refutes_M = holm(affirms_M), holm(np.fmin(contradicts_M, equates_M))
    is_affirmed_M = affirms_M <= alpha
    is_refuted_M = refutes_M <= alpha
    is_contradicted_M = is_refuted_M & ~(equates_M < contradicts_M)
    return Call(
        word_M=np.select(
            [is_affirmed_M, is_contradicted_M, is_refuted_M],
            [np.broadcast_to(words, affirms_M.shape), "contradicted", "equivalent"],
            "inconclusive",
        ),
        is_consistent_M=is_affirmed_M & (np.array(words) == "inconclusive"),
        affirms_M=affirms_M,
        refutes_M=refutes_M,
    )
