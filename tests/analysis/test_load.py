"""Loading: what is refused, with which words, and what is counted."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from analysis import report
from analysis.load import FLOW_TIMES, ResultsError, _sift_epochs, load_results, spread_times
from harness import upkeep
from harness.results import Store, merge
from harness.results.tables import encode
from harness.study.records import AnalysisPlan, ChoiceRow, TrialRow
from tests.analysis.conftest import Study, write_failure, write_plan, write_study

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


def rewrite(path, change, write=lambda table, path: path.write_bytes(encode(table))):
    """Store the rows of one trial anew, as `change` makes them."""
    rows = pq.read_table(path)
    changed = change(rows.to_pandas())
    # Not Table.from_pandas: that makes a NaN, which a row may have, a missing value.
    columns = [pa.array([*changed[field.name]], field.type) for field in rows.schema]
    write(pa.Table.from_arrays(columns, schema=rows.schema), path)


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


def test_of_the_epochs_those_are_kept_that_are_drawn_the_last_and_those_that_beat_all_before():
    """Whatever the order of the rows, and whatever the trial ahead in the file reached."""
    late = np.random.default_rng(1).permutation(41).tolist()
    curves = {"one": [*range(9), *late], "two": [1, 3, 2], "odd": [math.nan, 2], "end": [3]}
    rows = [
        (name, epoch, accuracy / 50)
        for name, curve in curves.items()
        for epoch, accuracy in enumerate(curve, start=1)
    ]
    drawn = {*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56}
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    names = ("trial_id", "epoch", "validation_accuracy")
    for order in (rows, shuffled, []):
        columns = {name: [row[place] for row in order] for place, name in enumerate(names)}
        kinds = pa.schema(list(zip(names, (pa.string(), pa.int64(), pa.float64()), strict=True)))
        kept = _sift_epochs(pa.table(columns, kinds)).to_pylist()
        wanted = {
            (name, epoch)
            for name, epoch, accuracy in order
            if epoch in drawn
            or epoch == len(curves[name])
            or not any(ahead / 50 >= accuracy for ahead in curves[name][: epoch - 1])
        }
        assert {(row["trial_id"], row["epoch"]) for row in kept} == wanted
        assert len(kept) == len(wanted)


def test_trials_that_nobody_planned_are_counted_and_left_out(folder):
    write_plan(folder, SMALL.trials[2:], SMALL.plan)
    results = load_results(str(folder))
    assert results.unplanned == 2
    assert len(results.trials) == 7
    assert results.warnings[0] == "Outside the plan, and left out: 2 trials in the folder."


def test_a_folder_that_is_not_there(tmp_path):
    assert "nothing: no results there" in refusal(tmp_path / "nothing")


def test_a_folder_without_a_plan(folder):
    (folder / "plan.parquet").unlink()
    assert "no plan.parquet" in refusal(folder)


def test_what_the_store_refuses_a_report_refuses_in_the_same_words(folder, capsys):
    """Rows altered by hand, metadata kept: an accuracy of 99.9 % that nobody has measured."""
    paths = sorted((folder / "trials").glob("*.parquet"))[:3]
    for path in paths:
        rewrite(path, lambda rows: rows.assign(test_accuracy=0.999), pq.write_table)
    assert upkeep.main(["check", str(folder)]) == 1
    *named, _ = capsys.readouterr().out.splitlines()
    assert named == [f"trials/{path.name}: holds other values than were written" for path in paths]
    said = refusal(folder).splitlines()
    assert said[0] == f"{folder}: 3 damaged or foreign files; nothing was changed"
    assert [line.strip() for line in said[1:-1]] == named
    assert said[-1].endswith(f"python -m harness.upkeep repair {folder}")
    assert report.main([str(folder)]) == 3
    assert "holds other values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("trials/notes.txt", "is no file of this harness"),
        ("epochs/", "is missing"),
        ("gradients/", "is missing"),
        ("plan.parquet", "holds other values than were written"),
    ],
)
def test_foreign_lost_and_altered_files_are_refused(folder, place, reason):
    path = folder / place
    if reason == "is missing":
        path = first(folder, place)
        path.unlink()
    elif path.exists():  # a margin, altered in the metadata
        rows = pq.read_table(path)
        text = rows.schema.metadata[b"analysis_plan"].replace(b"0.5", b"5.0")
        changed = {**rows.schema.metadata, b"analysis_plan": text}
        pq.write_table(rows.replace_schema_metadata(changed), path)
    else:
        path.write_text("mine")
    assert f"{path.relative_to(folder)}: {reason}" in refusal(folder)


def test_rows_of_one_arm_share_its_name(tmp_path):
    """Grouping by `arm` mixes neither flow arms nor recipes, as grouping by placement would."""
    grafted = {"flow": "after", "recipe": "tuned", "lr": 0.2}
    trials = [
        *write_study(tmp_path, SMALL, rng=np.random.default_rng(0)),
        *write_study(tmp_path, replace(SMALL, settings=grafted), rng=np.random.default_rng(1)),
    ]
    write_plan(tmp_path, trials, SMALL.plan)
    results = load_results(str(tmp_path))
    names = ["before", "before with the flow of after, tuned", "after", "after, tuned"]
    names += ["none", "none with the flow of after, tuned"]
    for rows in (results.trials, results.planned):
        assert set(rows["arm"]) == set(names)
        settings = rows.groupby("arm")[["placement", "flow", "recipe", "lr"]].nunique()
        assert (settings == 1).all(axis=None)


@pytest.mark.parametrize("table", ["trials", "epochs", "gradients"])
def test_a_truncated_file_is_refused_by_name(folder, table):
    path = first(folder, table)
    path.write_bytes(path.read_bytes()[:-10])
    said = refusal(folder)
    assert f"{table}/{path.name}: not a whole Parquet file" in said
    assert f"python -m harness.upkeep repair {folder}" in said


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
    assert "notes.parquet: is no file of this harness" in refusal(folder)


def test_a_changed_setting_is_refused(folder):
    rewrite(first(folder), lambda rows: rows.assign(lr=rows["lr"] * 2))
    assert "does not follow from the settings beside it" in refusal(folder)


def test_merged_rows_read_like_those_in_small_files(folder, tmp_path):
    merge([Store(folder)], Store(tmp_path / "merged"))
    small, large = load_results(str(folder)), load_results(str(tmp_path / "merged"))
    keys = ["trial_id", "step", "layer_index"]
    for table in ("trials", "epochs", "gradients"):
        expected, found = getattr(small, table), getattr(large, table)
        by = [key for key in keys if key in found]
        found, expected = (rows.sort_values(by, ignore_index=True) for rows in (found, expected))
        pd.testing.assert_frame_equal(found, expected)


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


def test_every_reading_of_every_trial_is_kept_as_its_mean_over_the_layers(long_study):
    folder, study = long_study
    write_plan(folder, study.trials, study.plan)
    results = load_results(str(folder))
    stored = pd.concat(map(pd.read_parquet, (folder / "gradients").iterdir()))
    assert len(results.gradients) < len(stored) / 1.5
    by_reading = stored.assign(mean=np.log10(stored["actgrad_rel"])).groupby(["trial_id", "step"])
    found = results.readings.set_index(["trial_id", "step"]).sort_index()
    pd.testing.assert_series_equal(found["mean"], by_reading["mean"].mean())


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


def test_the_identities_are_those_of_all_readings_of_layers_that_batch_norm_follows(long_study):
    """Without batch norm a weight times its gradient is not zero, and says nothing."""
    folder, study = long_study
    write_plan(folder, study.trials, study.plan)
    stored = pd.concat(map(pd.read_parquet, (folder / "gradients").iterdir()))
    assert stored["qa_dot"].max() > 0.5
    stored = stored[stored["qa_sum"].notna()]
    largest = stored[["qa_sum", "qa_dot"]].abs().max()
    assert load_results(str(folder)).identities == pytest.approx(dict(largest))


def test_times_are_few_the_first_and_the_last_among_them():
    steps = spread_times(list(range(1000)))
    assert 2 < len(steps) <= FLOW_TIMES
    assert {0, 999} <= steps


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
    have_plans(folder, ({}, 0), ({"margin_accuracy": 1.0, "looks": (2,)}, 6))
    (warning,) = load_results(str(folder)).warnings
    assert "planned anew on 02 November 2026" in warning
    assert "when 6 trials had finished" in warning
    assert "the margin of accuracy from 0.5 to 1.0; the looks from () to (2,)" in warning


@pytest.mark.parametrize(
    "field", [field for field in fields(AnalysisPlan) if field.name != "grid"], ids=lambda f: f.name
)
def test_whatever_the_grid_fixes_is_named_where_it_is_changed_in_sight_of_results(folder, field):
    """One that has no words would end the report in a traceback."""
    other = {"str": "none", "float": 1.5, "int": 12, "tuple[int, ...]": (2,)}[field.type]
    have_plans(folder, ({}, 0), ({field.name: other}, 6))
    (warning,) = load_results(str(folder)).warnings
    assert f" to {other}" in warning


def test_every_change_in_sight_of_results_is_told_also_one_taken_back(folder):
    have_plans(folder, ({}, 0), ({"margin_accuracy": 2.0}, 3), ({"alpha": 0.05}, 9))
    first, second = load_results(str(folder)).warnings
    assert "the margin of accuracy from 0.5 to 2.0" in first
    assert "the margin of accuracy from 2.0 to 0.5" in second


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
    assert f"plans/{path.name}: not a whole" in refusal(folder)


def test_what_a_tuning_stage_chose_is_read_and_absent_without_one(folder):
    assert load_results(str(folder)).choices.empty
    row = ChoiceRow(
        **asdict(SMALL.trials[0]),
        arm=SMALL.trials[0].arm,
        seeds=2,
        diverged=0,
        validation_accuracy=0.9,
        chosen=True,
        at_edge=True,
    )
    Store(folder).write_choices([row])
    assert load_results(str(folder)).choices.to_dict("records") == [asdict(row)]
    Store(folder).write_choices([row, replace(row, epochs=9), replace(row, placement="none")])
    results = load_results(str(folder))
    assert len(results.choices) == 2  # one stage serves both lengths
    assert "beyond it: 'before' in 1 of 1 and 'none' in 1 of 1 networks." in results.warnings[-1]


def test_results_on_s3_read_like_those_in_a_folder(folder, bucket):
    files = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
    fs.copy_files(str(folder), bucket.removeprefix("s3://"), destination_filesystem=files)
    far, near = load_results(bucket), load_results(str(folder))
    pd.testing.assert_frame_equal(far.trials, near.trials)
    pd.testing.assert_frame_equal(far.gradients, near.gradients)
    with pytest.raises(ResultsError, match=f"{bucket}/other: no results there"):
        load_results(f"{bucket}/other")
