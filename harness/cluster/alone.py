"""Train what a folder lacks in this process, beside any number of others, without Ray.

Nobody gives out work: each process takes a pack that nobody is at, and says so beside its sign of
life (`harness.results.lease`). Two at one pack would cost time and no row: a trial commits once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import TYPE_CHECKING

from harness.cluster.packs import (
    TrainPack,
    follow,
    keep_exception,
    train_and_commit,
    train_with_torch,
)
from harness.cluster.request import Finish, News, Watcher
from harness.cluster.shards import (
    KEEP_EVERY,
    Due,
    Pack,
    Partial,
    Standing,
    Start,
    find_first,
    find_hopeless,
    pack_trials,
)
from harness.study.errors import GpuLostError, HarnessError, last_line
from harness.study.trials import Trial

if TYPE_CHECKING:
    from threading import Event

    from harness.results.lease import Lease
    from harness.results.store import Store

LOOK_EVERY = 1.0
"""Seconds between two looks at what others are at, where nothing else is left."""

_log = logging.getLogger(__name__)


class Alone:
    """A process that trains pack after pack; what became of them is in the store.

    Units:
        limit: seconds after which a start of a trial counts as hanging, and ends this process.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        limit: Callable[[Trial], float],
        watcher: Watcher,
        stop: Event,
        on_gpu: bool,
        train: TrainPack = train_with_torch,
    ) -> None:
        self._store = store
        self._lease = lease
        self._limit = limit
        self._watcher = watcher
        self._stop = stop
        self._on_gpu = on_gpu
        self._train = train

    def train_missing(self, packs: Sequence[Pack]) -> None:
        """Train the packs in their order, what others are at last; returns early once stopped.

        Raises:
            HarnessError: no trial's fault; what is finished is kept.
        """
        self._watcher.count_workers(1)
        while packs and not self._stop.is_set():
            left: list[Pack] = []
            has_trained = False
            for pack in packs:
                if self._stop.is_set():
                    return
                if self._look(pack) is None:
                    continue
                if not self._lease.take(find_first(pack).id):
                    left.append(pack)
                elif standing := self._look(pack):  # again, after whoever was at it until now
                    has_trained = True
                    if not self._train_once(pack, standing):
                        left.append(pack)
            packs = left
            if packs and not has_trained:  # others are at all of it: one of them may be lost
                self._lease.leave()
                self._watcher.note_running(0)
                time.sleep(LOOK_EVERY)  # not on `stop`, whose lock the handler of a signal takes

    def _look(self, pack: Pack) -> Standing | None:
        """How the pack stands; None once each of its trials is finished, by whomever, or given up."""
        ids = {trial.id for trial in pack}
        hopeless = find_hopeless(self._store.read_failures(trial_ids=ids))
        standing = Standing.read(self._store, self._lease.run, [pack])
        is_over = all(trial.id in hopeless or standing.is_over((trial,)) for trial in pack)
        for trial in pack if is_over else ():
            status = "done" if trial.id in standing.finished else "failed"
            self._watcher.note_finish(Finish(trial.id, status))
        return None if is_over else standing

    def _train_once(self, pack: Pack, standing: Standing) -> bool:
        """One start of a pack; is it settled?"""
        due = Due(pack, standing.attempt(pack), sum(map(self._limit, pack)))
        start = Start(
            pack,
            due.attempt,
            self._lease.run,
            self._on_gpu,
            Partial(self._store, pack),
            KEEP_EVERY,
            standing.has_raised(pack),
            follow(pack, self._tell),
        )
        try:
            finishes = train_and_commit(self._store, due, start, self._train)
        except HarnessError:
            raise
        except Exception as error:  # noqa: BLE001  on a GPU: becomes a row, and maybe the end of this process
            finishes = keep_exception(self._store, due, self._lease.run, error)
            _log.warning("%s", pack[0].label, exc_info=True)
            _refuse_lost_gpu(pack)
        for finish in finishes:
            self._watcher.note_finish(finish)
        return all(finish.status != "failed" for finish in finishes)

    def _tell(self, news: News) -> None:
        self._watcher.note_news([news])
        self._watcher.note_running(1)


def order_packs(
    trials: Sequence[Trial], generator: Random, *, failed: Collection[str] = ()
) -> list[Pack]:
    """Seed after seed, so that whole pairs come first; within a seed the blocks are shuffled.

    The packs of a block, which are compared with each other, stay side by side. What has `failed`
    before comes last: it may end the process once more.
    """
    packs = pack_trials(trials)
    firsts = {pack: find_first(pack) for pack in packs}
    blocks = dict.fromkeys(first.block_seed for first in firsts.values())
    chance = {block: generator.random() for block in blocks}

    def rank(pack: Pack) -> tuple[bool, int, float]:
        has_failed = any(trial.id in failed for trial in pack)
        return has_failed, firsts[pack].seed, chance[firsts[pack].block_seed]

    return sorted(packs, key=rank)


def _refuse_lost_gpu(pack: Pack) -> None:
    import torch  # noqa: PLC0415  who trains has it

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise GpuLostError(
            f"{pack[0].label} has cost this process its GPU ({last_line(error)}); its failure and "
            "what is finished are kept. To go on, give the command again"
        ) from error
