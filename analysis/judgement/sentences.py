"""The words around a verdict: its sentence, its reason, its qualifier, what would settle it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.outcomes import WINDOWS
from harness.study.records import FEWEST_PAIRS
from harness.study.wording import format_count, list_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from analysis.judgement.comparisons import Comparison
    from analysis.judgement.effects import Effect
    from analysis.judgement.evidence import Mechanism
    from analysis.judgement.studies import Study

NEEDS = {
    "C1": "plain or vgg with placements after and before",
    "C2": "plain or vgg with placements after and before",
    "C3": "resnet or preresnet with placements after and before",
    "C4": "resnet or preresnet with placements after and before",
    "C5": "plain and resnet of equal depth with placements after and before",
}
TOO_FEW = f"no cell has {FEWEST_PAIRS} pairs, so nothing tells a difference from chance"
_POOLS = {
    "C1": "CNNs without skips",
    "C2": "CNNs without skips",
    "C3": "Residual networks",
    "C4": "Residual networks",
}


@dataclass(frozen=True, kw_only=True)
class Story:
    """What is told of one claim, from the comparisons that it rests on."""

    claim: str
    study: Study
    word: str
    answer: str
    comparisons: Sequence[Comparison]
    mechanism: Mechanism | None
    unusable: Sequence[str]
    is_blind: bool
    """The positive control shows no difference in the claim's cells."""
    control: str
    alpha: float

    def sentence(self) -> str:
        """The verdict with its numbers, in one sentence."""
        first = self.comparisons[0]
        if np.isnan(first.pooled.se):
            return f"{self._pool()}: {_describe_absence(first)}{_describe_untrained(first)}."
        equal = self.word.startswith("equivalent")
        within = ""
        if equal:
            reach = "" if self.word == "equivalent" else " on average"
            within = f"{reach}, within {format_margin(first)}"
        number = format_estimate(first, equivalence=equal)
        match self.claim:
            case "C5":
                return (
                    f"What {self.study.norm_name} after {self.study.activation_name} gains, without "
                    f"skips minus with them, is {number}{within}, on twins of equal depth "
                    f"({format_pairs(first)})."
                )
            case "C4":
                return f"{self._pool()}: {self._describe_flows(equal=equal)}."
            case "C2":
                return f"{self._pool()}: {'; '.join(self._describe_mechanism())}."
        text = f"after minus before is {number}{within} ({format_pairs(first)})"
        text += _describe_untrained(first)
        for other in self.comparisons[1:]:
            quoted = format_estimate(other, equivalence=equal and self.claim == "C3")
            text += f"; {other.arm} minus {other.baseline} is {quoted}"
            if (pairs := format_pairs(other)) != format_pairs(first):
                text += f" ({pairs})"
            text += _describe_untrained(other)
        return f"{self._pool()}: {text}."

    def effect(self) -> str:
        """The number that the claim is about first, for a table; empty where there is none."""
        first = self.comparisons[0]
        if np.isnan(first.pooled.se):
            return ""
        kind = "ratio " if first.quantity in WINDOWS else ""
        return f"{kind}{format_estimate(first)}, {format_pairs(first)}"

    def qualify(self, *, is_consistent: bool, fragile: str) -> str:
        """What belongs in one breath with the word: the first of these that is so."""
        is_open = self.word == "inconclusive"
        conflicts = self.mechanism is not None and self.mechanism.is_conflicting(self.alpha)
        ways = {
            "consistent, cause not tested": is_consistent,
            "the two directions conflict": self.claim == "C2" and conflicts,
            "depends on when": is_open and self._depends_on_when(),
            "the control shows no difference either": is_open and self.is_blind,
            self._name_equal_arms(): self.claim in {"C3", "C4"}
            and self.word in {"inconclusive", "contradicted"},
            "fragile": bool(fragile),
        }
        return next((qualifier for qualifier, is_so in ways.items() if qualifier and is_so), "")

    def _name_equal_arms(self) -> str:
        arms = dict.fromkeys(one.arm for one in self.comparisons)
        equal = [arm for arm in arms if self._is_equal(arm)]
        return f"equivalent for {' and '.join(equal)} only" if 0 < len(equal) < len(arms) else ""

    def reason(self, *, p: float, p_holm: float, family_size: int) -> str:
        """Which rule led to the word."""
        tested = "no test decides"
        if np.isfinite(p):
            tested = f"{format_p(p)}; after Holm over {family_size} claims {format_p(p_holm)}"
        found = list(dict.fromkeys(self._list_exclusions()))
        if self.word == "inconclusive":
            return "; ".join([self._name_obstacle(), *self._list_obstacles(), *found, tested])
        rule = {
            "supported": "a difference in the claimed direction",
            "contradicted": "a difference beyond the margin"
            if self.claim in {"C3", "C4"}
            else "a difference against the claim",
            "equivalent": "two one-sided tests within the margin, in every cell that decides",
            "equivalent on average": "the mean lies within the margin, and not every cell is shown to",
        }[self.word]
        if self.claim == "C2" and self.word == "contradicted" and self.mechanism:
            rule = "the gain stays where both orders take steps of one size, or flow is lower"
        if self.claim == "C1" and self.word == "supported" and len(self.comparisons) == 1:
            found.append("the grid has no placement 'none', so only the order was judged")
        if self.word == "supported" and float(self.comparisons[0].p_equal) <= self.alpha:
            found.append("the difference is shown to be smaller than the margin that matters")
        if self.word == "equivalent on average":
            found = [*self._list_obstacles(), *found]
        if self.word == "equivalent" and not self.control:
            found.append("no positive control was run")
        return "; ".join([f"{rule}: {tested}", *found])

    def describe_margin(self, smallest_margin: float) -> str:
        """The margin it would take, where equality is in question."""
        is_asked = self.claim in {"C3", "C4"} or (
            self.claim != "C2" and self.word != "supported"  # C2 asks for a cause
        )
        if not is_asked or not np.isfinite(smallest_margin):
            return ""
        margin = _format_margin(self.comparisons[0].quantity, smallest_margin)
        return f"; the smallest margin at which it would be called equivalent is {margin}"

    def advise(self, more_seeds: int | None, hours: float, *, spent: int) -> str:
        """What would settle a claim that is open, the trials first that are planned already.

        `spent`: the seeds per cell where all planned looks are taken, so that no more may be added;
        else 0.
        """
        if self.answer == "no gain to explain":
            return "a study in which the order makes a difference to accuracy"
        missing = max(one.planned - int(one.run) for one in self.comparisons)
        steps = [f"the {format_count(missing, 'planned pair')} that did not run"] * (missing > 0)
        if more_seeds is not None:
            seeds = f"{format_count(more_seeds, 'more seed')} per cell"
            if spent:  # every look of this study is taken
                seeds = f"a new study of {spent + more_seeds} seeds per cell"
                hours *= 1 + spent / more_seeds
            cost = "" if np.isnan(hours) else f", {_format_hours(hours)}"
            steps.append(f"{seeds} would settle this with 80 % power{cost}")
        elif any(one.is_short_K.all() for one in self.comparisons):
            steps.append(f"at least {FEWEST_PAIRS} seeds in every cell")
        elif not missing or any(one.is_discordant for one in self.comparisons):
            steps.append(self._advise_beyond_seeds())
        return "; then ".join(steps)

    def _pool(self) -> str:
        return _POOLS.get(self.claim, "Twins")

    def _of_arm(self, arm: str) -> list[Comparison]:
        return [one for one in self.comparisons if one.arm == arm]

    def _is_equal(self, arm: str) -> bool:
        return bool(max(float(one.p_equal) for one in self._of_arm(arm)) <= self.alpha)

    def _depends_on_when(self) -> bool:
        """Do the windows of `after` give different words?"""
        flows = [one for one in self.comparisons if one.quantity in WINDOWS]
        words = {
            "higher" if one.p_up <= self.alpha else "lower" if one.p_down <= self.alpha else ""
            for one in flows
            if one.arm == "after" and one.p_equal > self.alpha
        } | {"equal" for one in flows if one.arm == "after" and one.p_equal <= self.alpha}
        return len(words - {""}) > 1 or (self.claim == "C4" and "" in words and len(words) > 1)

    def _describe_flows(self, *, equal: bool) -> str:
        """Flow of every arm over `before`, window by window."""
        flows = [one for one in self.comparisons if one.quantity in WINDOWS]
        texts = []
        for arm in dict.fromkeys(one.arm for one in flows):
            windows = [one for one in flows if one.arm == arm]
            numbers = ", ".join(
                f"{format_estimate(one, equivalence=equal)} {WINDOWS[one.quantity]}"
                for one in windows
            )
            texts.append(
                f"gradient flow of {arm} over before is {numbers} ({format_pairs(windows[0])})"
            )
        return "; ".join(texts)

    def _describe_mechanism(self) -> Iterator[str]:
        gain = self.comparisons[0]
        if self.answer == "no gain to explain":
            yield f"after gains nothing that matters over before: {format_estimate(gain)}"
        else:
            yield f"after minus before is {format_estimate(gain)} ({format_pairs(gain)})"
        yield self._describe_flows(equal=False).rpartition(" (")[0]
        if self.mechanism is None:
            return
        for giver, moved, stayed in zip(
            ("before", "after"), self.mechanism.moved, self.mechanism.stayed, strict=True
        ):
            yield (
                f"with the step sizes of {giver} in both orders after minus before is "
                f"{format_estimate(stayed)}, and {format_estimate(moved)} goes with them"
            )

    def _list_obstacles(self) -> Iterator[str]:
        """What stands in the way of a word, whatever the p-values."""
        for one in self.comparisons:
            against = f"{one.arm} and {one.baseline}"
            if missing := one.planned - int(one.run):
                yield f"{missing} of {one.planned} pairs of {against} are missing"
            if one.is_split:
                yield "accuracy where both trained and the risk of not training point opposite ways"
            if one.is_opposed_up and one.is_opposed_down:
                yield "single cells differ significantly in opposite directions"
            elif one.is_opposed_up if one.pooled.estimate > 0 else one.is_opposed_down:
                yield "a single cell differs significantly in the opposite direction"
            if one.is_discordant and one.risk.p_equivalent(one.margin_risk) > self.alpha:
                low, high = one.risk_interval(0.9)
                yield (
                    f"{one.arm} fails to train more often than {one.baseline} by "
                    f"{100 * float(one.risk.estimate):+.0f} points "
                    f"[90 %: {100 * float(low):+.0f}, {100 * float(high):+.0f}]"
                )

    def _name_obstacle(self) -> str:
        if self.answer == "no gain to explain":
            return "after is shown to gain no accuracy that matters: there is nothing to explain"
        if self.claim == "C2" and self.mechanism is None:
            return "arms that are only observed cannot tell a cause from what goes with it"
        if self.claim == "C2":
            flows = [float(one.p_up) for one in self.comparisons if one.quantity in WINDOWS]
            parts = {
                "that after gains accuracy": float(self.comparisons[0].p_up),
                "that its gradient flow is higher at every stage": max(flows, default=1.0),
                "that the gain goes with the step sizes": float(self.mechanism.p_goes),
            }
            missing = [part for part, p in parts.items() if not p <= self.alpha]
            return f"it is not shown {list_words(missing or ['all at once'])}"
        if self.is_blind:
            return (
                f"{self.control!r}, which is known to differ, does not differ here either, so "
                "equality could not have been told from blindness"
            )
        beyond = f" beyond {format_margin(self.comparisons[0])}" * (self.claim in {"C3", "C4"})
        return f"neither a difference{beyond} nor its absence in every cell is shown"

    def _list_exclusions(self) -> Iterator[str]:
        """The cells that decide nothing, counted."""
        for arm in self.unusable if self.claim == "C2" else ():
            yield f"{arm} is not shown to take the step sizes it was given, and is not used"
        for one in self.comparisons:
            parts, kind = one.is_judged_K.size, "twin" if one.is_interaction else "cell"
            if short := int(one.is_short_K.sum()):
                yield (
                    f"{short} of {format_count(parts, kind)} of {one.arm} and {one.baseline} "
                    f"{'has' if short == 1 else 'have'} fewer than {FEWEST_PAIRS} pairs, and "
                    f"{'decides' if short == 1 else 'decide'} nothing"
                )
            if dull := int(one.is_uninformative_K.sum()):
                yield (
                    f"{dull} of {format_count(parts, kind)} of {one.arm} and {one.baseline} "
                    f"{'is' if dull == 1 else 'are'} uninformative: nothing learned, or less left "
                    "to gain than the margin"
                )

    def _advise_beyond_seeds(self) -> str:
        if any(one.is_discordant for one in self.comparisons):
            return "more seeds or a recipe under which both placements train"
        if all(one.is_uninformative_K.all() for one in self.comparisons):
            return "networks that learn something and leave something to gain"
        if self.is_blind:
            return "a study in which the positive control differs"
        if self.claim == "C2" and self.mechanism is None:
            return (
                "arms that borrow each other's step sizes, in the networks without skips: after with "
                "the steps of before, and before with the steps of after"
            )
        if any(np.isnan(one.pooled.se) for one in self.comparisons):
            return "pairs that vary: these differences do not vary at all"
        return "not by seeds: the effect lies too close to the margin, or cells differ"


