"""What a results folder promises, on a disk and in a bucket alike."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import DamagedFileError, StoreError
from harness.places import open_place
from harness.records import AnalysisPlan, EpochRow, FailureRow, GradientRow, PlannedTrial, TrialRow
from harness.store import TABLES, Store
from harness.tables import decode, encode, schema_of, to_rows, to_table
from tests.harness.conftest import make_rows, make_trial

FIRST, SECOND = make_trial(seed=0), make_trial(seed=1)


def make_failure(**columns) -> FailureRow:
    row = {
        "trial_id": FIRST.id,
        "trial": FIRST.label,
        "attempt": 1,
        "run": "20260102T030405",
        "kind": "exception",
        "message": "ValueError: no",
        "traceback": "Traceback ...\nValueError: no",
        "failed_at": datetime(2026, 1, 2, tzinfo=UTC),
        "host": "",
        "code_digest": "",
    }
    return FailureRow(**row | columns)


def write(location: str, path: str, content: bytes) -> None:
    open_place(location).replace(path, content)


def contents(store: Store) -> dict[str, bytes | None]:
    paths = [f"{table}/{file.name}" for table in TABLES for file in store.place.list_files(table)]
    return {path: store.place.read(path) for path in paths}


# What comes back


def test_what_is_written_is_read(location):
    store = Store(location)
    rows = make_rows(SECOND)
    store.write_trial(rows)
    store.write_trial(make_rows(FIRST))

    assert store.finished_ids() == {FIRST.id, SECOND.id}
    assert rows.trial in store.read_trial_rows()
    tables = store.read_tables(SECOND.id)
    assert tuple(to_rows(tables["epochs"], EpochRow)) == rows.epochs
    # repr, because NaN is not equal to itself
    assert repr(to_rows(tables["gradients"], GradientRow)) == repr(list(rows.gradients))


def test_a_place_is_not_made_before_something_is_written(location, tmp_path):
    store = Store(location)
    assert store.finished_ids() == frozenset()
    assert store.read_trial_rows() == []
    assert store.read_failures() == []
    assert store.read_plan() is None
    assert store.sweep() == []
    assert list(tmp_path.iterdir()) == []


def test_a_store_travels_to_workers_by_its_location(location, monkeypatch, tmp_path):
    store = Store(location)
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(store)).write_trial(make_rows(FIRST))
    assert store.finished_ids() == {FIRST.id}


def test_a_relative_location_means_the_folder_it_meant_at_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("results")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write_trial(make_rows(FIRST))
    assert (tmp_path / "results/trials" / f"{FIRST.id}.parquet").is_file()


@pytest.mark.parametrize("row_type", [TrialRow, EpochRow, GradientRow, FailureRow, PlannedTrial])
def test_a_column_carries_its_unit_and_meaning_into_the_file(row_type, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(encode(to_table([], row_type)))
    schema = pq.read_schema(path)
    assert schema.remove_metadata() == schema_of(row_type).remove_metadata()
    assert schema.metadata[b"schema_version"]
    for field in schema:
        assert not field.nullable
        assert set(field.metadata) == {b"unit", b"meaning"}


def test_pages_carry_checksums():
    content = encode(to_table([make_rows(FIRST).trial], TrialRow))
    at = content.index(b"digits")  # in the dictionary page of `dataset`
    broken = content[:at] + b"Digits" + content[at + 6 :]
    assert pq.read_table(pa.BufferReader(broken))["dataset"].to_pylist() == ["Digits"]
    with pytest.raises(ValueError, match="checksum"):
        decode(broken, TrialRow)


# Never overwritten


def test_a_finished_trial_is_never_overwritten(location):
    store = Store(location)
    store.write_trial(make_rows(FIRST, wall_time=1.0))
    before = contents(store)
    other = make_rows(FIRST, wall_time=9.0)
    store.write_trial(replace(other, epochs=other.epochs[:1]))
    assert contents(store) == before


def test_of_two_writers_in_the_same_instant_one_wins(tmp_path):
    """Both have seen that the file is absent; the hard link decides."""
    place = open_place(str(tmp_path))
    place.has = lambda _: False
    assert place.create("trials/x.parquet", b"first")
    assert not place.create("trials/x.parquet", b"second")
    assert place.read("trials/x.parquet") == b"first"
    assert [file.name for file in place.list_files("trials")] == ["x.parquet"]


def test_a_disk_without_hard_links_keeps_the_promise(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("harness.places.os.link", refuse)
    place = open_place(str(tmp_path))
    assert place.create("x", b"first")
    assert not place.create("x", b"second")
    assert place.read("x") == b"first"
    assert [file.name for file in place.list_files("")] == ["x"]


def test_an_orphan_that_differs_is_replaced_and_an_equal_one_stays(location):
    store = Store(location)
    rows = make_rows(FIRST)
    slower = tuple(replace(row, wall_time=99.0) for row in rows.epochs)
    wrong = tuple(replace(row, act_var=99.0) for row in rows.gradients)
    write(location, f"epochs/{FIRST.id}.parquet", encode(to_table(slower, EpochRow)))
    write(location, f"gradients/{FIRST.id}.parquet", encode(to_table(wrong, GradientRow)))
    assert store.finished_ids() == frozenset()

    store.write_trial(rows)
    tables = store.read_tables(FIRST.id)
    assert tables["epochs"]["wall_time"].to_pylist() == [99.0, 99.0]
    assert 99.0 not in tables["gradients"]["act_var"].to_pylist()


def test_half_an_orphan_is_replaced(location):
    write(location, f"epochs/{FIRST.id}.parquet", b"PAR1")
    Store(location).write_trial(make_rows(FIRST))
    assert Store(location).find_damage() == []


def test_the_row_that_finishes_a_trial_comes_last(location, monkeypatch):
    store = Store(location)
    order = []
    create = store.place.create
    monkeypatch.setattr(
        store.place, "create", lambda path, data: order.append(path) or create(path, data)
    )
    store.write_trial(make_rows(FIRST))
    assert [path.split("/")[0] for path in order] == ["epochs", "gradients", "trials"]


def test_a_row_whose_id_does_not_follow_from_its_settings_is_not_written(tmp_path):
    rows = make_rows(FIRST)
    for wrong in (
        replace(rows, trial=replace(rows.trial, lr=0.2)),
        replace(rows, epochs=make_rows(SECOND).epochs),
    ):
        with pytest.raises(ValueError, match="trial"):
            Store(tmp_path).write_trial(wrong)
    assert list(tmp_path.iterdir()) == []


# Damage


def test_finished_means_a_file_of_the_right_name(location):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    for name in (
        ".hidden.parquet",
        "notes.txt",
        f".{SECOND.id}.parquet.ab12",
        "x.parquet",
        f"{SECOND.id}.parquet.tmp",
    ):
        write(location, f"trials/{name}", b"")
    assert store.finished_ids() == {FIRST.id}
    assert [row.trial_id for row in store.read_trial_rows()] == [FIRST.id]


@pytest.mark.parametrize("table", ["trials", "epochs", "gradients"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a whole Parquet file"),
        (b"a,b\n1,2\n", "not a whole Parquet file"),
        (encode(to_table([make_failure()], FailureRow)), "other columns"),
        (None, "holds rows of another trial"),
    ],
    ids=["empty", "text", "another-table", "another-trial"],
)
def test_a_damaged_file_is_named_set_aside_and_trained_again(tmp_path, table, content, reason):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    store.write_trial(make_rows(SECOND))
    path = f"{table}/{FIRST.id}.parquet"
    if content is None:
        content = store.place.read(f"{table}/{SECOND.id}.parquet")
    write(store.location, path, content)

    [damage] = store.find_damage()
    assert damage.path == path
    assert reason in damage.reason
    assert f"python -m harness.upkeep repair {tmp_path}" in str(damage)
    with pytest.raises(DamagedFileError, match=path):
        store.read_tables(FIRST.id)

    assert path in store.set_aside([damage])
    assert store.find_damage() == []
    assert store.finished_ids() == {SECOND.id}
    assert len(list((tmp_path / "damaged").rglob(f"{FIRST.id}.parquet"))) == 3
    store.write_trial(make_rows(FIRST))
    assert store.finished_ids() == {FIRST.id, SECOND.id}


@pytest.mark.parametrize("copies", [0, 2])
def test_a_file_of_one_trial_has_one_row(tmp_path, copies):
    path = f"trials/{FIRST.id}.parquet"
    write(str(tmp_path), path, encode(to_table([make_rows(FIRST).trial] * copies, TrialRow)))
    with pytest.raises(DamagedFileError, match="another trial than its name promises"):
        Store(tmp_path).read_trial_rows()


def test_no_flipped_bit_passes():
    """A sample of the bits of a trial's row: either noticed, or in bytes that carry no value."""
    rows = [make_rows(FIRST).trial]
    content = encode(to_table(rows, TrialRow))
    noticed = 0
    for bit in range(0, 8 * len(content), 397):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert to_rows(decode(bytes(flipped), TrialRow), TrialRow) == rows
        except ValueError:
            noticed += 1
    assert noticed > 100


