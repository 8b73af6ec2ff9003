"""Users' own networks beside the rows: written once, read back by their digest."""

from __future__ import annotations

import pytest

from harness.results import Store, keep_networks, merge, provide_network, set_aside, take_snapshot
from harness.results.networks import path_of
from harness.study import own
from harness.study.errors import DamagedFileError
from harness.study.own import digest_source, recall
from tests.builders import make_rows, make_trial

SOURCE = "def build(shape, classes, depth): ...  # \N{SNOWMAN}\r\n"
DIGEST = digest_source(SOURCE)


@pytest.fixture
def elsewhere(monkeypatch):
    """Become a process that has come by no file yet."""
    monkeypatch.setattr(own, "_sources", {})


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "results")
    keep_networks(store, [SOURCE])
    return store


TRIAL = make_trial(architecture="nets/mine.py:build", architecture_digest=DIGEST)


@pytest.mark.usefixtures("elsewhere")
def test_a_worker_elsewhere_gets_the_file_from_the_results(store):
    assert recall(DIGEST) is None
    provide_network(store, TRIAL)
    assert recall(DIGEST) == SOURCE
    provide_network(store, make_trial())  # ours need none


def test_a_file_is_never_overwritten(store):
    file = store.place.read(path_of(DIGEST))
    keep_networks(store, [SOURCE])
    assert store.place.read(path_of(DIGEST)) == file == SOURCE.encode()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("content", [b"", b"\xff", SOURCE.encode() + b" "])
def test_a_changed_file_is_damage_and_is_set_aside(store, content):
    store.place.replace(path_of(DIGEST), content)
    for use in (lambda: provide_network(store, TRIAL), lambda: keep_networks(store, [SOURCE])):
        with pytest.raises(DamagedFileError, match="has not the content that its name promises"):
            use()
    [damage] = take_snapshot(store).damage
    assert damage.path == path_of(DIGEST)
    set_aside(store, [damage])
    keep_networks(store, [SOURCE])
    assert not take_snapshot(store).damage
    assert store.place.read(path_of(DIGEST)) == SOURCE.encode()


@pytest.mark.usefixtures("elsewhere")
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DamagedFileError, match=f"networks/{DIGEST}.py: is missing"):
        provide_network(Store(tmp_path), TRIAL)


def test_a_merge_takes_it_along(store, tmp_path):
    store.write_trial(make_rows(TRIAL))
    target = Store(tmp_path / "merged")
    merge([store], target)
    assert target.place.read(path_of(DIGEST)) == SOURCE.encode()
    assert not target.list_strangers()
