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
    from collections.abc import Iterator, Mapping

    import pandas as pd

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
    arm: str
    lr: float
    weight_decay: float
    planned: int
    ran: int
    diverged: int
    nothing: int
    """Those that ended no better than guessing."""
    collapsed: int

    @property
    def trained(self) -> int:
        """Those that did none of these."""
        return self.ran - self.lost

    @property
    def lost(self) -> int:
        """All that ran and are no trained network."""
        return self.diverged + self.nothing + self.collapsed


def find_fates(results: Results, images: Mapping[str, int]) -> Iterator[Fate]:
    """The runs of every arm and cell, tuning stage included.

    `images` is how many the test part of each data set has; runs that tune are looked at on the
    validation part alone.
    """
    columns = ["trial_id", "status", "test_accuracy", "validation_accuracy"]
    rows = results.planned.merge(results.trials[columns], on="trial_id", how="left")
    rows["recipe"] = rows["recipe"].where(rows["stage"] == "study", "tuning")
    rows["norm_groups"] = count_groups(rows)
    names = [name for name in CELL if name not in _OF_THE_ARM]
    told = find_told(rows, names, [*STUDY, "stage", "architecture", "depth"])
    rows["variant"] = [
        name_settings({name: row[name] for name in names if is_told[name]})
        for row, is_told in zip(rows.to_dict("records"), told.to_dict("records"), strict=True)
    ]
    for _, cell in rows.groupby(list(dict.fromkeys(CELL)), sort=False):
        yield _count(cell, results.chance, images)


def _count(cell: pd.DataFrame, chances: Mapping[str, float], images: Mapping[str, int]) -> Fate:
    first = cell.iloc[0]
    is_study = first["stage"] == "study"
    dataset = str(first["dataset"])
    chance, seen = chances.get(dataset, float("nan")), images.get(dataset, 0)
    if not is_study:
        seen = facts_of(dataset).validation_images
    percent = 100 * cell["test_accuracy" if is_study else "validation_accuracy"]
    percent = percent.where(cell["status"] == "done").to_numpy(float)
    is_nothing = percent <= find_least_accuracy(chance, seen)
    halfway = (chance + np.fmax.reduce(percent, initial=np.nan)) / 2
    return Fate(
        **{name: first[name] for name in STUDY},
        stage=str(first["stage"]),
        architecture=str(first["architecture"]),
        depth=int(first["depth"]),
        variant=str(first["variant"]),
        arm=name_arm(str(first["placement"]), str(first["flow"])),
        lr=float(first["lr"]),
        weight_decay=float(first["weight_decay"]),
        planned=len(cell),
        ran=int(cell["status"].notna().sum()),
        diverged=int((cell["status"] == "diverged").sum()),
        nothing=int(is_nothing.sum()),
        collapsed=int((~is_nothing & (percent < halfway)).sum()),
    )
