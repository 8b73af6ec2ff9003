from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.judgement.practice import QUANTITIES, Practice
from analysis.page import theme
from analysis.page.practice import show_practice

NAN = float("nan")


def practice(quantity="gap", arm="after", **changes):
    row = Practice(
        dataset="digits",
        recipe="common",
        kind="architecture",
        label="plain",
        arm=arm,
        baseline="before",
        quantity=quantity,
        trials=5,
        pairs=5,
        mean=3.25,
        difference=0.5,
        low=-0.25,
        high=1.25,
    )
    return replace(row, **changes)


def all_of(arm="after", **changes):
    return [practice(name, arm, **changes) for name in QUANTITIES]


def test_a_cell_has_the_mean_and_the_difference_with_its_interval():
    section = show_practice(all_of())
    assert "the difference from 'before'" in section.intro
    (title, training), (_, inference) = section.tables
    assert title == "Training"
    assert training.rows[0][:2] == ("plain", "after")
    assert f"3.25 (+0.50 [{theme.MINUS}0.25, +1.25])" in training.rows[0]
    assert len(training.columns) + len(inference.columns) == 6 + len(QUANTITIES)
    assert len(training.rows[0]) == len(training.columns)


def test_the_baseline_has_means_alone():
    rows = all_of("before", difference=NAN, low=NAN, high=NAN)
    for _, table in show_practice(rows).tables:
        assert set(table.rows[0][3:]) == {"3.25"}


def test_a_grid_without_batch_norm_has_no_table_of_folding():
    rows = [row for row in all_of() if not row.quantity.startswith("fold")]
    rows += [practice(name, mean=NAN, difference=NAN) for name in QUANTITIES if "fold" in name]
    assert [title for title, _ in show_practice(rows).tables] == ["Training"]


@pytest.mark.parametrize("kind", ["cell", "architecture"])
def test_the_page_shows_architectures_and_each_data_set_apart(kind):
    rows = [*all_of(kind=kind), *all_of(kind=kind, dataset="cifar10")]
    titles = [title for title, _ in show_practice(rows).tables]
    expected = ["Digits, training", "Cifar10, training"] if kind == "architecture" else []
    assert [title for title in titles if "training" in title] == expected


def test_without_rows_there_is_nothing_to_show():
    assert not show_practice(()).tables
