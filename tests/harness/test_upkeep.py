"""Results stay what they are while they are packed, joined and repaired."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest

from harness.results.compaction import compact
from harness.results.lease import Lease
from harness.results.merging import merge
from harness.results.store import TABLES, Store
from harness.study.errors import StoreError
from harness.study.records import AnalysisPlan
from harness.upkeep import main
from tests.harness.conftest import make_rows, make_trial

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


# Compaction


def test_compaction_changes_no_row_and_leaves_one_file_per_table(location):
    store = fill(location)
    before, rows = read_all(store), store.read_trial_rows()
    [part] = compact(store)
    assert count_files(store) == {1}
    assert read_all(store) == before
    assert store.read_trial_rows() == rows
    assert store.finished_ids() == {trial.id for trial in TRIALS}
    assert store.find_damage() == []
    assert compact(store) == []
    assert list(store.read_ids()) == [part]


def test_what_comes_after_a_compaction_is_packed_by_the_next(location):
    store = fill(location, TRIALS[:4])
    compact(store)
    fill(location, TRIALS[4:])
    before = read_all(store)
    assert len(before) == 3 * len(TRIALS)
    compact(store)
    assert count_files(store) == {1}
    assert read_all(store) == before


def test_parts_have_a_size(tmp_path):
    store = fill(tmp_path)
    size = max(store.measure_stems().values())
    assert len(compact(store, part_bytes=2 * size)) == 3
    assert count_files(store) == {3}
    assert len(read_all(store)) == 3 * len(TRIALS)


def test_a_trial_is_taken_once_where_a_compaction_was_killed(tmp_path):
    """The part stands and so do some of the files it is made of."""
    store = fill(tmp_path)
    before = read_all(store)
    compact(store)
    fill(tmp_path, TRIALS[:2])
    assert read_all(store) == before
    assert len(store.read_trial_rows()) == len(TRIALS)
    compact(store)
    assert count_files(store) == {1}
    assert read_all(store) == before


def test_a_trial_is_taken_once_where_two_compactions_overlapped(tmp_path):
    """Two machines packed one folder at the same time, each what it saw."""
    ours, theirs = fill(tmp_path / "ours", TRIALS[:3]), fill(tmp_path / "theirs", TRIALS[2:])
    compact(ours)
    [part] = compact(theirs)
    for table in TABLES:
        path = f"{table}/{part}.parquet"
        ours.place.replace(path, theirs.place.read(path))
    before = read_all(ours)
    compact(ours)
    assert count_files(ours) == {1}
    assert read_all(ours) == before
    assert ours.read_tables(*ours.read_ids())["trials"].num_rows == len(TRIALS)


def test_a_damaged_file_stops_a_compaction_and_nothing_is_lost(tmp_path):
    store = fill(tmp_path)
    (tmp_path / f"gradients/{TRIALS[2].id}.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=f"gradients/{TRIALS[2].id}"):
        compact(store)
    assert store.finished_ids() == {trial.id for trial in TRIALS}


def test_pandas_reads_a_table_before_and_after(tmp_path):
    store = fill(tmp_path)
    before = {table: pd.read_parquet(tmp_path / table) for table in TABLES}
    compact(store)
    for table, frame in before.items():
        keys = [name for name in ("trial_id", "epoch", "step", "layer") if name in frame]
        after = pd.read_parquet(tmp_path / table).sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(after, frame.sort_values(keys, ignore_index=True))


# Merging


def test_a_merge_has_the_trials_of_all_and_says_which_agree(tmp_path):
    a = fill(tmp_path / "a", TRIALS[:4], wall_time=1.0, host="a")
    b = fill(tmp_path / "b", TRIALS[3:], wall_time=2.0, host="b")
    a.write_plan(AnalysisPlan(grid="g"), TRIALS[:4], "seeds: [0, 1, 2, 3]")
    b.write_plan(AnalysisPlan(grid="g"), TRIALS[3:], "seeds: [3, 4, 5]")
    compact(b)
    merged = Store(tmp_path / "c")
    result = merge([a, b], merged)

    assert (result.trials, result.repeated) == (6, 1)
    assert merged.find_damage() == []
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


@pytest.mark.parametrize("packed", [False, True])
def test_a_merge_refuses_different_rows_of_one_trial_and_names_the_columns(tmp_path, packed):
    a = fill(tmp_path / "a", test_loss=0.5)
    b = fill(tmp_path / "b", TRIALS[:5], test_loss=0.5)
    rows = make_rows(TRIALS[5], test_loss=0.25, train_loss=0.5)
    readings = (replace(rows.gradients[0], act_var=9.0), *rows.gradients[1:])
    b.write_trial(replace(rows, gradients=readings))
    if packed:
        compact(b)
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


# The command line


def test_check_repair_compact_and_merge_by_hand(tmp_path, capsys):
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

    assert main(["compact", a]) == 0
    assert capsys.readouterr().out == f"{a}: 5 files per table before, 1 now; 1 new part\n"
    assert main(["merge", a, b, "-o", c]) == 0
    out = capsys.readouterr().out
    assert (
        f"{c}: 6 trials\ntrained more than once, and equal bit for bit, timings and provenance aside: 1"
        in out
    )


def test_an_empty_folder_is_not_taken_for_results(tmp_path, capsys):
    assert main(["compact", str(tmp_path)]) == 3
    assert "no results there" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    store = fill(tmp_path)
    with Lease(store, "a-run"):
        assert main(["compact", str(tmp_path)]) == 3
    assert "another run is going on: a-run" in capsys.readouterr().err
    assert count_files(store) == {len(TRIALS)}


def test_a_part_is_plain_parquet(tmp_path):
    [part] = compact(fill(tmp_path))
    table = pq.read_table(tmp_path / f"trials/{part}.parquet")
    assert sorted(table["seed"].to_pylist()) == list(range(6))
