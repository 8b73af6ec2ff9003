"""What Ray may do to a trial, and what the store says afterwards."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import fanout
from harness.errors import ClusterError, DataError
from harness.fanout import (
    EXCEPTIONS,
    LONGEST_SHARD,
    STARTS,
    TIMEOUTS,
    Request,
    Shard,
    Standing,
    cut_shards,
)
from harness.records import FailureRow
from harness.store import Store
from harness.trials import Trial
from tests.harness.conftest import make_rows, make_trial


def make_failure(trial: Trial, attempt: int, kind: str, run: str = "now") -> FailureRow:
    return FailureRow(
        trial_id=trial.id,
        trial=trial.label,
        attempt=attempt,
        run=run,
        kind=kind,
        message="",
        traceback="",
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
        host="",
        code_digest="",
    )


def standing_after(*failures: FailureRow, finished=()) -> Standing:
    by_trial = {}
    for row in failures:
        by_trial.setdefault(row.trial_id, []).append(row)
    return Standing(frozenset(trial.id for trial in finished), by_trial)


class TestShards:
    @given(st.lists(st.floats(0.01, 500), max_size=200), st.integers(1, 64))
    def test_every_pack_travels_once_and_in_its_place(self, seconds, workers):
        packs = list(range(len(seconds)))
        shards = list(cut_shards(packs, seconds.__getitem__, workers))
        assert [pack for shard in shards for pack in shard] == packs
        assert all(shards)

    @given(st.lists(st.floats(0.01, 500), min_size=1, max_size=200), st.integers(1, 64))
    def test_a_shard_is_short_enough_to_lose(self, seconds, workers):
        shards = cut_shards(range(len(seconds)), seconds.__getitem__, workers)
        for shard in shards:
            assert sum(seconds[pack] for pack in shard[:-1]) < LONGEST_SHARD

    def test_shards_get_shorter_so_that_workers_end_together(self):
        lengths = [len(shard) for shard in cut_shards(range(400), lambda _: 1.0, workers=2)]
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] == 100
        assert lengths[-1] <= 2

    def test_tune_never_gets_more_trials_than_it_can_handle(self):
        shards = list(cut_shards(range(50_000), lambda _: 100.0, workers=2))
        assert len(shards) <= fanout.MOST_SHARDS + 20


class TestStanding:
    """What a worker finds to do when it takes up a shard."""

    trial = make_trial()
    shard = Shard(((trial,),), (1,), (60.0,))

    def test_a_finished_trial_is_not_trained_again(self):
        assert standing_after(finished=[self.trial]).open_packs(self.shard) == []

    def test_a_trial_lost_with_its_worker_is_started_again_at_once(self):
        standing = standing_after(make_failure(self.trial, 1, "worker lost"))
        assert standing.open_packs(self.shard) == [((self.trial,), 2)]

    def test_a_trial_that_raised_waits_for_new_workers(self):
        standing = standing_after(make_failure(self.trial, 1, "exception"))
        assert standing.open_packs(self.shard) == []
        assert not standing.is_over((self.trial,))
        assert standing.open_packs(replace(self.shard, attempts=(2,))) == [((self.trial,), 2)]

    @pytest.mark.parametrize(
        ("kind", "starts"),
        [
            ("worker lost", STARTS),
            ("out of memory", STARTS),
            ("exception", EXCEPTIONS),
            ("timeout", TIMEOUTS),
        ],
    )
    def test_a_trial_is_given_up_in_the_end(self, kind, starts):
        rows = [make_failure(self.trial, attempt, kind) for attempt in range(1, starts + 1)]
        assert not standing_after(*rows[:-1]).is_over((self.trial,))
        assert standing_after(*rows).is_over((self.trial,))

    def test_a_pack_is_trained_again_while_any_of_its_trials_lacks(self):
        pack = (make_trial(pack_size=2), make_trial(pack_size=2, seed=1))
        shard = Shard((pack,), (1,), (60.0,))
        assert standing_after(finished=pack[:1]).open_packs(shard) == [(pack, 1)]
        assert standing_after(finished=pack).open_packs(shard) == []

    def test_failures_of_an_earlier_run_count_for_nothing(self, tmp_path):
        store = Store(tmp_path)
        for attempt in (1, 2, 3):
            store.write_failure(make_failure(self.trial, attempt, "worker lost", run="before"))
        assert Standing.read(store, "now").open_packs(self.shard) == [((self.trial,), 1)]


def make_seed(seed):
    return make_trial(seed=seed)


class Notebook:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.finishes = []

    def note_waiting(self, nodes, wanted):
        self.waited_for = nodes, wanted

    def count_workers(self, workers):
        self.workers = workers

    def note_running(self, workers):
        pass

    def note_finish(self, finish):
        self.finishes.append(finish)


def train(trials, location, train=fanout.train_with_torch, *, seconds=0.5, **options):
    """Fan out with a stand-in for training; the store afterwards."""
    store = Store(location)
    fanout.train_missing(
        trials,
        store,
        options.get("request", Request()),
        run="now",
        estimate=lambda _: seconds,
        limit=lambda _: 3.0,
        watcher=options.get("watcher", Notebook()),
        stop=threading.Event(),
        train=train,
    )
    return store


class Misbehave:
    """Stands in for training: commits the fault that a trial's `stage` names, or returns its rows."""

    def __init__(self, rows):
        self._rows = rows

    def __call__(self, pack, _on_gpu, attempt, run):
        fault, _, when = pack[0].stage.partition(", ")
        if not when or (when == "once" and attempt == 1):
            match fault:
                case "raises":
                    raise ValueError("bad luck")
                case "eats its memory":
                    raise MemoryError("all gone")
                case "kills its worker":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "is slow":
                    time.sleep(2)
                case "hangs":
                    time.sleep(600)
                case "hangs and holds the interpreter":
                    re.fullmatch("(a+)+b", "a" * 60)
                case "misses its data":
                    raise DataError("no such data; fetch it")
        return [
            replace(rows, trial=replace(rows.trial, attempt=attempt, run=run))
            for rows in (self._rows[trial.id] for trial in pack)
        ]


