"""Which runs diverged, learned nothing or collapsed: a map, and counts where a mean would mislead."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.judgement.effects import GROUPS
from analysis.judgement.studies import STUDY
from analysis.page import curves
from analysis.page import frames as tables
from analysis.page.parts import Figure, Panel, Section, Table
from harness.study.wording import format_count

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

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
    """Of each cell or pool in which some runs did not train how many did, arm first; else nothing.

    Of the two humps of such runs a mean is in neither, and an interval of Student's knows one hump.
    """
    by_arm: dict[tuple[object, ...], list[Fate]] = {}
    for fate in fates:
        by_arm.setdefault((*fate.identity_key, fate.arm), []).append(fate)
    words = []
    for row in effects.to_dict("records"):
        ends = (row["arm"], row["baseline"])
        found = _find_fates(row, by_arm) if row["quantity"] == "accuracy" else []
        sides = [[fate for fate in found if fate.arm == end] for end in ends]
        counts = [
            f"{sum(fate.trained for fate in side)} of {sum(fate.ran for fate in side)}"
            for side in sides
            if side
        ]
        is_told = any(fate.lost for fate in found)
        words.append(f"Trained: {', '.join(counts)}" if is_told else "")
    return words


def _find_fates(
    effect: dict[Hashable, Any], by_arm: Mapping[tuple[object, ...], Sequence[Fate]]
) -> list[Fate]:
    """The runs of both arms that this number is taken from."""
    study, ends = tuple(effect[name] for name in STUDY), (effect["arm"], effect["baseline"])
    of_arms = [fate for end in ends for fate in by_arm.get((*study, end), ())]
    if effect["kind"] == "cell":
        return [fate for fate in of_arms if fate.label == effect["label"]]
    if effect["kind"] != "pooled":
        return []
    pool = GROUPS.get(effect["label"], (effect["label"],))
    asked = [fate for fate in of_arms if fate.is_judged and fate.architecture in pool]
    arms = Counter(fate.label for fate in asked)
    return [fate for fate in asked if arms[fate.label] == len(ends)]
