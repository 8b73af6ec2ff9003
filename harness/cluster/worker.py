"""What runs in a worker: a Tune trainable that trains shard after shard in one warm process."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from harness.cluster.news import Teller
from harness.cluster.request import Finish
from harness.cluster.shards import Due, Partial, Shard, Standing, Start, classify, write_failures
from harness.results.networks import provide_network
from harness.study.errors import ClusterError, HarnessError
from harness.study.records import FailureKind, TrialRows
from harness.training.provenance import PACKAGE, digest_code

if TYPE_CHECKING:
    from harness.results.store import Store
    from harness.training.images import Images

TrainPack = Callable[[Start], list[TrialRows]]
"""What a worker does with a pack: it may resume what an earlier start has left."""

GRACE = 30.0
"""Seconds after its time limit at which a worker that could not even write its failure is killed."""


def train_with_torch(start: Start) -> list[TrialRows]:
    """Train a pack in this process, which keeps the images it has loaded."""
    import torch  # noqa: PLC0415  only workers pay for it, the driver stays lean

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


class Caller(tune.Trainable):
    """Starts as a `Worker` does, and calls what it is given."""

    def start(self) -> None:
        """Nothing: whoever is answered has a worker."""

    def call(self, function: Callable[..., object], *arguments: object) -> object:
        return function(*arguments)


@cache
def load_once(dataset: str) -> Images:
    from harness.training.images import load_images  # noqa: PLC0415  needs torch

    return load_images(dataset, fetch=True)  # once per node: the other workers wait for it


class Worker(tune.Trainable):
    """Trains shard after shard in one warm process; a step reports what has been finished."""

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride]  tune.with_parameters adds them
        self,
        config: dict[str, Any],
        *,
        shards: Sequence[ray.ObjectRef],
        store: Store,
        run: str,
        on_gpu: bool,
        train: TrainPack,
        keep_every: float,
        code_digest: str,
        report_every: float,
    ) -> None:
        self._shards = shards
        self._store = store
        self._run = run
        self._on_gpu = on_gpu
        self._train = train
        self._keep_every = keep_every
        self._code_digest = code_digest
        self._report_every = report_every
        self._teller = Teller(run, every=report_every)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._number: int = new_config["shard"]
        self._shard: Shard = ray.get(self._shards[self._number])
        self._open: deque[Due] | None = None
        return True

    def step(self) -> dict[str, Any]:
        finishes: list[Finish] = []
        until = time.monotonic() + self._report_every
        try:
            if self._open is None:
                self._check_code()
                packs = [due.pack for due in self._shard]
                self._standing = Standing.read(self._store, self._run, packs)
                self._partials = self._store.list_partials()
                self._open = deque(self._standing.list_open(self._shard))
            while self._open and time.monotonic() < until:
                finishes += self._train_and_commit(self._open.popleft())
        except HarnessError as error:  # no trial's fault: the driver ends the run with it
            return {"finishes": finishes, "broken": error, "done": True}
        return {"finishes": finishes, "done": not self._open}

    def _check_code(self) -> None:
        """A worker is given the driver's code; this is for whatever may come between."""
        if digest_code() != self._code_digest:
            raise ClusterError(
                "a worker would train with other code than the driver's: the files have changed "
                f"while the run began, or {PACKAGE} is not what it was given; what is finished is "
                "kept. Give the command again to go on"
            )

    def _train_and_commit(self, due: Due) -> list[Finish]:
        partial = Partial(self._store, due.pack, listed=self._partials)
        start = Start(
            due.pack,
            due.attempt,
            self._run,
            self._on_gpu,
            partial,
            self._keep_every,
            self._standing.has_raised(due.pack),
            self._teller.begin(self._number, due.pack),
        )
        try:
            if self._train is train_with_torch:
                load_once(
                    due.pack[0].dataset
                )  # a download is no part of the trial, nor of its time
                provide_network(self._store, due.pack[0])
            with self._limited(due):
                packed = self._train(start)
        except HarnessError:
            raise
        except Exception as error:  # the border with Ray: becomes a row, and the shard goes on
            partial.drop()  # what it resumed from may be at fault: the next start begins anew
            kind = classify(error)
            if self._on_gpu and kind == FailureKind.EXCEPTION:
                raise  # the process may have lost its GPU: the driver writes the row, Tune starts anew
            message = traceback.format_exception_only(error)[-1].strip()
            self._write_failures(due, kind, message, traceback.format_exc())
            return [Finish(trial.id, "failed") for trial in due.pack]
        finishes: list[Finish] = []
        for rows in packed:
            self._store.write_trial(rows)
            row = rows.trial
            finishes.append(Finish(row.trial_id, row.status, row.test_accuracy, row.wall_time))
        partial.drop()
        return finishes

    @contextmanager
    def _limited(self, due: Due) -> Iterator[None]:
        """End this process, once a failure row says why, where the block takes too long.

        A thread writes the row. Code that never lets other threads run is ended a little later
        from outside Python; the driver then knows it by its silence.
        """
        main_thread = threading.get_ident()

        def give_up() -> None:
            text = "".join(traceback.format_stack(sys._current_frames()[main_thread]))  # noqa: SLF001
            try:
                message = f"no end within {due.limit:.0f} s"
                self._write_failures(due, FailureKind.TIMEOUT, message, text)
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

    def _write_failures(self, due: Due, kind: FailureKind, message: str, text: str) -> None:
        host = socket.gethostname()
        write_failures(
            self._store, due, self._run, kind=kind, message=message, text=text, host=host
        )
