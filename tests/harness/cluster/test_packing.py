"""How many seeds train at a time: what is kept, what is measured, what is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from harness.cluster.packing import (
    apply_sizes,
    choose_size,
    describe_choice,
    list_sizes,
    network_of,
    settle_packs,
    time_packs,
)
from harness.results.store import Store
from harness.run import main
from harness.study.errors import GridError
from harness.study.grid import load_grid
from tests.harness.conftest import make_rows

GRID = """
name: small
defaults: {dataset: digits, epochs: 1, warmup_epochs: 0, augmentation: none, width_factor: 0.25}
seeds: 2
grid:
  - {architecture: mlp, placement: [before, after], depth: 2}
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def cell(trial_of, seeds, *args, **settings):
    return [trial_of(*args, seed=seed, **settings) for seed in seeds]


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.9}, 2),
        ({1: 1.0, 2: 0.91, 5: 0.95}, 1),
        ({1: 1.0, 2: 0.6, 5: 0.4, 10: 0.5}, 5),
        ({1: 1.0, 2: 0.5, 5: 0.5}, 2),  # no more than needed
        ({1: 1.0, 2: 0.5, 5: math.inf, 10: math.inf}, 2),
        ({1: math.inf, 2: math.inf}, 1),
    ],
)
def test_the_fastest_size_is_taken_if_it_saves_a_tenth(seconds, size):
    assert choose_size(seconds) == size


@pytest.mark.parametrize(
    ("seeds", "sizes"),
    [
        (range(1), [1]),
        (range(3), [1, 3]),
        (range(5), [1, 5]),
        (range(10), [1, 2, 5, 10]),
        (range(12), [1, 2]),
        (range(20), [1, 2, 5, 10]),
        ([2, 3], [1, 2]),
        ([1, 2], [1]),  # packs are aligned: 1 belongs to 0
    ],
)
def test_only_sizes_that_the_seeds_fill_are_tried(trial_of, seeds, sizes):
    assert list_sizes(cell(trial_of, seeds)) == sizes


def test_torchvisions_networks_train_one_seed_at_a_time(trial_of):
    trials = cell(trial_of, range(10))
    models = [replace(trial, architecture="torchvision/resnet18", depth=18) for trial in trials]
    assert list_sizes(models) == [1]


def test_all_arms_of_a_network_get_what_its_first_arm_was_measured_with(trial_of):
    trials = [
        *cell(trial_of, range(2), "plain", "before"),
        *cell(trial_of, range(2), "plain", "after"),
        *cell(trial_of, range(2), "mlp"),
    ]
    asked = []

    def probe(cells):
        asked.extend(cells)
        return [{1: 1.0, 2: 0.5}, {1: 1.0, 2: 1.0}]

    settled, lines = settle_packs(trials, [], probe)
    assert asked == [(trials[0], [1, 2]), (trials[4], [1, 2])]
    assert [trial.pack_size for trial in settled] == [2, 2, 2, 2, 1, 1]
    assert [replace(trial, pack_size=1) for trial in settled] == trials
    assert len(lines) == 2


def test_a_network_keeps_what_it_was_planned_with_and_only_new_ones_are_measured(trial_of):
    known, new = cell(trial_of, range(2), "plain"), cell(trial_of, range(2), "mlp")
    planned = apply_sizes(known, {network_of(known[0]): 2})
    arm = cell(trial_of, range(2), "plain", "after")  # new in the grid, but not its network
    settled, lines = settle_packs(
        [*known, *arm, *new], planned, lambda cells: [{1: 1.0, 2: 1.0} for _ in cells]
    )
    assert [trial.pack_size for trial in settled] == [2, 2, 2, 2, 1, 1]
    assert "digits plain-8 (width 0.25): 2 seeds at a time, as before" in lines


def test_other_trials_in_the_folder_say_nothing(trial_of):
    trials = cell(trial_of, range(2))
    others = [replace(trial, epochs=7, pack_size=2) for trial in trials]
    settled, _ = settle_packs(trials, others, None)
    assert list(settled) == trials


def test_more_seeds_keep_the_size_and_seeds_that_do_not_fill_it_are_refused(trial_of):
    trials = cell(trial_of, range(2))
    planned = apply_sizes(trials, {network_of(trials[0]): 2})
    settled, _ = settle_packs(cell(trial_of, range(4)), planned, None)
    assert {trial.pack_size for trial in settled} == {2}
    with pytest.raises(GridError, match="was begun with 2 seeds at a time") as refusal:
        settle_packs(cell(trial_of, range(3)), planned, None)
    assert "--seeds" in str(refusal.value)


def test_the_choice_says_its_reasons():
    line = describe_choice(("cifar10", "vgg", 16, 1.0), {1: 0.01, 2: 0.02, 5: math.inf})
    assert line == (
        "cifar10 vgg-16: 1 seed at a time, more would not save 10%; "
        "ms a step and seed: 1: 10.00, 2: 20.00, 5: too large"
    )


def test_times_are_of_real_steps(trial_of):
    (seconds,) = time_packs([(trial_of("mlp", depth=2), [1, 2])], False)
    assert list(seconds) == [1, 2]
    assert all(0 < taken < 1 for taken in seconds.values())


def test_times_are_per_seed_and_infinite_where_memory_is_too_small(trial_of, monkeypatch):
    def time_step(_trial, size, _images, _device):
        if size > 2:
            raise torch.OutOfMemoryError
        return 0.3 * size

    monkeypatch.setattr("harness.cluster.packing._time_step", time_step)
    (seconds,) = time_packs([(trial_of(), [1, 2, 5, 10])], False)
    assert seconds == {1: 0.3, 2: 0.3, 5: math.inf, 10: math.inf}


def test_a_dry_run_says_that_it_would_be_measured(grid, capsys):
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "auto"]) == 0
    assert "still to be measured: digits mlp-2 (width 0.25)" in capsys.readouterr().out
    assert not (grid.parent / "results").exists()


def test_a_plan_settles_nothing_until_a_trial_of_it_is_finished(grid, capsys):
    planned = load_grid(grid, ["pack_size=2"])
    store = Store("results/small")
    store.write_plan(planned.plan, planned.trials, planned.source)
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "auto"]) == 0
    assert "still to be measured: digits mlp-2" in capsys.readouterr().out
    store.write_trial(make_rows(planned.trials[0]))
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "auto"]) == 0
    assert "digits mlp-2 (width 0.25): 2 seeds at a time, as before" in capsys.readouterr().out


def test_a_number_is_the_pack_size_of_the_grids_trials(grid, capsys):
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "2", "--only", "pack_size=2"]) == 0
    assert "to train   4" in capsys.readouterr().out
    assert main([str(grid), "--dry-run", "--seeds-per-trial", "3"]) == 2
    assert "a pack of 3 trains seeds 0 to 2 together" in capsys.readouterr().err


@pytest.mark.ray
def test_auto_measures_once_and_trains_nothing_the_second_time(grid, capsys):
    command = [str(grid), "--seeds-per-trial", "auto", "--gpus-per-trial", "0"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "digits mlp-2 (width 0.25): " in said
    assert "ms a step and seed: 1: " in said
    rows = Store("results/small").read_trial_rows()
    assert len(rows) == 4
    assert len({row.pack_size for row in rows}) == 1

    assert main(command) == 0
    again = capsys.readouterr().out
    size = rows[0].pack_size
    assert f"{size} seed{'s' * (size > 1)} at a time, as before" in again
    assert "nothing to train" in again