FAULTS = ("raises", "eats its memory", "kills its worker", "hangs")


@pytest.fixture(scope="module")
def faulty():
    """One trial for each fault and for each fault that comes once, among 12 that are well."""
    return [
        *(make_trial(seed=seed) for seed in range(6)),
        *(make_trial(stage=fault) for fault in FAULTS),
        *(make_trial(stage=f"{fault}, once") for fault in FAULTS),
        *(make_trial(seed=seed) for seed in range(6, 12)),
    ]


@pytest.fixture(scope="module")
def aftermath(faulty, tmp_path_factory):
    """The store, and what was reported, after a run over all of `faulty`."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test
    notebook = Notebook()
    rows = {trial.id: make_rows(trial) for trial in faulty}
    store = train(faulty, tmp_path_factory.mktemp("faulty"), Misbehave(rows), watcher=notebook)
    return store, notebook


@pytest.mark.ray
class TestFaults:
    """All faults in one run, on one local Ray."""

    def test_the_rest_of_the_grid_is_trained(self, faulty, aftermath):
        store, _ = aftermath
        assert store.finished_ids() == {t.id for t in faulty if t.stage not in FAULTS}

    def test_each_start_that_broke_is_a_row(self, faulty, aftermath):
        store, _ = aftermath
        found = sorted((row.trial_id, row.attempt, row.kind) for row in store.read_failures())
        kinds = dict(
            zip(FAULTS, ("exception", "out of memory", "worker lost", "timeout"), strict=True)
        )
        starts = {"exception": EXCEPTIONS, "timeout": TIMEOUTS}
        expected = []
        for trial in faulty:
            fault, _, once = trial.stage.partition(", ")
            if fault in FAULTS:
                last = 1 if once else starts.get(kinds[fault], STARTS)
                expected += [(trial.id, attempt, kinds[fault]) for attempt in range(1, last + 1)]
        assert found == sorted(expected)

    def test_what_went_well_is_trained_once(self, faulty, aftermath):
        store, _ = aftermath
        attempts = {row.trial_id: row.attempt for row in store.read_trial_rows()}
        assert all(attempts[trial.id] == 1 for trial in faulty if trial.stage == "study")
        assert all(attempts[t.id] == 2 for t in faulty if t.stage.endswith("once"))

    def test_a_failure_says_what_was_raised_and_where(self, aftermath):
        store, _ = aftermath
        row = next(row for row in store.read_failures() if row.kind == "exception")
        assert row.message == "ValueError: bad luck"
        assert "in __call__" in row.traceback
        assert row.host == socket.gethostname()

    def test_a_trial_that_hangs_says_where(self, aftermath):
        store, _ = aftermath
        row = next(row for row in store.read_failures() if row.kind == "timeout")
        assert row.message == "no end within 3 s"
        assert row.traceback.rstrip().splitlines()[-2].endswith("in __call__")

    def test_what_ran_out_of_memory_says_how_large_it_was(self, aftermath):
        store, _ = aftermath
        row = next(row for row in store.read_failures() if row.kind == "out of memory")
        assert row.message == (
            "MemoryError: all gone (mlp-3, 1 times the width, batches of 128, float32)"
        )

    def test_every_trial_is_reported(self, faulty, aftermath):
        _, notebook = aftermath
        last = {finish.trial_id: finish.status for finish in notebook.finishes}
        assert last == {t.id: "failed" if t.stage in FAULTS else "done" for t in faulty}


@pytest.mark.ray
def test_missing_data_ends_the_run_with_its_own_message(tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(DataError, match="no such data; fetch it"):
        train([make_trial(stage="misses its data")], tmp_path, Misbehave({}))


@pytest.mark.ray
def test_nobody_pays_for_a_neighbour_that_makes_tune_give_up(tmp_path, monkeypatch):
    """`Tuner.fit()` raises whenever one trial starts, whoever else is in training at that moment."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    slow, culprit, well = trials = [make_trial(stage="is slow"), *map(make_seed, range(2))]
    start = fanout._Desk.on_trial_start

    def raise_for_culprit(self, *arguments, trial, **more):
        start(self, *arguments, trial=trial, **more)
        if (culprit,) in self._shards[trial.config["shard"]].packs:
            raise RuntimeError("the raylet met something odd")

    monkeypatch.setattr(fanout._Desk, "on_trial_start", raise_for_culprit)
    rows = {trial.id: make_rows(trial) for trial in (slow, well)}
    store = train(trials, tmp_path, Misbehave(rows), seconds=1000.0)
    assert store.finished_ids() == {slow.id, well.id}
    failures = store.read_failures()
    starts = [(row.trial_id, row.attempt) for row in failures]
    assert starts == [(culprit.id, attempt) for attempt in range(1, STARTS + 1)]
    # Ray quotes it with or without the name of its class, by who was the first to hear of it.
    assert all(row.message.endswith("the raylet met something odd") for row in failures)


