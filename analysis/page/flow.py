"""Gradient flow by layer and over training, and whether the accuracy goes where it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.page import charts, curves, theme
from analysis.page import frames as tables
from analysis.page.differences import pairs_table
from analysis.page.encodings import span
from analysis.page.parts import Figure, Panel, Section, Table
from analysis.page.theme import NONE, ratio

if TYPE_CHECKING:
    from analysis.load import Results
    from analysis.page.differences import Comparison
    from analysis.page.parts import Card
    from analysis.page.theme import Mark

MAPS_AT_ONCE = 4
"""Panels whose maps of gradient flow are all shown; of more they are shown on demand."""
MEAN_FIELD_GROWTH = math.pi / (math.pi - 1)
"""Growth of the squared activation gradient per layer towards the input of a deep MLP with batch
norm, at initialisation and for large batches; Yang et al. 2019, arXiv:1902.08129, theorem 8."""


def show_flow(
    results: Results,
    trials: pd.DataFrame,
    comparisons: Sequence[Comparison],
    marks: Mapping[str, Mark],
) -> Section:
    if deciding := results.plan.epochs:  # the course tells of the other lengths
        trials = trials[trials["epochs"] == deciding]
    is_deepest = trials["depth"] == trials.groupby("panel", sort=False)["depth"].transform("max")
    deepest = trials[is_deepest]
    readings = tables.read_flow(results, deepest)
    panels = list(dict.fromkeys(deepest["panel"]))
    studies = tables.name_studies(deepest)
    of_first_study = {
        panel for panel, study in zip(deepest["panel"], studies, strict=True) if study == studies[0]
    }
    of_theory = set(
        deepest.loc[
            (deepest["architecture"] == "mlp")
            & (deepest["norm"] == "batch")
            & (deepest["activation"] == "relu"),
            "panel",
        ]
    )
    flow = tables.tabulate_flow(readings).sort_values(
        "panel", kind="stable", key=lambda names: names.map(panels.index)
    )
    arm, baseline = next(((it.arm, it.baseline) for it in comparisons), ("", ""))
    differences = tables.tabulate_flow_differences(readings, arm=arm, baseline=baseline)
    differences["is_clear"] = differences["p_bh"] < 0.05
    figures: list[Figure] = []
    for (panel, depth), rows in flow.groupby(["panel", "depth"], sort=False):
        where = f"{panel}, depth {depth}"
        is_aside = panel not in of_first_study
        here = {arm: mark for arm, mark in marks.items() if arm in set(rows["arm"])}
        shown = _layers_shown(rows)
        title = "gradient flow"
        reach = _unlog(span(rows, "mean", "low", "high"))
        times = _chosen_times(rows)
        anchor = baseline if panel in of_theory else ""
        figures.append(
            Figure(
                name=f"flow-{panel}-{depth}",
                title=f"{where}: gradient flow by layer",
                description=(
                    f"Mean over seeds with 95 % intervals. Layer 0 is next to the input.{shown}"
                    + (
                        " Dashed: the growth that theory predicts at initialisation."
                        if anchor
                        else ""
                    )
                ),
                panels=tuple(
                    Panel(
                        words,
                        curves.flow_by_layer(
                            _as_measured(at),
                            here,
                            title=title,
                            reach=reach,
                            theory=_theory(at, anchor),
                        ),
                    )
                    for words, at in times
                ),
                columns=3,
                legend=tuple(here),
                table=_flow_table(times),
                is_aside=is_aside,
            )
        )
        spread = _unlog(span(rows, "mean"))
        measured = _as_measured(rows)
        maps = [
            Panel(name, curves.flow_map(measured[rows["arm"] == name], title=title, reach=spread))
            for name in here
        ]
        apart = differences[differences["panel"] == panel]
        words = f"{arm} / {baseline}"
        if not apart.empty:
            maps.append(Panel(words, curves.difference_map(_as_measured(apart), title="ratio")))
        figures.append(
            Figure(
                name=f"flow-map-{panel}-{depth}",
                title=f"{where}: gradient flow over training",
                description=(
                    f"Layer by time, mean over seeds; all arms share one scale.{shown}"
                    if apart.empty
                    else "Layer by time, mean over seeds; all arms share one scale. The ratio is "
                    "exploratory: orange where the layer gets more in the first arm named, pale "
                    f"where that may be chance (Benjamini-Hochberg at 5 %).{shown}"
                ),
                panels=tuple(maps),
                columns=2,
                table=None if apart.empty else _map_table(apart, words),
                is_aside=is_aside or len(panels) > MAPS_AT_ONCE,
            )
        )
    meaning = theme.meaning_within(results.plan.gradient_column)
    return Section(
        "flow",
        "How much gradient reaches each layer?",
        f"Gradient flow is {meaning}, on one fixed batch of images. The scales are logarithmic."
        if figures
        else "",
        tuple(figures),
    )


def _as_measured(flow: pd.DataFrame) -> pd.DataFrame:
    """Means of logarithms, and their intervals, as flows or ratios of flows."""
    return flow.assign(**{name: 10.0 ** flow[name] for name in ("mean", "low", "high")})


def _unlog(reach: Sequence[float]) -> list[float]:
    return [10.0**end for end in reach]


def _layers_shown(flow: pd.DataFrame) -> str:
    """Which layers these are, where they are not all."""
    layers = sorted(flow["layer_index"].unique())
    total = int(layers[-1]) + 1
    return (
        "" if len(layers) == total else f" Shown: {len(layers)} of {total} layers, evenly spread."
    )


def _chosen_times(flow: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Before training, after the first epoch and at the end, as far as there are readings."""
    epochs = np.sort(flow["epoch"].unique()).tolist()
    chosen = dict.fromkeys([epochs[0], *[epoch for epoch in epochs if epoch >= 1][:1], epochs[-1]])
    return [
        (
            "at initialisation" if epoch == 0 else f"after {epoch:g} epoch{'s' * (epoch != 1)}",
            flow[flow["epoch"] == epoch],
        )
        for epoch in chosen
    ]