def test_values_that_another_footer_would_turn_over_are_noticed():
    """Pages have checksums, the footer that assigns them to columns has none."""
    table = to_table([make_rows(FIRST).trial], TrialRow)
    digest = pq.read_schema(pa.BufferReader(encode(table))).metadata[b"digest"]
    at = table.column_names.index("test_loss")
    swapped = table.set_column(at, table.schema.field(at), table["test_accuracy"])
    sink = pa.BufferOutputStream()
    pq.write_table(
        swapped.replace_schema_metadata({**table.schema.metadata, b"digest": digest}), sink
    )
    with pytest.raises(ValueError, match="holds other values than were written"):
        decode(sink.getvalue().to_pybytes(), TrialRow)


def test_every_truncation_is_noticed():
    content = encode(to_table([make_rows(FIRST).trial], TrialRow))
    for length in range(0, len(content), 97):
        with pytest.raises(ValueError, match="not a whole Parquet file"):
            decode(content[:length], TrialRow)


def test_a_finished_trial_without_its_gradients_is_damage(location):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    store.place.remove(f"gradients/{FIRST.id}.parquet")
    [damage] = store.find_damage()
    assert (damage.path, damage.reason) == (f"gradients/{FIRST.id}.parquet", "is missing")


def test_rows_of_another_schema_are_refused():
    table = to_table([make_rows(FIRST).trial], TrialRow)
    with pytest.raises(ValueError, match="has schema version 999; this code reads"):
        decode(encode(table, {"schema_version": "999"}), TrialRow)
    with pytest.raises(ValueError, match="other columns than this table: recipe"):
        decode(encode(table.drop_columns(["recipe"])), TrialRow)
    with pytest.raises(ValueError, match="no schema_version"):
        decode(encode(table.replace_schema_metadata({})), TrialRow)
    at = table.column_names.index("depth")
    with pytest.raises(ValueError, match="column depth is double, not int64"):
        decode(encode(table.set_column(at, "depth", table["depth"].cast(pa.float64()))), TrialRow)
    nullable = pa.schema(
        [field.with_nullable(True) for field in table.schema], table.schema.metadata
    )
    holes = table.cast(nullable).set_column(at, "depth", pa.array([None], pa.int64()))
    with pytest.raises(ValueError, match="missing"):
        decode(encode(holes), TrialRow)


