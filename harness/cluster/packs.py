"""Train one pack in this process and keep what came of it: rows, or why there are none.

What a worker of Ray's does with each pack of its shard, and a process without Ray with each that it
takes. Needs no ray.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING

from harness.cluster.request import Finish, News
from harness.cluster.shards import Due, Pack, Start, classify, write_failures
from harness.results.networks import provide_network
from harness.study.errors import HarnessError
from harness.study.records import EpochRow, FailureKind, TrialRows
from harness.study.terminal import say

if TYPE_CHECKING:
    from harness.results.store import Store
    from harness.training.images import Images

TrainPack = Callable[[Start], list[TrialRows]]
"""What is done with a pack: it may resume what an earlier start has left."""

GRACE = 30.0
"""Seconds after its time limit at which a process that could not even write its failure is killed."""


def train_with_torch(start: Start) -> list[TrialRows]:
    """Train a pack in this process, which keeps the images it has loaded."""
    import torch  # noqa: PLC0415  only who trains pays for it, the driver stays lean

    from harness.training.checkpoints import Checkpoint  # noqa: PLC0415  the same
    from harness.training.train import prepare_worker, train_pack  # noqa: PLC0415  the same

    trial = start.pack[0]
    prepare_worker(trial.threads)
    device = torch.device("cuda" if start.on_gpu else "cpu")
    return train_pack(
        start.pack,
        load_once(trial.dataset),
        device=device,
        attempt=start.attempt,
        run=start.run,
        checkpoint=Checkpoint(
            trial,
            start.partial.read,
            start.partial.write,
            device=device,
            every=start.keep_every,
        ),
        captured=not start.has_raised,  # slower and plainer, and the same rows
        tell=start.tell,
    )


@cache
def load_once(dataset: str) -> Images:
    from harness.training.images import load_images  # noqa: PLC0415  needs torch

    return load_images(dataset, fetch=True)  # once per node: the other workers wait for it


def train_and_commit(
    store: Store, due: Due, start: Start, train: TrainPack = train_with_torch
) -> list[Finish]:
    """Train a pack and commit its rows, or its failure.

    Raises:
        HarnessError: no trial's fault.
        Exception: what training raised on a GPU, which this process may have lost; not kept yet.
    """
    try:
        if train is train_with_torch:
            load_once(due.pack[0].dataset)  # a download is no part of the trial, nor of its time
            provide_network(store, due.pack[0])
        with _limited(store, due, start.run):
            packed = train(start)
    except HarnessError:
        raise
    except Exception as error:  # the border of training: becomes a row, and the others go on
        start.partial.drop()  # what it resumed from may be at fault: the next start begins anew
        if start.on_gpu and classify(error) == FailureKind.EXCEPTION:
            raise
        return keep_exception(store, due, start.run, error)
    finishes: list[Finish] = []
    for rows in packed:
        store.write_trial(rows)
        row = rows.trial
        finishes.append(Finish(row.trial_id, row.status, row.test_accuracy, row.wall_time))
    start.partial.drop()
    return finishes


def keep_exception(store: Store, due: Due, run: str, error: Exception) -> list[Finish]:
    """Keep what the training of a pack has raised: a row for each of its trials."""
    message = traceback.format_exception_only(error)[-1].strip()
    text = "".join(traceback.format_exception(error))
    _write_failures(store, due, run, classify(error), message, text)
    return [Finish(trial.id, "failed") for trial in due.pack]


def follow(pack: Pack, give: Callable[[News], None]) -> Callable[[Sequence[EpochRow]], None]:
    """Give the news that a training begins; returns what gives more for the rows of each epoch."""
    epochs, seconds = 0, 0.0  # since this start

    def tell(rows: Sequence[EpochRow]) -> None:
        nonlocal epochs, seconds
        if not rows:  # every replica has diverged, and the training is over
            return
        epochs += 1
        seconds += rows[0].wall_time * len(pack[0].pack)
        loss = fmean(row.train_loss for row in rows)
        accuracy = fmean(row.validation_accuracy for row in rows)
        give(News(pack[0].id, rows[0].epoch, loss, accuracy, seconds / epochs))

    give(News(pack[0].id))
    return tell


@contextmanager
def _limited(store: Store, due: Due, run: str) -> Iterator[None]:
    """End this process, once a failure row says why, where the block takes too long.

    A thread writes the row. Code that never lets other threads run is ended a little later
    from outside Python; whoever waits for it then knows it by its silence.
    """
    main_thread = threading.get_ident()

    def give_up() -> None:
        text = "".join(traceback.format_stack(sys._current_frames()[main_thread]))  # noqa: SLF001
        try:
            message = f"no end within {due.limit:.0f} s"
            _write_failures(store, due, run, FailureKind.TIMEOUT, message, text)
            say(f"{due.pack[0].label}: {message}, so that this process ends", is_error=True)
        finally:
            os._exit(1)

    watchdog = threading.Timer(due.limit, give_up)
    watchdog.daemon = True
    watchdog.start()
    faulthandler.dump_traceback_later(due.limit + min(due.limit, GRACE), exit=True, file=2)
    try:
        yield
    finally:
        watchdog.cancel()
        faulthandler.cancel_dump_traceback_later()


def _write_failures(
    store: Store, due: Due, run: str, kind: FailureKind, message: str, text: str
) -> None:
    host = socket.gethostname()
    write_failures(store, due, run, kind=kind, message=message, text=text, host=host)
