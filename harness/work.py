"""python -m harness.work RESULTS: train what the plan in a results folder lacks, without Ray.

For one machine with a GPU, for a Slurm array on shared storage, for a cluster that has no Ray. It
needs torch, pyarrow and the standard library: the plan comes from `harness.run GRID --plan-only` on
a machine that has the rest.
"""

from __future__ import annotations

import argparse
import math
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from harness.cluster.forecast import Forecast
from harness.cluster.shards import find_hopeless
from harness.plan import refuse_other_code
from harness.progress import LineProgress, Progress, describe_failures, describe_stop
from harness.study.architectures import find_setting_mistake
from harness.study.errors import DataError, GridError, HarnessError, StoreError
from harness.study.facts import explain_lack_of_data
from harness.study.terminal import Parser, say
from harness.study.trials import TRAINING_VERSION, Trial, find_pack_mistake
from harness.study.wording import format_count, format_duration

if TYPE_CHECKING:
    from harness.results import Lease, Plan, Store, Tally

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130

GRACE = 5.0
"""Seconds in which the training of a process that is told to stop may end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parse(arguments)
    try:
        return _work(options, shlex.join(["python", "-m", "harness.work", *arguments]))
    except HarnessError as error:
        say(f"harness.work: {error}", is_error=True)
        return error.exit_code
    except KeyboardInterrupt:
        say("\nstopped at once; finished trials are kept", is_error=True)
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m harness.work",
        description="Train what the plan in a results folder lacks, in this process, without Ray. "
        "Any number of these may work on one folder: a trial is kept once, and what another is at "
        "is left for last. Seeds come one after the other, so that whole pairs come first.",
        allow_abbrev=False,
        epilog="A plan comes from `python -m harness.run GRID --plan-only --results RESULTS`, "
        "where Ray and pydantic are installed; a tuning stage and planned looks add to it when the "
        "same command is given again. A process trains one pack at a time, on a GPU if there is one: "
        "choose it with CUDA_VISIBLE_DEVICES, and start several where one does not fill it, or one "
        "for each core. "
        "Exit codes: 0 all done or the minutes are over, 1 some trials failed, or one hung, which ends "
        "the process with the rest untrained (give the command again), 2 bad input, 3 the "
        "results folder cannot be used, 4 the GPU was lost (give the command again), 130 interrupted.",
    )
    add = parser.add_argument
    add("results", metavar="RESULTS", help="a folder, or s3://bucket/prefix, that holds a plan")
    add("--minutes", metavar="M", type=_minutes, default=math.inf, help="stop after so long")
    add(
        "--seeds-per-trial",
        metavar="N",
        type=int,
        choices=range(1, 65),
        help="plan the folder anew to train N seeds of a cell together, as one grouped network, as "
        "harness.run does with the same option; before any of it is trained",
    )
    add(
        "--accept-other-code",
        action="store_true",
        help="continue even if finished trials come from another version of the training code",
    )
    add("--join", action="store_true", help="work beside a harness.run that uses the folder, too")
    add("-v", "--verbose", action="store_true", help="a line for every trial")
    return parser.parse_args(arguments)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 < value < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def _work(options: argparse.Namespace, command: str) -> int:
    from harness.cluster.alone import Alone, order_packs  # noqa: PLC0415  pyarrow: not for --help
    from harness.results import Lease, Store, sweep, take_snapshot  # noqa: PLC0415  the same

    begun = time.monotonic()
    until = begun + 60 * options.minutes
    store, stop = Store(options.results), Event()
    store.refuse_emptiness()
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
    with Lease(store, run, join=options.join, shares=True, stop=stop) as lease:
        plan = _read_plan(store, options.seeds_per_trial, lease)
        snapshot = take_snapshot(store)
        snapshot.refuse_damage()
        tally = snapshot.tally(plan.trials)
        hopeless = find_hopeless(snapshot.failures)
        missing = [t for t in plan.trials if t.id not in tally.rows and t.id not in hopeless]
        if missing and not options.accept_other_code:
            refuse_other_code(tally, store.location)
        progress = _make_ready(missing, tally, store, plan.analysis.grid, options)
        lease.describe = progress.list_lines
        with _stop_in_time(stop, progress, until) as signals:
            if missing:
                sweep(store, lease)
                packs = order_packs(missing, Random(run), failed=tally.failures)
                Alone(
                    store,
                    lease,
                    limit=progress.forecast.limit,
                    watcher=progress,
                    stop=stop,
                    on_gpu=progress.forecast.device == "cuda",
                ).train_missing(packs)
    tally = take_snapshot(store, since=snapshot).tally(plan.trials)
    failed = [trial for trial in plan.trials if trial.id in tally.failures]
    for line in describe_failures(tally, failed, options.results):
        say(line, is_error=True)
    took = f"in {format_duration(time.monotonic() - begun)}" if missing else "nothing to train"
    say(f"{plan.analysis.grid}: {tally.account()}, {took}")
    if stop.is_set() and any(map(tally.is_open, missing)):
        others = {row.trial_id for row in tally.rows.values() if row.run != run}
        own = [trial for trial in missing if trial.id not in others]
        over = "" if signals else f"{options.minutes:g} minutes are over"
        say(describe_stop(tally, own, progress.stopped, why=over or "interrupted"), is_error=True)
        say(f"To go on: {command}", is_error=True)
        if signals:
            return INTERRUPTED
    return SOME_FAILED if failed else DONE


def _read_plan(store: Store, seeds_per_trial: int | None, lease: Lease) -> Plan:
    """The plan of the folder; of packs of another size, where that is asked for.

    Raises:
        StoreError: there is no plan that can be trained.
        GridError: it cannot be one of such packs.
    """
    plan = store.read_plan()
    if plan is None or plan.training_version != TRAINING_VERSION:
        raise StoreError(
            f"{store.location}: no plan of this version of the training; where pydantic is "
            f"installed: python -m harness.run GRID --plan-only --results {shlex.quote(store.location)}"
        )
    if seeds_per_trial is None or {trial.pack_size for trial in plan.trials} == {seeds_per_trial}:
        return plan
    packed = [replace(trial, pack_size=seeds_per_trial) for trial in plan.trials]
    mistake = _find_pack_mistake(store, plan.trials, packed)
    if not mistake and lease.has_company():
        mistake = "others train this plan as it is; stop them, or plan another folder"
    if mistake:
        raise GridError([f"--seeds-per-trial {seeds_per_trial}: {mistake}"])
    store.write_plan(plan.analysis, packed, plan.source)
    return _read_plan(store, None, lease)


def _find_pack_mistake(
    store: Store, trials: Sequence[Trial], packed: Sequence[Trial]
) -> str | None:
    size = packed[0].pack_size
    if any(trial.stage != "study" for trial in trials):
        return "the plan has a tuning stage, so that only harness.run --plan-only can change it"
    if finished := len(store.finished_ids().intersection(trial.id for trial in trials)):
        return (
            f"{format_count(finished, 'trial')} of the plan are finished, in packs of another size; "
            "plan another folder"
        )
    for architecture in dict.fromkeys(trial.architecture for trial in trials):
        if mistake := find_setting_mistake(architecture, "pack_size", size):
            return mistake
    return find_pack_mistake(size, {trial.seed for trial in trials})


def _make_ready(
    missing: Sequence[Trial], tally: Tally, store: Store, name: str, options: argparse.Namespace
) -> LineProgress:
    """What tells of the training, once this machine has all that it needs.

    Raises:
        DataError: it lacks a user's own data set.
        DamagedFileError: the folder lacks the file of a user's own network.
    """
    import torch  # noqa: PLC0415  not for --help, nor for a folder that cannot be used

    from harness.results import provide_network  # noqa: PLC0415  the same

    for dataset in dict.fromkeys(trial.dataset for trial in missing):
        if lack := explain_lack_of_data(dataset):
            raise DataError(lack)
    for trial in missing:
        provide_network(store, trial)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    forecast = Forecast(device)
    for trial in tally.trials:
        row = tally.rows.get(trial.id)
        if row and row.device_kind == device:
            forecast.note(trial, row.wall_time)
    forecast.prepare(missing)
    return LineProgress(missing, forecast, sys.stderr, name, verbose=options.verbose)


@contextmanager
def _stop_in_time(stop: Event, progress: Progress, until: float) -> Iterator[list[int]]:
    """Stop at the first Ctrl-C or SIGTERM, or when it is time; what then ends soon is kept.

    Yields the signals that came from outside. A second one stops at once.
    """
    signals: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGALRM:
            signals.append(number)
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Again and again: what is raised where Python ignores errors ends nothing.
        signal.setitimer(signal.ITIMER_REAL, GRACE, GRACE)
        with suppress(RuntimeError):  # in the midst of another line
            progress.note_stop()

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, handle) for number in kinds}
    if until < math.inf:
        signal.setitimer(signal.ITIMER_REAL, max(0.001, until - time.monotonic()))
    try:
        with suppress(KeyboardInterrupt):
            yield signals
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
