"""Every call of a commit fails once, or is the last one before the process dies.

`Mortal` counts the system calls by which `harness.results.places` changes a disk and lets the process die
at a chosen one: from then on every further call dies too, clean-up included, as after SIGKILL.
`Disk` remembers what of all this would have survived a power failure.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from harness.results.merging import merge
from harness.results.places import Bucket
from harness.results.repair import find_damage, set_aside
from harness.results.store import TABLES, Store
from harness.results.tables import encode, to_table
from harness.study.errors import StoreError
from harness.study.records import AnalysisPlan, GradientRow
from tests.builders import make_rows, make_trial

CALLS = ("open", "write", "fsync", "close", "link", "unlink", "rename", "replace", "mkdir")
FIRST, SECOND, THIRD = (make_trial(seed=seed, epochs=1, depth=1) for seed in range(3))


class Death(BaseException):
    """The process is gone."""


class Mortal:
    """System calls, the one with the given index failing by `failure`: a Death or an errno."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int, failure: int | None) -> None:
        self._left = last
        self._failure = failure
        self.reached = False
        for name in CALLS:
            monkeypatch.setattr(os, name, partial(self._attempt, name, getattr(os, name)))

    def _attempt(self, name: str, call: Callable, *arguments, **options):
        self._left -= 1
        if self._left == -1:
            self.reached = True
        if self._failure is not None and self._left == -1:
            raise OSError(self._failure, os.strerror(self._failure))
        if self._failure is None and self._left < 0:
            if self._left == -1 and name == "write":  # it dies in the middle of it
                call(arguments[0], bytes(arguments[1])[:100])
            raise Death
        return call(*arguments, **options)


def lives(
    begin: Path, folder: Path, action: Callable[[], object], failure: int | None = None
) -> Iterator[int]:
    """Run `action` on `folder` as it was in `begin`, each time one call further, until it is done.

    Yields after every run that did not come to its end.
    """
    for last in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begin, folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            mortal = Mortal(monkeypatch, last, failure)
            with suppress(Death if failure is None else StoreError):
                action()
        if not mortal.reached:
            return
        yield last


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch) -> None:
    """No power fails here, so that fsync need only be counted; it is half of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def contents(store: Store) -> dict[str, bytes | None]:
    """The files that count, with their bytes."""
    paths = [path for folder in (*TABLES, "plans") for path in store.list_paths(folder)]
    return {path: store.place.read(path) for path in paths}


def values(store: Store) -> dict[str, str]:
    """All rows by trial, as text for NaN's sake: what must survive when files are repacked."""
    found = {}
    for trial_id, stem in store.locate_trials().items():
        for name, table in store.read_tables(stem).items():
            rows = [row for row in table.to_pylist() if row["trial_id"] == trial_id]
            found[f"{name} {trial_id}"] = repr(rows)
    return found


def fill(folder: Path, *trials) -> Store:
    store = Store(folder)
    folder.mkdir(exist_ok=True)
    for trial in trials:
        store.write_trial(make_rows(trial))
    return store


def test_a_kill_at_any_call_leaves_a_trial_whole_or_missing(tmp_path):
    fill(tmp_path / "begin", SECOND)
    expected = contents(fill(tmp_path / "calm", SECOND, FIRST))
    store = Store(tmp_path / "results")
    finished_at = []
    for _ in lives(
        tmp_path / "begin", tmp_path / "results", lambda: store.write_trial(make_rows(FIRST))
    ):
        assert find_damage(store) == []
        assert SECOND.id in store.finished_ids()
        assert contents(store).items() <= expected.items()
        finished_at.append(FIRST.id in store.finished_ids())

        store.write_trial(make_rows(FIRST))  # the same command again
        assert contents(store) == expected
    assert len(finished_at) > 20
    assert finished_at == sorted(finished_at)  # missing, missing, ..., whole, whole
    assert set(finished_at) == {False, True}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_an_error_at_any_call_is_one_clear_error_and_spares_what_is_finished(tmp_path, code):
    fill(tmp_path / "begin", SECOND)
    expected = contents(fill(tmp_path / "calm", SECOND, FIRST))
    store = Store(tmp_path / "results")
    points = 0
    for _ in lives(
        tmp_path / "begin", tmp_path / "results", lambda: store.write_trial(make_rows(FIRST)), code
    ):
        points += 1
        assert find_damage(store) == []
        assert SECOND.id in store.finished_ids()
        store.write_trial(make_rows(FIRST))
        assert contents(store) == expected
    assert points > 20


