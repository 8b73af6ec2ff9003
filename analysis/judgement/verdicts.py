"""Judge the claims: a word for each, with its numbers, its reason and what would settle it.

The words come from `evidence`, the sentences from `sentences`; what other methods say stands in
`robustness` and qualifies a word without changing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.judgement import sentences
from analysis.judgement.comparisons import Margins
from analysis.judgement.effects import TWINS, UNITS, Effect, find_effects
from analysis.judgement.evidence import call, weigh
from analysis.judgement.outcomes import WINDOWS, collect_outcomes
from analysis.judgement.robustness import Robustness, cross_check, find_disagreement
from analysis.judgement.studies import Study
from analysis.statistics.looks import ONLY_LOOK, Look
from analysis.statistics.multiplicity import holm_level
from analysis.statistics.power import seeds_needed_to_decide, seeds_needed_to_settle
from harness.study.records import CLAIMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.comparisons import Comparison
    from analysis.judgement.evidence import Call, Evidence
    from analysis.judgement.outcomes import Outcomes
    from analysis.load import Results
    from analysis.statistics.contrasts import Contrast
    from harness.study.records import AnalysisPlan

TITLES = {
    "C1": "In CNNs without skip connections, {activation} before {norm} is best",
    "C2": "... as a result of higher gradient flow",
    "C3": "In residual networks the order does not affect accuracy",
    "C4": "In residual networks the order does not affect gradient flow",
    "C5": "Skip connections are what makes the difference",
}

MOST_TIMES = 10
"""A plan for more than so many times the seeds there are is none: "not by seeds"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Study):
    """One claim, judged on one study."""

    claim: str
    """"C1" to "C5"."""
    title: str
    """The claim in one plain sentence."""
    is_claimed: bool
    """Does the paper claim it? Of another norm or activation it is the same question."""
    answer: str
    """Of the claim as stated: "holds", "fails", "open", or "no gain to explain" (C2)."""
    word: str
    """What is shown of the effect: `supported`, `contradicted`, `equivalent` (in every cell),
    `equivalent on average` or `inconclusive`."""
    qualifier: str
    """What must be said in one breath with the word; empty where it stands by itself."""
    holds: bool | None
    """The claim as stated is borne out (True), refuted (False), open (None)."""
    sentence: str
    """The verdict with its numbers, one sentence, ready to print."""
    effect: str
    """The pooled effect that the claim is about first, its interval and its pairs; empty without."""
    reason: str
    """Which rule led to the word."""
    settle: str
    """What would settle it; empty where it is settled."""
    p: float
    """Of the test that led to the word (the smallest of its tests where none did); NaN where no
    test was made, or a rule withheld the word."""
    p_holm: float
    """The same, Holm-adjusted over the primary claims."""
    family_size: int
    """m of that Holm family; claims that could not be tested count."""
    alpha: float
    smallest_margin: float
    """Smallest margin at which every cell would be shown to lie within, in the effect's unit; NaN
    if none would do."""
    more_seeds: int | None
    """Further seeds per cell that would settle it with 80 % power; None: settled, or not by seeds."""
    device_hours: float
    """What those seeds would take, by the wall times of the rows; NaN where `more_seeds` is None."""
    fragile: str
    """Where the robustness panel disagrees in sign or word; empty where it agrees."""
    robustness: Robustness | None
    headline: Effect | None
    """The pooled effect that decides; None where nothing could be estimated."""
    effects: tuple[Effect, ...]
    """All effects the verdict rests on: pooled ones first, then cell by cell."""

    @property
    def has_trials(self) -> bool:
        """Does the grid have trials that could show it?"""
        return bool(self.reason)  # every judgement has one

    @property
    def grade(self) -> str:
        """The word with its qualifier, as a headline prints them."""
        return f"{self.word} ({self.qualifier})" if self.qualifier else self.word


def judge(
    results: Results, *, look: Look = ONLY_LOOK, rng: np.random.Generator | None = None
) -> tuple[Verdict, ...]:
    """Judge C1 to C5 on every study, in that order.

    `rng` serves the Monte-Carlo parts of the robustness panel; no verdict depends on it.
    """
    return judge_outcomes(collect_outcomes(results, look), results.plan, rng=rng)


