"""Results stay what they are while they are packed, joined and repaired."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from harness.results import TABLES, Lease, Store, find_damage, merge, set_aside
from harness.results.looks import read_looks, record_look
from harness.study.errors import StoreError
from harness.study.records import AnalysisPlan, ChoiceRow
from harness.upkeep import main
from tests.builders import make_rows, make_trial

TRIALS = [make_trial(seed=seed) for seed in range(6)]


def fill(location, trials=TRIALS, **outcome) -> Store:
    store = Store(location)
    for trial in trials:
        store.write_trial(make_rows(trial, **outcome))
    return store


def read_all(store: Store) -> dict[str, str]:
    """Every value of every table, by the rules of the store's page; as text, for NaN's sake."""
    content = {}
    for trial_id, stem in sorted(store.locate_trials().items()):
        for name, table in store.read_tables(stem).items():
            rows = [row for row in table.to_pylist() if row["trial_id"] == trial_id]
            content[f"{name} {trial_id}"] = repr(rows)
    return content


def count_files(store: Store) -> set[int]:
    return {len(store.place.list_files(table)) for table in TABLES}


def packed(store: Store) -> Store:
    """A copy in one file per table."""
    target = Store(f"{store.location}/packed")
    merge([store], target)
    return target


def choice_of(lr: float, *, chosen: bool) -> ChoiceRow:
    trial = make_trial(lr=lr)
    scores = {"seeds": 1, "diverged": 0, "validation_accuracy": 0.5, "at_edge": False}
    return ChoiceRow(**asdict(trial), arm=trial.arm, **scores, chosen=chosen)


def contents(store: Store) -> dict[str, bytes | None]:
    paths = [path for table in TABLES for path in store.list_paths(table)]
    return {path: store.place.read(path) for path in paths}


# Merging


def test_a_merge_has_the_trials_of_all_and_says_which_agree(tmp_path):
    a = fill(tmp_path / "a", TRIALS[:4], wall_time=1.0, host="a")
    b = fill(tmp_path / "b", TRIALS[3:], wall_time=2.0, host="b")
    a.write_plan(AnalysisPlan(grid="g"), TRIALS[:4], "seeds: [0, 1, 2, 3]")
    b.write_plan(AnalysisPlan(grid="g"), TRIALS[3:], "seeds: [3, 4, 5]")
    merged = Store(tmp_path / "c")
    result = merge([a, packed(b)], merged)

    assert (result.trials, result.repeated) == (6, 1)
    assert find_damage(merged) == []
    assert [row.host for row in sorted(merged.read_trial_rows(), key=lambda row: row.seed)] == list(
        "aaaabb"
    )
    plan = merged.read_plan()
    assert plan is not None
    assert list(plan.trials) == TRIALS
    assert plan.source == "seeds: [0, 1, 2, 3]\n---\nseeds: [3, 4, 5]"
    assert len(merged.read_plans()) == 3
    before = read_all(merged)
    merge([a, b], merged)
    assert read_all(merged) == before


def test_a_merge_changes_no_row_and_leaves_one_file_per_table(location):
    store = fill(location)
    before, rows = read_all(store), store.read_trial_rows()
    merged = packed(store)
    assert count_files(merged) == {1}
    assert read_all(merged) == before
    assert merged.read_trial_rows() == rows
    assert merged.finished_ids() == {trial.id for trial in TRIALS}
    assert find_damage(merged) == []
    again = packed(merged)
    assert contents(again) == contents(merged)


def test_what_is_trained_after_a_merge_goes_into_the_next(tmp_path):
    merged = fill(packed(fill(tmp_path, TRIALS[:4])).location, TRIALS[4:])
    assert count_files(merged) == {3}
    before = read_all(merged)
    assert len(before) == 3 * len(TRIALS)
    assert count_files(packed(merged)) == {1}
    assert read_all(packed(merged)) == before


def test_parts_have_a_size(tmp_path):
    target = Store(tmp_path / "c")
    merge([fill(tmp_path / "a")], target, part_bytes=1)
    assert count_files(target) == {len(TRIALS)}
    assert len(read_all(target)) == 3 * len(TRIALS)


def test_a_trial_that_stands_in_two_files_is_damage_and_the_larger_file_stays(tmp_path):
    """Someone has copied files of one folder into another."""
    store = packed(fill(tmp_path))
    for table in TABLES:
        name = f"{table}/{TRIALS[1].id}.parquet"
        (Path(store.location) / name).write_bytes((tmp_path / name).read_bytes())
    [damage] = find_damage(store)
    assert damage.path == f"trials/{TRIALS[1].id}.parquet"
    assert damage.reason == f"holds trial {TRIALS[1].id}, as another file does"
    set_aside(store, [damage])
    assert find_damage(store) == []
    assert store.finished_ids() == {trial.id for trial in TRIALS}


def test_pandas_reads_a_table_before_and_after(tmp_path):
    store = fill(tmp_path)
    merged = Path(packed(store).location)
    for table in TABLES:
        frame = pd.read_parquet(tmp_path / table)
        keys = [name for name in ("trial_id", "epoch", "step", "layer") if name in frame]
        after = pd.read_parquet(merged / table).sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(after, frame.sort_values(keys, ignore_index=True))


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_merge_refuses_different_rows_of_one_trial_and_names_the_columns(tmp_path, is_packed):
    a = fill(tmp_path / "a", test_loss=0.5)
    b = fill(tmp_path / "b", TRIALS[:5], test_loss=0.5)
    rows = make_rows(TRIALS[5], test_loss=0.25, train_loss=0.5)
    readings = (replace(rows.gradients[0], act_var=9.0), *rows.gradients[1:])
    b.write_trial(replace(rows, gradients=readings))
    b = packed(b) if is_packed else b
    with pytest.raises(StoreError) as error:
        merge([a, b], Store(tmp_path / "c"))
    text = str(error.value)
    assert (
        "trained more than once, with different results: 1 trial; nothing has been merged" in text
    )
    assert f"{TRIALS[5].id} (digits mlp-3 before seed 5)" in text
    assert "differ in gradients: act_var; trials: train_loss, test_loss" in text
    assert not (tmp_path / "c").exists()


def test_a_merge_refuses_different_analyses(tmp_path):
    a, b = fill(tmp_path / "a"), fill(tmp_path / "b")
    a.write_plan(AnalysisPlan(grid="g"), TRIALS, "")
    b.write_plan(AnalysisPlan(grid="g", margin_accuracy=2.0), TRIALS, "")
    with pytest.raises(StoreError, match=r"different analyses: margin_accuracy 0\.5 and 2\.0"):
        merge([a, b], Store(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_merge_keeps_the_looks_that_were_taken_and_what_the_tuning_stage_chose(tmp_path):
    a, b, c = fill(tmp_path / "a"), fill(tmp_path / "b", TRIALS[:2]), Store(tmp_path / "c")
    looks = record_look(a, [TRIALS[0].id], fraction=0.5, is_planned=True)
    choices = [choice_of(lr, chosen=lr == 0.1) for lr in (0.05, 0.1)]
    a.write_choices(choices)
    b.write_choices(choices[1:])
    for _ in "twice":
        merge([a, b], c)
        assert read_looks(c) == looks
        assert c.read_choices() == choices


def test_a_merge_refuses_two_outcomes_of_one_tuning_stage(tmp_path):
    a, b = fill(tmp_path / "a"), fill(tmp_path / "b")
    a.write_choices([choice_of(0.1, chosen=True)])
    b.write_choices([choice_of(0.1, chosen=False)])
    with pytest.raises(StoreError, match=r"ended differently for mlp-3 before at rate 0\.1"):
        merge([a, b], Store(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


# The command line


def test_check_repair_and_merge_by_hand(tmp_path, capsys):
    a, b, c = (str(tmp_path / name) for name in "abc")
    fill(a)
    fill(b, TRIALS[:2])
    (tmp_path / "a/epochs/notes.txt").write_text("mine")
    (tmp_path / f"a/trials/{TRIALS[0].id}.parquet").write_bytes(b"")

    assert main(["check", a]) == 1
    out = capsys.readouterr().out
    assert "epochs/notes.txt: is no file of this harness" in out
    assert f"trials/{TRIALS[0].id}.parquet: not a whole Parquet file" in out
    assert f"{a}: 2 damaged or foreign files" in out
    assert main(["repair", a]) == 0
    assert f"{a}: 4 files set aside below damaged/" in capsys.readouterr().out
    assert main(["check", a]) == 0
    assert capsys.readouterr().out == f"{a}: 0 damaged or foreign files\n"

    assert main(["merge", a, b, "-o", c]) == 0
    out = capsys.readouterr().out
    assert (
        f"{c}: 6 trials\ntrained more than once, and equal bit for bit, timings and provenance aside: 1"
        in out
    )


def test_an_empty_folder_is_not_taken_for_results(tmp_path, capsys):
    for command in (["check"], ["repair"], ["merge", "-o", str(tmp_path / "c")]):
        assert main([*command, str(tmp_path / "a")]) == 3
        assert "a: no results there: neither plan.parquet nor trials/" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    store = fill(tmp_path)
    with Lease(store, "a-run"):
        assert main(["repair", str(tmp_path)]) == 3
    assert "another run is going on: a-run" in capsys.readouterr().err
    assert count_files(store) == {len(TRIALS)}
