"""Find out how often the verdicts are wrong, on simulated grids whose truth is known.

Every scenario is a truth; many grids of the same design are drawn from it and judged by the very
functions that judge real results. What comes out are error rates, coverage and power, each with
its Monte-Carlo error and, where something is promised, the bar it must meet.

Legend of shape suffixes: R replicates of the grid, P placements, C cells, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.comparisons import Margins
from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER, RESIDUAL, SKIP_FREE
from analysis.judgement.evidence import Call, Evidence, call, weigh
from analysis.judgement.outcomes import WINDOWS, Cell, Outcomes
from analysis.judgement.studies import frame_studies, name_ingredients
from analysis.statistics.contrasts import cell_moments
from analysis.statistics.looks import ONLY_LOOK, Look
from harness.study.records import CLAIMS, FEWEST_PAIRS, AnalysisPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

PLACEMENTS = ("before", "after", "none", AFTER_AS_BEFORE, BEFORE_AS_AFTER)
_BEFORE, _AFTER, _NONE, _AFTER_AS_BEFORE, _BEFORE_AS_AFTER = range(len(PLACEMENTS))
REFERENCE_SEEDS = 5
REFERENCE_SD = 0.25  # percentage points, of a paired difference
_FLOW_GAIN = 0.3  # log10 by which `after` raises gradient flow where a scenario says it does
_CHANCE = 10.0
_TYPICAL = 90.0  # percent: the accuracy of `before`


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """A grid to simulate: what is planned, and how widely outcomes spread.

    Shapes:
        sd_C, flow_sd_C: (C,), standard deviation of a paired difference in each cell; block_C
        (C,), equal where cells share their block seeds.
    Units:
        sd_C in percentage points, flow_sd_C in log10.
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
    flow_sd: float = 0.03,
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
    for quantity in ("accuracy", "whole"):
        diff_CS = outcomes.difference(quantity, "after", "before")[is_planned_C]
        pairs_C, _, deviation_CS = cell_moments(diff_CS)
        variance_C = (deviation_CS**2).sum(-1) / np.maximum(pairs_C - 1, 1)
        sd_C = np.sqrt(np.maximum(variance_C, outcomes.floor(quantity)))
        if not (pairs_C >= 2).any():
            return None
        spreads.append(np.where(pairs_C >= 2, sd_C, np.median(sd_C[pairs_C >= 2])))
    own = frame_studies([outcomes])
    return Design(
        cells=tuple(outcomes.cells[c] for c in np.flatnonzero(is_planned_C)),
        seeds=len(outcomes.seeds),
        sd_C=spreads[0],
        flow_sd_C=spreads[1],
        block_C=outcomes.block_C[is_planned_C],
        plan=plan,
        name=", ".join(
            filter(None, (f"{outcomes.dataset} {outcomes.recipe}", *name_ingredients(own)))
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true in a scenario, beyond the design.

    Shapes:
        effect_C: (C,), of `after` over `before`; flow_C the same in each window.
    Units:
        Effects in percentage points, flow in log10, probabilities per trial.
    """

    effect_C: NDArray[np.float64]
    flow_C: Mapping[str, NDArray[np.float64]]
    none_effect: float = -3.0
    """Of `none` over `before`, everywhere: the difference that is known to exist."""
    carried: tuple[float, float] = (0.0, 0.0)
    """Share of the effect that goes with the step sizes: of `after` with the steps of `before`,
    and of `before` with the steps of `after`."""
    level: float = _TYPICAL
    spread: float = 1.0
    """Factor on all noise of accuracy."""
    divergence: Mapping[str, float] = field(default_factory=dict)
    """Placement -> probability that a trial diverges, apart from the others."""
    collapse: float = 0.0
    """Probability that `none` learns nothing."""
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
    # A difference of two trials has sqrt(2) times the spread of one.
    sd_C1 = truth.spread * design.sd_C[:, None] / np.sqrt(2)
    flow_sd_C1 = design.flow_sd_C[:, None] / np.sqrt(2)
    accuracy_PCS = truth.level + (rng.normal(size=block_shape) + rng.normal(size=shape)) * sd_C1
    accuracy_PCS[:, _AFTER] += truth.effect_C[:, None]
    accuracy_PCS[:, _NONE] += truth.none_effect
    accuracy_PCS[:, _AFTER_AS_BEFORE] += (1 - truth.carried[0]) * truth.effect_C[:, None]
    accuracy_PCS[:, _BEFORE_AS_AFTER] += truth.carried[1] * truth.effect_C[:, None]
    accuracy_PCS = np.minimum(accuracy_PCS, 100.0)
    is_collapsed_RCS = rng.random((replicates, *shape[2:])) < truth.collapse
    accuracy_PCS[:, _NONE] = np.where(is_collapsed_RCS, _CHANCE, accuracy_PCS[:, _NONE])

    flow_PCS = {}
    for window in WINDOWS:
        noise = rng.normal(size=block_shape) + rng.normal(size=shape)
        flow_PCS[window] = noise * flow_sd_C1
        flow_PCS[window][:, _AFTER] += truth.flow_C[window][:, None]

    has_run_PCS = rng.random(shape) >= truth.missing
    risk_P11 = np.array([truth.divergence.get(name, 0.0) for name in PLACEMENTS])[:, None, None]
    has_diverged_PCS = (rng.random(shape) < risk_P11) & has_run_PCS
    is_finished_PCS = has_run_PCS & ~has_diverged_PCS
    return Outcomes(
        dataset="simulated",
        recipe="common",
        cells=design.cells,
        placements=PLACEMENTS,
        seeds=tuple(range(design.seeds)),
        block_C=design.block_C,
        accuracy_PCS=np.where(is_finished_PCS, accuracy_PCS, np.nan),
        flow_PCS={
            window: np.where(is_finished_PCS, values_PCS, np.nan)
            for window, values_PCS in flow_PCS.items()
        },
        ran_PCS=has_run_PCS,
        diverged_PCS=has_diverged_PCS,
        planned_PCS=np.ones(shape[1:], bool),
        wall_time_PCS=np.ones(shape[1:]),
        chance=_CHANCE,
        images=10_000,
        graft_errors={AFTER_AS_BEFORE: 0.0, BEFORE_AS_AFTER: 0.0},
    )


def take_seeds(outcomes: Outcomes, seeds: int, look: Look) -> Outcomes:
    """The same grids when only the first seeds had been trained."""
    return replace(
        outcomes,
        seeds=outcomes.seeds[:seeds],
        accuracy_PCS=outcomes.accuracy_PCS[..., :seeds],
        flow_PCS={name: values[..., :seeds] for name, values in outcomes.flow_PCS.items()},
        ran_PCS=outcomes.ran_PCS[..., :seeds],
        diverged_PCS=outcomes.diverged_PCS[..., :seeds],
        planned_PCS=outcomes.planned_PCS[..., :seeds],
        wall_time_PCS=outcomes.wall_time_PCS[..., :seeds],
        look=look,
    )


def calibrate(
    design: Design, *, replicates: int = 2_000, rng: np.random.Generator
) -> tuple[Rate, ...]:
    """Judge simulated grids of this design, scenario by scenario."""
    rates = []
    for scenario in _find_scenarios(design):
        spread = replace(
            design,
            sd_C=design.sd_C * scenario.spread_C,
            flow_sd_C=design.flow_sd_C * scenario.spread_C,
        )
        outcomes = simulate(spread, scenario.truth, replicates=replicates, rng=rng)
        judged = _Judged.of(outcomes, scenario, design.plan)
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


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The simulated grids of one scenario, judged: at the end, or at every look on the way."""

    truth: Truth
    evidence: Sequence[Evidence]
    calls: Sequence[Call]

    @classmethod
    def of(cls, outcomes: Outcomes, scenario: _Scenario, plan: AnalysisPlan) -> _Judged:
        margins = Margins.of_plan(plan)
        seeds = len(outcomes.seeds)
        looks = [min(look, seeds) for look in scenario.looks] or [seeds]
        evidence = []
        for number, count in enumerate(looks):
            fractions = tuple(look / seeds for look in looks[: number + 1])
            look = Look(fractions) if scenario.looks else ONLY_LOOK
            seen = take_seeds(outcomes, count, look)
            evidence.append(weigh(seen, margins=margins, alpha=plan.alpha, control=plan.control))
        return cls(
            truth=scenario.truth,
            evidence=evidence,
            calls=[call([one], alpha=plan.alpha) for one in evidence],
        )

    @cached_property
    def last(self) -> Evidence:
        return self.evidence[-1]

    def is_called(self, claim: str, *words: str) -> NDArray[np.float64]:
        """At any look."""
        if not self.last.comparisons[claim]:
            return np.array([])
        position = CLAIMS.index(claim)
        return np.max(
            [np.isin(one.word_M[..., position], words) for one in self.calls], axis=0
        ).astype(float)

    def covers(self, claim: str) -> NDArray[np.float64]:
        """Does the pooled 95 % interval hold the truth, at every look? NaN: there is no interval."""
        if not self.last.comparisons[claim]:
            return np.array([])
        covers, exists = [], []
        for evidence in self.evidence:
            one = evidence.comparisons[claim][0]
            truth = self.truth.effect_C[one.is_member_C].mean()
            covers.append(np.abs(one.pooled.estimate - truth) <= one.pooled.half_width(0.95))
            exists.append(np.isfinite(one.pooled.se))
        return np.where(
            np.any(exists, axis=0), np.all(np.array(covers) | ~np.array(exists), axis=0), np.nan
        )

    def finds_any_difference(self) -> NDArray[np.float64]:
        found = [self.is_called(claim, "supported", "contradicted") for claim in CLAIMS]
        tested = [found_R for found_R in found if len(found_R)]
        return np.max(tested, axis=0) if tested else np.array([])

    def says_anything(self) -> NDArray[np.float64]:
        words = ("supported", "contradicted", "equivalent", "equivalent on average")
        found = [self.is_called(claim, *words) for claim in CLAIMS]
        tested = [found_R for found_R in found if len(found_R)]
        return np.max(tested, axis=0) if tested else np.array([])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """What to count, as 0 or 1 per replicate (NaN: does not apply), and what is promised of it."""

    name: str
    count: Callable[[_Judged], NDArray[np.float64]]
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scenario:
    """A truth, factors on the spread of each cell, when it is looked at, and what to count."""

    name: str
    truth: Truth
    measures: Sequence[_Measure]
    spread_C: NDArray[np.float64] | float = 1.0
    looks: Sequence[int] = ()
    """Seeds at each look; empty: once, at the end."""


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
_NOTHING_SAID = _Measure(name="any word at all", count=_Judged.says_anything, high=0.01)


def _find_scenarios(design: Design) -> Iterator[_Scenario]:
    count = len(design.cells)
    margins = Margins.of_plan(design.plan)
    gain = 2 * margins.accuracy
    power = 0.95 if design.promises_power else float("nan")
    zero_C, one_C = np.zeros(count), np.ones(count)
    is_free_C = np.array([cell.architecture in SKIP_FREE for cell in design.cells], float)
    is_residual_C = np.array([cell.architecture in RESIDUAL for cell in design.cells], float)
    is_deepest_C = np.array([rank == 0 for rank in _rank_depths(design.cells)], float)
    unlike_C = np.where(np.arange(count) % 2, 2.0, 0.4)

    def flows(flow_C: NDArray[np.float64], **windows: NDArray[np.float64]) -> dict:
        return dict.fromkeys(WINDOWS, flow_C) | windows

    null = Truth(effect_C=zero_C, flow_C=flows(zero_C))
    paper = Truth(
        effect_C=gain * is_free_C, flow_C=flows(_FLOW_GAIN * is_free_C), carried=(1.0, 1.0)
    )
    some_looks = sorted({*range(FEWEST_PAIRS, design.seeds + 1)})

    for name, spread_C in (("no effect anywhere", 1.0), ("no effect, unequal spread", unlike_C)):
        yield _Scenario(
            name=name,
            truth=null,
            spread_C=spread_C,
            measures=[
                _ANY_DIFFERENCE,
                _covers("C1", design),
                _covers("C3", design),
                _calls("C3", "equivalent"),
                _calls("C4", "equivalent"),
            ],
        )
    yield _Scenario(
        name="no effect, a fifth of the trials is missing",
        truth=replace(null, missing=0.2),
        measures=[_ANY_DIFFERENCE, _covers("C1", design), _covers("C3", design)],
    )
    if len(some_looks) > 1:
        yield _Scenario(
            name=f"no effect, {len(some_looks)} looks",
            truth=null,
            looks=some_looks,
            measures=[
                _ANY_DIFFERENCE,
                replace(_covers("C1", design), high=float("nan")),
                replace(_covers("C3", design), high=float("nan")),
            ],
        )
    yield _Scenario(
        name="as the paper says",
        truth=paper,
        measures=[
            _calls("C1", "supported", low=power),
            _calls("C2", "supported"),
            _calls("C2", "contradicted", high=0.05),
            _calls("C5", "supported", low=power),
            _calls("C1", "contradicted", high=0.05),
            _calls("C3", "contradicted", high=0.05),
            _covers("C1", design),
            _covers("C3", design),
        ],
    )
    for name, carried in (
        ("a gain that step sizes do not carry", (0.0, 0.0)),
        ("a gain that step sizes carry one way only", (1.0, 0.0)),
        ("a gain that step sizes carry by half", (0.5, 0.5)),
    ):
        yield _Scenario(
            name=name,
            truth=replace(paper, carried=carried),
            measures=[
                _calls("C2", "supported", high=0.05),
                _calls("C2", "contradicted", high=0.05 if any(carried) else float("nan")),
            ],
        )
    yield _Scenario(
        name="flow is higher, and there is no gain",
        truth=replace(paper, effect_C=zero_C),
        measures=[_calls("C2", word, high=0.05) for word in ("supported", "contradicted")],
    )
    yield _Scenario(
        name="flow is higher in the first epoch only",
        truth=replace(null, flow_C=flows(zero_C, first=_FLOW_GAIN * one_C)),
        measures=[_calls("C4", word, high=0.05) for word in ("equivalent", "contradicted")],
    )
    yield _Scenario(
        name="the opposite",
        truth=replace(paper, effect_C=-paper.effect_C, flow_C=flows(-_FLOW_GAIN * is_free_C)),
        measures=[
            _calls("C1", "supported", high=0.05),
            _calls("C2", "supported", high=0.05),
            _calls("C5", "supported", high=0.05),
            _calls("C1", "contradicted", low=power),
        ],
    )
    for size in (1.0, 1.2, 1.5):
        for name, where_C in (("every depth", one_C), ("one depth", is_deepest_C)):
            yield _Scenario(
                name=f"{name} off by {size:g} margins",
                truth=Truth(
                    effect_C=size * margins.accuracy * where_C,
                    flow_C=flows(size * margins.flow * where_C),
                ),
                measures=[_calls(c, "equivalent", high=0.05) for c in ("C1", "C3", "C4")],
            )
    for name, residual in (("both families", 1.0), ("the residual family", 0.0)):
        yield _Scenario(
            name=f"an interaction of one margin, at one depth, by {name}",
            truth=Truth(
                effect_C=margins.accuracy
                * is_deepest_C
                * (0.5 * (is_free_C - is_residual_C) if residual else -is_residual_C),
                flow_C=flows(zero_C),
            ),
            measures=[_calls("C5", "equivalent", high=0.05)],
        )
    for risk in (0.01, 0.05):
        yield _Scenario(
            name=f"both orders diverge in {risk:.0%} of their trials",
            truth=replace(null, divergence={"before": risk, "after": risk}),
            measures=[_ANY_DIFFERENCE, _calls("C3", "equivalent")],
        )
    yield _Scenario(
        name="'after' diverges in 30% of its trials",
        truth=replace(null, divergence={"after": 0.3}),
        measures=[_calls("C1", "supported", high=0.05), _calls("C3", "equivalent", high=0.05)],
    )
    for risk in (0.05, 0.2):
        yield _Scenario(
            name=f"'none' learns nothing in {risk:.0%} of its trials, 'after' gains",
            truth=replace(paper, collapse=risk),
            measures=[_calls("C1", "supported", low=power)],
        )
    yield _Scenario(
        name="nothing learned anywhere",
        # Networks that guess differ by their test images alone.
        truth=replace(
            null, level=_CHANCE, none_effect=0.0, spread=min(1.0, 0.25 / design.sd_C.max())
        ),
        measures=[_NOTHING_SAID],
    )
    yield _Scenario(
        name="nothing left to learn",
        truth=replace(null, level=99.9, none_effect=0.0, spread=0.05),
        measures=[_NOTHING_SAID],
    )


def _rank_depths(cells: Sequence[Cell]) -> list[int]:
    """Place of each cell's depth among those of its architecture, the deepest 0."""
    return [
        sum(other.architecture == cell.architecture and other.depth > cell.depth for other in cells)
        for cell in cells
    ]


def _monte_carlo_error(share: float, replicates: int) -> float:
    return float(np.sqrt(share * (1 - share) / replicates))
