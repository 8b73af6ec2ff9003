"""What workers tell of a training reaches the driver, and holds nobody up."""

from __future__ import annotations

import itertools
import json
import threading
import time

import pytest

from harness.cluster import news
from harness.cluster.news import Teller, read_news
from harness.study.records import EpochRow
from tests.builders import make_rows, make_trial
from tests.harness.cluster.test_fanout import Notebook, train

PACK = tuple(make_trial(epochs=50, pack_size=2, seed=seed) for seed in range(2))


def make_epoch(trial, epoch, wall_time=1.0):
    row = make_rows(trial).epochs[0]
    columns = {name: getattr(row, name) for name in EpochRow.__slots__}
    return EpochRow(**columns | {"epoch": epoch, "train_loss": trial.seed, "wall_time": wall_time})


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_news_of_a_pack_are_means_over_its_seeds_and_over_its_epochs():
    sent = []
    tell = Teller("run", every=0.0, put=lambda *message: sent.append(message)).begin(3, PACK)
    wait_for(lambda: len(sent) == 1)
    for epoch, seconds in ((7, 1.0), (8, 3.0)):  # resumed after the sixth
        tell([make_epoch(trial, epoch, seconds) for trial in PACK])
        wait_for(lambda epoch=epoch: len(sent) == epoch - 5)
    told = [json.loads(value) for _, value in sent]
    assert {name for name, _ in sent} == {"bn-order/run/3"}
    assert [each["epoch"] for each in told] == [0, 7, 8]
    assert told[2]["train_loss"] == 0.5
    assert told[2]["epoch_time"] == 4.0  # of two seeds together


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_slow_or_lost_driver_holds_no_training_up_and_gets_the_latest(is_broken):
    sent, go = [], threading.Event()

    def put(name, value):
        go.wait()
        sent.append(json.loads(value)["epoch"])
        if is_broken:
            raise ConnectionError

    tell = Teller("run", every=0.0, put=put).begin(0, PACK)
    begun = time.monotonic()
    for epoch in range(1, 50):
        tell([make_epoch(PACK[0], epoch)])
    assert time.monotonic() - begun < 0.5
    go.set()
    wait_for(lambda: 49 in sent)
    assert len(sent) <= 2  # the one that was held up, and the last


def test_messages_are_as_far_apart_as_was_asked():
    sent = []
    teller = Teller("run", every=0.2, put=lambda *_: sent.append(time.monotonic()))
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        teller.begin(0, PACK)
    gaps = [after - before for before, after in itertools.pairwise(sent)]
    assert min(gaps) >= 0.2


def test_without_a_ray_there_is_no_news_and_no_error():
    assert read_news("run", [0]) == []
    news.forget_news("run")


def train_slowly(start):
    (trial,) = start.pack
    for epoch in (1, 2, 3):
        time.sleep(1.1)
        start.tell([make_epoch(trial, epoch)])
    time.sleep(1.1)
    return [make_rows(trial)]


@pytest.mark.ray
def test_the_driver_hears_of_a_training_while_it_goes_on(tmp_path):
    heard = Notebook()
    trial = make_trial()
    train([trial], tmp_path, train_slowly, limit=60.0, watcher=heard)
    epochs = [each.epoch for each in heard.news]
    assert {each.trial_id for each in heard.news} == {trial.id}
    assert epochs == sorted(epochs)
    assert {1, 2, 3} <= {*epochs}
