"""Hand missing trials to Ray Tune: place, retry, stop. The only file that knows Ray.

A *pack* is the seeds of one cell that train together. A *shard* is the packs that travel to a
worker in one Tune trial, because starting one of those costs more than a short training run. Each
trial still commits by itself, from its worker, so that a lost shard loses only what is unfinished.

Tune is not asked what came out of it: it returns normally after an interruption, and raises when
one worker meets something it does not expect. The store is asked instead, ahead of every *pass*
(one `Tuner.fit()`) and by each worker that takes up a shard.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import tempfile
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray import cloudpickle, tune
from ray._private import utils as ray_utils
from ray._private.state import state as cluster_state  # knows what an autoscaler could add
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.tune.execution.placement_groups import PlacementGroupFactory

from harness.errors import ClusterError, HarnessError
from harness.forecast import count_cpus
from harness.records import FailureRow, TrialRows
from harness.trials import Trial

if TYPE_CHECKING:
    from threading import Event

    from ray.tune.experiment import Trial as Shipment

    from harness.datasets import Images
    from harness.store import Store

Pack = tuple[Trial, ...]
TrainPack = Callable[[Pack, bool, int, str], list[TrialRows]]
"""What a worker does with a pack: (pack, on a GPU, attempt, run) -> rows."""

STARTS = 3
"""Starts of a trial in one run. A lost worker or too little memory may be bad luck."""

EXCEPTIONS = 2
"""Exceptions of a trial in one run. Training is deterministic: the second one settles it."""

SHORTEST_SHARD = 2.0
LONGEST_SHARD = 120.0
"""Seconds of estimated work: enough to pay for a Tune trial, little enough to lose."""

MOST_SHARDS = 1_000
"""Tune's own cost grows with the square of the number of its trials."""

