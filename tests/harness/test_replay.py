"""A stored trial comes again, bit for bit, or the first value that does not is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.replay import main
from harness.results.store import Store
from harness.training.images import load_images
from harness.training.train import prepare_worker, train_pack
from tests.builders import make_rows, make_trial


@pytest.fixture(scope="module")
def rows(trial_of):
    """What training a small trial came to."""
    threads = torch.get_num_threads()
    prepare_worker(1)
    [rows] = train_pack([trial_of("mlp")], load_images("digits"), device=torch.device("cpu"))
    torch.set_num_threads(threads)
    return rows


def store_at(location, rows) -> str:
    Store(location).write_trial(rows)
    return str(location)


def test_an_equal_trial_is_equal(tmp_path, rows, capsys):
    store_at(tmp_path, rows)
    assert main([str(tmp_path), rows.trial.trial_id[:6]]) == 0
    said = capsys.readouterr().out
    assert f"equal: 2 epochs, {len(rows.gradients)} gradients, and the trial's own row" in said
    assert "under" not in said


def test_the_first_value_that_differs_is_named(tmp_path, rows, capsys):
    """Later ones differ too: the earliest reading in training counts, not the first table."""
    altered = [
        replace(row, act_mean=row.act_mean + (row.step >= 5 and row.layer_index >= 1))
        for row in rows.gradients
    ]
    first = next(row for row in rows.gradients if row.step == 5 and row.layer_index == 1)
    epochs = [replace(row, validation_loss=1.5) for row in rows.epochs]
    changed = replace(rows, gradients=tuple(altered), epochs=tuple(epochs))
    assert main([store_at(tmp_path, changed), rows.trial.trial_id]) == 1
    said = capsys.readouterr().out
    assert (
        f"different: gradients, step 5 layer {first.layer}, act_mean: "
        f"{first.act_mean + 1!r} stored, {first.act_mean!r} now" in said
    )
    assert "code, device and torch are the same: this should not be" in said


def test_other_code_and_another_torch_are_the_likely_causes(tmp_path, rows, capsys):
    trial = replace(rows.trial, torch="1.0", code_digest="of another time", test_loss=0.5)
    assert main([store_at(tmp_path, replace(rows, trial=trial)), rows.trial.trial_id]) == 1
    said = capsys.readouterr().out
    assert "different: trials, test_loss: 0.5 stored, " in said
    assert said.index("likely cause: other training code") < said.index("torch: 1.0, now")


def test_rows_that_are_lacking_are_named(tmp_path, rows, capsys):
    shorter = replace(rows, gradients=rows.gradients[:-1])
    assert main([store_at(tmp_path, shorter), rows.trial.trial_id]) == 1
    count = len(rows.gradients)
    said = capsys.readouterr().out
    assert f"gradients, number of rows: {count - 1} stored, {count} now" in said


def test_an_id_that_names_no_trial_or_several_is_a_message(tmp_path, capsys):
    trials = [make_trial(seed=seed) for seed in range(20)]
    for trial in trials:
        store_at(tmp_path, make_rows(trial))
    assert main([str(tmp_path), "xyz"]) == 3
    assert "no finished trial has an id that begins with 'xyz'" in capsys.readouterr().err
    assert main([str(tmp_path), ""]) == 3
    assert "20 ids begin with ''" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), "ab"]) == 3
    assert "no finished trials there" in capsys.readouterr().err


def test_a_trial_of_another_training_version_is_not_compared(tmp_path, capsys):
    trial = make_trial()
    old = make_rows(trial, training_version=0, trial_id=trial.id_under(0))
    old = replace(
        old,
        epochs=tuple(replace(row, trial_id=trial.id_under(0)) for row in old.epochs),
        gradients=tuple(replace(row, trial_id=trial.id_under(0)) for row in old.gradients),
    )
    assert main([store_at(tmp_path, old), trial.id_under(0)]) == 3
    assert "was trained under training version 0" in capsys.readouterr().err
