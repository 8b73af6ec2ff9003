"""The command line: what it says, what it leaves alone, how it exits."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.cluster.forecast import Forecast
from harness.plan import refuse_other_code
from harness.results.lease import Lease
from harness.results.store import Store
from harness.results.tally import Tally
from harness.run import _log_into, main
from harness.study.errors import GridError
from harness.study.grid import load_grid
from harness.study.selection import select
from harness.study.settings import describe_settings
from harness.training.provenance import digest_code
from tests.builders import make_failure, make_rows

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


NO_FOLDER = "a file stands where a folder is needed; move it away, or name another folder"


def finish(trials, location="results/small") -> Store:
    store = Store(location)
    for trial in trials:
        store.write_trial(make_rows(trial, wall_time=1.5))
    return store


def fail(store: Store, trial, *, code_digest: str, attempts=(1, 2)) -> None:
    for attempt in attempts:
        store.write_failure(
            make_failure(trial, attempt=attempt, run="before", code_digest=code_digest)
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


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("arrays:stripe@0123456789abcdef", "stripe.npz is missing; write it with numpy.savez"),
        ("arrays:stripes@0123456789abcdef", "it holds other images. Restore it, or name these: arrays:stripes@"),
        ("imagefolder:leaves:32@0123456789abcdef", "there is no folder"),
    ],
)  # fmt: skip
def test_data_that_this_machine_lacks_is_told_ahead_of_anything(
    grid, monkeypatch, capsys, dry, dataset, told
):
    monkeypatch.setenv("BN_ORDER_DATA", str(grid.parent))
    x, half = np.zeros((400, 8, 8), np.uint8), np.arange(400) % 2
    np.savez(grid.parent / "stripes.npz", x=x, y=half, is_test=np.arange(400) >= 300)
    assert main([str(grid), f"dataset={dataset}", *dry]) == 2
    said = capsys.readouterr().err
    assert said.startswith("harness.run: ")
    assert told in said
    assert not (grid.parent / "results").exists()
    assert main([str(grid), f"dataset={dataset}", "--dry-run", "--address", "auto"]) == 0
    noted = capsys.readouterr().err
    assert noted.startswith("note: ")
    assert told in noted


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(grid, capsys):
    assert main([str(grid), "--dry-run", "--max-concurrent", "1"]) == 0
    said = capsys.readouterr().out
    assert "small: 4 cells, 12 trials; rows in results/small" in said
    assert "digits mlp-2: before, after" in said
    assert "12 trials = 0 done + 12 missing" in said
    assert "to train   12" in said
    assert "on 1 CPU worker, guessed from the size of the networks" in said
    assert (
        "(3 seeds, power 0.8, alpha 0.05 before corrections, "
        "standard deviation between seeds 1.00 points, assumed)" in said
    )
    assert list(Path.cwd().iterdir()) == [grid]


def test_a_plan_rests_on_what_has_been_trained(grid, capsys):
    finish(load_grid(grid).trials[:8])
    main([str(grid), "--dry-run", "--max-concurrent", "1"])
    said = capsys.readouterr().out
    assert "12 trials = 8 done + 4 missing" in said
    assert "to train   4" in said
    assert "roughly 14 s on 1 CPU worker, from 8 finished trials" in said  # 8 s, and 1.5 s each
    assert "as measured so far" in said


def test_a_plan_tells_apart_what_only_its_settings_do(tmp_path, capsys):
    path = tmp_path / "norms.yaml"
    path.write_text(
        "defaults: {dataset: digits, epochs: 1, warmup_epochs: 0.5, augmentation: none, depth: 4}\n"
        "seeds: 2\n"
        "grid:\n"
        "  - {architecture: mlp, placement: [before, after], norm: [batch, layer]}\n"
        "  - {architecture: mlp, placement: after, flow: before}\n",
        encoding="utf-8",
    )
    assert main([str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "  digits mlp-4 norm=batch: before, after, after with the flow of before\n" in said
    assert "  digits mlp-4 norm=layer: before, after\n" in said
    assert "detects    nothing: a cell decides nothing with fewer than 3 seeds, and here" in said


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


def test_a_command_to_copy_is_quoted(grid, capsys):
    finish(load_grid(grid).trials, "my $results")
    assert main([str(grid), "--results", "my $results"]) == 0
    assert "report: python -m analysis.report 'my $results'\n" in capsys.readouterr().out


def test_what_the_grid_may_not_mean_is_said_once_and_not_at_all_if_quiet(grid, capsys):
    main([str(grid), "--dry-run", "analysis.looks=[2, 9]"])
    note = "analysis.looks=[2, 9]: a look at 9 seeds is planned, and the grid has 3: "
    assert capsys.readouterr().err.count(note) == 1
    main([str(grid), "--dry-run", "analysis.looks=[2, 9]", "-q"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["\x1b[2J.yaml"],
        ["small.yaml", "\x1b[2J=1"],
        ["small.yaml", "--dry-run", "--only", "placement=\x1b[2J"],
        ["small.yaml", "--dry-run", "--only", "\x1b[2J"],
        ["small.yaml", "--\x1b[2J"],
        ["small.yaml", "--seeds", "\x1b[2J"],
        ["small.yaml", "--results", "\x1b[2J", "--dry-run", "--only", "lr=3"],
    ],
)
def test_an_argument_moves_no_terminal(grid, capsys, arguments):
    with contextlib.suppress(SystemExit):  # argparse's
        main(arguments)
    said = "".join(capsys.readouterr())
    assert "\\x1b[2J" in said or "lr=3" in said
    assert "\x1b" not in said


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
    assert "12 trials = 11 done + 1 failed (1 exception), nothing to train" in said.out
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
        ([""], "--only : write key=value, as in placement=before"),
        (["=2"], "--only =2: '' is not a setting"),
        (["arch=mlp"], "--only arch=mlp: 'arch' is not a setting; did you mean 'architecture'?"),
        (["dept=2"], "--only dept=2: 'dept' is not a setting; did you mean 'depth'?"),
        (["depth=3"], "--only depth=3: no trial has '3'; depth is 2, 4"),
        (["depth=x"], "--only depth=x: no trial has 'x'; depth is 2, 4"),
        (["depth="], "--only depth=: no trial has ''; depth is 2, 4"),
        (["depth=2,8"], "--only depth=2,8: no trial has '8'; depth is 2, 4"),
        (["seed=0-1"], "--only seed=0-1: no trial has '0-1'; seed is 0, 1, 2"),
        (["norm_affine=1"], "--only norm_affine=1: no trial has '1'; norm_affine is True"),
    ],
)
def test_a_condition_that_selects_nothing_says_why(grid, conditions, message):
    with pytest.raises(GridError) as raised:
        select(load_grid(grid).trials, conditions)
    assert raised.value.mistakes == (message,)


def test_of_many_values_some_are_named(grid):
    with pytest.raises(GridError) as raised:
        select(load_grid(grid, seeds="100").trials, ["seed=100"])
    some = ", ".join(map(str, range(20)))
    assert str(raised.value) == f"--only seed=100: no trial has '100'; seed is {some}, ..."


def test_conditions_that_no_trial_meets_at_once_are_named_together(grid):
    trials = load_grid(grid).trials[:1]
    other = replace(trials[0], depth=4, placement="after", program="linear act norm")
    with pytest.raises(GridError) as raised:
        select([*trials, other], ["depth=2", "placement=after"])
    assert str(raised.value) == (
        "--only depth=2 --only placement=after: no trial has all of this at once"
    )


def test_conditions_on_one_setting_are_alternatives_on_several_they_add_up(grid):
    trials = load_grid(grid).trials
    assert select(trials, ["depth=2", "depth=4"]) == list(trials)
    assert select(trials, ["depth=4, 2"]) == list(trials)
    assert len(select(trials, ["seed=0,2"])) == 8
    found = select(trials, ["depth=2", "placement=after", "lr=0.10"])
    assert {(trial.depth, trial.placement) for trial in found} == {(2, "after")}
    assert len(found) == 3


@pytest.mark.parametrize("table", ["trials", "epochs", "gradients"])
def test_a_damaged_file_is_named_and_nothing_is_trained_or_changed(grid, capsys, table):
    trials = load_grid(grid).trials
    finish(trials)
    path = Path(f"results/small/{table}/{trials[0].id}.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in Path("results").rglob("*.parquet")}
    assert main([str(grid)]) == 3
    said = capsys.readouterr().err
    assert said.startswith(
        f"harness.run: {Path.cwd()}/results/small: 1 damaged or foreign file; nothing was changed\n"
        f"  {table}/{trials[0].id}.parquet: not a whole Parquet file"
    )
    assert said.endswith("add --repair\n")
    assert {path: path.read_bytes() for path in Path("results").rglob("*.parquet")} == before


def test_of_very_many_trials_the_rows_are_read_and_the_rest_is_seen_to_be_there(
    grid, capsys, monkeypatch
):
    """Reading all of ten thousand trials takes a minute, at each start."""
    monkeypatch.setattr("harness.results.places.LocalFolder.most_checked", 3)
    first, second, *_ = trials = load_grid(grid).trials
    finish(trials)
    here = f"{Path.cwd()}/results/small"
    note = (
        f"{here}: 12 finished trials; the content of their epochs, gradients and rows read before was not checked. "
        f"To check it: python -m harness.upkeep check {here}\n"
    )
    flipped = Path(f"results/small/epochs/{first.id}.parquet")
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    assert main([str(grid)]) == 0
    assert capsys.readouterr().err == note
    Path(f"results/small/gradients/{second.id}.parquet").unlink()
    assert main([str(grid)]) == 3
    assert capsys.readouterr().err == (
        f"{note}harness.run: {here}: 1 damaged or foreign file; nothing was changed\n"
        f"  gradients/{second.id}.parquet: is missing\n"
        "To move them to damaged/ and train their trials again, add --repair\n"
    )


def test_a_log_on_a_full_disk_stays_silent(tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/now.log").symlink_to("/dev/full")
    with _log_into(str(tmp_path), "now"):
        logging.getLogger("harness").info("something")
    assert capsys.readouterr().err == ""


def test_a_repair_sets_damaged_and_foreign_files_aside_and_goes_on(grid, capsys):
    trials = load_grid(grid).trials
    store = finish(trials)
    path = Path(f"results/small/gradients/{trials[0].id}.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    foreign = Path("results/small/trials/notes.parquet")
    foreign.write_text("mine", encoding="utf-8")
    assert main([str(grid), "--repair", "--only", f"seed={trials[-1].seed}"]) == 0
    said = capsys.readouterr()
    assert "4 files set aside below damaged/" in said.err
    assert "12 trials = 11 done + 1 missing, nothing to train" in said.out
    assert store.finished_ids() == {trial.id for trial in trials[1:]}
    assert [path.read_text() for path in Path("results/small/damaged").rglob("notes*")] == ["mine"]


def test_going_on_with_other_code_stops_and_says_so(grid, capsys):
    trials = load_grid(grid).trials
    store = Store("results/small")
    for trial in trials[:3]:
        store.write_trial(make_rows(trial, code_digest="of before", commit="abc", wall_time=1.5))
    assert main([str(grid)]) == 3
    said = capsys.readouterr().err
    assert (
        "results/small: 3 finished trials of this plan come from other training code "
        "(commit abc) than this." in said
    )
    assert said.endswith("add --accept-other-code\n")
    assert store.read_plan() is None


@pytest.mark.parametrize("digest", [digest_code(), "of before"])
def test_rows_of_this_code_or_of_no_plan_of_ours_stop_nothing(grid, digest):
    trials = load_grid(grid).trials
    planned = trials if digest == digest_code() else trials[3:]
    rows = [make_rows(trial, code_digest=digest).trial for trial in trials[:3]]
    refuse_other_code(Tally.of(planned, rows, []), "results/small")


def test_a_trial_may_take_many_times_what_its_cell_took(grid):
    trial, *_, other = load_grid(grid).trials
    forecast = Forecast()
    guessed = forecast.limit(trial)
    assert guessed >= 1_200
    forecast.note(trial, 3_600.0)
    forecast.note(replace(trial, seed=7), 7_200.0)
    assert forecast.limit(replace(trial, seed=9)) == 1_200 + 10 * 7_200
    assert forecast.limit(other) > 50 * forecast.seconds(other)


def test_the_plan_is_written_by_who_holds_the_folder(grid, capsys):
    """A second run with another grid leaves the plan of the first alone."""
    store = finish(load_grid(grid).trials)
    assert main([str(grid)]) == 0
    plan = store.read_plan()
    with Lease(store, "first"):
        assert main([str(grid), "--seeds", "2"]) == 3
        assert "another run is going on: first" in capsys.readouterr().err
        assert store.read_plan() == plan
        assert main([str(grid)]) == 0  # nothing to write: in nobody's way
    assert main([str(grid), "--seeds", "2"]) == 0
    assert store.read_plan() != plan


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


def test_a_folder_of_another_grid_of_the_same_name_is_used_and_that_is_said(grid, capsys):
    """Trials are named by content: rows of both can lie in one folder and never mix."""
    first = load_grid(grid)
    store = finish(first.trials)
    main([str(grid)])
    assert capsys.readouterr().err == ""
    other = load_grid(grid, ["epochs=3"])
    finish(other.trials)
    assert main([str(grid), "epochs=3"]) == 0
    said = capsys.readouterr().err
    assert "was last used for another grid, 'small', which shares no trial with this one" in said
    assert store.finished_ids() == {trial.id for trial in first.trials + other.trials}
    assert [plan.analysis.grid for plan in store.read_plans()] == ["small", "small"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "argument --limit: '0' is not a whole number above 0"),
        (["--limit", "2.5"], "argument --limit: '2.5' is not a whole number above 0"),
        (["--limit", "x"], "argument --limit: 'x' is not a whole number above 0"),
        (["--limit", "\u0663"], "argument --limit: '\u0663' is not a whole number above 0"),
        (["--limit", "9" * 10], f"argument --limit: '{'9' * 10}' is not a whole number above 0"),
        (
            ["--price", "spot"],
            "argument --price: 'spot': write it as spot=0.30, in US dollars an hour",
        ),
        (
            ["--price", "spot=cheap"],
            "argument --price: 'spot=cheap': write it as spot=0.30, in US dollars an hour",
        ),
        (
            ["--price", "spot=nan"],
            "argument --price: 'spot=nan': write it as spot=0.30, in US dollars an hour",
        ),
        (["--address", ""], "argument --address: '' is no address; write auto, or host:port"),
        (
            ["--max-concurrent", "-1"],
            "argument --max-concurrent: '-1' is not a whole number above 0",
        ),
        (
            ["--wait-for-nodes", "two"],
            "argument --wait-for-nodes: 'two' is not a whole number above 0",
        ),
        (["--cpus-per-trial", "0"], "argument --cpus-per-trial: '0' is not a number above 0"),
        (["--cpus-per-trial", "nan"], "argument --cpus-per-trial: 'nan' is not a number above 0"),
        (["--gpus-per-trial", "-1"], "argument --gpus-per-trial: '-1' is not a number, 0 or above"),
        (
            ["--gpus-per-trial", "all"],
            "argument --gpus-per-trial: 'all' is not a number, 0 or above",
        ),
        (["--cpus-per-trial", "1_0"], "argument --cpus-per-trial: '1_0' is not a number above 0"),
        (["--trial-timeout", "inf"], "argument --trial-timeout: 'inf' is not a number above 0"),
        (["--trial-timeout", "5min"], "argument --trial-timeout: '5min' is not a number above 0"),
        (["-v", "-q"], "argument -q/--quiet: not allowed with argument -v/--verbose"),
        (["--results"], "argument --results: expected one argument"),
        (["--resume"], "unrecognized arguments: --resume"),
        (["--max", "4"], "unrecognized arguments: --max 4"),  # what is short for one may be for two
    ],
)
def test_options_that_mean_nothing_are_refused(grid, capsys, options, message):
    with pytest.raises(SystemExit) as raised:
        main([str(grid), *options])
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m harness.run: error: {message}"
    assert list(Path.cwd().iterdir()) == [grid]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: GRID"),
        ([""], "argument GRID: '' names no file, such as grids/quickstart.yaml"),
    ],
)
def test_a_grid_must_be_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"python -m harness.run: error: {message}"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("small.yaml/rows", f"{{cwd}}/small.yaml/rows/trials: {NO_FOLDER}"),
        ("gs://bucket", "gs://bucket: results go to a folder or to s3://bucket/prefix"),
        ("s3://", "s3://: name a bucket, as in s3://bucket/prefix"),
        ("", "'' names no place for rows; give a folder, or s3://bucket/prefix"),
        ("a\nb", "'a\\nb' names no place for rows; give a folder, or s3://bucket/prefix"),
    ],
)
def test_results_that_cannot_be_are_named(grid, capsys, results, message):
    assert main([str(grid), "--results", results]) == 3
    assert capsys.readouterr().err == f"harness.run: {message.format(cwd=Path.cwd())}\n"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (
            "/proc/nowhere",
            "/proc/nowhere/active/RUN.json: cannot be made here; name another folder",
        ),
        ("crowded", f"{{cwd}}/crowded/logs: {NO_FOLDER}"),
    ],
)
def test_results_that_cannot_be_written_are_named(grid, capsys, results, message):
    Path("crowded").mkdir()
    Path("crowded/logs").write_text("", encoding="utf-8")
    assert main([str(grid), "--results", results]) == 3
    said = re.sub(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}\.json", "RUN.json", capsys.readouterr().err)
    assert said == f"harness.run: {message.format(cwd=Path.cwd())}\n"


def test_an_override_of_a_margin_changes_the_plan_as_help_says(grid, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "margins.accuracy_points=1" in capsys.readouterr().out
    store = finish(load_grid(grid).trials)
    assert main([str(grid), "margins.accuracy_points=1"]) == 0
    plan = store.read_plan()
    assert plan is not None
    assert plan.analysis.margin_accuracy == 1.0


def test_one_of_a_thing_is_said_in_the_singular(grid, capsys):
    grid.write_text(GRID.replace("[before, after]", "before").replace("[2, 4]", "2"))
    main([str(grid), "--seeds", "1", "--dry-run"])
    said = capsys.readouterr().out
    assert said.startswith("small: 1 cell, 1 trial; rows in results/small\n")
    assert "so far     1 trial = 0 done + 1 missing\n" in said


def test_seeds_per_trial_is_the_pack_size_of_the_grids_trials(grid, capsys):
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "3", "--only", "pack_size=3"]) == 0
    assert "to train   12" in capsys.readouterr().out
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "2"]) == 2
    assert "a pack of 2 trains seeds 2 to 3 together" in capsys.readouterr().err


def test_the_settings_are_printed_without_a_grid(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--settings"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"{describe_settings()}\n"


@pytest.mark.parametrize("results", [[], ["--results", "here"]])
def test_rows_never_go_into_the_copy_of_a_folder_that_ray_deletes(
    grid, capsys, monkeypatch, results
):
    """There a `ray job submit --working-dir .` starts the run."""
    copy = Path("session_1/runtime_resources/working_dir_files/_ray_pkg_0123")
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert main([str(grid), *results]) == 3
    assert "Name a place that stays: --results with an absolute path" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []
    assert main([str(grid), "--dry-run", "--results", str(grid.parent / "elsewhere")]) == 0
