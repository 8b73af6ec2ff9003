"""Training without Ray: several processes in one folder, and how each of them ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event

import pytest

from harness.cluster.alone import Alone, order_packs
from harness.cluster.forecast import Forecast
from harness.progress import LineProgress
from harness.results.lease import Lease
from harness.results.store import TABLES, Store
from harness.results.tables import find_differing_columns
from harness.run import main as run
from harness.study.errors import GpuLostError
from harness.study.trials import TRAINING_VERSION
from harness.work import main as work
from tests.builders import make_failure, make_rows, make_trial
from tests.test_architecture import import_without

GRID = """
name: small
defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}
seeds: 4
grid:
  - {architecture: mlp, placement: [before, after], depth: [2, 3]}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plan a grid; returns the folder."""
    monkeypatch.chdir(tmp_path)

    def make(*overrides: str, grid: str = GRID) -> Store:
        Path("small.yaml").write_text(grid, encoding="utf-8")
        assert run(["small.yaml", *overrides, "--plan-only", "--results", "rows"]) == 0
        return Store("rows")

    return make


def begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.work", "rows", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def list_claims(store: Store) -> list[dict]:
    files = store.place.list_files("active")
    contents = (store.place.read(f"active/{file.name}") for file in files)
    return [json.loads(content) for content in contents if content]


def wait_until_at_work(
    process: subprocess.Popen[str], store: Store, *, is_training: bool = False
) -> None:
    """Until it has taken a pack; or until a heartbeat tells that this one is in training."""
    for _ in range(1_200):
        claims = [claim for claim in list_claims(store) if claim["pid"] == process.pid]
        if any(": epoch " in line for claim in claims for line in claim["progress"]):
            return
        if not is_training and any("at" in claim for claim in claims):
            return
        time.sleep(0.05)
    pytest.fail("it took nothing")


def test_it_needs_torch_pyarrow_and_the_standard_library_only():
    absent = {"ray", "pydantic", "yaml", "rich", "pandas", "altair", "scipy", "sklearn", "jinja2"}
    broken, _ = import_without(absent, ["harness.work", "harness.cluster.work", "harness.upkeep"])
    assert broken == {}


def test_a_plan_is_written_without_training_and_trained_without_ray(plan, capsys):
    store = plan("--seeds", "1")
    assert not store.finished_ids()
    assert "python -m harness.work rows" in capsys.readouterr().out
    assert work(["rows"]) == 0
    assert "small: 4 trials = 4 done, in " in capsys.readouterr().out
    assert work(["rows"]) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert {file.name for file in Path("rows").iterdir()} == {
        *("active", "epochs", "gradients", "grid.yaml", "plan.parquet", "plans", "trials"),
    }
    assert run(["small.yaml", "--seeds", "1", "--results", "rows"]) == 0
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.ray
def test_three_at_once_and_one_killed_leave_the_rows_of_a_run_on_ray(plan, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves its workers
    store = plan("--seeds", "3", "epochs=10")
    with ExitStack() as stack:
        processes = [stack.enter_context(begin()) for _ in range(3)]
        for process in processes:
            wait_until_at_work(process, store)
        taken = [claim["at"][0] for claim in list_claims(store) if "at" in claim]
        processes[0].kill()
        ends = [process.communicate()[0] for process in processes]
    assert len(set(taken)) == len(taken) > 1
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0], ends
    with Lease(store, "next"):  # whoever comes finds nobody there
        assert [claim["pid"] for claim in list_claims(store)] == [os.getpid()]
    assert run(["small.yaml", "--seeds", "3", "epochs=10", "--results", "ray"]) == 0
    there = Store("ray")
    assert store.finished_ids() == there.finished_ids() != frozenset()
    runs = set()
    for trial_id in sorted(store.finished_ids()):
        one, other = store.read_tables(trial_id), there.read_tables(trial_id)
        runs.update(one["trials"]["run"].to_pylist())
        assert [find_differing_columns(one[name], other[name]) for name in TABLES] == [[]] * 3
    assert len(runs) >= 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(plan, number, code):
    store = plan("epochs=1000")
    store.write_trial(make_rows(store.read_plan().trials[0]))
    with begin("--accept-other-code") as process:
        wait_until_at_work(process, store, is_training=True)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "interrupted: 0 trials of this run finished and kept; 1 dropped" in said
    assert "To go on: python -m harness.work rows --accept-other-code" in said
    assert "Traceback" not in said
    assert len(store.finished_ids()) == 1
    assert list_claims(store) == []


def test_when_the_minutes_are_over_nothing_has_gone_wrong(plan):
    plan("epochs=10000")
    with begin("--minutes", "0.1") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "0.1 minutes are over: 0 trials" in said
    assert "16 trials = 0 done + 16 missing" in said


def test_what_raises_becomes_failures_and_the_others_are_trained(plan, monkeypatch, capsys):
    from harness.training import train

    usual = train.train_pack

    def break_some(trials, *arguments, **options):
        if trials[0].placement == "after":
            raise ZeroDivisionError("no such number")
        return usual(trials, *arguments, **options)

    monkeypatch.setattr(train, "train_pack", break_some)
    store = plan("--seeds", "1")
    assert work(["rows"]) == 1
    said = capsys.readouterr()
    assert "4 trials = 2 done + 2 failed (2 exception)" in said.out
    assert "failed: digits mlp-2 after seed 0: exception (start 2): ZeroDivisionError" in said.err
    rows = store.read_failures()
    assert [row.attempt for row in rows] == [1, 1, 2, 2]  # once more, after all others
    assert work(["rows"]) == 1
    assert len(store.read_failures()) == 4  # this code has settled it


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_gpu_that_answers_is_used_on_and_one_that_is_lost_ends_the_process(
    plan, monkeypatch, is_lost
):
    def synchronize():
        if is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    store = plan("--seeds", "1")
    packs = order_packs(store.read_plan().trials, Random(0))
    starts = []

    def break_first(start):
        starts.append(start)
        if len(starts) == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [make_rows(trial) for trial in start.pack]

    with Lease(store, "run") as lease:
        process = Alone(
            store,
            lease,
            limit=lambda _: 60.0,
            watcher=LineProgress([trial for (trial,) in packs], Forecast(), sys.stderr, "small"),
            stop=Event(),
            on_gpu=True,
            train=break_first,
        )
        if is_lost:
            with pytest.raises(GpuLostError, match="To go on, give the command again"):
                process.train_missing(packs)
            assert store.finished_ids() == frozenset()
        else:
            process.train_missing(packs)
            assert len(store.finished_ids()) == 4
            assert [start.has_raised for start in starts] == [False] * 4 + [True]
    assert [row.kind for row in store.read_failures()] == ["exception"]


def test_what_another_is_at_is_left_until_it_is_over(plan):
    store = plan("--seeds", "1", grid=GRID.replace("[2, 3]", "2"))
    first, second = store.read_plan().trials
    facts = {"host": "elsewhere", "pid": 7, "machine": "another", "started": "2026-01-02"}
    claim = facts | {"progress": [], "at": [first.id, 1.0], "shares": True}
    store.place.replace("active/other.json", json.dumps(claim).encode())
    with begin("-v") as process:
        for _ in range(1_200):
            if store.finished_ids():
                break
            time.sleep(0.05)
        time.sleep(2)
        assert store.finished_ids() == {second.id}
        assert process.poll() is None
        store.place.remove("active/other.json")  # it has ended without a row
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert store.finished_ids() == {first.id, second.id}


def test_it_keeps_out_of_the_way_of_a_run_on_ray_and_changes_no_plan_of_others(plan, capsys):
    store = plan()
    claim = {"host": "elsewhere", "pid": 7, "machine": "another", "started": "2026-01-02"}
    store.place.replace("active/run.json", json.dumps(claim).encode())
    assert work(["rows"]) == 3
    assert "another run is going on: run on elsewhere" in capsys.readouterr().err
    assert work(["rows", "--join", "--minutes", "0.0001"]) == 0
    store.place.replace("active/run.json", json.dumps(claim | {"shares": True}).encode())
    assert work(["rows", "--seeds-per-trial", "2"]) == 2
    assert "others train this plan as it is" in capsys.readouterr().err


def test_seeds_come_one_after_the_other_and_pairs_stay_together():
    cells = [("mlp", "before", 2), ("mlp", "after", 2), ("mlp", "before", 4), ("mlp", "after", 4)]
    trials = [
        make_trial(architecture=architecture, placement=placement, depth=depth, seed=seed)
        for seed in range(4)
        for architecture, placement, depth in cells
    ]
    orders = [order_packs(trials, Random(state)) for state in range(20)]
    assert len({tuple(order) for order in orders}) > 10
    for order in orders:
        assert sorted(trial.id for (trial,) in order) == sorted(trial.id for trial in trials)
        assert [trial.seed for (trial,) in order] == [seed for seed in range(4) for _ in range(4)]
        for (one,), (other,) in zip(order[::2], order[1::2], strict=True):
            assert one.block_seed == other.block_seed
    (last, *_), *_ = reversed(order_packs(trials, Random(0), failed={trials[0].id}))
    assert last == trials[0]


def test_packs_of_another_size_are_planned_as_a_run_on_ray_plans_them(plan, capsys):
    store = plan()
    assert work(["rows", "--seeds-per-trial", "3"]) == 2
    assert (
        "a pack of 3 trains seeds 3 to 5 together; 4, 5 not among the seeds"
        in capsys.readouterr().err
    )
    assert work(["rows", "--seeds-per-trial", "2", "--minutes", "0.0001"]) == 0
    packed = store.read_plan()
    assert {trial.pack_size for trial in packed.trials} == {2}
    assert len(store.read_plans()) == 2
    assert run(["small.yaml", "--seeds-per-trial", "2", "--plan-only", "--results", "rows"]) == 0
    assert store.read_plan() == packed
    store.write_trial(make_rows(packed.trials[0]))
    assert work(["rows", "--seeds-per-trial", "4"]) == 2
    assert "1 trial of the plan" in capsys.readouterr().err


def test_a_folder_without_a_plan_that_can_be_trained_says_how_to_get_one(plan, capsys):
    assert work(["nowhere"]) == 3
    assert "no results there" in capsys.readouterr().err
    store = plan()
    older = replace(store.read_plan(), training_version=TRAINING_VERSION + 1)
    store.place.replace("plan.parquet", older.encode())
    assert work(["rows"]) == 3
    assert "python -m harness.run GRID --plan-only --results " in capsys.readouterr().err


def test_rows_of_other_code_are_not_mixed_with_new_ones(plan, capsys):
    store = plan()
    store.write_trial(make_rows(store.read_plan().trials[0], code_digest="another"))
    store.write_failure(make_failure(store.read_plan().trials[1]))
    assert work(["rows"]) == 3
    assert "add --accept-other-code" in capsys.readouterr().err


def test_a_plan_that_is_given_again_adds_what_the_tuning_stage_leads_to(plan):
    grid = GRID.replace("seeds: 4", "seeds: 2\ntuning: {lr: [0.05, 0.1], seeds: 1, epochs: 1}")
    store = plan(grid=grid)
    sizes = [len(store.read_plan().trials)]
    while not store.read_choices():
        for trial in store.read_plan().trials:
            if trial.stage != "study":  # the middle one of the rates is the best
                rows = make_rows(trial, validation_accuracy=1 - abs(trial.lr - 0.1))
                store.write_trial(rows)
        plan(grid=grid)
        sizes.append(len(store.read_plan().trials))
        assert sizes[-1] > sizes[-2]
    assert "tuned" in {trial.recipe for trial in store.read_plan().trials}
