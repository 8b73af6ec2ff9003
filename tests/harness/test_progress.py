"""What a run shows while it trains."""

from __future__ import annotations

import io
import math

import pytest

from harness import progress
from harness.cluster.forecast import START_UP, Forecast
from harness.cluster.request import Finish
from harness.progress import LineProgress, Progress
from tests.builders import make_trial

TRIALS = [make_trial(seed=seed) for seed in range(100)]


def finish(trial, status="done", wall_time=2.0):
    return Finish(trial.id, status, 0.9, wall_time)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_it_says_what_it_is_waiting_for_and_how_far_it_is():
    shown = Progress(TRIALS, Forecast())
    assert shown.describe() == "0 of 100, starting Ray"
    shown.note_waiting(1, 4)
    assert shown.describe() == "0 of 100, waiting for nodes: 1 of 4 are up"
    shown.count_workers(2)
    assert shown.describe().startswith("0 of 100, starting 2 workers, about ")
    shown.note_running(2)
    shown.note_finish(finish(TRIALS[0]))
    shown.note_finish(finish(TRIALS[1], "diverged"))
    shown.note_finish(finish(TRIALS[2], "failed", math.nan))
    assert shown.describe().startswith("3 of 100, 2 running, 1 diverged, 1 failed, about ")
    shown.note_stop()
    assert (
        shown.describe() == "3 of 100, stopping (Ctrl-C again stops at once), 1 diverged, 1 failed"
    )


def test_the_time_left_covers_the_missing_trials_and_the_start_up(clock):
    shown = Progress(TRIALS, forecast := Forecast())
    forecast.note(TRIALS[0], 2.0)
    shown.count_workers(2)
    assert shown._estimate_time_left() == START_UP + 100
    for trial in TRIALS[:40]:
        shown.note_finish(finish(trial))
    clock[0] += 2
    assert shown._estimate_time_left() == 60
    for trial in TRIALS[40:]:
        shown.note_finish(finish(trial))
    clock[0] += 2
    assert shown._estimate_time_left() == 0


def test_estimating_a_large_grid_takes_no_more_than_its_share(clock):
    """Estimating a hundred thousand trials takes seconds, and the display asks four times a second."""

    class Slow(Forecast):
        looks = 0

        def wall_time(self, *trials, **how):
            self.looks += 1
            clock[0] += 3.0
            return super().wall_time(*trials, **how)

    shown = Progress(TRIALS, forecast := Slow())
    shown.count_workers(2)
    while clock[0] < 1_000:
        shown.describe()
        clock[0] += 0.25
    assert forecast.looks * 3.0 <= 1_000 * progress.ESTIMATING_SHARE + 3.0


def test_lines_come_at_growing_intervals(clock):
    out = io.StringIO()
    shown = LineProgress(TRIALS, Forecast(), out, "small")
    shown.count_workers(1)
    for trial in TRIALS:
        clock[0] += 9.0
        shown.note_finish(finish(trial))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("small: 0 of 100, starting 1 worker, ")
    counts = [int(line.split()[1]) for line in lines]
    assert counts[:3] == [0, 2, 4]
    assert counts[-1] - counts[-2] > 2


def test_without_a_worker_for_long_a_line_says_how_to_find_out_why(clock):
    shown = LineProgress(TRIALS, Forecast(), out := io.StringIO(), "study")
    shown.count_workers(8)
    shown.note_running(0)
    clock[0] += progress.NO_WORKER_AFTER + 1
    for _ in range(3):
        shown.note_running(0)
    first, *complaints = out.getvalue().splitlines()
    assert "starting 8 workers" in first
    assert len(complaints) == 1
    assert "0 of 100, no worker is running; --check-cluster says why" in complaints[0]
    shown.note_running(1)
    assert "1 running" in shown.describe()
    shown.note_running(0)  # lost just now: nothing to complain about yet
    assert "no worker" not in shown.describe()
    clock[0] += progress.NO_WORKER_AFTER + 1
    shown.note_running(0)
    assert len(out.getvalue().splitlines()) == 3
