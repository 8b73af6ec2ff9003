"""The command line: what it says, what it leaves alone, how it exits."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.errors import GridError
from harness.grid import load_grid
from harness.provenance import digest_code
from harness.records import FailureRow
from harness.run import main, select
from harness.store import Store
from tests.harness.conftest import make_rows

GRID = """
name: small
defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}
seeds: 3
grid:
  - {architecture: mlp, placement: [before, after], depth: [2, 4]}
"""


@pytest.fixture
def grid(tmp_path, monkeypatch) -> Path:
    """A grid of 12 trials, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def finish(trials, location="results/small") -> Store:
    store = Store(location)
    for trial in trials:
        store.write_trial(make_rows(trial, wall_time=1.5))
    return store


def fail(store: Store, trial, *, code_digest: str, attempts=(1, 2)) -> None:
    for attempt in attempts:
        store.write_failure(
            FailureRow(
                trial_id=trial.id,
                trial=trial.label,
                attempt=attempt,
                run="before",
                kind="exception",
                message="ValueError: bad luck",
                traceback="",
                failed_at=datetime(2026, 1, 1, tzinfo=UTC),
                host="",
                code_digest=code_digest,
            )
        )


@pytest.mark.parametrize("arguments", [["--help"], ["no-such-file.yaml"]])
def test_help_and_bad_input_need_neither_torch_nor_ray(arguments):
    absent = "import sys; sys.modules |= dict.fromkeys(['torch', 'ray', 'scipy', 'pandas']);"
    command = f"{absent} from harness.run import main; sys.exit(main({arguments}))"
    run = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=False
    )
    assert "Error" not in run.stderr
    assert run.returncode == (0 if arguments == ["--help"] else 2)


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(grid, capsys):
    assert main([str(grid), "--dry-run", "--max-concurrent", "1"]) == 0
    said = capsys.readouterr().out
    assert "small: 4 cells, 12 trials; rows in results/small" in said
    assert "digits mlp-2: before, after" in said
    assert "12 trials = 0 done + 12 missing" in said
    assert "to train   12" in said
    assert "on 1 CPU worker, guessed from the size of the networks" in said
    assert (
        "(3 seeds, power 0.8, alpha 0.05 ahead of corrections, runs varying by 1.00 points" in said
    )
    assert list(Path.cwd().iterdir()) == [grid]


def test_a_plan_rests_on_what_has_been_trained(grid, capsys):
    finish(load_grid(grid).trials[:8])
    main([str(grid), "--dry-run", "--max-concurrent", "1"])
    said = capsys.readouterr().out
    assert "12 trials = 8 done + 4 missing" in said
    assert "to train   4" in said
    assert "roughly 6.0 s on 1 CPU worker, from 8 finished trials" in said  # 1.5 s each
    assert "as seen so far" in said


def test_options_may_stand_anywhere_and_overrides_among_them(grid, capsys):
    assert main(["--seeds", "2", str(grid), "--only", "depth=4", "epochs=3", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "4 cells, 8 trials" in said
    assert "to train   4" in said


def test_a_limit_takes_the_first_missing_trials(grid, capsys):
    main([str(grid), "--dry-run", "--limit", "5"])
    assert "to train   5" in capsys.readouterr().out


def test_a_complete_grid_is_left_alone(grid, capsys):
    finish(load_grid(grid).trials)
    assert main([str(grid)]) == 0
    said = capsys.readouterr().out
    assert "small: 12 trials = 12 done, nothing to train" in said
    assert "report: python -m analysis.report results/small" in said


def test_diverged_trials_are_results(grid, capsys):
    *well, last = load_grid(grid).trials
    finish(well).write_trial(make_rows(last, status="diverged"))
    assert main([str(grid)]) == 0
    assert "12 trials = 11 done + 1 diverged, nothing to train" in capsys.readouterr().out


def test_what_failed_with_this_code_is_named_and_left_alone(grid, capsys):
    *well, last = load_grid(grid).trials
    fail(finish(well), last, code_digest=digest_code())
    assert main([str(grid)]) == 1
    said = capsys.readouterr()
    assert "12 trials = 11 done + 1 failed, nothing to train" in said.out
    assert "small.yaml --retry-failed" in said.out
    assert said.err == f"failed: {last.label}: exception (start 2): ValueError: bad luck\n"


@pytest.mark.parametrize(
    ("code_digest", "attempts", "options"),
    [
        ("of other code", (1, 2), ()),
        (digest_code(), (1,), ()),  # interrupted ahead of its second start
        (digest_code(), (1, 2), ("--retry-failed",)),
    ],
)
def test_what_may_go_well_now_is_tried_again(grid, capsys, code_digest, attempts, options):
    *well, last = load_grid(grid).trials
    fail(finish(well), last, code_digest=code_digest, attempts=attempts)
    main([str(grid), "--dry-run", *options])
    assert "to train   1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["depth"], "--only depth: write key=value, as in placement=before"),
        (["dept=2"], "--only dept=2: 'dept' is not a setting; did you mean 'depth'?"),
        (["depth=3"], "--only depth=3: no trial has it; depth is 2, 4"),
        (["depth=x"], "--only depth=x: no trial has it; depth is 2, 4"),
    ],
)
def test_a_condition_that_selects_nothing_says_why(grid, conditions, message):
    with pytest.raises(GridError) as raised:
        select(load_grid(grid).trials, conditions)
    assert raised.value.mistakes == (message,)


def test_conditions_on_one_setting_are_alternatives_on_several_they_add_up(grid):
    trials = load_grid(grid).trials
    assert select(trials, ["depth=2", "depth=4"]) == list(trials)
    found = select(trials, ["depth=2", "placement=after", "lr=0.10"])
    assert {(trial.depth, trial.placement) for trial in found} == {(2, "after")}
    assert len(found) == 3


def test_a_mistake_in_the_grid_is_printed_as_it_is(grid, capsys):
    grid.write_text(GRID.replace("before", "befor"), encoding="utf-8")
    assert main([str(grid)]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'before'?" in said
    assert said.startswith(f"{grid}:")


def test_a_results_folder_that_cannot_be_is_exit_code_3(grid, capsys):
    Path("occupied").write_text("", encoding="utf-8")
    assert main([str(grid), "--results", "occupied/small"]) == 3
    assert capsys.readouterr().err.startswith("harness.run: ")


@pytest.mark.parametrize(
    "options",
    [["--limit", "0"], ["--cpus-per-trial", "0"], ["--gpus-per-trial", "-1"], ["-v", "-q"]],
)
def test_options_out_of_range_are_refused(grid, options):
    with pytest.raises(SystemExit) as raised:
        main([str(grid), *options])
    assert raised.value.code == 2
