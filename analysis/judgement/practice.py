"""What practitioners ask beside accuracy: speed, generalisation, calibration, classes, inference.

All of it is exploratory: means, and differences from a baseline with their intervals. No claim
rests on any of it, so nothing here is tested or called by a word.

Legend of shape suffixes: Q quantities, P placements, C cells, S seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.judgement.studies import Study
from analysis.statistics.contrasts import cell_moments, estimate_contrast, mean_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from analysis.load import Results

TARGET_SHARE = 0.98
"""Of the validation accuracy that the baseline ends at, on average: what a trial has to reach.

Of the baseline alone, so that no arm's numbers change when the grid gets another arm."""

QUANTITIES = {
    "target": "validation accuracy to reach (%)",
    "reached": "trials that reach it (%)",
    "epochs": "epochs to reach it",
    "gap": "generalisation gap (points)",
    "calibration": "calibration error (points)",
    "worst_class": "accuracy of the worst class (%)",
    "folded": "batch norms folded (%)",
    "folding_error": "change of the logits (%)",
    "folding_flips": "predictions changed (%)",
}
"""Name of each quantity -> what it is, with its unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice(Study):
    """One quantity of one arm, and its difference from the baseline, paired by seed.

    Units:
        Those of `QUANTITIES`. A number that does not exist is NaN.
    """

    kind: str
    """"cell", or "architecture": the mean over its cells, each with equal weight."""
    label: str
    arm: str
    baseline: str
    quantity: str
    trials: int
    """Trials that have a value."""
    mean: float
    pairs: int
    difference: float
    """Arm minus baseline; NaN of the baseline itself."""
    low: float
    """95 % interval, not corrected for the number of quantities and arms."""
    high: float


def measure_practice(results: Results, studies: Sequence[Outcomes]) -> Iterator[Practice]:
    """Every quantity of every arm, cell by cell and for each architecture."""
    for outcomes in studies:
        baseline = "before" if "before" in outcomes.placements else outcomes.placements[0]
        values_QPCS = _collect(results, outcomes, outcomes.placements.index(baseline))
        groups = [("cell", cell.label, outcomes.only(c)) for c, cell in enumerate(outcomes.cells)]
        architectures = dict.fromkeys(cell.architecture for cell in outcomes.cells)
        groups += [("architecture", name, outcomes.members([name])) for name in architectures]
        for kind, label, is_member_C in groups:
            for arm in outcomes.placements:
                yield from _describe(
                    outcomes,
                    values_QPCS,
                    is_member_C,
                    kind=kind,
                    label=label,
                    arm=arm,
                    baseline=baseline,
                )


def as_frame(practices: Iterable[Practice]) -> pd.DataFrame:
    """The same as a table."""
    names = [field.name for field in fields(Practice)]
    rows = [{name: getattr(practice, name) for name in names} for practice in practices]
    return pd.DataFrame(rows, columns=pd.Index(names))


def _describe(
    outcomes: Outcomes,
    values_QPCS: NDArray[np.float64],
    is_member_C: NDArray[np.bool_],
    *,
    kind: str,
    label: str,
    arm: str,
    baseline: str,
) -> Iterator[Practice]:
    own_QCS, base_QCS = (
        values_QPCS[:, outcomes.placements.index(name)] for name in (arm, baseline)
    )
    trials_QC, mean_QC, _ = cell_moments(np.where(is_member_C[:, None], own_QCS, np.nan))
    if not trials_QC.any():
        return
    cells_Q = (trials_QC > 0).sum(-1)
    diff_QCS = own_QCS - base_QCS if arm != baseline else np.full_like(own_QCS, np.nan)
    contrast = estimate_contrast(
        diff_QCS,
        mean_weights(diff_QCS, is_member_C),
        block_C=outcomes.block_C,
        look=outcomes.look_on(is_member_C, arm, baseline),
    )
    half_Q = contrast.half_width(0.95)
    for q, quantity in enumerate(QUANTITIES):
        yield Practice(
            **outcomes.identity,
            kind=kind,
            label=label,
            arm=arm,
            baseline=baseline,
            quantity=quantity,
            trials=int(trials_QC[q].sum()),
            mean=float(mean_QC[q].sum() / cells_Q[q]) if cells_Q[q] else float("nan"),
            pairs=int(np.isfinite(diff_QCS[q, is_member_C]).sum()),
            difference=float(contrast.estimate[q]),
            low=float(contrast.estimate[q] - half_Q[q]),
            high=float(contrast.estimate[q] + half_Q[q]),
        )


def _collect(results: Results, outcomes: Outcomes, baseline: int) -> NDArray[np.float64]:
    """Every quantity of every trial (Q, P, C, S).

    A trial that never reaches the target counts with all its epochs, as those do that diverged or
    learned nothing: dropped, they would make an arm look fast. The other quantities exist only where
    a network learned something: one that guesses is well calibrated.

    Source:
        The mean of times cut at the last epoch: restricted mean survival time, Royston & Parmar
        2013, doi:10.1186/1471-2288-13-152.
    """
    trial_PCS = outcomes.trial_PCS
    assert trial_PCS is not None, "simulated outcomes have no rows"
    rows = results.trials.set_index("trial_id").reindex(trial_PCS.ravel())

    def spread(column: pd.Series) -> NDArray[np.float64]:
        values_PCS = column.to_numpy(float).reshape(trial_PCS.shape)
        return np.where(outcomes.trained_PCS, values_PCS, np.nan)

    trained_CS = spread(rows["validation_accuracy"])[baseline]
    trained_C, mean_C, _ = cell_moments(trained_CS)
    target_C = np.where(trained_C > 0, TARGET_SHARE * mean_C, np.nan)
    target_PCS = np.broadcast_to(target_C[:, None], trial_PCS.shape)
    is_known_PCS = outcomes.ran_PCS & np.isfinite(target_PCS)

    targets = dict(zip(trial_PCS.ravel(), target_PCS.ravel(), strict=True))
    records = results.epochs
    is_reached = records["validation_accuracy"] >= records["trial_id"].map(targets).astype(float)
    first = records[is_reached].groupby("trial_id")["epoch"].min().reindex(trial_PCS.ravel())
    first_PCS = first.to_numpy(float).reshape(trial_PCS.shape)
    horizon_PCS = rows["epochs"].to_numpy(float).reshape(trial_PCS.shape)
    worst = rows["class_accuracy"].map(_find_worst, na_action="ignore")
    values = {
        "target": np.where(is_known_PCS, 100 * target_PCS, np.nan),
        "reached": np.where(is_known_PCS, 100.0 * np.isfinite(first_PCS), np.nan),
        "epochs": np.where(is_known_PCS, np.fmin(first_PCS, horizon_PCS), np.nan),
        "gap": 100 * spread(rows["train_accuracy"] - rows["test_accuracy"]),
        "calibration": 100 * spread(rows["calibration_error"]),
        "worst_class": 100 * spread(worst),
        "folded": 100 * spread(rows["folded_norms"]),
        "folding_error": 100 * spread(rows["folding_error"]),
        "folding_flips": 100 * spread(rows["folding_flips"]),
    }
    assert values.keys() == QUANTITIES.keys()
    return np.stack(list(values.values()))


def _find_worst(packed: bytes) -> float:
    """Share right of the class that does worst; NaN where none is told."""
    shares_K = np.frombuffer(packed[: len(packed) // 8 * 8], "<f8")
    return float(np.fmin.reduce(shares_K, initial=np.nan))
