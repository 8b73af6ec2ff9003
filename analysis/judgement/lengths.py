"""Is the difference one of speed, or of where training ends? The same pairs at each length.

Every length is a trial of its own with a schedule of its own, so that each ends trained. Networks
are compared that were trained at every length, for else a longer training would also be another
set of networks.

Legend of shape suffixes: C cells, S seeds, L lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.studies import Study
from analysis.statistics.contrasts import estimate_contrast
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from harness.study.records import AnalysisPlan

_GO_WITH = {"epochs", "warmup_epochs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthEffect(Study):
    """What the order does to test accuracy in one architecture at one length of training.

    Units:
        Percentage points, arm minus baseline.
    """

    architecture: str
    arm: str
    baseline: str
    epochs: int
    cells: int
    """Networks that were trained at every length shown."""
    pairs: int
    estimate: float
    low: float
    """95 % interval, each length for itself."""
    high: float
    margin: float
    change: float
    """This length minus the shortest, paired by seed; NaN of the shortest itself."""
    change_low: float
    """95 % interval."""
    change_high: float


def compare_lengths(
    studies: Sequence[Outcomes],
    plan: AnalysisPlan,
    *,
    arm: str = "after",
    baseline: str = "before",
) -> Iterator[LengthEffect]:
    """The difference at each length, architecture by architecture; nothing where there is one length.

    Seeds of a network have the same weights and batch order whatever the length, so that lengths are
    compared seed by seed.
    """
    for outcomes in studies:
        if not {arm, baseline} <= set(outcomes.placements):
            continue
        diff_CS = outcomes.difference("accuracy", arm, baseline)
        is_dull_C = outcomes.are_uninformative(arm, baseline, plan.margin_accuracy)
        is_usable_C = (np.isfinite(diff_CS).sum(-1) >= FEWEST_PAIRS) & ~is_dull_C
        for architecture in dict.fromkeys(cell.architecture for cell in outcomes.cells):
            is_member_C = outcomes.members([architecture]) & is_usable_C
            lengths, weight_LC = _match(outcomes, is_member_C)
            if len(lengths) < 2:
                continue
            is_used_C = np.asarray((weight_LC > 0).any(0))
            changes_LC = weight_LC - weight_LC[0]
            for number, epochs in enumerate(lengths):
                level, change = (
                    estimate_contrast(
                        diff_CS,
                        weight_C,
                        block_C=outcomes.block_C,
                        floor=outcomes.floor("accuracy"),
                        look=outcomes.look_on(is_used_C, arm, baseline),
                    )
                    for weight_C in (weight_LC[number], changes_LC[number])
                )
                half, change_half = (float(it.half_width(0.95)) for it in (level, change))
                yield LengthEffect(
                    **outcomes.identity,
                    architecture=architecture,
                    arm=arm,
                    baseline=baseline,
                    epochs=epochs,
                    cells=int((weight_LC[number] > 0).sum()),
                    pairs=int(np.isfinite(diff_CS[weight_LC[number] > 0]).sum()),
                    estimate=float(level.estimate),
                    low=float(level.estimate) - half,
                    high=float(level.estimate) + half,
                    margin=plan.margin_accuracy,
                    change=float(change.estimate),
                    change_low=float(change.estimate) - change_half,
                    change_high=float(change.estimate) + change_half,
                )


def _match(
    outcomes: Outcomes, is_member_C: NDArray[np.bool_]
) -> tuple[list[int], NDArray[np.float64]]:
    """The lengths, shortest first, and equal weights over the networks that have them all: (L, C)."""
    by_rest: dict[object, dict[int, list[int]]] = {}
    for c in np.flatnonzero(is_member_C).tolist():
        cell = outcomes.cells[c]
        rest = (cell.depth, tuple(pair for pair in cell.settings if pair[0] not in _GO_WITH))
        epochs = int(str(dict(cell.settings)["epochs"]))
        by_rest.setdefault(rest, {}).setdefault(epochs, []).append(c)
    lengths = sorted({epochs for of in by_rest.values() for epochs in of})
    # Two cells of one length differ in their warm-up: which of them is meant is not known.
    whole = [
        of
        for of in by_rest.values()
        if len(of) == len(lengths) and all(len(cells) == 1 for cells in of.values())
    ]
    weight_LC = np.zeros((len(lengths), len(outcomes.cells)))
    for row_C, epochs in zip(weight_LC, lengths, strict=True):
        row_C[[of[epochs][0] for of in whole]] = 1 / len(whole) if whole else 0.0
    return (lengths if whole else []), weight_LC
