"""Loading: what is refused, with which words, and what is counted."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from analysis.judgement.outcomes import measure_flow
from analysis.load import FLOW_TIMES, ResultsError, load_results, spread_times
from harness.study.records import AnalysisPlan, ChoiceRow, TrialRow
from tests.analysis.conftest import (
    Study,
    write_choices,
    write_failure,
    write_plan,
    write_study,
    write_table,
)

SMALL = Study(architectures=("plain",), depths=(8,), seeds=range(3), epochs=2)


@pytest.fixture
def folder(tmp_path):
    write_study(tmp_path, SMALL, rng=np.random.default_rng(0))
    return tmp_path


def first(folder, table="trials"):
    return min((folder / table).glob("*.parquet"))


def refusal(folder, **options):
    with pytest.raises(ResultsError) as caught:
        load_results(str(folder), **options)
    return str(caught.value)


def rewrite(path, change):
    """Store the rows of one trial anew, as `change` makes them."""
    rows = pq.read_table(path)
    changed = change(rows.to_pandas())
    pq.write_table(pa.Table.from_pandas(changed, rows.schema, preserve_index=False), path)


def test_all_rows_are_found(folder):
    results = load_results(str(folder))
    assert results.is_complete
    assert len(results.trials) == len(results.planned) == 9
    assert list(results.trials.columns) == [field.name for field in fields(TrialRow)]
    readings = pq.read_table(first(folder, "gradients")).num_rows
    assert len(results.gradients) == 9 * readings
    assert results.warnings == ()


def test_ids_are_those_of_the_harness(folder):
    results = load_results(str(folder))
    assert set(results.planned["trial_id"]) == {trial.id for trial in SMALL.trials}


def test_the_plan_travels_with_the_rows(folder):
    plan = AnalysisPlan(grid="other", margin_accuracy=0.25)
    write_plan(folder, SMALL.trials, plan)
    assert load_results(str(folder)).plan == plan


def test_missing_and_failed_trials_are_told_apart(folder):
    lost, failed = SMALL.trials[:2]
    for trial in (lost, failed):
        (folder / "trials" / f"{trial.id}.parquet").unlink()
    write_failure(folder, failed)
    results = load_results(str(folder))
    assert set(results.missing["trial_id"]) == {lost.id, failed.id}
    assert list(results.failed["trial_id"]) == [failed.id]


def test_rows_of_trials_that_are_not_done_are_left_out(folder):
    (folder / "trials" / f"{SMALL.trials[0].id}.parquet").unlink()
    results = load_results(str(folder))
    assert SMALL.trials[0].id not in set(results.gradients["trial_id"])
    assert SMALL.trials[0].id not in set(results.epochs["trial_id"])


def test_trials_that_nobody_planned_are_counted_and_left_out(folder):
    write_plan(folder, SMALL.trials[2:], SMALL.plan)
    results = load_results(str(folder))
    assert results.unplanned == 2
    assert len(results.trials) == 7
    assert results.warnings[0] == "Outside the plan, and left out: 2 trials in the folder."


def test_a_folder_that_is_not_there(tmp_path):
    assert "there is no such results folder" in refusal(tmp_path / "nothing")


def test_a_folder_without_a_plan(tmp_path):
    assert "no plan.parquet" in refusal(tmp_path)


@pytest.mark.parametrize("table", ["trials", "epochs", "gradients"])
def test_a_truncated_file_is_refused_by_name(folder, table):
    path = first(folder, table)
    path.write_bytes(path.read_bytes()[:-10])
    said = refusal(folder)
    assert f"{table}/{path.name}" in said
    assert "damaged" in said


@pytest.mark.parametrize("table", ["trials", "gradients"])
def test_a_flipped_bit_never_changes_a_number(folder, table):
    path = first(folder, table)
    intact = path.read_bytes()
    expected = load_results(str(folder))
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(intact), 20):
        content = bytearray(intact)
        content[place] ^= 1
        path.write_bytes(content)
        try:
            found = load_results(str(folder))
        except ResultsError:
            refused += 1
        else:
            pd.testing.assert_frame_equal(getattr(found, table), getattr(expected, table))
    assert refused >= 5


def test_a_foreign_parquet_file_is_refused(folder):
    pq.write_table(pa.table({"a": [1]}), folder / "trials" / "notes.parquet")
    said = refusal(folder)
    assert "notes.parquet" in said
    assert "the harness did not write it" in said


def test_an_accuracy_that_is_no_share_is_refused(folder):
    path = first(folder)
    rows = pq.read_table(path)
    at = rows.column_names.index("test_accuracy")
    pq.write_table(rows.set_column(at, rows.schema.field(at), pa.array([7.5])), path)
    assert "test_accuracy is 7.5, no share of 1" in refusal(folder)


def test_a_damaged_file_comes_with_its_remedy(folder):
    first(folder).write_bytes(b"PAR1")
    assert f"python -m harness.upkeep repair {folder} sets it aside" in refusal(folder)


def test_another_schema_version_is_refused(folder):
    path = first(folder)
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata({"schema_version": "999"}), path)
    assert "schema version 999" in refusal(folder)


def test_a_changed_setting_is_refused(folder):
    rewrite(first(folder), lambda rows: rows.assign(lr=rows["lr"] * 2))
    assert "the row calls itself" in refusal(folder)


def test_two_different_results_of_one_trial_are_refused(folder):
    path = first(folder)
    other = folder / "trials" / "part-0.parquet"
    other.write_bytes(path.read_bytes())
    assert len(load_results(str(folder)).trials) == 9  # the same row twice is no contradiction
    rewrite(other, lambda rows: rows.assign(test_accuracy=0.123))
    said = refusal(folder)
    assert path.name in said
    assert "part-0.parquet" in said
    assert f"python -m harness.replay {folder} {path.stem}" in said


def test_compacted_rows_count_once(folder):
    small = load_results(str(folder))
    for table in ("trials", "epochs", "gradients"):
        paths = sorted((folder / table).glob("*.parquet"))
        joined = pa.concat_tables([pq.read_table(path) for path in paths])
        pq.write_table(joined, folder / table / "part-0.parquet")
    both = load_results(str(folder))
    assert len(both.gradients) == len(small.gradients)
    assert len(both.epochs) == len(small.epochs)
    for path in paths:
        path.unlink()
    alone = load_results(str(folder)).gradients.sort_values(["trial_id", "step", "layer_index"])
    expected = small.gradients.sort_values(["trial_id", "step", "layer_index"])
    pd.testing.assert_frame_equal(alone.reset_index(drop=True), expected.reset_index(drop=True))


def test_arms_on_different_types_of_device_are_said(folder):
    assert not any("types of device" in text for text in load_results(str(folder)).warnings)
    rewrite(first(folder), lambda rows: rows.assign(device="Tesla T4"))
    (warning,) = load_results(str(folder)).warnings
    assert warning.startswith("In 1 of ")
    assert "different types of device (EPYC, Tesla T4)" in warning


@pytest.mark.parametrize("column", ["code_digest", "device_kind"])
def test_mixed_origins_are_refused_or_said(folder, column):
    rewrite(first(folder), lambda rows: rows.assign(**{column: "other"}))
    if column == "device_kind":
        assert "kinds of device" in load_results(str(folder)).warnings[0]
        return
    said = refusal(folder)
    assert "2 versions of the training code" in said
    assert "--allow-mixed" in said
    assert (
        "versions of the training code" in load_results(str(folder), allow_mixed=True).warnings[0]
    )


def test_losing_one_placement_more_than_the_others_is_warned_of(tmp_path):
    study = Study(seeds=range(10), is_lost=lambda t: t.placement == "after" and t.seed > 4)
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    (warning,) = load_results(str(tmp_path)).warnings
    assert "20 of 40 trials of 'after' are missing, against 0 of 80" in warning


def test_losing_placements_alike_is_no_warning(tmp_path):
    study = Study(seeds=range(10), is_lost=lambda t: t.seed > 7)
    write_study(tmp_path, study, rng=np.random.default_rng(0))
    assert load_results(str(tmp_path)).warnings == ()


def test_lost_readings_of_a_finished_trial_are_warned_of(folder):
    first(folder, "gradients").unlink()
    (warning,) = load_results(str(folder)).warnings
    assert "rows in gradients/ of 1 trial are lost" in warning
    assert f"python -m harness.upkeep repair {folder} sets what is left of them aside" in warning


@pytest.fixture(scope="module")
def long_study(tmp_path_factory):
    """Trials with more readings than are shown, the first epoch's end not among these; one diverged."""
    folder = tmp_path_factory.mktemp("long")
    study = Study(
        architectures=("plain",),
        depths=(8,),
        seeds=range(2),
        epochs=35,
        diverges=lambda t: t.placement == "none" and t.seed == 0,
    )
    write_study(folder, study, rng=np.random.default_rng(0))
    return folder, study