def test_a_row_of_an_older_training_keeps_its_own_name(tmp_path):
    old = make_rows(FIRST).trial
    old = replace(old, training_version=0, trial_id=FIRST.id_under(0))
    assert old.trial_id != FIRST.id
    content = encode(to_table([old], TrialRow))
    write(str(tmp_path), f"trials/{old.trial_id}.parquet", content)
    assert Store(tmp_path).read_trial_rows() == [old]
    write(
        str(tmp_path),
        f"trials/{old.trial_id}.parquet",
        encode(to_table([replace(old, lr=0.5)], TrialRow)),
    )
    with pytest.raises(DamagedFileError, match="does not follow from the settings"):
        Store(tmp_path).read_trial_rows()


def test_a_small_file_that_unfolds_to_a_huge_one_is_refused(monkeypatch):
    """A text that is repeated costs a stranger nothing and would cost us its every copy."""
    content = encode(to_table([make_failure(traceback="x" * 10_000)] * 2_000, FailureRow))
    assert len(content) < 20_000
    monkeypatch.setattr("harness.tables.MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"would unfold to 20,\d{3},\d{3} bytes"):
        decode(content, FailureRow)
    monkeypatch.setattr("harness.tables.MOST_ROWS", 1_999)
    with pytest.raises(ValueError, match="announces 2,000 rows"):
        decode(content, FailureRow)


def test_a_file_larger_than_ours_is_not_read(location, monkeypatch):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    monkeypatch.setattr("harness.places.LARGEST_FILE", 1000)
    with pytest.raises(DamagedFileError, match="bytes are more than a file of this store has"):
        store.read_trial_rows()


# Failures and plans


def test_failures_are_rows_of_their_own(location):
    store = Store(location)
    later = make_failure(attempt=2, failed_at=datetime(2026, 1, 3, tzinfo=UTC))
    store.write_failure(later)
    store.write_failure(make_failure())
    assert store.read_failures() == [make_failure(), later]
    assert store.finished_ids() == frozenset()


def test_a_failure_is_kept_whatever_its_text(tmp_path):
    store = Store(tmp_path)
    store.write_failure(make_failure(message="\udc80 \0 \u202e", traceback="\udc80"))
    [row] = store.read_failures()
    assert (row.message, row.traceback) == ("? \0 \u202e", "?")


def test_a_plan_comes_back_with_its_grid_as_written(location):
    store = Store(location)
    source = "# as written\r\ngrid: \N{SNOWMAN}\n"
    store.write_plan(AnalysisPlan(grid="quickstart"), [FIRST, SECOND], source)
    plan = store.read_plan()
    assert plan is not None
    assert plan.analysis == AnalysisPlan(grid="quickstart")
    assert plan.trials == (FIRST, SECOND)
    assert plan.source == source
    assert plan.finished_before == 0
    assert store.place.read("grid.yaml") == source.encode()
    table = pq.read_table(pa.BufferReader(store.place.read("plan.parquet")))
    assert table["trial_id"].to_pylist() == [FIRST.id, SECOND.id]


def test_the_same_plan_again_changes_nothing_but_the_text_of_the_grid(location):
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1")
    before = store.place.read("plan.parquet")
    store.write_trial(make_rows(FIRST))
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1  # a comment more")
    assert store.place.read("plan.parquet") == before
    assert store.place.read("grid.yaml") == b"a: 1  # a comment more"


def test_a_margin_changed_in_sight_of_results_can_be_told(location):
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST, SECOND], "")
    store.write_trial(make_rows(FIRST))
    store.write_plan(AnalysisPlan(grid="g", margin_accuracy=2.0), [FIRST, SECOND], "")

    assert store.finished_ids() == {FIRST.id}
    plan = store.read_plan()
    assert plan is not None
    assert (plan.analysis.margin_accuracy, plan.finished_before) == (2.0, 1)
    assert [
        (plan.analysis.margin_accuracy, plan.finished_before) for plan in store.read_plans()
    ] == [(0.5, 0), (2.0, 1)]


