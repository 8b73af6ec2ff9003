"""What runs in a worker: a Tune trainable that trains shard after shard in one warm process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from harness.cluster.news import Teller
from harness.cluster.packs import TrainPack, train_and_commit
from harness.cluster.request import Finish
from harness.cluster.shards import Due, Partial, Shard, Standing, Start
from harness.study.errors import ClusterError, HarnessError
from harness.training.provenance import PACKAGE, digest_code

if TYPE_CHECKING:
    from harness.results.store import Store


class Caller(tune.Trainable):
    """Starts as a `Worker` does, and calls what it is given."""

    def start(self) -> None:
        """Nothing: whoever is answered has a worker."""

    def call(self, function: Callable[..., object], *arguments: object) -> object:
        return function(*arguments)


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
        return train_and_commit(self._store, due, start, self._train)
