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

import pytest

from harness.cluster.desk import Desk
from harness.cluster.fanout import train_missing
from harness.cluster.machine import count_cpus
from harness.cluster.packs import train_with_torch
from harness.cluster.request import Request
from harness.cluster.shards import EXCEPTIONS, KEEP_EVERY, STARTS, TIMEOUTS
from harness.results.store import TABLES, Store
from harness.results.tables import find_differing_columns, to_table
from harness.study.errors import ClusterError, DataError
from tests.builders import make_rows, make_trial


def make_seed(seed):
    return make_trial(seed=seed)


class Notebook:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.finishes = []
        self.news = []

    def note_waiting(self, nodes, wanted):
        pass

    def count_workers(self, workers):
        self.workers = workers

    def note_running(self, workers):
        pass

    def note_news(self, news):
        self.news += news

    def note_finish(self, finish):
        self.finishes.append(finish)


def train(trials, location, train=train_with_torch, *, seconds=0.5, **options):
    """Fan out with a stand-in for training; the store afterwards."""
    store = Store(location)
    train_missing(
        trials,
        store,
        options.get("request", Request()),
        run="now",
        estimate=lambda _: seconds,
        limit=lambda _: options.get("limit", 3.0),
        watcher=options.get("watcher", Notebook()),
        stop=threading.Event(),
        train=train,
        keep_every=options.get("keep_every", KEEP_EVERY),
    )
    return store


class Misbehave:
    """Stands in for training: commits the fault that a trial's `stage` names, or returns its rows."""

    def __init__(self, rows):
        self._rows = rows

    def __call__(self, start):
        fault, _, when = start.pack[0].stage.partition(", ")
        if not when or (when == "once" and start.attempt == 1):
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
            replace(rows, trial=replace(rows.trial, attempt=start.attempt, run=start.run))
            for rows in (self._rows[trial.id] for trial in start.pack)
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
    start = Desk.on_trial_start

    def raise_for_culprit(self, *arguments, trial, **more):
        start(self, *arguments, trial=trial, **more)
        if (culprit,) in [due.pack for due in self._shards[trial.config["shard"]]]:
            raise RuntimeError("the raylet met something odd")

    monkeypatch.setattr(Desk, "on_trial_start", raise_for_culprit)
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
    assert f"{count_cpus()} CPU" in str(raised.value)


class KilledOnce:
    """Trains; notes each epoch, and in the first start kills its worker after the third.

    What lies there for the second start is altered ahead of that where the trial's seed is 1.
    """

    def __init__(self, folder):
        self._folder = folder

    def __call__(self, start):
        trial = start.pack[0]
        write = start.partial.write

        def write_and_note(content):
            write(content)
            notes = self._folder / f"epochs of seed {trial.seed}"
            with notes.open("a", encoding="ascii") as file:
                file.write(f"{start.attempt}\n")
            if notes.read_text(encoding="ascii") == "1\n" * 3:
                if trial.seed == 1:
                    write(bytes(content)[:-1] + b"?")
                os.kill(os.getpid(), signal.SIGKILL)

        start.partial.write = write_and_note
        return train_with_torch(start)


@pytest.mark.ray
def test_a_trial_goes_on_where_its_worker_was_killed(tmp_path):
    import torch
    from ray import cloudpickle

    from harness.training.images import load_images
    from harness.training.train import prepare_worker, train_pack

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    goes_on, begins_anew = trials = [
        make_trial(seed=seed, epochs=6, width_factor=0.1, augmentation="none") for seed in range(2)
    ]
    store = train(trials, tmp_path, KilledOnce(tmp_path), keep_every=0.0, limit=200.0)
    notes = [(tmp_path / f"epochs of seed {seed}").read_text().split() for seed in range(2)]
    assert notes[0] == ["1"] * 3 + ["2"] * 3
    assert notes[1] == ["1"] * 3 + ["2"] * 6
    assert [row.kind for row in store.read_failures()] == ["worker lost"] * 2
    assert list((tmp_path / "partial").iterdir()) == []
    threads = torch.get_num_threads()
    prepare_worker(threads=1)
    for trial in (goes_on, begins_anew):
        [calm] = train_pack([trial], load_images("digits"), device=torch.device("cpu"))
        stored = store.read_tables(trial.id)
        for name, rows in (
            ("trials", [calm.trial]),
            ("epochs", calm.epochs),
            ("gradients", calm.gradients),
        ):
            assert find_differing_columns(stored[name], to_table(rows, TABLES[name])) == []
    torch.set_num_threads(threads)
