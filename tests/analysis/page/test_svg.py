"""What Vega draws stands in a page beside others of its kind, and loses nothing that is seen."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
import vl_convert

from analysis.page import svg

HOSTILE = '</title></svg><script>alert("1")</script>'


@pytest.fixture(scope="module")
def drawn():
    """A chart of two points with labels, clipped and with a scale of colours."""
    return vl_convert.vegalite_to_svg(
        {
            "data": {"values": [{"x": 1, "name": HOSTILE}, {"x": 2.123456, "name": "b"}]},
            "mark": {"type": "point", "clip": True},
            "encoding": {
                "x": {"field": "x", "type": "quantitative", "title": HOSTILE},
                "color": {"field": "x", "type": "quantitative"},
                "description": {"field": "name"},
            },
        }
    )


def test_no_two_pictures_of_a_page_share_an_id(drawn):
    bodies = [svg.tidy(drawn, f"c{number}-").body for number in range(2)]
    ids = [set(re.findall(r' id="([^"]*)"', body)) for body in bodies]
    assert len(ids[0]) >= 2
    assert not ids[0] & ids[1]
    for body, own in zip(bodies, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)", body)) == own


def test_all_text_and_every_painted_shape_stay(drawn):
    def seen(markup):
        root = ET.fromstring(markup)
        names = [element.tag.rpartition("}")[2] for element in root.iter()]
        painted = [e for e in root.iter() if {"fill", "stroke"} & e.attrib.keys()]
        texts = [e.text for e in root.iter() if e.tag.endswith("text")]
        return texts, names.count("line"), len([e for e in painted if not e.tag.endswith("g")])

    assert seen(f"<svg>{svg.tidy(drawn, '').body}</svg>") == seen(drawn)


def test_a_label_becomes_a_title_and_no_markup(drawn):
    body = svg.tidy(drawn, "").body
    titles = [e.text for e in ET.fromstring(f"<svg>{body}</svg>").iter("title")]
    assert titles == [HOSTILE, "b"]
    assert "<script" not in body
    assert "aria-" not in body


def test_a_picture_loses_half_of_its_length(drawn):
    assert len(svg.tidy(drawn, "c1-").body) < 0.6 * len(drawn)
