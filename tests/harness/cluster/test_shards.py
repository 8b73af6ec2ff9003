"""Which trials travel together, and what the store says became of each start."""

from __future__ import annotations

import heapq
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster.shards import (
    EXCEPTIONS,
    FINEST,
    LONGEST_SHARD,
    STARTS,
    TIMEOUTS,
    Due,
    Partial,
    Standing,
    cut_shards,
    find_hopeless,
    order_packs,
    pack_trials,
)
from harness.results.lease import hold
from harness.results.repair import ORPHAN_AGE, PARTIAL_AGE, find_damage, sweep
from harness.results.store import LARGEST_PARTIAL, Store
from harness.study.errors import DamagedFileError, StoreError
from harness.study.records import FailureRow
from harness.study.trials import Trial
from harness.training.provenance import digest_code
from tests import builders
from tests.builders import make_rows, make_trial


def make_failure(trial: Trial, attempt: int, kind: str, run: str = "now") -> FailureRow:
    return builders.make_failure(trial, attempt=attempt, kind=kind, run=run)


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

    def test_every_worker_gets_work_however_short_it_seems(self):
        assert len(list(cut_shards(range(2_000), lambda _: 1e-6, workers=4))) >= 4

    def test_tune_never_gets_more_trials_than_it_can_handle(self):
        shards = list(cut_shards(range(50_000), lambda _: 100.0, workers=2))
        assert len(shards) <= FINEST + 20

    def test_a_worker_takes_no_more_than_some_five_shards_where_there_are_many(self):
        assert len(list(cut_shards(range(100_000), lambda _: 600.0, workers=4_000))) < 5 * 4_000


def simulate(seconds_of_trials, cost_of_shard=lambda _number: 0.0, *, workers=4_000):
    """One driver, so many fake workers: by minute, the share of them at work; from when all are.

    `seconds_of_trials`: what the trials take in truth, where their mean is what is expected of each.
    `cost_of_shard`: seconds that the driver, which does one thing at a time, needs to send the shard
    of that number.
    """
    expected = float(np.mean(seconds_of_trials))
    shards = list(cut_shards(seconds_of_trials, lambda _: expected, workers))
    free_at = [0.0] * workers
    driver_free_at = full_from = 0.0
    begins, ends = [], []
    for number, shard in enumerate(shards):
        driver_free_at = max(driver_free_at, heapq.heappop(free_at)) + cost_of_shard(number)
        begins.append(driver_free_at)
        ends.append(driver_free_at + sum(shard))
        heapq.heappush(free_at, ends[-1])
        if number == workers - 1:
            full_from = driver_free_at
    begin_S, end_S = np.array(begins), np.array(ends)
    minutes = np.arange(full_from, end_S.max(), 60.0)
    at_work = [((begin_S <= now) & (now < end_S)).sum() / workers for now in minutes]
    return at_work, end_S.max() - minutes


def tune_cost(number):
    """Measured: 20 ms each for 1,000 trials of Tune, 37 ms each for 10,000."""
    return 0.0181 + 3.78e-6 * number


class TestManyWorkers:
    """100,000 trials on 1,000 GPUs at 0.25 a trial."""

    @pytest.mark.parametrize(
        ("seconds", "cost_of_shard"), [(60.0, lambda _number: 0.0), (600.0, tune_cost)]
    )
    def test_they_keep_4000_workers_busy_until_the_last_minute(self, seconds, cost_of_shard):
        trials = seconds * np.exp(np.random.default_rng(0).normal(0, 0.1, 100_000))
        at_work, left = map(np.array, simulate(trials, cost_of_shard))
        assert at_work[left > 60].mean() > 0.95
        assert at_work[left > trials.max()].min() > 0.95  # a trial is not cut


