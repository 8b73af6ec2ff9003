from __future__ import annotations

import pytest

from analysis.judgement.fates import find_fates
from analysis.judgement.outcomes import collect_outcomes
from tests.analysis.judgement.test_studies import write

TUNING = {"stage": "tuning", "lr": 0.5}


@pytest.fixture(scope="module")
def fates(tmp_path_factory):
    """Of `none` seed 0 learns nothing and seed 1 little; `after` diverges at a large rate."""
    results = write(
        tmp_path_factory.mktemp("fates"),
        {},
        TUNING,
        architectures=("plain",),
        accuracy=lambda t: (
            {0: -80.0, 1: -60.0}.get(t.seed, 0.0)
            if (t.placement, t.stage) == ("none", "study")
            else 0.0
        ),
        diverges=lambda t: (t.placement, t.stage) == ("after", "tuning"),
        is_lost=lambda t: (t.placement, t.seed, t.stage) == ("before", 4, "study"),
    )
    return {(one.stage, one.arm): one for one in find_fates(results, collect_outcomes(results))}


def test_each_run_has_one_fate(fates):
    one = fates["study", "none"]
    assert (one.planned, one.ran, one.nothing, one.collapsed, one.diverged) == (5, 5, 1, 1, 0)
    assert (one.trained, one.lost) == (3, 2)


def test_a_run_without_a_result_is_not_lost(fates):
    one = fates["study", "before"]
    assert (one.planned, one.ran, one.trained, one.lost) == (5, 4, 4, 0)


def test_runs_that_tune_are_counted_rate_by_rate(fates):
    one = fates["tuning", "after"]
    assert (one.lr, one.diverged, one.recipe) == (0.5, 5, "tuning")


def test_an_arm_that_does_badly_as_a_whole_has_not_collapsed(tmp_path):
    results = write(
        tmp_path,
        {},
        architectures=("plain",),
        accuracy=lambda t: -60.0 * (t.placement == "none"),
    )
    assert not any(one.lost for one in find_fates(results, collect_outcomes(results)))
