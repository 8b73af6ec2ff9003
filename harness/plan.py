"""What a run would do, and what it asks of time, disk, money and seeds."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cluster.forecast import Forecast, guess_bytes
from harness.cluster.machine import count_cpus
from harness.cluster.shards import find_hopeless
from harness.study.cells import find_varying, name_settings
from harness.study.errors import DataError, GridError, StoreError
from harness.study.facts import explain_lack_of_data, look_up_facts
from harness.study.records import FEWEST_PAIRS, ChoiceRow, TrialRow
from harness.study.selection import select
from harness.study.terminal import say
from harness.study.trials import Trial
from harness.study.tuning import apply_choices, choose, expand_tuning
from harness.study.wording import format_count, format_duration, format_size
from harness.training.provenance import digest_code
from harness.until import Extent, describe_looks

if TYPE_CHECKING:
    from harness.options import Options
    from harness.results import Snapshot, Tally
    from harness.study.grid import Grid

CLUSTER_FILE = Path("cluster.yaml")
"""The machines a plan is priced for, if the current folder has this file."""
_NAMED_BY_ARM = {"flow", "recipe", "stage"}
"""Settings that the name of an arm says."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is planned, what became of it so far, and what is to be trained now."""

    snapshot: Snapshot
    """The folder that was looked at."""
    tally: Tally
    choices: tuple[ChoiceRow, ...]
    """Of the tuning stage; empty until it is complete."""
    asked: list[Trial]
    hopeless: frozenset[str]
    missing: list[Trial]
    forecast: Forecast
    extent: Extent | None
    """How much of the grid is wanted so far; None: all of it."""

    @classmethod
    def of(
        cls, grid: Grid, snapshot: Snapshot, options: Options, extent: Extent | None = None
    ) -> Outlook:
        """Compare the grid with what its folder holds.

        Raises:
            GridError: a user's own network that is to be trained cannot be built, or looks are
                asked for that the grid does not plan.
        """
        if options.until_decided and not extent:
            extent = Extent.of(grid, snapshot.plan)
        rows = tuple(snapshot.rows.values())
        trials, choices = grid.trials, ()
        if grid.tuning:
            choices = choose(grid.trials, grid.tuning, rows)
            tuned = apply_choices(grid.trials, choices)
            common = grid.trials if grid.tuning.common else ()
            trials = (*expand_tuning(grid.trials, grid.tuning, rows), *common, *tuned)
        if extent:
            trials = tuple(filter(extent.covers, trials))
        tally = snapshot.tally(trials)
        asked = select(trials, options.only)
        failures = [row for rows in tally.failures.values() for row in rows]
        hopeless = frozenset() if options.retry_failed else find_hopeless(failures)
        missing = [t for t in asked if t.id not in tally.rows and t.id not in hopeless]
        forecast = Forecast()
        for trial in trials:
            if row := tally.rows.get(trial.id):
                forecast.note(trial, row.wall_time)
        missing = missing[: options.limit]
        forecast.prepare(missing)
        if mistakes := forecast.find_mistakes(missing):
            raise GridError(mistakes)
        return cls(snapshot, tally, choices, asked, hopeless, missing, forecast, extent)


def check_data(trials: Iterable[Trial], options: Options) -> None:
    """Look for the user's own data sets on this machine; only a note where others train on them.

    Raises:
        DataError: it is to be trained here, and a data set is absent or not what its name says.
    """
    for dataset in dict.fromkeys(trial.dataset for trial in trials):
        if lack := explain_lack_of_data(dataset):
            if options.address == "local" and not options.plan_only:
                raise DataError(lack)
            if not options.quiet:
                say(f"note: {lack}. So it is on this machine; nodes read their own", is_error=True)


def refuse_other_code(tally: Tally, location: str) -> None:
    """Refuse to mix trials of two versions of the training code in one comparison.

    Raises:
        StoreError: finished trials of this plan come from other training code than this.
    """
    here = digest_code()
    others = [row for row in tally.rows.values() if row.code_digest != here]
    if others:
        last = max(others, key=lambda row: row.finished)
        version = f"commit {last.commit[:12]}" if last.commit else f"digest {last.code_digest}"
        come = "comes" if len(others) == 1 else "come"
        raise StoreError(
            f"{location}: {format_count(len(others), 'finished trial')} of this plan {come} from "
            f"other training code ({version}) than this. Comparing the two would be wrong: check out that "
            "code, store this run in another folder with --results, or, if the change cannot alter "
            "a number, add --accept-other-code"
        )


