"""python -m harness.status RESULTS: count the planned trials of a results folder by outcome.

It only reads, so it is safe during a run, and on folders that are incomplete or have damaged files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness.study.cells import find_varying, name_settings
from harness.study.errors import HarnessError
from harness.study.records import FailureRow, settings_of
from harness.study.terminal import Parser, say
from harness.study.trials import Trial
from harness.study.wording import clip, format_count, format_duration

if TYPE_CHECKING:
    from harness.results import Snapshot, Store, Tally
    from harness.results.lease import Claim

NAMED_TRIALS = 3
"""Trials that a group of failures lists by name; the rest are counted."""

SHORTEST_WATCH = 2.0
"""Least seconds between two updates of --watch; longer if an update takes long."""

LATE_AFTER = 30.0
"""Seconds without a sign of life after which that is said of a run; a few heartbeats."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures with the same cause."""

    kind: str
    message: str
    where: str
    """The line that raised, as the traceback names it; empty where there is none."""
    trials: tuple[str, ...]
    """Labels of the trials that failed for this cause."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a results folder."""

    snapshot: Snapshot
    tally: Tally
    runs: tuple[Claim, ...]
    """The active runs, and those that ended without a word."""

    @classmethod
    def of(cls, store: Store, since: Snapshot | None = None) -> Status:
        """Look at the folder as it is now, without reading again what `since` has.

        Raises:
            StoreError: there are no results.
        """
        from harness.results import list_claims, take_snapshot  # noqa: PLC0415  pyarrow: not for --help

        store.refuse_emptiness()
        snapshot = take_snapshot(store, since=since)
        there = (Trial(**settings_of(row)) for row in snapshot.rows.values())
        trials = snapshot.plan.trials if snapshot.plan else tuple(there)
        runs = list_claims(store.place, now=time.time())
        return cls(snapshot, snapshot.tally(trials), tuple(runs))

    @property
    def grid(self) -> str:
        """The name of the grid; without a plan that of the folder."""
        plan = self.snapshot.plan
        return plan.analysis.grid if plan else self.snapshot.location.rstrip("/").rpartition("/")[2]

    @property
    def made_good(self) -> int:
        """Failed attempts whose trial is finished now."""
        return sum(row.trial_id in self.tally.rows for row in self.snapshot.failures)

    def count_by_cell(self) -> dict[str, Counter[str]]:
        """Cell in words -> outcome -> trials; of a tuning stage, arm by arm."""
        varying = find_varying([trial for trial in self.tally.trials if trial.stage == "study"])
        cells: dict[str, Counter[str]] = defaultdict(Counter)
        for trial in self.tally.trials:
            is_study = trial.stage == "study"
            name = _name_cell(trial) + name_settings(trial, varying) * is_study
            cells["tuning " * (not is_study) + name][self.tally.outcome(trial)] += 1
        return dict(cells)

    def list_causes(self) -> list[Cause]:
        """The failures that are still open, by cause, the most frequent first."""
        groups: dict[tuple[str, str, str], list[FailureRow]] = defaultdict(list)
        for rows in self.tally.failures.values():
            for row in rows:
                groups[row.kind, row.message, _find_where(row.traceback)].append(row)
        causes = [
            Cause(*key, tuple(dict.fromkeys(row.trial for row in rows)), len(rows))
            for key, rows in groups.items()
        ]
        return sorted(causes, key=lambda cause: -cause.attempts)

    def describe(self) -> str:
        """The whole status as text for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{clip(self.grid)}: {self.tally.account()}"
        if not self.snapshot.plan:
            yield "no plan.parquet there: what is missing is not known"
        if self.tally.strangers:
            strangers = format_count(self.tally.strangers, "more finished trial")
            yield f"{strangers}, left out of this plan"
        yield f"last activity {_say_age(self.snapshot.last_activity)}"
        for run in self.runs:
            yield from _describe_run(run)
        cells = [(clip(cell), counts) for cell, counts in self.count_by_cell().items()]
        width = max((len(cell) for cell, _ in cells), default=0)
        yield ""
        for cell, counts in cells:
            words = ("done", "diverged", "failed", "missing")
            yield f"  {cell:<{width}}  " + ", ".join(f"{counts[w]} {w}" for w in words if counts[w])
        causes = self.list_causes()
        if causes or self.made_good:
            yield ""
        for cause in causes:
            yield f"{cause.attempts} x {cause.kind}: {clip(cause.message)}"
            if cause.where:
                yield f"    {clip(cause.where)}"
            more = len(cause.trials) - NAMED_TRIALS
            names = "; ".join(map(clip, cause.trials[:NAMED_TRIALS])) + (
                f"; {more} more" if more > 0 else ""
            )
            yield f"    {names}"
        if self.made_good:
            yield f"{format_count(self.made_good, 'attempt')} broke, of trials that were finished later"
        if self.snapshot.damage:
            yield ""
            yield from (
                f"damaged: {clip(error.path)}: {clip(error.reason, 1_000)}"
                for error in self.snapshot.damage
            )

    def to_json(self) -> dict[str, Any]:
        """The same status for programs."""
        last = self.snapshot.last_activity
        alive = [run for run in self.runs if run.is_alive]
        counts = Counter(map(self.tally.outcome, self.tally.trials))
        return {
            "location": self.snapshot.location,
            "grid": self.grid,
            "has_plan": self.snapshot.plan is not None,
            "planned": len(self.tally.trials),
            "done": counts["done"],
            "diverged": counts["diverged"],
            "failed": dict(self.tally.failed_by_kind()),
            "missing": counts["missing"],
            "strangers": self.tally.strangers,
            "attempts_made_good": self.made_good,
            "last_activity": last and datetime.fromtimestamp(last, UTC).isoformat(),
            "runs": [run.words for run in alive],
            "progress": [line for run in alive for line in run.progress],
            "cells": [{"cell": cell, **counts} for cell, counts in self.count_by_cell().items()],
            "failures": [asdict(cause) for cause in self.list_causes()],
            "damage": [
                {"path": error.path, "reason": error.reason} for error in self.snapshot.damage
            ],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(
        prog="python -m harness.status",
        description="What has become of the trials that a results folder was planned for.",
        allow_abbrev=False,
        epilog="Reads the rows of trials and failures; harness.upkeep check reads all. Exit codes: 0 "
        "all of them are finished, 1 some failed, are missing or are damaged, 2 bad input, 3 the "
        "folder cannot be used.",
    )
    parser.add_argument("results", metavar="RESULTS", help="folder, or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--watch", action="store_true", help="look again and again, until Ctrl-C")
    options = parser.parse_args(arguments)
    from harness.results import Store  # noqa: PLC0415  pyarrow: not for --help

    snapshot = None
    try:
        store = Store(options.results)
        while True:
            begun = time.monotonic()
            status = Status.of(store, snapshot)
            snapshot = status.snapshot
            if options.json:
                sys.stdout.write(json.dumps(status.to_json()) + "\n")  # ASCII, and never cut
                sys.stdout.flush()
            else:
                if options.watch and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
                    sys.stdout.write("\x1b[H\x1b[2J")  # cursor home, then clear the last output
                say(status.describe())
            if not options.watch:
                return int(bool(snapshot.damage) or not status.tally.is_complete)
            time.sleep(max(SHORTEST_WATCH, 10 * (time.monotonic() - begun)))
    except HarnessError as error:
        say(f"harness.status: {error}", is_error=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has closed the pipe; discard what Python still buffers
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _describe_run(run: Claim) -> Iterator[str]:
    if not run.is_alive:
        yield f"ended without a word: {run.words}, last heard of {format_duration(run.age)} ago"
        return
    yield f"going on: {run.words}"
    told = f", as of {format_duration(run.age)} ago"
    late = "; it is late, and counts as dead in a minute" if run.age > LATE_AFTER else ""
    for line in run.progress[:1]:
        yield f"  {clip(line)}{told}{late}"
    yield from (f"    {clip(line)}" for line in run.progress[1:])


def _name_cell(trial: Trial) -> str:
    return replace(trial, seed=0).label.removesuffix(" seed 0")


def _find_where(text: str) -> str:
    """'File "train.py", line 7, in step': the innermost frame that a traceback names."""
    frames = [line.strip() for line in text.splitlines() if line.lstrip().startswith('File "')]
    return frames[-1] if frames else ""


def _say_age(moment: float | None) -> str:
    if moment is None:
        return "unknown"
    at = datetime.fromtimestamp(moment, UTC)
    return f"{format_duration(max(0.0, time.time() - moment))} ago, at {at:%Y-%m-%d %H:%M:%S} UTC"


if __name__ == "__main__":
    sys.exit(main())
