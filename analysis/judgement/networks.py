"""What the order does to networks that no claim of the paper is about: estimates, and no verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.judgement.effects import RESIDUAL, SKIP_FREE, Effect
from analysis.judgement.outcomes import WINDOWS
from analysis.judgement.studies import Study
from harness.study.wording import format_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.judgement.verdicts import Verdict

CLAIMED = (*SKIP_FREE, *RESIDUAL)
"""The networks that the paper's claims are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(Study):
    """The pooled effects in one network of a study, no claim among them."""

    name: str
    """The architecture; of networks of a claim that cannot be judged, their group."""
    sentence: str
    """Its numbers, and why no verdict speaks of it, ready to print."""
    effect: str
    """The pooled effect on accuracy, its interval and its pairs; empty without."""
    headline: Effect | None
    """The effect that `effect` prints."""
    effects: tuple[Effect, ...]
    """All pooled effects that the sentence tells."""


def describe_networks(
    effects: Sequence[Effect], verdicts: Sequence[Verdict]
) -> tuple[Network, ...]:
    """The networks without a verdict, study by study: all of them where no claim has a trial."""
    networks = []
    judged = {v.identity_key for v in verdicts if v.has_trials}
    for identity in dict.fromkeys(verdict.identity_key for verdict in verdicts):
        groups: dict[str, list[Effect]] = {}
        for effect in effects:
            if effect.kind == "pooled" and effect.identity_key == identity:
                groups.setdefault(effect.label, []).append(effect)
        for name, pooled in groups.items():
            is_outside = pooled[0].architecture not in {None, *CLAIMED}
            if is_outside or identity not in judged:
                networks.append(_describe(name, pooled, is_outside=is_outside))
    return tuple(networks)


def _describe(name: str, pooled: Sequence[Effect], *, is_outside: bool) -> Network:
    baseline = pooled[0].baseline
    told = tuple(effect for effect in pooled if effect.baseline == baseline)
    accuracies = [effect for effect in told if effect.quantity == "accuracy"]
    flows = [effect for effect in told if effect.quantity == "gradient"]
    texts = [
        f"{effect.arm} minus {baseline} is {_format(effect)} ({_count(effect)})"
        for effect in accuracies
    ]
    for arm in dict.fromkeys(effect.arm for effect in flows if math.isfinite(effect.estimate)):
        ratios = ", ".join(
            f"{_format(effect)} {WINDOWS[effect.window]}" for effect in flows if effect.arm == arm
        )
        texts.append(f"gradient flow of {arm} over {baseline} is {ratios}")
    first = next(iter(accuracies), None)
    is_known = first is not None and math.isfinite(first.estimate)
    texts.append(
        "no claim of the paper is about it"
        if is_outside
        else "no claim can be judged from these placements"
    )
    return Network(
        **pooled[0].identity,
        name=name,
        sentence=f"{name}: {'; '.join(texts)}.",
        effect=f"{_format(first)}, {_count(first)}" if first is not None and is_known else "",
        headline=first,
        effects=told,
    )


def _format(effect: Effect) -> str:
    """An estimate with its interval, in points or as a ratio."""
    if not math.isfinite(effect.estimate):
        return "not to be estimated"
    numbers = (effect.estimate, effect.low, effect.high)
    if effect.quantity == "accuracy":
        estimate, low, high = (f"{number:+.2f}" for number in numbers)
        estimate += " points"
    else:
        estimate, low, high = (f"{10**number:.2f}" for number in numbers)
    return f"{estimate} [{low}, {high}]" if math.isfinite(effect.low) else estimate


def _count(effect: Effect) -> str:
    lacks = effect.pairs < effect.pairs_planned
    pairs = f"{effect.pairs} of " * lacks + format_count(
        effect.pairs_planned if lacks else effect.pairs, "pair"
    )
    return f"{pairs} in {format_count(effect.cells, 'cell')}" if effect.cells else pairs
