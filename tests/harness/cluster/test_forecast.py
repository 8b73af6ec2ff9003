"""How long trials take: as long as those of their own cell, once there are some."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.forecast import (
    LEAST_LIMIT,
    LIMIT_OF_GUESSED,
    LIMIT_OF_MEASURED,
    START_UP,
    Forecast,
    guess_seconds,
)
from tests.harness.conftest import make_trial

CELLS = [make_trial(depth=depth) for depth in (2, 3, 8)]

finished = st.lists(st.tuples(st.sampled_from(CELLS), st.integers(0, 9), st.floats(0.1, 1e4)))


@given(finished)
def test_a_trial_takes_the_mean_of_its_cell_and_hangs_after_ten_times_its_slowest(trials):
    """A twin that keeps every number."""
    forecast = Forecast()
    for cell, seed, seconds in trials:
        forecast.note(replace(cell, seed=seed), seconds)
    assert str(len(trials)) in forecast.basis or not trials
    for cell in CELLS:
        known = [seconds for other, _, seconds in trials if other == cell]
        if known:
            assert forecast.seconds(cell) == pytest.approx(sum(known) / len(known))
            assert forecast.limit(cell) == LEAST_LIMIT + LIMIT_OF_MEASURED * max(known)


def test_elsewhere_the_model_is_scaled_by_what_it_was_wrong_by():
    known, other, _ = CELLS
    forecast = Forecast()
    assert forecast.seconds(other) == guess_seconds(other)
    assert forecast.basis == "guessed from the size of the networks"
    forecast.note(known, 3 * guess_seconds(known))
    assert forecast.seconds(other) == pytest.approx(3 * guess_seconds(other))
    assert forecast.limit(other) == LEAST_LIMIT + LIMIT_OF_GUESSED * forecast.seconds(other)


def test_a_run_takes_its_start_a_fair_share_and_no_less_than_its_longest_trial():
    short, long, _ = CELLS
    forecast = Forecast()
    forecast.note(short, 1.0)
    forecast.note(long, 60.0)
    assert forecast.wall_time([short] * 10, 2) == START_UP + 5.0
    assert forecast.wall_time([short] * 10, 2, warm=True) == 5.0
    assert forecast.wall_time([short] * 10 + [long], 8) == START_UP + 60.0
    assert forecast.wall_time([], 2) == 0.0
