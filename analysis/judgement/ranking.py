"""Rank all placements of a cell, with intervals that hold all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.studies import Study
from analysis.statistics.contrasts import estimate_cells
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from analysis.judgement.outcomes import Outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank(Study):
    """One arm among those of its cell.

    Units:
        accuracy in percent; behind, low and high in percentage points. NaN where it does not exist.
    """

    cell: str
    place: int
    """1 is best, by the mean accuracy of the trials that trained."""
    arm: str
    accuracy: float
    trained: int
    run: int
    """Trials that ran; those that did not train diverged or learned nothing."""
    behind: float
    """Minus the best arm of the cell, paired by seed."""
    low: float
    """Of an interval that holds with those of all other pairs of the cell's arms at 95 %."""
    high: float


def rank_arms(studies: Sequence[Outcomes]) -> Iterator[Rank]:
    """Every arm of every cell that has two or more, the best of each cell first.

    The intervals are Bonferroni's over all pairs of arms of the cell, since which is best was not
    known beforehand.
    """
    for outcomes in studies:
        trained_PCS = outcomes.trained_PCS
        values_PCS = np.where(trained_PCS, outcomes.accuracy_PCS, np.nan)
        count_PC = trained_PCS.sum(-1)
        mean_PC = np.nansum(values_PCS, axis=-1) / np.maximum(count_PC, 1)
        for c, cell in enumerate(outcomes.cells):
            planned_P = np.flatnonzero(outcomes.planned_PCS[:, c].any(-1))
            ranked = sorted(planned_P, key=lambda p: (count_PC[p, c] == 0, -mean_PC[p, c]))
            if len(ranked) < 2 or not count_PC[ranked[0], c]:
                continue
            pairs = len(ranked) * (len(ranked) - 1) / 2
            for place, p in enumerate(ranked, start=1):
                diff_S = values_PCS[p, c] - values_PCS[ranked[0], c]
                ends = (outcomes.placements[ranked[0]], outcomes.placements[p])
                contrast = estimate_cells(
                    diff_S[None],
                    floor=outcomes.floor("accuracy"),
                    look=outcomes.look_on(outcomes.only(c), *ends),
                )
                behind = float(contrast.estimate[0]) if place > 1 else 0.0
                half = float(contrast.half_width(1 - 0.05 / pairs)[0])
                if place == 1 or np.isfinite(diff_S).sum() < FEWEST_PAIRS:
                    half = float("nan")
                yield Rank(
                    **outcomes.identity,
                    cell=cell.label,
                    place=place,
                    arm=outcomes.placements[p],
                    accuracy=float(mean_PC[p, c]) if count_PC[p, c] else float("nan"),
                    trained=int(count_PC[p, c]),
                    run=int(outcomes.ran_PCS[p, c].sum()),
                    behind=behind,
                    low=behind - half,
                    high=behind + half,
                )
