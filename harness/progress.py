"""How far a run is, in words: a line a minute for logs and pipes, and what is said at its end."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from harness.study.terminal import printable
from harness.study.wording import clip, format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.cluster.forecast import Forecast
    from harness.cluster.request import Finish, News
    from harness.results import Tally
    from harness.study.trials import Trial

LINE_EVERY = 60.0
"""Seconds between two lines in logs and pipes."""

NO_WORKER_AFTER = 120.0
"""Seconds without a busy worker after which the display says how to find out why."""

ESTIMATING_SHARE = 0.02
"""Share of the driver's time spent on estimating the time left."""

MOST_SHOWN = 16
"""Trainings with a line of their own; of more, those with the latest news."""

NAMED_FAILURES = 10
"""Failures that the end of a run lists; the rest is counted."""


class Progress:
    """Counts what the fan-out reports and describes how far the run is; shows nothing itself.

    Only the thread that is told of something estimates; describing reads what is there, so that a
    display and the claim to the folder may ask from threads of their own.
    """

    def __init__(self, trials: Sequence[Trial], forecast: Forecast) -> None:
        self._trials = {trial.id: trial for trial in trials}
        self.forecast = forecast
        self._status: dict[str, str] = {}
        self._counts = Counter[str]()
        self._news: dict[str, tuple[News, float]] = {}
        """By trial, the latest news last, and when it came."""
        self._waiting = ""
        self._workers = 0
        self._running = 0
        self._begun = time.monotonic()
        self._first_worker_at = math.inf
        self._idle_since = math.inf
        self._seconds_left = math.inf
        self._estimate_again_at = -math.inf
        self._stopping = ""
        self.stopped: tuple[Trial, ...] = ()
        """What was in training when the run was told to stop."""

    def note_waiting(self, nodes: int, wanted: int) -> None:
        self._waiting = f"waiting for nodes: {nodes} of {wanted} are up"

    def count_workers(self, workers: int) -> None:
        self._workers = workers
        self._idle_since = time.monotonic()
        self._estimate()

    def note_running(self, workers: int) -> None:
        if workers:
            self._idle_since = math.inf
            self._first_worker_at = min(self._first_worker_at, time.monotonic())
        elif self._running:
            self._idle_since = time.monotonic()
        self._running = workers
        self._estimate()

    def note_news(self, news: Sequence[News]) -> None:
        """All that is in training now, as far as it is known."""
        now, before = time.monotonic(), self._news
        held = {each.trial_id: each for each in news if self._is_open(each.trial_id)}
        kept = {name: entry for name, entry in before.items() if entry[0] == held.get(name)}
        fresh = {name: (each, now) for name, each in held.items() if name not in kept}
        self._news = kept | fresh
        for latest, _ in fresh.values():
            if latest.epoch:
                trial = self._trials[latest.trial_id]
                self.forecast.note_pace(trial, trial.epochs * latest.epoch_time / len(trial.pack))

    def note_finish(self, finish: Finish) -> None:
        if before := self._status.get(finish.trial_id):  # failed, and was tried again
            self._counts[before] -= 1
        self._counts[finish.status] += 1
        self._status[finish.trial_id] = finish.status
        if not math.isnan(finish.wall_time):
            self.forecast.note(self._trials[finish.trial_id], finish.wall_time)
        self._estimate()

    def note_stop(self) -> None:
        self._stopping = "stopping; Ctrl-C again stops at once"
        if self._running:
            workers = format_count(self._running, "worker")
            self._stopping = (
                f"stopping: what {workers} had in training is dropped unless it ends within 5 s; "
                "Ctrl-C again stops at once"
            )
        self.stopped = tuple(self._trials[news.trial_id] for news in self._list_news())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        yield

    @property
    def finished(self) -> int:
        return len(self._status)

    def describe(self) -> str:
        """'12 of 90, 2 running, 1 failed, 30 s elapsed, about 3 min 10 s left, 1,440 trials/h'."""
        return f"{self.finished} of {len(self._trials)}, {self._describe_state()}"

    def list_lines(self) -> list[str]:
        """The same, and a line for each training: what the run tells those who watch its folder."""
        shown, more = self._choose_news()
        lines = [self.describe(), *(clip(self._describe_news(news)) for news in shown)]
        return [*lines, f"... and {more} more in training"] if more else lines

    def _describe_state(self) -> str:
        parts: list[str] = []
        now = time.monotonic()
        if self._stopping:
            parts.append(self._stopping)
        elif not self._workers:
            parts.append(self._waiting or "starting Ray")
        elif self._lacks_workers:
            parts.append("no worker is running; --check-cluster says why")
        elif not self._running and not self.finished:
            parts.append(f"starting {format_count(self._workers, 'worker')}")
        else:
            parts.append(f"{self._running} running")
        parts += [f"{n} {word}" for word in ("diverged", "failed") if (n := self._counts[word])]
        parts.append(f"{format_duration(now - self._begun)} elapsed")
        # Others look from their threads, maybe while the first estimate is being made.
        if self._workers and not self._stopping and math.isfinite(self._seconds_left):
            parts.append(f"about {format_duration(self._seconds_left)} left")
        if self.finished and now > self._first_worker_at:
            rate = 3_600 * self.finished / (now - self._first_worker_at)
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} trials/h")
        return ", ".join(parts)

    @property
    def _lacks_workers(self) -> bool:
        return time.monotonic() - self._idle_since > NO_WORKER_AFTER

    def _is_open(self, trial_id: str) -> bool:
        """May the trial be in training? One that failed may, in the next pass."""
        return trial_id in self._trials and self._status.get(trial_id) in {None, "failed"}

    def _list_news(self) -> list[News]:
        """Of what is in training, the latest last."""
        return [news for news, _ in list(self._news.values()) if self._is_open(news.trial_id)]

    def _choose_news(self, most: int = MOST_SHOWN) -> tuple[list[News], int]:
        """What to show, in an order that stays; and of how many more there is news."""
        news = self._list_news()
        shown = sorted(news[-most:], key=self._label)
        return shown, len(news) - len(shown)

    def _describe_news(self, news: News) -> str:
        label = self._label(news)
        epoch, loss, accuracy = self._format_news(news)
        measured = f", loss {loss}, accuracy {accuracy}" if news.epoch else ""
        return f"{label}: epoch {epoch}{measured}"

    def _label(self, news: News) -> str:
        """The name of a trial; of a pack, with all its seeds."""
        trial = self._trials[news.trial_id]
        if trial.pack_size == 1:
            return trial.label
        cell = trial.label.removesuffix(f"seed {trial.seed}")
        return f"{cell}seeds {trial.pack[0]} to {trial.pack[-1]}"

    def _format_news(self, news: News) -> tuple[str, str, str]:
        epoch = f"{news.epoch}/{self._trials[news.trial_id].epochs}"
        if not news.epoch:
            return epoch, "", ""
        return epoch, f"{news.train_loss:.3f}", f"{100 * news.validation_accuracy:.1f} %"

    def _estimate(self) -> None:
        """Estimate the time left anew, unless that was done just now."""
        now = time.monotonic()
        if not self._workers or now < self._estimate_again_at:
            return
        begun, packs = set[str](), list[float]()
        for news, heard in self._news.values():
            if self._is_open(news.trial_id):
                trial = self._trials[news.trial_id]
                pack = [replace(trial, seed=seed).id for seed in trial.pack]
                begun.update(pack)
                left = (trial.epochs - news.epoch) * news.epoch_time
                if not news.epoch:
                    left = self.forecast.seconds(trial) * len(pack)
                packs.append(max(0.0, left - (now - heard)))
        rest = (
            trial
            for trial_id, trial in self._trials.items()
            if trial_id not in self._status and trial_id not in begun
        )
        self._seconds_left = self.forecast.wall_time(
            rest, max(1, self._workers), warm=bool(self._status or packs), begun=packs
        )
        # A large grid takes seconds to estimate: limit that to a share of the driver's time.
        took = time.monotonic() - now
        self._estimate_again_at = now + took + max(1.0, took / ESTIMATING_SHARE)


