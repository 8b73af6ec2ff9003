"""Hand missing trials to Ray Tune, pass after pass, until nothing more can be done.

A Tune trial is one shard (`harness.cluster.shards`): sending work to a worker costs more than a short
trial, so short trials travel together, to workers that stay warm.

Tune is not asked what came of a pass: it returns normally after an interruption, and raises when
one worker meets something it does not expect. The store is asked instead, ahead of every *pass*
(one `Tuner.fit()`) and by each worker that takes up a shard.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from harness.cluster.connection import connect
from harness.cluster.costs import count_worthwhile_workers
from harness.cluster.desk import Demand, Desk, StopWhenWanted
from harness.cluster.news import forget_news
from harness.cluster.nodes import count_room_to_come, place, wait_for_nodes
from harness.cluster.packs import TrainPack, train_with_torch
from harness.cluster.request import Request, Watcher
from harness.cluster.scratch import make_scratch
from harness.cluster.shards import (
    KEEP_EVERY,
    Due,
    Pack,
    Shard,
    Standing,
    cut_shards,
    order_packs,
    pack_trials,
)
from harness.cluster.worker import Worker
from harness.study.errors import ClusterError, last_line
from harness.study.trials import Trial
from harness.training.provenance import digest_code

if TYPE_CHECKING:
    from threading import Event

    from harness.results.store import Store

_log = logging.getLogger(__name__)


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
    """Train what the store lacks of `trials`, seed after seed, until nothing more can be done.

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

    def take(pack: Pack) -> float:
        return sum(map(estimate, pack))

    with connect(request):
        wait_for_nodes(request, watcher, stop)
        resources, workers = place(request)
        watcher.count_workers(workers)
        to_come = count_room_to_come(request, resources)
        standing = Standing.read(store, run)
        suspects: list[Pack] = []
        while not stop.is_set():
            packs = suspects or [pack for pack in pack_trials(trials) if not standing.is_over(pack)]
            if not packs:
                return
            packs = order_packs(packs, take)
            # Those who may come get their share, too.
            hands = count_worthwhile_workers(
                sum(map(take, packs)),
                present=workers,
                most=request.max_concurrent or workers + to_come,
            )
            shards: list[Shard] = [
                tuple(Due(pack, standing.attempt(pack), sum(map(limit, pack))) for pack in part)
                for part in ([[pack] for pack in suspects] or cut_shards(packs, take, hands))
            ]
            _log.info("pass: %d packs in %d shards, %d workers", len(packs), len(shards), workers)
            # Tune takes in some hundred reports a second, whatever the number of workers.
            report_every = max(1.0, 0.02 * hands)
            desk = Desk(shards, store, run, watcher, stop, news_every=report_every)
            most = 1 if suspects else request.max_concurrent
            demand = Demand(desk, estimate, most=most, workers=workers, scales=to_come > 0)
            worker_setup = {
                "shards": [ray.put(shard) for shard in shards],
                "store": store,
                "run": run,
                "on_gpu": resources["GPU"] > 0,
                "train": train,
                "keep_every": keep_every,
                "code_digest": digest_code(),
                "report_every": report_every,
            }
            complaint = _fit(worker_setup, len(shards), resources, demand, desk)
            forget_news(run)
            desk.raise_if_broken()
            before, standing = standing, Standing.read(store, run)
            suspects = [pack for pack in desk.suspects if not standing.is_over(pack)]
            if before == standing and not suspects and not stop.is_set():
                raise ClusterError(f"Ray trained nothing. {complaint}".rstrip())


def _fit(
    setup: Mapping[str, Any],
    shards: int,
    resources: Mapping[str, float],
    demand: Demand,
    desk: Desk,
) -> str:
    """One pass of Tune over the shards; returns its complaint, if it had one."""
    with make_scratch("tune") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Worker, **setup),
                tune.PlacementGroupFactory([dict(resources)]),
            ),
            param_space={"shard": tune.grid_search(list(range(shards)))},
            tune_config=tune.TuneConfig(reuse_actors=True, search_alg=demand),
            run_config=tune.RunConfig(
                name=f"pass-{time.time_ns()}",
                storage_path=str(folder),
                stop=StopWhenWanted(desk),
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
            desk.note_collapse(_find_root_cause(error))
            return last_line(error)
    return ""


def _find_root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