class TestStanding:
    """What a worker finds to do when it takes up a shard."""

    trial = make_trial()
    due = Due((trial,), 1, 60.0)

    def test_a_finished_trial_is_not_trained_again(self):
        assert standing_after(finished=[self.trial]).list_open((self.due,)) == []

    def test_a_trial_lost_with_its_worker_is_started_again_at_once(self):
        standing = standing_after(make_failure(self.trial, 1, "worker lost"))
        assert standing.list_open((self.due,)) == [replace(self.due, attempt=2)]

    def test_a_trial_that_raised_waits_for_new_workers(self):
        standing = standing_after(make_failure(self.trial, 1, "exception"))
        assert standing.list_open((self.due,)) == []
        assert not standing.is_over((self.trial,))
        assert standing.list_open((replace(self.due, attempt=2),)) == [replace(self.due, attempt=2)]

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
        due = Due(pack, 1, 60.0)
        assert standing_after(finished=pack[:1]).list_open((due,)) == [due]
        assert standing_after(finished=pack).list_open((due,)) == []

    def test_failures_of_an_earlier_run_count_for_nothing(self, tmp_path):
        store = Store(tmp_path)
        for attempt in (1, 2, 3):
            for run in ("before", "now-before"):
                store.write_failure(make_failure(self.trial, attempt, "worker lost", run=run))
        assert Standing.read(store, "now").list_open((self.due,)) == [self.due]

    def test_it_is_what_the_store_says(self, location):
        done, failed, _ = trials = [make_trial(seed=seed) for seed in range(3)]
        store = Store(location)
        store.write_trial(make_rows(done))
        store.write_failure(make_failure(failed, 1, "worker lost"))
        whole = Standing.read(store, "now")
        assert whole.finished == {done.id}
        assert [row.kind for row in whole.failures[failed.id]] == ["worker lost"]
        assert Standing.read(store, "now", [(trial,) for trial in trials]) == whole
        assert Standing.read(store, "now", [(trials[2],)]) == Standing(frozenset(), {})

    def test_whoever_takes_up_a_shard_looks_at_nothing_else(self, tmp_path):
        """Else each of a thousand shards would read what a thousand others have left."""
        store = Store(tmp_path)
        store.write_failure(make_failure(make_trial(seed=1), 1, "exception"))
        [of_another] = (tmp_path / "failures").iterdir()
        of_another.write_bytes(b"whoever reads this raises")
        with pytest.raises(DamagedFileError):
            Standing.read(store, "now")
        assert Standing.read(store, "now", [(self.trial,)]).list_open((self.due,))

    def test_a_folder_in_the_place_of_a_trial_is_named(self, tmp_path):
        (tmp_path / f"trials/{self.trial.id}.parquet").mkdir(parents=True)
        store = Store(tmp_path)
        assert Standing.read(store, "now").list_open((self.due,))
        with pytest.raises(StoreError, match=f"{self.trial.id}.parquet: a folder stands where"):
            store.write_trial(make_rows(self.trial))


def test_packs_stand_in_the_order_of_their_first_trials():
    trials = [make_trial(seed=seed, pack_size=size) for seed in range(4) for size in (1, 2)]
    seeds = [tuple(trial.seed for trial in pack) for pack in pack_trials(trials)]
    assert seeds == [(0,), (0, 1), (1,), (2,), (2, 3), (3,)]


def test_every_cell_of_a_seed_comes_before_the_next_seed_and_the_longest_first():
    depths = {8: 2.0, 14: 5.0, 20: 3.0}
    trials = [make_trial(seed=seed, depth=depth) for seed in (7, 0) for depth in depths]
    ordered = order_packs(pack_trials(trials), lambda pack: depths[pack[0].depth])
    assert [(pack[0].seed, pack[0].depth) for pack in ordered] == [
        (seed, depth) for seed in (7, 0) for depth in (14, 20, 8)
    ]


