"""python -m harness.run GRID: plan, train what is missing, show progress, report the outcome.

Heavy modules are imported where they are needed, so that --help and a mistake in the grid answer at
once: Ray with the fan-out, torch in its workers alone.
"""

from __future__ import annotations

import logging
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from harness.cluster.machine import refuse_unfit_machine
from harness.cluster.request import Request, refuse_caches_of_ray
from harness.display import choose_display
from harness.options import Options, parse_options
from harness.plan import Outlook, check_data, describe_plan, refuse_other_code
from harness.progress import Progress, describe_failures, describe_stop
from harness.study.errors import GridError, HarnessError, StoreError
from harness.study.terminal import say
from harness.study.trials import Trial
from harness.study.wording import format_count, format_duration
from harness.until import Extent, ask, describe_decision

if TYPE_CHECKING:
    from harness.results import Lease, Snapshot, Store
    from harness.study.grid import Grid

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130
NOT_READY = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(arguments)
    command = shlex.join(["python", "-m", "harness.run", *arguments])
    try:
        return _run(options, command)
    except GridError as error:  # each line names file and line, ready to click
        say(error, is_error=True)
        return error.exit_code
    except HarnessError as error:
        say(f"harness.run: {error}", is_error=True)
        return error.exit_code
    except KeyboardInterrupt:
        say(f"\nstopped at once; finished trials are kept. To resume: {command}", is_error=True)
        return INTERRUPTED


def _run(options: Options, command: str) -> int:
    from harness.results.store import Store  # noqa: PLC0415  pyarrow: not for a mistake in the grid

    grid = _load_grid(options)
    location = f"results/{grid.name}" if options.results is None else options.results
    refuse_caches_of_ray(location)
    store = Store(location)
    outlook = Outlook.of(grid, _read_folder(store, options), options)
    check_data(outlook.missing, options)
    if options.dry_run:
        say(describe_plan(grid, outlook, options, location))
        return DONE
    _check_machine(outlook, options)
    if options.check_cluster:
        from harness.cluster.preflight import check_cluster  # noqa: PLC0415  Ray: only now

        report = check_cluster(outlook.asked, store, _request(outlook.asked, options))
        say(report)
        return DONE if report.is_well else NOT_READY
    begun = time.monotonic()
    stop = Event()
    outlook, tried, stopped = _train_rounds(grid, outlook, store, stop, options)
    tally = outlook.tally
    if options.plan_only:
        say(f"{grid.name}: {tally.account()}; plan: {location}")
        say(f"to train it: python -m harness.work {shlex.quote(location)}")
        return DONE
    failed = [trial for trial in outlook.asked if trial.id in tally.failures]
    for line in describe_failures(tally, failed, location):
        say(line, is_error=True)
    if not options.quiet:
        took = f"in {format_duration(time.monotonic() - begun)}" if tried else "nothing to train"
        say(f"{grid.name}: {tally.account()}, {took}")
        if edges := sum(choice.chosen and choice.at_edge for choice in outlook.choices):
            verb = "does" if edges == 1 else "do"
            edge = "at the smallest or largest rate tried; widen tuning.lr"
            say(f"tuning: {format_count(edges, 'arm')} {verb} best {edge}")
        if failed and not options.retry_failed:
            say(f"once the cause is fixed: {command} --retry-failed")
        say(f"rows: {location}")
    if stop.is_set() and (outlook.extent or any(tally.is_open(trial) for trial in tried)):
        say(describe_stop(tally, tried, stopped), is_error=True)
        say(f"To resume: {command}", is_error=True)
        return INTERRUPTED
    outlook.snapshot.keep_index(store)
    if not options.quiet:
        say(f"report: python -m analysis.report {shlex.quote(location)}")
    return SOME_FAILED if failed else DONE


def _check_machine(outlook: Outlook, options: Options) -> None:
    if (outlook.missing and not options.plan_only) or options.check_cluster:
        is_local = options.address == "local"
        refuse_unfit_machine(outlook.missing or outlook.asked, is_local=is_local)


def _load_grid(options: Options) -> Grid:
    from harness.study.grid import load_grid  # noqa: PLC0415  pydantic: not for --help

    packs = [f"pack_size={options.seeds_per_trial}"] if options.seeds_per_trial else []
    grid = load_grid(options.grid, [*options.overrides, *packs], options.seeds)
    for note in () if options.quiet else grid.notes:
        say(note, is_error=True)
    return grid