def judge_outcomes(
    studies: Sequence[Outcomes],
    plan: AnalysisPlan,
    *,
    effects: Sequence[Effect] | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Verdict, ...]:
    """Judge C1 to C5 on each study; all their tests are one Holm family.

    `effects` are those of the same studies on both quantities, where they are known already.
    """
    if not studies:
        return ()
    rng = rng or np.random.default_rng(0)
    margins = Margins.of_plan(plan)
    weighed = [
        weigh(outcomes, margins=margins, alpha=plan.alpha, control=plan.control)
        for outcomes in studies
    ]
    family = call(weighed, alpha=plan.alpha)
    if effects is None:
        effects = [e for quantity in UNITS for e in find_effects(quantity, studies, plan, rng=rng)]
    judged = []
    for number, (outcomes, evidence) in enumerate(zip(studies, weighed, strict=True)):
        own = [e for e in effects if e.identity == outcomes.identity]
        for position, claim in enumerate(CLAIMS):
            judge_one = _Judge(
                claim=claim,
                outcomes=outcomes,
                evidence=evidence,
                family=family,
                place=number * len(CLAIMS) + position,
                effects=own,
                plan=plan,
                rng=rng,
            )
            judged.append(judge_one.verdict())
    return tuple(judged)


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Everything that the verdict on one claim is made of."""

    claim: str
    outcomes: Outcomes
    evidence: Evidence
    family: Call
    place: int
    """Of the claim in the family."""
    effects: Sequence[Effect]
    plan: AnalysisPlan
    rng: np.random.Generator

    @property
    def word(self) -> str:
        return str(self.family.word_M[self.place])

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return self.evidence.comparisons[self.claim]

    @property
    def affirmed_word(self) -> str:
        return self.evidence.words[CLAIMS.index(self.claim)]

    @property
    def has_gain(self) -> bool:
        """Is a gain shown that C2 could explain?"""
        return bool(self.comparisons[0].p_up <= self.plan.alpha)

    @property
    def has_no_gain(self) -> bool:
        """Is it shown that there is none that matters? That none is shown says no such thing."""
        gain = self.comparisons[0]
        return bool(np.fmin(gain.p_average, gain.p_down) <= self.plan.alpha)

    @property
    def is_blind(self) -> bool:
        """Does the positive control show no difference in the claim's cells?"""
        return bool(self.evidence.is_blind.get(self.claim, False))

    def verdict(self) -> Verdict:
        word, holds = self.word, None
        if word in {"supported", "contradicted", "equivalent"}:
            holds = word == self.affirmed_word
        answer = {True: "holds", False: "fails", None: "open"}[holds]
        p, p_holm = self._find_p()
        common = {
            **self.outcomes.identity,
            "claim": self.claim,
            "title": TITLES[self.claim].format(
                norm=self.outcomes.norm_name, activation=self.outcomes.activation_name
            ),
            "is_claimed": self.outcomes.is_papers,
            "word": word,
            "holds": holds,
            "p": p,
            "p_holm": p_holm,
            "family_size": self.family.word_M.size,
            "alpha": self.plan.alpha,
        }
        if not self.comparisons:
            return Verdict(
                **common,
                answer="open",
                qualifier="",
                sentence="The grid has no trials that could show it.",
                effect="",
                reason="",
                settle=f"add {sentences.NEEDS[self.claim]} to the grid",
                smallest_margin=float("nan"),
                more_seeds=None,
                device_hours=float("nan"),
                fragile="",
                robustness=None,
                headline=None,
                effects=(),
            )
        first = self.comparisons[0]
        if self.claim == "C2" and holds is None and not self.has_gain and self.has_no_gain:
            answer = "no gain to explain"
        chosen = self._choose_effects(first)
        panel = cross_check(self.outcomes, first, rng=self.rng)
        fragile = find_disagreement(word, first, panel, alpha=self.plan.alpha)
        more_seeds = self._count_more_seeds() if holds is None and answer == "open" else None
        hours = _estimate_hours(self.outcomes, self.comparisons, more_seeds)
        story = sentences.Story(
            claim=self.claim,
            study=self.outcomes,
            word=word,
            answer=answer,
            comparisons=self.comparisons,
            mechanism=self.evidence.mechanism,
            unusable=self.evidence.unusable,
            is_blind=self.is_blind,
            control=self.plan.control if self.plan.control in self.outcomes.placements else "",
            alpha=self.plan.alpha,
        )
        smallest_margin = self._find_smallest_margin()
        return Verdict(
            **common,
            answer=answer,
            qualifier=story.qualify(
                is_consistent=bool(self.family.is_consistent_M[self.place]), fragile=fragile
            ),
            sentence=story.sentence(),
            effect=story.effect(),
            reason=story.reason(p=p, p_holm=p_holm, family_size=self.family.word_M.size)
            + story.describe_margin(smallest_margin)
            + sentences.describe_test_set(chosen[0] if chosen else None),
            settle=story.advise(more_seeds, hours, spent=self._count_spent())
            if holds is None
            else "",
            smallest_margin=smallest_margin,
            more_seeds=more_seeds,
            device_hours=hours,
            fragile=fragile,
            robustness=panel,
            headline=chosen[0] if chosen else None,
            effects=chosen,
        )

    def _find_p(self) -> tuple[float, float]:
        """The p-value behind the word, and the same after Holm; NaN where no test was made."""
        position = CLAIMS.index(self.claim)
        affirms, contradicts, equates, average = (
            float(p_M[position])
            for p_M in (
                self.evidence.affirms_M,
                self.evidence.contradicts_M,
                self.evidence.equates_M,
                self.evidence.averages_M,
            )
        )
        refutes = float(np.fmin(contradicts, equates))
        ways = [
            (affirms, float(self.family.affirms_M[self.place])),
            (refutes, float(self.family.refutes_M[self.place])),
        ]
        if self.word == "equivalent on average":
            return average, float(self.family.averages_M[self.place])
        if self.word == self.affirmed_word or self.family.is_consistent_M[self.place]:
            return ways[0]
        if self.word != "inconclusive":
            return ways[1]
        found = [way for way in ways if way[0] < 1]  # NaN is not below 1 either
        return min(found, default=(float("nan"), float("nan")))

    def _choose_effects(self, first: Comparison) -> tuple[Effect, ...]:
        """The effects that the claim rests on: the deciding one first, pooled ones, then cells."""
        own = [effect for effect in self.effects if effect.family == self.claim]
        if self.claim == "C2":  # the gain that flow is to explain
            own += [
                effect
                for effect in self.effects
                if (effect.family, effect.kind, effect.baseline) == ("C1", "pooled", "before")
            ]
        if self.claim == "C5":  # what the interaction is the difference of
            own += [
                effect
                for effect in self.effects
                if effect.kind == "cell"
                and effect.architecture in TWINS
                and (effect.quantity, effect.arm, effect.baseline)
                == ("accuracy", "after", "before")
            ]
        quantity = "gradient" if first.quantity in WINDOWS else "accuracy"

        def rank(effect: Effect) -> tuple[bool, bool, bool, bool]:
            decides = (effect.quantity, effect.arm, effect.baseline)
            return (
                effect.kind == "cell",
                decides != (quantity, first.arm, first.baseline),
                effect.window not in {"", first.quantity},
                effect.architecture is not None,
            )

        return tuple(sorted(own, key=rank))

    def _find_smallest_margin(self) -> float:
        """The margin at which equivalence would just be called; NaN where no margin would do."""
        is_out_of_question = self.is_blind or (self.claim == "C2" and not self.has_gain)
        deciding = self._deciding()
        if not deciding or is_out_of_question:
            return float("nan")
        position = CLAIMS.index(self.claim)
        if self.affirmed_word == "equivalent":
            level_M = holm_level(self.evidence.affirms_M, alpha=self.plan.alpha)
        else:
            refutes_M = np.fmin(self.evidence.contradicts_M, self.evidence.equates_M)
            level_M = holm_level(refutes_M, alpha=self.plan.alpha)
        return max(_find_least_margin(one, float(level_M[position])) for one in deciding)

    def _deciding(self) -> list[Comparison]:
        """The comparisons whose equivalence the claim is about."""
        if self.claim == "C1":
            return [self.comparisons[0]]
        if self.claim == "C2":
            return [one for one in self.comparisons if one.quantity in WINDOWS]
        return list(self.comparisons)

    def _count_more_seeds(self) -> int | None:
        """Further seeds per cell that settle the claim; None where seeds are not what is missing.

        Planned so that either way would be shown: an effect as large as the margin, or, in every
        cell, none at all. Where the rows speak against there being none the plan is for the effect
        that was seen.
        """
        alpha = self.plan.alpha / self.family.word_M.size
        if self.claim == "C2" and self.evidence.mechanism is None:
            return None  # more rows that are only observed show no cause either
        needed: list[int] = []
        for one in self.comparisons:
            differs = one.p_beyond if self._is_about_equality else np.fmin(one.p_up, one.p_down)
            if np.fmin(differs, one.p_equal) <= alpha:
                continue
            is_torn = one.is_split or (one.is_opposed_up and one.is_opposed_down)
            if one.is_discordant or is_torn or np.isnan(one.pooled.se):
                return None
            for seeds, plan in self._plan_seeds(one, alpha):
                if plan is None or plan > MOST_TIMES * seeds:
                    return None
                needed.append(max(1, int(np.ceil(plan - seeds))))
        return max(needed, default=None)

    def _count_spent(self) -> int:
        """Seeds per cell of a study that has had all of several planned looks; else 0."""
        fractions = self.outcomes.look.fractions
        return len(self.outcomes.seeds) if len(fractions) > 1 and fractions[-1] >= 1 else 0

    @property
    def _is_about_equality(self) -> bool:
        return self.claim in {"C3", "C4"}

    def _plan_seeds(self, one: Comparison, alpha: float) -> Iterator[tuple[float, int | None]]:
        """Seeds there are, and seeds it takes: pooled, or cell by cell where each must be equal."""

        def plan(
            contrast: Contrast, k: tuple[()] | int, seeds: float, seen: float | None
        ) -> int | None:
            spread = {"se": float(contrast.se[k]), "df": float(contrast.df[k]), "seeds": seeds}
            if seen is None:
                return seeds_needed_to_settle(one.margin, **spread, alpha=alpha)
            return seeds_needed_to_decide(
                seen, one.margin, **spread, alpha=alpha, against_zero=not self._is_about_equality
            )

        seen = _see(one.pooled, ())
        if seen is not None and (not self._is_about_equality or abs(seen) >= one.margin):
            seeds = float(one.pairs_K[one.is_judged_K].mean())
            yield seeds, plan(one.pooled, (), seeds, seen)
            return
        for k in np.flatnonzero(one.is_judged_K).tolist():
            of_part, seeds = _see(one.parts, k), float(one.pairs_K[k])
            yield seeds, plan(one.parts, k, seeds, seen if of_part is None else of_part)


