"""Make of the SVG that Vega writes one that may stand inside a page, beside others of its kind.

Light to import, for the engine's process imports no more than `drawing` and this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_USUAL = {
    "opacity": "1",
    "stroke-width": "1",
    "fill-opacity": "1",
    "stroke-opacity": "1",
    "transform": "translate(0,0)",
    "font-weight": "normal",
    "font-style": "normal",
}
"""What an SVG takes for granted, and Vega says everywhere."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture without its frame, so that it can stand in a page and in a larger picture."""

    width: float
    height: float
    body: str
    """Elements of SVG; markup, in which every text is escaped."""
    pixels: str = ""
    """The same as a PNG in base64, where the page would grow too long."""


def tidy(svg: str, prefix: str) -> Drawing:
    """The picture with names of its own, a title on each mark that has one, and half the text.

    `prefix` goes ahead of every id, for a page has one name space for all of its pictures. The
    labels that Vega gives to marks become their titles, which browsers show without a script;
    everything else that it writes for screen readers goes, since the page describes each picture
    as a whole and puts the numbers beside it.

    >>> drawn = tidy('<svg viewBox="0 0 9 9"><g><path id="a" role="x" d="M0.1234,0"/></g></svg>', "p-")
    >>> drawn.body
    '<path id="p-a" d="M0.12,0" />'
    """
    root = ET.fromstring(svg)  # noqa: S314  Vega wrote it here, in this process
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    parts = [part for child in root for part in _tidied(child, prefix)]
    return Drawing(width, height, "".join(ET.tostring(part, "unicode") for part in parts))


def on_paper(svg: str) -> str:
    """The picture of Vega on white, as its pixels have to be wherever they stand."""
    return svg.replace("<g ", '<rect width="100%" height="100%" fill="#ffffff"/><g ', 1)


def _tidied(element: ET.Element, prefix: str) -> list[ET.Element]:
    """What is left of an element: itself, its children without it, or nothing."""
    tag = element.tag.rpartition("}")[2]
    told = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    if told.get("display") == "none":
        return []
    label = told.get("aria-label")
    kept = {
        name: _short(value, prefix)
        for name, value in told.items()
        if not name.startswith("aria-")
        and name not in {"role", "class", "pointer-events", "font-family"}
        and _USUAL.get(name) != value
    }
    if "id" in kept:
        kept["id"] = prefix + kept["id"]
    if kept.get("href", "").startswith("#"):
        kept["href"] = f"#{prefix}{kept['href'][1:]}"
    if "mark-rect" in told.get("class", "").split():
        kept["shape-rendering"] = "crispEdges"  # else hairlines between the tiles of a map
    children = [part for child in element for part in _tidied(child, prefix)]
    if tag == "g":
        if not kept or not children:
            return children
    elif tag == "path" and not {"fill", "stroke", "id"} & kept.keys() and "class" in told:
        return []  # the empty ground and foreground that Vega puts around every group
    made = ET.Element(tag, kept)
    made.text = element.text
    if label and tag in {"path", "text", "line", "rect"}:
        ET.SubElement(made, "title").text = label
    made.extend(children)
    return [made]


def _short(value: str, prefix: str) -> str:
    value = _REFERENCE.sub(rf"url(#{prefix}\1)", value)
    return _LONG.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), value)
