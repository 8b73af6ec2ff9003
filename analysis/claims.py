"""Say the verdict on each claim: its word, its numbers, why, and what would settle it.

Legend of shape suffixes: M claims, C cells, S seeds, P pairs, K parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from analysis.contrasts import estimate_contrast, mean_weights, twin_weights
from analysis.effects import GRAFTS, TWINS, UNITS, Effect, find_effects, find_twins, margin_of
from analysis.evidence import CLAIMS, FEWEST_PAIRS, call, weigh
from analysis.outcomes import collect_outcomes
from analysis.power import pocock_level, seeds_needed_to_decide, seeds_needed_to_settle
from analysis.resampling import (
    hodges_lehmann,
    product_interval,
    sign_flip_floor,
    sign_flip_test,
    signed_rank_test,
    superiority,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from analysis.contrasts import Mediation
    from analysis.evidence import Call, Comparison, Evidence
    from analysis.load import Results
    from analysis.outcomes import Outcomes
    from harness.records import AnalysisPlan

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """What other methods say of the deciding effect. Printed beside the verdict, never deciding."""

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
    """Smallest margin at which the effect would be called equivalent, in its unit; NaN if none."""
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
    family = call(
        np.concatenate([evidence.affirms_M for evidence in weighed]),
        np.concatenate([evidence.contradicts_M for evidence in weighed]),
        np.concatenate([evidence.equates_M for evidence in weighed]),
        words=[word for evidence in weighed for word in evidence.words],
        alpha=alpha,
    )
    if effects is None:
        effects = [e for quantity in UNITS for e in find_effects(quantity, studies, plan, rng=rng)]
    return tuple(
        _write_verdict(
            claim,
            outcomes,
            evidence,
            family,
            number=CLAIMS.index(claim) + study * len(CLAIMS),
            effects=effects,
            alpha=alpha,
            rng=rng,
        )
        for study, (outcomes, evidence) in enumerate(zip(studies, weighed, strict=True))
        for claim in CLAIMS
    )


def _write_verdict(
    claim: str,
    outcomes: Outcomes,
    evidence: Evidence,
    family: Call,
    *,
    number: int,
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
    chosen = _choose_effects(claim, outcomes, first, effects)
    panel = _cross_check(outcomes, first, rng=rng)
    more_seeds = None
    if is_open:
        more_seeds = _count_more_seeds(claim, comparisons, alpha=alpha / family.word_M.size)
    hours = _estimate_hours(outcomes, comparisons, more_seeds)
    return Verdict(
        **common,
        sentence=_say(claim, word, chosen, comparisons),
        reason=_explain(
            claim,
            word,
            comparisons,
            evidence.mediation,
            p=common["p"],
            p_holm=common["p_holm"],
            family_size=family.word_M.size,
            alpha=alpha,
            rng=rng,
        ),
        settle=_advise(claim, comparisons, more_seeds, hours) if word == "inconclusive" else "",
        smallest_margin=_find_smallest_margin(first, alpha=alpha),
        more_seeds=more_seeds,
        device_hours=hours,
        fragile=_find_disagreement(word, first, panel, alpha=alpha),
        robustness=panel,
        headline=chosen[0],
        effects=chosen,
    )


_NEEDS = {
    "C1": "plain or vgg with placements after and before",
    "C2": "plain or vgg with placements after and before",
    "C3": "resnet or preresnet with placements after and before",
    "C4": "resnet or preresnet with placements after and before",
    "C5": "plain and resnet of equal depth with placements after and before",
}


def _find_decisive(claim: str, word: str, comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison that the word rests on: the first, but for C2, which any of several refutes."""
    flow, *others = comparisons
    if claim == "C2" and word == "equivalent":
        grafts = [one for one in others if (one.arm, one.baseline) in GRAFTS]
        return min((flow, *grafts), key=lambda one: float(one.p_equal))
    if claim == "C2" and word == "contradicted":
        return min(comparisons, key=lambda one: float(one.p_down))
    return flow


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
    pairs = f"{headline.pairs} pairs in {headline.cells} cell{'s' * (headline.cells != 1)}"
    number = _quote(headline, equivalence=word == "equivalent")
    within = f", within {_quote_margin(headline)}" if word == "equivalent" else ""
    alone = _tell_divergences(headline)
    if np.isnan(headline.se):
        # The trials that are missing here are an outcome, if it is divergence that took them.
        return f"{pool}: {pairs}, no effect to estimate{alone}."
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