def test_a_damaged_plan_is_named(location):
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    write(location, "plan.parquet", encode(to_table([], PlannedTrial)))
    with pytest.raises(DamagedFileError, match=r"plan\.parquet: lacks metadata: analysis_plan"):
        store.read_plan()


# Leavings


def test_leavings_of_the_dead_are_swept_once_they_are_old(tmp_path):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    leavings = [
        f"epochs/{SECOND.id}.parquet",
        f"gradients/.{SECOND.id}.parquet.0123456789abcdef",
        ".plan.parquet.0123456789abcdef",
    ]
    for path in leavings:
        write(store.location, path, b"half")
    assert store.sweep() == []
    for path in [*leavings, f"epochs/{FIRST.id}.parquet"]:
        os.utime(tmp_path / path, (0, 0))
    assert sorted(store.sweep()) == sorted(leavings)
    assert store.find_damage() == []
    assert store.finished_ids() == {FIRST.id}


# Places that refuse


def test_a_folder_inside_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "notes").write_text("")
    store = Store(tmp_path / "notes" / "results")
    for action in (store.finished_ids, lambda: store.write_trial(make_rows(FIRST))):
        with pytest.raises(StoreError, match=r"notes.*: a file stands where a folder is needed"):
            action()


def test_a_bucket_that_does_not_exist_is_one_clear_error(bucket):
    with pytest.raises(StoreError, match=r"absent.*: the bucket does not exist; create it"):
        Store("s3://absent-bucket/results").write_trial(make_rows(FIRST))


@pytest.mark.parametrize("location", ["gs://bucket/x", "http://host/x"])
def test_a_location_of_an_unknown_kind_is_refused(location):
    with pytest.raises(StoreError, match="to a folder or to s3://bucket/prefix"):
        Store(location)


def test_a_bucket_must_have_a_name():
    with pytest.raises(StoreError, match="name a bucket"):
        Store("s3:///results")


def test_a_sweep_of_a_bucket_spares_what_is_young(bucket):
    store = Store(bucket)
    store.write_trial(make_rows(FIRST))
    write(bucket, f"epochs/{SECOND.id}.parquet", b"half")
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    assert store.sweep() == []
    assert {file.name for file in store.place.list_files("")} == {"plan.parquet", "grid.yaml"}


def test_files_lie_where_the_page_says(tmp_path):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    store.write_failure(make_failure())
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    [plan] = [path for path in found if path.startswith("plans/")]
    assert found - {plan} == {
        f"trials/{FIRST.id}.parquet",
        f"epochs/{FIRST.id}.parquet",
        f"gradients/{FIRST.id}.parquet",
        f"failures/{FIRST.id}-20260102T030405-1.parquet",
        "plan.parquet",
        "grid.yaml",
    }
    assert Path(store.location) == tmp_path
