"""Is the difference one of speed, or of where training ends? The same pairs at each length.

Every length is a trial of its own with a schedule of its own, so that each ends trained. Lengths are
compared over the networks that were trained at each of them, for else a longer training would also
be another set of networks. Where some networks have lengths that others lack, these are compared
again by themselves.

Legend of shape suffixes: C cells, S seeds, L lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.outcomes import name_members
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
    """What the order does to test accuracy in networks of one architecture at one training length.

    Units:
        Percentage points, arm minus baseline.
    """

    networks: str
    """The architecture; with their depths where these are not all of its networks."""
    arm: str
    baseline: str
    epochs: int
    cells: int
    """How many networks these are."""
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
            is_member_C = is_usable_C & [
                cell.architecture == architecture and cell.beside != "head"
                for cell in outcomes.cells
            ]
            for networks, lengths, weight_LC in _match(outcomes, is_member_C):
                yield from _estimate(
                    outcomes,
                    diff_CS,
                    networks,
                    lengths,
                    weight_LC,
                    arm=arm,
                    baseline=baseline,
                    plan=plan,
                )


def find_ends(lengths: Sequence[LengthEffect]) -> list[tuple[LengthEffect, LengthEffect]]:
    """Of the networks of each comparison the shortest and the longest training."""
    of: dict[object, list[LengthEffect]] = {}
    for one in lengths:
        of.setdefault((one.identity_key, one.networks), []).append(one)
    return [(found[0], found[-1]) for found in of.values()]


def _estimate(
    outcomes: Outcomes,
    diff_CS: NDArray[np.float64],
    networks: str,
    lengths: Sequence[int],
    weight_LC: NDArray[np.float64],
    *,
    arm: str,
    baseline: str,
    plan: AnalysisPlan,
) -> Iterator[LengthEffect]:
    changes_LC = weight_LC - weight_LC[0]
    for number, epochs in enumerate(lengths):
        level, change = (
            estimate_contrast(
                diff_CS,
                weight_C,
                block_C=outcomes.block_C,
                floor=outcomes.floor("accuracy"),
                look=outcomes.look_on(weight_C != 0, arm, baseline),
            )
            for weight_C in (weight_LC[number], changes_LC[number])
        )
        half, change_half = (float(it.half_width(0.95)) for it in (level, change))
        yield LengthEffect(
            **outcomes.identity,
            networks=networks,
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
) -> Iterator[tuple[str, list[int], NDArray[np.float64]]]:
    """Sets of lengths, shortest first, and equal weights over the networks that have them: (L, C)."""
    by_rest: dict[object, dict[int, list[int]]] = {}
    for c in np.flatnonzero(is_member_C).tolist():
        cell = outcomes.cells[c]
        rest = (cell.depth, tuple(pair for pair in cell.settings if pair[0] not in _GO_WITH))
        by_rest.setdefault(rest, {}).setdefault(cell.epochs, []).append(c)
    # Two cells of one length differ in their warm-up: which of them is meant is not known.
    found = [
        {epochs: cells[0] for epochs, cells in of.items()}
        for of in by_rest.values()
        if len(of) > 1 and all(len(cells) == 1 for cells in of.values())
    ]
    for lengths in dict.fromkeys(tuple(sorted(of)) for of in sorted(found, key=len)):
        whole = [of for of in found if of.keys() >= set(lengths)]
        weight_LC = np.zeros((len(lengths), len(outcomes.cells)))
        for row_C, epochs in zip(weight_LC, lengths, strict=True):
            row_C[[of[epochs] for of in whole]] = 1 / len(whole)
        members = [outcomes.cells[of[lengths[0]]] for of in whole]
        names = name_members(members, are_all=len(whole) == len(found))
        yield names, list(lengths), weight_LC