class LineProgress(Progress):
    """For logs and pipes: a line a minute; with `verbose`, one per finished trial."""

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
        self._printed_at = self._begun
        self._has_complained = False

    def note_waiting(self, nodes: int, wanted: int) -> None:
        before = self._waiting
        super().note_waiting(nodes, wanted)
        if self._waiting != before:
            self._print_state()

    def count_workers(self, workers: int) -> None:
        super().count_workers(workers)
        self._print_state()

    def note_running(self, workers: int) -> None:
        super().note_running(workers)
        complains = self._lacks_workers and not self._has_complained
        self._has_complained = self._lacks_workers
        if complains or time.monotonic() - self._printed_at >= LINE_EVERY:
            self._print_state()

    def note_finish(self, finish: Finish) -> None:
        super().note_finish(finish)
        if self._verbose:
            self._print(format_finish(self._trials[finish.trial_id], finish))

    def note_stop(self) -> None:
        super().note_stop()
        self._print_state()

    def _print_state(self) -> None:
        """The state, and of what is in training the latest that was heard."""
        self._printed_at = time.monotonic()
        latest = [self._describe_news(news) for news in self._list_news() if news.epoch][-1:]
        self._print("; ".join([f"{self._name}: {self.describe()}", *latest]))

    def _print(self, line: str) -> None:
        print(printable(line), file=self._out, flush=True)


def describe_failures(tally: Tally, failed: Sequence[Trial], location: str) -> Iterator[str]:
    """A line for each trial that failed, with its last failure."""
    for trial in failed[:NAMED_FAILURES]:
        last = tally.failures[trial.id][-1]
        yield f"failed: {trial.label}: {last.kind} (start {last.attempt}): {clip(last.message)}"
    if (more := len(failed) - NAMED_FAILURES) > 0:
        yield f"failed: {more} more; by cause: python -m harness.status {shlex.quote(location)}"


def describe_stop(
    tally: Tally, tried: Sequence[Trial], stopped: Sequence[Trial], *, why: str = "interrupted"
) -> str:
    """What a run that was stopped has kept, and what became of the trainings that it stopped."""
    finished = format_count(sum(trial.id in tally.rows for trial in tried), "trial")
    dropped = sum(tally.is_open(trial) for trial in stopped)
    parts = [f"{why}: {finished} of this run finished and kept"]
    if ended := len(stopped) - dropped:
        parts.append(f"{ended} of {len(stopped)} in training ended in time")
    if dropped:
        parts.append(f"{dropped} dropped, to start again or at a checkpoint")
    return "; ".join(parts)


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
