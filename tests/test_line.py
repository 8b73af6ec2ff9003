"""The line from end to end: a grid file goes in, rows come out, whatever happens in between."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest

from harness.results.store import Store
from harness.status import Status
from harness.study.records import Provenance

GRID = """
name: tiny
defaults: {dataset: digits, epochs: 4, warmup_epochs: 1, augmentation: none, width_factor: 0.25}
seeds: 3
grid:
  - architecture: [plain, resnet]
    placement: [before, after]
    depth: 8
"""
TRIALS = 12

TIMES_AND_PLACES = {field.name for field in fields(Provenance)} | {
    "wall_time",
    "probe_time",
    "peak_memory",
}
"""What may differ between two runs of one trial."""

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "tiny.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def start(grid: Path, results: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.run", str(grid), "--results", str(results), *options]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path.cwd(),
        process_group=0,
    )


def finish(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = run.communicate(timeout=120)
    return run.returncode, out, err


def wait_for_trials(results: Path, count: int) -> None:
    until = time.monotonic() + 90
    while len(list(results.glob("trials/[0-9a-f]*.parquet"))) < count:
        assert time.monotonic() < until, "no trial was finished"
        time.sleep(0.02)


def wait_for_the_end_of(marker: str) -> None:
    """Wait until no process of a Ray session lives that was started with `marker` around it."""
    until = time.monotonic() + 60
    while left := processes_with(marker):
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.2)


def processes_with(marker: str) -> list[str]:
    """Command lines of the living processes whose environment holds `marker`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # gone, or not ours
            continue
    return [line for line in found if line]  # a zombie has none


def tables(results: Path) -> dict[str, dict[str, object]]:
    """Trial -> what its rows say, times and places aside; NaN as text, so that it equals itself."""
    store = Store(results)
    found = {}
    for trial_id in store.finished_ids():
        found[trial_id] = {
            name: repr(
                table.drop_columns(TIMES_AND_PLACES.intersection(table.column_names)).to_pylist()
            )
            for name, table in store.read_tables(trial_id).items()
        }
    return found


@pytest.fixture(scope="module")
def undisturbed(grid, tmp_path_factory) -> tuple[Path, tuple[int, str, str]]:
    """The results of a run with two workers, and what it said."""
    results = tmp_path_factory.mktemp("undisturbed")
    return results, finish(start(grid, results, "--max-concurrent", "2"))


@pytest.fixture(scope="module")
def disturbed(grid, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """The results of a run with one worker, killed in the middle and started again.

    And what had been finished by then: trial -> its row.
    """
    results = tmp_path_factory.mktemp("disturbed")
    run = start(grid, results, "--max-concurrent", "1")
    wait_for_trials(results, 3)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = {row.trial_id: row for row in Store(results).read_trial_rows()}
    code, _, err = finish(start(grid, results, "--max-concurrent", "1"))
    assert code == 0, err
    return results, before


def test_a_grid_file_becomes_rows(undisturbed):
    results, (code, out, _) = undisturbed
    assert code == 0
    assert f"tiny: {TRIALS} trials = {TRIALS} done" in out
    assert f"report: python -m analysis.report {results}" in out
    assert len(tables(results)) == TRIALS
    plan = Store(results).read_plan()
    assert plan is not None
    assert {trial.id for trial in plan.trials} == set(tables(results))


def test_rows_depend_neither_on_a_kill_nor_on_the_number_of_workers(undisturbed, disturbed):
    assert tables(disturbed[0]) == tables(undisturbed[0])


def test_what_a_killed_run_has_finished_is_not_trained_again(disturbed):
    results, before = disturbed
    after = {row.trial_id: row for row in Store(results).read_trial_rows()}
    assert 3 <= len(before) < TRIALS
    assert {trial_id: after[trial_id] for trial_id in before} == before


def test_running_again_does_nothing_but_say_so(grid, undisturbed):
    results, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*") if path.is_file()}
    code, out, err = finish(start(grid, results))
    assert (code, err) == (0, "")
    assert f"tiny: {TRIALS} trials = {TRIALS} done, nothing to train" in out
    assert {p: p.stat().st_mtime_ns for p in results.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_stops_a_run_that_can_go_on(grid, tmp_path, monkeypatch, signum, send):
    """To all of its processes at once, as a terminal, `timeout` and Slurm send it, or to it alone."""
    marker = f"TEST_LINE={os.getpid()}-{signum}-{send.__name__}"
    monkeypatch.setenv(*marker.split("="))
    run = start(grid, tmp_path, "--max-concurrent", "1")
    monkeypatch.undo()
    wait_for_trials(tmp_path, 1)
    signalled = time.monotonic()
    send(run.pid, signum)
    code, out, err = finish(run)
    assert code == 130
    assert time.monotonic() - signalled < 20
    assert "missing" in out
    assert f"To resume: python -m harness.run {grid} --results {tmp_path} --max-concurrent 1" in err
    assert "Traceback" not in err
    wait_for_the_end_of(marker)


class Terminal:
    """A terminal, and what was written to it without its colours and movements."""

    def __init__(self) -> None:
        self._leader, self.end = os.openpty()
        self._written = bytearray()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="ignore"))

    def wait_for(self, pattern: str, seconds: float = 90.0) -> re.Match[str]:
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < until, self.text[-2_000:]
            time.sleep(0.1)
        return found

    def _read(self) -> None:
        with suppress(OSError):  # the other end is closed
            while chunk := os.read(self._leader, 65_536):
                self._written += chunk


