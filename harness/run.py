"""python -m harness.run GRID: plan, train what is missing, show progress, say what came of it.

Nothing heavy is imported until it is needed, so that --help and a mistake in the grid answer at
once: Ray with the fan-out, torch only in its workers.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import itertools
import logging
import math
import re
import secrets
import shlex
import signal
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from harness.cluster.forecast import Forecast, count_cpus, guess_bytes
from harness.cluster.packing import settle_packs, time_packs
from harness.cluster.shards import find_hopeless
from harness.progress import LineProgress, LiveProgress, Progress
from harness.results.tally import Tally
from harness.study.errors import GridError, HarnessError, StoreError
from harness.study.records import ChoiceRow, Settings, TrialRow
from harness.study.trials import Trial
from harness.study.tuning import apply_choices, choose, expand_tuning
from harness.study.wording import format_count, format_duration, format_size
from harness.training.provenance import digest_code

if TYPE_CHECKING:
    from harness.cluster.fanout import Request
    from harness.results.store import Store
    from harness.study.grid import Grid

RUN_SD = {"digits": 1.0}
USUAL_RUN_SD = 0.2
"""Standard deviation of test accuracy from seed to seed, in percentage points, assumed ahead of any
row: as of full CIFAR-10 recipes; more where the test part has a few hundred images."""

NAMED_FAILURES = 10
"""Failures that the end of a run spells out; the rest is counted."""

NAMED_VALUES = 20
"""Values of a setting that a wrong --only is told; the rest goes without saying."""

MOST_CHECKED = 2_000
"""Finished trials whose every file is read ahead of a run: 4 ms each on a disk, and three requests
each to a bucket. Of more only their own rows are read; compaction makes few files of many."""

CLUSTER_FILE = Path("cluster.yaml")
"""Whose machines a plan is priced for, where the current folder has it."""

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130
NOT_READY = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parse(arguments)
    command = shlex.join(["python", "-m", "harness.run", *arguments])
    try:
        return _run(options, command)
    except GridError as error:  # each line names file and line, ready to click
        print(error, file=sys.stderr)
        return error.exit_code
    except HarnessError as error:
        print(f"harness.run: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nstopped at once; finished trials are kept. To go on: {command}", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.run",
        description="Train what a grid lacks and keep it as Parquet. Running it again goes on "
        "where it stopped, and does nothing when all is done.",
        allow_abbrev=False,  # what is short for one option today may be short for two tomorrow
        epilog="Exit codes: 0 all done, 1 some trials failed or are missing or a node is not ready, 2 the grid, a data set "
        "or the cluster cannot be used, 3 the results folder cannot be used, 130 interrupted.",
    )
    add = parser.add_argument
    add("grid", metavar="GRID", type=_grid, help="YAML file, as in grids/")
    add(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],  # else argparse calls it required
        help="replaces a default of the grid, a margin or a choice of its analysis: epochs=2 "
        "depth=[8,14] margins.accuracy_points=1 analysis.looks=2; what a product sets itself stays",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the plan: trials, time, disk, money, what the seeds can detect; touches nothing",
    )
    add(
        "--price",
        metavar="MACHINE=USD",
        type=_price,
        action="append",
        default=[],
        help="what an hour costs in the plan, by node type of ./cluster.yaml or instance type: spot=0.30",
    )
    add(
        "--check-cluster",
        action="store_true",
        help="ask every node that is up: versions, code, devices, storage, data, clock; trains "
        "nothing, exits with 1 if something is off",
    )
    add(
        "--results",
        metavar="DIR",
        help="folder of this grid's rows, or s3://bucket/prefix (default: results/<name of the grid>)",
    )
    add(
        "--seeds-per-trial",
        metavar="N|auto",
        type=_seeds_per_trial,
        help="train N seeds of a cell at a time, as one network (short for pack_size=N); auto times "
        "a few steps of each network and takes what is fastest; a folder keeps what it began with",
    )
    add("--seeds", help="replaces the grid's: a count as in 5, or a list as in 0,1,2 or 0-9")
    add(
        "--only",
        metavar="key=value",
        action="append",
        default=[],
        help="train only these: --only depth=8,14 --only placement=before; several values of one "
        "key are alternatives",
    )
    add("--limit", metavar="N", type=_count, help="train at most N trials, the first missing")
    add(
        "--retry-failed",
        action="store_true",
        help="train again what has raised an exception twice with this same code, and would "
        "therefore be left alone (trials lost with a worker, or for lack of memory, always are)",
    )
    add(
        "--repair",
        action="store_true",
        help="set damaged and foreign files of the results aside and train their trials again",
    )
    add(
        "--accept-other-code",
        action="store_true",
        help="go on although finished trials come from another version of the training code",
    )
    add(
        "--address",
        type=_address,
        default="local",
        help="the Ray cluster: auto where this runs on it, or host:port (default: a Ray of its own)",
    )
    add(
        "--cpus-per-trial",
        metavar="X",
        type=_amount,
        help="default: the trials' setting `threads`",
    )
    add(
        "--gpus-per-trial",
        metavar="X",
        type=_gpus,
        help="a share as 0.25 puts 4 trials on a GPU; 0 trains on CPUs (default: 1 if there are any)",
    )
    add(
        "--pin-device-type",
        action="store_true",
        help="train all arms of a network on one type of GPU, where the cluster has several",
    )
    add(
        "--wait-for-nodes",
        metavar="N",
        type=_count,
        default=1,
        help="begin once N nodes of the cluster are up; those that come later are used as well",
    )
    add(
        "--trial-timeout",
        metavar="SECONDS",
        type=_amount,
        help="stop a trial that takes longer, and try it once more (default: 20 minutes, and 10 "
        "times what its cell has taken so far, or 50 times what the size of its network suggests)",
    )
    add("--max-concurrent", metavar="N", type=_count, help="trains at most N at a time")
    add(
        "--join",
        action="store_true",
        help="work beside another run that is going on in the results folder",
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-v", "--verbose", action="store_true", help="a line for every trial")
    loudness.add_argument("-q", "--quiet", action="store_true", help="nothing but what went wrong")
    return parser.parse_intermixed_args(arguments)


def _grid(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no file, such as grids/quickstart.yaml")
    return text


def _count(text: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text) and (value := int(text)):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")


def _seeds_per_trial(text: str) -> int | str:
    return text if text == "auto" else _count(text)


def _price(text: str) -> tuple[str, float]:
    machine, _, price = text.rpartition("=")
    if machine and 0 <= (value := _number(price)) < math.inf:
        return machine, value
    raise argparse.ArgumentTypeError(f"{text!r}: write it as spot=0.30, in US dollars an hour")


def _address(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no address; write auto, or host:port")
    return text


def _amount(text: str) -> float:
    if 0 < (value := _number(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _gpus(text: str) -> float:
    if 0 <= (value := _number(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or above")


def _number(text: str) -> float:
    """As people write one; NaN for `inf`, `1_0` and whatever else `float` takes."""
    plain = re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]{1,3})?", text)
    return float(text) if plain else math.nan


def _run(options: argparse.Namespace, command: str) -> int:
    from harness.results.store import Store  # noqa: PLC0415  pyarrow: not for a mistake in the grid
    from harness.study.grid import load_grid  # noqa: PLC0415  pydantic: not for --help

    grid = load_grid(options.grid, _list_overrides(options), options.seeds)
    location = f"results/{grid.name}" if options.results is None else options.results
    store = Store(location)
    _mend_or_refuse(store, options)
    if options.seeds_per_trial == "auto":
        grid = _settle_packs(grid, store, options)
    outlook = Outlook.of(grid, store, options)
    if options.dry_run:
        print(describe_plan(grid, outlook, options, location))
        return DONE
    if options.check_cluster:
        from harness.cluster.preflight import check_cluster  # noqa: PLC0415  Ray: only now

        report = check_cluster(outlook.asked, store, _request(outlook.asked, options))
        print(report)
        return DONE if report.is_well else NOT_READY
    begun = time.monotonic()
    stop = Event()
    outlook, tried = _train_rounds(grid, outlook, store, stop, options)
    tally = outlook.tally
    failed = [trial for trial in outlook.asked if trial.id in tally.failures]
    for line in name_failures(tally, failed):
        print(line, file=sys.stderr)
    if not options.quiet:
        took = f"in {format_duration(time.monotonic() - begun)}" if tried else "nothing to train"
        print(f"{grid.name}: {tally.account()}, {took}")
        if edges := sum(choice.chosen and choice.at_edge for choice in outlook.choices):
            at = "does best at" if edges == 1 else "do best at"
            edge = "the edge of the rates tried; widen tuning.lr"
            print(f"tuning: {format_count(edges, 'arm')} {at} {edge}")
        if failed and not options.retry_failed:
            print(f"once the cause is mended: {command} --retry-failed")
        print(f"rows: {location}")
    if stop.is_set() and any(tally.is_open(trial) for trial in tried):
        print(f"interrupted; finished trials are kept. To go on: {command}", file=sys.stderr)
        return INTERRUPTED
    if not options.quiet:
        print(f"report: python -m analysis.report {location}")
    return SOME_FAILED if failed else DONE


def _list_overrides(options: argparse.Namespace) -> list[str]:
    given = options.seeds_per_trial
    return options.overrides + ([f"pack_size={given}"] if isinstance(given, int) else [])


def _settle_packs(grid: Grid, store: Store, options: argparse.Namespace) -> Grid:
    """The grid with as many seeds at a time as its folder began with, or as a probe finds best."""

    def probe(cells: list[tuple[Trial, list[int]]]) -> list[dict[int, float]]:
        from harness.cluster import fanout  # noqa: PLC0415  Ray: only now

        if not options.quiet:
            print(f"timing packs of {format_count(len(cells), 'network')}", file=sys.stderr)
        return fanout.run_in_worker(time_packs, cells, request=_request(grid.trials, options))

    # A plan of which nothing has come yet, for want of a cluster say, binds nobody.
    plans = store.read_plans() if store.finished_ids() else []
    planned = (trial for plan in plans for trial in plan.trials)
    only_looks = options.dry_run or options.check_cluster
    trials, lines = settle_packs(grid.trials, planned, None if only_looks else probe)
    if not options.quiet:
        print("\n".join(lines))
    return replace(grid, trials=trials)


def _train_rounds(
    grid: Grid, outlook: Outlook, store: Store, stop: Event, options: argparse.Namespace
) -> tuple[Outlook, list[Trial]]:
    """Train what is missing, and then what the tuning stage has added; what was tried, too."""
    tried: list[Trial] = []
    if not outlook.missing and _is_planned(grid, outlook, store):
        return outlook, tried
    if outlook.missing and not options.accept_other_code:
        refuse_other_code(outlook.tally, store.location)
    if not options.quiet and (plan := store.read_plan()):
        planned = {trial.id for trial in outlook.tally.trials}
        if not any(trial.id in planned for trial in plan.trials):
            print(
                f"{store.location} was last used for another grid, {plan.analysis.grid!r}, that "
                "shares no trial with this one; its rows stay, and reports will be of this grid",
                file=sys.stderr,
            )
    from harness.results.lease import Lease  # noqa: PLC0415  only a run that writes needs one

    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with Lease(store, run, join=options.join):
        while True:
            store.write_plan(grid.plan, outlook.tally.trials, grid.source)
            store.write_choices(outlook.choices)
            if not outlook.missing:
                return outlook, tried
            tried += outlook.missing
            _train(grid, outlook, store, run, stop, options)
            planned = len(outlook.tally.trials)
            outlook = Outlook.of(grid, store, options)
            if stop.is_set() or options.limit or len(outlook.tally.trials) == planned:
                return outlook, tried


def _is_planned(grid: Grid, outlook: Outlook, store: Store) -> bool:
    """Does the folder say already what would be written: this plan, these choices?"""
    plan = store.read_plan()
    return (
        plan is not None
        and plan.says(grid.plan, outlook.tally.trials, grid.source)
        and store.read_choices() == list(outlook.choices)
    )


def _mend_or_refuse(store: Store, options: argparse.Namespace) -> None:
    """See that the folder's files are whole: set aside what is not, where that was asked for.

    Raises:
        StoreError: a file is damaged or foreign, and nobody asked for its repair.
    """
    if options.dry_run or options.check_cluster:
        return  # they change nothing, and a look at every file takes a while
    if options.repair:
        from harness.results.repair import repair  # noqa: PLC0415  pyarrow

        for line in repair(store, join=options.join):
            print(line, file=sys.stderr)
        return
    trials = len(store.list_paths("trials"))
    if trials > MOST_CHECKED and not options.quiet:
        print(
            f"{store.location}: {trials:,} finished trials; their epochs and gradients are there but "
            f"not read: python -m harness.upkeep check {store.location} reads them",
            file=sys.stderr,
        )
    if damage := store.find_damage(reading=trials <= MOST_CHECKED):
        named = [f"  {error.path}: {error.reason}" for error in damage[:NAMED_FAILURES]]
        if len(damage) > NAMED_FAILURES:
            named.append(f"  and {len(damage) - NAMED_FAILURES} more")
        count = format_count(len(damage), "damaged or foreign file")
        what = f"{store.location}: {count}; nothing was changed"
        mend = "To set them aside below damaged/ and train their trials again, add --repair"
        raise StoreError("\n".join([what, *named, mend]))


def refuse_other_code(tally: Tally, location: str) -> None:
    """Stop ahead of mixing trials of two versions of the training code in one comparison.

    Raises:
        StoreError: finished trials of this plan come from other training code than this.
    """
    here = digest_code()
    others = [row for row in tally.rows.values() if row.code_digest != here]
    if others:
        last = max(others, key=lambda row: row.finished)
        commit = f" of commit {last.commit[:12]}" if last.commit else ""
        come = "comes" if len(others) == 1 else "come"
        raise StoreError(
            f"{location}: {format_count(len(others), 'finished trial')} of this plan {come} from other "
            f"training code (digest {last.code_digest}{commit}) than this (digest {here}), and going on would "
            "compare trials of both. Go back to that code, train in another folder with --results, "
            "or, where the change cannot alter a number, go on with --accept-other-code"
        )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is planned, what became of it so far, and what is to be trained now."""

    tally: Tally
    choices: tuple[ChoiceRow, ...]
    """Of the tuning stage; empty until it is complete."""
    asked: list[Trial]
    hopeless: frozenset[str]
    missing: list[Trial]
    forecast: Forecast

    @classmethod
    def of(cls, grid: Grid, store: Store, options: argparse.Namespace) -> Outlook:
        rows = store.read_trial_rows()
        trials, choices = grid.trials, ()
        if grid.tuning:
            choices = choose(grid.trials, grid.tuning, rows)
            tuned = apply_choices(grid.trials, choices)
            trials = (*expand_tuning(grid.trials, grid.tuning), *grid.trials, *tuned)
        tally = Tally.of(trials, rows, store.read_failures())
        asked = select(trials, options.only)
        failures = [row for rows in tally.failures.values() for row in rows]
        hopeless = frozenset() if options.retry_failed else find_hopeless(failures)
        missing = [t for t in asked if t.id not in tally.rows and t.id not in hopeless]
        forecast = Forecast()
        for trial in trials:
            if row := tally.rows.get(trial.id):
                forecast.note(trial, row.wall_time)
        return cls(tally, choices, asked, hopeless, missing[: options.limit], forecast)


