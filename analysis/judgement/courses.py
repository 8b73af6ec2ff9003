"""What happens along training: one order beside the other, with bands that hold at all times.

Accuracy is that of the validation part: the test part is looked at once, at the end. Cells that
train for different numbers of epochs are never averaged: a schedule of six epochs is not the begin
of one of thirty.

Legend of shape suffixes: C cells, S seeds, T times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import special

from analysis.judgement.outcomes import name_members
from analysis.judgement.studies import Study
from analysis.load import spread_times
from analysis.statistics.contrasts import estimate_cells, estimate_contrast
from harness.study.facts import facts_of
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from analysis.load import Results

QUANTITIES = ("accuracy", "gradient")


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseEffect(Study):
    """One order beside the other at one time of training, over the pairs of one architecture.

    Units:
        estimate, low and high: percentage points of validation accuracy, arm minus baseline; or a
        ratio of gradient flow, arm over baseline.
    """

    quantity: str
    """"accuracy" or "gradient"."""
    networks: str
    """The architecture; with their depths where these are not all of its networks."""
    epochs: int
    """How long these trials are trained."""
    arm: str
    baseline: str
    step: int
    """-1 of accuracy, which is known at the ends of epochs."""
    epoch: float
    cells: int
    pairs: int
    estimate: float
    low: float
    """Of a band that holds at all times shown together, at 95 %; NaN where it does not exist."""
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint(Study):
    """Validation accuracy of one arm at the end of one epoch, over the seeds of a cell that trained.

    Units:
        mean, low and high in percent.
    """

    architecture: str
    depth: int
    variant: str
    """Settings, but for the length of training, that tell it from other cells of its depth."""
    epochs: int
    arm: str
    epoch: int
    trials: int
    """Those that trained, of all that `ran`."""
    ran: int
    mean: float
    low: float
    """95 % interval of the mean, each epoch for itself; NaN of fewer than three trials."""
    high: float


def follow_orders(
    results: Results,
    studies: Sequence[Outcomes],
    *,
    arm: str = "after",
    baseline: str = "before",
) -> Iterator[CourseEffect]:
    """Both quantities, arm against baseline, architecture by architecture and length by length.

    Of the pairs in which both trained, in cells that have enough of them, at the times at which all
    of these cells have. Cells have equal weights. The band is Bonferroni's over the times shown,
    which are spread evenly over their logarithm, and as wide as this look makes it.
    """
    for outcomes in studies:
        if not {arm, baseline} <= set(outcomes.placements):
            continue
        ends = [outcomes.placements.index(name) for name in (arm, baseline)]
        is_paired_CS = np.asarray(outcomes.trained_PCS[ends].all(0))
        for networks, epochs, is_member_C in _split_by_length(outcomes):
            is_used_C = is_member_C & (is_paired_CS.sum(-1) >= FEWEST_PAIRS)
            if not is_used_C.any():
                continue
            for quantity in QUANTITIES:
                times, values_TCS = _read_pairs(
                    results, outcomes, quantity, ends, is_used_C, is_paired_CS
                )
                clock = "step" if quantity == "gradient" else "epoch"
                shown = spread_times(times.loc[times["is_shared"], clock].tolist())
                for time in np.flatnonzero(times[clock].isin(shown) & times["is_shared"]).tolist():
                    contrast = estimate_contrast(
                        values_TCS[time],
                        np.full(int(is_used_C.sum()), 1 / is_used_C.sum()),
                        block_C=outcomes.block_C[is_used_C],
                        floor=_floor(outcomes, quantity),
                        look=outcomes.look_on(is_used_C, arm, baseline),
                    )
                    middle = float(contrast.estimate)
                    half = float(contrast.half_width(1 - 0.05 / len(shown)))
                    numbers = (middle, middle - half, middle + half)
                    if quantity == "gradient":
                        numbers = tuple(float(10.0**number) for number in numbers)
                    yield CourseEffect(
                        **outcomes.identity,
                        quantity=quantity,
                        networks=networks,
                        epochs=epochs,
                        arm=arm,
                        baseline=baseline,
                        step=int(times["step"].iloc[time]),
                        epoch=float(times["epoch"].iloc[time]),
                        cells=int(is_used_C.sum()),
                        pairs=int(np.isfinite(values_TCS[time]).sum()),
                        estimate=numbers[0],
                        low=numbers[1],
                        high=numbers[2],
                    )


def follow_arms(results: Results, studies: Sequence[Outcomes]) -> Iterator[CurvePoint]:
    """Validation accuracy of every arm in every cell, epoch by epoch.

    Trials that did not train are left out: their accuracy says how many they are, and no mean of
    both humps is seen by anyone. The intervals are Student's.
    """
    by_epoch = _pivot(results.epochs, "epoch", "validation_accuracy")
    for outcomes in studies:
        trial_PCS, trained_PCS = outcomes.trial_PCS, outcomes.trained_PCS
        assert trial_PCS is not None, "simulated outcomes have no rows"
        for p, c in np.argwhere(trained_PCS.any(-1)).tolist():
            cell = outcomes.cells[c]
            percent_ET = 100 * by_epoch.reindex(trial_PCS[p, c, trained_PCS[p, c]]).T
            percent_ET = percent_ET.dropna(how="all")
            contrast = estimate_cells(percent_ET.to_numpy(float))
            trials = int(trained_PCS[p, c].sum())
            half_E = special.stdtrit(contrast.df, 0.975) * contrast.se
            half_E = np.where(trials >= FEWEST_PAIRS, half_E, np.nan)
            for epoch, mean, half in zip(
                percent_ET.index.tolist(), contrast.estimate, half_E, strict=True
            ):
                yield CurvePoint(
                    **outcomes.identity,
                    architecture=cell.architecture,
                    depth=cell.depth,
                    variant=cell.name_variant(without={"epochs"}),
                    epochs=cell.epochs,
                    arm=outcomes.placements[p],
                    epoch=int(epoch),
                    trials=trials,
                    ran=int(outcomes.ran_PCS[p, c].sum()),
                    mean=float(mean),
                    low=float(mean - half),
                    high=float(mean + half),
                )


def _split_by_length(outcomes: Outcomes) -> Iterator[tuple[str, int, NDArray[np.bool_]]]:
    """Networks in words, length of training, and their cells: (C,). Every length, not just the deciding."""
    is_plain_C = [cell.beside != "head" for cell in outcomes.cells]
    cells = outcomes.cells
    for architecture in dict.fromkeys(cell.architecture for cell in cells):
        is_member_C = np.array([cell.architecture == architecture for cell in cells]) & is_plain_C
        members = [cells[c] for c in np.flatnonzero(is_member_C)]
        depths = {cell.depth for cell in members}
        for epochs in sorted({cell.epochs for cell in members}):
            here = [cell for cell in members if cell.epochs == epochs]
            names = name_members(here, are_all={cell.depth for cell in here} == depths)
            yield names, epochs, is_member_C & [cell.epochs == epochs for cell in cells]


def _read_pairs(
    results: Results,
    outcomes: Outcomes,
    quantity: str,
    ends: Sequence[int],
    is_used_C: NDArray[np.bool_],
    is_paired_CS: NDArray[np.bool_],
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Times (`step`, `epoch`, `is_shared`: has every cell enough pairs there?), differences (T, C, S)."""
    assert outcomes.trial_PCS is not None, "simulated outcomes have no rows"
    trial_2CS = outcomes.trial_PCS[ends][:, is_used_C]
    is_wanted_CS = is_paired_CS[is_used_C]
    wanted = set(trial_2CS[:, is_wanted_CS].ravel())
    rows = results.readings if quantity == "gradient" else results.epochs
    rows = rows[rows["trial_id"].isin(wanted)]
    clock, column = ("step", "mean") if quantity == "gradient" else ("epoch", "validation_accuracy")
    wide = _pivot(rows, clock, column)
    values_2CST = wide.reindex(trial_2CS.ravel()).to_numpy(float).reshape(*trial_2CS.shape, -1)
    values_2CST = np.where(np.isfinite(values_2CST), values_2CST, np.nan)
    diff_CST = np.where(is_wanted_CS[..., None], values_2CST[0] - values_2CST[1], np.nan)
    diff_TCS = np.moveaxis(diff_CST, -1, 0) * (1 if quantity == "gradient" else 100)
    step = rows["step"] if quantity == "gradient" else pd.Series(-1, rows.index)
    first = rows.assign(step=step).drop_duplicates(clock).set_index(clock, drop=False)
    times = first.loc[wide.columns, ["step", "epoch"]].reset_index(drop=True)
    is_shared_T = (np.isfinite(diff_TCS).sum(-1) >= FEWEST_PAIRS).all(-1)
    return times.assign(is_shared=is_shared_T), diff_TCS


def _pivot(rows: pd.DataFrame, clock: str, column: str) -> pd.DataFrame:
    """A row per trial, a column per time."""
    return rows.pivot_table(index="trial_id", columns=clock, values=column, aggfunc="first")


def _floor(outcomes: Outcomes, quantity: str) -> float:
    """Variance below which differences cannot be told from rounding, on the validation part."""
    if quantity == "gradient":
        return outcomes.floor("whole")
    facts = facts_of(outcomes.dataset)
    return 0.0 if facts.is_assumed else (100 / facts.validation_images) ** 2 / 6
