"""Two runs in one folder: the second says so."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest

from harness.results import lease
from harness.results.lease import HEARTBEAT, STALE_AFTER, Lease, list_claims
from harness.results.store import Store
from harness.study.errors import ActiveRunError, StoreError


def claim(store: Store, run: str, **facts) -> None:
    """A sign of life of a run on another machine."""
    elsewhere = {"host": "elsewhere", "pid": 7, "machine": "another", "started": "2026-01-02"}
    store.place.replace(f"active/{run}.json", json.dumps(elsewhere | facts).encode())


def names(store: Store) -> list[str]:
    return [file.name for file in store.place.list_files("active")]


def test_a_second_run_says_which_one_is_going_on(location):
    store = Store(location)
    with Lease(store, "first"):
        with pytest.raises(ActiveRunError) as error, Lease(store, "second"):
            pytest.fail("entered")
        assert names(store) == ["first.json"]
    assert f"first on {platform.node()} (process {os.getpid()}) since 20" in str(error.value)
    assert location in str(error.value)


def test_a_second_run_may_join(location):
    store = Store(location)
    with Lease(store, "first"), Lease(store, "second", join=True):
        assert names(store) == ["first.json", "second.json"]
    assert names(store) == []


def test_who_shares_works_beside_those_who_share_and_no_others(location):
    store = Store(location)
    with Lease(store, "one", shares=True) as one, Lease(store, "two", shares=True):
        assert one.has_company()
        with pytest.raises(ActiveRunError, match=r"another run is going on: one on .*; two on "):
            Lease(store, "run").__enter__()
    with Lease(store, "run") as alone:
        assert not alone.has_company()
        with pytest.raises(ActiveRunError, match="another run is going on: run on "):
            Lease(store, "one", shares=True).__enter__()
        with Lease(store, "one", shares=True, join=True):
            pass
    assert names(store) == []


def test_a_claim_that_is_written_after_the_stop_does_not_stay(location):
    store, stop = Store(location), threading.Event()
    with Lease(store, "one", shares=True, stop=stop) as lease:
        lease.take("a")
        stop.set()
        time.sleep(1.5)
        lease.leave()
    assert names(store) == []


def test_a_run_that_has_ended_is_in_nobodys_way(location):
    with Lease(Store(location), "first"):
        pass
    with Lease(Store(location), "second"):
        pass


def test_a_run_elsewhere_is_dead_after_a_stated_silence(tmp_path):
    store = Store(tmp_path)
    claim(store, "first")
    for silence, alive in ((STALE_AFTER - 10, True), (STALE_AFTER + 10, False)):
        then = time.time() - silence
        os.utime(tmp_path / "active/first.json", (then, then))
        if alive:
            with pytest.raises(ActiveRunError, match="elsewhere"), Lease(store, "second"):
                pytest.fail("entered")
        else:
            with Lease(store, "second"):
                assert names(store) == ["second.json"]


def test_a_killed_run_on_this_machine_is_dead_at_once(tmp_path):
    code = (
        "import sys, time; from harness.results.store import Store; from harness.results.lease import Lease\n"
        "with Lease(Store(sys.argv[1]), 'first'): print('in', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as first:
        assert first.stdout
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(ActiveRunError), Lease(Store(tmp_path), "second"):
            pytest.fail("entered")
        first.kill()
    with Lease(Store(tmp_path), "second"):
        pass


def test_a_long_run_gives_signs_of_life(location, monkeypatch):
    assert HEARTBEAT * 3 < STALE_AFTER
    monkeypatch.setattr(lease, "HEARTBEAT", 0.05)
    store = Store(location)
    with Lease(store, "first") as held:
        beats = []
        monkeypatch.setattr(held, "renew", lambda: beats.append(1))
        time.sleep(0.5)
        assert len(beats) >= 3


def test_a_sign_of_life_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT", 0.01)

    def refuse() -> None:
        raise StoreError("the disk is full")

    with Lease(Store(tmp_path), "first") as held:
        monkeypatch.setattr(held, "renew", refuse)
        time.sleep(0.1)
        assert held._heart.is_alive()


def test_words_that_fail_do_not_end_the_run_nor_its_signs_of_life(tmp_path):
    with Lease(Store(tmp_path), "first") as held:
        held.describe = lambda: [str(1 / 0)]
        held.renew()
        (claim,) = list_claims(Store(tmp_path).place, now=time.time())
        assert (claim.is_alive, claim.progress) == (True, ())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"pid": "x"}', b"[" * 60_000, b" " * 2**20]
)
def test_a_claim_that_cannot_be_read_is_alive_until_it_is_stale(tmp_path, content):
    store = Store(tmp_path)
    store.place.replace("active/first.json", content)
    with pytest.raises(ActiveRunError, match="first on"), Lease(store, "second"):
        pytest.fail("entered")


def test_a_claim_with_a_number_that_no_process_has_is_dead(tmp_path):
    store = Store(tmp_path)
    claim(store, "first", pid=2**40, machine=lease._machine())
    with Lease(store, "second"):
        assert names(store) == ["second.json"]


def test_a_run_that_is_told_to_stop_gives_its_claim_up_ahead_of_its_end(tmp_path):
    """`ray job stop` kills it three seconds later."""
    stop = threading.Event()
    with Lease(Store(tmp_path), "first", stop=stop) as lease:
        stop.set()
        lease._heart.join(timeout=2.5)
        assert list((tmp_path / "active").iterdir()) == []


def test_a_dead_claim_that_tells_of_progress_is_removed_as_any(tmp_path):
    store = Store(tmp_path)
    claim(store, "dead", progress=["1 of 6, 2 running"])
    os.utime(tmp_path / "active/dead.json", (0, 0))
    with Lease(store, "second"):
        assert names(store) == ["second.json"]


def test_only_claims_are_removed_and_a_date_in_the_future_is_no_sign_of_life(tmp_path):
    store = Store(tmp_path)
    claim(store, "dead")
    claim(store, "future")
    (tmp_path / "active/settings.json").write_text('{"pid": 1}')
    (tmp_path / "active/notes").write_text("mine")
    later = time.time() + 10 * STALE_AFTER
    for name, date in {"dead.json": 0, "future.json": later, "settings.json": 0}.items():
        os.utime(tmp_path / "active" / name, (date, date))
    with Lease(store, "second"):
        assert names(store) == ["notes", "second.json", "settings.json"]


def test_a_pack_is_taken_once_while_its_run_is_alive(location):
    store = Store(location)
    with Lease(store, "first") as first, Lease(store, "second", join=True) as second:
        assert first.take("a")
        assert not second.take("a")
        assert second.take("b")
        assert not first.take("b")
        first.leave()
        assert second.take("a")
        assert first.take("b")
    with Lease(store, "third") as third:
        assert third.take("b")


def test_of_two_that_take_a_pack_at_once_the_earlier_goes_on(tmp_path):
    store = Store(tmp_path)
    with Lease(store, "second") as second:
        look = Lease._is_taken
        for then, mine in ((0.0, False), (time.time() + 60, True)):

            def both(lease, pack, then=then):
                taken = look(lease, pack)
                claim(store, "first", progress=[], at=["a", then])  # after the first look
                return taken

            store.place.remove("active/first.json")
            with mock.patch.object(Lease, "_is_taken", both):
                assert second.take("a") is mine


def test_nobody_else_s_file_takes_a_pack(tmp_path):
    store = Store(tmp_path)
    with Lease(store, "second") as second:
        for at in ("a", ["a"], ["a", "now"], [1, 2.0], {"a": 1.0}, None):
            claim(store, "first", progress=[], at=at)
            assert second.take("a")
            second.leave()
