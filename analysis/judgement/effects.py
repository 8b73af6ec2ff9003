"""Estimate what a placement does, cell by cell and pooled, always from paired differences.

Legend of shape suffixes: P pairs, C cells, S seeds, N test images, K twins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.outcomes import AFTER_KINDS, WINDOWS, name_arm
from analysis.judgement.studies import Study
from analysis.statistics.contrasts import (
    cell_moments,
    estimate_contrast,
    find_ends,
    mean_weights,
    trend_weights,
    twin_weights,
)
from analysis.statistics.multiplicity import holm
from analysis.statistics.resampling import sign_flip_floor, sign_flip_test
from harness.study import architectures
from harness.study.architectures import ARCHITECTURES
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Cell, Outcomes
    from harness.study.records import AnalysisPlan

SKIP_FREE, RESIDUAL = (
    tuple(name for name, architecture in ARCHITECTURES.items() if architecture.kind == kind)
    for kind in (architectures.SKIP_FREE, architectures.RESIDUAL)
)
"""The networks that C1 and C2 speak of, and those of C3 and C4."""
TWINS = ("plain", "resnet")
"""Equal but for the addition, so that their difference is what a skip does (C5)."""
AFTER_AS_BEFORE = name_arm("after", "before")
BEFORE_AS_AFTER = name_arm("before", "after")
GRAFTS = (
    ("after", AFTER_AS_BEFORE),
    (BEFORE_AS_AFTER, "before"),
    (AFTER_AS_BEFORE, "before"),
    ("after", BEFORE_AS_AFTER),
)
"""What moves with borrowed step sizes, in both directions, and what stays (C2)."""

_FEWEST_FOR_OUTLIER = 5
_FAR_OUT = 3.5

UNITS = {"accuracy": "percentage points", "gradient": "log10 of the ratio"}
BESIDE = ("exploratory: head", "exploratory: length")
"""Families of the cells that are shown beside the claims; `Cell.beside` says why."""
GROUPS = {"skip-free CNNs": SKIP_FREE, "residual networks": RESIDUAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Study):
    """The estimate of one contrast: arm minus baseline, paired by seed.

    Units:
        `unit` is that of estimate, interval bounds, sd, se, margin and differences: percentage
        points of test accuracy, or log10 of the ratio of gradient flow, per doubling of depth
        where `kind` is "trend". A number that does not exist is NaN.
    """

    quantity: str
    """"accuracy" or "gradient"."""
    window: str
    """When flow was measured: a key of `WINDOWS`; empty of accuracy."""
    unit: str
    """"percentage points", "log10 of the ratio", or either "per doubling"."""
    kind: str
    """"cell", "pooled" (mean over cells), "interaction" (plain minus residual), "trend"."""
    label: str
    """What was compared, to print: "plain-8", "skip-free CNNs"."""
    family: str
    """The claim whose table it belongs to ("C1"), or "exploratory: ..."; Holm runs within it."""
    architecture: str | None
    """None where several are pooled."""
    depth: int | None
    """None where several are pooled."""
    variant: str
    """Further settings that tell this cell from its neighbours ("batch_size=16"); else empty."""
    arm: str
    baseline: str
    cells: int
    """Cells with at least two pairs, over which the contrast runs."""
    pairs: int
    """Pairs where both trials trained, all cells together."""
    pairs_planned: int
    """Pairs of the grid, all cells together."""
    seeds: tuple[int, ...]
    """Seeds of `differences`; empty where pooled."""
    differences: tuple[float, ...]
    """Arm minus baseline per seed; empty where pooled."""
    estimate: float
    low: float
    """95 % interval."""
    high: float
    low90: float
    """90 % interval: TOST passes at 5 % if it lies within the margin."""
    high90: float
    sd: float
    """Standard deviation of the paired differences (root mean square over cells where pooled)."""
    se: float
    """Standard error of the estimate over seeds."""
    t: float
    df: float
    p: float
    """Two-sided, "no difference"."""
    p_sign_flip: float
    """Exact sign-flip p, two-sided; NaN where pooled."""
    p_sign_flip_floor: float
    """Smallest value p_sign_flip can take with so many pairs."""
    margin: float
    """Smallest difference that matters, from the grid."""
    p_tost: float
    """Equivalence: "the difference is at least the margin" is rejected."""
    p_minimal: float
    """Minimal effect: "the difference is at most the margin" is rejected."""
    p_holm: float
    """`p` after Holm within `family`; NaN where it stands in no family."""
    correlation: float
    """Between the arms over the seeds of a cell: what pairing gains (mean over cells)."""
    test_se: float
    """Standard error from the finite test set: the part more seeds cannot remove."""
    untrained_arm: int
    """Pairs in which only the arm diverged or learned nothing."""
    untrained_baseline: int
    untrained_both: int
    risk: float
    """How much more often the arm does not train, over all pairs that ran."""
    risk_low: float
    """95 % score interval."""
    risk_high: float
    p_mcnemar: float
    """Exact McNemar on those pairs; 1 where there are none."""
    outlier: int | None
    """Seed of a difference far from the others of its cell; None where there is none."""


def margin_of(quantity: str, plan: AnalysisPlan) -> float:
    """Smallest difference that matters, in the unit of the quantity."""
    return plan.margin_accuracy if quantity == "accuracy" else float(np.log10(plan.margin_gradient))


def find_effects(
    quantity: str,
    studies: Sequence[Outcomes],
    plan: AnalysisPlan,
    *,
    rng: np.random.Generator | None = None,
) -> tuple[Effect, ...]:
    """All effects on one quantity, Holm-adjusted within each family of cells.

    Every placement is compared with `before`, `after` and `before` with `none`, and a placement
    with itself where it borrows another's flow. `rng` serves the sign-flip test where the pairs
    are too many to be exact.
    """
    rng = rng or np.random.default_rng(0)
    effects = [
        effect
        for outcomes in studies
        for arm, baseline in _comparisons(outcomes.placements)
        for window in (WINDOWS if quantity == "gradient" else ("",))
        for effect in _effects_of(
            _Comparison(
                quantity=quantity,
                window=window,
                outcomes=outcomes,
                arm=arm,
                baseline=baseline,
                margin=margin_of(quantity, plan),
                margin_accuracy=plan.margin_accuracy,
                rng=rng,
            )
        )
    ]
    families: dict[tuple[object, ...], list[int]] = {}
    for number, effect in enumerate(effects):
        if effect.kind == "cell":
            family = (*effect.identity.values(), effect.family, effect.window)
            families.setdefault(family, []).append(number)
    for numbers in families.values():
        adjusted = holm([effects[number].p for number in numbers])
        for number, p in zip(numbers, adjusted, strict=True):
            effects[number] = replace(effects[number], p_holm=float(p))
    return tuple(effects)


def _comparisons(placements: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(arm, baseline) for all that is compared, the claims' own comparison first.

    A grid without `before` has its first placement for a baseline.
    """
    normed = sorted((p for p in placements if p != "none"), key=lambda p: p != "before")
    baseline, *others = normed or [""]
    arms = sorted(others, key=lambda p: p != "after")
    yield from ((arm, baseline) for arm in arms)
    yield from (graft for graft in GRAFTS if set(graft) <= set(placements) and graft[1] != baseline)
    if "none" in placements:
        yield from ((arm, "none") for arm in (*arms[:1], baseline) if arm)


