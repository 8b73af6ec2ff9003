"""Hand missing trials to Ray Tune: place, retry, stop. The only file that knows Ray.

A Tune trial is one shard (`harness.cluster.shards`): trials of a second or two would cost less than their
own start, so that they travel together, to workers that stay warm.

Tune is not asked what came out of it: it returns normally after an interruption, and raises when
one worker meets something it does not expect. The store is asked instead, ahead of every *pass*
(one `Tuner.fit()`) and by each worker that takes up a shard.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
import yaml
from ray import cloudpickle, tune
from ray._private import services as ray_services
from ray._private import utils as ray_utils
from ray._private.state import state as cluster_state  # knows what an autoscaler could add
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from harness.cluster.costs import count_worthwhile_workers
from harness.cluster.devices import Network, assign_devices, find_type, network_of
from harness.cluster.forecast import count_cpus
from harness.cluster.shards import (
    KEEP_EVERY,
    MOST_SHARDS,
    Pack,
    Partial,
    Shard,
    Standing,
    Start,
    classify,
    cut_shards,
    pack_trials,
    say_size,
    write_failures,
)
from harness.study.errors import ClusterError, HarnessError
from harness.study.records import TrialRows
from harness.study.trials import Trial
from harness.training.provenance import COMMIT_VARIABLE, PACKAGE, digest_code, read_commit

if TYPE_CHECKING:
    from threading import Event

    from ray.tune.experiment import Trial as Shipment

    from harness.results.store import Store
    from harness.training.images import Images

TrainPack = Callable[[Start], list[TrialRows]]
"""What a worker does with a pack: it may go on from what an earlier start has left."""

GRACE = 30.0
"""Seconds after its time limit at which a worker that could not even say so is killed."""

FAILED_STARTS = 5
"""Workers that fail one after the other before they begin: the cluster is at fault, not a trial."""

DEMAND_VALIDITY = 15.0
"""Seconds for which the number of workers worth having is taken to be the same."""

PATIENCE = 5.0
"""Seconds a cluster has to accept a connection."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer one draws tables even at verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same in a worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that asked for no GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard beside the rows
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stop` decides
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never restored
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",  # beyond the 5 s that Tune gives a stopped worker anyway
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they become failure rows
    "TUNE_WARN_THRESHOLD_S": "10",
}
"""How Ray and Tune are set, where the user's own environment says nothing."""

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster file on the head."""

_DEVICE_TYPE = "accelerator_type:"
"""Ray's prefix of the resource that a node has for its type of GPU."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of Ray; `gpus_per_trial` None means one each where there are any."""

    address: str = "local"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    wait_for_nodes: int = 0
    pin_device_type: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """A trial that came to an end: `status` is that of its row, or 'failed'."""

    trial_id: str
    status: str
    test_accuracy: float
    wall_time: float


class Watcher(Protocol):
    """Is told in the driver what goes on."""

    def note_waiting(self, nodes: int, wanted: int) -> None: ...
    def count_workers(self, workers: int) -> None: ...
    def note_running(self, workers: int) -> None: ...
    def note_finish(self, finish: Finish) -> None: ...


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
        _load_once(trial.dataset),
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
    )


@cache
def _load_once(dataset: str) -> Images:
    from harness.training.images import load_images  # noqa: PLC0415  needs torch

    return load_images(dataset, fetch=True)  # once per node: the other workers wait for it


def train_missing(
    trials: Sequence[Trial],
    store: Store,
    request: Request,
    *,
    run: str,
    estimate: Callable[[Trial], float],
    limit: Callable[[Trial], float],
    watcher: Watcher,
    stop: Event,
    train: TrainPack = train_with_torch,
    keep_every: float = KEEP_EVERY,
) -> None:
    """Train what the store lacks of `trials`, in their order, until nothing more can be done.

    What became of them is in the store: rows, and failures of this `run`. Returns early, within
    seconds, once `stop` is set.

    Units:
        estimate: seconds of work in a trial.
        limit: seconds after which a start of it counts as hanging, and is stopped.
        keep_every: seconds between two checkpoints of a trial.
    Raises:
        ClusterError: Ray does not answer, cannot hold a trial, or cannot start a worker; or the
            training code has changed under it.
        DataError, StoreError: as met by a worker; the other workers are stopped.
    """

    def cut(packs: Sequence[Pack], workers: int) -> Iterator[Sequence[Pack]]:
        return cut_shards(packs, lambda pack: sum(map(estimate, pack)), workers)

    printed = _LogStream()
    with redirect_stdout(printed), redirect_stderr(printed), _connect(request):
        _wait_for_nodes(request, watcher, stop)
        resources, workers = _place(request)
        watcher.count_workers(workers)
        pinned = request.pin_device_type
        standing = Standing.read(store, run)
        suspects: list[Pack] = []
        while not stop.is_set():
            packs = suspects or [pack for pack in pack_trials(trials) if not standing.is_over(pack)]
            if not packs:
                return
            device_of = _pin_devices(packs, estimate, store, resources, request) if pinned else {}
            shards = [
                Shard(
                    tuple(part),
                    tuple(standing.attempt(pack) for pack in part),
                    tuple(sum(map(limit, pack)) for pack in part),
                    device,
                )
                for device, group in _group_by_device(packs, device_of)
                for part in ([[pack] for pack in group] if suspects else cut(group, workers))
            ]
            # Side by side, so that no type waits for another's work to be given out.
            position = {pack[0].id: place for place, pack in enumerate(packs)}
            shards.sort(key=lambda shard: position[shard.packs[0][0].id])
            _log.info("pass: %d packs in %d shards, %d workers", len(packs), len(shards), workers)
            desk = _Desk(shards, store, run, watcher, stop)
            alone = replace(request, max_concurrent=1) if suspects else request
            demand = _Demand(desk, estimate, alone, workers)
            worker_setup = {
                "shards": [ray.put(shard) for shard in shards],
                "store": store,
                "run": run,
                "on_gpu": resources["GPU"] > 0,
                "train": train,
                "keep_every": keep_every,
                "code_digest": digest_code(),
                # Tune takes in some hundred reports a second, whatever the number of workers.
                "report_every": max(1.0, 0.02 * workers),
            }
            complaint = _fit(worker_setup, shards, resources, demand, desk)
            desk.raise_if_broken()
            before, standing = standing, Standing.read(store, run)
            suspects = [pack for pack in desk.suspects if not standing.is_over(pack)]
            if before == standing and not suspects and not stop.is_set():
                raise ClusterError(f"Ray trained nothing. {complaint}".rstrip())


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that is up; `room` is how many trials of this request it could train at a time."""

    id: str
    address: str
    gpus: int
    offers: str
    room: int


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Machines that an autoscaler adds on demand, `most` at a time."""

    name: str
    most: int
    resources: Mapping[str, float]

    @property
    def offers(self) -> str:
        return _describe(self.resources)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is, and what there could be."""

    nodes: tuple[Node, ...]
    groups: tuple[NodeGroup, ...]
    refused: frozenset[str]
    """Groups of which a machine was asked for lately and did not come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node's call returned, or in `error` why it did not.

    Units:
        asked, answered: seconds since 1970 by the clock of this process.
    """

    value: Any
    error: str
    asked: float
    answered: float


@contextmanager
def survey(request: Request) -> Iterator[Cluster]:
    """Be connected to the cluster within the block, to ask its nodes.

    Raises:
        ClusterError: Ray does not answer, or no node, present or to come, could hold a trial.
    """
    printed = _LogStream()
    with redirect_stdout(printed), redirect_stderr(printed), _connect(request):
        resources, _ = _place(request)
        yield Cluster(
            tuple(
                Node(
                    id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    gpus=int(node["Resources"].get("GPU", 0)),
                    offers=_describe(node["Resources"]),
                    room=_count_room(node["Resources"], resources),
                )
                for node in ray.nodes()
                if node["Alive"]
            ),
            tuple(_list_groups(request)),
            _find_refused_groups(),
        )


def run_on_every_node(
    function: Callable[..., Any], arguments: Mapping[Node, tuple[Any, ...]], *, patience: float
) -> dict[Node, Answer]:
    """Call `function` once on each node, all at the same time, with the arguments for that node.

    It asks for no resources, so that a node at work answers too; within a `survey` only.

    Units:
        patience: seconds that all calls have together.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    asked: dict[ray.ObjectRef, tuple[Node, float]] = {}
    for node, values in arguments.items():
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[remote.options(scheduling_strategy=here).remote(*values)] = node, time.time()
    answers: dict[Node, Answer] = {}
    until = time.monotonic() + patience
    waiting = list(asked)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            break
        node, sent = asked[ready[0]]
        answered = time.time()
        try:
            answers[node] = Answer(ray.get(ready[0]), "", sent, answered)
        except Exception as error:  # noqa: BLE001  the border with Ray: a node may be lost in any way
            answers[node] = Answer(None, _last_line(error), sent, answered)
    for reference in waiting:
        node, sent = asked[reference]
        ray.cancel(reference, force=True)
        answers[node] = Answer(None, f"no answer within {patience:.0f} s", sent, time.time())
    return {node: answers[node] for node in arguments}


def run_in_worker(function: Callable[..., Any], *arguments: Any, request: Request) -> Any:  # noqa: ANN401
    """`function(*arguments, on_gpu)`, called once where a trial would be trained.

    On a cluster without such a node it waits for one to come.

    Raises:
        ClusterError: Ray does not answer, has no node that could hold a trial, or lost this one.
        HarnessError: as the function raises it.
    """
    printed = _LogStream()
    with redirect_stdout(printed), redirect_stderr(printed), _connect(request):
        resources, _ = _place(request)
        # Any: Ray's stubs know no call with a variable number of arguments.
        remote: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources["GPU"])(function)
        try:
            return ray.get(remote.remote(*arguments, resources["GPU"] > 0))
        except Exception as error:  # the border with Ray: a node may be lost in any way
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, HarnessError):
                raise cause from None
            raise ClusterError(_last_line(cause)) from error


def _pin_devices(
    packs: Sequence[Pack],
    estimate: Callable[[Trial], float],
    store: Store,
    resources: Mapping[str, float],
    request: Request,
) -> dict[Network, str]:
    """The type of device for each network, by what has been trained and what the nodes have.

    Raises:
        ClusterError: no GPU's type is known, or the type that a network began on is gone.
    """
    rooms: Counter[str] = Counter()
    nodes = [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]]
    nodes += [(dict(group.resources), group.most) for group in _list_groups(request)]
    for node, count in nodes:
        for name in node:
            if name.startswith(_DEVICE_TYPE) and resources["GPU"]:
                rooms[name.removeprefix(_DEVICE_TYPE)] += count * _count_room(node, resources)
    rooms = +rooms  # without the types on which nothing fits
    if not rooms:
        raise ClusterError("--pin-device-type: no node tells Ray of what type its GPUs are")
    known = {network_of(row): find_type(row.device, rooms) for row in store.read_trial_rows()}
    return assign_devices([trial for pack in packs for trial in pack], estimate, rooms, known)


def _group_by_device(
    packs: Sequence[Pack], device_of: Mapping[Network, str]
) -> Iterator[tuple[str, list[Pack]]]:
    groups: dict[str, list[Pack]] = defaultdict(list)
    for pack in packs:
        groups[device_of.get(network_of(pack[0]), "")].append(pack)
    yield from groups.items()


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
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._shard: Shard = ray.get(self._shards[new_config["shard"]])
        self._packs: deque[tuple[Pack, int]] | None = None
        return True

    def step(self) -> dict[str, Any]:
        finishes: list[Finish] = []
        until = time.monotonic() + self._report_every
        try:
            if self._packs is None:
                self._check_code()
                self._standing = Standing.read(self._store, self._run, self._shard.packs)
                self._packs = deque(self._standing.open_packs(self._shard))
            while self._packs and time.monotonic() < until:
                finishes += self._train_and_commit(*self._packs.popleft())
        except HarnessError as error:  # no trial's fault: the driver ends the run with it
            return {
                "finishes": finishes,
                "broken": error,
                "done": True,
            }
        return {"finishes": finishes, "done": not self._packs}

    def _check_code(self) -> None:
        """A worker is given the driver's code; this is for whatever may come between."""
        if digest_code() != self._code_digest:
            raise ClusterError(
                "a worker would train with other code than the driver's: the files have changed "
                f"while the run began, or {PACKAGE} is not what it was given; what is finished is "
                "kept. Give the command again to go on"
            )

    def _train_and_commit(self, pack: Pack, attempt: int) -> list[Finish]:
        partial = Partial(self._store, pack)
        raised = self._standing.has_raised(pack)
        start = Start(pack, attempt, self._run, self._on_gpu, partial, self._keep_every, raised)
        try:
            if self._train is train_with_torch:
                _load_once(pack[0].dataset)  # a download is no part of the trial, nor of its time
            with self._limited(pack, attempt):
                packed = self._train(start)
        except HarnessError:
            raise
        except Exception as error:  # the border with Ray: becomes a row, and the shard goes on
            partial.drop()  # what it went on from may be at fault: the next start owes it nothing
            kind = classify(error)
            if self._on_gpu and kind == "exception":
                raise  # the process may have lost its GPU: the driver writes the row, Tune starts anew
            message = traceback.format_exception_only(error)[-1].strip()
            if kind == "out of memory":
                message = f"{message} ({say_size(pack)})"
            self._write_failures(pack, attempt, kind, message, traceback.format_exc())
            return [Finish(trial.id, "failed", float("nan"), float("nan")) for trial in pack]
        finishes: list[Finish] = []
        for rows in packed:
            self._store.write_trial(rows)
            row = rows.trial
            finishes.append(Finish(row.trial_id, row.status, row.test_accuracy, row.wall_time))
        partial.drop()
        return finishes

    @contextmanager
    def _limited(self, pack: Pack, attempt: int) -> Iterator[None]:
        """End this process, once a failure row says why, where the block takes too long.

        A thread writes the row. Code that never lets other threads run is ended a little later
        from outside Python; the driver then knows it by its silence.
        """
        limit = self._shard.limit(pack)
        main_thread = threading.get_ident()

        def give_up() -> None:
            text = "".join(traceback.format_stack(sys._current_frames()[main_thread]))  # noqa: SLF001
            try:
                message = f"no end within {limit:.0f} s"
                self._write_failures(pack, attempt, "timeout", message, text)
            finally:
                os._exit(1)

        watchdog = threading.Timer(limit, give_up)
        watchdog.daemon = True
        watchdog.start()
        faulthandler.dump_traceback_later(limit + min(limit, GRACE), exit=True, file=2)
        try:
            yield
        finally:
            watchdog.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _write_failures(self, pack: Pack, attempt: int, kind: str, message: str, text: str) -> None:
        write_failures(
            self._store,
            pack,
            attempt,
            self._run,
            kind=kind,
            message=message,
            text=text,
            host=socket.gethostname(),
        )


class _Desk(tune.Callback):
    """The driver's side of one pass: passes on what is reported, writes down what is lost."""

    def __init__(
        self, shards: Sequence[Shard], store: Store, run: str, watcher: Watcher, stop: Event
    ) -> None:
        self._shards = shards
        self._store = store
        self._run = run
        self._watcher = watcher
        self._stop = stop
        self._running: set[int] = set()
        self._reported: set[str] = set()
        self._heard_at: dict[int, float] = {}
        self._timed_out: set[tuple[str, int]] = set()
        self._failed_starts = 0
        self._broken: HarnessError | None = None
        self.suspects: list[Pack] = []
        """Packs in training when Tune gave up the pass: one of them, maybe, made it do so."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its settings, callbacks included, for a restore we never ask for."""
        return {}

    @property
    def running(self) -> int:
        """Workers that have begun."""
        return len(self._running)

    def list_open(self) -> Iterator[Trial]:
        """The trials of which no end has been reported."""
        for shard in self._shards:
            for pack in shard.packs:
                yield from (trial for trial in pack if trial.id not in self._reported)

    @property
    def wants_stop(self) -> bool:
        return self._stop.is_set() or self._broken is not None

    def raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Many times a second: a watcher is to notice that nothing happens, too."""
        self._watcher.note_running(len(self._running))

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
            self._broken = ClusterError(f"workers do not start: {_last_line(error)}")

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
            self.suspects += [pack for pack, _ in standing.open_packs(self._shards[shard])[:1]]

    def _note_loss(self, shard: int, error: BaseException | None) -> None:
        standing = self._read_standing(shard)
        self._report_settled(shard, standing)
        if self._explain_by_timeout(shard, standing):
            return
        open_packs = standing.open_packs(self._shards[shard])
        if not open_packs:
            return
        pack, attempt = open_packs[0]
        silence = time.monotonic() - self._heard_at[shard]
        message = _last_line(error)
        if isinstance(error, RayTaskError):
            kind = "exception"
        elif isinstance(error, OutOfMemoryError):
            kind = "out of memory"
            message = f"{message} ({say_size(pack)})"
        elif silence > self._shards[shard].limit(pack):
            kind = "timeout"
        else:
            kind = "worker lost"
        _log.warning("%s: %s, start %d: %s", pack[0].label, kind, attempt, error)
        write_failures(
            self._store, pack, attempt, self._run, kind=kind, message=message, text=str(error)
        )
        self._report_settled(shard, self._read_standing(shard))

    def _read_standing(self, shard: int) -> Standing:
        return Standing.read(self._store, self._run, self._shards[shard].packs)

    def _report_settled(self, shard: int, standing: Standing) -> None:
        """Report what was settled although its report was lost with the worker."""
        for pack in self._shards[shard].packs:
            for trial in pack:
                if standing.is_over((trial,)):
                    status = "done" if trial.id in standing.finished else "failed"
                    self._report(Finish(trial.id, status, float("nan"), float("nan")))

    def _explain_by_timeout(self, shard: int, standing: Standing) -> bool:
        """Has the worker ended itself, and said which pack it was that did not come to its end?"""
        due = self._shards[shard]
        rows = {
            (row.trial_id, row.attempt)
            for pack, attempt in zip(due.packs, due.attempts, strict=True)
            for trial in pack
            for row in standing.failures.get(trial.id, ())
            if row.kind == "timeout" and row.attempt >= attempt
        }
        news = rows - self._timed_out
        self._timed_out |= rows
        for trial_id, _ in news:
            self._report(Finish(trial_id, "failed", float("nan"), float("nan")))
        return bool(news)

    def _report(self, finish: Finish) -> None:
        if finish.trial_id not in self._reported:
            self._reported.add(finish.trial_id)
            self._watcher.note_finish(finish)


class _StopWhenWanted(tune.Stopper):
    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, *_: object, **__: object) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.wants_stop


class _Demand(BasicVariantGenerator):
    """Gives out shards to as many workers as are worth having at the moment.

    What is given out and has no node is what an autoscaler sees: at the start it is asked for all
    nodes in one step; towards the end for none that would come too late.
    """

    def __init__(
        self, desk: _Desk, estimate: Callable[[Trial], float], request: Request, workers: int
    ) -> None:
        super().__init__(max_concurrent=request.max_concurrent or 0)
        self._desk = desk
        self._estimate = estimate
        self._workers = workers
        self._most = request.max_concurrent or MOST_SHARDS
        # Types of device that do not share their work would each need a count of their own.
        self._scales = bool(_list_groups(request)) and not request.pin_device_type
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
        """Nothing: Tune keeps it for a restore we never ask for."""
        return {}


def _fit(
    setup: Mapping[str, Any],
    shards: Sequence[Shard],
    resources: Mapping[str, float],
    demand: _Demand,
    desk: _Desk,
) -> str:
    """One pass of Tune over the shards; returns its complaint, if it had one."""
    with tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Worker, **setup),
                lambda config: _request_worker(shards[config["shard"]], resources),
            ),
            param_space={"shard": tune.grid_search(list(range(len(shards))))},
            tune_config=tune.TuneConfig(reuse_actors=True, search_alg=demand),
            run_config=tune.RunConfig(
                name=f"pass-{time.time_ns()}",
                storage_path=folder,
                stop=_StopWhenWanted(desk),
                # Without limit: a shard whose worker dies again and again gives up one trial after
                # the other, so that it always comes to its end.
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[desk],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception as error:  # noqa: BLE001  the border with Ray: one odd worker ends fit()
            _log.warning("Tune gave up the pass", exc_info=True)
            desk.note_collapse(_root_cause(error))
            return _last_line(error)
    return ""


def _request_worker(shard: Shard, resources: Mapping[str, float]) -> PlacementGroupFactory:
    """A worker of these resources, where the shard may be trained."""
    # A node has one of its type: a crumb of it says no more than that the node is of the type.
    type_ = {f"{_DEVICE_TYPE}{shard.device}": 0.001} if shard.device else {}
    return PlacementGroupFactory([{**resources, **type_}])


@contextmanager
def _connect(request: Request) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the one at the address."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray's logger writes to the terminal by itself; that is for the root logger to decide.
    ray_log = logging.getLogger("ray")
    ray_log.handlers.clear()
    ray_log.propagate = True
    # This one misses the files of the callbacks that are off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # It would answer SIGTERM by leaving its own children behind; `stop` decides.
    ray_utils.set_sigterm_handler = lambda _handler: None
    # A signal to our group, as `timeout` and Slurm send it, would take Ray from under the run.
    ray_services.ConsolePopen = partial(subprocess.Popen, process_group=0)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if request.address == "local":
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")  # nothing to autoscale
        code = _copied_code()
        own: dict[str, Any] = {
            "num_cpus": count_cpus(),
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,  # holds shards, not data
        }
    else:
        _knock(request.address)
        code = nullcontext()
        own = {"runtime_env": _package_code()}
    with code:
        try:
            ray.init(address=request.address, log_to_driver=False, configure_logging=False, **own)
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise ClusterError(f"no Ray at {request.address!r}: {_last_line(error)}") from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's C++ side has a handler that aborts
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _copied_code() -> Iterator[None]:
    """Let workers on this machine run a copy of this package, by the environment they start from.

    Whatever becomes of the files meanwhile, say by a switch of branches, a worker that starts later
    runs what the driver runs.
    """
    with tempfile.TemporaryDirectory(prefix="harness-", ignore_cleanup_errors=True) as folder:
        shutil.copytree(PACKAGE, Path(folder) / PACKAGE.name)
        # Python imports this at its start. Later Ray puts the current folder ahead of all others.
        (Path(folder) / "sitecustomize.py").write_text(f"import {PACKAGE.name}\n")
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        told = {"PYTHONPATH": path, COMMIT_VARIABLE: _say_commit()}
        before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _package_code() -> dict[str, Any]:
    """The same for workers on a cluster, by Ray's runtime environment."""
    return {
        "py_modules": [str(PACKAGE)],
        "env_vars": {COMMIT_VARIABLE: _say_commit()},
        "worker_process_setup_hook": _import_package,  # ahead of a checkout that a node may have
    }


def _import_package() -> None:
    """Nothing more: whoever calls it has imported the package that this file is of."""


def _say_commit() -> str:
    commit, dirty = read_commit()
    return f"{commit} dirty" if dirty else commit


class _LogStream(io.TextIOBase):
    """What Ray's threads print goes to the log, line by line, not into the progress display."""

    def write(self, text: str, /) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            _log.info("printed: %s", line)
        return len(text)


def _knock(address: str) -> None:
    """Fail within `PATIENCE` where nobody listens; Ray itself would try for minutes.

    Raises:
        ClusterError: nobody listens, or the address is none.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address}: through Ray Client the grid would run in another process than this one, "
            "and go on without it. Run this command on the cluster with --address auto: "
            "in a shell there, or by `ray job submit -- python -m harness.run GRID --address auto`"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"{address!r} is not an address: auto, or host:port as in 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray at {address}: {error}") from error


def _wait_for_nodes(request: Request, watcher: Watcher, stop: Event) -> None:
    """Return once as many nodes are up as the request wants, or `stop` is set.

    Raises:
        ClusterError: a Ray of its own will never have more than one.
    """
    wanted = request.wait_for_nodes
    if request.address == "local" and wanted > 1:
        raise ClusterError(
            f"--wait-for-nodes {wanted}: a Ray of this run's own has one node; to use a cluster "
            "give its --address"
        )
    while (up := sum(node["Alive"] for node in ray.nodes())) < wanted:
        watcher.note_waiting(up, wanted)
        if stop.wait(1.0):
            return


def _place(request: Request) -> tuple[dict[str, float], int]:
    """The resources of one worker, and how many of them there is room for now.

    Raises:
        ClusterError: no node, present or to come, could hold one worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    to_come = [dict(group.resources) for group in _list_groups(request)]
    gpus = request.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes + to_come) else 0.0
    resources = {"CPU": request.cpus_per_trial, "GPU": gpus}
    if not any(_count_room(node, resources) for node in nodes + to_come):
        there = "; ".join(sorted({_describe(node) for node in nodes + to_come}))
        raise ClusterError(
            f"a trial asks for {_describe(resources)}, and no node has as much. "
            f"The largest request a node could fulfil: {there}. "
            "See --cpus-per-trial and --gpus-per-trial"
        )
    workers = max(1, sum(_count_room(node, resources) for node in nodes))
    return resources, min(workers, request.max_concurrent or workers)


def _count_room(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many workers of these resources a node holds."""
    return min(int(node.get(name, 0) // need) for name, need in resources.items() if need > 0)


def _find_refused_groups() -> frozenset[str]:
    from ray.autoscaler.v2.sdk import get_cluster_status  # noqa: PLC0415  a check only

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return frozenset(launch.ray_node_type_name for launch in status.failed_launches)


def _list_groups(request: Request) -> list[NodeGroup]:
    """The kinds of node that an autoscaler could add; none where there is no autoscaler."""
    if request.address == "local":
        return []
    if told := cluster_state.get_cluster_config():
        return [
            NodeGroup(group.name, group.max_count, dict(group.resources))
            for group in told.node_group_configs
        ]
    try:  # the autoscaler of `ray up` tells nobody; here, on its head, is what it was given
        config = yaml.safe_load(BOOTSTRAP_FILE.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [
        NodeGroup(name, min(node["max_workers"], config["max_workers"]), node["resources"])
        for name, node in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


def _describe(resources: Mapping[str, float]) -> str:
    """'2 CPUs and 1 GPU'."""
    counts = ((resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
    return " and ".join(f"{count:g} {kind}{'s' * (count != 1)}" for count, kind in counts)


def _read_error(shipment: Shipment) -> BaseException | None:
    """What Tune has just written down, in this process, about the end of a shard's worker."""
    if path := shipment.pickled_error_file:
        return cloudpickle.loads(Path(path).read_bytes())
    path = shipment.error_file
    return RuntimeError(Path(path).read_text(encoding="utf-8")) if path else None


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _last_line(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