FAILED_STARTS = 5
"""Workers that fail one after the other before they begin: the cluster is at fault, not a trial."""

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

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of Ray; `gpus_per_trial` None means one each where there are any."""

    address: str = "local"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """A trial that came to an end: `status` is that of its row, or 'failed'."""

    trial_id: str
    status: str
    test_accuracy: float
    wall_time: float


class Watcher(Protocol):
    """Is told in the driver what goes on."""

    def count_workers(self, workers: int) -> None: ...
    def note_running(self, workers: int) -> None: ...
    def note_finish(self, finish: Finish) -> None: ...


def train_with_torch(pack: Pack, on_gpu: bool, attempt: int, run: str) -> list[TrialRows]:
    """Train a pack in this process, which keeps the images it has loaded."""
    import torch  # noqa: PLC0415  only workers pay for it, the driver stays lean

    from harness.train import prepare_worker, train_pack  # noqa: PLC0415  the same

    prepare_worker(pack[0].threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    return train_pack(pack, _load_once(pack[0].dataset), device=device, attempt=attempt, run=run)


@cache
def _load_once(dataset: str) -> Images:
    from harness.datasets import load_images  # noqa: PLC0415  needs torch

    return load_images(dataset, fetch=True)  # once per node: the other workers wait for it


def train_missing(
    trials: Sequence[Trial],
    store: Store,
    request: Request,
    *,
    run: str,
    estimate: Callable[[Trial], float],
    watcher: Watcher,
    stop: Event,
    train: TrainPack = train_with_torch,
) -> None:
    """Train what the store lacks of `trials`, in their order, until nothing more can be done.

    What became of them is in the store: rows, and failures of this `run`. Returns early, within
    seconds, once `stop` is set.

    Units:
        estimate: seconds of work in a trial.
    Raises:
        ClusterError: Ray does not answer, cannot hold a trial, or cannot start a worker.
        DataError, StoreError: as met by a worker; the other workers are stopped.
    """
    printed = _LogStream()
    with redirect_stdout(printed), redirect_stderr(printed), _connect(request):
        resources, workers = _place(request)
        watcher.count_workers(workers)
        standing = Standing.read(store, run)
        while not stop.is_set():
            packs = [pack for pack in _pack(trials) if not standing.is_over(pack)]
            if not packs:
                return
            shards = [
                Shard(tuple(part), tuple(standing.attempt(pack) for pack in part))
                for part in cut_shards(packs, lambda pack: sum(map(estimate, pack)), workers)
            ]
            _log.info("pass: %d packs in %d shards, %d workers", len(packs), len(shards), workers)
            desk = _Desk(shards, store, run, watcher, stop)
            worker_setup = {
                "shards": [ray.put(shard) for shard in shards],
                "store": store,
                "run": run,
                "on_gpu": resources["GPU"] > 0,
                "train": train,
                # Tune takes in some hundred reports a second, whatever the number of workers.
                "report_every": max(1.0, 0.02 * workers),
            }
            complaint = _fit(worker_setup, len(shards), resources, request, desk)
            desk.raise_if_broken()
            before, standing = standing, Standing.read(store, run)
            if before == standing and not stop.is_set():
                raise ClusterError(f"Ray trained nothing. {complaint}".rstrip())


def find_hopeless(failures: Sequence[FailureRow]) -> frozenset[str]:
    """The trials that the training code as it is now has failed, by exception, often enough."""
    from harness.provenance import digest_code  # noqa: PLC0415  imports torch; failures are rare

    digest = digest_code()
    raised = Counter(
        row.trial_id for row in failures if row.kind == "exception" and row.code_digest == digest
    )
    return frozenset(trial_id for trial_id, times in raised.items() if times >= EXCEPTIONS)


def cut_shards(
    packs: Sequence[Pack], estimate: Callable[[Pack], float], workers: int
) -> Iterator[Sequence[Pack]]:
    """Cut the packs, in their order, into shards that get shorter towards the end.

    Each shard takes half of what a fair share of the rest would be, so that all workers come to
    their end together without a Tune trial for every pack.

    Units:
        estimate: seconds of work in a pack.
    Source:
        Polychronopoulos & Kuck 1987, doi:10.1109/TC.1987.5009495 (guided self-scheduling).
    """
    seconds = [estimate(pack) for pack in packs]
    left = sum(seconds)
    shortest = max(SHORTEST_SHARD, left / MOST_SHARDS)
    longest = max(LONGEST_SHARD, shortest)
    first, work = 0, 0.0
    for index, duration in enumerate(seconds):
        work += duration
        target = min(max(left / (2 * workers), shortest), longest)
        if work >= target or index == len(packs) - 1:
            yield packs[first : index + 1]
            left -= work
            first, work = index + 1, 0.0


def _pack(trials: Sequence[Trial]) -> list[Pack]:
    """Put the trials of one pack together, packs in the order of their first trials."""
    packs: dict[Trial, list[Trial]] = defaultdict(list)
    for trial in trials:
        packs[replace(trial, seed=trial.pack[0])].append(trial)
    return [tuple(pack) for pack in packs.values()]


@dataclass(frozen=True, slots=True)
class Shard:
    """Packs that travel together, and the number of the start each of them is due in this pass."""

    packs: tuple[Pack, ...]
    attempts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the store knows at a moment: finished trials, and by trial the failures of a run."""

    finished: frozenset[str]
    failures: Mapping[str, Sequence[FailureRow]]

    @classmethod
    def read(cls, store: Store, run: str) -> Standing:
        failures: dict[str, list[FailureRow]] = defaultdict(list)
        for row in sorted(store.read_failures(), key=lambda row: row.attempt):
            if row.run == run:
                failures[row.trial_id].append(row)
        return cls(store.finished_ids(), dict(failures))

    def attempt(self, pack: Pack) -> int:
        """Number of the pack's next start in this run, from 1."""
        return 1 + max(len(self.failures.get(trial.id, ())) for trial in pack)

    def is_over(self, pack: Pack) -> bool:
        """Is every trial of the pack finished or, for this run, given up?"""
        return all(trial.id in self.finished or self._is_given_up(trial) for trial in pack)

    def open_packs(self, shard: Shard) -> list[tuple[Pack, int]]:
        """What a worker that takes up the shard now has to train, each with its attempt.

        A pack that has raised in this pass waits for the next one, where workers are new. So the
        first pack of this list is the one that was in training when a worker was lost.
        """
        return [
            (pack, self.attempt(pack))
            for pack, attempt in zip(shard.packs, shard.attempts, strict=True)
            if not self.is_over(pack)
            and not any(
                row.attempt >= attempt and row.kind != "worker lost"
                for trial in pack
                for row in self.failures.get(trial.id, ())
            )
        ]

    def _is_given_up(self, trial: Trial) -> bool:
        kinds = [row.kind for row in self.failures.get(trial.id, ())]
        return len(kinds) >= STARTS or kinds.count("exception") >= EXCEPTIONS


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
        report_every: float,
    ) -> None:
        self._shards = shards
        self._store = store
        self._run = run
        self._on_gpu = on_gpu
        self._train = train
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
                self._packs = deque(Standing.read(self._store, self._run).open_packs(self._shard))
            while self._packs and time.monotonic() < until:
                finishes += self._train_and_commit(*self._packs.popleft())
        except HarnessError as error:  # no trial's fault: the driver ends the run with it
            return {
                "finishes": finishes,
                "broken": error,
                "done": True,
            }
        return {"finishes": finishes, "done": not self._packs}

    def _train_and_commit(self, pack: Pack, attempt: int) -> list[Finish]:
        try:
            packed = self._train(pack, self._on_gpu, attempt, self._run)
        except HarnessError:
            raise
        except Exception as error:  # the border with Ray: becomes a row, and the shard goes on
            kind = _classify(error)
            if self._on_gpu and kind == "exception":
                raise  # the process may have lost its GPU: the driver writes the row, Tune starts anew
            message = traceback.format_exception_only(error)[-1].strip()
            text = traceback.format_exc()
            for trial in pack:
                self._store.write_failure(
                    _failure(
                        trial,
                        attempt,
                        self._run,
                        kind=kind,
                        message=message,
                        text=text,
                        host=socket.gethostname(),
                    )
                )
            return [Finish(trial.id, "failed", float("nan"), float("nan")) for trial in pack]
        finishes: list[Finish] = []
        for rows in packed:
            self._store.write_trial(rows)
            row = rows.trial
            finishes.append(Finish(row.trial_id, row.status, row.test_accuracy, row.wall_time))
        return finishes


