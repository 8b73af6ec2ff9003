"""Charts: they draw the numbers they are given, all of them, and compute none."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import vl_convert

from analysis.judgement.verdicts import judge
from analysis.load import load_results
from analysis.page import charts, curves, theme
from analysis.page.sections import build_page
from tests.analysis.conftest import Study, effects_of, write_study

MARKS = theme.marks_of(["before", "after", "none"])
COMPUTING = {"aggregate", "bin", "transform", "regression", "impute", "density", "loess", "stack"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    study = Study(
        architectures=("mlp", "plain", "resnet"),
        accuracy=lambda t: 1.0 * (t.placement == "after"),
        diverges=lambda t: t.placement == "none" and t.seed == 0 and t.depth == 14,
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    results = load_results(str(folder))
    effects = (*effects_of("accuracy", results), *effects_of("gradient", results))
    return build_page(results, effects, judge(results))


def words_in(spec):
    """Every key that occurs anywhere in a specification, its data left out."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key not in {"datasets", "data"}:
                yield key
                yield from words_in(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from words_in(value)


def domain_of(chart, channel="x"):
    return next(
        layer["encoding"][channel]["scale"]["domain"]
        for layer in chart.to_dict()["layer"]
        if "scale" in layer["encoding"].get(channel, {})
    )


def effect(**changes):
    row = {
        "row": "plain-8",
        "kind": "cell",
        "arm": "after",
        "numbers": "",
        "brief": "",
        "estimate": 1.0,
        "low": 0.5,
        "high": 1.5,
        "low90": 0.6,
        "high90": 1.4,
        "margin": 0.5,
    }
    return {**row, **changes}


def test_no_chart_computes(page):
    for figure in page.figures:
        for panel in figure.panels:
            assert not COMPUTING & set(words_in(panel.chart.to_dict())), figure.name


def test_every_chart_is_valid_and_can_be_drawn(page):
    for figure in page.figures:
        for panel in figure.panels:
            svg = vl_convert.vegalite_to_svg(panel.chart.properties(width=300).to_dict())
            assert "<svg" in svg
            assert "NaN" not in svg, figure.name


def test_every_trial_that_trained_is_drawn(page):
    (figure,) = (figure for figure in page.figures if figure.name == "accuracy")
    drawn = 0
    for panel in figure.panels:
        spec = panel.chart.to_dict()
        points = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point")
        drawn += len(spec["datasets"][points["data"]["name"]])
    assert drawn == page.counts["done"] == 90 - page.counts["diverged"]


def test_a_placement_has_one_colour_and_one_shape_in_every_chart(page):
    seen = {}
    for figure in page.figures:
        for panel in figure.panels:
            for layer in panel.chart.to_dict().get("layer", []):
                for channel in ("color", "shape"):
                    scale = layer["encoding"].get(channel, {}).get("scale", {})
                    names = scale.get("domain", [])
                    if set(names) <= set(page.marks) and "range" in scale:
                        for name, value in zip(names, scale["range"], strict=True):
                            assert seen.setdefault((channel, name), value) == value
    assert {name for _, name in seen} == {"before", "after", "none"}


def test_colours_never_come_without_shapes(page):
    for figure in page.figures:
        for panel in figure.panels:
            layers = panel.chart.to_dict().get("layer", [])
            for layer in layers:
                is_point = layer["mark"]["type"] == "point"
                if is_point and "color" in layer["encoding"]:
                    assert "shape" in layer["encoding"], figure.name


@pytest.mark.parametrize(
    ("low", "high"), [(-7.0, 1.5), (0.5, 12.0), (math.nan, math.nan), (-0.1, 0.1)]
)
def test_a_forest_reaches_both_ends_of_every_interval_and_of_the_margin(low, high):
    effects = pd.DataFrame([effect(), effect(row="plain-14", low=low, high=high)])
    left, right = domain_of(charts.forest(effects, MARKS, title="difference"))
    reached = [value for value in (low, high, -0.5, 0.5, 0.5, 1.5) if math.isfinite(value)]
    assert left < min(reached)
    assert right > max(reached)


def test_a_forest_of_ratios_reaches_both_ends_of_its_margin():
    effects = pd.DataFrame([effect(margin=1.25, low=0.9, high=3.0)])
    left, right = domain_of(charts.forest(effects, MARKS, title="ratio", is_ratio=True))
    assert left < 0.8
    assert right > 3.0


def test_an_effect_without_an_interval_is_a_point_without_bars():
    lone = pd.DataFrame([effect(low=math.nan, high=math.nan, low90=math.nan, high90=math.nan)])
    spec = charts.forest(lone, MARKS, title="difference").to_dict()
    rows = {
        layer["mark"]["type"]: len(spec["datasets"].get(layer["data"].get("name"), [0]))
        for layer in spec["layer"]
    }
    assert rows["point"] == 1
    assert rows["bar"] == 0


def test_a_map_of_ratios_is_symmetric_about_one():
    flow = pd.DataFrame(
        {"layer_index": [0, 1], "epoch": [0.0, 0.0], "mean": [1.2, 0.4], "is_clear": [True, False]}
    )
    scale = curves.difference_map(flow, title="ratio").to_dict()["encoding"]["color"]["scale"]
    low, high = scale["domain"]
    assert scale["type"] == "log"
    assert low * high == pytest.approx(1)
    assert low <= 0.4


def test_names_are_data_in_the_expressions_of_a_chart():
    hostile = "'] + alert(1) + ['"
    effects = pd.DataFrame([effect(row=hostile, kind="pooled")])
    spec = charts.forest(effects, MARKS, title="difference").to_dict()
    expressions = [word for word in json.dumps(spec).split("indexof(") if "alert" in word]
    assert expressions
    assert json.dumps(hostile) in json.dumps(spec).replace('\\"', '"').replace("\\\\", "\\")


def test_a_forest_without_a_margin_shades_nothing():
    rows = [{"row": "slope", "kind": "pool", "arm": "after", "numbers": "+1", "brief": "+1"}]
    numbers = {"estimate": 1.0, "low": 0.5, "high": 1.5, "low90": 0.6, "high90": 1.4}
    frame = pd.DataFrame(rows).assign(**numbers, margin=math.nan)
    spec = charts.forest(frame, MARKS, title="difference").to_dict()
    assert "rect" not in {layer["mark"]["type"] for layer in spec["layer"]}
    vl_convert.vegalite_to_svg(spec)


def test_an_arm_far_below_the_others_makes_no_picture_tall():
    """Its best rate is at the edge, which has a sign: of `none` as of the others."""
    tried = [(lr, arm, best - lr) for arm, best in (("after", 90), ("none", 12)) for lr in (0.1, 1)]
    trials = pd.DataFrame(tried, columns=["lr", "arm", "percent"])
    means = trials.assign(edge=["\N{LEFT RIGHT ARROW}", "", "\N{LEFT RIGHT ARROW}", ""])
    chart = curves.rates(trials, means, MARKS, title="accuracy (%)").properties(width=300)
    drawn = vl_convert.vegalite_to_svg(chart.to_dict())
    _, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    assert float(height) < 300
    assert drawn.count("\N{LEFT RIGHT ARROW}</text>") == 1
