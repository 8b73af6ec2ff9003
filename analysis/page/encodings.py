"""What charts share: scales, axes, marks, and the region too small to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import altair as alt

from analysis.page import theme
from analysis.page.theme import MUTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from analysis.page.theme import Mark

_RATIOS = (1e-3, 0.01, 0.1, 0.25, 0.5, 0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 100, 1e3, 1e4, 1e6)
"""Where an axis of ratios is labelled."""


@dataclass(frozen=True)
class Layered:
    """Charts on top of each other, as `alt.LayerChart` has them: that one copies all of them with
    each of its steps, which was a fifth of the time that a report took.
    """

    charts: tuple[alt.Chart, ...]
    size: Mapping[str, float | str]

    def properties(self, **size: float | str) -> Layered:
        """The same charts in another size."""
        return replace(self, size={**self.size, **size})

    def to_dict(self, *, validate: bool = True) -> dict[str, Any]:
        """The view in Vega-Lite, its rows below `datasets`."""
        views = [chart.to_dict(validate=validate) for chart in self.charts]
        datasets = {name: rows for view in views for name, rows in view.pop("datasets").items()}
        for view in views:
            view.pop("$schema")
            view.pop("config")
        return {"$schema": alt.SCHEMA_URL, "layer": views, **self.size, "datasets": datasets}


def layer(*layers: alt.Chart) -> Layered:
    return Layered(layers, {})


def scale_of(effects: pd.DataFrame, *, is_ratio: bool) -> alt.Scale:
    reach = reach_of(effects, is_ratio=is_ratio)
    return alt.Scale(type="log", nice=False, domain=reach) if is_ratio else alt.Scale(domain=reach)


def reach_of(effects: pd.DataFrame, *, is_ratio: bool) -> list[float]:
    """From where to where the axis of these estimates goes: their intervals and margins lie inside."""
    around = both(effects["margin"], is_ratio=is_ratio)
    if not is_ratio:
        return span(effects, "estimate", "low", "high", around=around)
    values = [*around, *(v for name in ("estimate", "low", "high") for v in effects[name])]
    positive = [value for value in values if 0 < value < math.inf]
    return [0.95 * min(positive), 1.05 * max(positive)]


def axis_of(*, is_ratio: bool, grid: bool = True) -> alt.Axis:
    values = alt.Undefined if not is_ratio else list(_RATIOS)
    return alt.Axis(
        values=values, format="~g" if is_ratio else alt.Undefined, grid=grid, labelOverlap="greedy"
    )


def margin_band(
    effects: pd.DataFrame, *, upright: bool = False, is_ratio: bool = False
) -> tuple[alt.Chart, ...]:
    """The differences too small to matter, if a margin says which, and no difference at all."""
    low, high = both(effects["margin"], is_ratio=is_ratio)
    zero = 1 if is_ratio else 0
    empty = alt.Chart(alt.InlineData(values=[{}]))
    band = empty.mark_rect(color=theme.BAND, clip=True)
    rule = empty.mark_rule(color=MUTED, strokeDash=[2, 3])
    if upright:
        drawn = band.encode(alt.YDatum(low), alt.Y2Datum(high)), rule.encode(alt.YDatum(zero))
    else:
        drawn = band.encode(alt.XDatum(low), alt.X2Datum(high)), rule.encode(alt.XDatum(zero))
    return drawn if math.isfinite(low) else drawn[1:]


def span(frame: pd.DataFrame, *columns: str, around: Iterable[float] = ()) -> list[float]:
    """The smallest and the largest finite value of some columns and of `around`, with room."""
    values = [*around, *(value for column in columns for value in frame[column])]
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    room = 0.05 * (max(finite) - min(finite)) or 0.5
    return [min(finite) - room, max(finite) + room]


def both(margins: pd.Series, *, is_ratio: bool = False) -> tuple[float, float]:
    margin = float(margins.max())
    return (1 / margin, margin) if is_ratio else (-margin, margin)


def line_in_band(
    data: alt.Chart,
    known: alt.Chart,
    x: alt.X,
    y: alt.Y,
    marks: Mapping[str, Mark],
    *,
    clip: bool = False,
    **options: None,
) -> tuple[alt.Chart, alt.Chart]:
    """Below, the interval of each arm where it is `known`, low to high; above, a line through `data`."""
    low = alt.Y("low:Q", scale=y["scale"])
    return (
        known.mark_area(opacity=0.18, clip=clip).encode(
            x, low, colour(marks, **options), y2=alt.Y2("high:Q")
        ),
        data.mark_line(strokeWidth=1.5, clip=clip).encode(x, y, colour(marks, **options)),
    )


def colour(marks: Mapping[str, Mark], **options: None) -> alt.Color:
    # Not alt.Color(...).scale(...): Altair reads a signature at every such step, in milliseconds.
    scale = alt.Scale(domain=list(marks), range=[mark.colour for mark in marks.values()])
    return alt.Color("arm:N", scale=scale, title=None, **options)


def shape(marks: Mapping[str, Mark], **options: None) -> alt.Shape:
    scale = alt.Scale(domain=list(marks), range=[mark.shape for mark in marks.values()])
    return alt.Shape("arm:N", scale=scale, title=None, **options)


def marked(marks: Mapping[str, Mark], **options: None) -> tuple[alt.Color, alt.Shape]:
    return colour(marks, **options), shape(marks, **options)
