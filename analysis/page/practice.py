"""Beyond accuracy: what each order costs and gives that no claim speaks of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from analysis.judgement.practice import QUANTITIES, TARGET_SHARE, as_frame
from analysis.page import frames as tables
from analysis.page.parts import Section, Table
from analysis.page.theme import NONE, capitalized, interval, number, signed

if TYPE_CHECKING:
    import pandas as pd

    from analysis.judgement.practice import Practice

_TABLES = {
    "training": ("target", "reached", "epochs", "gap", "calibration", "worst_class"),
    "inference with batch norm folded away": ("folded", "folding_error", "folding_flips"),
}
_ALONE = {"target", "reached", "folded"}
"""Quantities of which a difference would say nothing more."""


def show_practice(practices: Sequence[Practice]) -> Section:
    """The means over the cells of each architecture, arm by arm."""
    frame = as_frame(practices)
    frame = frame[frame["kind"] == "architecture"]
    frame = frame.assign(study=tables.name_studies(frame))
    baseline = "', '".join(frame["baseline"].unique())
    return Section(
        "practice",
        "What else does the order change?",
        f"Means over the cells of a kind of network; in brackets the difference from '{baseline}', "
        "paired by seed, with its 95 % interval. Exploratory: nothing is corrected for the number of "
        "comparisons, and no claim rests on it. To reach: "
        f"{100 * TARGET_SHARE:g} % of the validation accuracy that '{baseline}' ends at in the same "
        "cell; a trial that never gets there counts with all its epochs. An arm of fewer trials stands in "
        "fewer networks. Gap: training accuracy "
        "during the last epoch, on images as augmented, minus test accuracy. Calibration error: how "
        "far the confidence in a prediction is from the share of such predictions that are right. "
        "Folded: batch norms that inference can merge into a conv or linear layer beside them, and "
        "what this changes on the probe images. It is exact where batch norm follows the layer; ahead "
        "of a conv it is off at the padded border.",
        tables=tuple(
            (capitalized(", ".join(filter(None, (study, what)))), _tabulate(rows, names))
            for study, rows in frame.groupby("study", sort=False)
            for what, names in _TABLES.items()
            if rows.loc[rows["quantity"].isin(names), "mean"].notna().any()
        ),
    )


def _tabulate(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    arms = rows.groupby(["label", "arm"], sort=False)
    return Table(
        ("network", "arm", "trials", *(QUANTITIES[name] for name in names)),
        tuple(
            (*key, *_write_arm(of_arm.set_index("quantity"), names))
            for key, of_arm in arms  # pyright: ignore[reportGeneralTypeIssues]
        ),
        words=2,
    )


def _write_arm(rows: pd.DataFrame, names: Sequence[str]) -> Iterator[str]:
    """Trials, then each mean with the difference and its interval where there is one."""
    yield str(rows["trials"].max())
    for name in names:
        row = rows.loc[name]
        mean, difference = number(row["mean"]), signed(row["difference"])
        if name == "epochs" and rows.loc["reached", "mean"] == 0:
            yield "not reached"
        elif name in _ALONE or difference == NONE:
            yield mean
        else:
            ends = f" {interval(row['low'], row['high'])}" if math.isfinite(row["low"]) else ""
            yield f"{mean} ({difference}{ends})"
