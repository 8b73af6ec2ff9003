"""What became of the runs: trained, diverged, learned nothing, or collapsed.

A run *learned nothing* if it ends no better than guessing, as the verdicts have it. It *collapsed* if
it learned something, and yet ends closer to guessing than to the best run of the same arm and cell:
no rule of the verdicts, but a reason to count runs where a mean would be seen by none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.judgement.outcomes import find_least_accuracy, name_arm
from analysis.judgement.studies import STUDY, Study, count_groups, find_told, name_settings
from analysis.load import CELL
from harness.study.facts import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from analysis.judgement.outcomes import Outcomes
    from analysis.load import Results

_OF_THE_ARM = {
    *STUDY,
    *("architecture", "depth", "placement", "program", "stage"),
    *("flow", "flow_lr", "flow_weight_decay", "lr", "weight_decay"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate(Study):
    """How the runs of one arm in one cell ended."""

    stage: str
    architecture: str
    depth: int
    variant: str
    """Further settings that tell the cell from its neighbours, rates aside."""
    label: str
    """The whole name of the cell, as an effect has it; empty of a tuning stage."""
    is_judged: bool
    """Is it of a cell that the claims are judged on?"""
    arm: str
    lr: float
    weight_decay: float
    planned: int
    ran: int
    diverged: int
    nothing: int
    """Those that ended no better than guessing."""
    collapsed: int
    lost_trials: tuple[str, ...]
    """The ids of all that ran and are no trained network."""

    @property
    def trained(self) -> int:
        """Those that did none of these."""
        return self.ran - self.lost

    @property
    def lost(self) -> int:
        """How many they are."""
        return self.diverged + self.nothing + self.collapsed


def find_fates(results: Results, studies: Sequence[Outcomes]) -> Iterator[Fate]:
    """The runs of every arm and cell, first those that are judged, then those that tune.

    Runs that tune are looked at on the validation part alone.
    """
    recipe = results.planned.set_index("trial_id")[["lr", "weight_decay"]]
    for outcomes in studies:
        assert outcomes.trial_PCS is not None, "simulated outcomes have no rows"
        for p, c in np.argwhere(outcomes.planned_PCS.any(-1)).tolist():
            cell, is_planned_S = outcomes.cells[c], outcomes.planned_PCS[p, c]
            diverged_S = outcomes.diverged_PCS[p, c]
            nothing_S, collapsed_S = _find_lost(
                outcomes.accuracy_PCS[p, c], outcomes.chance, outcomes.images
            )
            lost_S = diverged_S | nothing_S | collapsed_S
            yield Fate(
                **outcomes.identity,
                stage="study",
                architecture=cell.architecture,
                depth=cell.depth,
                variant=cell.name_variant(without={"lr", "weight_decay"}),
                label=cell.label,
                is_judged=not cell.beside,
                arm=outcomes.placements[p],
                **recipe.loc[outcomes.trial_PCS[p, c, is_planned_S][0]].to_dict(),
                planned=int(is_planned_S.sum()),
                ran=int(outcomes.ran_PCS[p, c].sum()),
                diverged=int(diverged_S.sum()),
                nothing=int(nothing_S.sum()),
                collapsed=int(collapsed_S.sum()),
                lost_trials=tuple(outcomes.trial_PCS[p, c, lost_S].tolist()),
            )
    yield from _find_tuning(results)


def _find_tuning(results: Results) -> Iterator[Fate]:
    columns = ["trial_id", "status", "validation_accuracy"]
    planned = results.planned[results.planned["stage"] == "tuning"]
    rows = planned.merge(results.trials[columns], on="trial_id", how="left")
    rows = rows.assign(recipe="tuning", norm_groups=count_groups(rows))
    names = [name for name in CELL if name not in _OF_THE_ARM]
    told = find_told(rows, names, [*STUDY, "architecture", "depth"])
    rows["variant"] = [
        name_settings({name: row[name] for name in names if is_told[name]})
        for row, is_told in zip(rows.to_dict("records"), told.to_dict("records"), strict=True)
    ]
    for _, cell in rows.groupby(list(CELL), sort=False):
        first = cell.iloc[0].to_dict()
        percent_S = 100 * cell["validation_accuracy"].where(cell["status"] == "done")
        diverged_S = (cell["status"] == "diverged").to_numpy()
        nothing_S, collapsed_S = _find_lost(
            percent_S.to_numpy(float),
            results.chance.get(first["dataset"], float("nan")),
            facts_of(first["dataset"]).validation_images,
        )
        yield Fate(
            **{name: first[name] for name in (*STUDY, "stage", "architecture", "depth")},
            variant=first["variant"],
            label="",
            is_judged=False,
            arm=name_arm(first["placement"], first["flow"]),
            lr=first["lr"],
            weight_decay=first["weight_decay"],
            planned=len(cell),
            ran=int(cell["status"].notna().sum()),
            diverged=int(diverged_S.sum()),
            nothing=int(nothing_S.sum()),
            collapsed=int(collapsed_S.sum()),
            lost_trials=tuple(cell["trial_id"][diverged_S | nothing_S | collapsed_S]),
        )


def _find_lost(
    percent_S: NDArray[np.float64], chance: float, images: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which runs learned nothing, and which collapsed."""
    is_nothing_S = percent_S <= find_least_accuracy(chance, images)
    halfway = (chance + np.fmax.reduce(percent_S, initial=np.nan)) / 2
    return is_nothing_S, ~is_nothing_S & (percent_S < halfway)