def test_a_kill_while_an_orphan_is_replaced_leaves_no_damage(tmp_path):
    rows = make_rows(FIRST)
    wrong = [replace(row, act_var=9.0) for row in rows.gradients]
    content = encode(to_table(wrong, GradientRow))
    fill(tmp_path / "begin").place.replace(f"gradients/{FIRST.id}.parquet", content)
    expected = contents(fill(tmp_path / "calm", FIRST))
    store = Store(tmp_path / "results")
    for _ in lives(tmp_path / "begin", tmp_path / "results", lambda: store.write_trial(rows)):
        assert find_damage(store) == []
        store.write_trial(rows)
        assert contents(store) == expected


def test_a_kill_while_the_plan_is_written_leaves_one_plan_or_the_other(tmp_path):
    old, new = AnalysisPlan(grid="g"), AnalysisPlan(grid="g", margin_accuracy=2.0)
    fill(tmp_path / "begin", FIRST).write_plan(old, [FIRST], "old")
    store = Store(tmp_path / "results")

    def change() -> None:
        store.write_plan(new, [FIRST, SECOND], "new")

    for _ in lives(tmp_path / "begin", tmp_path / "results", change):
        plan = store.read_plan()
        assert plan is not None
        assert plan.analysis in {old, new}
        assert find_damage(store) == []
        change()
        assert store.place.read("grid.yaml") == b"new"
        assert [plan.analysis for plan in store.read_plans()] == [old, new]


@pytest.mark.slow
def test_a_kill_at_any_call_of_a_merge_can_be_mended_by_another(tmp_path):
    a, b = fill(tmp_path / "a", FIRST, SECOND), fill(tmp_path / "b", SECOND, THIRD)
    expected = values(fill(tmp_path / "calm", FIRST, SECOND, THIRD))
    a.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    fill(tmp_path / "begin")
    c = Store(tmp_path / "results")

    def join() -> None:
        merge([a, b], c, part_bytes=1)  # a part for each file

    for _ in lives(tmp_path / "begin", tmp_path / "results", join):
        assert find_damage(c) == []
        assert values(c).items() <= expected.items()
        merge([a, b], c)
        assert values(c) == expected


def test_a_kill_while_damage_is_set_aside_never_leaves_it_finished(tmp_path):
    fill(tmp_path / "begin", FIRST, SECOND)
    (tmp_path / f"begin/epochs/{FIRST.id}.parquet").write_bytes(b"PAR1")
    store = Store(tmp_path / "results")

    def repair() -> None:
        set_aside(store, find_damage(store))

    for _ in lives(tmp_path / "begin", tmp_path / "results", repair):
        repair()
        assert find_damage(store) == []
        assert store.finished_ids() == {SECOND.id}
        store.write_trial(make_rows(FIRST))
        assert find_damage(store) == []


# A bucket


class MortalBucket:
    """An S3 file system whose process dies at the request with the given index."""

    def __init__(self, real, last: int) -> None:
        self._real = real
        self._left = last
        self.reached = False

    def __getattr__(self, name: str):
        def request(*arguments, **options):
            self._left -= 1
            if self._left < 0:
                self.reached = True
                raise Death
            return getattr(self._real, name)(*arguments, **options)

        return request


def test_a_kill_at_any_request_to_a_bucket_loses_and_doubles_nothing(bucket):
    calm = Store(f"{bucket}/calm")
    for trial in (FIRST, SECOND):
        calm.write_trial(make_rows(trial))
    expected = values(calm)
    for last in itertools.count():
        store = Store(f"{bucket}/{last}")
        store.write_trial(make_rows(SECOND))
        place = store.place
        assert isinstance(place, Bucket)
        real = place._bucket
        place._bucket = mortal = MortalBucket(real, last)
        with suppress(Death):
            store.write_trial(make_rows(FIRST))
        place._bucket = real
        assert find_damage(store) == []
        assert values(store).items() <= expected.items()
        store.write_trial(make_rows(FIRST))
        assert values(store) == expected
        if not mortal.reached:
            return


# Two drivers


def test_drivers_that_race_for_the_same_trials_leave_each_of_them_once_and_whole(location):
    trials = [make_trial(seed=seed, epochs=1, depth=1) for seed in range(8)]
    ready = threading.Barrier(3)

    def drive(name: str) -> None:
        store = Store(location)
        ready.wait()
        for trial in trials:
            store.write_trial(make_rows(trial, host=name))

    drivers = [threading.Thread(target=drive, args=(name,)) for name in ("a", "b", "c")]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    store = Store(location)
    assert find_damage(store) == []
    assert [row.trial_id for row in store.read_trial_rows()] == sorted(trial.id for trial in trials)
    assert store.place.list_files("trials") == [
        file for file in store.place.list_files("trials") if not file.name.startswith(".")
    ]


