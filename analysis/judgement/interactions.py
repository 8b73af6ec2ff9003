"""Does the effect of the order depend on norm, activation, optimizer, or the size of things?

Exploratory: no claim rests on it. What it owes to the length of training, `lengths` says. Two values
of a factor are compared in cells that are equal in all else, so that both have the same block seeds:
their difference is paired by seed.

Legend of shape suffixes: C cells, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.effects import GROUPS, UNITS
from analysis.judgement.studies import name_value
from analysis.statistics.contrasts import estimate_contrast
from analysis.statistics.multiplicity import holm
from harness.study.records import FEWEST_PAIRS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from analysis.judgement.outcomes import Cell, Outcomes
    from analysis.statistics.looks import Look
    from harness.study.records import AnalysisPlan

ARM, BASELINE = "after", "before"
_RATES = {"lr", "weight_decay"}
_GO_WITH: Mapping[str, set[str]] = {
    "norm": {"norm_groups"},
    "activation": set(),
    "optimizer": {"momentum", "beta1", "beta2", *_RATES},  # each has its own
    "batch_size": _RATES,
    "train_images": set(),
    "probe_size": set(),
}
"""Factor -> the settings that may change along with it."""
_WINDOWS = {"norm": "init", "activation": "init", "probe_size": "init"}
"""When gradient flow is compared: at initialisation where the factor can act on it there. The probe is
one fixed batch, of which optimizer and batch size know nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """How much the effect of the order changes from one value of a factor to another.

    Units:
        Of at_reference, at_value, estimate, low and high: percentage points, or log10 of a ratio.
    """

    dataset: str
    recipe: str
    factor: str
    """The setting: "norm", "batch_size"."""
    reference: str
    """The value to compare with, as readers say it."""
    value: str
    pool: str
    """The networks: a group of architectures, or one that is in no group."""
    quantity: str
    """"accuracy" or "gradient"."""
    window: str
    """When flow was measured; empty of accuracy."""
    unit: str
    cells: int
    """Matched cells that decide: equal in all but the factor and what goes with it."""
    pairs: int
    """Pairs of `after` and `before` in them, at both values together."""
    at_reference: float
    """The effect of the order, `after` minus `before`."""
    at_value: float
    estimate: float
    """The second minus the first."""
    low: float
    """95 % interval."""
    high: float
    p: float
    """Two-sided, "the order has one effect at both"."""
    p_holm: float
    """After Holm over all interactions of the folder; those that could not be tested count."""


@dataclass(frozen=True, slots=True)
class _Place:
    """One cell of one study."""

    outcomes: Outcomes
    c: int

    @property
    def cell(self) -> Cell:
        return self.outcomes.cells[self.c]

    def rest(self, factor: str) -> tuple[object, ...]:
        """Equal in cells that differ in nothing but the factor and what goes with it."""
        free = {factor, *_GO_WITH[factor]}
        shared = tuple(pair for pair in self.cell.settings if pair[0] not in free)
        return (self.cell.architecture, self.cell.depth, shared)

    def value(self, factor: str) -> object:
        if factor == "norm" and self.outcomes.norm_groups:
            return f"{self.outcomes.norm_name} of {self.outcomes.norm_groups} groups"
        return dict(self.cell.settings)[factor]

    @property
    def look(self) -> Look:
        return self.outcomes.look_on(self.outcomes.only(self.c), ARM, BASELINE)

    def decides(self, margin: float) -> bool:
        is_dull_C = self.outcomes.are_uninformative(ARM, BASELINE, margin)
        trained_S = np.isfinite(self.outcomes.difference("accuracy", ARM, BASELINE)[self.c])
        return bool(trained_S.sum() >= FEWEST_PAIRS and not is_dull_C[self.c])


def find_interactions(studies: Sequence[Outcomes], plan: AnalysisPlan) -> tuple[Interaction, ...]:
    """All that the rows can tell: factor by factor, each value against the usual one."""
    places: dict[tuple[str, str], list[_Place]] = {}
    for outcomes in studies:
        is_planned_C = outcomes.are_planned(ARM, BASELINE).any(-1)
        places.setdefault((outcomes.dataset, outcomes.recipe), []).extend(
            _Place(outcomes, c)
            for c in np.flatnonzero(is_planned_C).tolist()
            if outcomes.cells[c].beside != "head"
        )
    found = [one for several in places.values() for one in _compare_values(several, plan)]
    adjusted = holm([one.p for one in found])
    return tuple(replace(one, p_holm=float(p)) for one, p in zip(found, adjusted, strict=True))


