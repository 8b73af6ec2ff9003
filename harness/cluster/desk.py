"""The driver's side of a pass: passes on what workers report, writes down what is lost, gives out work."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import cloudpickle, tune
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.tune.search.basic_variant import BasicVariantGenerator

from harness.cluster.costs import count_worthwhile_workers
from harness.cluster.guard import START, describe_silence
from harness.cluster.news import read_news
from harness.cluster.nodes import name_nodes
from harness.cluster.ray_internals import find_reserved_nodes
from harness.cluster.request import Finish, Watcher
from harness.cluster.shards import Pack, Shard, Standing, write_failures
from harness.study.errors import ClusterError, HarnessError, last_line
from harness.study.records import FailureKind
from harness.study.trials import Trial

if TYPE_CHECKING:
    from threading import Event

    from ray.tune.experiment import Trial as Shipment

    from harness.results.store import Store

FAILED_STARTS = 5
"""Workers that fail one after the other before they begin: the cluster is at fault, not a trial."""

LOOK_EVERY = 5.0
"""Seconds between two looks at what waits for a worker, while none is at work."""

DEMAND_VALIDITY = 15.0
"""Seconds for which the number of workers worth having is taken to be the same."""

_log = logging.getLogger(__name__)


class Desk(tune.Callback):
    """The driver's side of one pass: passes on what is reported, writes down what is lost."""

    def __init__(
        self,
        shards: Sequence[Shard],
        store: Store,
        run: str,
        watcher: Watcher,
        stop: Event,
        *,
        news_every: float = 1.0,
    ) -> None:
        self._shards = shards
        self._store = store
        self._run = run
        self._watcher = watcher
        self._stop = stop
        self._news_every = news_every
        self._read_news_at = 0.0
        self._reserved_at = float("inf")
        self._looked_at = time.monotonic()
        self._running: set[int] = set()
        self._reported: set[str] = set()
        self._heard_at: dict[int, float] = {}
        self._timed_out: set[tuple[str, int]] = set()
        self._failed_starts = 0
        self._broken: HarnessError | None = None
        self.suspects: list[Pack] = []
        """Packs in training when Tune gave up the pass: one of them, maybe, made it do so."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its settings, callbacks included, to restore a run; ours never are."""
        return {}

    @property
    def running(self) -> int:
        """Workers that have begun."""
        return len(self._running)

    def list_open(self) -> Iterator[Trial]:
        """The trials of which no end has been reported."""
        for shard in self._shards:
            for due in shard:
                yield from (trial for trial in due.pack if trial.id not in self._reported)

    @property
    def wants_stop(self) -> bool:
        return self._stop.is_set() or self._broken is not None

    def raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Many times a second: a watcher is to notice that nothing happens, too."""
        self._watcher.note_running(len(self._running))
        if (begun := time.monotonic()) >= self._read_news_at:
            self._watcher.note_news(read_news(self._run, sorted(self._running)))
            took = time.monotonic() - begun
            self._read_news_at = begun + max(self._news_every, 20 * took)
        if time.monotonic() > self._looked_at + LOOK_EVERY:
            self._looked_at = time.monotonic()
            self._look_for_starts()

    def _look_for_starts(self) -> None:
        """End the pass where room has been given and no worker comes up in it.

        Where no room has been given yet, others are at work or nodes are to come: a run waits.
        """
        nodes = set[str]() if self._running else find_reserved_nodes()
        self._reserved_at = min(self._reserved_at, self._looked_at) if nodes else float("inf")
        if time.monotonic() > self._reserved_at + START:
            self._broken = ClusterError(describe_silence(name_nodes(nodes)))

    def on_trial_start(self, *_: object, trial: Shipment, **__: object) -> None:
        self._failed_starts = 0
        self._running.add(trial.config["shard"])
        self._heard_at[trial.config["shard"]] = time.monotonic()
        self._watcher.note_running(len(self._running))

    def on_trial_result(
        self, *_: object, trial: Shipment, result: dict[str, Any], **__: object
    ) -> None:
        self._heard_at[trial.config["shard"]] = time.monotonic()
        for finish in result["finishes"]:
            self._report(finish)
        self._broken = self._broken or result.get("broken")

    def on_trial_complete(self, *_: object, trial: Shipment, **__: object) -> None:
        self._running.discard(trial.config["shard"])
        self._watcher.note_running(len(self._running))

    def on_trial_recover(self, *_: object, trial: Shipment, **__: object) -> None:
        """Tune starts the shard again after this: by then the store says what was lost."""
        error = _read_error(trial)
        shard = trial.config["shard"]
        if shard in self._running:
            self._running.discard(shard)
            self._watcher.note_running(len(self._running))
            self._note_loss(shard, error)
            return
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            self._broken = ClusterError(f"workers do not start: {last_line(error)}")

    def note_collapse(self, error: BaseException) -> None:
        """Tune has given up the pass and ended every worker, because of one of them.

        Which one is not known. A single worker is the one; several are suspects, to be trained one
        at a time, so that nobody pays for a neighbour.
        """
        if len(self._running) == 1:
            self._note_loss(next(iter(self._running)), error)
            return
        for shard in sorted(self._running):
            standing = self._read_standing(shard)
            self._report_settled(shard, standing)
            self.suspects += [due.pack for due in standing.list_open(self._shards[shard])[:1]]

    def _note_loss(self, shard: int, error: BaseException | None) -> None:
        standing = self._read_standing(shard)
        self._report_settled(shard, standing)
        if self._explain_by_timeout(shard, standing):
            return
        due = next(iter(standing.list_open(self._shards[shard])), None)
        if due is None:
            return
        if isinstance(error, RayTaskError):
            kind = FailureKind.EXCEPTION
        elif isinstance(error, OutOfMemoryError):
            kind = FailureKind.OUT_OF_MEMORY
        elif time.monotonic() - self._heard_at[shard] > due.limit:
            kind = FailureKind.TIMEOUT
        else:
            kind = FailureKind.WORKER_LOST
        _log.warning("%s: %s, start %d: %s", due.pack[0].label, kind, due.attempt, error)
        message = last_line(error)
        write_failures(self._store, due, self._run, kind=kind, message=message, text=str(error))
        self._report_settled(shard, self._read_standing(shard))

    def _read_standing(self, shard: int) -> Standing:
        return Standing.read(self._store, self._run, [due.pack for due in self._shards[shard]])

    def _report_settled(self, shard: int, standing: Standing) -> None:
        """Report what was settled although its report was lost with the worker."""
        for due in self._shards[shard]:
            for trial in due.pack:
                if standing.is_over((trial,)):
                    status = "done" if trial.id in standing.finished else "failed"
                    self._report(Finish(trial.id, status))

    def _explain_by_timeout(self, shard: int, standing: Standing) -> bool:
        """Has the worker ended itself, and said which pack it was that did not come to its end?"""
        rows = {
            (row.trial_id, row.attempt)
            for due in self._shards[shard]
            for trial in due.pack
            for row in standing.failures.get(trial.id, ())
            if row.kind == FailureKind.TIMEOUT and row.attempt >= due.attempt
        }
        news = rows - self._timed_out
        self._timed_out |= rows
        for trial_id, _ in news:
            self._report(Finish(trial_id, "failed"))
        return bool(news)

    def _report(self, finish: Finish) -> None:
        if finish.trial_id not in self._reported:
            self._reported.add(finish.trial_id)
            self._watcher.note_finish(finish)


class StopWhenWanted(tune.Stopper):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, *_: object, **__: object) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.wants_stop


class Demand(BasicVariantGenerator):
    """Gives out shards to as many workers as are worth having at the moment.

    What is given out and has no node is what an autoscaler sees: at the start it is asked for all
    nodes in one step; towards the end for none that would come too late.
    """

    def __init__(
        self,
        desk: Desk,
        estimate: Callable[[Trial], float],
        *,
        most: int | None,
        workers: int,
        scales: bool,
    ) -> None:
        super().__init__(max_concurrent=most or 0)
        self._desk = desk
        self._estimate = estimate
        self._most = most or sys.maxsize
        self._workers = workers
        self._scales = scales
        self._valid_until = 0.0

    def next_trial(self) -> Shipment | None:
        if self._scales and time.monotonic() >= self._valid_until:
            self.max_concurrent = count_worthwhile_workers(
                sum(map(self._estimate, self._desk.list_open())),
                present=max(self._workers, self._desk.running),
                most=self._most,
            )
            self._valid_until = time.monotonic() + DEMAND_VALIDITY
        return super().next_trial()

    def get_state(self) -> dict[str, Any]:
        """Nothing: Tune keeps it to restore a run; ours never are."""
        return {}


def _read_error(shipment: Shipment) -> BaseException | None:
    """What Tune has just written down, in this process, about the end of a shard's worker."""
    if path := shipment.pickled_error_file:
        return cloudpickle.loads(Path(path).read_bytes())
    path = shipment.error_file
    return RuntimeError(Path(path).read_text(encoding="utf-8")) if path else None
