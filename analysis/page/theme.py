"""What colours, shapes and axis titles mean, set once for every chart and for the page.

A placement has one colour and one shape everywhere; colours are those of Okabe and Ito, which
readers with any common colour blindness can tell apart, and nothing is told by colour alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from harness.study.records import AnalysisPlan, EpochRow, FailureRow, GradientRow, TrialRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

INK = "#1f2328"
MUTED = "#59636e"
RULE = "#d5dae0"
PAPER = "#ffffff"
BAND = "#e4ebf3"
"""The region of differences too small to matter."""

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""Stands where a number does not exist."""

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"

DARK: Mapping[str, str] = {
    INK: "#e8eaed",
    MUTED: "#a3abb5",
    RULE: "#3a4048",
    PAPER: "#16191d",
    BAND: "#263241",
    "#0072b2": "#4aa8e0",
    "#d55e00": "#ff8a3c",
    "#767676": "#a0a0a0",
    "#009e73": "#2cc79b",
    "#a5528a": "#dd8fc0",
    "#946200": "#e0a83a",
    "#3b6fb6": "#7fb0f0",
    "#6a3d9a": "#b596e0",
}
"""Each colour of a light page -> the one that takes its place on a dark page."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How a placement is drawn."""

    colour: str
    shape: str
    """A symbol of Vega."""


_PLACEMENTS: Mapping[str, Mark] = {
    "before": Mark("#0072b2", "circle"),
    "after": Mark("#d55e00", "square"),
    "none": Mark("#767676", "triangle-up"),
    "after-inner": Mark("#009e73", "diamond"),
    "after-relu": Mark("#a5528a", "cross"),
    "after-add": Mark("#946200", "triangle-down"),
}
_FURTHER = (
    Mark("#3b6fb6", "triangle-right"),
    Mark("#6a3d9a", "triangle-left"),
)
"""In turn for placements that a grid brings itself."""

STATUS: Mapping[str, Mark] = {
    "done": Mark("#009e73", "circle"),
    "diverged": Mark("#d55e00", "cross"),
    "failed": Mark(INK, "square"),
    "missing": Mark(RULE, "stroke"),
}
"""How the states of a planned trial are drawn."""

ANSWERS: Mapping[str, str] = {
    "holds": "✓",
    "fails": "✕",
    "open": "?",
    "no gain to explain": "\N{EN DASH}",
}
"""Answer to a claim -> its icon; its colour is set in the page's style."""


def marks_of(placements: Iterable[str]) -> dict[str, Mark]:
    """How to draw each placement; one that a grid brings itself gets what is left, in turn.

    >>> marks_of(["after", "mine"])["after"].shape
    'square'
    """
    own = [name for name in placements if name not in _PLACEMENTS]
    further = {name: _FURTHER[index % len(_FURTHER)] for index, name in enumerate(own)}
    return {name: _PLACEMENTS.get(name) or further[name] for name in placements}


_COLUMNS = {
    field.name: field.metadata
    for record in (FailureRow, AnalysisPlan, EpochRow, GradientRow, TrialRow)
    for field in fields(record)
}


def axis_title(column: str, *, unit: str | None = None) -> str:
    """The title of an axis that shows a column of the harness, with its unit.

    `unit` is given where the numbers were converted.

    >>> axis_title("wall_time")
    'wall time (s)'
    >>> axis_title("test_accuracy", unit="%")
    'test accuracy (%)'
    """
    unit = _COLUMNS[column]["unit"] if unit is None else unit
    words = column.replace("_", " ")
    return f"{words} ({unit})" if unit not in {"", "1"} else words


def meaning(column: str) -> str:
    """What a column of the harness means, in one sentence."""
    return str(_COLUMNS[column]["meaning"])


def meaning_within(column: str) -> str:
    """The same as a part of a sentence."""
    text = meaning(column)
    return text[:1].lower() + text[1:].rstrip(".")


INVISIBLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    r"\ud800-\udfff\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    r"""Text in which no character changes how its neighbours are read.

    A name may hold marks that turn the line around it from right to left, that a terminal obeys, or
    that no picture in SVG can hold. Signs that join letters or emojis stay.

    >>> visible("a safe\u202ename")
    'a safe�name'
    """
    return INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)


def visible_in(content: Any) -> Any:  # noqa: ANN401
    """The same of every text in a chart's lists and mappings."""
    if isinstance(content, dict):
        return {name: visible_in(part) for name, part in content.items()}
    if isinstance(content, list | tuple):
        return [visible_in(part) for part in content]
    return visible(content) if isinstance(content, str) else content


def signed(value: float, digits: int = 2) -> str:
    """A difference, with its sign, a true minus, and no sign on nothing.

    >>> signed(0.314), signed(-0.001)
    ('+0.31', '0.00')
    """
    if not math.isfinite(value):
        return NONE
    rounded = f"{value:+.{digits}f}"
    return rounded.replace("-", MINUS) if float(rounded) else rounded[1:]


def p_value(p: float) -> str:
    """A p-value as it is printed.

    >>> p_value(0.0004), p_value(0.0321), p_value(0.00001)
    ('0.0004', '0.032', '< 0.0001')
    """
    if not math.isfinite(p):
        return NONE
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def ratio(value: float) -> str:
    """A ratio as it is printed.

    >>> ratio(1.6), ratio(0.00799), ratio(1234.5)
    ('1.60', '0.008', '1.2e+03')
    """
    if not math.isfinite(value):
        return NONE
    return f"{value:.2f}" if 0.1 <= value < 100 else f"{value:.2g}"


def number(value: float, digits: int = 2) -> str:
    """A number as it is printed."""
    return f"{value:.{digits}f}".replace("-", MINUS) if math.isfinite(value) else NONE


def interval(low: float, high: float, write: Callable[[float], str] = signed) -> str:
    """An interval as it is printed."""
    return f"[{write(low)}, {write(high)}]" if math.isfinite(low) else "[no interval]"


def capitalized(words: str) -> str:
    """Words with a capital ahead; the others keep theirs."""
    return words[:1].upper() + words[1:]


def inline(frame: pd.DataFrame, *columns: str, digits: int = 4) -> alt.InlineData:
    """The columns that a chart draws, inside it, to as many digits as a pixel can show and more."""
    shortened = (
        [_short(value, digits) for value in frame[name].astype(object)] for name in columns
    )
    rows = tuple(dict(zip(columns, row, strict=True)) for row in zip(*shortened, strict=True))
    return alt.InlineData(values=rows)  # a tuple: Altair copies lists at every step, row by row


def _short(value: Any, digits: int) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return None if value is pd.NA else value


def configure(chart: Any) -> Any:  # noqa: ANN401
    """The look that all charts share."""
    return chart.configure(
        background="transparent",
        font=FONT,
        padding=4,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=MUTED,
            labelFontSize=12,
            labelLimit=220,
            titleColor=INK,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=8,
            gridColor=RULE,
            gridOpacity=0.7,
            domain=False,
            tickColor=RULE,
        ),
        axisX=alt.AxisConfig(labelAngle=0, labelFlush=False),
        axisXQuantitative=alt.AxisConfig(tickCount=alt.expr("ceil(width / 75)")),
        axisY=alt.AxisConfig(
            titleAngle=0, titleAlign="left", titleAnchor="end", titleX=0, titleY=-10
        ),
        legend=alt.LegendConfig(
            labelColor=INK,
            labelFontSize=12,
            titleColor=MUTED,
            titleFontSize=12,
            titleFontWeight="normal",
            orient="bottom",
            direction="horizontal",
            symbolSize=90,
            offset=8,
        ),
        title=alt.TitleConfig(color=INK, fontSize=13, fontWeight="bold", anchor="start", offset=10),
    )
