"""Find out how often the verdicts are wrong, on simulated grids whose truth is known.

Every scenario is a truth; many grids of the same design are drawn from it and judged by the very
functions that judge real results. What comes out are error rates, coverage and power, each with
its Monte-Carlo error and, where something is promised, the bar it must meet.

Legend of shape suffixes: R replicates of the grid, P placements, C cells, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import SKIP_FREE, margin_of
from analysis.judgement.evidence import CLAIMS, Call, Evidence, call, weigh
from analysis.judgement.outcomes import Cell, Outcomes
from analysis.statistics.contrasts import cell_moments
from analysis.statistics.power import pocock_level
from harness.study.records import AnalysisPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

PLACEMENTS = ("before", "after", "none")
_BEFORE, _AFTER, _NONE = range(len(PLACEMENTS))
REFERENCE_SEEDS = 5
REFERENCE_SD = 0.5  # percentage points, of a paired difference
_FLOW_GAIN = 0.3  # dex by which `after` raises gradient flow where a scenario says it does


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A grid to simulate: what is planned, and how widely outcomes spread.

    Shapes:
        sd_C, flow_sd_C: (C,), standard deviation of a paired difference in each cell; block_C
        (C,), equal where cells share their block seeds.
    Units:
        sd_C in percentage points, flow_sd_C in dex.
    """

    cells: tuple[Cell, ...]
    seeds: int
    sd_C: NDArray[np.float64]
    flow_sd_C: NDArray[np.float64]
    block_C: NDArray[np.intp]
    plan: AnalysisPlan
    name: str = "reference design"
    promises_power: bool = False
    """Of a design as large and as quiet as the reference; elsewhere power is what it gives."""


def make_reference_design(
    *,
    seeds: int = REFERENCE_SEEDS,
    depths: Sequence[int] = (8, 14, 20, 26),
    sd: float = REFERENCE_SD,
    flow_sd: float = 0.06,
) -> Design:
    """Two families at a few depths, all cells equally noisy."""
    cells = tuple(
        Cell(architecture=architecture, depth=depth)
        for architecture in ("plain", "resnet")
        for depth in depths
    )
    return Design(
        cells=cells,
        seeds=seeds,
        sd_C=np.full(len(cells), sd),
        flow_sd_C=np.full(len(cells), flow_sd),
        block_C=np.arange(len(cells)),
        plan=AnalysisPlan(grid="reference"),
        promises_power=seeds >= REFERENCE_SEEDS and sd <= REFERENCE_SD,
    )


