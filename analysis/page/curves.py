"""Draw what happens along training, and over layers. Nothing is computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from analysis.page import theme
from analysis.page.encodings import (
    axis_of,
    colour,
    layer,
    line_in_band,
    margin_band,
    marked,
    shape,
    span,
)
from analysis.page.theme import INK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from analysis.page.encodings import Layered
    from analysis.page.theme import Mark

FAR_BELOW = 0.8
"""Share of the best accuracy of a panel below which a run at some rate is not drawn."""
_MAPPED = ("layer_index", "epoch", "mean", "is_clear")
_EPOCH = "format(datum.value, datum.value < 10 ? '.2~g' : ',.0f')"
"""How a number of epochs is written: 0.013, 300."""


def learning(
    points: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, reach: Sequence[float]
) -> Layered:
    """Accuracy by epoch, a line per arm with its band.

    Shapes:
        points: one row per arm and epoch: `epoch`, `arm`, `mean`, `low`, `high`, and `is_marked`
        where the line has a mark: one at every epoch would hide it.
    Units:
        mean, low, high and reach in percent; the domain of all panels is `reach`.
    """
    data = alt.Chart(theme.inline(points, "epoch", "arm", "mean"))
    # A mark at the end of the axis is drawn whole; one below it is not drawn.
    is_shown = points["is_marked"] & points["mean"].between(*reach)
    marked_data = alt.Chart(theme.inline(points[is_shown], "epoch", "arm", "mean"))
    shown = sorted(points.loc[points["is_marked"], "epoch"].unique().tolist())
    x = alt.X("epoch:Q").title("epoch")
    x = x.axis(grid=False, format="d", values=shown, labelOverlap="greedy")
    scale = alt.Scale(domain=list(reach), nice=False)
    known = alt.Chart(
        theme.inline(points.dropna(subset=["low", "high"]), "epoch", "arm", "low", "high")
    )
    return layer(
        *line_in_band(data, known, x, alt.Y("mean:Q", scale=scale, title=title), marks, clip=True),
        marked_data.mark_point(filled=True, size=28, opacity=1).encode(
            x,
            alt.Y("mean:Q", scale=scale),
            *marked(marks),
            tooltip=[
                alt.Tooltip("arm:N"),
                alt.Tooltip("epoch:Q"),
                alt.Tooltip("mean:Q", format=".2f"),
            ],
        ),
    ).properties(width="container", height=190)


def course(
    times: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    reach: Sequence[float],
    is_ratio: bool = False,
) -> Layered:
    """One order beside the other along training, with the band, time on a log scale.

    Shapes:
        times: one row per time: `step` and `epoch`, `arm`, `estimate`, `low`, `high`, `margin`.
    Units:
        ratios where `is_ratio`, else differences; reach: what all panels of this chart reach.
    """
    shown = times.assign(time=times["step"] + 1 if is_ratio else times["epoch"])
    columns = ("time", "epoch", "arm", "estimate", "low", "high")
    data = alt.Chart(theme.inline(shown, *columns))
    known = alt.Chart(theme.inline(shown.dropna(subset=["low", "high"]), *columns))
    x = alt.X("time:Q").title(f"{'steps + 1' if is_ratio else 'epoch'} (log scale)")
    ticks = [n * 10**power for power in range(9) for n in (1, 2, 5)]
    axis = alt.Axis(grid=False, format="~s", values=ticks, labelOverlap="greedy")
    x = x.scale(type="log", nice=False).axis(axis)
    scale = alt.Scale(type="log" if is_ratio else "linear", domain=list(reach), nice=False)
    y = alt.Y("estimate:Q", scale=scale, title=title)
    y = y.axis(axis_of(is_ratio=True, grid=False) if is_ratio else alt.Axis(tickCount=5))
    return layer(
        *margin_band(shown, upright=True, is_ratio=is_ratio),
        *line_in_band(data, known, x, y, marks, legend=None),
        data.mark_point(filled=True, size=40, opacity=1).encode(
            x,
            y,
            *marked(marks, legend=None),
            tooltip=[
                alt.Tooltip("epoch:Q", format=".3~g"),
                alt.Tooltip("estimate:Q", title="ratio" if is_ratio else "points", format="~g"),
            ],
        ),
    ).properties(width="container", height=200)


def fates(cells: pd.DataFrame, *, title: str) -> Layered:
    """Which runs did not train: a tile per arm and place, darker the larger their share.

    Shapes:
        cells: one row per tile: `place` (as text, in order), `arm`, `share`, `words`.
    """
    x = alt.X("place:O").title(title).sort(list(dict.fromkeys(cells["place"])))
    y = alt.Y("arm:N").sort(list(dict.fromkeys(cells["arm"]))).title(None)
    x = x.axis(ticks=False, domain=False, orient="top")
    y = y.axis(ticks=False, domain=False, labelColor=INK)
    base = alt.Chart(theme.inline(cells, "place", "arm", "share", "words"))
    depth = alt.Opacity("share:Q").scale(domain=[0, 1], range=[0.06, 0.75]).legend(None)
    tip = [alt.Tooltip("arm:N"), alt.Tooltip("place:O", title=title), alt.Tooltip("words:N")]
    return layer(
        base.mark_rect(color=theme.STATUS["diverged"].colour, cornerRadius=3).encode(
            x, y, opacity=depth, tooltip=tip
        ),
        base.mark_text(color=INK, fontSize=12).encode(x, y, text="words:N"),
    ).properties(width="container", height=26 * len(cells["arm"].unique()))


def rates(
    trials: pd.DataFrame, means: pd.DataFrame, marks: Mapping[str, Mark], *, title: str
) -> Layered:
    """Accuracy against the learning rate, every seed, a line through the means of each arm.

    Shapes:
        trials: one row per trial: `lr`, `arm`, `percent`; means: one row per rate and arm, with
        `edge`, a sign where the arm does best at the edge of what was tried. What is far below the
        best is not drawn: it would leave no room for what is compared.
    """
    x = alt.X("lr:Q").title("learning rate").scale(type="log", nice=False, padding=12)
    x = x.axis(grid=False, format="~g", values=sorted(trials["lr"].unique().tolist()))
    near = trials[trials["percent"] >= FAR_BELOW * trials["percent"].max()]
    reach = span(near, "percent")
    y = alt.Y("percent:Q", title=title).scale(zero=False, nice=False, domain=reach)
    points = alt.Chart(theme.inline(near, "lr", "arm", "percent"))
    lines = alt.Chart(theme.inline(means, "lr", "arm", "percent", "edge"))
    signs = theme.inline(means[means["percent"] >= reach[0]], "lr", "percent", "edge")
    return layer(
        points.mark_point(filled=True, size=25, opacity=0.5).encode(
            x, y, colour(marks, legend=None), shape(marks, legend=None)
        ),
        lines.mark_line(strokeWidth=1.5, clip=True).encode(x, y, colour(marks, legend=None)),
        alt.Chart(signs).mark_text(dy=-10, color=INK, fontSize=14).encode(x, y, text="edge:N"),
    ).properties(width="container", height=200)


def flow_by_layer(
    flow: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    reach: Sequence[float],
    theory: pd.DataFrame | None = None,
) -> Layered:
    """Gradient flow by layer at one time: a line per arm, its 95 % interval shaded.

    Shapes:
        flow: one row per (arm, layer): `arm`, `layer_index`, `mean`, `low`, `high`.
        theory: one row per layer: `layer_index`, `mean`; drawn dashed.
    Units:
        mean, low, high and reach as measured; the scale is logarithmic.
    """
    x = alt.X("layer_index:Q").title("layer, from the input").axis(tickMinStep=1, format="d")
    scale = alt.Scale(type="log", domain=list(reach), nice=False)
    base = alt.Chart(theme.inline(flow, "arm", "layer_index", "mean", "low", "high", digits=3))
    axis = alt.Axis(format="~g", values=_decades(*reach))
    layers: list[alt.Chart] = [
        *line_in_band(base, base, x, alt.Y("mean:Q", scale=scale, title=title).axis(axis), marks),
        base.mark_point(filled=True, size=28, opacity=1).encode(
            x,
            alt.Y("mean:Q", scale=scale),
            *marked(marks),
            tooltip=[
                alt.Tooltip("arm:N"),
                alt.Tooltip("layer_index:Q", title="layer"),
                alt.Tooltip("mean:Q", format=".3~g"),
            ],
        ),
    ]
    if theory is not None:
        layers.append(
            alt.Chart(theme.inline(theory, "layer_index", "mean", digits=3))
            .mark_line(color=INK, strokeWidth=1.5, strokeDash=[5, 4], clip=True)
            .encode(x, alt.Y("mean:Q", scale=scale))
        )
    return layer(*layers).properties(width="container", height=220)


def _decades(low: float, high: float) -> list[float]:
    """Where a logarithmic axis is labelled: the powers of ten, and more where they would be few."""
    digits = (1,) if high > 100 * low else (1, 2, 5)
    every = (digit * 10.0**power for power in range(-12, 13) for digit in digits)
    return [value for value in every if low <= value <= high]


def flow_map(flow: pd.DataFrame, *, title: str, reach: Sequence[float]) -> alt.Chart:
    """Gradient flow of one arm, layer by time, on a scale that its neighbours share.

    Shapes:
        flow: one row per (layer, time): `layer_index`, `epoch`, `mean`.
    """
    return _map(flow, alt.Scale(type="log", scheme="viridis", domain=list(reach)), title=title)


def difference_map(flow: pd.DataFrame, *, title: str) -> alt.Chart:
    """Ratio of gradient flow between two arms, layer by time, on a scale symmetric about 1.

    Shapes:
        flow: one row per (layer, time): `layer_index`, `epoch`, `mean`, and `is_clear`: false
        where the ratio may be 1 by chance, which is drawn pale.
    """
    reach = max(max(end, 1 / end) for end in flow["mean"])
    scale = alt.Scale(type="log", scheme="blueorange", domain=[1 / reach, reach])
    clear = alt.when("datum.is_clear").then(alt.value(1)).otherwise(alt.value(0.3))
    return _map(flow, scale, title=title).encode(opacity=clear)


def _map(flow: pd.DataFrame, scale: alt.Scale, *, title: str) -> alt.Chart:
    ends = list(scale.to_dict()["domain"])
    legend = alt.Legend(
        type="gradient",
        gradientLength=150,
        gradientThickness=10,
        titleLimit=320,
        format=".2~g",
        values=ends,
    )
    return (
        alt.Chart(theme.inline(flow, *(name for name in _MAPPED if name in flow), digits=3))
        .mark_rect()
        .encode(
            alt.X("epoch:O")
            .title("epochs trained")
            .axis(ticks=False, labelExpr=_EPOCH, labelOverlap="greedy", labelSeparation=8),
            alt.Y("layer_index:O")
            .sort("descending")
            .title("layer, from the input")
            .axis(ticks=False, labelOverlap="greedy"),
            alt.Color("mean:Q", scale=scale, title=title).legend(legend),
            tooltip=[
                alt.Tooltip("layer_index:O", title="layer"),
                alt.Tooltip("epoch:O"),
                alt.Tooltip("mean:Q", format=".3~g"),
            ],
        )
        .properties(width="container", height=220)
    )