@pytest.mark.parametrize("window", ["first-epoch", "all", "init", "last"])
@pytest.mark.parametrize("layer", ["first", "mean", "slope"])
def test_the_readings_that_are_kept_give_the_flow_that_all_would(long_study, window, layer):
    folder, study = long_study
    plan = replace(study.plan, gradient_window=window, gradient_layer=layer)
    write_plan(folder, study.trials, plan)
    kept = load_results(str(folder)).gradients
    stored = pd.concat(map(pd.read_parquet, (folder / "gradients").iterdir()))
    pd.testing.assert_series_equal(measure_flow(kept, plan), measure_flow(stored, plan))
    if window != "all":
        assert len(kept) < len(stored) / 1.5


def test_readings_stand_for_all_of_a_trial_from_the_first_to_the_last(long_study):
    folder, study = long_study
    write_plan(folder, study.trials, study.plan)
    results = load_results(str(folder))
    status = results.trials.set_index("trial_id")["status"]
    for trial_id, rows in results.gradients.groupby("trial_id"):
        stored = pq.read_table(folder / "gradients" / f"{trial_id}.parquet").to_pandas()
        late = set(rows["step"][rows["epoch"] > 1])
        assert {rows["step"].min(), rows["step"].max()} == {0, stored["step"].max()}
        assert set(rows["step"]) >= set(stored["step"][stored["epoch"] <= 1])
        if status[trial_id] == "diverged":
            assert len(rows) == len(stored)
        else:
            assert 2 < len(late) < FLOW_TIMES