def describe_plan(grid: Grid, outlook: Outlook, options: Options, location: str) -> str:
    """What a run would do, for --dry-run."""
    tally, missing, forecast = outlook.tally, outlook.missing, outlook.forecast
    cells: dict[Trial, int] = Counter(replace(trial, seed=0) for trial in grid.trials)
    networks: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    varying = [name for name in find_varying(grid.trials) if name not in _NAMED_BY_ARM]
    for cell in cells:
        name = f"{cell.architecture}-{cell.depth}{name_settings(cell, varying)}"
        networks[cell.dataset, name][cell.arm] = None
    size = f"{format_count(len(cells), 'cell')}, {format_count(len(grid.trials), 'trial')}"
    lines = [f"{grid.name}: {size}; rows in {location}"]
    lines += [f"  {data} {net}: {', '.join(arms)}" for (data, net), arms in networks.items()]
    if grid.tuning:
        tuned = "as chosen" if outlook.choices else f"{len(grid.trials)} trials once it has chosen"
        count = format_count(len(expand_tuning(grid.trials, grid.tuning)), "trial")
        lines.append(f"tuning     {count} before the study at each arm's best recipe: {tuned}")
    lines.append(f"so far     {tally.account()}")
    if tally.strangers:
        lines.append(
            f"           {tally.strangers} more with settings that this grid does not have"
        )
    if outlook.hopeless:
        lines.append(
            f"skipped    {len(outlook.hopeless)} that failed twice with this code; "
            "--retry-failed trains them again"
        )
    lines.append(f"to train   {len(missing)}")
    if missing:
        workers = count_cpus() // max(trial.threads for trial in missing)
        workers = max(1, min(workers, options.max_concurrent or workers, len(missing)))
        if options.address != "local":
            workers = 1
        seconds = forecast.wall_time(missing, workers)
        lines.append(
            f"time       roughly {format_duration(seconds)} on {format_count(workers, 'CPU worker')}, "
            f"{forecast.basis}"
        )
        if grid.tuning and not outlook.choices:
            extent = outlook.extent
            later = [trial for trial in grid.trials if not extent or extent.covers(trial)]
            lines.append(
                f"           then {format_duration(forecast.wall_time(later, workers))} for "
                f"{format_count(len(later), 'trial')} at each arm's best recipe"
            )
        lines.append(f"disk       roughly {format_size(sum(map(guess_bytes, missing)))}")
        if CLUSTER_FILE.exists():
            lines += [f"rented     {text}" for text in describe_rent(outlook, options)]
    lines += describe_looks(outlook.extent, grid.trials, grid.plan)
    fewest = min(cells.values())
    lines += [f"detects    {text}" for text in describe_power(grid, tally.rows.values(), fewest)]
    return "\n".join(lines)


def describe_rent(outlook: Outlook, options: Options) -> Iterator[str]:
    """Hours and money on the machines of `CLUSTER_FILE`."""
    from harness.cluster.costs import describe_costs  # noqa: PLC0415  only for a plan

    tally = outlook.tally
    return describe_costs(
        CLUSTER_FILE,
        outlook.missing,
        ((trial, tally.rows[trial.id]) for trial in tally.trials if trial.id in tally.rows),
        cpus=options.cpus_per_trial or max(trial.threads for trial in outlook.missing),
        gpus=options.gpus_per_trial,
        prices=dict(options.price),
    )


def describe_power(grid: Grid, rows: Iterable[TrialRow], seeds: int) -> Iterator[str]:
    """For each data set, the smallest difference between two placements that the seeds can show."""
    if seeds < FEWEST_PAIRS:
        yield (
            f"nothing: a cell decides nothing with fewer than {FEWEST_PAIRS} seeds, "
            f"and here one has {seeds}"
        )
        return
    from analysis.statistics.power import detectable_difference  # noqa: PLC0415  scipy: only for a plan

    accuracies: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if not math.isnan(row.test_accuracy):
            cell = (row.dataset, row.architecture, str(row.depth), row.placement, str(row.lr))
            accuracies[cell].append(100 * row.test_accuracy)
    for dataset in dict.fromkeys(trial.dataset for trial in grid.trials):
        variances = [
            statistics.variance(values)
            for cell, values in accuracies.items()
            if cell[0] == dataset and len(values) > 1
        ]
        if variances:
            sd, source = math.sqrt(statistics.median(variances)), "as measured so far"
        else:
            sd, source = look_up_facts(dataset).run_sd, "assumed"
        # Two placements share data and order but little of their noise: it adds up.
        difference = detectable_difference(math.sqrt(2) * sd, seeds, alpha=grid.plan.alpha)
        yield (
            f"{difference:.2f} points between two placements of one network on {dataset} "
            f"({seeds} seeds, power 0.8, alpha {grid.plan.alpha:g} before corrections, "
            f"standard deviation between seeds {sd:.2f} points, {source})"
        )
