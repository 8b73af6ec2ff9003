"""The answer of a whole study in one sentence, and what belongs beside it.

It says no more than the verdicts do: a side is named where a claim holds or fails, and else it is open.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from analysis.judgement.lengths import find_ends
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
    deciding: int = 0,
) -> tuple[str, ...]:
    """The answer in one sentence; behind it, as far as there are any, other studies and lengths.

    The first study with trials is the one that the sentence is about: the paper's own, if it is asked.
    `deciding` is the length of training that decides, in epochs, where there are others.
    """
    studies: dict[object, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.has_trials and verdict.claim in _WHERE:
            studies.setdefault(verdict.identity_key, []).append(verdict)
    if not studies:
        return tuple(_answer_without_claims(networks, is_complete=is_complete))
    first, *others = studies.values()
    lead = "" if is_complete else "So far, "
    if deciding:
        lead += f"after {format_count(deciding, 'epoch')} of training, "
    told = lead + "; ".join(_answer_claim(v, is_first=v is first[0]) for v in first) + "."
    return (
        told[:1].upper() + told[1:],
        *_count_others(others),
        *_tell_lengths([one for one in lengths if one.identity_key == first[0].identity_key]),
    )


def _answer_claim(verdict: Verdict, *, is_first: bool) -> str:
    where, effect = _WHERE[verdict.claim], verdict.headline
    if effect is None or not math.isfinite(effect.estimate):
        return f"{where} nothing can be said yet"
    side, _ = _find_side(verdict)
    side = side.format(
        norm=verdict.norm_name, activation=verdict.activation_name, margin=effect.margin
    )
    return f"{where} {side} ({_quote(effect, verdict.word, is_first=is_first)})"


_SIDES = {
    "after": ("{norm} is better after {activation}", "after better"),
    "before": ("{norm} is better before {activation}", "before better"),
    "not after": ("{norm} after {activation} is not best", "after not best"),
    "matters": ("the order matters", "the order matters"),
    "equal": ("the order makes no difference that matters", "no difference that matters"),
    "equal on average": (
        "the order makes no difference that matters on average, though single networks may differ",
        "none on average",
    ),
    "C1": ("it is open which order is better", "open"),
    "C3": ("it is open whether the order matters by more than {margin:g} points", "open"),
    "ahead after": (
        "{norm} after {activation} is ahead, though not surely by more than {margin:g} points",
        "open",
    ),
    "ahead before": (
        "{norm} before {activation} is ahead, though not surely by more than {margin:g} points",
        "open",
    ),
}
"""What can be found, in words that stand behind where, and in short; by claim where it is open."""

_CORRECTED = " once corrected for all claims"
"""Behind "not surely", where the interval itself, which is not corrected, is beyond the margin."""


def _find_side(verdict: Verdict) -> tuple[str, str]:
    """A side is named where the difference itself shows it: a word may also rest on the risk of not
    training, on one network, or on a third arm.
    """
    effect = verdict.headline
    assert effect is not None, "a side is that of an effect"
    shown = "after" if effect.low > 0 else "before" if effect.high < 0 else ""
    is_c1 = verdict.claim == "C1"
    words = {
        "supported": "after",
        "contradicted": (shown if shown == "before" else "not after")
        if is_c1
        else shown or "matters",
        "equivalent": "equal",
        "equivalent on average": "equal on average",
    }
    if verdict.word in words:
        return _SIDES[words[verdict.word]]
    if is_c1 or not shown:
        return _SIDES[verdict.claim]
    told, brief = _SIDES[f"ahead {shown}"]
    is_beyond = max(effect.low, -effect.high) > effect.margin
    return told + _CORRECTED * is_beyond, brief


def _quote(effect: Effect, word: str, *, is_first: bool) -> str:
    """The difference with the interval that the word rests on; the first says what it is."""
    is_equal = word.startswith("equivalent")
    low, high = (effect.low90, effect.high90) if is_equal else (effect.low, effect.high)
    ends = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""
    within = f", within \N{PLUS-MINUS SIGN}{effect.margin:g}" if is_equal else ""
    what = "after minus before: " if is_first else ""
    of = " of test accuracy" if is_first else ""
    return f"{what}{effect.estimate:+.2f} points{of}{ends}{within}"


def _count_others(others: Sequence[Sequence[Verdict]]) -> Iterator[str]:
    """What the other studies say, counted: of other norms, activations, optimizers, data sets."""
    if not others:
        return
    parts = []
    for claim, where in _WHERE.items():
        sides: dict[str, int] = {}
        for verdict in (v for study in others for v in study if v.claim == claim):
            side = _name_side(verdict)
            sides[side] = sides.get(side, 0) + 1
        if sides:
            parts.append(f"{where} " + ", ".join(f"{side} in {n}" for side, n in sides.items()))
    many = f"{len(others)} other studies" if len(others) > 1 else "the other study"
    yield f"The same question in {many} of this grid: {'; '.join(parts)}."


def _name_side(verdict: Verdict) -> str:
    """The side in a word or two: norm and activation differ from study to study."""
    effect = verdict.headline
    if effect is None or not math.isfinite(effect.estimate):
        return "nothing to say yet"
    return _find_side(verdict)[1]


def _tell_lengths(lengths: Sequence[LengthEffect]) -> Iterator[str]:
    """How the difference changes from the shortest to the longest training."""
    parts: dict[tuple[int, int], dict[str, list[str]]] = {}
    for first, last in find_ends(lengths):
        of_ends = parts.setdefault((first.epochs, last.epochs), {})
        pairs = f" ({first.pairs} and {last.pairs} pairs)" * (first.pairs != last.pairs)
        of_ends.setdefault(_name_change(first, last), []).append(
            f"from {first.estimate:+.2f} [{first.low:+.2f}, {first.high:+.2f}] to "
            f"{last.estimate:+.2f} points [{last.low:+.2f}, {last.high:+.2f}] in {last.networks}{pairs}"
        )
    for (shortest, longest), by_verb in parts.items():
        told = " and ".join(f"{verb} {' and '.join(of)}" for verb, of in by_verb.items())
        yield f"From {shortest} to {longest} epochs of training, after minus before {told}."


def _name_change(first: LengthEffect, last: LengthEffect) -> str:
    """What became of the difference, as far as the change of the same pairs shows it."""
    if last.change_low <= 0 <= last.change_high:
        return "goes, perhaps by chance,"
    return "shrinks" if last.change * first.estimate < 0 else "grows"


def _answer_without_claims(networks: Sequence[Network], *, is_complete: bool) -> Iterator[str]:
    """The difference in the first network that has one; no verdict speaks of it."""
    told = next((network for network in networks if network.effect), None)
    if told is None:
        yield "Nothing can be said yet." if not is_complete else "These trials say nothing."
    else:
        lead = "In" if is_complete else "So far, in"
        yield f"{lead} {told.name} after minus before is {told.effect}; no claim is judged on it."