def _see(contrast: Contrast, k: tuple[()] | int) -> float | None:
    """The estimate, where it is not told from zero None."""
    estimate = float(contrast.estimate[k])
    return estimate if abs(estimate) >= float(contrast.half_width(0.95)[k]) else None


def _find_least_margin(one: Comparison, level: float) -> float:
    is_judged_K = one.is_judged_K
    if not is_judged_K.any() or np.isnan(one.parts.se[is_judged_K]).any():
        return float("nan")
    if one.is_discordant and one.risk.p_equivalent(one.margin_risk) > level:
        return float("nan")
    critical_K = special.stdtrit(one.parts.df, 1 - one.parts.look.nominal(level))
    return float((np.abs(one.parts.estimate) + critical_K * one.parts.se)[is_judged_K].max())


def _estimate_hours(
    outcomes: Outcomes, comparisons: Sequence[Comparison], more_seeds: int | None
) -> float:
    """Device-hours of more seeds in every arm and cell concerned, at the wall times seen."""
    if more_seeds is None:
        return float("nan")
    is_wanted_PC: NDArray[np.bool_] = np.zeros(outcomes.wall_time_PCS.shape[:-1], bool)
    for one in comparisons:
        for arm in (one.arm, one.baseline):
            is_wanted_PC[outcomes.placements.index(arm)] |= one.is_member_C
    times_KS = outcomes.wall_time_PCS[is_wanted_PC]
    has_run_KS = np.isfinite(times_KS)
    if not has_run_KS.any(-1).all():
        return float("nan")
    mean_K = np.where(has_run_KS, times_KS, 0.0).sum(-1) / has_run_KS.sum(-1)
    return float(more_seeds * mean_K.sum() / 3600)
