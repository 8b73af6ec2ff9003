"""Draw frames of finished numbers. Nothing is computed here, and nothing in the browser.

Every chart is one view that takes the width of its container, so that it can be read on a phone;
what belongs side by side is laid out by the page. Domains span what is drawn, intervals included.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from analysis.page import theme
from analysis.page.theme import INK, MUTED, PAPER, RULE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from analysis.page.theme import Mark

_INTERVALS = ("estimate", "low", "high", "low90", "high90")
_MAPPED = ("layer_index", "epoch", "mean", "is_clear")
_RATIOS = (1e-3, 0.01, 0.1, 0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 100, 1e3, 1e4, 1e6)
"""Where an axis of ratios is labelled."""
_EPOCH = "format(datum.value, datum.value < 10 ? '.2~g' : ',.0f')"
"""How a number of epochs is written: 0.013, 300."""
_IS_NARROW = "containerSize()[0] < 500"
"""On a phone; false where there is no page around the chart."""


def forest(
    effects: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    together: pd.DataFrame | None = None,
    is_ratio: bool = False,
) -> alt.LayerChart:
    """Estimates with 95 % (thin) and 90 % (thick) intervals against the margin, numbers beside.

    Shapes:
        effects: one row per line from top to bottom: `row`, its name; `kind`; `arm`; `estimate`,
        `low`, `high`, `low90`, `high90`, `margin`; `numbers`, the text beside it, and `brief`,
        what of it a phone has room for.
        together: the lines of all forests that share one scale.
    Units:
        ratios where `is_ratio`, on a log scale; else differences.
    """
    rows = list(effects["row"])
    pooled = json.dumps(list(effects.loc[effects["kind"] != "cell", "row"]))
    y = (
        alt.Y("row:N")
        .sort(rows)
        .title(None)
        .axis(
            ticks=False,
            labelColor=INK,
            labelPadding=8,
            labelFontWeight=alt.expr(f"indexof({pooled}, datum.value) < 0 ? 'normal' : 'bold'"),
        )
    )
    scale = _scale_of(effects if together is None else together, is_ratio=is_ratio)
    x = alt.X("low:Q", scale=scale, title=title).axis(_axis_of(is_ratio=is_ratio))
    columns = ("row", "arm", *_INTERVALS, "numbers", "brief")
    drawn = theme.inline(effects, *columns)
    known = theme.inline(effects.dropna(subset=["low", "high"]), *columns)
    points = (
        alt.Chart(drawn)
        .mark_point(filled=True, opacity=1, stroke=PAPER, strokeWidth=1)
        .encode(
            alt.X("estimate:Q", scale=scale),
            y,
            *_marked(marks, legend=None),
            size=alt.condition(f"indexof({pooled}, datum.row) < 0", alt.value(75), alt.value(150)),
            tooltip=[alt.Tooltip("row:N", title="cell"), alt.Tooltip("numbers:N", title=title)],
        )
    )
    numbers = (
        alt.Chart(drawn)
        .mark_text(align="left", dx=12, fontSize=12, color=INK)
        .encode(
            x=alt.XValue("width"),
            y=y,
            text=alt.TextValue(alt.expr(f"{_IS_NARROW} ? datum.brief : datum.numbers")),
        )
    )
    return _layer(
        *_margin_band(effects, is_ratio=is_ratio),
        alt.Chart(known).mark_rule(color=INK, strokeWidth=1.25).encode(x, y, x2=alt.X2("high:Q")),
        alt.Chart(known)
        .mark_bar(color=INK, height=4)
        .encode(alt.X("low90:Q", scale=scale), y, x2=alt.X2("high90:Q")),
        points,
        numbers,
    ).properties(width="container", height=25 * len(effects))


def strip(
    effect: pd.DataFrame, marks: Mapping[str, Mark], *, is_ratio: bool = False
) -> alt.LayerChart:
    """One effect against its margin, small enough for a card; a row as `forest` takes them."""
    scale = _scale_of(effect, is_ratio=is_ratio)
    axis = _axis_of(is_ratio=is_ratio, grid=False)
    columns = ("arm", *_INTERVALS, "numbers")
    drawn = theme.inline(effect, *columns)
    known = theme.inline(effect.dropna(subset=["low", "high"]), *columns)
    return _layer(
        *_margin_band(effect, is_ratio=is_ratio),
        alt.Chart(known)
        .mark_rule(color=INK, strokeWidth=1.25)
        .encode(alt.X("low:Q", scale=scale), x2=alt.X2("high:Q")),
        alt.Chart(known)
        .mark_bar(color=INK, height=4)
        .encode(alt.X("low90:Q", scale=scale), x2=alt.X2("high90:Q")),
        alt.Chart(drawn)
        .mark_point(filled=True, opacity=1, size=110, stroke=PAPER, strokeWidth=1)
        .encode(
            alt.X("estimate:Q", scale=scale, title=None).axis(axis),
            *_marked(marks, legend=None),
            tooltip=[alt.Tooltip("numbers:N")],
        ),
    ).properties(width="container", height=26)


def accuracies(
    trials: pd.DataFrame, cells: pd.DataFrame, marks: Mapping[str, Mark]
) -> alt.LayerChart:
    """Test accuracy of every trial by depth and arm; grey lines join trials of one seed.

    Shapes:
        trials: one row per trial that trained: `depth`, `arm`, `seed`, `percent`.
        cells: one row per cell: `depth`, `arm`, `mean`, and `note`, what did not train.
    """
    names = list(marks)
    x = alt.X("depth:O").title(theme.axis_title("depth")).axis(grid=False, ticks=False)
    offset = alt.XOffset("arm:N").sort(names)
    scale = alt.Scale(domain=span(trials, "percent"), nice=True)
    y = alt.Y("percent:Q", scale=scale).title(theme.axis_title("test_accuracy", unit="%"))
    drawn = theme.inline(trials, "depth", "arm", "seed", "percent")
    trained = theme.inline(cells.dropna(subset=["mean"]), "depth", "arm", "mean")
    return _layer(
        alt.Chart(drawn)
        .mark_line(color=MUTED, opacity=0.45, strokeWidth=1)
        .encode(x, y, offset, detail=[alt.Detail("seed:O"), alt.Detail("depth:O")]),
        alt.Chart(drawn)
        .mark_point(filled=True, size=46, opacity=0.85)
        .encode(
            x,
            y,
            offset,
            *_marked(marks),
            tooltip=[
                alt.Tooltip("arm:N"),
                alt.Tooltip("depth:O"),
                alt.Tooltip("seed:O"),
                alt.Tooltip("percent:Q", format=".2f"),
            ],
        ),
        alt.Chart(trained)
        .mark_tick(color=INK, thickness=2, size=18)
        .encode(x, alt.Y("mean:Q", scale=scale), offset),
        alt.Chart(theme.inline(cells[cells["note"] != ""], "depth", "arm", "note"))
        .mark_text(color=MUTED, fontSize=11, baseline="bottom")
        .encode(x, offset, y=alt.YValue("height"), text=alt.Text("note:N")),
    ).properties(width="container", height=240)


def differences(
    pairs: pd.DataFrame, cells: pd.DataFrame, marks: Mapping[str, Mark], *, title: str
) -> alt.LayerChart:
    """The difference of every pair by depth, and beside them their mean with its 95 % interval.

    Shapes:
        pairs: one row per pair: `depth`, `seed` (as text), `arm`, `difference`.
        cells: one row per depth: `depth`, `arm`, `estimate`, `low`, `high`, `margin`.
    """
    places = [*dict.fromkeys(pairs["seed"]), " ", "mean"]
    scale = alt.Scale(
        domain=span(
            cells, "estimate", "low", "high", around=[*pairs["difference"], *_both(cells["margin"])]
        ),
        nice=True,
    )
    x = alt.X("depth:O").title(theme.axis_title("depth")).axis(grid=False, ticks=False)
    offset = alt.XOffset("seed:N").sort(places).scale(domain=places)
    y = alt.Y("difference:Q", scale=scale, title=title)
    columns = ("depth", "seed", "arm", "estimate", "low", "high")
    means = cells.assign(seed="mean")
    known = theme.inline(means.dropna(subset=["low", "high"]), *columns)
    return _layer(
        *_margin_band(cells, upright=True),
        alt.Chart(theme.inline(pairs, "depth", "seed", "arm", "difference"))
        .mark_point(filled=True, size=34, opacity=0.7)
        .encode(
            x,
            y,
            offset,
            *_marked(marks, legend=None),
            tooltip=[
                alt.Tooltip("depth:O"),
                alt.Tooltip("seed:N"),
                alt.Tooltip("difference:Q", format="+.2f"),
            ],
        ),
        alt.Chart(known)
        .mark_rule(color=INK, strokeWidth=1.5)
        .encode(x, alt.Y("low:Q", scale=scale), offset, y2=alt.Y2("high:Q")),
        alt.Chart(theme.inline(means, *columns))
        .mark_point(filled=True, color=INK, size=70, opacity=1)
        .encode(x, alt.Y("estimate:Q", scale=scale), offset, _shape(marks, legend=None)),
    ).properties(width="container", height=170)


def trend(
    cells: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, reach: Sequence[float]
) -> alt.LayerChart:
    """The mean difference against depth, each depth with its 95 % interval.

    Shapes:
        cells: one row per depth: `depth`, `arm`, `estimate`, `low`, `high`, `margin`.
    Units:
        reach: the values that all panels of this chart reach together, in the unit of `estimate`.
    """
    depths = sorted(cells["depth"].astype(int))
    x = (
        alt.X("depth:Q")
        .title(theme.axis_title("depth"))
        .scale(type="log", base=2, domain=[0.9 * depths[0], 1.1 * depths[-1]], nice=False)
        .axis(values=depths, grid=False, format="d")
    )
    scale = alt.Scale(domain=list(reach), nice=True)
    columns = ("depth", "arm", "estimate", "low", "high")
    base = alt.Chart(theme.inline(cells, *columns))
    known = alt.Chart(theme.inline(cells.dropna(subset=["low", "high"]), *columns))
    y = alt.Y("estimate:Q", scale=scale, title=title)
    return _layer(
        *_margin_band(cells, upright=True),
        known.mark_area(opacity=0.18).encode(
            x, alt.Y("low:Q", scale=scale), _colour(marks, legend=None), y2=alt.Y2("high:Q")
        ),
        base.mark_line(strokeWidth=1.5).encode(x, y, _colour(marks, legend=None)),
        known.mark_rule(color=INK, strokeWidth=1.25).encode(
            x, alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q")
        ),
        base.mark_point(filled=True, size=70, opacity=1).encode(x, y, *_marked(marks, legend=None)),
    ).properties(width="container", height=200)


def course(
    times: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, reach: Sequence[float]
) -> alt.LayerChart:
    """A ratio along training with its band, time on a log scale that begins at the first reading.

    Shapes:
        times: one row per time: `step`, `arm`, `ratio`, `low`, `high`, `margin`.
    Units:
        reach: the ratios that all panels of this chart reach together.
    """
    shown = times.assign(time=times["step"] + 1, label=times["step"].astype(str))
    columns = ("time", "label", "epoch", "arm", "ratio", "low", "high")
    data = alt.Chart(theme.inline(shown, *columns))
    x = alt.X("time:Q").title("steps + 1").scale(type="log", nice=False).axis(grid=False)
    scale = alt.Scale(type="log", domain=list(reach), nice=False)
    y = alt.Y("ratio:Q", scale=scale, title=title).axis(format="~g", tickCount=5)
    return _layer(
        *_margin_band(shown, upright=True, is_ratio=True),
        data.mark_area(opacity=0.18).encode(
            x, alt.Y("low:Q", scale=scale), _colour(marks, legend=None), y2=alt.Y2("high:Q")
        ),
        data.mark_line(strokeWidth=1.5).encode(x, y, _colour(marks, legend=None)),
        data.mark_point(filled=True, size=40, opacity=1).encode(
            x, y, _colour(marks, legend=None), _shape(marks, legend=None)
        ),
    ).properties(width="container", height=200)


def rates(
    trials: pd.DataFrame, means: pd.DataFrame, marks: Mapping[str, Mark], *, title: str
) -> alt.LayerChart:
    """Accuracy against the learning rate, every seed, a line through the means of each arm.

    Shapes:
        trials: one row per trial: `lr`, `arm`, `percent`; means: one row per rate and arm, with
        `edge`, "▲" where the arm does best at the edge of what was tried.
    """
    x = alt.X("lr:Q").title("learning rate").scale(type="log", nice=False, padding=12)
    x = x.axis(grid=False, format="~g", values=sorted(trials["lr"].unique().tolist()))
    y = alt.Y("percent:Q", title=title).scale(zero=False)
    points = alt.Chart(theme.inline(trials, "lr", "arm", "percent"))
    lines = alt.Chart(theme.inline(means, "lr", "arm", "percent", "edge"))
    return _layer(
        points.mark_point(filled=True, size=25, opacity=0.5).encode(
            x, y, _colour(marks, legend=None), _shape(marks, legend=None)
        ),
        lines.mark_line(strokeWidth=1.5).encode(x, y, _colour(marks, legend=None)),
        lines.mark_text(dy=-10, color=INK).encode(x, y, text="edge:N"),
    ).properties(width="container", height=200)


def flow_by_layer(
    flow: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    reach: Sequence[float],
    theory: pd.DataFrame | None = None,
) -> alt.LayerChart:
    """Gradient flow by layer at one time: a line per arm, its 95 % interval shaded.

    Shapes:
        flow: one row per (arm, layer): `arm`, `layer_index`, `mean`, `low`, `high`.
        theory: one row per layer: `layer_index`, `mean`; drawn dashed.
    Units:
        mean, low, high and reach in log10.
    """
    x = alt.X("layer_index:Q").title("layer, from the input").axis(tickMinStep=1, format="d")
    scale = alt.Scale(domain=list(reach), nice=True)
    base = alt.Chart(theme.inline(flow, "arm", "layer_index", "mean", "low", "high", digits=3))
    layers: list[alt.Chart] = [
        base.mark_area(opacity=0.18).encode(
            x, alt.Y("low:Q", scale=scale), _colour(marks), y2=alt.Y2("high:Q")
        ),
        base.mark_line(strokeWidth=1.5).encode(
            x, alt.Y("mean:Q", scale=scale, title=title), _colour(marks)
        ),
        base.mark_point(filled=True, size=28, opacity=1).encode(
            x,
            alt.Y("mean:Q", scale=scale),
            *_marked(marks),
            tooltip=[
                alt.Tooltip("arm:N"),
                alt.Tooltip("layer_index:Q", title="layer"),
                alt.Tooltip("mean:Q", format=".2f"),
            ],
        ),
    ]
    if theory is not None:
        layers.append(
            alt.Chart(theme.inline(theory, "layer_index", "mean", digits=3))
            .mark_line(color=INK, strokeWidth=1.5, strokeDash=[5, 4], clip=True)
            .encode(x, alt.Y("mean:Q", scale=scale))
        )
    return _layer(*layers).properties(width="container", height=220)


def flow_map(flow: pd.DataFrame, *, title: str, reach: Sequence[float]) -> alt.Chart:
    """Gradient flow of one arm, layer by time, on a scale that its neighbours share.

    Shapes:
        flow: one row per (layer, time): `layer_index`, `epoch`, `mean`.
    """
    return _map(flow, alt.Scale(scheme="viridis", domain=list(reach)), title=title)


def difference_map(flow: pd.DataFrame, *, title: str) -> alt.Chart:
    """Difference of gradient flow between two arms, layer by time, on a symmetric scale.

    Shapes:
        flow: one row per (layer, time): `layer_index`, `epoch`, `mean`, and `is_clear`: false
        where the difference may be chance, which is drawn pale.
    """
    reach = max(abs(bound) for bound in span(flow, "mean"))
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach])
    clear = alt.when("datum.is_clear").then(alt.value(1)).otherwise(alt.value(0.3))
    return _map(flow, scale, title=title).encode(opacity=clear)


def mechanism(
    pairs: pd.DataFrame, marks: Mapping[str, Mark], *, x_title: str, y_title: str
) -> alt.LayerChart:
    """Does a pair that gained more gradient flow gain more accuracy? One point per pair.

    Shapes:
        pairs: one row per pair: `flow`, `accuracy`, `depth`, `seed`, `arm`.
    """
    x = alt.X("flow:Q").scale(domain=span(pairs, "flow", around=[0]), nice=True).title(x_title)
    y = alt.Y("accuracy:Q").scale(domain=span(pairs, "accuracy", around=[0]), nice=True)
    zero = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=MUTED, strokeDash=[2, 3])
    return _layer(
        zero.encode(x=alt.XDatum(0)),
        zero.encode(y=alt.YDatum(0)),
        alt.Chart(theme.inline(pairs, "flow", "accuracy", "depth", "seed", "arm"))
        .mark_point(filled=True, opacity=0.8)
        .encode(
            x,
            y.title(y_title),
            *_marked(marks, legend=None),
            size=alt.Size("depth:O").title("depth").scale(range=[24, 130]),
            tooltip=[
                alt.Tooltip("depth:O"),
                alt.Tooltip("seed:O"),
                alt.Tooltip("flow:Q"),
                alt.Tooltip("accuracy:Q"),
            ],
        ),
    ).properties(width="container", height=240)


def tiles(trials: pd.DataFrame) -> alt.LayerChart:
    """What became of every planned trial: a row per cell, a tile per seed.

    Shapes:
        trials: one row per planned trial: `cell`, `seed`, `state`, `glyph` for what is not done.
    """
    x = alt.X("seed:O").title("seed").axis(ticks=False, domain=False, orient="top")
    y = alt.Y("cell:N").sort(list(dict.fromkeys(trials["cell"]))).title(None)
    y = y.axis(ticks=False, domain=False, labelColor=INK)
    states = theme.STATUS
    colour = (
        alt.Color("state:N")
        .scale(domain=list(states), range=[mark.colour for mark in states.values()])
        .legend(None)
    )
    base = alt.Chart(theme.inline(trials, "cell", "seed", "state", "glyph"))
    return _layer(
        base.mark_rect(stroke=PAPER, strokeWidth=2, cornerRadius=3).encode(
            x,
            y,
            colour,
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("seed:O"), alt.Tooltip("state:N")],
        ),
        base.mark_text(fontSize=12, fontWeight="bold", color=PAPER).encode(
            x, y, text=alt.Text("glyph:N")
        ),
    ).properties(width="container", height=20 * len(trials["cell"].unique()))


def precision(
    cells: pd.DataFrame, marks: Mapping[str, Mark], *, title: str, reach: float
) -> alt.LayerChart:
    """The smallest difference that each cell's pairs can find, against the one that matters.

    Shapes:
        cells: one row per cell: `row`, `arm`, `detectable`, `margin`.
    Units:
        reach: the largest value of all charts that share this one's scale, in that of `detectable`.
    """
    scale = alt.Scale(domain=[0, reach])
    y = alt.Y("row:N").sort(list(cells["row"])).title(None).axis(ticks=False, labelColor=INK)
    base = alt.Chart(theme.inline(cells, "row", "arm", "detectable", "margin"))
    return _layer(
        base.mark_rule(color=RULE, strokeWidth=2).encode(
            y=y, x=alt.X("detectable:Q", scale=scale), x2=alt.X2Datum(0)
        ),
        base.mark_tick(color=INK, thickness=2, size=16).encode(alt.X("margin:Q", scale=scale), y),
        base.mark_point(filled=True, size=75, opacity=1).encode(
            alt.X("detectable:Q", scale=scale, title=title),
            y,
            *_marked(marks, legend=None),
            tooltip=[alt.Tooltip("row:N"), alt.Tooltip("detectable:Q", format=".2f")],
        ),
    ).properties(width="container", height=22 * len(cells))


def _map(flow: pd.DataFrame, scale: alt.Scale, *, title: str) -> alt.Chart:
    legend = alt.Legend(
        type="gradient", gradientLength=150, gradientThickness=10, titleLimit=320, format="~g"
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
                alt.Tooltip("mean:Q", format=".3f"),
            ],
        )
        .properties(width="container", height=220)
    )


def _layer(*layers: alt.Chart) -> alt.LayerChart:
    return alt.LayerChart(layer=list(layers))


def _scale_of(effects: pd.DataFrame, *, is_ratio: bool) -> alt.Scale:
    around = _both(effects["margin"], is_ratio=is_ratio)
    if not is_ratio:
        return alt.Scale(domain=span(effects, "estimate", "low", "high", around=around))
    values = [*around, *(v for name in ("estimate", "low", "high") for v in effects[name])]
    finite = [value for value in values if math.isfinite(value)]
    return alt.Scale(type="log", nice=False, domain=[0.95 * min(finite), 1.05 * max(finite)])


def _axis_of(*, is_ratio: bool, grid: bool = True) -> alt.Axis:
    values = alt.Undefined if not is_ratio else list(_RATIOS)
    return alt.Axis(
        values=values, format="~g" if is_ratio else alt.Undefined, grid=grid, labelOverlap="greedy"
    )


def _margin_band(
    effects: pd.DataFrame, *, upright: bool = False, is_ratio: bool = False
) -> tuple[alt.Chart, alt.Chart]:
    """The differences too small to matter, and no difference in their middle."""
    low, high = _both(effects["margin"], is_ratio=is_ratio)
    zero = 1 if is_ratio else 0
    empty = alt.Chart(alt.InlineData(values=[{}]))
    band = empty.mark_rect(color=theme.BAND, clip=True)
    rule = empty.mark_rule(color=MUTED, strokeDash=[2, 3])
    if upright:
        return band.encode(alt.YDatum(low), alt.Y2Datum(high)), rule.encode(alt.YDatum(zero))
    return band.encode(alt.XDatum(low), alt.X2Datum(high)), rule.encode(alt.XDatum(zero))


def span(frame: pd.DataFrame, *columns: str, around: Iterable[float] = ()) -> list[float]:
    """The smallest and the largest finite value of some columns and of `around`, with room."""
    values = [*around, *(value for column in columns for value in frame[column])]
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    room = 0.05 * (max(finite) - min(finite)) or 0.5
    return [min(finite) - room, max(finite) + room]


def _both(margins: pd.Series, *, is_ratio: bool = False) -> tuple[float, float]:
    margin = float(margins.max())
    return (1 / margin, margin) if is_ratio else (-margin, margin)


def _colour(marks: Mapping[str, Mark], **options: None) -> alt.Color:
    # Not alt.Color(...).scale(...): Altair reads a signature at every such step, in milliseconds.
    scale = alt.Scale(domain=list(marks), range=[mark.colour for mark in marks.values()])
    return alt.Color("arm:N", scale=scale, title=None, **options)


def _shape(marks: Mapping[str, Mark], **options: None) -> alt.Shape:
    scale = alt.Scale(domain=list(marks), range=[mark.shape for mark in marks.values()])
    return alt.Shape("arm:N", scale=scale, title=None, **options)


def _marked(marks: Mapping[str, Mark], **options: None) -> tuple[alt.Color, alt.Shape]:
    return _colour(marks, **options), _shape(marks, **options)
