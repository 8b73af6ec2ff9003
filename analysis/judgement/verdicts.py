"""Say the verdict on each claim: its word, its numbers, why, and what would settle it.

Legend of shape suffixes: M claims, C cells, S seeds, P pairs, K parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.judgement.effects import (
    GRAFTS,
    TWINS,
    UNITS,
    Effect,
    find_effects,
    find_twins,
    margin_of,
)
from analysis.judgement.evidence import CLAIMS, FEWEST_PAIRS, HETEROGENEITY_LEVEL, call, weigh
from analysis.judgement.outcomes import collect_outcomes
from analysis.statistics.contrasts import (
    cell_moments,
    estimate_contrast,
    mean_weights,
    twin_weights,
)
from analysis.statistics.multiplicity import holm_level
from analysis.statistics.power import pocock_level, seeds_needed_to_decide, seeds_needed_to_settle
from analysis.statistics.resampling import (
    hodges_lehmann,
    product_interval,
    sign_flip_floor,
    sign_flip_test,
    signed_rank_test,
    superiority,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.evidence import Call, Comparison, Evidence
    from analysis.judgement.outcomes import Outcomes
    from analysis.load import Results
    from analysis.statistics.contrasts import Mediation
    from harness.study.records import AnalysisPlan

TITLES = {
    "C1": "In CNNs without skip connections, ReLU before batch norm is best",
    "C2": "... as a result of higher gradient flow",
    "C3": "In residual networks the order does not affect accuracy",
    "C4": "In residual networks the order does not affect gradient flow",
    "C5": "Skip connections are what makes the difference",
}
CHANCE = {
    "cifar10": 10.0,
    "cifar100": 1.0,
    "digits": 10.0,
    "fashion-mnist": 10.0,
    "mnist": 10.0,
    "svhn": 10.0,
}
"""Accuracy of guessing, in percent, for the sensitivity analysis of divergences."""
_SYNTHETIC = re.compile(r"synthetic:\d+x\d+x\d+x(?P<classes>[1-9]\d*)x\d+", re.ASCII)
"""Channels, height, width, classes and images of a data set that its name describes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The deciding contrast on gradient flow, had the plan fixed another scalar of it.

    Units:
        Dex.
    """

    name: str
    """"at the last reading"."""
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
    """What other methods say of the deciding effect. Printed beside the verdict, never deciding.

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
    rope_probability: float
    """P(|effect| < margin) under a flat prior."""
    superiority: float
    """P(arm > baseline): share of pairs the arm wins, ties counted half."""
    estimate_at_chance: float
    """The estimate with diverged trials scored at chance; NaN for gradient flow, and where trials
    diverged on a data set whose chance is not known."""
    other_flows: tuple[Sensitivity, ...]
    """Of gradient flow, its other scalars; empty of accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One claim, judged on one data set and recipe."""

    claim: str
    """"C1" to "C5"."""
    title: str
    """The claim in one plain sentence."""
    dataset: str
    recipe: str
    word: str
    """`supported`, `contradicted`, `equivalent` or `inconclusive`: what is shown of the effect."""
    holds: bool | None
    """The claim as stated is borne out (True), refuted (False), open (None)."""
    grade: str
    """Qualifies the word where it must be: "consistent, cause not tested"; else empty."""
    sentence: str
    """The verdict with its numbers, one sentence, ready to print."""
    reason: str
    """Which rule led to the word."""
    settle: str
    """What would settle it; empty where it is settled."""
    p: float
    """Of the test that led to the word (the smallest of its tests where none did); NaN: untestable."""
    p_holm: float
    """The same, Holm-adjusted over the primary claims."""
    family_size: int
    """m of that Holm family; claims that could not be tested count."""
    alpha: float
    """Level after the correction for planned looks."""
    smallest_margin: float
    """Smallest margin at which the effect would be shown to lie within, with the agreement of
    cells and the Holm level that takes, in the effect's unit; NaN if none would do."""
    more_seeds: int | None
    """Further seeds per cell that would settle it with 80 % power; None: settled, or not foreseeable."""
    device_hours: float
    """What those seeds would take, by the wall times of the rows; NaN where `more_seeds` is None."""
    fragile: str
    """Where the robustness panel disagrees in sign or word; empty where it agrees."""
    robustness: Robustness | None
    headline: Effect | None
    """The pooled effect that decides; None where nothing could be estimated."""
    effects: tuple[Effect, ...]
    """All effects the verdict rests on: pooled ones first, then cell by cell."""


