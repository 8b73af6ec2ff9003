"""Draw frames of finished numbers. Nothing is computed here, and nothing in the browser.

Every chart is one view that takes the width of its container, so that it can be read on a phone;
what belongs side by side is laid out by the page. Domains span what is drawn, intervals included.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import altair as alt
import pandas as pd

from analysis.page import theme
from analysis.page.encodings import (
    axis_of,
    both,
    layer,
    line_in_band,
    margin_band,
    marked,
    scale_of,
    shape,
    span,
)
from analysis.page.theme import INK, MUTED, PAPER, RULE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis.page.encodings import Layered
    from analysis.page.theme import Mark

_INTERVALS = ("estimate", "low", "high", "low90", "high90")
_IS_NARROW = "containerSize()[0] < 500"
"""On a phone; false where there is no page around the chart."""


def forest(
    effects: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    together: pd.DataFrame | None = None,
    is_ratio: bool = False,
) -> Layered:
    """Estimates with 95 % (thin) and 90 % (thick) intervals against the margin, numbers beside.

    Shapes:
        effects: one row per line from top to bottom: `row`, its name; `group`, which is set apart
        from its neighbours by a gap, if there are groups; `kind`; `arm`; `estimate`,
        `low`, `high`, `low90`, `high90`, `margin`; `numbers`, the text beside it, and `brief`,
        what of it a phone has room for.
        together: the lines of all forests that share one scale.
    Units:
        ratios where `is_ratio`, on a log scale; else differences.
    """
    rows = _part_groups(effects)
    pooled = json.dumps(list(effects.loc[effects["kind"] != "cell", "row"]))
    y = (
        alt.Y("row:N")
        .sort(rows)
        .scale(domain=rows)
        .title(None)
        .axis(
            ticks=False,
            labelColor=INK,
            labelPadding=8,
            labelFontWeight=alt.expr(f"indexof({pooled}, datum.value) < 0 ? 'normal' : 'bold'"),
        )
    )
    scale = scale_of(effects if together is None else together, is_ratio=is_ratio)
    x = alt.X("low:Q", scale=scale, title=title).axis(axis_of(is_ratio=is_ratio))
    columns = ("row", "arm", *_INTERVALS, "numbers", "brief")
    drawn = theme.inline(effects, *columns)
    known = theme.inline(effects.dropna(subset=["low", "high"]), *columns)
    points = (
        alt.Chart(drawn)
        .mark_point(filled=True, opacity=1, stroke=PAPER, strokeWidth=1)
        .encode(
            alt.X("estimate:Q", scale=scale),
            y,
            *marked(marks, legend=None),
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
    return layer(
        *margin_band(effects, is_ratio=is_ratio),
        alt.Chart(known).mark_rule(color=INK, strokeWidth=1.25).encode(x, y, x2=alt.X2("high:Q")),
        alt.Chart(known)
        .mark_bar(color=INK, height=4)
        .encode(alt.X("low90:Q", scale=scale), y, x2=alt.X2("high90:Q")),
        points,
        numbers,
    ).properties(width="container", height=23 * len(rows))


def _part_groups(effects: pd.DataFrame) -> list[str]:
    """The names of the lines, and between two groups a name of nothing but spaces."""
    names: list[str] = []
    groups = list(effects["group"]) if "group" in effects else [None] * len(effects)
    for place, (name, group) in enumerate(zip(effects["row"], groups, strict=True)):
        if place and group != groups[place - 1]:
            names.append(" " * (1 + sum(not known.strip() for known in names)))
        names.append(name)
    return names


def strip(effect: pd.DataFrame, marks: Mapping[str, Mark], *, is_ratio: bool = False) -> Layered:
    """One effect against its margin, small enough for a card; a row as `forest` takes them."""
    scale = scale_of(effect, is_ratio=is_ratio)
    axis = axis_of(is_ratio=is_ratio, grid=False)
    columns = ("arm", *_INTERVALS, "numbers")
    drawn = theme.inline(effect, *columns)
    known = theme.inline(effect.dropna(subset=["low", "high"]), *columns)
    return layer(
        *margin_band(effect, is_ratio=is_ratio),
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
            *marked(marks, legend=None),
            tooltip=[alt.Tooltip("numbers:N")],
        ),
    ).properties(width="container", height=26)


def accuracies(trials: pd.DataFrame, cells: pd.DataFrame, marks: Mapping[str, Mark]) -> Layered:
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
    return layer(
        alt.Chart(drawn)
        .mark_line(color=MUTED, opacity=0.45, strokeWidth=1)
        .encode(x, y, offset, detail=[alt.Detail("seed:O"), alt.Detail("depth:O")]),
        alt.Chart(drawn)
        .mark_point(filled=True, size=46, opacity=0.85)
        .encode(
            x,
            y,
            offset,
            *marked(marks),
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
) -> Layered:
    """The difference of every pair by depth, and beside them their mean with its 95 % interval.

    Shapes:
        pairs: one row per pair: `depth`, `seed` (as text), `arm`, `difference`.
        cells: one row per depth: `depth`, `arm`, `estimate`, `low`, `high`, `margin`.
    """
    places = [*dict.fromkeys(pairs["seed"]), " ", "mean"]
    scale = alt.Scale(
        domain=span(
            cells, "estimate", "low", "high", around=[*pairs["difference"], *both(cells["margin"])]
        ),
        nice=True,
    )
    x = alt.X("depth:O").title(theme.axis_title("depth")).axis(grid=False, ticks=False)
    offset = alt.XOffset("seed:N").sort(places).scale(domain=places)
    y = alt.Y("difference:Q", scale=scale, title=title)
    columns = ("depth", "seed", "arm", "estimate", "low", "high")
    means = cells.assign(seed="mean")
    known = theme.inline(means.dropna(subset=["low", "high"]), *columns)
    return layer(
        *margin_band(cells, upright=True),
        alt.Chart(theme.inline(pairs, "depth", "seed", "arm", "difference"))
        .mark_point(filled=True, size=34, opacity=0.7)
        .encode(
            x,
            y,
            offset,
            *marked(marks, legend=None),
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
        .encode(x, alt.Y("estimate:Q", scale=scale), offset, shape(marks, legend=None)),
    ).properties(width="container", height=170)


def trend(
    cells: pd.DataFrame,
    marks: Mapping[str, Mark],
    *,
    title: str,
    reach: Sequence[float],
    along: str = "depth",
) -> Layered:
    """The mean difference against depth, or another size, each with its 95 % interval.

    Shapes:
        cells: one row per size: the column `along`, `arm`, `estimate`, `low`, `high`, `margin`.
    Units:
        reach: the values that all panels of this chart reach together, in the unit of `estimate`.
    """
    sizes = sorted(cells[along].astype(int))
    x = (
        alt.X(f"{along}:Q")
        .title(theme.axis_title(along))
        .scale(type="log", base=2, domain=[0.9 * sizes[0], 1.1 * sizes[-1]], nice=False)
        .axis(values=sizes, grid=False, format="d")
    )
    scale = alt.Scale(domain=list(reach), nice=True)
    columns = (along, "arm", "estimate", "low", "high")
    base = alt.Chart(theme.inline(cells, *columns))
    known = alt.Chart(theme.inline(cells.dropna(subset=["low", "high"]), *columns))
    y = alt.Y("estimate:Q", scale=scale, title=title)
    return layer(
        *margin_band(cells, upright=True),
        *line_in_band(base, known, x, y, marks, legend=None),
        known.mark_rule(color=INK, strokeWidth=1.25).encode(
            x, alt.Y("low:Q", scale=scale), y2=alt.Y2("high:Q")
        ),
        base.mark_point(filled=True, size=70, opacity=1).encode(x, y, *marked(marks, legend=None)),
    ).properties(width="container", height=200)


def mechanism(
    pairs: pd.DataFrame, marks: Mapping[str, Mark], *, x_title: str, y_title: str
) -> Layered:
    """Does a pair that gained more gradient flow gain more accuracy? One point per pair.

    Shapes:
        pairs: one row per pair: `flow` (a ratio), `accuracy`, `depth`, `seed`, `arm`.
    """
    ends = [float(pairs["flow"].min()), 1.0, float(pairs["flow"].max())]
    x = alt.X("flow:Q").scale(type="log", domain=[0.95 * min(ends), 1.05 * max(ends)], nice=False)
    x = x.title(x_title).axis(axis_of(is_ratio=True))
    y = alt.Y("accuracy:Q").scale(domain=span(pairs, "accuracy", around=[0]), nice=True)
    zero = alt.Chart(alt.InlineData(values=[{}])).mark_rule(color=MUTED, strokeDash=[2, 3])
    return layer(
        zero.encode(x=alt.XDatum(1)),
        zero.encode(y=alt.YDatum(0)),
        alt.Chart(theme.inline(pairs, "flow", "accuracy", "depth", "seed", "arm"))
        .mark_point(filled=True, opacity=0.8)
        .encode(
            x,
            y.title(y_title),
            *marked(marks, legend=None),
            size=alt.Size("depth:O").title("depth").scale(range=[24, 130]),
            tooltip=[
                alt.Tooltip("depth:O"),
                alt.Tooltip("seed:O"),
                alt.Tooltip("flow:Q"),
                alt.Tooltip("accuracy:Q"),
            ],
        ),
    ).properties(width="container", height=240)


def tiles(trials: pd.DataFrame) -> Layered:
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
    return layer(
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
) -> Layered:
    """The smallest difference that each cell's pairs can find, against the one that matters.

    Shapes:
        cells: one row per cell: `row`, `arm`, `detectable`, `margin`.
    Units:
        reach: the largest value of all charts that share this one's scale, in that of `detectable`.
    """
    scale = alt.Scale(domain=[0, reach])
    y = alt.Y("row:N").sort(list(cells["row"])).title(None).axis(ticks=False, labelColor=INK)
    base = alt.Chart(theme.inline(cells, "row", "arm", "detectable", "margin"))
    return layer(
        base.mark_rule(color=RULE, strokeWidth=2).encode(
            y=y, x=alt.X("detectable:Q", scale=scale), x2=alt.X2Datum(0)
        ),
        base.mark_tick(color=INK, thickness=2, size=16).encode(alt.X("margin:Q", scale=scale), y),
        base.mark_point(filled=True, size=75, opacity=1).encode(
            alt.X("detectable:Q", scale=scale, title=title),
            y,
            *marked(marks, legend=None),
            tooltip=[alt.Tooltip("row:N"), alt.Tooltip("detectable:Q", format=".2f")],
        ),
    ).properties(width="container", height=22 * len(cells))
