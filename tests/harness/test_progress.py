"""What a run shows while it trains."""

from __future__ import annotations

import io
import math
import os

import pytest
from rich.console import Console

from harness import progress
from harness.cluster.forecast import START_UP, Forecast, guess_seconds
from harness.cluster.request import Finish, News
from harness.display import NARROW, LiveProgress, choose_display
from harness.progress import (
    MOST_SHOWN,
    NAMED_FAILURES,
    LineProgress,
    Progress,
    describe_failures,
    describe_stop,
)
from harness.results.tally import Tally
from tests.builders import make_failure, make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(100)]
LONG = make_trial(epochs=10)


def finish(trial, status="done", wall_time=2.0):
    return Finish(trial.id, status, 0.9, wall_time)


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which the test moves."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_it_says_what_it_is_waiting_for_and_how_far_it_is(clock):
    shown = Progress(TRIALS, Forecast())
    assert shown.describe() == "0 of 100, starting Ray, 0.0 s elapsed"
    shown.note_waiting(1, 4)
    assert shown.describe() == "0 of 100, waiting for nodes: 1 of 4 are up, 0.0 s elapsed"
    shown.count_workers(2)
    assert shown.describe().startswith("0 of 100, starting 2 workers, 0.0 s elapsed, about ")
    shown.note_running(2)
    clock[0] += 12
    shown.note_finish(finish(TRIALS[0]))
    shown.note_finish(finish(TRIALS[1], "diverged"))
    shown.note_finish(finish(TRIALS[2], "failed", math.nan))
    said = shown.describe()
    assert said.startswith("3 of 100, 2 running, 1 diverged, 1 failed, 12 s elapsed, about ")
    assert said.endswith(" left, 900 trials/h")
    shown.note_finish(finish(TRIALS[2]))  # tried again, and well
    assert "failed" not in shown.describe()
    shown.note_stop()
    assert "what 2 workers had in training is dropped unless it ends within 5 s" in shown.describe()
    assert "left" not in shown.describe()


def test_who_looks_during_the_first_estimate_is_told_the_rest():
    """A heartbeat looks from its own thread: an error there would end the run's claim."""
    said: list[str] = []

    class Slow(Forecast):
        def wall_time(self, *arguments, **options):
            said.extend(shown.list_lines())
            return super().wall_time(*arguments, **options)

    shown = Progress(TRIALS, Slow())
    shown.count_workers(2)
    assert said == ["0 of 100, starting 2 workers, 0.0 s elapsed"]


def test_where_nothing_is_in_training_nothing_is_said_to_be_dropped(clock):
    shown = Progress(TRIALS, Forecast())
    shown.note_stop()
    assert shown.describe() == "0 of 100, stopping; Ctrl-C again stops at once, 0.0 s elapsed"


def test_the_time_left_covers_the_missing_trials_and_the_start_up(clock):
    shown = Progress(TRIALS, forecast := Forecast())
    forecast.note(TRIALS[0], 2.0)
    shown.count_workers(2)
    assert shown._seconds_left == START_UP + 100
    for trial in TRIALS[:40]:
        shown.note_finish(finish(trial))
    clock[0] += 2
    shown.note_running(2)
    assert shown._seconds_left == 60
    for trial in TRIALS[40:]:
        shown.note_finish(finish(trial))
    clock[0] += 2
    shown.note_running(2)
    assert shown._seconds_left == 0


def test_the_time_left_is_known_from_the_first_epoch_on_and_counts_down(clock):
    shown = Progress([LONG, make_trial(epochs=10, seed=1), *TRIALS[2:4]], Forecast())
    shown.count_workers(1)
    shown.note_news([News(LONG.id)])
    shown.note_news([News(LONG.id, 1, 0.5, 0.9, 100.0)])
    clock[0] += 10
    shown.note_running(1)
    # 9 epochs less the 10 s since; another trial of the cell; two of a cell known by its work.
    scale = 1_000 / guess_seconds(LONG)
    assert shown._seconds_left == pytest.approx(890 + 1_000 + 2 * scale * guess_seconds(TRIALS[2]))
    shown.note_news([News(LONG.id, 2, 0.5, 0.9, 100.0)])
    clock[0] += 2
    shown.note_running(1)
    assert shown._seconds_left == pytest.approx(798 + 1_000 + 2 * scale * guess_seconds(TRIALS[2]))


def test_a_pack_in_training_stands_for_all_its_seeds(clock):
    pack = [make_trial(epochs=10, pack_size=2, seed=seed) for seed in range(2)]
    shown = Progress(pack, Forecast())
    shown.count_workers(1)
    shown.note_news([News(pack[0].id, 4, 0.5, 0.9, 10.0)])
    clock[0] += 1
    shown.note_running(1)
    assert shown._seconds_left == 59
    assert shown.list_lines()[1].startswith("digits mlp-3 before seeds 0 to 1: epoch 4/10, ")


def test_estimating_a_large_grid_takes_no_more_than_its_share(clock):
    """Estimating a hundred thousand trials takes seconds, and Tune comes by many times a second."""

    class Slow(Forecast):
        looks = 0

        def wall_time(self, *trials, **how):
            self.looks += 1
            clock[0] += 3.0
            return super().wall_time(*trials, **how)

    shown = Progress(TRIALS, forecast := Slow())
    shown.count_workers(2)
    while clock[0] < 1_000:
        shown.note_running(2)
        clock[0] += 0.25
    assert forecast.looks * 3.0 <= 1_000 * progress.ESTIMATING_SHARE + 3.0


