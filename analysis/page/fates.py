"""Which runs diverged, learned nothing or collapsed: a map, and counts where a mean would mislead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.judgement.studies import STUDY
from analysis.page import curves
from analysis.page import frames as tables
from analysis.page.parts import Figure, Panel, Section, Table
from harness.study.wording import format_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.judgement.fates import Fate

_WORDS = {"diverged": "diverged", "nothing": "learned nothing", "collapsed": "collapsed"}
_TITLE = "Which runs did not train?"


def show_fates(fates: Sequence[Fate]) -> Section:
    """By arm and depth; of a tuning stage, and where rates are compared, by arm and rate."""
    ran = [fate for fate in fates if fate.ran]
    lost = sum(fate.lost for fate in ran)
    if not lost:
        return Section("fates", _TITLE)
    kinds = [
        f"{sum(getattr(fate, kind) for fate in ran)} {words}"
        for kind, words in _WORDS.items()
        if any(getattr(fate, kind) for fate in ran)
    ]
    rows = _frame(ran)
    figures = []
    for stage, title in (("study", "Runs that did not train"), ("tuning", "The same while tuning")):
        chosen = rows[rows["stage"] == stage]
        chosen = chosen[chosen.groupby("panel")["lost"].transform("sum") > 0]
        if not chosen.empty:
            figures.append(_draw(chosen, name=f"fates-{stage}", title=title))
    total = format_count(sum(fate.ran for fate in ran), "run")
    return Section(
        "fates",
        _TITLE,
        f"Of {total} {lost} did not train: {', '.join(kinds)}. A run learned nothing if it ends no "
        "better than guessing, and collapsed if it ends closer to guessing than to the best run of its "
        "own arm and network.",
        tuple(figures),
    )


def _frame(fates: Sequence[Fate]) -> pd.DataFrame:
    rows = pd.DataFrame(fates).assign(
        lost=[fate.lost for fate in fates], trained=[fate.trained for fate in fates]
    )
    rows["study"] = tables.name_studies(rows)
    networks = rows.groupby(["study", "stage", "architecture", "variant", "depth", "arm"])
    is_by_rate = networks["lr"].transform("nunique") > 1
    rows["by"] = is_by_rate.map({True: "learning rate", False: "depth"})
    rows["place"] = [
        f"{row['lr']:g}" if row["by"] == "learning rate" else str(row["depth"])
        for row in rows.to_dict("records")
    ]
    depth = ("-" + rows["depth"].astype(str)).where(is_by_rate, "")
    return tables.name_panels(
        rows.assign(network=rows["architecture"] + depth), "network", "variant"
    )


def _draw(rows: pd.DataFrame, *, name: str, title: str) -> Figure:
    panels = []
    for panel, part in rows.groupby("panel", sort=False):
        # Of several weight decays at one rate all runs are counted.
        tiles = part.groupby(["place", "arm"], sort=False, as_index=False)[["lost", "ran"]].sum()
        order = part.drop_duplicates("place").sort_values(["depth", "lr"])["place"]
        rank = {place: number for number, place in enumerate(order)}
        tiles = tiles.assign(
            share=tiles["lost"] / tiles["ran"],
            words=tiles["lost"].astype(str) + " of " + tiles["ran"].astype(str),
            rank=tiles["place"].map(rank),
        ).sort_values("rank", kind="stable")
        panels.append(Panel(str(panel), curves.fates(tiles, title=str(part["by"].iloc[0]))))
    return Figure(
        name=name,
        title=title,
        description=(
            "How many of the runs of each arm did not train; the darker, the larger their share. "
            "Networks in which every run trained are not shown."
        ),
        panels=tuple(panels),
        columns=3,
        table=Table(
            ("network", "arm", "trained", *_WORDS.values(), "ran"),
            tuple(
                (
                    f"{row['panel']}, {row['by']} {row['place']}",
                    row["arm"],
                    str(row["trained"]),
                    *(str(row[kind]) for kind in _WORDS),
                    str(row["ran"]),
                )
                for row in rows.to_dict("records")
                if row["lost"]
            ),
            words=2,
        ),
    )


def count_trained(effects: pd.DataFrame, fates: Sequence[Fate]) -> list[str]:
    """Of each cell in which some runs did not train how many did, arm first; else nothing.

    Of the two humps of such runs a mean is in neither, and an interval of Student's knows one hump.
    """
    found = {(*fate.identity_key, fate.label, fate.arm): fate for fate in fates if fate.label}
    words = []
    for row in effects.to_dict("records"):
        study = tuple(row[name] for name in STUDY)
        pair = [found.get((*study, row["label"], row[end])) for end in ("arm", "baseline")]
        is_asked = row["kind"] == "cell" and row["quantity"] == "accuracy"
        if is_asked and any(fate is not None and fate.lost for fate in pair):
            counts = [f"{fate.trained} of {fate.ran}" for fate in pair if fate is not None]
            words.append(f"Trained: {', '.join(counts)}")
        else:
            words.append("")
    return words