def judge(results: Results, *, rng: np.random.Generator | None = None) -> tuple[Verdict, ...]:
    """Judge C1 to C5 for every data set and recipe, in that order.

    `rng` serves the Monte-Carlo parts of the robustness panel; no verdict depends on it.
    """
    return judge_outcomes(collect_outcomes(results), results.plan, rng=rng)


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
    alpha = pocock_level(plan.alpha, plan.looks)
    margins = {quantity: margin_of(quantity, plan) for quantity in UNITS}
    weighed = [
        weigh(
            outcomes,
            margin_accuracy=margins["accuracy"],
            margin_flow=margins["gradient"],
            alpha=alpha,
        )
        for outcomes in studies
    ]
    affirms_M, contradicts_M, equates_M = (
        np.concatenate([getattr(evidence, way) for evidence in weighed])
        for way in ("affirms_M", "contradicts_M", "equates_M")
    )
    words = [word for evidence in weighed for word in evidence.words]
    family = call(affirms_M, contradicts_M, equates_M, words=words, alpha=alpha)
    # Where equivalence is the claim it affirms, elsewhere it refutes.
    equates_level_M = np.where(
        np.array(words) == "equivalent",
        holm_level(affirms_M, alpha=alpha),
        holm_level(np.fmin(contradicts_M, equates_M), alpha=alpha),
    )
    if effects is None:
        effects = [e for quantity in UNITS for e in find_effects(quantity, studies, plan, rng=rng)]
    return tuple(
        _write_verdict(
            claim,
            outcomes,
            evidence,
            family,
            number=number,
            equates_level=float(equates_level_M[number]),
            effects=effects,
            alpha=alpha,
            rng=rng,
        )
        for number, (outcomes, evidence, claim) in enumerate(
            (outcomes, evidence, claim)
            for outcomes, evidence in zip(studies, weighed, strict=True)
            for claim in CLAIMS
        )
    )


def _write_verdict(
    claim: str,
    outcomes: Outcomes,
    evidence: Evidence,
    family: Call,
    *,
    number: int,
    equates_level: float,
    effects: Sequence[Effect],
    alpha: float,
    rng: np.random.Generator,
) -> Verdict:
    word = str(family.word_M[number])
    is_consistent = bool(family.is_consistent_M[number])
    comparisons = evidence.comparisons[claim]
    position = CLAIMS.index(claim)
    affirms, contradicts, equates = (
        float(p_M[position])
        for p_M in (evidence.affirms_M, evidence.contradicts_M, evidence.equates_M)
    )
    refutes = float(np.fmin(contradicts, equates))
    affirmed_word = evidence.words[position]
    is_open = word == "inconclusive" and not is_consistent
    is_affirming = not refutes < affirms if is_open else word == affirmed_word
    p, adjusted_M = (affirms, family.affirms_M) if is_affirming else (refutes, family.refutes_M)
    common = {
        "claim": claim,
        "title": TITLES[claim],
        "dataset": outcomes.dataset,
        "recipe": outcomes.recipe,
        "word": word,
        "holds": None if word == "inconclusive" else word == affirmed_word,
        "grade": "consistent, cause not tested" if is_consistent else "",
        "p": p,
        "p_holm": float(adjusted_M[number]),
        "family_size": family.word_M.size,
        "alpha": alpha,
    }
    if not comparisons:
        return Verdict(
            **common,
            sentence="The grid has no trials that could show it.",
            reason="",
            settle=f"add {_NEEDS[claim]} to the grid",
            smallest_margin=float("nan"),
            more_seeds=None,
            device_hours=float("nan"),
            fragile="",
            robustness=None,
            headline=None,
            effects=(),
        )
    first = _find_decisive(claim, word, comparisons)
    level = equates_level / (1 + len(_grafts_among(comparisons)))
    smallest_margin = _find_smallest_margin(first, level=level, alpha=alpha)
    chosen = _choose_effects(claim, outcomes, first, effects)
    panel = _cross_check(outcomes, first, rng=rng)
    more_seeds = None
    if is_open:
        more_seeds = _count_more_seeds(
            claim, outcomes, comparisons, alpha=alpha / family.word_M.size
        )
    hours = _estimate_hours(outcomes, comparisons, more_seeds)
    return Verdict(
        **common,
        sentence=_say(claim, word, chosen, comparisons),
        reason="; ".join(
            [
                _explain(
                    claim,
                    word,
                    comparisons,
                    evidence.mediation,
                    p=common["p"],
                    p_holm=common["p_holm"],
                    family_size=family.word_M.size,
                    is_consistent=is_consistent,
                    alpha=alpha,
                    rng=rng,
                ),
                *_qualify(claim, word, chosen[0], smallest_margin),
            ]
        ),
        settle=_advise(claim, comparisons, more_seeds, hours) if word == "inconclusive" else "",
        smallest_margin=smallest_margin,
        more_seeds=more_seeds,
        device_hours=hours,
        fragile=_find_disagreement(word, first, panel, alpha=alpha),
        robustness=panel,
        headline=chosen[0],
        effects=chosen,
    )