def _train_rounds(
    grid: Grid, outlook: Outlook, store: Store, stop: Event, options: Options
) -> tuple[Outlook, list[Trial], Sequence[Trial]]:
    """Train what is missing, then what the tuning stage and looks add.

    Returns also all trials that were tried, and those that were in training when `stop` was set.
    """
    tried: list[Trial] = []
    if not outlook.missing and not outlook.extent and _is_planned(grid, outlook):
        return outlook, tried, ()
    if outlook.missing and not (options.accept_other_code or options.plan_only):
        refuse_other_code(outlook.tally, store.location)
    if not options.quiet:
        _warn_of_another_grid(outlook, store)
    from harness.results import Lease, keep_networks, sweep, take_snapshot  # noqa: PLC0415  pyarrow
    from harness.results.store import name_some  # noqa: PLC0415  the same

    stopped: tuple[Trial, ...] = ()
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    with Lease(store, run, join=options.join, stop=stop) as lease:
        if not options.quiet and (strangers := store.list_strangers()):
            say(f"{store.location}: left alone: {name_some(strangers)}", is_error=True)
        while True:
            keep_networks(store, grid.networks)
            store.write_plan(grid.plan, outlook.tally.trials, grid.source)
            store.write_choices(outlook.choices)
            planned = len(outlook.tally.trials)
            if outlook.missing and not options.plan_only:
                tried += outlook.missing
                sweep(store, lease)
                stopped = _train(grid, outlook, store, lease, stop, options).stopped
                snapshot = take_snapshot(store, since=outlook.snapshot)
                outlook = Outlook.of(grid, snapshot, options, outlook.extent)
            if stop.is_set() or options.limit or (options.plan_only and outlook.missing):
                return outlook, tried, stopped
            if len(outlook.tally.trials) == planned:  # the tuning stage adds nothing
                extent = _look(outlook, store, options)
                if not extent:
                    return outlook, tried, stopped
                outlook = Outlook.of(grid, outlook.snapshot, options, extent)


def _look(outlook: Outlook, store: Store, options: Options) -> Extent | None:
    """What is wanted from here on; None if nothing is, or if no looks were asked for."""
    if not outlook.extent:
        return None
    decision = ask(store.location, allow_mixed=options.accept_other_code)
    further = outlook.extent.extend(outlook.tally.trials, decision.wanted)
    if not options.quiet:
        for line in describe_decision(outlook.extent, decision, further):
            say(line)
    return further


def _warn_of_another_grid(outlook: Outlook, store: Store) -> None:
    if not (plan := outlook.snapshot.plan):
        return
    planned = {trial.id for trial in outlook.tally.trials}
    if not any(trial.id in planned for trial in plan.trials):
        say(
            f"{store.location} was last used for another grid, {plan.analysis.grid!r}, which "
            "shares no trial with this one; its rows stay, but reports will cover this grid",
            is_error=True,
        )


def _is_planned(grid: Grid, outlook: Outlook) -> bool:
    """Does the folder already hold this plan and these choices?"""
    plan = outlook.snapshot.plan
    return (
        plan is not None
        and plan.says(grid.plan, outlook.tally.trials, grid.source)
        and outlook.snapshot.choices == outlook.choices
    )


def _read_folder(store: Store, options: Options) -> Snapshot:
    """Read the folder once, every file of it; with --repair move damaged ones aside first.

    Raises:
        StoreError: a file is damaged or foreign, and --repair was not given.
    """
    from harness.results import take_snapshot  # noqa: PLC0415  pyarrow

    if options.dry_run or options.check_cluster:
        return take_snapshot(store)  # they change nothing, and reading every file takes a while
    if options.repair:
        from harness.results.repair import repair  # noqa: PLC0415  pyarrow

        for line in repair(store, join=options.join):
            say(line, is_error=True)
        return take_snapshot(store)
    snapshot = take_snapshot(store, whole_up_to=store.place.most_checked)
    if 0 < store.place.most_checked < len(snapshot.rows) and not options.quiet:
        say(
            f"{store.location}: {len(snapshot.rows):,} finished trials; the content of their epochs, gradients "
            f"and rows read before was not checked. To check it: python -m harness.upkeep check {shlex.quote(store.location)}",
            is_error=True,
        )
    snapshot.refuse_damage("To move them to damaged/ and train their trials again, add --repair")
    return snapshot


def _train(
    grid: Grid, outlook: Outlook, store: Store, lease: Lease, stop: Event, options: Options
) -> Progress:
    missing, forecast, timeout = outlook.missing, outlook.forecast, options.trial_timeout
    how = {"quiet": options.quiet, "verbose": options.verbose}
    progress = choose_display(missing, forecast, sys.stderr, grid.name, **how)
    lease.describe = progress.list_lines
    with (
        _log_into(store.location, lease.run),
        _stop_on_signals(stop, progress),
        progress.shown(),
    ):
        from harness.cluster import fanout  # noqa: PLC0415  Ray: only now

        fanout.train_missing(
            missing,
            store,
            _request(missing, options),
            run=lease.run,
            estimate=forecast.seconds,
            limit=forecast.limit if timeout is None else lambda _: timeout,
            watcher=progress,
            stop=stop,
        )
    return progress


def _request(trials: Sequence[Trial], options: Options) -> Request:
    return Request(
        address=options.address,
        cpus_per_trial=options.cpus_per_trial or max(trial.threads for trial in trials),
        gpus_per_trial=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        wait_for_nodes=options.wait_for_nodes,
    )


@contextmanager
def _stop_on_signals(stop: Event, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the run within seconds, the second immediately."""

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
    """Log messages of Ray, Tune and the fan-out beside the rows, if they are in a folder."""
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