def _train(
    grid: Grid, outlook: Outlook, store: Store, run: str, stop: Event, options: argparse.Namespace
) -> None:
    missing, forecast = outlook.missing, outlook.forecast
    if options.quiet:
        progress = Progress(missing, forecast)
    elif sys.stderr.isatty():
        progress = LiveProgress(missing, forecast, sys.stderr, grid.name, verbose=options.verbose)
    else:
        progress = LineProgress(missing, forecast, sys.stderr, grid.name, verbose=options.verbose)
    with (
        _log_into(store.location, run),
        _stop_on_signals(stop, progress),
        progress.shown(),
    ):
        store.sweep()
        from harness.cluster import fanout  # noqa: PLC0415  Ray: only now

        fanout.train_missing(
            missing,
            store,
            _request(missing, options),
            run=run,
            estimate=forecast.seconds,
            limit=forecast.limit
            if options.trial_timeout is None
            else lambda _: options.trial_timeout,
            watcher=progress,
            stop=stop,
        )


def _request(trials: Sequence[Trial], options: argparse.Namespace) -> Request:
    from harness.cluster.fanout import Request  # noqa: PLC0415  Ray: only now

    return Request(
        address=options.address,
        cpus_per_trial=options.cpus_per_trial or max(trial.threads for trial in trials),
        gpus_per_trial=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        wait_for_nodes=options.wait_for_nodes,
        pin_device_type=options.pin_device_type,
    )