def _compare_values(places: Sequence[_Place], plan: AnalysisPlan) -> Iterator[Interaction]:
    if not places:
        return
    grouped = {name for group in GROUPS.values() for name in group}
    others = dict.fromkeys(place.cell.architecture for place in places)
    pools = {**GROUPS, **{name: (name,) for name in others if name not in grouped}}
    for factor in _GO_WITH:
        values = list(dict.fromkeys(place.value(factor) for place in places))
        usual = getattr(Settings, factor)
        reference = usual if usual in values else values[0]
        for value in values:
            matched = _match(places, factor, reference, value) if value != reference else []
            for pool, members in pools.items():
                chosen = [pair for pair in matched if pair[0].cell.architecture in members]
                for quantity in ("accuracy", _WINDOWS.get(factor, "whole")) if chosen else ():
                    if quantity == "accuracy" and factor == "probe_size":
                        continue  # it measures, and trains nothing
                    yield _contrast(
                        chosen, factor, (reference, value), pool=pool, quantity=quantity, plan=plan
                    )


def _match(
    places: Sequence[_Place], factor: str, reference: object, value: object
) -> list[tuple[_Place, _Place]]:
    """Cells at the two values that are equal in all else; where several could be meant, none is."""
    found: dict[tuple[object, ...], dict[object, list[_Place]]] = {}
    for place in places:
        by_value = found.setdefault(place.rest(factor), {})
        by_value.setdefault(place.value(factor), []).append(place)
    ends = ((of.get(reference, []), of.get(value, [])) for of in found.values())
    return [(first[0], second[0]) for first, second in ends if len(first) == len(second) == 1]


def _contrast(
    matched: Sequence[tuple[_Place, _Place]],
    factor: str,
    values: tuple[object, object],
    *,
    pool: str,
    quantity: str,
    plan: AnalysisPlan,
) -> Interaction:
    judged = [pair for pair in matched if all(it.decides(plan.margin_accuracy) for it in pair)]
    # What does not decide still says how many seeds there are, and gets no weight.
    pairs, share = judged or list(matched), 1 / len(judged) if judged else 0.0
    ends = [place for end in zip(*pairs, strict=True) for place in end]
    seeds = sorted({seed for place in ends for seed in place.outcomes.seeds})
    diff_CS = np.full((len(ends), len(seeds)), np.nan)
    for diff_S, place in zip(diff_CS, ends, strict=True):
        own_CS = place.outcomes.difference(quantity, ARM, BASELINE)
        diff_S[np.searchsorted(seeds, place.outcomes.seeds)] = own_CS[place.c]
    blocks = [(place.cell.architecture, place.cell.depth) for place in ends]
    at_reference_C = np.repeat([share, 0.0], len(pairs))
    at_value_C = np.repeat([0.0, share], len(pairs))
    first = ends[0].outcomes
    at_reference, at_value, change = (
        estimate_contrast(
            diff_CS,
            weight_C,
            block_C=np.array([blocks.index(block) for block in blocks]),
            floor=first.floor(quantity),
            look=min((place.look for place in ends), key=lambda look: look.fractions[-1]),
        )
        for weight_C in (at_reference_C, at_value_C, at_value_C - at_reference_C)
    )
    half = change.half_width(0.95)
    is_accuracy = quantity == "accuracy"
    return Interaction(
        dataset=first.dataset,
        recipe=first.recipe,
        factor=factor,
        reference=name_value(factor, values[0]),
        value=name_value(factor, values[1]),
        pool=pool,
        quantity="accuracy" if is_accuracy else "gradient",
        window="" if is_accuracy else quantity,
        unit=UNITS["accuracy" if is_accuracy else "gradient"],
        cells=len(judged),
        pairs=int(np.isfinite(diff_CS).sum()) if judged else 0,
        at_reference=float(at_reference.estimate),
        at_value=float(at_value.estimate),
        estimate=float(change.estimate),
        low=float(change.estimate - half),
        high=float(change.estimate + half),
        p=float(change.p),
        p_holm=float("nan"),
    )