def _tell_divergences(effect: Effect) -> str:
    """The pairs in which one arm alone diverged: they are in no difference, and yet an outcome."""
    found = [
        f"only {name} in {count}"
        for name, count in (
            (effect.arm, effect.diverged_arm),
            (effect.baseline, effect.diverged_baseline),
        )
        if count
    ]
    if not found:
        return ""
    return f"; of {effect.pairs_planned} pairs {' and '.join(found)} diverged"


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


def _quote_margin(effect: Effect) -> str:
    if effect.quantity == "gradient":
        return f"{10**-effect.margin:.2f} to {10**effect.margin:.2f}"
    return f"±{effect.margin:g} points"


def _explain(
    claim: str,
    word: str,
    comparisons: Sequence[Comparison],
    mediation: Mediation | None,
    *,
    p: float,
    p_holm: float,
    family_size: int,
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
        found += filter(None, [_count_divergences(one) for one in comparisons])
        if claim == "C1" and word == "supported" and len(comparisons) == 1:
            found.append("the grid has no placement 'none', so only the order was judged")
        if word == "supported" and float(first.p_equal) <= alpha:
            found.append("the difference is shown to be smaller than the margin that matters")
        return "; ".join(found)
    obstacles = [obstacle for one in comparisons for obstacle in _find_obstacles(one, alpha=alpha)]
    return "; ".join([*dict.fromkeys(obstacles), tested])


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
    if one.fewest_pairs < FEWEST_PAIRS:
        found.append(
            f"the thinnest cell has {int(one.fewest_pairs)} pair"
            f"{'s' * (int(one.fewest_pairs) != 1)} of {against}, and {FEWEST_PAIRS} are needed"
        )
    elif one.fewest_trained < FEWEST_PAIRS:
        found.append(f"{against} both trained in {int(one.fewest_trained)} pairs of a cell")
    if divergences := _count_divergences(one):
        found.append(f"{divergences}, so nothing can be called equivalent")
    if one.is_opposed_up and one.is_opposed_down:
        found.append("single cells differ significantly in opposite directions")
    elif (one.is_opposed_up and one.pooled.estimate > 0) or (
        one.is_opposed_down and one.pooled.estimate < 0
    ):
        found.append("a single cell differs significantly in the opposite direction")
    if one.pooled.p_equivalent(one.margin) <= alpha and not one.is_homogeneous:
        found.append(
            f"the mean lies within the margin but the cells do not agree "
            f"(heterogeneity {_tell_p(float(one.p_heterogeneity))})"
        )
    return found


def _count_divergences(one: Comparison) -> str:
    if one.arm_only + one.baseline_only == 0:
        return ""
    if _is_interaction(one):
        return "placements diverged in unlike numbers of trials"
    return (
        f"only {one.arm} diverged in {int(one.arm_only)} "
        f"pair{'s' * (int(one.arm_only) != 1)} and only {one.baseline} in "
        f"{int(one.baseline_only)}"
    )


def _advise(
    claim: str, comparisons: Sequence[Comparison], more_seeds: int | None, hours: float
) -> str:
    """What would settle a claim that is not."""
    if more_seeds is not None:
        cost = "" if np.isnan(hours) else f", about {hours:.2g} device-hours"
        return f"{more_seeds} more seeds per cell would settle this with 80 % power{cost}"
    if any(one.fewest_pairs < FEWEST_PAIRS for one in comparisons):
        return f"at least {FEWEST_PAIRS} seeds in every cell"
    if any(
        one.arm_only + one.baseline_only > 0 or one.fewest_trained < FEWEST_PAIRS
        for one in comparisons
    ):
        return "a recipe under which both placements train"
    if claim == "C2":
        return "an intervention that equalises gradient flow between the placements"
    if not all(one.is_homogeneous for one in comparisons):
        return "a claim about each cell by itself: the effect is not the same everywhere"
    return "seeds alone will not: the effect lies too close to the margin"


def _count_more_seeds(claim: str, comparisons: Sequence[Comparison], *, alpha: float) -> int | None:
    """Further seeds per cell, planned for an effect of the margin's size, then for the one seen.

    None where no comparison is open (they contradict each other), or where seeds are not what is
    missing.
    """
    is_about_equality = claim in {"C3", "C4"}
    needed = []
    for one in comparisons:
        differs = one.p_beyond if is_about_equality else np.fmin(one.p_up, one.p_down)
        if np.fmin(differs, one.p_equal) <= alpha:
            continue
        df_K = one.parts.df[np.isfinite(one.parts.df)]
        if not len(df_K) or np.isnan(one.pooled.se) or one.arm_only + one.baseline_only > 0:
            return None
        seeds = float(np.mean(df_K)) / (2 if _is_interaction(one) else 1) + 1
        now = {"se": float(one.pooled.se), "df": float(one.pooled.df), "seeds": seeds}
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


def _find_smallest_margin(one: Comparison, *, alpha: float) -> float:
    """The margin at which the two one-sided tests would just pass; NaN where no margin would do."""
    if one.arm_only + one.baseline_only > 0 or one.fewest_trained < FEWEST_PAIRS:
        return float("nan")
    reach = special.stdtrit(one.pooled.df, 1 - alpha) * one.pooled.se
    return float(np.abs(one.pooled.estimate) + reach)


def _cross_check(
    outcomes: Outcomes, one: Comparison, *, rng: np.random.Generator
) -> Robustness | None:
    """What other methods say of the pooled effect."""
    diff_CS = outcomes.difference(one.quantity, one.arm, one.baseline)
    weight_C = _weights_of(outcomes, one, diff_CS)
    is_paired_CS = np.isfinite(diff_CS) & (weight_C != 0)[:, None]
    if is_paired_CS.sum() < 2 or np.isnan(one.pooled.se):
        return None
    pairs_C = is_paired_CS.sum(-1)
    share_CS = np.where(is_paired_CS, (weight_C / np.maximum(pairs_C, 1))[:, None], 0.0)
    weighted_P = (np.nan_to_num(diff_CS) * share_CS)[is_paired_CS]
    # Of twins the residual half counts with its sign turned, as in the contrast.
    diff_P = (diff_CS * np.sign(weight_C)[:, None])[is_paired_CS]
    is_mean = bool((weight_C >= 0).all())
    pooled = one.pooled
    inside = special.stdtr(pooled.df, (one.margin - pooled.estimate) / pooled.se) - special.stdtr(
        pooled.df, (-one.margin - pooled.estimate) / pooled.se
    )
    return Robustness(
        p_sign_flip=sign_flip_test(weighted_P, rng=rng),
        p_sign_flip_floor=sign_flip_floor(weighted_P),
        p_signed_rank=signed_rank_test(diff_P) if is_mean else float("nan"),
        hodges_lehmann=hodges_lehmann(diff_P) if is_mean else float("nan"),
        rope_probability=float(inside),
        superiority=superiority(diff_P) if is_mean else float("nan"),
        estimate_at_chance=_score_at_chance(outcomes, one),
    )


def _weights_of(
    outcomes: Outcomes, one: Comparison, diff_CS: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights over all cells of the contrast that `one` stands on."""
    if _is_interaction(one):
        return twin_weights(diff_CS, find_twins(outcomes.cells, one.is_member_C))
    return mean_weights(diff_CS, one.is_member_C)


def _score_at_chance(outcomes: Outcomes, one: Comparison) -> float:
    """The estimate with diverged trials scored as guessing; NaN where guessing is not known."""
    if one.quantity != "accuracy":
        return float("nan")
    chance = CHANCE.get(outcomes.dataset, float("nan"))
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
    if word == "equivalent":
        if panel.rope_probability < 1 - alpha:
            found.append(f"P(within the margin) is {panel.rope_probability:.2f}")
        if abs(panel.hodges_lehmann) >= one.margin:
            found.append("the Hodges-Lehmann estimate lies outside the margin")
    else:
        # The floor is that of every test on signs; above alpha they have no say.
        can_reject = panel.p_sign_flip_floor <= alpha
        if can_reject and panel.p_sign_flip > alpha:
            found.append(f"the sign-flip test has {_tell_p(panel.p_sign_flip)}")
        if can_reject and panel.p_signed_rank > alpha:
            found.append(f"the signed-rank test has {_tell_p(panel.p_signed_rank)}")
        if sign * panel.hodges_lehmann < 0:
            found.append("the Hodges-Lehmann estimate has the other sign")
    if sign * panel.estimate_at_chance < 0 and word != "equivalent":
        found.append("scoring divergences at chance turns the sign")
    return "; ".join(found)
