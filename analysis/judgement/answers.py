"""The answer of a whole study in one sentence, and what belongs beside it.

It says no more than the verdicts do: a side is named where a claim holds or fails, and else it is open.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.study.wording import format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from analysis.judgement.effects import Effect
    from analysis.judgement.lengths import LengthEffect
    from analysis.judgement.networks import Network
    from analysis.judgement.verdicts import Verdict

_WHERE = {"C1": "without skip connections", "C3": "in residual networks"}
"""The two claims that the answer is made of, and the networks that they are about."""


def answer_question(
    verdicts: Sequence[Verdict],
    networks: Sequence[Network],
    lengths: Sequence[LengthEffect],
    *,
    is_complete: bool,
) -> tuple[str, ...]:
    """The answer in one sentence; behind it, as far as there are any, other studies and lengths.

    The first study with trials is the one that the sentence is about: the paper's own, if it is asked.
    """
    studies: dict[object, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.has_trials and verdict.claim in _WHERE:
            studies.setdefault(verdict.identity_key, []).append(verdict)
    if not studies:
        return tuple(_answer_without_claims(networks, is_complete=is_complete))
    first, *others = studies.values()
    lead = "" if is_complete else "So far, "
    told = lead + "; ".join(_answer_claim(verdict) for verdict in first) + "."
    return (
        told[:1].upper() + told[1:],
        *_count_others(others),
        *_tell_lengths([one for one in lengths if one.identity_key == first[0].identity_key]),
    )


def _answer_claim(verdict: Verdict) -> str:
    where, effect = _WHERE[verdict.claim], verdict.headline
    if effect is None or not math.isfinite(effect.estimate):
        return f"{where} nothing can be said yet"
    return f"{where} {_side(verdict)} ({_quote(effect, verdict.word)})"


def _side(verdict: Verdict) -> str:
    """Which order is better, in words that may stand behind where."""
    effect = verdict.headline
    assert effect is not None, "a side is that of an effect"
    side = "after" if effect.estimate > 0 else "before"
    match verdict.word:
        case "supported":  # C1: after is best
            return f"{verdict.norm_name} is better after {verdict.activation_name}"
        case "contradicted" if verdict.claim == "C1" and side == "after":
            return f"neither order is best: no {verdict.norm_name} does better"
        case "contradicted":
            return f"{verdict.norm_name} is better {side} {verdict.activation_name}"
        case "equivalent":
            return "the order makes no difference that matters"
        case "equivalent on average":
            return "the order makes no difference that matters on average, though it may in some"
    if verdict.claim == "C1":
        return "it is open which order is better"
    return "it is open whether the order matters"


def _quote(effect: Effect, word: str) -> str:
    """The difference with the interval that the word rests on."""
    is_equal = word.startswith("equivalent")
    low, high = (effect.low90, effect.high90) if is_equal else (effect.low, effect.high)
    ends = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""
    within = f", within \N{PLUS-MINUS SIGN}{effect.margin:g}" if is_equal else ""
    return f"after minus before: {effect.estimate:+.2f} points of test accuracy{ends}{within}"


def _count_others(others: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    """What the other studies say, counted: of other norms, activations, optimizers, data sets."""
    if not others:
        return
    parts = []
    for claim, where in _WHERE.items():
        sides: dict[str, int] = {}
        for verdict in (v for study in others for v in study if v.claim == claim):
            is_known = verdict.headline is not None and math.isfinite(verdict.headline.estimate)
            side = _plain_side(verdict) if is_known else "nothing to say yet"
            sides[side] = sides.get(side, 0) + 1
        if sides:
            parts.append(f"{where} " + ", ".join(f"{side} in {n}" for side, n in sides.items()))
    studies = format_count(len(others), "other study").replace("studys", "studies")
    yield f"The same question in {studies} of this grid: {'; '.join(parts)}."


def _plain_side(verdict: Verdict) -> str:
    """The side without the names of norm and activation, which differ from study to study."""
    effect = verdict.headline
    if verdict.word.startswith("equivalent"):
        return "no difference that matters"
    if verdict.word == "inconclusive" or effect is None:
        return "open"
    if verdict.word == "contradicted" and verdict.claim == "C1" and effect.estimate > 0:
        return "neither order best"
    return "after better" if effect.estimate > 0 else "before better"


def _tell_lengths(lengths: Sequence[LengthEffect]) -> Iterator[str]:
    """How the difference changes from the shortest to the longest training."""
    of: dict[str, list[LengthEffect]] = {}
    for one in lengths:
        of.setdefault(one.architecture, []).append(one)
    if not of:
        return
    parts = [
        f"from {found[0].estimate:+.2f} points at {found[0].epochs} to {found[-1].estimate:+.2f} at "
        f"{found[-1].epochs} in {name}"
        for name, found in of.items()
    ]
    yield f"With the epochs trained, after minus before goes {', '.join(parts)}."


def _answer_without_claims(networks: Sequence[Network], *, is_complete: bool) -> Iterator[str]:
    """The difference in the first network that has one; no verdict speaks of it."""
    told = next((network for network in networks if network.effect), None)
    if told is None:
        yield "Nothing can be said yet." if not is_complete else "These trials say nothing."
    else:
        lead = "In" if is_complete else "So far, in"
        yield f"{lead} {told.name} after minus before is {told.effect}; no claim is judged on it."