def select(trials: Sequence[Trial], conditions: Sequence[str]) -> list[Trial]:
    """The trials that meet the conditions `key=value,value`: any of the values given for each key.

    Raises:
        GridError: a condition that is none, or that no trial meets.
    """
    names = [field.name for field in fields(Settings)]
    values: dict[str, list[str]] = defaultdict(list)
    mistakes: list[str] = []
    for condition in conditions:
        key, equals, alternatives = condition.partition("=")
        if not equals:
            mistakes.append(f"--only {condition}: write key=value, as in placement=before")
            continue
        if key not in names:
            from harness.study.wording import did_you_mean  # noqa: PLC0415  yaml: not for --help

            hint = did_you_mean(key, names)
            mistakes.append(f"--only {condition}: {key!r} is not a setting{hint}")
            continue
        found = dict.fromkeys(getattr(trial, key) for trial in trials)
        for value in alternatives.split(","):  # no value of a setting has a comma
            if any(_says(known, value.strip()) for known in found):
                values[key].append(value.strip())
            else:
                there = ", ".join(map(str, itertools.islice(found, NAMED_VALUES)))
                more = ", ..." if len(found) > NAMED_VALUES else ""
                mistakes.append(
                    f"--only {condition}: no trial has {value.strip()!r}; {key} is {there}{more}"
                )
    if mistakes:
        raise GridError(mistakes)
    selected = [
        trial
        for trial in trials
        if all(any(_says(getattr(trial, key), v) for v in wanted) for key, wanted in values.items())
    ]
    if not selected:
        raise GridError([f"--only {' --only '.join(conditions)}: no trial has all of this at once"])
    return selected