def _flow_table(times: Sequence[tuple[str, pd.DataFrame]]) -> Table:
    """A row per layer, a column per time and arm."""
    columns = {
        f"{words}: {arm}": rows.set_index("layer_index")["mean"]
        for words, at in times
        for arm, rows in at.groupby("arm", sort=False)
    }
    wide = pd.DataFrame(columns).sort_index()
    return Table(
        ("layer", *columns),
        tuple(
            (str(layer), *(f"{10.0**value:.3g}" if math.isfinite(value) else NONE for value in row))
            for layer, row in zip(wide.index, wide.to_numpy(), strict=True)
        ),
    )


def _map_table(differences: pd.DataFrame, words: str) -> Table:
    """A row per layer, a column per time; a star where the difference is clear."""
    cells = differences.assign(
        text=(10.0 ** differences["mean"]).map(ratio)
        + differences["is_clear"].map({True: " *", False: ""})
    )
    wide = cells.pivot_table(index="layer_index", columns="epoch", values="text", aggfunc="first")
    times = [
        f"{epoch:.2g}" if epoch < 10 else f"{epoch:.0f}" for epoch in wide.columns.to_numpy(float)
    ]
    return Table(
        (f"layer; {words}", *(f"epoch {time}" for time in times)),
        tuple(
            (str(layer), *row)
            for layer, row in zip(wide.index, wide.fillna(NONE).to_numpy(), strict=True)
        ),
    )


def _theory(flow: pd.DataFrame, anchor: str) -> pd.DataFrame | None:
    """Mean-field theory for an MLP at initialisation, through the last hidden layer of `anchor`."""
    hidden = flow[flow["arm"] == anchor].sort_values("layer_index")[:-1]
    if flow["epoch"].iloc[0] != 0 or hidden.empty:
        return None
    towards_input = hidden["layer_index"].max() - hidden["layer_index"]
    growth = math.log10(MEAN_FIELD_GROWTH) / 2
    return hidden[["layer_index"]].assign(
        mean=10.0 ** (hidden["mean"].iloc[-1] + growth * towards_input)
    )


def show_mechanism(
    comparisons: Sequence[Comparison], cards: Sequence[Card], marks: Mapping[str, Mark]
) -> Section:
    if not {compared.quantity for compared in comparisons} >= {"accuracy", "gradient"}:
        return Section("mechanism", "")
    arm, baseline = comparisons[0].arm, comparisons[0].baseline
    asked = [
        it
        for it in comparisons
        if (it.arm, it.baseline) == (arm, baseline) and it.window in {"", "whole"}
    ]
    pairs = tables.name_panels(
        tables.tabulate_pairs([effect for compared in asked for effect in compared.effects])
    )
    keys = [name for name in pairs if name not in {"quantity", "label", "difference"}]
    both = pairs.pivot_table(index=[*keys, "label"], columns="quantity", values="difference")
    figures = []
    if {"accuracy", "gradient"} <= set(both.columns):
        both = both.dropna().reset_index().rename(columns={"gradient": "flow"})
        both["flow"] = 10.0 ** both["flow"]
        figures = [
            Figure(
                name="mechanism",
                title="Accuracy gained against gradient flow gained",
                description=(
                    f"One point per pair of trials: '{arm}' minus '{baseline}'. A cloud that "
                    "rises to the right is what a cause would look like, but a common cause would "
                    "look the same."
                ),
                panels=tuple(
                    Panel(
                        str(name),
                        charts.mechanism(
                            rows,
                            marks,
                            x_title="gradient flow (ratio)",
                            y_title="accuracy (points)",
                        ),
                    )
                    for name, rows in both.groupby("panel", sort=False)
                ),
                columns=3,
                table=pairs_table(
                    {
                        "gradient flow (ratio)": both.assign(value=both["flow"]),
                        "accuracy (points)": both.assign(value=both["accuracy"]),
                    },
                    ratios={"gradient flow (ratio)"},
                ),
            )
        ]
    intro = " ".join(
        (f"With {card.study}: " if card.study else "")
        + f"{card.sentence} Judged {card.word}: {card.reason}."
        for card in cards
        if card.claim == "C2" and card.reason
    )
    return Section(
        "mechanism",
        "Is the accuracy carried by gradient flow?",
        intro,
        tuple(figure for figure in figures if figure.panels),
    )
