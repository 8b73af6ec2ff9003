"""Draw every chart once: the page shows the same SVG that the files beside it are made of.

A chart is as wide as a column of a paper, or as two or three of them side by side on the page of
one. So its text is as large as the text around it on paper, on a phone, and on a wide screen where
the page sets panels side by side.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import markupsafe

from analysis.page import drawing, theme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from analysis.page.parts import Card, Figure, Panel, Section
    from analysis.page.svg import Drawing
    from analysis.page.theme import Mark

WIDTHS = {1: 420, 2: 340, 3: 300}
"""Pixels of a panel with its axes, by the panels in a row."""
STRIP_WIDTH = 300
"""Pixels of the small chart of a card."""
COLUMN, PAGE = 85, 175
"""Millimetres of a column of a paper of two, and of both: figures of one panel in a row, the others."""
_GAP = 20
_LINE = 18
_LETTER = 6.3
"""Pixels that a letter of the legend takes, roughly: nothing measures text here."""

_SYMBOLS = {
    "circle": "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
    "square": "M1.5 1.5h9v9h-9z",
    "triangle-up": "M6 1l5.5 10h-11z",
    "triangle-down": "M6 11l5.5-10h-11z",
    "triangle-right": "M11 6l-10-5.5v11z",
    "triangle-left": "M1 6l10-5.5v11z",
    "diamond": "M6 0l5 6l-5 6l-5-6z",
    "cross": "M4 0h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
}


class Pictures:
    """What the engine draws of a page, from its first section on while Python lays out the next."""

    def __init__(self) -> None:
        self._begun: dict[int, tuple[Panel, Future[Drawing]]] = {}  # by what a panel is

    def begin(self, section: Section) -> Section:
        """Have every chart of a section drawn; the section itself."""
        for figure in section.figures:
            for panel in figure.panels:
                self._begin(panel, WIDTHS[figure.columns], legend=not figure.legend)
        return section

    def of(self, panel: Panel) -> Drawing:
        """The picture of a panel that was begun, once it is there."""
        _, drawn = self._begun[id(panel)]
        return drawn.result()

    def begin_strips(self, cards: Iterable[Card]) -> None:
        """Have the small chart of every card drawn."""
        for card in cards:
            if card.panel is not None:
                self._begin(card.panel, STRIP_WIDTH, legend=False)

    def _begin(self, panel: Panel, width: int, *, legend: bool) -> None:
        prefix = f"c{len(self._begun)}-"
        drawn = drawing.draw(_spec(panel, width, legend=legend), prefix)
        self._begun[id(panel)] = (panel, drawn)


def _spec(panel: Panel, width: int, *, legend: bool) -> dict[str, Any]:
    """The chart in its full width; `legend` where there is none around it."""
    return {
        **_described(panel.spec),
        "$schema": alt.SCHEMA_URL,
        "width": width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "padding": {"left": 2, "top": 4, "bottom": 2, "right": 4},
        "config": _shared_config(legend=legend),
    }


@functools.cache
def _shared_config(*, legend: bool) -> dict[str, Any]:
    """The look that all charts share."""
    config = theme.configure(alt.Chart()).to_dict(validate=False)["config"]
    return config if legend else {**config, "legend": {"disable": True}}


def _described(view: dict[str, Any]) -> dict[str, Any]:
    """The chart with its tooltips as descriptions of its marks, which Vega writes into an SVG."""
    if "layer" in view:
        return {**view, "layer": [_described(layer) for layer in view["layer"]]}
    encoding = dict(view.get("encoding", {}))
    told = encoding.pop("tooltip", None)
    mark = view["mark"] if isinstance(view["mark"], dict) else {"type": view["mark"]}
    if not told:
        return {**view, "mark": {**mark, "aria": False}, "encoding": encoding}
    text = " + '; ' + ".join(map(_as_expression, told))
    return {**view, "encoding": {**encoding, "description": {"value": {"expr": text}}}}


def _as_expression(tooltip: Mapping[str, Any]) -> str:
    name = tooltip["field"]
    value = f"datum[{json.dumps(name)}]"
    if "format" in tooltip:
        value = f"format({value}, {json.dumps(tooltip['format'])})"
    title = tooltip.get("title") or name.replace("_", " ")
    return f"{json.dumps(title + ': ')} + {value}"


def swatch(mark: Mark) -> markupsafe.Markup:
    """The colour and shape of a placement, as they stand in a line of text."""
    return markupsafe.Markup(
        '<svg viewBox="0 0 12 12" aria-hidden="true"><path d="{}" fill="{}"/></svg>'
    ).format(_SYMBOLS[mark.shape], mark.colour)


def inline(picture: Drawing) -> markupsafe.Markup:
    """The picture as an element of the page, a third larger than on paper where there is room."""
    width = 4 / 3 * picture.width
    if picture.pixels:
        return markupsafe.Markup(
            '<img alt="" width="{:.0f}" src="data:image/png;base64,{}">'
        ).format(width, picture.pixels)
    return markupsafe.Markup(
        '<svg class="marks" viewBox="0 0 {:g} {:g}" width="{:.0f}">{}</svg>'
    ).format(
        picture.width,
        picture.height,
        width,
        markupsafe.Markup(picture.body),  # noqa: S704  an SVG, read and written by `svg.tidy`
    )


def compose(figure: Figure, pictures: Pictures, marks: Mapping[str, Mark]) -> str:
    """The figure as one SVG that stands alone: its panels, each below its title, and a legend."""
    width = WIDTHS[figure.columns]
    columns = min(figure.columns, len(figure.panels))
    whole = columns * (width + _GAP) - _GAP
    legend, top = _legend(figure.legend, marks, whole)
    parts = [legend]
    for start in range(0, len(figure.panels), columns):
        row = figure.panels[start : start + columns]
        titles = [
            textwrap.wrap(theme.visible(panel.title or figure.title), int(width / 7.2))[:3]
            for panel in row
        ]
        drawn = [pictures.of(panel) for panel in row]
        below = top + _LINE * max(map(len, titles))
        for index, (lines, picture) in enumerate(zip(titles, drawn, strict=True)):
            left = index * (width + _GAP)
            parts += [
                _text(left, top + _LINE * (line + 1) - 5, text, 'font-size="13" font-weight="bold"')
                for line, text in enumerate(lines)
            ]
            parts.append(f'<g transform="translate({left},{below})">{picture.body}</g>')
        top = below + max(picture.height for picture in drawn) + _GAP
    height = top - _GAP
    across = COLUMN if whole <= WIDTHS[1] else PAGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}mm" '
        f'height="{across * height / whole:.2f}mm" viewBox="0 0 {whole} {height:g}" '
        f'font-family="{markupsafe.escape(theme.FONT)}">'
        f'<rect width="{whole}" height="{height:g}" fill="{theme.PAPER}"/>{"".join(parts)}</svg>\n'
    )


def _legend(names: Sequence[str], marks: Mapping[str, Mark], width: float) -> tuple[str, float]:
    """What the marks mean, in lines as long as the picture is wide; and where they end."""
    parts, left, top = [], 0.0, 0.0
    for name in names:
        mark = marks[name]
        shown = textwrap.shorten(theme.visible(name), int(width / _LETTER) - 4, placeholder="…")
        room = 18 + _LETTER * len(shown) + 16
        if left and left + room > width:
            left, top = 0.0, top + _LINE
        place = f"translate({left:g},{top + 3:g})"
        parts += [
            f'<path transform="{place}" d="{_SYMBOLS[mark.shape]}" fill="{mark.colour}"/>',
            _text(left + 18, top + 13, shown, 'font-size="12"'),
        ]
        left += room
    return "".join(parts), top + _LINE + 6 if names else 0.0


def _text(left: float, base: float, text: str, look: str) -> str:
    return f'<text x="{left:g}" y="{base:g}" {look} fill="{theme.INK}">{markupsafe.escape(text)}</text>'