def test_each_training_has_a_line_until_it_is_finished(clock):
    shown = Progress(TRIALS, Forecast())
    shown.note_news([News(TRIALS[1].id, 1, 0.25, 0.875, 1.0), News(TRIALS[0].id), News("unknown")])
    assert shown.list_lines()[1:] == [
        "digits mlp-3 before seed 0: epoch 0/2",
        "digits mlp-3 before seed 1: epoch 1/2, loss 0.250, accuracy 87.5 %",
    ]
    shown.note_finish(finish(TRIALS[1]))
    assert shown.list_lines()[1:] == ["digits mlp-3 before seed 0: epoch 0/2"]
    shown.note_news([])
    assert shown.list_lines() == [shown.describe()]


def test_of_many_workers_those_with_the_latest_news_are_shown(clock):
    shown = Progress(TRIALS, Forecast())
    first = [News(trial.id) for trial in TRIALS]
    shown.note_news(first)
    news = [News(trial.id, 1, 0.5, 0.9, 1.0) for trial in TRIALS[:3]]
    shown.note_news([*news, *first[3:]])
    _, *lines, more = shown.list_lines()
    assert sum("epoch 1/2" in line for line in lines) == 3
    assert len(lines) == MOST_SHOWN
    assert more == f"... and {100 - MOST_SHOWN} more in training"


def test_in_a_log_a_line_a_minute_says_how_far_it_is_whether_anything_ends_or_not(clock):
    shown = LineProgress([LONG], Forecast(), out := io.StringIO(), "small")
    shown.count_workers(1)
    shown.note_news([News(LONG.id, 3, 0.25, 0.875, 60.0)])
    while clock[0] < 300:
        clock[0] += 0.5
        shown.note_running(1)
    first, *lines = out.getvalue().splitlines()
    assert first.startswith("small: 0 of 1, starting 1 worker, ")
    assert len(lines) == 5
    assert lines[1].startswith("small: 0 of 1, 1 running, 2 min 0 s elapsed, about 5 min ")
    assert lines[1].endswith(
        "; digits mlp-3 before seed 0: epoch 3/10, loss 0.250, accuracy 87.5 %"
    )


def draw(width, height=24, workers=3, **options):
    """The display on a terminal of this size, with this many trainings, and nothing cut yet."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, **options
    )
    trials = [make_trial(placement=f"af\x1b[2Jter{seed}", seed=seed) for seed in range(100)]
    shown = LiveProgress(trials, Forecast(), console, "a-study-of-many-words" * 3)
    shown.count_workers(2)
    shown.note_running(2)
    shown.note_finish(finish(trials[99]))
    shown.note_news([News(trial.id, 1, 0.25, 0.875, 1.0) for trial in trials[:workers]])
    lines = console.render_lines(shown._render(), pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


@pytest.mark.parametrize("width", [30, 40, 59, 60, 80, 200])
def test_the_display_fits_a_terminal_of_any_width(width):
    lines = draw(width)
    assert max(map(len, lines)) <= width
    assert "1 of 100" in lines[0]
    rows = [line for line in lines if "1/2" in line]
    assert len(rows) == 3
    assert all(row.endswith("87.5 %") for row in rows)
    assert all(("0.250" in row) == (width >= NARROW) for row in rows)


@pytest.mark.parametrize("height", [10, 24, 60])
def test_the_display_is_no_higher_than_the_terminal(height):
    lines = draw(80, height, workers=50)
    assert len(lines) <= height
    assert sum("1/2" in line for line in lines) <= MOST_SHOWN
    assert any("more in training" in line for line in lines)


def test_the_display_obeys_nothing_that_stands_in_a_grid():
    assert not any("\x1b" in line for line in draw(200))
    assert any("af\\x1b[2Jter0" in line for line in draw(200))


@pytest.mark.parametrize(("term", "kind"), [("xterm", LiveProgress), ("dumb", LineProgress)])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, term, kind):
    monkeypatch.setenv("TERM", term)
    leader, follower = os.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as out:
        shown = choose_display(TRIALS, Forecast(), out, "small", quiet=False, verbose=False)
        assert type(shown) is kind
        shown = choose_display(TRIALS, Forecast(), out, "small", quiet=True, verbose=False)
        assert type(shown) is Progress
    os.close(leader)


def test_an_interrupted_run_says_what_it_kept_and_what_it_dropped():
    rows = {trial.id: make_rows(trial).trial for trial in TRIALS[:5]}
    tally = Tally.of(TRIALS, rows.values(), ())
    said = describe_stop(tally, TRIALS[3:], TRIALS[4:7])
    assert said == (
        "interrupted: 2 trials of this run finished and kept; 1 of 3 in training ended in time; "
        "2 dropped, to start again or at a checkpoint"
    )
    assert describe_stop(tally, TRIALS[5:], ()) == (
        "interrupted: 0 trials of this run finished and kept"
    )


def test_the_first_failures_are_named_and_a_command_shows_the_others():
    failed = TRIALS[: NAMED_FAILURES + 2]
    tally = Tally.of(TRIALS, (), map(make_failure, failed))
    *named, more = describe_failures(tally, failed, "my results")
    assert len(named) == NAMED_FAILURES
    assert named[0] == f"failed: {TRIALS[0].label}: exception (start 1): ValueError: bad luck"
    assert more == "failed: 2 more; by cause: python -m harness.status 'my results'"


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