def test_the_identities_are_those_of_all_readings(long_study):
    folder, study = long_study
    write_plan(folder, study.trials, study.plan)
    stored = pd.concat(map(pd.read_parquet, (folder / "gradients").iterdir()))
    largest = stored[["qa_sum", "qa_dot"]].abs().max()
    assert load_results(str(folder)).identities == pytest.approx(dict(largest))


def test_times_are_few_the_first_and_the_last_among_them():
    steps = spread_times(list(range(1000)))
    assert 2 < len(steps) <= FLOW_TIMES
    assert {0, 999} <= steps


def test_a_file_that_would_fill_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr("analysis.load._SIZE_LIMIT", 10_000_000)
    path = first(folder)
    row = pq.read_table(path).to_pylist()[0]
    long = {name: [value] * 1_000 for name, value in row.items()}
    write_table(path, TrialRow, {**long, "host": ["x" * 20_000] * 1_000})
    assert path.stat().st_size < 100_000
    assert "would decode to" in refusal(folder)


def test_a_plan_of_another_version_is_refused(folder):
    path = folder / "plan.parquet"
    rows = pq.read_table(path)
    metadata = {**rows.schema.metadata, b"analysis_plan": b'{"grid": "g", "ropes": 3}'}
    pq.write_table(rows.replace_schema_metadata(metadata), path)
    assert "ropes" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gradient_column": "gradnorm"}, "gradient_column is 'gradnorm'; it can be actgrad_total"),
        ({"gradient_column": "layer"}, "gradient_column is 'layer'"),
        ({"gradient_layer": "last"}, "gradient_layer is 'last'; it can be first, mean, slope"),
        ({"gradient_window": "late"}, "gradient_window is 'late'; it can be first-epoch, all"),
    ],
)
def test_a_plan_that_names_what_there_is_not_is_refused(folder, change, said):
    write_plan(folder, SMALL.trials, replace(SMALL.plan, **change))
    assert said in refusal(folder)