def describe_test_set(effect: Effect | None) -> str:
    """The part of the standard error that more seeds do not reduce, where it is known."""
    if effect is None or not effect.test_se > 0:
        return ""
    return (
        f"; the standard error is {effect.se:.2f} points over seeds, and {effect.test_se:.2f} from "
        "the finite test set, which more seeds do not reduce"
    )


def format_estimate(one: Comparison, *, equivalence: bool = False) -> str:
    """The pooled estimate with its interval in the unit people think in: points, or a ratio."""
    if np.isnan(one.pooled.se):
        return "not to be estimated"
    half = float(one.pooled.half_width(0.90 if equivalence else 0.95))
    estimate = float(one.pooled.estimate)
    low, high = estimate - half, estimate + half
    level = "90 %: " if equivalence else ""
    if one.quantity in WINDOWS:
        return f"{10**estimate:.2f} [{level}{10**low:.2f}, {10**high:.2f}]"
    return f"{estimate:+.2f} points [{level}{low:+.2f}, {high:+.2f}]"


def format_pairs(one: Comparison) -> str:
    """Pairs in the cells that decide, and of how many where some are lacking."""
    kind = "twin" if one.is_interaction else "cell"
    judged, parts = int(one.is_judged_K.sum()), one.is_judged_K.size
    cells = f"{judged} of " * (judged < parts) + format_count(parts, kind)
    pairs = int(one.pairs_K[one.is_judged_K].sum())
    return f"{format_count(pairs, 'pair')} in {cells}"


