"""Gradient flow of one arm over another along training, with a band that holds at all times."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.judgement.studies import STUDY, Study, count_groups
from analysis.load import spread_times
from analysis.statistics.contrasts import estimate_contrast
from harness.study.records import FEWEST_PAIRS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.load import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseEffect(Study):
    """The ratio of gradient flow at one time of training, over all pairs of one architecture.

    Units:
        Ratios: arm over baseline.
    """

    architecture: str
    arm: str
    baseline: str
    step: int
    epoch: float
    pairs: int
    ratio: float
    low: float
    """Of a band that holds at all times shown together, at 95 %."""
    high: float


def follow_flow(
    results: Results, *, arm: str = "after", baseline: str = "before"
) -> Iterator[CourseEffect]:
    """The mean over layers of log flow, arm minus baseline, paired by seed and cell, time by time.

    Seeds of one architecture and depth are crossed, those of others are not: cells are averaged
    with equal weights, and the standard error adds their variances. The band is Bonferroni's over
    the times shown, which are spread evenly over the logarithm of the steps.
    """
    study = results.trials[(results.trials["stage"] == "study") & (results.trials["flow"] == "own")]
    study = study[study["status"] == "done"].assign(norm_groups=count_groups)
    key = [*STUDY, "architecture", "depth", "seed"]
    wide = results.readings.merge(study[["trial_id", "placement", *key]], on="trial_id")
    wide = wide[wide["placement"].isin([arm, baseline])]
    table = wide.pivot_table(
        index=[*key, "step", "epoch"], columns="placement", values="mean", aggfunc="mean"
    )
    if not {arm, baseline} <= set(table.columns):
        return
    pairs = (table[arm] - table[baseline]).dropna().rename("difference").reset_index()
    for (*values, architecture), rows in pairs.groupby(key[:-2], sort=False):
        steps = spread_times(sorted(rows["step"].unique().tolist()))
        shown = rows[rows["step"].isin(steps)]
        for step, at in shown.groupby("step"):
            diff_CS = at.pivot_table(index="depth", columns="seed", values="difference").to_numpy()
            diff_CS = diff_CS[np.isfinite(diff_CS).sum(-1) >= FEWEST_PAIRS]
            if not len(diff_CS):
                continue
            contrast = estimate_contrast(
                diff_CS,
                np.full(len(diff_CS), 1 / len(diff_CS)),
                block_C=np.arange(len(diff_CS)),  # depths share no block seed
            )
            middle = float(contrast.estimate)
            half = float(contrast.half_width(1 - 0.05 / len(steps)))
            yield CourseEffect(
                **dict(zip(STUDY, values, strict=True)),
                architecture=str(architecture),
                arm=arm,
                baseline=baseline,
                step=int(step),  # pyright: ignore[reportArgumentType]
                epoch=float(at["epoch"].iloc[0]),
                pairs=int(np.isfinite(diff_CS).sum()),
                ratio=float(10**middle),
                low=float(10 ** (middle - half)),
                high=float(10 ** (middle + half)),
            )


def as_frame(courses: list[CourseEffect]) -> pd.DataFrame:
    """The same as a table."""
    names = [column.name for column in fields(CourseEffect)]
    return pd.DataFrame(
        [{name: getattr(c, name) for name in names} for c in courses], columns=names
    )