@pytest.mark.parametrize("column", ["update_ratio", "wgrad_norm", "qa_dot"])
def test_any_number_of_a_reading_can_be_the_one_that_decides(folder, column):
    write_plan(folder, SMALL.trials, replace(SMALL.plan, gradient_column=column))
    found = load_results(str(folder)).gradients[column]
    stored = pq.read_table(folder / "gradients")[column]
    assert sorted(found) == sorted(stored.to_pylist())


def have_plans(folder, *plans):
    """Give the folder the plans of these changes, each made when so many trials had finished."""
    for day, (change, finished) in enumerate(plans, start=1):
        write_plan(
            folder,
            SMALL.trials,
            replace(SMALL.plan, **change),
            file=f"plans/{day:016x}.parquet",
            written=datetime(2026, 11, day, 9, tzinfo=UTC),
            finished_before=finished,
        )


def test_a_margin_changed_in_sight_of_results_is_warned_of(folder):
    have_plans(folder, ({}, 0), ({"margin_accuracy": 1.0, "looks": 2}, 6))
    (warning,) = load_results(str(folder)).warnings
    assert "planned anew on 02 November 2026" in warning
    assert "when 6 trials had finished" in warning
    assert "margin_accuracy from 0.5 to 1.0; looks from 1 to 2" in warning


def test_every_change_in_sight_of_results_is_told_also_one_taken_back(folder):
    have_plans(folder, ({}, 0), ({"margin_accuracy": 2.0}, 3), ({"alpha": 0.05}, 9))
    first, second = load_results(str(folder)).warnings
    assert "margin_accuracy from 0.5 to 2.0" in first
    assert "margin_accuracy from 2.0 to 0.5" in second


@pytest.mark.parametrize(
    "plans",
    [
        [({}, 0), ({"margin_accuracy": 1.0}, 0)],  # nothing to see yet
        [({}, 0), ({}, 9)],  # more seeds, the same analysis
        [({}, 0), ({"grid": "another name"}, 9)],
        [({"margin_accuracy": 1.0}, 9)],
    ],
)
def test_a_plan_that_changes_no_analysis_is_no_warning(folder, plans):
    have_plans(folder, *plans)
    assert load_results(str(folder)).warnings == ()


def test_an_earlier_plan_that_is_damaged_is_refused_by_name(folder):
    have_plans(folder, ({}, 0))
    path = first(folder, "plans")
    path.write_bytes(path.read_bytes()[:-10])
    assert f"plans/{path.name}: damaged" in refusal(folder)


def test_what_a_tuning_stage_chose_is_read_and_absent_without_one(folder):
    assert load_results(str(folder)).choices.empty
    row = ChoiceRow(
        **asdict(SMALL.trials[0]),
        seeds=2,
        diverged=0,
        validation_accuracy=0.9,
        chosen=True,
        at_edge=True,
    )
    write_choices(folder, [row])
    assert load_results(str(folder)).choices.to_dict("records") == [asdict(row)]


@pytest.fixture
def bucket(monkeypatch):
    """An S3 of its own on this machine, with an empty bucket called `results`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    files = fs.S3FileSystem(
        endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True, region="us-east-1"
    )
    files.create_dir("results")
    yield files
    server.stop()


def test_results_on_s3_read_like_those_in_a_folder(folder, bucket):
    fs.copy_files(str(folder), "results/run", destination_filesystem=bucket)
    far, near = load_results("s3://results/run"), load_results(str(folder))
    pd.testing.assert_frame_equal(far.trials, near.trials)
    pd.testing.assert_frame_equal(far.gradients, near.gradients)
    with pytest.raises(ResultsError, match="s3://results/other: there is no such results folder"):
        load_results("s3://results/other")