def format_margin(one: Comparison) -> str:
    """The margin of a comparison, as people think of it."""
    return _format_margin(one.quantity, one.margin)


def format_p(p: float) -> str:
    """A p-value, bounded where its digits would say nothing.

    >>> format_p(0.0123), format_p(1e-9), format_p(0.998)
    ('p = 0.012', 'p < 0.0001', 'p > 0.99')
    """
    if p > 0.99:
        return "p > 0.99"
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _format_margin(quantity: str, margin: float) -> str:
    if quantity in WINDOWS:
        return f"{10**-margin:.2f} to {10**margin:.2f}"
    return f"±{margin:.3g} points"


def _describe_absence(one: Comparison) -> str:
    """Why there is no estimate."""
    pairs = format_count(one.planned, "pair")
    if not one.pairs_K.sum():
        return f"not one of {pairs} gives a difference"
    if one.is_uninformative_K.all():
        return "nothing learned, or less left to gain than the margin, so nothing could have shown"
    if one.is_short_K.all():
        return TOO_FEW
    return f"{format_pairs(one)} do not vary at all, so nothing tells a difference from chance"


def _describe_untrained(one: Comparison) -> str:
    """The pairs in which an arm diverged or learned nothing: in no difference, and yet an outcome."""
    if one.quantity != "accuracy" or not one.is_discordant:
        return ""
    low, high = one.risk_interval(0.95)
    return (
        f"; of {format_count(int(one.risk.pairs), 'pair')} {one.arm} alone failed to train in "
        f"{int(one.risk.arm_only)} and {one.baseline} alone in {int(one.risk.baseline_only)}, a "
        f"difference in risk of {100 * float(one.risk.estimate):+.0f} points "
        f"[{100 * float(low):+.0f}, {100 * float(high):+.0f}]"
    )


def _format_hours(hours: float) -> str:
    """Device time to two digits, in the unit that keeps it readable."""
    if hours < 1 / 60:
        return "less than a device-minute"
    if hours < 1:
        return f"about {60 * hours:.2g} device-minutes"
    return f"about {hours:.2g} device-hours" if hours < 100 else f"about {hours:,.0f} device-hours"