def test_only_exceptions_of_this_code_make_a_trial_hopeless():
    here, elsewhere, lost = (make_trial(seed=seed) for seed in range(3))
    rows = [
        replace(make_failure(trial, attempt, kind), code_digest=digest)
        for trial, kind, digest in (
            (here, "exception", digest_code()),
            (elsewhere, "exception", "of other code"),
            (lost, "worker lost", digest_code()),
        )
        for attempt in range(1, EXCEPTIONS + 1)
    ]
    assert find_hopeless(rows) == {here.id}
    assert find_hopeless(rows[: EXCEPTIONS - 1]) == frozenset()


class TestPartial:
    """What a training that was broken off has come to, beside the results and no part of them."""

    trial = make_trial(epochs=200)
    pack = (trial,)

    def test_the_next_start_finds_what_was_written_last(self, location):
        partial = Partial(Store(location), self.pack)
        assert partial.read() is None
        partial.write(b"epoch 10")
        partial.write(b"epoch 20")
        assert Partial(Store(location), self.pack).read() == b"epoch 20"
        assert Partial(Store(location), (make_trial(seed=1),)).read() is None

    def test_it_belongs_to_the_pack_whoever_of_it_is_asked_for(self, tmp_path):
        first, second = (make_trial(pack_size=2, seed=seed) for seed in range(2))
        Partial(Store(tmp_path), (first, second)).write(b"both")
        assert Partial(Store(tmp_path), (second,)).read() == b"both"

    def test_dropped_it_is_gone(self, location):
        Partial(Store(location), self.pack).write(b"epoch 10")
        partial = Partial(Store(location), self.pack)
        partial.read()
        partial.drop()
        assert Partial(Store(location), self.pack).read() is None

    def test_where_none_was_none_is_dropped(self, monkeypatch, tmp_path):
        """On an object store it would be a request for each of ten thousand trials."""
        monkeypatch.setattr(Store, "drop_partial", lambda *_: pytest.fail("asked"))
        Partial(Store(tmp_path), self.pack).drop()

    def test_one_listing_tells_for_a_whole_shard_which_are_there(self, monkeypatch, location):
        Partial(Store(location), self.pack).write(b"epoch 10")
        listed = Store(location).list_partials()
        assert Partial(Store(location), self.pack, listed=listed).read() == b"epoch 10"
        monkeypatch.setattr(Store, "read_partial", lambda *_: pytest.fail("asked"))
        assert Partial(Store(location), (make_trial(seed=1),), listed=listed).read() is None

    def test_a_worker_that_may_not_remove_it_goes_on(self, monkeypatch, tmp_path):
        def refuse(*_):
            raise StoreError("access denied")

        monkeypatch.setattr(Store, "drop_partial", refuse)
        partial = Partial(Store(tmp_path), self.pack)
        partial.write(b"epoch 10")
        partial.drop()

    def test_results_are_whole_with_it(self, location):
        store = Store(location)
        store.write_trial(make_rows(make_trial(seed=1)))
        Partial(store, self.pack).write(b"epoch 10")
        assert find_damage(store) == []
        assert store.finished_ids() == {make_trial(seed=1).id}

    def test_a_sweep_removes_what_is_finished_or_forgotten(self, tmp_path):
        store = Store(tmp_path)
        finished, forgotten, recent = (make_trial(seed=seed) for seed in range(3))
        now = time.time()
        for trial, age in ((finished, 2 * ORPHAN_AGE), (forgotten, 2 * PARTIAL_AGE), (recent, 1e5)):
            Partial(store, (trial,)).write(b"")
            os.utime(tmp_path / f"partial/{trial.id}.pt", (now - age, now - age))
        store.write_trial(make_rows(finished))
        with hold(store, "test") as lease:
            assert sorted(sweep(store, lease)) == sorted(
                f"partial/{trial.id}.pt" for trial in (finished, forgotten)
            )

    def test_a_file_larger_than_any_network_is_not_read(self, tmp_path):
        partial = Partial(Store(tmp_path), self.pack)
        partial.write(b"")
        os.truncate(tmp_path / f"partial/{self.trial.id}.pt", LARGEST_PARTIAL + 1)
        with pytest.raises(ValueError, match="more than a file of this store has"):
            partial.read()
