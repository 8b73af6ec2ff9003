"""Along training, on the page: which curves are shown at once, and where counts replace a mean."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from analysis.judgement.courses import CurvePoint, follow_arms, follow_orders
from analysis.judgement.fates import find_fates
from analysis.judgement.lengths import compare_lengths
from analysis.judgement.outcomes import collect_outcomes
from analysis.page import theme
from analysis.page.differences import compare, show_differences
from analysis.page.fates import count_trained, show_fates
from analysis.page.frames import tabulate_accuracies, tabulate_effects, tabulate_trials
from analysis.page.runs import tabulate_arms
from analysis.page.training import MOST_PANELS, show_course, show_lengths, show_training
from tests.analysis.conftest import effects_of
from tests.analysis.judgement.test_studies import write

MARKS = theme.marks_of(["before", "after", "none"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of `none` seed 0 learns nothing and seed 1 collapses, at the longer of two lengths."""
    return write(
        tmp_path_factory.mktemp("training"),
        {"epochs": 2},
        {"epochs": 6},
        accuracy=lambda t: (
            {0: -80.0, 1: -60.0}.get(t.seed, 0.0) * (t.placement == "none" and t.epochs == 6)
        ),
    )


@pytest.fixture(scope="module")
def studies(results):
    return collect_outcomes(results)


@pytest.fixture(scope="module")
def fates(results, studies):
    return tuple(find_fates(results, studies))


def drawn(panel):
    """All rows that a chart holds."""
    return [row for rows in panel.spec["datasets"].values() for row in rows]


def test_the_longest_training_is_shown_and_the_others_on_demand(results, studies):
    points = tuple(follow_arms(results, studies))
    section = show_training(points, tuple(follow_orders(results, studies)), MARKS, margin=0.5)
    assert [(figure.name, figure.is_aside) for figure in section.figures] == [
        ("learning-6", False),
        ("learning-2", True),
        ("difference-course", False),
    ]
    longest, _, difference = section.figures
    assert [panel.title for panel in longest.panels] == ["plain-8", "resnet-8"]
    assert "none in plain-8 4 of 5" in longest.description
    titles = [f"{name}, {epochs} epochs" for name in ("plain", "resnet") for epochs in (2, 6)]
    assert [panel.title for panel in difference.panels] == titles


def test_every_point_of_a_curve_is_drawn(results, studies):
    points = tuple(follow_arms(results, studies))
    for figure in show_training(points, (), MARKS, margin=0.5).figures:
        means = {row["mean"] for panel in figure.panels for row in drawn(panel) if "mean" in row}
        epochs = int(figure.name.partition("-")[2])
        wanted = {float(f"{point.mean:.4g}") for point in points if point.epochs == epochs}
        assert means == wanted


def test_the_curves_of_the_length_that_decides_come_first(results, studies):
    points = tuple(follow_arms(results, studies))
    for deciding, first in ((0, 6), (2, 2), (6, 6)):
        leading, *others = show_training(points, (), MARKS, margin=0.5, deciding=deciding).figures
        assert leading.name == f"learning-{first}"
        assert not leading.is_aside
        assert all(figure.is_aside for figure in others)


def test_of_many_networks_the_deepest_are_shown_at_once():
    point = CurvePoint(
        dataset="digits",
        recipe="common",
        architecture="plain",
        depth=8,
        variant="",
        epochs=6,
        arm="after",
        epoch=6,
        trials=5,
        ran=5,
        mean=90.0,
        low=89.0,
        high=91.0,
    )
    several = [
        replace(point, architecture=name, depth=8 + 2 * place)
        for name in ("plain", "resnet")
        for place in range(MOST_PANELS)
    ]
    first, rest = show_training(several, (), MARKS, margin=0.5).figures
    assert {panel.title for panel in first.panels} == {"plain-30", "resnet-30"}
    assert (len(rest.panels), rest.is_aside) == (2 * MOST_PANELS - 2, True)


def test_flow_and_accuracy_along_training_are_figures_of_their_own(results, studies):
    courses = tuple(follow_orders(results, studies))
    (flow,) = show_course(courses, MARKS, margin=1.25).figures
    (accuracy,) = show_training((), courses, MARKS, margin=0.5).figures
    for figure, quantity in ((flow, "gradient"), (accuracy, "accuracy")):
        assert figure.table is not None
        assert len(figure.table.rows) == sum(one.quantity == quantity for one in courses)
    assert not show_course((), MARKS, margin=1.25).figures


