"""Compare one arm with another over the cells of a claim, and over twins: what the pairs say.

Everything has any leading axes, so that simulated grids are compared by the very functions that
compare the real one.

Legend of shape suffixes: C cells, S seeds, K parts (cells or twins), `...` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import find_twins
from analysis.statistics.contrasts import Contrast, estimate_cells, estimate_contrast, find_ends
from analysis.statistics.multiplicity import holm
from analysis.statistics.resampling import sign_flip_tails
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from analysis.statistics.proportions import RiskDifference
    from harness.study.records import AnalysisPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Margins:
    """The smallest differences that matter.

    Units:
        accuracy in percentage points, flow in log10, risk (of a trial that does not train) as a
        fraction.
    """

    accuracy: float
    flow: float
    risk: float = 0.1

    @classmethod
    def of_plan(cls, plan: AnalysisPlan) -> Margins:
        """Those that the grid fixed."""
        return cls(
            accuracy=plan.margin_accuracy,
            flow=float(np.log10(plan.margin_gradient)),
            risk=plan.margin_risk,
        )

    def of(self, quantity: str) -> float:
        """The margin of "accuracy" or of a window of flow."""
        return self.accuracy if quantity == "accuracy" else self.flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the pairs of one arm and one baseline say for, against and of no difference.

    Shapes:
        pooled, risk, run and all p-values: (...); parts and masks ending in _K: (..., K).
    Units:
        Every p-value allows for the looks before this one. NaN: it cannot be tested.
    """

    quantity: str
    """"accuracy", or the window in which flow is compared."""
    arm: str
    baseline: str
    is_member_C: NDArray[np.bool_]
    is_interaction: bool
    margin: float
    margin_risk: float
    planned: int
    """Pairs that the grid asks for, all cells together."""
    run: NDArray[np.intp]
    """Those of them with an outcome in both arms."""
    pairs_K: NDArray[np.intp]
    """Those in which both trained, in the thinner cell where the part is a twin."""
    is_short_K: NDArray[np.bool_]
    """Too few pairs trained for the part to say anything."""
    is_uninformative_K: NDArray[np.bool_]
    """Nothing could have shown there: nothing learned, or less left to gain than the margin."""
    pooled: Contrast
    """Mean over the judged parts."""
    parts: Contrast
    risk: RiskDifference
    is_opposed_up: NDArray[np.bool_]
    """A part is significantly below zero."""
    is_opposed_down: NDArray[np.bool_]
    is_split: NDArray[np.bool_]
    """Accuracy where both trained says one thing, and the risk of not training the other."""
    p_up: NDArray[np.float64]
    """Of "the arm is not better", two-sided."""
    p_down: NDArray[np.float64]
    p_equal: NDArray[np.float64]
    """Of "some judged part differs by the margin or more"."""
    p_average: NDArray[np.float64]
    """Of "the mean of the parts differs by the margin or more"."""
    p_beyond: NDArray[np.float64]
    """Of "no difference, pooled or in a part or of the risks, exceeds its margin"."""

    @property
    def is_judged_K(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape suffix)
        """The parts that decide."""
        return ~self.is_short_K & ~self.is_uninformative_K

    @property
    def is_discordant(self) -> NDArray[np.bool_]:
        """Is there a pair in which one of the two alone did not train?"""
        return self.risk.arm_only + self.risk.baseline_only > 0

    def risk_interval(self, confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the risk difference, as wide as this look makes it."""
        return self.risk.interval(1 - 2 * self.pooled.look.nominal((1 - confidence) / 2))


def compare(
    outcomes: Outcomes,
    quantity: str,
    arm: str,
    baseline: str,
    is_member_C: NDArray[np.bool_],
    *,
    margins: Margins,
    alpha: float,
) -> Comparison | None:
    """Compare two arms over the member cells; None if the grid has no pair there.

    Whether a trial trains at all is an outcome, judged in a part of its own beside the accuracy of
    pairs in which both trained. An arm without batch norm is compared by sign flips of all pairs
    as well, those at chance among them: of the two humps that its accuracies have no t test knows.

    Units:
        alpha is the level at which a cell, or a part, speaks against the rest.
    """
    is_member_C = is_member_C & outcomes.are_planned(arm, baseline).any(-1)
    if not is_member_C.any():
        return None
    diff_CS = outcomes.difference(quantity, arm, baseline)
    pairs_C = np.isfinite(diff_CS).sum(-1)
    dull_C = outcomes.are_uninformative(arm, baseline, margins.accuracy)
    judged_C = is_member_C & (pairs_C >= FEWEST_PAIRS) & ~dull_C
    weight_C = judged_C / np.maximum(judged_C.sum(-1, keepdims=True), 1)
    floor, look = outcomes.floor(quantity), outcomes.look_on(is_member_C, arm, baseline)
    scores_above = None
    if quantity == "accuracy" and "none" in {arm, baseline}:
        scores_above = outcomes.scores_of(arm) - outcomes.scores_of(baseline)
        scores_above = np.where(dull_C[..., None], np.nan, scores_above)[..., is_member_C, :]
    return _weigh(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        is_interaction=False,
        margins=margins,
        alpha=alpha,
        planned=int(outcomes.are_planned(arm, baseline)[is_member_C].sum()),
        run=outcomes.have_run(arm, baseline)[..., is_member_C, :].sum((-2, -1)),
        pairs_K=pairs_C[..., is_member_C],
        is_uninformative_K=dull_C[..., is_member_C],
        pooled=estimate_contrast(
            diff_CS, weight_C, block_C=outcomes.block_C, floor=floor, look=look
        ),
        parts=estimate_cells(diff_CS[..., is_member_C, :], floor=floor, look=look),
        risks=outcomes.risks(arm, baseline).over(is_member_C),
        scores_above=scores_above,
    )


def compare_twins(
    outcomes: Outcomes, quantity: str, arm: str, baseline: str, *, margins: Margins, alpha: float
) -> Comparison | None:
    """The same, for what an arm does without skips minus what it does with them.

    Trials that do not train are no test of an interaction; they are counted.
    """
    is_planned_C = np.asarray(outcomes.are_planned(arm, baseline).any(-1))
    twin_KC = find_twins(outcomes.cells, is_planned_C & outcomes.judged_C)
    if not len(twin_KC):
        return None
    diff_CS = outcomes.difference(quantity, arm, baseline)
    pairs_C = np.isfinite(diff_CS).sum(-1)
    dull_C = outcomes.are_uninformative(arm, baseline, margins.accuracy)
    ends_K2 = find_ends(twin_KC)
    pairs_K = pairs_C[..., ends_K2].min(-1)
    is_dull_K = np.asarray(dull_C[..., ends_K2].any(-1))
    is_judged_K = (pairs_K >= FEWEST_PAIRS) & ~is_dull_K
    weight_C = is_judged_K @ twin_KC / np.maximum(is_judged_K.sum(-1, keepdims=True), 1)
    is_member_C = np.any(twin_KC != 0, axis=0)
    floor, look = outcomes.floor(quantity), outcomes.look_on(is_member_C, arm, baseline)
    return _weigh(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        is_interaction=True,
        margins=margins,
        alpha=alpha,
        planned=int(outcomes.are_planned(arm, baseline)[is_member_C].sum()),
        run=outcomes.have_run(arm, baseline)[..., is_member_C, :].sum((-2, -1)),
        pairs_K=pairs_K,
        is_uninformative_K=is_dull_K,
        pooled=estimate_contrast(
            diff_CS, weight_C, block_C=outcomes.block_C, floor=floor, look=look
        ),
        parts=estimate_contrast(
            diff_CS[..., ends_K2, :],
            np.array([1.0, -1.0]),
            block_C=np.arange(2),  # two architectures share no block seed
            floor=floor,
            look=look,
        ),
        risks=outcomes.risks(arm, baseline).over(is_member_C),
        scores_above=None,
    )


def _weigh(
    *,
    quantity: str,
    arm: str,
    baseline: str,
    is_member_C: NDArray[np.bool_],
    is_interaction: bool,
    margins: Margins,
    alpha: float,
    planned: int,
    run: NDArray[np.intp],
    pairs_K: NDArray[np.intp],
    is_uninformative_K: NDArray[np.bool_],
    pooled: Contrast,
    parts: Contrast,
    risks: RiskDifference,
    scores_above: NDArray[np.float64] | None,
) -> Comparison:
    """Apply the rules that a mean over cells and an interaction have in common."""
    margin, look, risk = margins.of(quantity), pooled.look, risks.pooled()
    is_short_K = (pairs_K < FEWEST_PAIRS) & ~is_uninformative_K
    is_judged_K = ~is_short_K & ~is_uninformative_K
    p_part_K = holm(np.where(is_judged_K, parts.p, np.nan))
    is_opposed_up, is_opposed_down = (
        np.asarray(((p_part_K <= alpha) & (sign * parts.estimate < 0)).any(-1)) for sign in (1, -1)
    )

    has_risk = quantity == "accuracy" and not is_interaction
    is_discordant = has_risk & (risk.arm_only + risk.baseline_only > 0)
    p_risk = look.repeated_two_sided(risk.p)
    lean = np.sign(risk.baseline_only - risk.arm_only)  # +1: the arm trains more often
    is_contrary = is_discordant & (p_risk <= alpha) & (pooled.p <= alpha)
    is_split = is_contrary & (lean * np.sign(pooled.estimate) < 0)

    p_flips: dict[int, NDArray[np.float64]] = {}
    if scores_above is not None:
        flat_P = scores_above.reshape(*scores_above.shape[:-2], -1)
        p_flips[1], p_flips[-1] = sign_flip_tails(flat_P, rng=np.random.default_rng(0))

    def point(sign: int, *, is_opposed: NDArray[np.bool_]) -> NDArray[np.float64]:
        is_there = sign * pooled.estimate > 0
        p = np.where(np.isnan(pooled.p), np.nan, np.where(is_there, pooled.p, 1.0))
        ways = [p]
        if p_flips:
            ways.append(look.repeated_two_sided(np.minimum(1.0, 2 * p_flips[sign])))
        elif has_risk:
            p_lean = np.where(sign * lean > 0, p_risk, 1.0)
            ways.append(np.where(is_discordant, p_lean, np.nan))
        p = any_of(*ways)
        return np.where(is_opposed | is_split, np.nan, p)  # withheld: no test says so

    has_judged = is_judged_K.any(-1)
    # A judged part whose differences do not vary at all shows nothing, neither way.
    p_each_K = np.where(np.isnan(parts.se), 1.0, parts.p_equivalent(margin))
    p_equal = np.where(has_judged, np.where(is_judged_K, p_each_K, -np.inf).max(-1), np.nan)
    p_average = pooled.p_equivalent(margin)
    p_beyond_K = np.where(is_judged_K, parts.p_beyond(margin), np.nan)
    p_some = np.fmin.reduce(p_beyond_K, axis=-1) * np.maximum(is_judged_K.sum(-1), 1)
    ways = [pooled.p_beyond(margin), np.minimum(1.0, p_some)]
    if has_risk:
        p_risk_equal = look.repeated(risk.p_equivalent(margins.risk))
        p_equal, p_average = (
            np.where(is_discordant, np.maximum(p, p_risk_equal), p) for p in (p_equal, p_average)
        )
        # One cell in which an arm never trains drowns among many. Too few pairs to refute by, they
        # are enough to withhold equality.
        p_excess = int(is_member_C.sum()) * risks.p_excess(margins.risk).min(-1)
        is_unsafe = is_discordant & (p_excess <= alpha) & (p_risk_equal <= alpha)
        p_equal, p_average = (np.where(is_unsafe, np.nan, p) for p in (p_equal, p_average))
        ways.append(np.where(is_discordant, look.repeated(risk.p_beyond(margins.risk)), np.nan))
    return Comparison(
        quantity=quantity,
        arm=arm,
        baseline=baseline,
        is_member_C=is_member_C,
        is_interaction=is_interaction,
        margin=margin,
        margin_risk=margins.risk,
        planned=planned,
        run=run,
        pairs_K=pairs_K,
        is_short_K=is_short_K,
        is_uninformative_K=is_uninformative_K,
        pooled=pooled,
        parts=parts,
        risk=risk,
        is_opposed_up=is_opposed_up,
        is_opposed_down=is_opposed_down,
        is_split=is_split,
        p_up=point(1, is_opposed=is_opposed_up),
        p_down=point(-1, is_opposed=is_opposed_down),
        p_equal=p_equal,
        p_average=p_average,
        p_beyond=any_of(*ways),
    )


def any_of(*p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-value of "none of them", by Bonferroni over those that could be tested; NaN for none."""
    tested = sum(np.isfinite(p).astype(int) for p in p_values)
    return np.minimum(1.0, tested * np.fmin.reduce(p_values))