def _says(value: object, text: str) -> bool:
    """Does `text`, from the command line, mean this value? 0.10 is 0.1, and true is True."""
    if str(value).lower() == text.lower():
        return True
    try:
        return not isinstance(value, str | bool) and value == float(text)
    except ValueError:
        return False


def name_failures(tally: Tally, failed: Sequence[Trial]) -> Iterator[str]:
    """A line for each trial that failed, with the last thing that happened to it."""
    for trial in failed[:NAMED_FAILURES]:
        last = tally.failures[trial.id][-1]
        yield f"failed: {trial.label}: {last.kind} (start {last.attempt}): {last.message}"
    if len(failed) > NAMED_FAILURES:
        yield f"failed: {len(failed) - NAMED_FAILURES} more"


def describe_plan(grid: Grid, outlook: Outlook, options: argparse.Namespace, location: str) -> str:
    """What a run would do, for --dry-run."""
    tally, missing, hopeless = outlook.tally, outlook.missing, outlook.hopeless
    forecast = outlook.forecast
    cells: dict[Trial, int] = Counter(replace(trial, seed=0) for trial in grid.trials)
    networks: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for cell in cells:
        networks[cell.dataset, f"{cell.architecture}-{cell.depth}"][cell.placement] = None
    seeds = sorted(set(cells.values()))
    size = f"{format_count(len(cells), 'cell')}, {format_count(len(grid.trials), 'trial')}"
    lines = [f"{grid.name}: {size}; rows in {location}"]
    lines += [f"  {data} {net}: {', '.join(arms)}" for (data, net), arms in networks.items()]
    if grid.tuning:
        tuned = "as chosen" if outlook.choices else f"{len(grid.trials)} more once it has chosen"
        count = format_count(len(expand_tuning(grid.trials, grid.tuning)), "trial")
        lines.append(f"tuning     {count} ahead of the study at each arm's best: {tuned}")
    lines.append(f"so far     {tally.account()}")
    if tally.strangers:
        lines.append(
            f"           {tally.strangers} more of other settings, which this grid leaves out"
        )
    if hopeless:
        lines.append(
            f"left alone {len(hopeless)} that raised twice with this code; --retry-failed trains them"
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
        lines.append(f"disk       roughly {format_size(sum(map(guess_bytes, missing)))}")
        if CLUSTER_FILE.exists():
            lines += [f"rented     {text}" for text in describe_rent(outlook, options)]
    lines += [f"detects    {text}" for text in describe_power(grid, tally.rows.values(), seeds[0])]
    return "\n".join(lines)


def describe_rent(outlook: Outlook, options: argparse.Namespace) -> Iterator[str]:
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
    if seeds < 2:
        yield "nothing: a difference needs at least 2 seeds"
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
            sd, source = math.sqrt(statistics.median(variances)), "as seen so far"
        else:
            sd, source = RUN_SD.get(dataset, USUAL_RUN_SD), "assumed"
        # Two placements share data and order but little of their noise: it adds up.
        difference = detectable_difference(math.sqrt(2) * sd, seeds, alpha=grid.plan.alpha)
        yield (
            f"{difference:.2f} points between two placements of one network on {dataset} "
            f"({seeds} seeds, power 0.8, alpha {grid.plan.alpha:g} ahead of corrections, "
            f"runs varying by {sd:.2f} points, {source})"
        )


@contextmanager
def _stop_on_signals(stop: Event, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the run within seconds, the second at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        progress.note_stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _log_into(location: str, run: str) -> Iterator[None]:
    """Keep what Ray, Tune and the fan-out have to say beside the rows, where that is a folder."""
    handler: logging.Handler = logging.NullHandler()
    if "://" not in location:
        folder = Path(location) / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(folder / f"{run}.log", encoding="utf-8")
        except OSError as error:
            from harness.results.places import explain  # noqa: PLC0415  pyarrow: not for --help

            raise StoreError(f"{folder}: {explain(error)}") from error
        handler.handleError = lambda record: None  # noqa: ARG005  a full disk ends the run by its rows, not by its log
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.setLevel(level)
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


if __name__ == "__main__":
    sys.exit(main())
