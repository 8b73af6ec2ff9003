"""The theme: one mark per placement, colours that can be told apart, numbers as they are printed."""

from __future__ import annotations

import itertools
import math
import re

import pandas as pd
import pytest

from analysis.page import drawing, theme
from harness.study.records import GradientRow
from harness.study.trials import PROGRAMS

PLACEMENTS = sorted({name for programs in PROGRAMS.values() for name in programs})

# Linear RGB as seen with no red or no green cones; Machado, Oliveira & Fernandes 2009,
# doi:10.1109/TVCG.2009.113, table for severity 1.
PROTANOPIA = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)
DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
NORMAL = ((1, 0, 0), (0, 1, 0), (0, 0, 1))


def linear(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def contrast(one, other):
    """Contrast ratio of WCAG 2.2."""
    light = sorted(
        sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))
        for colour in (one, other)
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


def lab(colour, seen_as):
    """CIELAB of a colour as a reader with such cones sees it."""
    rgb = linear(colour)
    seen = [min(max(sum(w * c for w, c in zip(row, rgb, strict=True)), 0), 1) for row in seen_as]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(w * c for w, c in zip(row, seen, strict=True)) for row in to_xyz]
    fx, fy, fz = (
        value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116
        for value in (xyz[0] / 0.9505, xyz[1], xyz[2] / 1.089)
    )
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def test_every_placement_of_the_harness_has_its_own_colour_and_shape():
    marks = theme.marks_of(PLACEMENTS)
    assert len({mark.colour for mark in marks.values()}) == len(PLACEMENTS)
    assert len({mark.shape for mark in marks.values()}) == len(PLACEMENTS)


def test_a_placement_keeps_its_mark_whatever_stands_beside_it():
    assert theme.marks_of(["mine", "after"])["after"] == theme.marks_of(["after"])["after"]


@pytest.mark.parametrize("seen_as", [NORMAL, PROTANOPIA, DEUTERANOPIA])
def test_the_three_main_placements_differ_for_every_reader(seen_as):
    marks = theme.marks_of(["before", "after", "none"])
    for one, other in itertools.combinations(marks.values(), 2):
        assert math.dist(lab(one.colour, seen_as), lab(other.colour, seen_as)) > 15


def test_marks_and_words_stand_out_from_the_paper():
    for mark in theme.marks_of(PLACEMENTS).values():
        assert contrast(mark.colour, theme.PAPER) >= 3  # WCAG 1.4.11
        assert contrast(theme.DARK[mark.colour], theme.DARK[theme.PAPER]) >= 3
    style = drawing.read("page.css")
    for answer in ("holds", "fails", "open"):
        on_light, on_dark = re.findall(rf"--{answer}: (#\w{{6}})", style)
        assert contrast(on_light, theme.PAPER) >= 4.5  # WCAG 1.4.3
        assert contrast(on_dark, theme.DARK[theme.PAPER]) >= 4.5


def test_axis_titles_carry_the_unit_of_the_column():
    assert theme.axis_title("train_loss") == "train loss (nat)"
    assert theme.axis_title("depth") == "depth"
    assert theme.axis_title("test_accuracy", unit="%") == "test accuracy (%)"


def test_meanings_are_those_of_the_harness():
    field = GradientRow.__dataclass_fields__["actgrad_total"]
    assert theme.meaning("actgrad_total") == field.metadata["meaning"]


def test_what_does_not_exist_is_missing_in_the_data_of_a_chart():
    frame = pd.DataFrame({"x": [1.23456, math.nan, math.inf], "y": ["a", "b", "c"]})
    assert theme.inline(frame, "x").to_dict()["values"] == [{"x": 1.235}, {"x": None}, {"x": None}]


@pytest.mark.parametrize(
    ("p", "printed"),
    [
        (0.04999, "0.050"),
        (0.05001, "0.050"),
        (1.0, "1.00"),
        (math.nan, theme.NONE),
        (0.0, "< 0.0001"),
    ],
)
def test_p_values_are_printed_with_what_a_reader_needs(p, printed):
    assert theme.p_value(p) == printed
