"""What a folder says about itself: while a run goes on, half there, damaged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from harness.results.lease import Lease
from harness.results.store import Store
from harness.status import LATE_AFTER, Status, main
from harness.study.records import AnalysisPlan
from harness.study.terminal import printable
from tests.builders import make_failure, make_rows, make_trial

TRIALS = [make_trial(placement=arm, seed=seed) for seed in range(3) for arm in ("before", "after")]


def fail(store: Store, trial, **columns):
    store.write_failure(make_failure(trial, **columns))


@pytest.fixture
def store(location) -> Store:
    """Six planned trials: two done, one diverged, two failed, one missing; one more unplanned."""
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "name: small")
    for trial in (*TRIALS[:2], make_trial(seed=9)):
        store.write_trial(make_rows(trial))
    store.write_trial(make_rows(TRIALS[2], status="diverged"))
    fail(store, TRIALS[0])  # and was finished by a later attempt
    fail(store, TRIALS[3])
    fail(store, TRIALS[3], attempt=2)
    fail(store, TRIALS[4], kind="timeout", message="no end within 600 s")
    return store


def test_the_parts_add_up(store):
    account = "6 trials = 2 done + 1 diverged + 2 failed (1 exception, 1 timeout) + 1 missing"
    assert Status.of(store).tally.account() == account


def test_each_cell_is_counted_and_each_cause_is_named_once(store):
    lines = Status.of(store).describe().splitlines()
    assert "  digits mlp-3 before  1 done, 1 diverged, 1 failed" in lines
    assert "  digits mlp-3 after   1 done, 1 failed, 1 missing" in lines
    at = lines.index("2 x exception: ValueError: bad luck")
    assert lines[at + 1 : at + 3] == ['    File "b.py", line 7, in step', f"    {TRIALS[3].label}"]
    assert "1 attempt broke, of trials that were finished later" in lines
    assert "1 more finished trial, left out of this plan" in lines


def test_a_terminal_obeys_nothing_that_stands_in_the_results(tmp_path, capsys):
    store = Store(tmp_path)
    title, clear = "\x1b]0;owned\x07", "\x1b[2J\x9b2J"
    trial = make_trial(placement=f"af{clear}ter\r\nall done", dataset=f"digits{title}")
    store.write_plan(AnalysisPlan(grid=f"small\u202e{clear}"), [trial], "name: small")
    fail(store, trial, message=f"bad {title}\nluck", traceback=f'File "{clear}.py", line 7, in f')
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    assert "1 x exception: bad \\x1b]0;owned\\x07 luck" in said.splitlines()
    assert main([str(tmp_path), "--json"]) == 1
    said = capsys.readouterr().out.rstrip("\n")
    assert said.isprintable()
    assert json.loads(said)["failures"][0]["message"] == printable(f"bad {title}\nluck")


def test_megabytes_of_text_are_a_few_lines_at_once(tmp_path, capsys):
    huge = "x \x1b" * 1_700_000
    trials = [make_trial(placement=huge, seed=seed) for seed in range(2)]
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid=huge), trials, huge)
    for trial in trials:
        fail(store, trial, message=huge, traceback=f'File "{huge}"')
    begun = time.monotonic()
    assert main([str(tmp_path)]) == 1
    assert time.monotonic() - begun < 30
    assert len(capsys.readouterr().out) < 5_000


def test_programs_read_the_same(store, capsys):
    assert main([store.location, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["planned"] == 6
    assert said["done"] + said["diverged"] + sum(said["failed"].values()) + said["missing"] == 6
    assert said["failed"] == {"exception": 1, "timeout": 1}
    assert [sum(cell[w] for w in cell if w != "cell") for cell in said["cells"]] == [3, 3]
    assert [cause["attempts"] for cause in said["failures"]] == [2, 1]
    written = datetime.fromisoformat(said["last_activity"])
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_cells_that_differ_in_more_than_their_label_are_told_apart(tmp_path):
    store = Store(tmp_path)
    trials = [make_trial(lr=0.1), make_trial(lr=0.2)]
    store.write_plan(AnalysisPlan(grid="small"), trials, "")
    assert list(Status.of(store).count_by_cell()) == [
        "digits mlp-3 before lr=0.1",
        "digits mlp-3 before lr=0.2",
    ]


def test_a_run_that_is_going_on_is_named_and_a_dead_one_is_not(tmp_path):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    with Lease(store, "first"):
        [run] = Status.of(store).runs
        assert run.is_alive
        assert run.words.startswith("first on ")
        then = time.time() - 1e4
        os.utime(tmp_path / "active/first.json", (then, then))
        [run] = Status.of(store).runs
        assert not run.is_alive
        said = Status.of(store).describe()
        assert "going on" not in said
        assert f"ended without a word: {run.words}, last heard of 2 h 46 min ago" in said
        assert (tmp_path / "active/first.json").exists()  # who looks on removes nothing


def test_what_a_run_shows_is_shown_to_those_who_watch_its_folder(store, capsys):
    with Lease(store, "first") as lease:
        lease.describe = lambda: ["1 of 6, 2 running", "digits mlp-3 after seed 0: epoch 3/12"]
        lease.renew()
        lines = Status.of(store).describe().splitlines()
        at = next(at for at, line in enumerate(lines) if line.startswith("going on: first on "))
        assert re.fullmatch(r"  1 of 6, 2 running, as of [0-9.]+ s ago", lines[at + 1])
        assert lines[at + 2] == "    digits mlp-3 after seed 0: epoch 3/12"
        main([store.location, "--json"])
        assert json.loads(capsys.readouterr().out)["progress"] == lease.describe()


def test_what_a_run_showed_long_ago_is_said_to_be_late(tmp_path):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    with Lease(store, "first") as lease:
        lease.describe = lambda: ["1 of 6, 2 running"]
        lease.renew()
        then = time.time() - LATE_AFTER - 5
        os.utime(tmp_path / "active/first.json", (then, then))
        said = Status.of(store).describe()
    assert re.search(r"1 of 6, 2 running, as of 3. s ago; it is late, and", said)


@pytest.mark.parametrize("progress", ["text", 7, {"a": 1}, [{"a": "\x1b[2J"}, None], ["x" * 9_000]])
def test_whatever_stands_in_place_of_progress_is_shown_as_text(tmp_path, capsys, progress):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    store.place.replace("active/first.json", json.dumps({"progress": progress}).encode())
    assert main([store.location]) == 1
    said = capsys.readouterr().out
    assert "going on: first on " in said
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) < 300


def test_a_complete_folder_is_exit_code_0(tmp_path, capsys):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS[:1], "")
    store.write_trial(make_rows(TRIALS[0]))
    assert main([str(tmp_path)]) == 0
    assert "small: 1 trial = 1 done\nlast activity " in capsys.readouterr().out


def test_damaged_files_are_named_and_the_rest_is_counted(tmp_path, capsys):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    for trial in TRIALS[:3]:
        store.write_trial(make_rows(trial))
    (tmp_path / f"trials/{TRIALS[1].id}.parquet").write_bytes(b"PAR1")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "6 trials = 2 done + 4 missing" in said
    assert f"damaged: trials/{TRIALS[1].id}.parquet: not a whole Parquet file" in said


def test_files_that_are_lost_empty_or_foreign_are_named_unread(tmp_path, capsys):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS[:2], "")
    for trial in TRIALS[:2]:
        store.write_trial(make_rows(trial))
    (tmp_path / f"epochs/{TRIALS[0].id}.parquet").unlink()
    (tmp_path / f"gradients/{TRIALS[1].id}.parquet").write_bytes(b"")
    (tmp_path / "trials/notes.txt").write_text("mine", encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "damaged: trials/notes.txt: is no file of this harness",
        f"damaged: epochs/{TRIALS[0].id}.parquet: is missing",
        f"damaged: gradients/{TRIALS[1].id}.parquet: is empty",
    ]


def test_rows_without_a_plan_are_counted(tmp_path, capsys):
    store = Store(tmp_path / "rows")
    store.write_trial(make_rows(TRIALS[0]))
    assert main([store.location]) == 0
    said = capsys.readouterr().out
    assert said.startswith("rows: 1 trial = 1 done\nno plan.parquet there")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no results there: neither plan.parquet nor trials/"),
        (
            "file",
            "file/trials: a file stands where a folder is needed; move it away, or name another folder",
        ),
        ("gs://bucket", "results go to a folder or to s3://bucket/prefix"),
    ],
)
def test_what_holds_no_results_is_one_message(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main([name]) == 3
    said = capsys.readouterr().err
    assert said.startswith("harness.status: ")
    assert said.rstrip().endswith(message)
    assert said.count("\n") == 1


def test_a_reader_that_goes_away_ends_the_watch_without_a_word(tmp_path):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    command = [sys.executable, "-m", "harness.status", str(tmp_path), "--json", "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout
        assert watch.stderr
        watch.stdout.readline()
        watch.stdout.close()
        assert watch.stderr.read() == b""
        assert watch.wait() == 0


def test_watching_looks_again_until_interrupted(tmp_path):
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="small"), TRIALS, "")
    command = [sys.executable, "-m", "harness.status", str(tmp_path), "--json", "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout
        assert json.loads(watch.stdout.readline())["missing"] == 6
        store.write_trial(make_rows(TRIALS[0]))
        assert json.loads(watch.stdout.readline())["missing"] == 5
        watch.terminate()