def test_each_length_has_its_difference_and_its_change(results, studies):
    lengths = tuple(compare_lengths(studies, results.plan))
    section = show_lengths(lengths, MARKS)
    (figure,) = section.figures
    assert figure.table is not None
    assert [row[:2] for row in figure.table.rows] == [
        *(("plain", "2"), ("plain", "6"), ("resnet", "2"), ("resnet", "6"))
    ]
    assert figure.table.rows[0][-1] == theme.NONE
    assert theme.signed(lengths[1].change) in figure.table.rows[1]
    assert "a change of " + theme.signed(lengths[1].change) in section.intro
    assert not show_lengths((), MARKS).figures


def test_runs_that_did_not_train_are_counted_and_mapped(fates):
    section = show_fates(fates)
    assert section.intro.startswith("Of 60 runs 4 did not train: 2 learned nothing, 2 collapsed.")
    (figure,) = section.figures
    assert [panel.title for panel in figure.panels] == ["plain, 6 epochs", "resnet, 6 epochs"]
    tiles = {(row["arm"], row["words"]) for row in drawn(figure.panels[0])}
    assert tiles == {("before", "0 of 5"), ("after", "0 of 5"), ("none", "2 of 5")}


def test_where_rates_are_compared_the_map_goes_by_rate(tmp_path):
    results = write(
        tmp_path,
        {"lr": 0.05},
        {"lr": 0.4},
        architectures=("plain",),
        diverges=lambda t: (t.placement, t.lr) == ("none", 0.4),
    )
    found = tuple(find_fates(results, collect_outcomes(results)))
    (figure,) = show_fates(found).figures
    assert [panel.title for panel in figure.panels] == ["plain-8"]
    tiles = [(row["arm"], row["place"], row["words"]) for row in drawn(figure.panels[0])]
    assert ("none", "0.4", "5 of 5") in tiles
    assert ("none", "0.05", "0 of 5") in tiles


def test_where_every_run_trained_there_is_no_map(fates):
    assert not show_fates([fate for fate in fates if not fate.lost]).figures


def test_cells_with_two_humps_show_counts_and_no_interval(results, fates):
    effects = effects_of("accuracy", results)
    rows = tabulate_effects(effects)
    counts = pd.Series(count_trained(rows, fates))
    is_bimodal = (rows["kind"] == "cell") & (rows["baseline"] == "none")
    is_bimodal &= rows["variant"] == "6 epochs"
    assert set(counts[is_bimodal]) == {"Trained: 5 of 5, 3 of 5"}
    is_pool = (rows["kind"] == "pooled") & (rows["baseline"] == "none")
    assert set(counts[is_pool]) == {"Trained: 10 of 10, 8 of 10"}  # of two lengths
    assert set(counts[~(is_bimodal | is_pool) & (rows["arm"] != "none")]) == {""}
    section = show_differences(compare(effects), MARKS, fates)
    figure = next(f for f in section.figures if f.name == "forest-accuracy-after-none")
    told = [row for row in drawn(figure.panels[0]) if row.get("row") == "plain-8, 6 epochs"]
    assert told
    assert {row["numbers"] for row in told} == {"Trained: 5 of 5, 3 of 5"}
    assert {row["estimate"] for row in told} == {None}
    assert "it says how many did" in figure.description


def test_a_mean_is_that_of_the_runs_that_trained(results, fates):
    lost = {trial for fate in fates for trial in fate.lost_trials}
    cells = tabulate_accuracies(tabulate_trials(results, lost))
    cell = cells[(cells["panel"] == "plain, 6 epochs") & (cells["arm"] == "none")].iloc[0]
    assert (cell["ran"], cell["trained"]) == (5, 3)
    assert cell["mean"] > 85
    assert cell["sd"] < 3


def test_what_stands_beside_the_claims_has_a_figure_of_its_own(results):
    judged = replace(results, plan=replace(results.plan, epochs=6))
    section = show_differences(compare(effects_of("accuracy", judged)), MARKS)
    figures = {figure.name: figure for figure in section.figures}
    for name, rows, is_aside in (
        ("forest-accuracy-after-before", ["plain-8", "resnet-8"], False),
        ("forest-accuracy-after-before-beside", ["plain-8, 2 epochs", "resnet-8, 2 epochs"], True),
    ):
        cells = [row[0] for row in figures[name].table.rows if "-8" in row[0]]
        assert (cells, figures[name].is_aside) == (rows, is_aside)


def test_the_arms_are_told_operation_by_operation(results):
    assert tabulate_arms(results).rows == (
        ("before", "plain", "conv, batch norm, ReLU"),
        ("after", "plain", "conv, ReLU, batch norm"),
        ("none", "plain", "conv, ReLU"),
        ("before", "resnet", "conv, batch norm, ReLU, conv, batch norm, the skip is added, ReLU"),
        ("after", "resnet", "conv, ReLU, batch norm, conv, ReLU, batch norm, the skip is added"),
        ("none", "resnet", "conv, ReLU, conv, the skip is added, ReLU"),
    )
