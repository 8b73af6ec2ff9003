"""Find out how often the verdicts are wrong, on simulated grids whose truth is known.

Every scenario is a truth; many grids of the same design are drawn from it and judged by the very
functions that judge real results. What comes out are error rates, coverage and power, each with
its Monte-Carlo error and, where something is promised, the bar it must meet.

Legend of shape suffixes: R replicates of the grid, C cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.comparisons import Margins
from analysis.judgement.effects import RESIDUAL, SKIP_FREE
from analysis.judgement.evidence import Call, Evidence, call, weigh
from analysis.judgement.outcomes import WINDOWS, Cell, Outcomes
from analysis.judgement.simulation import CHANCE, Design, Truth, simulate, take_seeds
from analysis.statistics.looks import ONLY_LOOK, Look
from harness.study.records import CLAIMS, FEWEST_PAIRS, AnalysisPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_PAIRS_AT_ONCE = 500_000
"""Pairs of an arm and a baseline that are simulated together, over all replicates."""
_MOST_LOOKS = 20
_FLOW_GAIN = 0.3  # log10 by which `after` raises gradient flow where a scenario says it does


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
        counted = []
        for some in _part(replicates, design.seeds * len(design.cells)):
            outcomes = simulate(spread, scenario.truth, replicates=some, rng=rng)
            judged = _Judged.of(outcomes, scenario, design.plan)
            counted.append([measure.count(judged) for measure in scenario.measures])
        for measure, *happened in zip(scenario.measures, *counted, strict=True):
            happened_R = np.concatenate(happened)
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


def list_looks(seeds: int) -> list[int]:
    """The seeds at which a study may be looked at: at each number of them, of many at some."""
    count = min(_MOST_LOOKS, max(0, seeds - FEWEST_PAIRS + 1))
    return np.linspace(FEWEST_PAIRS, seeds, count).round().astype(int).tolist()


def _part(replicates: int, pairs: int) -> Iterator[int]:
    """Replicates that are simulated together, so that memory is bounded however large a grid is."""
    most = max(1, _PAIRS_AT_ONCE // pairs)
    for done in range(0, replicates, most):
        yield min(most, replicates - done)


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
    some_looks = list_looks(design.seeds)

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
                name=f"{name} off by {size:g} margin{'s' * (size != 1)}",
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
            null, level=CHANCE, none_effect=0.0, spread=min(1.0, 0.25 / design.sd_C.max())
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
