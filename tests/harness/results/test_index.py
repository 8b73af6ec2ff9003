"""The index of rows: many trials by one file, and never a row that a listing does not vouch for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.results import Store, find_damage, merge, take_snapshot, to_table
from harness.results.tables import decode, encode
from harness.study.errors import StoreError
from harness.study.records import AnalysisPlan, TrialRow
from tests.builders import make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(4)]


@pytest.fixture
def store(location, monkeypatch) -> Store:
    """Three finished trials, which count as many, and as long settled."""
    monkeypatch.setattr("harness.results.index.SETTLING", 0.0)
    for place in ("LocalFolder", "Bucket"):
        monkeypatch.setattr(f"harness.results.places.{place}.indexed_from", 3)
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "name: small")
    for trial in TRIALS[:3]:
        store.write_trial(make_rows(trial))
    return store


@pytest.fixture
def read(store, monkeypatch) -> Callable[[], list[str]]:
    """Take a snapshot; returns the rows that were read from files of their own."""
    paths: list[str] = []
    before = store.place.read
    monkeypatch.setattr(store.place, "read", lambda path: (paths.append(path), before(path))[1])

    def look(**options: float) -> list[str]:
        paths.clear()
        snapshot = take_snapshot(store, **options)
        assert [*snapshot.rows.values()] == store.read_trial_rows()
        return sorted({path for path in paths if path.startswith("trials/")})

    monkeypatch.setattr(store, "read_trial_rows", Store(store.location).read_trial_rows)
    return look


def path_of(number: int) -> str:
    return f"trials/{TRIALS[number].id}.parquet"


def rewrite(store: Store, number: int, **outcome: object) -> None:
    content = encode(to_table([make_rows(TRIALS[number], **outcome).trial], TrialRow))
    store.place.replace(path_of(number), content)


def test_rows_that_are_indexed_are_read_from_one_file(store, read):
    assert len(read()) == 3
    take_snapshot(store).keep_index(store)
    assert read() == []
    store.write_trial(make_rows(TRIALS[3]))
    assert read() == [path_of(3)]


def test_a_file_of_many_trials_is_indexed_as_well(store, tmp_path):
    merged = Store(tmp_path / "merged")
    merge([store], merged)
    snapshot = take_snapshot(merged)
    replace(snapshot, read_singly=3).keep_index(merged)
    again = take_snapshot(merged)
    assert (again.read_singly, again.rows, again.ids) == (0, snapshot.rows, snapshot.ids)


def test_a_file_of_another_size_is_read_again(store, read):
    take_snapshot(store).keep_index(store)
    rewrite(store, 1, host="a machine with a longer name")
    assert read() == [path_of(1)]


def test_a_file_of_another_time_is_read_again(store, read):
    take_snapshot(store).keep_index(store)
    if "://" not in store.location:  # a bucket's times cannot be set
        os.utime(Path(store.location, path_of(1)), (1, 1))
        assert read() == [path_of(1)]


def test_a_row_whose_file_is_gone_is_gone(store, read):
    take_snapshot(store).keep_index(store)
    store.place.remove(path_of(1))
    assert read() == []
    assert set(take_snapshot(store).rows) == {TRIALS[0].id, TRIALS[2].id}


def test_a_file_that_could_be_replaced_within_its_second_is_not_indexed(store, read, monkeypatch):
    monkeypatch.setattr("harness.results.index.SETTLING", 10.0)
    take_snapshot(store).keep_index(store)
    assert len(read()) == 3


def test_a_file_replaced_after_the_listing_is_not_taken_for_what_was_read(store, read):
    """The index says when a file was listed, before it was read: so it is read again."""
    snapshot = take_snapshot(store)
    rewrite(store, 1, host="a machine with a longer name")
    store.write_trial(make_rows(TRIALS[3]))
    take_snapshot(store, since=snapshot).keep_index(store)
    assert read() == [path_of(1)]


@pytest.mark.parametrize("spoil", [lambda _: b"", lambda old: old[:-9] + b"?" + old[-8:]])
def test_a_damaged_index_is_as_good_as_none(store, read, spoil):
    take_snapshot(store).keep_index(store)
    [path] = store.list_paths("index")
    store.place.replace(path, spoil(store.place.read(path)))
    assert len(read()) == 3
    assert take_snapshot(store).damage == ()


def test_an_index_of_rows_that_contradict_themselves_is_as_good_as_none(store, read):
    take_snapshot(store).keep_index(store)
    [path] = store.list_paths("index")
    table = decode(store.place.read(path), TrialRow)
    facts = {"files": table.schema.metadata[b"files"].decode()}
    seeds = table.column_names.index("seed")
    table = table.set_column(seeds, table.schema.field("seed"), [[7, 8, 9]])
    store.place.replace(path, encode(table, facts))
    assert len(read()) == 3


def test_who_looks_for_damage_reads_every_file(store, read):
    take_snapshot(store).keep_index(store)
    if "://" not in store.location:  # the same size and time: no listing can tell
        path = Path(store.location, path_of(1))
        status = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert [error.path for error in find_damage(store)] == [path_of(1)]
    else:
        assert len(read(whole_up_to=math.inf)) == 3


def test_one_index_is_kept_and_none_of_few_rows(store):
    few = take_snapshot(store)
    replace(few, read_singly=2).keep_index(store)
    assert store.list_paths("index") == []
    few.keep_index(store)
    store.write_trial(make_rows(TRIALS[3]))
    take_snapshot(store, since=few).keep_index(store)
    [path] = store.list_paths("index")
    assert decode(store.place.read(path), TrialRow).num_rows == 4


def test_who_may_not_write_goes_without(store, monkeypatch):
    def refuse(path: str, content: bytes) -> bool:
        raise StoreError(f"{path}: access denied")

    snapshot = take_snapshot(store)
    monkeypatch.setattr(store.place, "create", refuse)
    snapshot.keep_index(store)
    assert store.list_paths("index") == []
