"""What a run shows: a live display in a terminal, a line now and then in logs and pipes."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from harness.study.wording import format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.cluster.forecast import Forecast
    from harness.cluster.request import Finish
    from harness.study.trials import Trial

FIRST_LINE_AFTER = 10.0
"""Seconds; later lines come at growing intervals, a twentieth of the time elapsed."""

NO_WORKER_AFTER = 120.0
"""Seconds without a busy worker after which the display says how to find out why."""

ESTIMATING_SHARE = 0.02
"""Share of the driver's time spent on estimating the time left."""


class Progress:
    """Counts what the fan-out reports and describes how far the run is; shows nothing itself."""

    def __init__(self, trials: Sequence[Trial], forecast: Forecast) -> None:
        self._trials = {trial.id: trial for trial in trials}
        self._forecast = forecast
        self._status: dict[str, str] = {}
        self._waiting = ""
        self._workers = 0
        self._running = 0
        self._idle_since = math.inf
        self._seconds_left = math.inf
        self._estimate_again_at = -math.inf
        self._stopping = False

    def note_waiting(self, nodes: int, wanted: int) -> None:
        self._waiting = f"waiting for nodes: {nodes} of {wanted} are up"

    def count_workers(self, workers: int) -> None:
        self._workers = workers
        self._idle_since = time.monotonic()

    def note_running(self, workers: int) -> None:
        if workers:
            self._idle_since = math.inf
        elif self._running:
            self._idle_since = time.monotonic()
        self._running = workers

    def note_finish(self, finish: Finish) -> None:
        self._status[finish.trial_id] = finish.status
        if not math.isnan(finish.wall_time):
            self._forecast.note(self._trials[finish.trial_id], finish.wall_time)

    def note_stop(self) -> None:
        self._stopping = True

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        yield

    @property
    def finished(self) -> int:
        return len(self._status)

    def describe(self) -> str:
        """The counts and the time left: '12 of 90, 2 running, 1 failed, about 40 s left'."""
        counts = Counter(self._status.values())
        parts = [f"{self.finished} of {len(self._trials)}"]
        if self._stopping:
            parts.append("stopping (Ctrl-C again stops at once)")
        elif not self._workers:
            parts.append(self._waiting or "starting Ray")
        elif self._lacks_workers:
            parts.append("no worker is running; --check-cluster says why")
        elif not self._running and not self.finished:
            parts.append(f"starting {format_count(self._workers, 'worker')}")
        else:
            parts.append(f"{self._running} running")
        parts += [f"{counts[word]} {word}" for word in ("diverged", "failed") if counts[word]]
        if self._workers and not self._stopping:
            parts.append(f"about {format_duration(self._estimate_time_left())} left")
        return ", ".join(parts)

    @property
    def _lacks_workers(self) -> bool:
        return time.monotonic() - self._idle_since > NO_WORKER_AFTER

    def _estimate_time_left(self) -> float:
        begun = time.monotonic()
        if begun >= self._estimate_again_at:
            left = [trial for trial in self._trials.values() if trial.id not in self._status]
            self._seconds_left = self._forecast.wall_time(
                left, max(1, self._workers), warm=bool(self._status)
            )
            # A large grid takes seconds to estimate: limit that to a share of the driver's time.
            now = time.monotonic()
            self._estimate_again_at = now + max(1.0, (now - begun) / ESTIMATING_SHARE)
        return self._seconds_left


class LineProgress(Progress):
    """For logs and pipes: a line now and then; with `verbose`, one per finished trial."""

    def __init__(
        self,
        trials: Sequence[Trial],
        forecast: Forecast,
        out: TextIO,
        name: str,
        *,
        verbose: bool = False,
    ) -> None:
        super().__init__(trials, forecast)
        self._out = out
        self._name = name
        self._verbose = verbose
        self._begun = self._printed_at = time.monotonic()
        self._has_complained = False

    def note_waiting(self, nodes: int, wanted: int) -> None:
        before = self._waiting
        super().note_waiting(nodes, wanted)
        if self._waiting != before:
            self._print(f"{self._name}: {self.describe()}")

    def count_workers(self, workers: int) -> None:
        super().count_workers(workers)
        self._print(f"{self._name}: {self.describe()}")

    def note_running(self, workers: int) -> None:
        super().note_running(workers)
        if self._lacks_workers and not self._has_complained:
            self._print(f"{self._name}: {self.describe()}")
        self._has_complained = self._lacks_workers

    def note_finish(self, finish: Finish) -> None:
        super().note_finish(finish)
        if self._verbose:
            self._print(format_finish(self._trials[finish.trial_id], finish))
        now = time.monotonic()
        if now - self._printed_at >= max(FIRST_LINE_AFTER, (now - self._begun) / 20):
            self._printed_at = now
            self._print(f"{self._name}: {self.describe()}")

    def note_stop(self) -> None:
        super().note_stop()
        self._print(f"{self._name}: {self.describe()}")

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class LiveProgress(Progress):
    """For a terminal: a bar, the counts, and the latest finished trials."""

    def __init__(
        self,
        trials: Sequence[Trial],
        forecast: Forecast,
        out: TextIO,
        name: str,
        *,
        verbose: bool = False,
    ) -> None:
        super().__init__(trials, forecast)
        self._console = Console(file=out, highlight=False)
        self._name = name
        self._verbose = verbose
        self._spinner = Spinner("dots")
        self._latest: deque[Finish] = deque(maxlen=3)

    def note_finish(self, finish: Finish) -> None:
        super().note_finish(finish)
        if self._verbose:
            line = format_finish(self._trials[finish.trial_id], finish)
            self._console.print(line, markup=False)
        else:
            self._latest.append(finish)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,  # the fan-out captures what Ray prints
            redirect_stderr=False,
        ):
            yield

    def _render(self) -> Group:
        headline = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=len(self._trials), completed=self.finished, width=24)
        headline.add_row(self._spinner, Text(self._name), bar, Text(self.describe()))
        latest = (format_finish(self._trials[finish.trial_id], finish) for finish in self._latest)
        return Group(headline, *(Text(f"  {line}") for line in latest))


def format_finish(trial: Trial, finish: Finish) -> str:
    """A finished trial on one line.

    >>> from harness.cluster.request import Finish
    >>> from harness.study.trials import Trial
    >>> trial = Trial(dataset="digits", architecture="mlp", placement="after", depth=4, seed=1,
    ...     program="linear act norm")
    >>> format_finish(trial, Finish(trial.id, "done", 0.9713, 1.25))
    'digits mlp-4 after seed 1: 97.1 % in 1.2 s'
    >>> format_finish(trial, Finish(trial.id, "failed"))
    'digits mlp-4 after seed 1: failed'
    """
    if math.isnan(finish.test_accuracy):
        return f"{trial.label}: {finish.status}"
    return (
        f"{trial.label}: {100 * finish.test_accuracy:.1f} % in {format_duration(finish.wall_time)}"
    )