def _family(quantity: str, arm: str, baseline: str, architecture: str) -> str:
    """The claim that an effect belongs to, or the exploratory table."""
    comparison = (quantity, arm, baseline)
    if architecture in SKIP_FREE:
        if comparison in {("accuracy", "after", "before"), ("accuracy", "after", "none")}:
            return "C1"
        if comparison == ("gradient", "after", "before"):
            return "C2"
        if quantity == "accuracy" and (arm, baseline) in GRAFTS:
            return "C2"
    if architecture in RESIDUAL and arm in AFTER_KINDS and baseline == "before":
        return "C3" if quantity == "accuracy" else "C4"
    return f"exploratory: {arm} - {baseline}"


def _effects_of(comparison: _Comparison) -> Iterator[Effect]:
    """One comparison: cell by cell, pooled, and for the claims' own also interaction and trend."""
    quantity, outcomes = comparison.quantity, comparison.outcomes
    arm, baseline = comparison.arm, comparison.baseline
    is_planned_C = comparison.planned_CS.any(-1)
    for is_member_C, cell in zip(
        np.eye(len(outcomes.cells), dtype=bool), outcomes.cells, strict=True
    ):
        if is_planned_C @ is_member_C:
            yield comparison.describe(
                is_member_C.astype(float),
                kind="cell",
                label=cell.label,
                family=f"exploratory: {cell.beside}"
                if cell.beside
                else _family(quantity, arm, baseline, cell.architecture),
                is_member_C=is_member_C,
                cell=cell,
            )

    architectures = tuple(dict.fromkeys(cell.architecture for cell in outcomes.cells))
    seen = set()
    for label, pool in (*GROUPS.items(), *((name, (name,)) for name in architectures)):
        is_member_C = outcomes.members(pool) & is_planned_C
        if is_member_C.any() and is_member_C.tobytes() not in seen:
            seen.add(is_member_C.tobytes())  # a group of one architecture is not told twice
            yield comparison.describe(
                mean_weights(comparison.judged_CS, is_member_C),
                kind="pooled",
                label=label,
                family=_family(quantity, arm, baseline, pool[0]),
                is_member_C=is_member_C,
                architecture=None if label in GROUPS else label,
            )

    if (arm, baseline) != ("after", "before"):
        return
    twin_KC = find_twins(outcomes.cells, is_planned_C & outcomes.judged_C)
    if len(twin_KC):
        yield comparison.describe(
            twin_weights(comparison.judged_CS, twin_KC),
            kind="interaction",
            label=f"{TWINS[0]} minus {TWINS[1]}",
            family="C5" if quantity == "accuracy" else "exploratory: interaction",
            is_member_C=np.any(twin_KC != 0, axis=0),
            twin_KC=twin_KC,
        )
    depth_C = np.array([cell.depth for cell in outcomes.cells], float)
    for architecture in architectures:
        is_member_C = outcomes.members([architecture]) & is_planned_C
        weight_C = trend_weights(comparison.judged_CS, is_member_C, depth_C)
        if weight_C.any():
            yield comparison.describe(
                weight_C,
                kind="trend",
                label=f"{architecture}, per doubling of depth",
                family="exploratory: trend",
                is_member_C=is_member_C,
                architecture=architecture,
            )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """One arm against one baseline: turns weights over cells into an `Effect`."""

    quantity: str
    window: str
    outcomes: Outcomes
    arm: str
    baseline: str
    margin: float
    margin_accuracy: float
    rng: np.random.Generator

    @cached_property
    def diff_CS(self) -> NDArray[np.float64]:  # noqa: N802 (a shape suffix)
        return self.outcomes.difference(self.window or self.quantity, self.arm, self.baseline)

    @cached_property
    def judged_CS(self) -> NDArray[np.float64]:  # noqa: N802 (a shape suffix)
        """The differences in the cells that decide; in all cells where none of them does."""
        dull_C = self.outcomes.are_uninformative(self.arm, self.baseline, self.margin_accuracy)
        is_judged_C = (np.isfinite(self.diff_CS).sum(-1) >= FEWEST_PAIRS) & ~dull_C
        return np.where(is_judged_C[:, None] | ~is_judged_C.any(), self.diff_CS, np.nan)

    @cached_property
    def planned_CS(self) -> NDArray[np.bool_]:  # noqa: N802 (a shape suffix)
        return self.outcomes.are_planned(self.arm, self.baseline)

    def describe(
        self,
        weight_C: NDArray[np.float64],
        *,
        kind: str,
        label: str,
        family: str,
        is_member_C: NDArray[np.bool_],
        cell: Cell | None = None,
        architecture: str | None = None,
        twin_KC: NDArray[np.float64] | None = None,
    ) -> Effect:
        outcomes = self.outcomes
        look = outcomes.look_on(is_member_C, self.arm, self.baseline)
        contrast = estimate_contrast(
            self.diff_CS,
            weight_C,
            block_C=outcomes.block_C,
            floor=outcomes.floor(self.quantity),
            look=look,
        )
        is_paired_CS = np.isfinite(self.diff_CS) & is_member_C[:, None]
        diff_P = self.diff_CS[is_paired_CS]
        pairs_C, _, deviation_CS = cell_moments(
            np.where(is_member_C[:, None], self.diff_CS, np.nan)
        )
        pairs, planned = len(diff_P), int(self.planned_CS[is_member_C].sum())
        if twin_KC is not None:  # the pairs of a twin are pairs of pairs
            ends_K2 = find_ends(twin_KC)
            pairs = int(pairs_C[ends_K2].min(-1).sum())
            planned = int(self.planned_CS.sum(-1)[ends_K2].min(-1).sum())
        spare = int((pairs_C - 1).clip(min=0).sum())
        margin = float("nan") if kind == "trend" else self.margin
        risk = outcomes.risk(self.arm, self.baseline, is_member_C)
        both = (
            risk.pairs
            - (
                np.isfinite(outcomes.difference("accuracy", self.arm, self.baseline))
                & is_member_C[:, None]
            ).sum()
        )
        risk_low, risk_high = risk.interval(1 - 2 * look.nominal(0.025))
        p_flip = floor = float("nan")
        if cell is not None and len(diff_P) >= 2:
            p_flip, floor = sign_flip_test(diff_P, rng=self.rng), sign_flip_floor(diff_P)
        estimate = float(contrast.estimate)
        wide, narrow = float(contrast.half_width(0.95)), float(contrast.half_width(0.90))
        return Effect(
            quantity=self.quantity,
            window=self.window,
            unit=UNITS[self.quantity] + (" per doubling" if kind == "trend" else ""),
            kind=kind,
            label=label,
            family=family,
            **outcomes.identity,
            architecture=cell.architecture if cell else architecture,
            depth=cell.depth if cell else None,
            variant=cell.variant if cell else "",
            arm=self.arm,
            baseline=self.baseline,
            cells=int((pairs_C >= 2).sum()),
            pairs=pairs,
            pairs_planned=planned,
            seeds=tuple(np.array(outcomes.seeds)[is_paired_CS.any(0)].tolist()) if cell else (),
            differences=tuple(diff_P.tolist()) if cell else (),
            estimate=estimate,
            low=estimate - wide,
            high=estimate + wide,
            low90=estimate - narrow,
            high90=estimate + narrow,
            sd=float(np.sqrt((deviation_CS**2).sum() / spare)) if spare else float("nan"),
            se=float(contrast.se),
            t=float(contrast.t),
            df=float(contrast.df),
            p=float(contrast.p),
            p_sign_flip=float(look.repeated_two_sided(p_flip)),
            p_sign_flip_floor=float(look.repeated_two_sided(floor)),
            margin=margin,
            p_tost=float(contrast.p_equivalent(margin)),
            p_minimal=float(contrast.p_beyond(margin)),
            p_holm=float("nan"),
            correlation=self._correlate_arms(is_member_C),
            test_se=self._estimate_test_se(weight_C),
            untrained_arm=int(risk.arm_only),
            untrained_baseline=int(risk.baseline_only),
            untrained_both=int(both - risk.arm_only - risk.baseline_only),
            risk=float(risk.estimate),
            risk_low=float(risk_low) if risk.pairs else float("nan"),
            risk_high=float(risk_high) if risk.pairs else float("nan"),
            p_mcnemar=float(look.repeated_two_sided(risk.p)),
            outlier=_find_outlier(diff_P, np.array(outcomes.seeds)[is_paired_CS.any(0)])
            if cell
            else None,
        )

    def _correlate_arms(self, is_member_C: NDArray[np.bool_]) -> float:
        """Pearson's correlation of the two arms over the seeds of a cell, averaged over cells."""
        found = []
        for c in np.flatnonzero(is_member_C):
            is_paired_S = np.isfinite(self.diff_CS[c])
            arm_S, baseline_S = (
                self.outcomes.values_of(self.window or self.quantity, placement)[c, is_paired_S]
                for placement in (self.arm, self.baseline)
            )
            if is_paired_S.sum() >= 3 and np.ptp(arm_S) > 0 and np.ptp(baseline_S) > 0:
                found.append(np.corrcoef(arm_S, baseline_S)[0, 1])
        return float(np.mean(found)) if found else float("nan")

    def _estimate_test_se(self, weight_C: NDArray[np.float64]) -> float:
        """Standard error from the finite test set: what no number of seeds removes.

        With d_is the difference at test image i and seed s, in {-1, 0, 1}, the images are a
        random factor: d_is = effect + image_i + seed_s + rest_is. Their mean over seeds spreads
        over images by var(image) + var(rest) / seeds; the second part is taken off again.

        Units:
            Percentage points.
        Source:
            The two-way random-effects analysis of variance: Searle, Casella & McCulloch 1992,
            doi:10.1002/9780470316856, ch. 4.
        """
        if self.quantity != "accuracy" or self.outcomes.correct_PCSN is None:
            return float("nan")
        mean_CN, rest_C = self._image_differences
        if np.isnan(rest_C[weight_C != 0]).any() or not weight_C.any():
            return float("nan")
        spread = np.var(weight_C @ mean_CN, ddof=1) - weight_C**2 @ np.nan_to_num(rest_C)
        # Estimated below zero it is not known: so little is no evidence that there is none.
        return float(100 * np.sqrt(spread / mean_CN.shape[-1])) if spread > 0 else float("nan")

    @cached_property
    def _image_differences(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean difference at each image, (C, N), and the variance of it that is not the image's."""
        correct_PCSN = self.outcomes.correct_PCSN
        assert correct_PCSN is not None
        arm, baseline = map(self.outcomes.placements.index, (self.arm, self.baseline))
        mean_CN = np.zeros((len(self.outcomes.cells), correct_PCSN.shape[-1]))
        rest_C = np.full(len(self.outcomes.cells), np.nan)
        for c, is_paired_S in enumerate(np.isfinite(self.diff_CS)):
            seeds = int(is_paired_S.sum())
            if seeds < 2:
                continue
            d_SN = correct_PCSN[arm, c, is_paired_S] - correct_PCSN[baseline, c, is_paired_S]
            mean_CN[c] = d_SN.mean(0)
            rest_SN = d_SN - mean_CN[c] - d_SN.mean(1, keepdims=True) + d_SN.mean()
            rest = (rest_SN**2).sum() / ((seeds - 1) * (d_SN.shape[-1] - 1))
            rest_C[c] = rest / seeds
        return mean_CN, rest_C


def find_twins(cells: Sequence[Cell], is_member_C: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pairs of a `plain` and a `resnet` cell alike in all else, as rows of +1 and -1: (K, C)."""
    skip_free, residual = TWINS
    place = {
        (cell.architecture, cell.depth, cell.settings): c
        for c, cell in enumerate(cells)
        if is_member_C[c]
    }
    rows = []
    for (architecture, depth, settings), first in place.items():
        second = place.get((residual, depth, settings))
        if architecture == skip_free and second is not None:
            rows.append(np.zeros(len(cells)))
            rows[-1][[first, second]] = 1.0, -1.0
    return np.array(rows).reshape(len(rows), len(cells))


def _find_outlier(diff_P: NDArray[np.float64], seed_P: NDArray[np.integer]) -> int | None:
    """The seed whose difference lies farthest out, if it lies farther than chance would put it.

    Source:
        Iglewicz & Hoaglin 1993, ISBN 0873892607: 3.5 on the scale of the median deviation.
    """
    if len(diff_P) < _FEWEST_FOR_OUTLIER:
        return None
    distance_P = np.abs(diff_P - np.median(diff_P))
    scale = np.median(distance_P)
    if scale <= 0 or distance_P.max() <= _FAR_OUT * scale / 0.6745:
        return None
    return int(seed_P[distance_P.argmax()])
