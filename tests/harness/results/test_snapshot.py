"""One look at a folder: all of it, nothing twice."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from harness.results import Store, take_snapshot, to_table
from harness.results.tables import encode
from harness.study.errors import StoreError
from harness.study.records import AnalysisPlan, TrialRow
from tests.builders import make_failure, make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(4)]


@pytest.fixture
def store(location) -> Store:
    """Four planned trials: two finished, one failed, one missing."""
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "name: small")
    for trial in TRIALS[:2]:
        store.write_trial(make_rows(trial))
    store.write_failure(make_failure(TRIALS[2]))
    return store


@pytest.fixture
def asked(store, monkeypatch) -> Counter[str]:
    """How often each folder was listed, and each file read."""
    times: Counter[str] = Counter()
    for name in ("list_entries", "read", "has"):
        call = getattr(store.place, name)

        def count(path, *, call=call, name=name, **options):
            times[f"{name} {path}"] += 1
            return call(path, **options)

        monkeypatch.setattr(store.place, name, count)
    return times


def reads(asked: Counter[str]) -> set[str]:
    return {key.removeprefix("read ").split("/")[0] for key in asked if key.startswith("read ")}


def test_a_look_finds_all_that_was_written(store):
    snapshot = take_snapshot(store, whole_up_to=math.inf)
    assert snapshot.damage == ()
    assert [*snapshot.rows.values()] == store.read_trial_rows()
    assert list(snapshot.failures) == store.read_failures()
    assert (snapshot.plan, list(snapshot.plans)) == (store.read_plan(), store.read_plans())
    assert (
        snapshot.tally(TRIALS).account() == "4 trials = 2 done + 1 failed (1 exception) + 1 missing"
    )


def test_a_folder_is_listed_once_and_a_file_read_once(store, asked):
    take_snapshot(store)
    assert set(asked.values()) == {1}
    assert reads(asked) == {"trials", "failures", "plans", "plan.parquet"}
    asked.clear()
    take_snapshot(store, whole_up_to=math.inf)
    assert set(asked.values()) == {1}
    assert reads(asked) >= {"epochs", "gradients"}


def test_a_second_look_reads_only_what_is_new(store, asked):
    before = take_snapshot(store)
    store.write_trial(make_rows(TRIALS[2]))
    asked.clear()
    after = take_snapshot(store, since=before)
    assert [key for key in asked if key.startswith(("read trials", "read failures"))] == [
        f"read trials/{TRIALS[2].id}.parquet"
    ]
    assert [*after.rows.values()] == store.read_trial_rows()
    assert after.failures == before.failures


def test_what_is_damaged_is_named_and_counts_as_missing(store):
    store.place.replace(f"trials/{TRIALS[0].id}.parquet", b"PAR1")
    snapshot = take_snapshot(store)
    assert set(snapshot.rows) == {TRIALS[1].id}
    assert snapshot.tally(TRIALS).outcome(TRIALS[0]) == "missing"
    with pytest.raises(StoreError) as refused:
        snapshot.refuse_damage()
    first, second, last = str(refused.value).splitlines()
    assert first == f"{store.location}: 1 damaged or foreign file; nothing was changed"
    assert second.startswith(f"  trials/{TRIALS[0].id}.parquet: not a whole Parquet file")
    assert last.endswith(f"python -m harness.upkeep repair {store.location}")


def test_an_arm_that_does_not_follow_from_the_settings_is_noticed(store):
    """As is an id: whoever groups by arm can rely on it."""
    row = replace(make_rows(TRIALS[0]).trial, arm="after")
    content = encode(to_table([row], TrialRow))
    store.place.replace(f"trials/{TRIALS[0].id}.parquet", content)
    [damage] = take_snapshot(store).damage
    assert damage.reason == "arm 'after' does not follow from the settings beside it"
