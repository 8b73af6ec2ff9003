"""From worker to driver while a training goes on: its epoch, its loss, its accuracy.

A worker's report to Tune comes at the end of a step, which may take hours. News goes past Tune,
through the memory of Ray's head: the latest of each worker lies there, and the driver reads them
all at once. No process more, and nothing in the store. News that is late or lost costs nobody
anything: no trial and no time.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from harness.cluster.packs import follow
from harness.cluster.ray_internals import drop_values, get_values, put_value
from harness.cluster.request import News
from harness.cluster.shards import Pack
from harness.study.records import EpochRow

PATIENCE = 1.0
"""Seconds that the driver waits for news at most."""

_log = logging.getLogger(__name__)


class Teller:
    """A worker's side: sends its latest news from a thread of its own, so that training never waits.

    Units:
        every: seconds between two messages, at least.
    """

    def __init__(
        self, run: str, *, every: float, put: Callable[[str, bytes], None] = put_value
    ) -> None:
        self._run = run
        self._every = every
        self._put = put
        self._latest: tuple[int, News]
        self._is_new = threading.Event()
        threading.Thread(target=self._send, name="news", daemon=True).start()

    def begin(self, shard: int, pack: Pack) -> Callable[[Sequence[EpochRow]], None]:
        """Tell that a training begins; returns what is to be given the rows of each epoch.

        Both return at once: what waits to be sent is replaced.
        """
        return follow(pack, partial(self._replace, shard))

    def _replace(self, shard: int, news: News) -> None:
        self._latest = shard, news
        self._is_new.set()

    def _send(self) -> None:
        while True:
            self._is_new.wait()
            self._is_new.clear()
            shard, news = self._latest
            with suppress(Exception):  # whoever lost the driver hears of it from Ray
                self._put(_name(self._run, shard), json.dumps(asdict(news)).encode())
            time.sleep(self._every)


def read_news(run: str, shards: Iterable[int]) -> list[News]:
    """The driver's side: the latest of the workers of these shards, as far as they have told any."""
    try:
        found = get_values([_name(run, shard) for shard in shards], patience=PATIENCE)
        return [News(**json.loads(value)) for value in found]
    except Exception as error:  # noqa: BLE001  Ray's own, many: a display is no reason to end a run
        _log.info("no news: %s", error)
        return []


def forget_news(run: str) -> None:
    """Leave nothing behind in a Ray that goes on after the run."""
    with suppress(Exception):
        drop_values(_name(run))


def _name(run: str, shard: int | str = "") -> str:
    return f"bn-order/{run}/{shard}"
