"""python -m harness.status RESULTS: what has become of the trials that a results folder was planned for.

Reads only, so it may be asked while a run goes on, of a folder that is half there, and of one that
has damaged files.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from harness.results.lease import list_claims
from harness.results.store import Store
from harness.results.tally import Tally
from harness.study.errors import DamagedFileError, HarnessError, StoreError
from harness.study.records import FailureRow, Settings, TrialRow
from harness.study.trials import Trial
from harness.study.wording import format_count, format_duration

NAMED_TRIALS = 3
"""Trials that a group of failures names; the rest is counted."""

SHORTEST_WATCH = 2.0
"""Seconds between two looks of --watch; more where a look takes long."""

_NAMED_BY_LABEL = {"dataset", "architecture", "depth", "placement", "program", "seed"}


@dataclass(frozen=True, slots=True)
class Cause:
    """Failures that broke in the same way."""

    kind: str
    message: str
    where: str
    """The line that raised, as the traceback names it; empty where there is none."""
    trials: tuple[str, ...]
    """Labels of the trials that came to nothing by it."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a results folder."""

    location: str
    grid: str
    is_planned: bool
    tally: Tally
    made_good: int
    """Attempts that broke although their trial is finished now."""
    damage: tuple[DamagedFileError, ...]
    runs: tuple[str, ...]
    """The runs that are going on, in words."""
    last_activity: float | None
    """Seconds since 1970: when the folder was last written to; None where it never was."""

    @classmethod
    def of(cls, store: Store) -> Status:
        """Look at the folder as it is now.

        Raises:
            StoreError: there are no results, or its plan is damaged.
        """
        plan = store.read_plan()
        rows, failures, damage = store.read_whole()
        named = {error.path for error in damage}
        damage += [e for e in store.find_damage(reading=False) if e.path not in named]
        if not (plan or rows or damage):
            raise StoreError(
                f"{store.location}: no results there: neither plan.parquet nor trials/"
            )
        trials = plan.trials if plan else tuple(map(_settings_of, rows))
        tally = Tally.of(trials, rows, failures)
        written = [
            file.modified
            for folder in ("trials", "failures", "active")
            for file in store.place.list_files(folder)
        ]
        return cls(
            location=store.location,
            grid=plan.analysis.grid if plan else store.location.rstrip("/").rpartition("/")[2],
            is_planned=plan is not None,
            tally=tally,
            made_good=sum(row.trial_id in tally.rows for row in failures),
            damage=tuple(damage),
            runs=tuple(list_claims(store.place, now=time.time())),
            last_activity=max(written, default=None),
        )

    def count_by_cell(self) -> dict[str, Counter[str]]:
        """Cell in words -> outcome -> trials."""
        # Two arms may share architecture and placement: whatever else varies names them apart.
        varying = [
            field.name
            for field in fields(Settings)
            if field.name not in _NAMED_BY_LABEL
            and len({getattr(trial, field.name) for trial in self.tally.trials}) > 1
        ]
        cells: dict[str, Counter[str]] = defaultdict(Counter)
        for trial in self.tally.trials:
            more = "".join(f" {name}={getattr(trial, name)}" for name in varying)
            cells[_name_cell(trial) + more][self.tally.outcome(trial)] += 1
        return dict(cells)

    def list_causes(self) -> list[Cause]:
        """The failures that stand, by what broke, the most frequent first."""
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
        """The whole of it, for a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.grid}: {self.tally.account()}"
        if not self.is_planned:
            yield "no plan.parquet there: what is missing is not known"
        if self.tally.strangers:
            strangers = format_count(self.tally.strangers, "more finished trial")
            yield f"{strangers}, left out of this plan"
        yield f"last activity {_say_age(self.last_activity)}"
        yield from (f"going on: {run}" for run in self.runs)
        cells = self.count_by_cell()
        width = max(map(len, cells), default=0)
        yield ""
        for cell, counts in cells.items():
            words = ("done", "diverged", "failed", "missing")
            yield f"  {cell:<{width}}  " + ", ".join(f"{counts[w]} {w}" for w in words if counts[w])
        causes = self.list_causes()
        if causes or self.made_good:
            yield ""
        for cause in causes:
            yield f"{cause.attempts} x {cause.kind}: {textwrap.shorten(cause.message, 200)}"
            if cause.where:
                yield f"    {cause.where}"
            more = len(cause.trials) - NAMED_TRIALS
            names = "; ".join(cause.trials[:NAMED_TRIALS]) + (f"; {more} more" if more > 0 else "")
            yield f"    {names}"
        if self.made_good:
            yield f"{format_count(self.made_good, 'attempt')} broke, of trials that were finished later"
        if self.damage:
            yield ""
            yield from (f"damaged: {error.path}: {error.reason}" for error in self.damage)

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        last = self.last_activity
        counts = Counter(map(self.tally.outcome, self.tally.trials))
        return {
            "location": self.location,
            "grid": self.grid,
            "has_plan": self.is_planned,
            "planned": len(self.tally.trials),
            "done": counts["done"],
            "diverged": counts["diverged"],
            "failed": dict(self.tally.failed_by_kind()),
            "missing": counts["missing"],
            "strangers": self.tally.strangers,
            "attempts_made_good": self.made_good,
            "last_activity": last and datetime.fromtimestamp(last, UTC).isoformat(),
            "runs": list(self.runs),
            "cells": [{"cell": cell, **counts} for cell, counts in self.count_by_cell().items()],
            "failures": [asdict(cause) for cause in self.list_causes()],
            "damage": [{"path": error.path, "reason": error.reason} for error in self.damage],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
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
    try:
        store = Store(options.results)
        while True:
            begun = time.monotonic()
            status = Status.of(store)
            text = json.dumps(status.to_json()) if options.json else status.describe()
            if options.watch and not options.json and sys.stdout.isatty():
                text = f"\x1b[H\x1b[2J{text}"  # home, and clear what the last look left
            print(text, flush=True)
            if not options.watch:
                return int(bool(status.damage) or len(status.tally.rows) < len(status.tally.trials))
            time.sleep(max(SHORTEST_WATCH, 10 * (time.monotonic() - begun)))
    except HarnessError as error:
        print(f"harness.status: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough; what Python still holds goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _settings_of(row: TrialRow) -> Trial:
    return Trial(**{field.name: getattr(row, field.name) for field in fields(Settings)})


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