_NAMES = {"accuracy": "accuracy", "gradient": "gradient flow"}
_NEEDS = {
    "C1": "plain or vgg with placements after and before",
    "C2": "plain or vgg with placements after and before",
    "C3": "resnet or preresnet with placements after and before",
    "C4": "resnet or preresnet with placements after and before",
    "C5": "plain and resnet of equal depth with placements after and before",
}


def _find_decisive(claim: str, word: str, comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison that the word rests on: the first, but for C2, which any of several refutes."""
    flow = comparisons[0]
    if claim == "C2" and word == "equivalent":
        found = (flow, *_grafts_among(comparisons))
        return found[int(np.nanargmin([one.p_equal for one in found]))]
    if claim == "C2" and word == "contradicted":
        return comparisons[int(np.nanargmin([one.p_down for one in comparisons]))]
    return flow


def _grafts_among(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return [one for one in comparisons if (one.arm, one.baseline) in GRAFTS]


def _choose_effects(
    claim: str, outcomes: Outcomes, first: Comparison, effects: Sequence[Effect]
) -> tuple[Effect, ...]:
    """The effects that the claim rests on: the deciding one first, pooled ones, then the cells."""
    study = [
        effect
        for effect in effects
        if (effect.dataset, effect.recipe) == (outcomes.dataset, outcomes.recipe)
    ]
    own = [effect for effect in study if effect.family == claim]
    if claim == "C2":  # the accuracy that the flow is to explain
        own += [
            effect
            for effect in study
            if (effect.family, effect.kind, effect.baseline) == ("C1", "pooled", "before")
        ]
    if claim == "C5":  # what the interaction is the difference of
        own += [
            effect
            for effect in study
            if effect.kind == "cell"
            and effect.architecture in TWINS
            and (effect.quantity, effect.arm, effect.baseline) == ("accuracy", "after", "before")
        ]

    def rank(effect: Effect) -> tuple[bool, bool, bool]:
        decides = (effect.quantity, effect.arm, effect.baseline)
        return (
            effect.kind == "cell",
            decides != (first.quantity, first.arm, first.baseline),
            effect.architecture is not None,
        )

    return tuple(sorted(own, key=rank))


def _say(
    claim: str, word: str, effects: Sequence[Effect], comparisons: Sequence[Comparison]
) -> str:
    """The verdict with its numbers, in one sentence."""
    headline = effects[0]
    pool = _name_pool(headline)
    pairs = _count_pairs(headline)
    number = _quote(headline, equivalence=word == "equivalent")
    margin = _quote_margin(headline.quantity, headline.margin)
    within = f", within {margin}" if word == "equivalent" else ""
    alone = _tell_divergences(headline)
    if np.isnan(headline.se):
        # The trials that are missing here are an outcome, if it is divergence that took them.
        return f"{pool}: {_tell_why_not_estimated(headline)}{alone}."
    if claim == "C5":
        return (
            f"Without skips ReLU before batch norm changes accuracy by {number} more than with "
            f"them{within}, on twins of equal depth ({pairs}){alone}."
        )
    contrast = _name_contrast(headline)
    if claim == "C2" and headline.quantity == "accuracy":  # the flow differs, but does not act so
        flow = next(e for e in effects if e.kind == "pooled" and e.quantity == "gradient")
        return (
            f"{pool}: {_name_contrast(flow)} is {_quote(flow)}, and yet accuracy of {contrast} is "
            f"{number}{within} ({pairs}){alone}."
        )
    sentence = f"{pool}: {contrast} is {number}{within} ({pairs}){alone}"
    if claim == "C1" and len(comparisons) > 1 and word != "equivalent":
        norm = next(effect for effect in effects if effect.baseline == "none")
        sentence += f"; after minus none is {_quote(norm)}{_tell_divergences(norm)}"
    if claim == "C2" and word != "equivalent":
        pooled = [e for e in effects if e.kind == "pooled" and e.quantity == "accuracy"]
        order = next(e for e in pooled if (e.arm, e.baseline) == ("after", "before"))
        sentence += f"; accuracy of after minus before is {_quote(order)}"
        for effect in pooled:
            if (effect.arm, effect.baseline) in GRAFTS and effect.label == order.label:
                sentence += f", and of {_name_contrast(effect)} {_quote(effect)}"
    return sentence + "."


def _name_contrast(effect: Effect) -> str:
    if effect.quantity == "gradient":
        return f"gradient flow of {effect.arm} over {effect.baseline}"
    return f"{effect.arm} minus {effect.baseline}"


def _count_pairs(effect: Effect) -> str:
    """Pairs with a difference, and of how many where some are lacking.

    A cell of one pair has no spread, so the cells told are those of two pairs or more.
    """
    of = f" of {effect.pairs_planned}" if effect.pairs < effect.pairs_planned else ""
    return (
        f"{effect.pairs}{of} {_plural('pair', max(effect.pairs, effect.pairs_planned))} "
        f"in {effect.cells} {_plural('cell', effect.cells)}"
    )


def _tell_why_not_estimated(effect: Effect) -> str:
    pairs = f"{effect.pairs_planned} {_plural('pair', effect.pairs_planned)}"
    if effect.pairs == 0:
        return f"not one of {pairs} gives a difference"
    if effect.cells == 0:
        return "no cell has two pairs, so nothing tells a difference from chance"
    return f"{_count_pairs(effect)} do not vary at all, so nothing tells a difference from chance"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _tell_divergences(effect: Effect) -> str:
    """The pairs in which an arm diverged: they are in no difference, and yet an outcome."""
    found = [
        f"{who} {count}"
        for who, count in (
            (f"{effect.arm} alone", effect.diverged_arm),
            (f"{effect.baseline} alone", effect.diverged_baseline),
            ("both", effect.diverged_both),
        )
        if count
    ]
    if not found:
        return ""
    return f"; divergences in {effect.pairs_planned} pairs: {', '.join(found)}"


def _name_pool(effect: Effect) -> str:
    return effect.label[0].upper() + effect.label[1:]


def _quote(effect: Effect, *, equivalence: bool = False) -> str:
    """The estimate with its interval in the unit people think in: points, or a ratio of flow."""
    if np.isnan(effect.se):
        return "not to be estimated"
    low, high = (effect.low90, effect.high90) if equivalence else (effect.low, effect.high)
    level = "90 %: " if equivalence else ""
    if effect.quantity == "gradient":
        return f"{10**effect.estimate:.2f} [{level}{10**low:.2f}, {10**high:.2f}]"
    return f"{effect.estimate:+.2f} points [{level}{low:+.2f}, {high:+.2f}]"


def _quote_margin(quantity: str, margin: float) -> str:
    if quantity == "gradient":
        return f"{10**-margin:.2f} to {10**margin:.2f}"
    return f"±{margin:.3g} points"


def _explain(
    claim: str,
    word: str,
    comparisons: Sequence[Comparison],
    mediation: Mediation | None,
    *,
    p: float,
    p_holm: float,
    family_size: int,
    is_consistent: bool,
    alpha: float,
    rng: np.random.Generator,
) -> str:
    """Which rule led to the word."""
    first = comparisons[0]
    tested = f"{_tell_p(p)}; after Holm over {family_size} claims {_tell_p(p_holm)}"
    if np.isnan(p):
        tested = "nothing could be tested"
    if claim == "C2" and mediation is not None and word == "inconclusive":
        tested += "; " + _explain_mediation(first, mediation, rng=rng)
    if word != "inconclusive":
        against = "a difference beyond the margin" if claim in {"C3", "C4"} else "a difference"
        found = [
            {
                "supported": "a difference in the claimed direction",
                "contradicted": f"{against} against the claim",
                "equivalent": "two one-sided tests within the margin, and cells that agree",
            }[word]
            + f": {tested}"
        ]
        found += dict.fromkeys(filter(None, map(_count_divergences, comparisons)))
        if claim == "C1" and word == "supported" and len(comparisons) == 1:
            found.append("the grid has no placement 'none', so only the order was judged")
        if word == "supported" and float(first.p_equal) <= alpha:
            found.append("the difference is shown to be smaller than the margin that matters")
        return "; ".join(found)
    obstacles = [obstacle for one in comparisons for obstacle in _find_obstacles(one, alpha=alpha)]
    if is_consistent:
        obstacles.append("trials that are only observed cannot tell a cause from what goes with it")
    elif claim == "C2":
        obstacles.append("higher flow, higher accuracy and a path between them are not all shown")
    elif not obstacles:
        obstacles.append("neither a difference nor its absence is shown")
    return "; ".join([*dict.fromkeys(obstacles), tested])


def _qualify(claim: str, word: str, headline: Effect, smallest_margin: float) -> Iterator[str]:
    """What goes with the numbers of any word: the margin it would take, the test set's own part."""
    is_about_equality = claim in {"C3", "C4"} or word in {"equivalent", "inconclusive"}
    if is_about_equality and np.isfinite(smallest_margin):
        margin = _quote_margin(headline.quantity, smallest_margin)
        yield f"the smallest margin at which it would be called equivalent is {margin}"
    if headline.test_se > 0:
        yield (
            f"the standard error is {headline.se:.2f} points over seeds, and "
            f"{headline.test_se:.2f} from the finite test set, which more seeds do not reduce"
        )


def _tell_p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _explain_mediation(flow: Comparison, mediation: Mediation, *, rng: np.random.Generator) -> str:
    if np.isnan(mediation.slope):
        return "too few pairs for a slope of accuracy on flow"
    low, high = product_interval(
        float(flow.pooled.estimate),
        float(flow.pooled.se),
        float(flow.pooled.df),
        float(mediation.slope),
        float(mediation.se),
        float(mediation.df),
        rng=rng,
    )
    through = float(flow.pooled.estimate * mediation.slope)
    return (
        f"within pairs accuracy changes by {float(mediation.slope):+.2f} points per dex of flow "
        f"({_tell_p(float(mediation.p))}), so {through:+.2f} points [{low:+.2f}, {high:+.2f}] "
        "could run through it"
    )


def _find_obstacles(one: Comparison, *, alpha: float) -> list[str]:
    """What stands in the way of a word, whatever the p-values."""
    found = []
    against = f"{one.arm} and {one.baseline}"
    if missing := one.planned - int(one.run):
        found.append(f"{missing} of {one.planned} pairs of {against} are missing")
    if one.fewest_pairs < FEWEST_PAIRS:
        found.append(
            f"the thinnest cell has {int(one.fewest_pairs)} "
            f"{_plural('pair', int(one.fewest_pairs))} of {against}, and {FEWEST_PAIRS} are needed"
        )
    elif one.fewest_trained < FEWEST_PAIRS:
        lack = "both trained" if _count_diverged(one) else f"{_NAMES[one.quantity]} is a number"
        found.append(
            f"in the thinnest cell of {against} {lack} in {int(one.fewest_trained)} "
            f"{_plural('pair', int(one.fewest_trained))}, and {FEWEST_PAIRS} are needed"
        )
    if divergences := _count_divergences(one):
        found.append(f"{divergences}, so nothing can be called equivalent")
    if one.is_opposed_up and one.is_opposed_down:
        found.append("single cells differ significantly in opposite directions")
    elif _is_opposed(one):
        found.append("a single cell differs significantly in the opposite direction")
    is_whole = bool(np.isfinite(one.parts.se).all())
    if is_whole and one.pooled.p_equivalent(one.margin) <= alpha and not one.is_homogeneous:
        found.append(
            f"the mean {_NAMES[one.quantity]} of {against} differs by less than the margin, but "
            + (
                f"the cells do not agree (heterogeneity {_tell_p(float(one.p_heterogeneity))})"
                if one.p_heterogeneity <= HETEROGENEITY_LEVEL
                else "the estimate of a single cell does not"
            )
        )
    return found


def _is_opposed(one: Comparison) -> bool:
    """Does a cell contradict the pooled estimate?"""
    return bool(one.is_opposed_up if one.pooled.estimate > 0 else one.is_opposed_down)


def _count_diverged(one: Comparison) -> int:
    """Pairs in which any arm diverged."""
    return int(one.arm_only + one.baseline_only + one.both_diverged)


def _count_divergences(one: Comparison) -> str:
    if one.arm_only + one.baseline_only == 0:
        return ""
    if _is_interaction(one):
        return "placements diverged in unlike numbers of trials"
    return (
        f"only {one.arm} diverged in {int(one.arm_only)} "
        f"{_plural('pair', int(one.arm_only))} and only {one.baseline} in {int(one.baseline_only)}"
    )


def _advise(
    claim: str, comparisons: Sequence[Comparison], more_seeds: int | None, hours: float
) -> str:
    """What would settle a claim that is not, the trials first that are planned already."""
    missing = max(one.planned - int(one.run) for one in comparisons)
    is_discordant = any(one.arm_only + one.baseline_only > 0 for one in comparisons)
    steps = [f"the {missing} planned {_plural('pair', missing)} that did not run"] * (missing > 0)
    if more_seeds is not None:
        cost = "" if np.isnan(hours) else f", {_tell_hours(hours)}"
        steps.append(
            f"{more_seeds} more {_plural('seed', more_seeds)} per cell would settle this with "
            f"80 % power{cost}"
        )
    elif any(one.fewest_pairs < FEWEST_PAIRS for one in comparisons):
        steps.append(f"at least {FEWEST_PAIRS} seeds in every cell")
    elif is_discordant or not missing:
        steps.append(_advise_beyond_seeds(claim, comparisons))
    return "; then ".join(steps)


def _advise_beyond_seeds(claim: str, comparisons: Sequence[Comparison]) -> str:
    """What would settle a claim that more seeds alone do not."""
    thin = [one for one in comparisons if one.fewest_trained < FEWEST_PAIRS]
    if any(one.arm_only + one.baseline_only > 0 for one in comparisons) or any(
        map(_count_diverged, thin)
    ):
        return "a recipe under which both placements train"
    if thin:
        return f"readings of {_NAMES[thin[0].quantity]} that are numbers"
    if claim == "C2" and not _grafts_among(comparisons):
        return (
            "arms that borrow each other's flow, in the networks without skips: "
            "placement after with flow before, and placement before with flow after"
        )
    if any(np.isnan(one.pooled.se) for one in comparisons):
        return "rows that record which test images were right: these differences do not vary at all"
    if not all(one.is_homogeneous for one in comparisons):
        return "a claim about each cell by itself: the effect is not the same everywhere"
    return "seeds alone will not: the effect lies too close to the margin"


def _tell_hours(hours: float) -> str:
    """Device time to two digits, in the unit that keeps it readable."""
    if hours < 1 / 60:
        return "less than a device-minute"
    if hours < 1:
        return f"about {60 * hours:.2g} device-minutes"
    return f"about {hours:.2g} device-hours" if hours < 100 else f"about {hours:,.0f} device-hours"


def _count_more_seeds(
    claim: str, outcomes: Outcomes, comparisons: Sequence[Comparison], *, alpha: float
) -> int | None:
    """Further seeds per cell that settle the claim.

    Planned so that either way would be shown: an effect as large as the margin, or none at all.
    Where the rows speak against there being none, or where that many seeds have run already, the
    plan is for the effect that was seen.

    None where no comparison is open (they contradict each other), or where seeds are not what is
    missing.
    """
    if claim == "C2" and not _grafts_among(comparisons):
        return None  # more rows that are only observed show no cause either
    is_about_equality = claim in {"C3", "C4"}
    needed = []
    for one in comparisons:
        differs = one.p_beyond if is_about_equality else np.fmin(one.p_up, one.p_down)
        if np.fmin(differs, one.p_equal) <= alpha:
            continue
        is_seen = bool(np.abs(one.pooled.estimate) >= one.pooled.half_width(0.95))
        disagree = not one.is_homogeneous and one.p_heterogeneity <= HETEROGENEITY_LEVEL
        if _is_opposed(one) or (disagree and (is_about_equality or not is_seen)):
            return None
        if np.isnan(one.pooled.se) or one.arm_only + one.baseline_only > 0:
            return None
        diff_CS = outcomes.difference(one.quantity, one.arm, one.baseline)[one.is_member_C]
        pairs_C = cell_moments(diff_CS)[0]
        seeds = float(pairs_C[pairs_C >= 2].mean())
        now = {"se": float(one.pooled.se), "df": float(one.pooled.df), "seeds": seeds}
        plan = None
        if not is_seen:
            plan = seeds_needed_to_settle(one.margin, **now, alpha=alpha)
        if plan is None or plan <= seeds:
            plan = seeds_needed_to_decide(
                float(one.pooled.estimate),
                one.margin,
                **now,
                alpha=alpha,
                against_zero=not is_about_equality,
            )
        if plan is None or plan <= seeds:
            return None
        needed.append(int(np.ceil(plan - seeds)))
    return max(needed, default=None)


def _is_interaction(one: Comparison) -> bool:
    return one.parts.estimate.shape[-1] != one.is_member_C.sum()


def _estimate_hours(
    outcomes: Outcomes, comparisons: Sequence[Comparison], more_seeds: int | None
) -> float:
    """Device-hours of more seeds in every arm and cell concerned, at the wall times seen."""
    if more_seeds is None:
        return float("nan")
    is_wanted_PC = np.zeros(outcomes.wall_time_PCS.shape[:-1], bool)
    for one in comparisons:
        for placement in (one.arm, one.baseline):
            is_wanted_PC[outcomes.placements.index(placement)] |= one.is_member_C
    times_KS = outcomes.wall_time_PCS[is_wanted_PC]
    has_run_KS = np.isfinite(times_KS)
    if not has_run_KS.any(-1).all():
        return float("nan")
    mean_K = np.where(has_run_KS, times_KS, 0.0).sum(-1) / has_run_KS.sum(-1)
    return float(more_seeds * mean_K.sum() / 3600)


def _find_smallest_margin(one: Comparison, *, level: float, alpha: float) -> float:
    """The margin at which equivalence would just be called; NaN where no margin would do."""
    if one.arm_only + one.baseline_only > 0 or one.fewest_trained < FEWEST_PAIRS:
        return float("nan")
    pooled = np.abs(one.pooled.estimate) + special.stdtrit(one.pooled.df, 1 - level) * one.pooled.se
    part_K = np.abs(one.parts.estimate)
    if one.p_heterogeneity <= HETEROGENEITY_LEVEL:  # then each cell has to pass by itself
        part_K = part_K + special.stdtrit(one.parts.df, 1 - alpha) * one.parts.se
    return float(np.maximum(pooled, part_K.max()))


def _cross_check(
    outcomes: Outcomes, one: Comparison, *, rng: np.random.Generator
) -> Robustness | None:
    """What other methods say of the pooled effect."""
    diff_CS = outcomes.difference(one.quantity, one.arm, one.baseline)
    if _is_interaction(one):
        twin_KC = find_twins(outcomes.cells, one.is_member_C)
        diff_KS = diff_CS[twin_KC.argmax(-1)] - diff_CS[twin_KC.argmin(-1)]
    else:
        diff_KS = diff_CS[one.is_member_C]
    weight_K = mean_weights(diff_KS, np.ones(len(diff_KS), bool))
    is_paired_KS = np.isfinite(diff_KS) & (weight_K != 0)[:, None]
    if is_paired_KS.sum() < 2 or np.isnan(one.pooled.se):
        return None
    pairs_K = is_paired_KS.sum(-1)
    share_KS = np.where(is_paired_KS, (weight_K / np.maximum(pairs_K, 1))[:, None], 0.0)
    diff_P = diff_KS[is_paired_KS]
    weighted_P = diff_P * share_KS[is_paired_KS]
    pooled = one.pooled
    inside = special.stdtr(pooled.df, (one.margin - pooled.estimate) / pooled.se) - special.stdtr(
        pooled.df, (-one.margin - pooled.estimate) / pooled.se
    )
    return Robustness(
        p_sign_flip=sign_flip_test(weighted_P, rng=rng),
        p_sign_flip_floor=sign_flip_floor(weighted_P),
        p_signed_rank=signed_rank_test(diff_P),
        hodges_lehmann=hodges_lehmann(diff_P),
        rope_probability=float(inside),
        superiority=superiority(diff_P),
        estimate_at_chance=_score_at_chance(outcomes, one),
        other_flows=tuple(_vary_flow(outcomes, one)) if one.quantity == "gradient" else (),
    )


def _vary_flow(outcomes: Outcomes, one: Comparison) -> Iterator[Sensitivity]:
    for name, flow_PCS in outcomes.other_flows.items():
        diff_CS = replace(outcomes, flow_PCS=flow_PCS).difference(
            one.quantity, one.arm, one.baseline
        )
        contrast = estimate_contrast(
            diff_CS,
            _weights_of(outcomes, one, diff_CS),
            block_C=outcomes.block_C,
            floor=outcomes.floor(one.quantity),
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
    if _is_interaction(one):
        return twin_weights(diff_CS, find_twins(outcomes.cells, one.is_member_C))
    return mean_weights(diff_CS, one.is_member_C)


def _guess(dataset: str) -> float:
    """Accuracy of guessing, in percent; NaN where it is not known.

    >>> _guess("synthetic:3x32x32x5x6000")
    20.0
    """
    if described := _SYNTHETIC.fullmatch(dataset):
        return 100 / int(described["classes"])
    return CHANCE.get(dataset, float("nan"))


def _score_at_chance(outcomes: Outcomes, one: Comparison) -> float:
    """The estimate with diverged trials scored as guessing; NaN where guessing is not known."""
    if one.quantity != "accuracy":
        return float("nan")
    chance = _guess(outcomes.dataset)
    if np.isnan(chance) and outcomes.diverged_PCS.any():
        return float("nan")
    scored_PCS = np.where(outcomes.diverged_PCS, chance, outcomes.accuracy_PCS)
    diff_CS = replace(outcomes, accuracy_PCS=scored_PCS).difference(
        "accuracy", one.arm, one.baseline
    )
    weight_C = _weights_of(outcomes, one, diff_CS)
    return float(estimate_contrast(diff_CS, weight_C, block_C=outcomes.block_C).estimate)


def _find_disagreement(
    word: str, one: Comparison, panel: Robustness | None, *, alpha: float
) -> str:
    """Where the panel disagrees with the verdict in sign or word."""
    if panel is None or word == "inconclusive":
        return ""
    found = []
    sign = np.sign(one.pooled.estimate)
    if word == "contradicted" and not one.pooled.p <= alpha:
        return ""  # it rests on a single cell or on divergences, of which the panel knows nothing
    if word == "equivalent":
        if panel.rope_probability < 1 - alpha:
            found.append(f"P(within the margin) is {panel.rope_probability:.2f}")
        if abs(panel.hodges_lehmann) >= one.margin:
            found.append("the Hodges-Lehmann estimate lies outside the margin")
        found += [
            f"flow {other.name} differs beyond the margin ({_tell_p(other.p_minimal)})"
            for other in panel.other_flows
            if other.p_minimal <= alpha
        ]
    else:
        # The floor is that of every test on signs; above alpha they have no say.
        can_reject = panel.p_sign_flip_floor <= alpha
        if can_reject and panel.p_sign_flip > alpha:
            found.append(f"the sign-flip test has {_tell_p(panel.p_sign_flip)}")
        if can_reject and panel.p_signed_rank > alpha:
            found.append(f"the signed-rank test has {_tell_p(panel.p_signed_rank)}")
        if sign * panel.hodges_lehmann < 0:
            found.append("the Hodges-Lehmann estimate has the other sign")
        found += [
            f"flow {other.name} differs the other way ({_tell_p(other.p)})"
            for other in panel.other_flows
            if other.p <= alpha and sign * other.estimate < 0
        ]
    if sign * panel.estimate_at_chance < 0 and word != "equivalent":
        found.append("scoring divergences at chance turns the sign")
    return "; ".join(found)
