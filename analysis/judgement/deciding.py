"""Say at a planned look which claims are settled, and which trials want more seeds.

A claim ends with a word, or where even favourable further seeds would hardly give it one. All cells
and arms that an open claim rests on go on together: pooled effects are means over cells, and cells
picked by what they showed would bend them. What no open claim rests on stops. Stopping for want of
hope spends none of the error rate and saves none: levels and intervals come from the looks alone.

Legend of shape suffixes: M claims, P placements, C cells, S seeds, K parts, `...` any leading axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.judgement.comparisons import Margins
from analysis.judgement.evidence import call, weigh
from analysis.judgement.outcomes import WINDOWS, collect_outcomes
from analysis.judgement.sequence import look_at
from analysis.judgement.studies import frame_studies, name_ingredients
from analysis.load import load_results
from analysis.statistics.looks import Look
from harness.study.records import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from analysis.judgement.comparisons import Comparison
    from analysis.judgement.evidence import Evidence
    from analysis.judgement.outcomes import Outcomes
    from harness.study.records import AnalysisPlan

LEAST_CHANCE = 0.2
"""A claim with less chance of a word at the last look, at effects one standard error more favourable
than those seen, is given up. By simulation giving up costs less than two points of power."""

WORDS = ("supported", "contradicted", "equivalent")
"""The words that end a claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimState:
    """What a look says of one claim of one study."""

    study: str
    """In words; empty where there is one study alone."""
    claim: str
    state: str
    """The word that settles it; "open", "given up" or "untestable"."""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a look at a folder leads to."""

    claims: tuple[ClaimState, ...]
    wanted: frozenset[str]
    """Trials there are, in whose cells more seeds are wanted."""


def decide(location: str, *, allow_mixed: bool = False) -> Decision:
    """Look at the results at `location` as the plan beside them says, and record the look.

    Raises:
        StoreError: the results cannot be analysed.
    """
    results = load_results(location, allow_mixed=allow_mixed)
    studies = collect_outcomes(results, look_at(results).look)
    standings = find_standings(studies, results.plan)
    wanted = frozenset(
        str(trial_id)
        for outcomes, standing in zip(studies, standings, strict=True)
        if outcomes.trial_PCS is not None
        for trial_id in outcomes.trial_PCS[standing.wants_PC & standing.is_running_PC].flat
        if trial_id is not None
    )
    return Decision(claims=tuple(_describe(studies, standings, results.plan)), wanted=wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a look says of each claim of one study.

    Shapes:
        word_M, is_open_M, has_no_gain_M and is_halted_M: (..., M), in the order of `CLAIMS`;
        wants_PC (..., P, C); is_running_PC (P, C).
    """

    word_M: NDArray[np.str_]
    is_open_M: NDArray[np.bool_]
    """Further seeds are wanted for it."""
    has_no_gain_M: NDArray[np.bool_]
    """It asks for the cause of a gain that is shown not to exist."""
    is_halted_M: NDArray[np.bool_]
    """It had ended at an earlier look, so that some of its cells have stopped."""
    is_testable_M: NDArray[np.bool_]
    is_dull_M: NDArray[np.bool_]
    """In none of its cells could a difference show: nothing was learned, or nothing is left to gain."""
    has_mechanism: bool
    """Are there arms with borrowed steps, without which nothing shows a cause?"""
    wants_PC: NDArray[np.bool_]
    """Arms and cells that an open claim rests on."""
    is_running_PC: NDArray[np.bool_]
    """Arms and cells that did not stop at an earlier look."""


def find_standings(studies: Sequence[Outcomes], plan: AnalysisPlan) -> list[Standing]:
    """Judge the claims of all studies, as one family, at the look that their outcomes carry."""
    if not studies:
        return []
    margins = Margins.of_plan(plan)
    weighed = [
        weigh(one, margins=margins, alpha=plan.alpha, control=plan.control) for one in studies
    ]
    words = call(weighed, alpha=plan.alpha).word_M
    forecast = _Forecast(most=max(plan.looks), level=plan.alpha / (len(studies) * len(CLAIMS)))
    most_seeds = max(one.planned_PCS.sum(-1).max() for one in studies)
    found = []
    for number, (outcomes, evidence) in enumerate(zip(studies, weighed, strict=True)):
        own = slice(number * len(CLAIMS), (number + 1) * len(CLAIMS))
        word_M = words[..., own]
        is_running_PC = outcomes.planned_PCS.sum(-1) == most_seeds
        rests_MPC = np.stack([_find_support(outcomes, evidence, c, plan.control) for c in CLAIMS])
        lead = word_M.shape[:-1]
        chances = [np.broadcast_to(forecast.chance(evidence, claim), lead) for claim in CLAIMS]
        is_testable_M = np.array([bool(evidence.comparisons[claim]) for claim in CLAIMS])
        is_halted_M = (rests_MPC & (outcomes.planned_PCS.any(-1) & ~is_running_PC)).any((-2, -1))
        has_no_gain_M = np.zeros(word_M.shape, bool)
        if cause := evidence.comparisons["C2"]:
            has_no_gain_M[..., CLAIMS.index("C2")] = cause[0].p_equal <= plan.alpha
        firsts = [evidence.comparisons[claim][:1] for claim in CLAIMS]
        is_dull_M = np.stack(
            [
                np.broadcast_to(one[0].is_uninformative_K.all(-1), lead)
                if one
                else np.zeros(lead, bool)
                for one in firsts
            ],
            axis=-1,
        )
        is_open_M = (
            ~np.isin(word_M, WORDS)
            & ~(has_no_gain_M | is_dull_M)
            & (is_testable_M & ~is_halted_M)
            & (np.stack(chances, axis=-1) >= LEAST_CHANCE)
        )
        found.append(
            Standing(
                word_M=word_M,
                is_open_M=is_open_M,
                has_no_gain_M=has_no_gain_M,
                is_halted_M=is_halted_M,
                is_testable_M=is_testable_M,
                is_dull_M=is_dull_M,
                has_mechanism=evidence.mechanism is not None,
                wants_PC=(is_open_M[..., None, None] & rests_MPC).any(-3),
                is_running_PC=is_running_PC,
            )
        )
    return found