@pytest.mark.ray
def test_a_trial_that_lets_no_watchdog_bark_is_ended_from_outside(tmp_path):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    well, hangs = make_seed(1), make_trial(stage="hangs and holds the interpreter")
    store = train([hangs, well], tmp_path, Misbehave({well.id: make_rows(well)}))
    assert store.finished_ids() == {well.id}
    found = [(row.trial_id, row.kind) for row in store.read_failures()]
    assert found == [(hangs.id, "timeout")] * TIMEOUTS


@pytest.mark.ray
def test_what_no_node_could_hold_is_an_error_that_names_what_is_there(tmp_path):
    with pytest.raises(ClusterError) as raised:
        train([make_trial()], tmp_path, request=Request(gpus_per_trial=16))
    assert "a trial asks for 1 CPU and 16 GPUs, and no node has as much" in str(raised.value)
    assert f"{fanout.count_cpus()} CPU" in str(raised.value)


class Nodes:
    """One more is up each time somebody looks."""

    def __init__(self):
        self.up = 0

    def nodes(self):
        self.up += 1
        return [{"Alive": index < self.up} for index in range(9)]


class NeverStop:
    def wait(self, _seconds):
        return False


def test_a_run_waits_for_its_nodes_and_says_so(monkeypatch):
    monkeypatch.setattr(fanout, "ray", Nodes())
    notebook = Notebook()
    fanout._wait_for_nodes(Request(address="auto", wait_for_nodes=4), notebook, NeverStop())
    assert notebook.waited_for == (3, 4)


def test_a_run_that_is_stopped_waits_no_longer(monkeypatch):
    monkeypatch.setattr(fanout, "ray", Nodes())
    stop = threading.Event()
    stop.set()
    notebook = Notebook()
    fanout._wait_for_nodes(Request(address="auto", wait_for_nodes=4), notebook, stop)
    assert notebook.waited_for == (1, 4)


def test_a_ray_of_its_own_never_has_two_nodes():
    with pytest.raises(ClusterError, match=r"--wait-for-nodes 2: .* give its --address"):
        fanout._wait_for_nodes(Request(wait_for_nodes=2), Notebook(), NeverStop())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", "'head' is not an address: auto, or host:port as in 10.0.0.1:6379"),
        ("head:port", "'head:port' is not an address"),
        ("ray://head:10001", "Run this command on the cluster with --address auto"),
    ],
)
def test_an_address_that_is_none_is_an_error(tmp_path, address, message):
    with pytest.raises(ClusterError) as raised:
        train([make_trial()], tmp_path, request=Request(address=address))
    assert message in str(raised.value)


def test_a_cluster_that_does_not_answer_is_an_error_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray at {address}: .*refused"):
            train([make_trial()], tmp_path, request=Request(address=address))
