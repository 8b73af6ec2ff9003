"""Outcomes by hand, whose sample means and spreads are exactly those asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from analysis.judgement.comparisons import Margins
from analysis.judgement.effects import AFTER_AS_BEFORE, BEFORE_AS_AFTER
from analysis.judgement.evidence import call, weigh
from analysis.judgement.outcomes import WINDOWS, Cell, Outcomes
from harness.study.records import CLAIMS

MARGINS = Margins(accuracy=0.5, flow=0.0969)
GRAFTED = ("before", "after", "none", AFTER_AS_BEFORE, BEFORE_AS_AFTER)
PAPER = {"plain": [1.0] * 4, "resnet": [0.0] * 4}
PAPER_FLOW = {"plain": 0.3, "resnet": 0.0}
CHANCE = 10.0


def make(
    effects: Mapping[str, Sequence[float]] | Sequence[float],
    *,
    flow: Mapping[str, float] | float = 0.0,
    windows: Mapping[str, float] | None = None,
    none: float = -5.0,
    others: Mapping[str, float] | None = None,
    carried: tuple[float, float] = (1.0, 1.0),
    level: float = 90.0,
    seeds: int = 5,
    sd: float | Sequence[float] = 0.2,
    architectures: Sequence[str] = ("plain", "resnet"),
    placements: Sequence[str] = ("before", "after", "none"),
    diverges: Collection[tuple[str, int, int]] = (),
    collapses: Collection[tuple[str, int, int]] = (),
    missing: Collection[tuple[str, int, int]] = (),
    rng: int = 0,
    **changes: object,
) -> Outcomes:
    """`effects` of `after` per depth, for every architecture or by its name.

    `windows` overrides the flow of a window, in every architecture; `carried` is the share of the
    effect that goes with borrowed steps, in both directions; `others` what further placements add.
    `sd` is that of the paired differences, of all cells or of each.
    """
    effects = effects if isinstance(effects, Mapping) else dict.fromkeys(architectures, effects)
    flow = flow if isinstance(flow, Mapping) else dict.fromkeys(architectures, flow)
    cells = [
        Cell(architecture=name, depth=8 + 6 * d)
        for name in architectures
        for d in range(len(effects[name]))
    ]
    generator = np.random.default_rng(rng)

    def noise(spread):
        drawn_CS = generator.normal(size=(len(cells), seeds))
        drawn_CS -= drawn_CS.mean(-1, keepdims=True)
        scale = drawn_CS.std(-1, ddof=1, keepdims=True) if seeds > 1 else 1.0
        return np.reshape(spread, (-1, 1)) * drawn_CS / np.where(scale > 0, scale, 1.0)

    effect_C1 = np.array([[effect] for name in architectures for effect in effects[name]])
    gains = {
        "before": 0.0,
        "after": effect_C1,
        "none": none,
        AFTER_AS_BEFORE: (1 - carried[0]) * effect_C1,
        BEFORE_AS_AFTER: carried[1] * effect_C1,
        **(others or {}),
    }
    shape = (len(placements), len(cells), seeds)
    accuracy_PCS = np.full(shape, level) + noise(1.0 if level < 99 else 0.01)
    flow_PCS = {window: np.full(shape, -1.0) for window in WINDOWS}
    for p, placement in enumerate(placements):
        accuracy_PCS[p] += gains.get(placement, 0.0)
        if placement != "before":
            accuracy_PCS[p] += noise(sd)
        for window in WINDOWS:
            flow_PCS[window][p] += noise(0.02)
            if placement == "after":
                flow_C1 = [[flow[cell.architecture]] for cell in cells]
                flow_PCS[window][p] += (windows or {}).get(window, np.array(flow_C1))

    def mark(places):
        marked_PCS = np.zeros(shape, bool)
        for placement, c, s in places:
            marked_PCS[placements.index(placement), c, s] = True
        return marked_PCS

    ran_PCS = ~mark(missing)
    diverged_PCS = mark(diverges) & ran_PCS
    accuracy_PCS = np.where(mark(collapses), CHANCE, accuracy_PCS)
    is_done_PCS = ran_PCS & ~diverged_PCS
    return Outcomes(
        **{
            "dataset": "digits",
            "recipe": "common",
            "cells": tuple(cells),
            "placements": tuple(placements),
            "seeds": tuple(range(seeds)),
            "block_C": np.arange(len(cells)),
            "accuracy_PCS": np.where(is_done_PCS, accuracy_PCS, np.nan),
            "flow_PCS": {
                window: np.where(is_done_PCS, values, np.nan) for window, values in flow_PCS.items()
            },
            "ran_PCS": ran_PCS,
            "diverged_PCS": diverged_PCS,
            "planned_PCS": np.ones(shape, bool),
            "wall_time_PCS": np.full(shape, 36.0),
            "chance": CHANCE,
            "images": 10_000,
            "graft_errors": {name: 0.0 for name in placements if "steps of" in name},
            **changes,
        }
    )


def words(outcomes: Outcomes, **changes: object) -> dict[str, str]:
    """The word of each claim."""
    evidence = weigh(outcomes, **{"margins": MARGINS, "alpha": 0.05, **changes})
    called = call([evidence], alpha=0.05)
    return dict(zip(CLAIMS, called.word_M.tolist(), strict=True))