def _find_support(
    outcomes: Outcomes, evidence: Evidence, claim: str, control: str
) -> NDArray[np.bool_]:
    """The arms and cells that a claim rests on, its positive control among them: (P, C)."""
    rests_PC = np.zeros(outcomes.planned_PCS.shape[:-1], bool)
    for one in evidence.comparisons[claim]:
        for arm in {one.arm, one.baseline, control} & set(outcomes.placements):
            rests_PC[outcomes.placements.index(arm)] |= one.is_member_C
    return rests_PC & outcomes.planned_PCS.any(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forecast:
    """The chance of a word at the last look, at effects somewhat more favourable than those seen."""

    most: int
    """Seeds at the last look."""
    level: float
    """What the last look may err with, at its strictest."""

    def chance(self, evidence: Evidence, claim: str) -> NDArray[np.float64]:
        """Of any word that would end the claim: (...); 1 where there is nothing to go by yet."""
        several = evidence.comparisons[claim]
        if not several:
            return np.array(0.0)
        first = several[0]
        if claim == "C1":
            affirms = np.minimum.reduce([self._up(one, 1) for one in several])
            refutes = np.maximum.reduce([self._up(one, -1) for one in several])
            return np.maximum.reduce([affirms, refutes, self._equal(first)])
        if claim == "C2":
            if evidence.mechanism:
                return self._up(first, 1)
            flows = [one for one in several if one.quantity in WINDOWS]
            ways = [
                np.minimum.reduce([way(one) for one in flows])
                for way in (self._equal, lambda one: self._up(one, -1))
            ]
            return np.minimum(self._up(first, 1), np.maximum.reduce(ways))
        if claim == "C5":
            return np.maximum.reduce([self._up(first, 1), self._up(first, -1), self._equal(first)])
        equal = np.minimum.reduce([self._equal(one) for one in several])
        return np.maximum(equal, np.maximum.reduce([self._beyond(one) for one in several]))

    def _up(self, one: Comparison, sign: int) -> NDArray[np.float64]:
        """Of a pooled difference in the direction of `sign`."""
        critical, growth = self._at_the_end(one, one.pooled.df, sides=2)
        ratio = (sign * one.pooled.estimate / one.pooled.se + 1) * growth
        return _or_one(ratio - critical)

    def _equal(self, one: Comparison) -> NDArray[np.float64]:
        """Of equivalence in every judged part."""
        critical_K, growth = self._at_the_end(one, one.parts.df, sides=1)
        off_K = np.maximum(np.abs(one.parts.estimate) - one.parts.se, 0)
        room_K = (one.margin - off_K) / one.parts.se * growth - critical_K
        return _or_one(np.where(one.is_judged_K, room_K, np.inf).min(-1))

    def _beyond(self, one: Comparison) -> NDArray[np.float64]:
        """Of a difference beyond the margin in a part."""
        critical_K, growth = self._at_the_end(one, one.parts.df, sides=1)
        ratio_K = (np.abs(one.parts.estimate) + one.parts.se - one.margin) / one.parts.se
        room_K = ratio_K * growth - critical_K
        return _or_one(np.where(one.is_judged_K, room_K, -np.inf).max(-1))

    def _at_the_end(
        self, one: Comparison, df: NDArray[np.float64], *, sides: int
    ) -> tuple[NDArray[np.float64], float]:
        """The critical t of the last look, and by how much standard errors shrink until then."""
        look = one.pooled.look
        now = look.fractions[-1]
        seeds = max(2.0, now * self.most)
        end = look if now >= 1 else Look((*look.fractions, 1.0))
        df_then = df * max(1.0, (self.most - 1) / (seeds - 1))
        return special.stdtrit(df_then, 1 - end.nominal(self.level / sides)), now**-0.5


def _or_one(room: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(room), 1.0, special.ndtr(room))


def _describe(
    studies: Sequence[Outcomes], standings: Sequence[Standing], plan: AnalysisPlan
) -> list[ClaimState]:
    ingredients = name_ingredients(frame_studies(studies))
    found = []
    for outcomes, words, standing in zip(studies, ingredients, standings, strict=True):
        names = [outcomes.dataset, outcomes.recipe, words] if len(studies) > 1 else []
        for position, claim in enumerate(CLAIMS):
            word = str(standing.word_M[position])
            state, why = "given up", f"{max(plan.looks)} seeds would hardly settle it"
            if not standing.is_testable_M[position]:
                state, why = "untestable", "the grid has no trials that could show it"
            elif word in WORDS:
                state, why = word, ""
            elif standing.has_no_gain_M[position]:
                state, why = "given up", "there is no gain to explain"
            elif standing.is_halted_M[position]:
                state, why = "given up", "it was settled at an earlier look, and no longer is"
            elif standing.is_dull_M[position]:
                why = "its networks learned nothing, or leave nothing to gain"
            elif standing.is_open_M[position]:
                state, why = "open", ""
            elif claim == "C2" and not standing.has_mechanism:
                why = "without arms that borrow step sizes no seeds show a cause"
            study = ", ".join(filter(None, names))
            found.append(ClaimState(study=study, claim=claim, state=state, why=why))
    return found