def find_design(outcomes: Outcomes, plan: AnalysisPlan) -> Design | None:
    """The design of a real study, with the spreads it was seen to have.

    A cell in which no spread could be estimated takes the median of the others; None if there is
    none at all, or if `after` and `before` are not both in the study.
    """
    is_planned_C = np.asarray(outcomes.are_planned("after", "before").any(-1))
    if not is_planned_C.any():
        return None
    spreads = []
    for quantity in ("accuracy", "gradient"):
        diff_CS = outcomes.difference(quantity, "after", "before")[is_planned_C]
        pairs_C, _, deviation_CS = cell_moments(diff_CS)
        variance_C = (deviation_CS**2).sum(-1) / np.maximum(pairs_C - 1, 1)
        sd_C = np.sqrt(np.maximum(variance_C, outcomes.floor(quantity)))
        if not (pairs_C >= 2).any():
            return None
        spreads.append(np.where(pairs_C >= 2, sd_C, np.median(sd_C[pairs_C >= 2])))
    return Design(
        cells=tuple(outcomes.cells[c] for c in np.flatnonzero(is_planned_C)),
        seeds=len(outcomes.seeds),
        sd_C=spreads[0],
        flow_sd_C=spreads[1],
        block_C=outcomes.block_C[is_planned_C],
        plan=plan,
        name=f"{outcomes.dataset} {outcomes.recipe}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true in a scenario, beyond the design.

    Shapes:
        effect_C, flow_C: (C,), of `after` over `before`.
    Units:
        effect_C in percentage points, flow_C in dex.
    """

    effect_C: NDArray[np.float64]
    flow_C: NDArray[np.float64]
    none_effect: float = 0.0
    """Of `none` over `before`, everywhere."""
    path: float = 0.0
    """Percentage points of accuracy that one dex of flow *causes*, around the cell's mean."""
    confounding: float = 0.0
    """Standard deviations of both differences that a hidden cause moves together."""
    divergence: float = 0.0
    """Probability that `after` diverges; the others never do."""
    missing: float = 0.0
    """Probability that a trial is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something happened over the simulated grids.

    Units:
        Shares of replicates; `low` and `high` bound what is promised, NaN where nothing is.
    """

    scenario: str
    measure: str
    share: float
    low: float
    high: float
    replicates: int

    @property
    def error(self) -> float:
        """Standard error of `share`, from the number of replicates."""
        return _monte_carlo_error(self.share, self.replicates)

    @property
    def is_kept(self) -> bool:
        """Does the share meet its bar, three Monte-Carlo standard errors of the bar allowed?"""
        is_too_low = self.share < self.low - 3 * _monte_carlo_error(self.low, self.replicates)
        is_too_high = self.share > self.high + 3 * _monte_carlo_error(self.high, self.replicates)
        return not (is_too_low or is_too_high)

    @property
    def promise(self) -> str:
        """The bar in words; empty where nothing is promised."""
        low, high = (f"{100 * bar:g} %" for bar in (self.low, self.high))
        if np.isfinite(self.low) and np.isfinite(self.high):
            return f"{low} to {high}"
        if np.isfinite(self.low):
            return f"at least {low}"
        return f"at most {high}" if np.isfinite(self.high) else ""


def simulate(
    design: Design, truth: Truth, *, replicates: int, rng: np.random.Generator
) -> Outcomes:
    """Draw `replicates` grids: every placement of a block shares its luck, trials add their own."""
    shape = (replicates, len(PLACEMENTS), len(design.cells), design.seeds)
    block_shape = (replicates, 1, *shape[2:])
    sd_C1, flow_sd_C1 = design.sd_C[:, None], design.flow_sd_C[:, None]
    # A difference of two trials has sqrt(2) times the spread of one.
    hidden_PCS = rng.normal(size=shape) * truth.confounding
    flow_noise_PCS = (rng.normal(size=shape) + hidden_PCS) * flow_sd_C1 / np.sqrt(2)
    flow_PCS = flow_noise_PCS + rng.normal(size=block_shape) * flow_sd_C1
    flow_PCS[:, _AFTER] += truth.flow_C[:, None]
    noise_PCS = (rng.normal(size=shape) + hidden_PCS) * sd_C1 / np.sqrt(2)
    accuracy_PCS = 90 + rng.normal(size=block_shape) * sd_C1 + noise_PCS
    accuracy_PCS += truth.path * flow_noise_PCS
    accuracy_PCS[:, _AFTER] += truth.effect_C[:, None]
    accuracy_PCS[:, _NONE] += truth.none_effect

    has_run_PCS = rng.random(shape) >= truth.missing
    has_diverged_PCS = np.zeros(shape, bool)
    has_diverged_PCS[:, _AFTER] = rng.random(shape)[:, _AFTER] < truth.divergence
    has_diverged_PCS &= has_run_PCS
    is_trained_PCS = has_run_PCS & ~has_diverged_PCS
    return Outcomes(
        dataset="simulated",
        recipe="common",
        cells=design.cells,
        placements=PLACEMENTS,
        seeds=tuple(range(design.seeds)),
        block_C=design.block_C,
        accuracy_PCS=np.where(is_trained_PCS, accuracy_PCS, np.nan),
        flow_PCS=np.where(is_trained_PCS, flow_PCS, np.nan),
        ran_PCS=has_run_PCS,
        diverged_PCS=has_diverged_PCS,
        planned_PCS=np.ones(shape[1:], bool),
        wall_time_PCS=np.ones(shape[1:]),
    )


def calibrate(
    design: Design, *, replicates: int = 2_000, rng: np.random.Generator
) -> tuple[Rate, ...]:
    """Judge simulated grids of this design, scenario by scenario."""
    alpha = pocock_level(design.plan.alpha, design.plan.looks)
    rates = []
    for scenario in _find_scenarios(design):
        outcomes = simulate(
            replace(
                design,
                sd_C=design.sd_C * scenario.spread_C,
                flow_sd_C=design.flow_sd_C * scenario.spread_C,
            ),
            scenario.truth,
            replicates=replicates,
            rng=rng,
        )
        evidence = weigh(
            outcomes,
            margin_accuracy=margin_of("accuracy", design.plan),
            margin_flow=margin_of("gradient", design.plan),
            alpha=alpha,
        )
        called = call(
            evidence.affirms_M,
            evidence.contradicts_M,
            evidence.equates_M,
            words=evidence.words,
            alpha=alpha,
        )
        judged = _Judged(truth=scenario.truth, evidence=evidence, call=called)
        for measure in scenario.measures:
            happened_R = measure.count(judged)
            happened_R = happened_R[np.isfinite(happened_R)]
            if len(happened_R):
                rates.append(
                    Rate(
                        scenario=scenario.name,
                        measure=measure.name,
                        share=float(happened_R.mean()),
                        low=measure.low,
                        high=measure.high,
                        replicates=len(happened_R),
                    )
                )
    return tuple(rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """The simulated grids of one scenario, judged."""

    truth: Truth
    evidence: Evidence
    call: Call

    def is_called(self, claim: str, *words: str) -> NDArray[np.float64]:
        if not self.evidence.comparisons[claim]:
            return np.array([])
        return np.isin(self.call.word_M[..., CLAIMS.index(claim)], words).astype(float)

    def covers(self, claim: str) -> NDArray[np.float64]:
        """Does the pooled 95 % interval hold the truth? NaN where there is no interval."""
        if not self.evidence.comparisons[claim]:
            return np.array([])
        one = self.evidence.comparisons[claim][0]
        truth = self.truth.effect_C[one.is_member_C].mean()
        covers_R = np.abs(one.pooled.estimate - truth) <= one.pooled.half_width(0.95)
        return np.where(np.isfinite(one.pooled.se), covers_R, np.nan)

    def finds_any_difference(self) -> NDArray[np.float64]:
        found = [self.is_called(claim, "supported", "contradicted") for claim in CLAIMS]
        tested = [found_R for found_R in found if len(found_R)]
        return np.max(tested, axis=0) if tested else np.array([])

    def equates_despite_divergence(self) -> NDArray[np.float64]:
        equated_R = self.is_called("C3", "equivalent")
        if not len(equated_R):
            return equated_R
        one = self.evidence.comparisons["C3"][0]
        return np.where(one.arm_only + one.baseline_only > 0, equated_R, np.nan)

    def is_consistent(self) -> NDArray[np.float64]:
        if not self.evidence.comparisons["C2"]:
            return np.array([])
        return self.call.is_consistent_M.any(-1).astype(float)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """What to count, as 0 or 1 per replicate (NaN: does not apply), and what is promised of it."""

    name: str
    count: Callable[[_Judged], NDArray[np.float64]]
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenario:
    """A truth, factors on the spread of each cell, and what to count."""

    name: str
    truth: Truth
    spread_C: NDArray[np.float64]
    measures: Sequence[_Measure]


def _calls(claim: str, word: str, *, low: float = np.nan, high: float = np.nan) -> _Measure:
    return _Measure(
        name=f"{claim} {word}",
        count=lambda judged: judged.is_called(claim, word),
        low=low,
        high=high,
    )


def _covers(claim: str, design: Design) -> _Measure:
    return _Measure(
        name=f"95 % interval of {claim} holds the truth",
        count=lambda judged: judged.covers(claim),
        low=0.93,
        # With fewer pairs Satterthwaite's intervals are somewhat too long: no promise, and no harm.
        high=0.97 if design.seeds >= 5 else float("nan"),
    )


_ANY_DIFFERENCE = _Measure(
    name="any claim finds a difference where none is",
    count=_Judged.finds_any_difference,
    high=0.05,
)


_NO_PATH = _Measure(
    name="C2 consistent although accuracy does not follow flow",
    count=_Judged.is_consistent,
    high=0.05,
)


def _find_scenarios(design: Design) -> Iterator[_Scenario]:
    count = len(design.cells)
    margin, margin_flow = (margin_of(name, design.plan) for name in ("accuracy", "gradient"))
    gain = 2 * margin
    power = 0.99 if design.promises_power else float("nan")
    zero_C, one_C = np.zeros(count), np.ones(count)
    is_skip_free_C = np.array([cell.architecture in SKIP_FREE for cell in design.cells], float)
    null = Truth(effect_C=zero_C, flow_C=zero_C)
    paper = Truth(
        effect_C=gain * is_skip_free_C, flow_C=_FLOW_GAIN * is_skip_free_C, none_effect=-2 * gain
    )
    flip_C = np.array([(-1.0) ** rank for rank in _rank_depths(design.cells)])
    unone_C = np.where(np.arange(count) % 2, 2.0, 0.4)

    yield _Scenario(
        name="no effect anywhere",
        truth=null,
        spread_C=one_C,
        measures=[
            _ANY_DIFFERENCE,
            _covers("C1", design),
            _covers("C3", design),
            _calls("C3", "equivalent"),
            _calls("C4", "equivalent"),
        ],
    )
    yield _Scenario(
        name="as the paper says",
        truth=paper,
        spread_C=one_C,
        measures=[
            _calls("C1", "supported", low=power),
            _calls("C5", "supported", low=power),
            _calls("C1", "contradicted", high=0.05),
            _calls("C3", "contradicted", high=0.05),
            _NO_PATH,
            _covers("C1", design),
            _covers("C3", design),
        ],
    )
    yield _Scenario(
        name="as the paper says, cells of unequal spread",
        truth=paper,
        spread_C=unone_C,
        measures=[
            _calls("C1", "contradicted", high=0.05),
            _calls("C3", "contradicted", high=0.05),
            _NO_PATH,
        ],
    )
    yield _Scenario(
        name="the opposite",
        truth=replace(paper, effect_C=-paper.effect_C, flow_C=-paper.flow_C),
        spread_C=one_C,
        measures=[
            _calls("C1", "supported", high=0.05),
            _calls("C5", "supported", high=0.05),
            _calls("C1", "contradicted", low=power),
        ],
    )
    yield _Scenario(
        name="an effect of exactly the margin",
        truth=Truth(effect_C=margin * one_C, flow_C=margin_flow * one_C),
        spread_C=one_C,
        measures=[
            _calls("C1", "equivalent", high=0.05),
            _calls("C3", "equivalent", high=0.05),
            _calls("C4", "equivalent", high=0.05),
            _calls("C3", "contradicted", high=0.05),
        ],
    )
    yield _Scenario(
        name="exactly the margin, cells of unequal spread",
        truth=Truth(effect_C=margin * one_C, flow_C=margin_flow * one_C),
        spread_C=unone_C,
        measures=[_calls("C3", "equivalent", high=0.05), _calls("C3", "contradicted", high=0.05)],
    )
    yield _Scenario(
        name="a sign that flips with depth",
        truth=Truth(effect_C=gain * flip_C, flow_C=2 * margin_flow * flip_C),
        spread_C=one_C,
        measures=[_calls(claim, "equivalent", high=0.03) for claim in ("C1", "C3", "C4")],
    )
    yield _Scenario(
        name="a flip no larger than the margin",
        truth=Truth(effect_C=margin * flip_C, flow_C=margin_flow * flip_C),
        spread_C=one_C,
        # Cells at the margin, not beyond it: the error of the equivalence test itself.
        measures=[_calls(claim, "equivalent", high=0.05) for claim in ("C1", "C3", "C4")],
    )
    yield _Scenario(
        name="'after' diverges in a fifth of the trials",
        truth=replace(null, divergence=0.2),
        spread_C=one_C,
        measures=[
            _Measure(
                name="C3 equivalent while divergences are discordant",
                count=_Judged.equates_despite_divergence,
                high=0.0,
            ),
            _calls("C1", "supported", high=0.05),
        ],
    )
    yield _Scenario(
        name="flow carries accuracy",
        truth=replace(paper, path=5.0),
        spread_C=one_C,
        measures=[
            _Measure(name="C2 consistent", count=_Judged.is_consistent),
            _calls("C2", "supported", high=0.0),
        ],
    )
    yield _Scenario(
        name="a hidden cause moves flow and accuracy",
        truth=replace(paper, confounding=1.0),
        spread_C=one_C,
        measures=[
            _Measure(name="C2 consistent", count=_Judged.is_consistent),
            _calls("C2", "supported", high=0.0),
        ],
    )
    yield _Scenario(
        name="a fifth of the trials is missing",
        truth=replace(null, missing=0.2),
        spread_C=one_C,
        measures=[_ANY_DIFFERENCE, _covers("C1", design), _covers("C3", design)],
    )
    yield _Scenario(
        name="cells of unequal spread",
        truth=null,
        spread_C=unone_C,
        measures=[_ANY_DIFFERENCE, _covers("C1", design), _covers("C3", design)],
    )


def _rank_depths(cells: Sequence[Cell]) -> list[int]:
    """Place of each cell's depth among those of its architecture, from 0."""
    return [
        sum(other.architecture == cell.architecture and other.depth < cell.depth for other in cells)
        for cell in cells
    ]


def _monte_carlo_error(share: float, replicates: int) -> float:
    return float(np.sqrt(share * (1 - share) / replicates))