# A power failure


@dataclass(eq=False)
class Inode:
    content: bytes = b""
    durable: bytes = b""
    is_folder: bool = False


@dataclass
class Disk:
    """What a disk holds, and what of it is certain to be there after a power failure.

    The content of a file is certain once the file has been synced, a name once its folder has
    been: that is all POSIX promises. Anything beyond may or may not have reached the disk.
    """

    root: Path
    names: dict[Path, Inode] = field(default_factory=dict)
    certain: dict[Path, Inode] = field(default_factory=dict)
    descriptors: dict[int, Path] = field(default_factory=dict)

    def after(self, call: str, result, arguments) -> None:
        if call == "open":
            path = Path(arguments[0])
            self.descriptors[result] = path
            if arguments[1] & os.O_CREAT:
                self.names[path] = Inode()
        elif call == "write":
            self.names[self.descriptors[arguments[0]]].content += bytes(arguments[1])
        elif call == "fsync":
            self.sync(self.descriptors[arguments[0]])
        elif call == "close":
            del self.descriptors[arguments[0]]
        elif call == "link":
            self.names[Path(arguments[1])] = self.names[Path(arguments[0])]
        elif call in {"rename", "replace"}:
            self.names[Path(arguments[1])] = self.names.pop(Path(arguments[0]))
        elif call == "unlink":
            del self.names[Path(arguments[0])]
        elif call == "mkdir":
            self.names[Path(arguments[0])] = Inode(is_folder=True)

    def sync(self, path: Path) -> None:
        if path in self.names and not self.names[path].is_folder:
            self.names[path].durable = self.names[path].content
            return
        inside = {name: inode for name, inode in self.names.items() if name.parent == path}
        self.certain = {n: i for n, i in self.certain.items() if n.parent != path} | inside

    def survivors(self) -> Iterator[dict[Path, bytes | None]]:
        """Path -> content (None for a folder) of the extreme states a failure may leave."""
        for names in (self.names, self.certain):
            for whole in (True, False):
                yield {
                    path: None if inode.is_folder else inode.content if whole else inode.durable
                    for path, inode in sorted(names.items())
                    if all(up in names for up in path.parents if self.root in up.parents)
                }


def test_a_power_failure_at_any_call_tears_nothing_and_takes_back_nothing(tmp_path):
    """`acknowledged` trials are those whose write_trial had returned."""
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root)
    acknowledged: set[str] = set()
    states: list[tuple[frozenset[str], dict[Path, bytes | None]]] = []

    def record(name: str, call: Callable, *arguments, **options):
        result = call(*arguments, **options)
        disk.after(name, result, arguments)
        states.extend((frozenset(acknowledged), left) for left in disk.survivors())
        return result

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in CALLS:
            monkeypatch.setattr(os, name, partial(record, name, getattr(os, name)))
        store = Store(root / "results")
        for trial in (FIRST, SECOND):
            store.write_trial(make_rows(trial))
            acknowledged.add(trial.id)
    states.extend((frozenset(acknowledged), left) for left in disk.survivors())

    assert len(states) > 100
    different = {(finished, tuple(files.items())) for finished, files in states}
    assert len(different) > 10
    for finished, files in different:
        shutil.rmtree(root)
        root.mkdir()
        for path, content in files:
            path.mkdir() if content is None else path.write_bytes(content)
        assert find_damage(store) == []
        assert store.finished_ids() >= finished


# Real refusals


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A disk of 256 KiB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_clear_error_and_what_is_finished_stays(tiny_disk):
    store = Store(tiny_disk / "results")
    finished = set()

    def fill_up() -> None:
        for seed in range(100):
            trial = make_trial(seed=seed)
            store.write_trial(make_rows(trial))
            finished.add(trial.id)

    with pytest.raises(StoreError, match="the disk is full; make room"):
        fill_up()
    assert finished
    assert store.finished_ids() == finished
    assert find_damage(store) == []
    assert not list(tiny_disk.rglob(".*"))


def test_a_read_only_disk_is_one_clear_error_and_can_be_read(tiny_disk):
    store = Store(tiny_disk / "results")
    store.write_trial(make_rows(FIRST))
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(StoreError, match="the file system is read-only"):
        store.write_trial(make_rows(SECOND))
    assert store.finished_ids() == {FIRST.id}
    assert find_damage(store) == []