def test_on_a_terminal_each_training_has_a_line_and_ctrl_c_says_what_came_of_it(grid, tmp_path):
    terminal = Terminal()
    command = [sys.executable, "-m", "harness.run", str(grid), "--results", str(tmp_path)]
    run = subprocess.Popen(
        [*command, "epochs=5000", "--max-concurrent", "2"],
        stdin=terminal.end,
        stdout=terminal.end,
        stderr=terminal.end,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        process_group=0,
    )
    os.close(terminal.end)
    for placement in ("before", "after"):
        terminal.wait_for(
            rf"digits \w+-8 {placement} seed 0 +[1-9]\d*/5000 +\d\.\d{{3}} +\d+\.\d %"
        )
    terminal.wait_for(r"0 of 12\s+2 running, [^,]+ elapsed, about [^,]+ left")

    until = time.monotonic() + 30
    while "seed 0: epoch " not in (seen := Status.of(Store(tmp_path)).describe()):
        assert time.monotonic() < until, seen
        time.sleep(0.5)
    assert re.search(r"  0 of 12, 2 running, .* left, as of [0-9.]+ s ago\n", seen)

    run.send_signal(signal.SIGINT)
    terminal.wait_for(
        "stopping: what 2 workers had in training is dropped unless it ends within 5 s"
    )
    terminal.wait_for(
        "interrupted: 0 trials of this run finished and kept; "
        "2 dropped, to start again or at a checkpoint"
    )
    terminal.wait_for(r"To resume: python -m harness\.run ")
    assert run.wait(timeout=30) == 130


def test_a_tuned_study_runs_at_both_recipes_and_is_done_when_both_are(tmp_path):
    grid = tmp_path / "tuned.yaml"
    grid.write_text(
        """
defaults: {dataset: digits, epochs: 1, warmup_epochs: 0.5, augmentation: none, width_factor: 0.1}
seeds: 2
tuning: {lr: [0.01, 0.1, 1.0], seeds: 1, extensions: 0}
grid: [{architecture: mlp, placement: [before, after], depth: 2}]
""",
        encoding="utf-8",
    )
    code, out, err = finish(start(grid, tmp_path / "rows"))
    assert code == 0, err
    assert "14 trials = 14 done" in out  # 2 arms x 3 rates, then 2 arms x 2 seeds x 2 recipes

    store = Store(tmp_path / "rows")
    chosen = {row.placement: row.lr for row in store.read_choices() if row.chosen}
    tuned = {(row.placement, row.lr) for row in store.read_trial_rows() if row.recipe == "tuned"}
    assert tuned == set(chosen.items())
    again = finish(start(grid, tmp_path / "rows"))
    assert again[0] == 0
    assert "nothing to train" in again[1]