def _classify(error: BaseException) -> str:
    out_of_memory = (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's; and Ray's
        or "not enough memory" in str(error)  # torch's allocator on a CPU
    )
    return "out of memory" if out_of_memory else "exception"


def _failure(
    trial: Trial, attempt: int, run: str, *, kind: str, message: str, text: str, host: str = ""
) -> FailureRow:
    from harness.provenance import digest_code  # noqa: PLC0415  imports torch; failures are rare

    return FailureRow(
        trial_id=trial.id,
        trial=trial.label,
        attempt=attempt,
        run=run,
        kind=kind,
        message=message,
        traceback=text,
        failed_at=datetime.now(UTC),
        host=host,
        code_digest=digest_code(),
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
        self._failed_starts = 0
        self._broken: HarnessError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its settings, callbacks included, for a restore we never ask for."""
        return {}

    @property
    def wants_stop(self) -> bool:
        return self._stop.is_set() or self._broken is not None

    def raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken

    def on_trial_start(self, *_: object, trial: Shipment, **__: object) -> None:
        self._failed_starts = 0
        self._running.add(trial.config["shard"])
        self._watcher.note_running(len(self._running))

    def on_trial_result(self, *_: object, result: dict[str, Any], **__: object) -> None:
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
        """Tune has given up the pass and ended every worker: each lost the pack it was training."""
        for shard in sorted(self._running):
            self._note_loss(shard, error)

    def _note_loss(self, shard: int, error: BaseException | None) -> None:
        standing = Standing.read(self._store, self._run)
        for pack in self._shards[shard].packs:  # committed, but the report was lost with the worker
            for trial in pack:
                if trial.id in standing.finished:
                    self._report(Finish(trial.id, "done", float("nan"), float("nan")))
        open_packs = standing.open_packs(self._shards[shard])
        if not open_packs:
            return
        pack, attempt = open_packs[0]
        if isinstance(error, RayTaskError):
            kind = "exception"
        elif isinstance(error, OutOfMemoryError):
            kind = "out of memory"
        else:
            kind = "worker lost"
        _log.warning("%s: %s, start %d: %s", pack[0].label, kind, attempt, error)
        for trial in pack:
            self._store.write_failure(
                _failure(
                    trial,
                    attempt,
                    self._run,
                    kind=kind,
                    message=_last_line(error),
                    text=str(error),
                )
            )
        if Standing.read(self._store, self._run).is_over(pack):
            for trial in pack:
                self._report(Finish(trial.id, "failed", float("nan"), float("nan")))

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


def _fit(
    setup: Mapping[str, Any],
    shards: int,
    resources: Mapping[str, float],
    request: Request,
    desk: _Desk,
) -> str:
    """One pass of Tune over the shards; returns its complaint, if it had one."""
    with tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Worker, **setup), PlacementGroupFactory([dict(resources)])
            ),
            param_space={"shard": tune.grid_search(list(range(shards)))},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=request.max_concurrent
            ),
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
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if request.address == "local":
            os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")  # nothing to autoscale
            ray.init(
                address="local",
                num_cpus=count_cpus(),
                include_dashboard=False,
                object_store_memory=128 * 2**20,  # holds shards, not data
                log_to_driver=False,
                configure_logging=False,
            )
        else:
            _knock(request.address)
            package = str(Path(__file__).parent)
            ray.init(
                address=request.address,
                runtime_env={"py_modules": [package]},  # workers run the driver's code
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no Ray at {request.address!r}: {_last_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's C++ side has a handler that aborts
    try:
        yield
    finally:
        ray.shutdown()


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


def _place(request: Request) -> tuple[dict[str, float], int]:
    """The resources of one worker, and how many of them there is room for now.

    Raises:
        ClusterError: no node, present or to come, could hold one worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    config = cluster_state.get_cluster_config()
    to_come = [dict(group.resources) for group in config.node_group_configs] if config else []
    gpus = request.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes + to_come) else 0.0
    resources = {"CPU": request.cpus_per_trial, "GPU": gpus}

    def room(node: Mapping[str, float]) -> int:
        return min(int(node.get(name, 0) // need) for name, need in resources.items() if need > 0)

    if not any(room(node) for node in nodes + to_come):
        there = "; ".join(sorted({_describe(node) for node in nodes + to_come}))
        raise ClusterError(
            f"a trial asks for {_describe(resources)}, and no node has as much. "
            f"The largest request a node could fulfil: {there}. "
            "See --cpus-per-trial and --gpus-per-trial"
        )
    workers = max(1, sum(map(room, nodes)))
    return resources, min(workers, request.max_concurrent or workers)


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
