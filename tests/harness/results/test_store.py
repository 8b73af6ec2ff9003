"""What a results folder promises, on a disk and in a bucket alike."""

from __future__ import annotations

import logging
import os
import pickle
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.results.lease import Lease, hold
from harness.results.places import open_place
from harness.results.repair import ORPHAN_AGE, find_damage, set_aside, sweep
from harness.results.snapshot import take_snapshot
from harness.results.store import NAMES, TABLES, Store
from harness.results.tables import decode, encode, schema_of, to_rows, to_table
from harness.study.errors import DamagedFileError, StoreError
from harness.study.records import (
    AnalysisPlan,
    ChoiceRow,
    EpochRow,
    FailureRow,
    GradientRow,
    PlannedTrial,
    TrialRow,
)
from tests.builders import make_failure, make_rows, make_trial

FIRST, SECOND = make_trial(seed=0), make_trial(seed=1)


@pytest.fixture
def requests(caplog) -> Iterator[list[str]]:
    """The method of each request that the bucket's server has answered."""
    asked: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.search("(GET|HEAD|PUT|POST|DELETE) /", record.getMessage()):
                asked.append(found[1])

    log, note = logging.getLogger("werkzeug"), Note()
    log.addHandler(note)
    caplog.set_level(logging.INFO, "werkzeug")
    yield asked
    log.removeHandler(note)


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
    store.refuse_foreign_folder()
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

    monkeypatch.setattr("harness.results.places.os.link", refuse)
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
    if "://" not in location:  # in a bucket a look costs as much as writing it anew
        assert tables["epochs"]["wall_time"].to_pylist() == [99.0, 99.0]
    assert 99.0 not in tables["gradients"]["act_var"].to_pylist()


def test_half_an_orphan_is_replaced(location):
    write(location, f"epochs/{FIRST.id}.parquet", b"PAR1")
    Store(location).write_trial(make_rows(FIRST))
    assert find_damage(Store(location)) == []


def test_the_row_that_finishes_a_trial_comes_last(location, monkeypatch):
    store = Store(location)
    order = []
    create = store.place.create
    monkeypatch.setattr(
        store.place,
        "create",
        lambda path, data, **looked: order.append(path) or create(path, data, **looked),
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
        (encode(to_table([make_failure(FIRST)], FailureRow)), "other columns"),
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

    [damage] = find_damage(store)
    assert damage.path == path
    assert reason in damage.reason
    assert f"python -m harness.upkeep repair {tmp_path}" in str(damage)
    with pytest.raises(DamagedFileError, match=path):
        store.read_tables(FIRST.id)

    assert path in set_aside(store, [damage])
    assert find_damage(store) == []
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


def test_damaged_choices_are_named_and_made_again(tmp_path):
    store = Store(tmp_path)
    scores = {"seeds": 1, "diverged": 0, "validation_accuracy": 0.5, "at_edge": False}
    choices = [ChoiceRow(**asdict(FIRST), arm=FIRST.arm, **scores, chosen=True)]
    store.write_choices(choices)
    assert find_damage(store) == []
    write(store.location, "choices.parquet", store.place.read("choices.parquet")[:-1])
    damage = find_damage(store)
    assert [error.path for error in damage] == ["choices.parquet"]
    set_aside(store, damage)
    assert store.read_choices() == []
    store.write_choices(choices)
    assert store.read_choices() == choices


def test_a_finished_trial_without_its_gradients_is_damage(location):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    store.place.remove(f"gradients/{FIRST.id}.parquet")
    [damage] = find_damage(store)
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
    content = encode(to_table([make_failure(FIRST, traceback="x" * 10_000)] * 2_000, FailureRow))
    assert len(content) < 20_000
    monkeypatch.setattr("harness.results.tables.MOST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"would unfold to 20,\d{3},\d{3} bytes"):
        decode(content, FailureRow)
    monkeypatch.setattr("harness.results.tables.MOST_ROWS", 1_999)
    with pytest.raises(ValueError, match="announces 2,000 rows"):
        decode(content, FailureRow)


def test_a_file_larger_than_ours_is_not_read(location, monkeypatch):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    monkeypatch.setitem(type(store.place).read.__kwdefaults__, "largest", 1000)
    with pytest.raises(DamagedFileError, match="bytes are more than a file of this store has"):
        store.read_trial_rows()


# Failures and plans


def test_failures_are_rows_of_their_own(location):
    store = Store(location)
    later = make_failure(FIRST, attempt=2, failed_at=datetime(2026, 1, 3, tzinfo=UTC))
    store.write_failure(later)
    store.write_failure(make_failure(FIRST))
    assert store.read_failures() == [make_failure(FIRST), later]
    assert store.finished_ids() == frozenset()


def test_a_failure_is_kept_whatever_its_text_and_harms_no_terminal(tmp_path):
    store = Store(tmp_path)
    store.write_failure(make_failure(FIRST, message="\udc80 \0 \u202e", traceback="a\n\x1b[2J"))
    [row] = store.read_failures()
    assert (row.message, row.traceback) == (r"\udc80 \x00 \u202e", "a\n\\x1b[2J")


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


def test_the_same_plan_again_changes_nothing_and_a_comment_is_kept(location):
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1")
    before = store.place.read("plan.parquet")
    store.write_trial(make_rows(FIRST))
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1")
    assert store.place.read("plan.parquet") == before
    assert len(store.read_plans()) == 1
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1  # a comment more")
    assert store.place.read("grid.yaml") == b"a: 1  # a comment more"
    plan = store.read_plan()
    assert plan is not None
    assert plan.says(AnalysisPlan(grid="g"), [FIRST], "a: 1  # a comment more")


def test_the_plan_is_that_of_the_latest_run_although_the_folder_has_had_it_before(location):
    """Whoever returns to an earlier margin has seen results at both."""
    store = Store(location)
    margins = (0.5, 2.0, 0.5)
    for seed, margin in enumerate(margins):
        store.write_plan(AnalysisPlan(grid="g", margin_accuracy=margin), [FIRST, SECOND], "")
        store.write_trial(make_rows(make_trial(seed=seed)))
    assert store.read_plan() == store.read_plans()[-1]
    assert [
        (plan.analysis.margin_accuracy, plan.finished_before) for plan in store.read_plans()
    ] == list(zip(margins, (0, 1, 2), strict=True))


def test_plans_keep_their_order_where_the_clock_goes_back(tmp_path, monkeypatch):
    """Runs come from machines whose clocks differ."""
    store = Store(tmp_path)
    years = iter((2026, 2020, 2026))

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(next(years), 1, 1, tzinfo=tz)

    monkeypatch.setattr("harness.results.store.datetime", Clock)
    for grid in "abc":
        store.write_plan(AnalysisPlan(grid=grid), [FIRST], "")
    assert [plan.analysis.grid for plan in store.read_plans()] == ["a", "b", "c"]
    plan = store.read_plan()
    assert plan is not None
    assert plan.analysis.grid == "c"


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


def swept(store: Store) -> list[str]:
    """What a run that begins now removes, sorted."""
    with hold(store, "test") as lease:
        return sorted(sweep(store, lease))


HALF = "0123456789abcdef.harness"


def test_leavings_of_the_dead_are_swept_once_they_are_old(tmp_path):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    leavings = [
        f"epochs/{SECOND.id}.parquet",
        f"gradients/.{SECOND.id}.parquet.{HALF}",
        f"failures/.{SECOND.id}-20260102-030405-abcd-1.parquet.{HALF}",
        f"partial/.{SECOND.id}.pt.{HALF}",
        f"active/.run-1.json.{HALF}",
        "active/.preflight-0123456789abcdef",
        f".plan.parquet.{HALF}",
    ]
    for path in leavings:
        write(store.location, path, b"half")
    assert swept(store) == []
    for path in [*leavings, f"epochs/{FIRST.id}.parquet"]:
        os.utime(tmp_path / path, (0, 0))
    assert swept(store) == sorted(leavings)
    assert find_damage(store) == []
    assert store.finished_ids() == {FIRST.id}


def test_a_file_being_written_has_a_name_that_a_sweep_knows(tmp_path, monkeypatch):
    """Killed between write and commit it leaves that name."""
    store = Store(tmp_path)
    monkeypatch.setattr("harness.results.places.Path.unlink", lambda _: None)
    store.write_trial(make_rows(FIRST))
    store.write_failure(make_failure(SECOND))
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    monkeypatch.undo()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")}
    assert {path.rpartition("/")[0] for path in left} == {*TABLES, "failures", "plans"}
    for path in left:
        os.utime(tmp_path / path, (0, 0))
    assert set(swept(store)) == left


WRITTEN = (*NAMES, "logs", "report", "damaged", "active", "partial")


def test_nothing_that_is_not_ours_is_ever_removed(tmp_path):
    """Whatever its age, in every folder that we write to."""
    store = Store(tmp_path)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    store.write_trial(make_rows(FIRST))
    foreign = [
        f"{folder}{name}"
        for folder in ("", *(f"{folder}/" for folder in WRITTEN))
        for name in (
            ".bashrc",
            ".env",
            ".gitkeep",
            ".plan.parquet.swp",
            ".notes.0123456789abcdef",
            f".notes.md.{HALF}.mine",
            f".my-notes.{HALF}",
        )
    ]
    foreign += ["active/settings.json", "active/notes", "partial/model.pt", "epochs/mine.parquet"]
    for path in foreign:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"{}")
        os.utime(tmp_path / path, (0, 0))
    assert swept(store) == []
    assert {path: (tmp_path / path).read_bytes() for path in foreign} == dict.fromkeys(
        foreign, b"{}"
    )


def test_a_date_in_the_future_makes_nothing_an_orphan(tmp_path):
    """What a fellow run is writing is young by the clock of the file server, whatever lies beside."""
    store = Store(tmp_path)
    write(store.location, f"epochs/{SECOND.id}.parquet", b"half")
    for folder in ("trials", "active"):
        (tmp_path / folder).mkdir()
    later = time.time() + 10 * ORPHAN_AGE
    for path in (f"trials/{FIRST.id}.parquet", "active/notes.json"):
        (tmp_path / path).write_bytes(b"")
        os.utime(tmp_path / path, (later, later))
    assert swept(store) == []


# Folders of someone else


@pytest.mark.parametrize("name", ["README.md", ".bashrc", "grid.yaml", "src/main.py"])
def test_a_folder_of_other_files_is_refused_and_nothing_changes(location, name):
    write(location, name, b"mine")
    store = Store(location)
    with (
        pytest.raises(StoreError, match=f"is no results folder: it holds {name.split('/')[0]}; "),
        hold(store, "run"),
    ):
        pytest.fail("entered")
    assert [entry.name for entry in store.place.list_entries("")] == [name.split("/")[0]]
    assert store.place.read(name) == b"mine"


def test_a_refusal_names_some_and_counts_the_rest(tmp_path):
    for name in "abcde":
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match="it holds a, b, c and 2 more; nothing was changed"):
        Store(tmp_path).refuse_foreign_folder()


@pytest.mark.parametrize("ours", ["plan", "trial", "nothing"])
def test_what_lies_in_a_results_folder_is_left_alone(tmp_path, ours):
    store = Store(tmp_path)
    if ours == "plan":
        store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    if ours == "trial":
        store.write_trial(make_rows(FIRST))
    (tmp_path / ".gitkeep").touch()
    if ours != "nothing":
        (tmp_path / "notes.md").touch()
    with Lease(store, "run"):
        assert store.list_strangers() == ["notes.md"] * (ours != "nothing")


def test_a_grid_that_no_run_wrote_is_never_overwritten(location):
    store = Store(location)
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1")
    write(location, "grid.yaml", b"a: 1  # edited")
    with pytest.raises(StoreError, match=r"grid\.yaml: not as a run has written it"):
        store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 2")
    assert store.place.read("grid.yaml") == b"a: 1  # edited"
    assert len(store.read_plans()) == 1
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1  # edited")  # it was what he ran
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 2")
    assert store.place.read("grid.yaml") == b"a: 2"


def test_a_table_that_is_not_ours_is_never_overwritten(tmp_path):
    store = Store(tmp_path)
    for name in ("plan.parquet", "choices.parquet"):
        write(store.location, name, b"mine")
    with pytest.raises(DamagedFileError, match=r"plan\.parquet: not a whole Parquet file"):
        store.write_plan(AnalysisPlan(grid="g"), [FIRST], "a: 1")
    scores = {"seeds": 1, "diverged": 0, "validation_accuracy": 0.5, "at_edge": False}
    choice = ChoiceRow(**asdict(FIRST), arm=FIRST.arm, **scores, chosen=True)
    with pytest.raises(DamagedFileError, match=r"choices\.parquet: not a whole Parquet file"):
        store.write_choices([choice])
    assert {store.place.read(name) for name in ("plan.parquet", "choices.parquet")} == {b"mine"}


# Places that refuse


def test_a_folder_named_like_a_file_is_named_and_set_aside(location):
    store = Store(location)
    store.write_trial(make_rows(FIRST))
    inside = f"trials/{SECOND.id}.parquet/notes.txt"
    write(location, inside, b"mine")
    write(location, "gradients/backup/old.parquet", b"mine")
    damage = find_damage(store)
    assert [(error.path, error.reason) for error in damage] == [
        ("gradients/backup", "is a folder, not a file"),
        (f"trials/{SECOND.id}.parquet", "is a folder, not a file"),
    ]
    assert store.finished_ids() == {FIRST.id}
    moved = set_aside(store, damage)
    assert moved == ["gradients/backup", f"trials/{SECOND.id}.parquet"]
    assert find_damage(store) == []
    [aside] = store.place.list_entries("damaged")
    assert store.place.read(f"damaged/{aside.name}/{inside}") == b"mine"
    store.write_trial(make_rows(SECOND))
    assert store.finished_ids() == {FIRST.id, SECOND.id}


@pytest.mark.parametrize("name", ["plan.parquet", "choices.parquet", "grid.yaml"])
def test_a_folder_named_like_the_plan_is_named_and_set_aside(tmp_path, name):
    store = Store(tmp_path)
    (tmp_path / name).mkdir()
    damage = find_damage(store)
    assert [(error.path, error.reason) for error in damage] == [(name, "is a folder, not a file")]
    assert set_aside(store, damage) == [name]
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    assert find_damage(store) == []


def test_a_folder_in_the_place_of_a_file_is_one_clear_error(tmp_path):
    (tmp_path / f"trials/{FIRST.id}.parquet").mkdir(parents=True)
    with pytest.raises(
        StoreError, match=rf"trials/{FIRST.id}\.parquet: a folder stands where a file is needed"
    ):
        Store(tmp_path).write_trial(make_rows(FIRST))


def test_a_pipe_or_a_circle_of_links_among_the_rows_is_named_and_not_waited_for(tmp_path):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    os.mkfifo(tmp_path / f"trials/{SECOND.id}.parquet")
    (tmp_path / f"epochs/{FIRST.id}.parquet").unlink()
    os.mkfifo(tmp_path / f"epochs/{FIRST.id}.parquet")
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures/loop").symlink_to("loop")
    assert [(error.path, error.reason) for error in find_damage(store)] == [
        (f"epochs/{FIRST.id}.parquet", "is a link or a pipe, not a file"),
        (f"trials/{SECOND.id}.parquet", "is a link or a pipe, not a file"),
        ("failures/loop", "is a link or a pipe, not a file"),
    ]
    with pytest.raises(DamagedFileError, match="is not a file"):
        store.read_tables(FIRST.id)


def test_a_folder_inside_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "notes").write_text("")
    store = Store(tmp_path / "notes" / "results")
    for action in (store.finished_ids, lambda: store.write_trial(make_rows(FIRST))):
        with pytest.raises(StoreError, match=r"notes.*: a file stands where a folder is needed"):
            action()


def test_a_bucket_that_does_not_exist_is_one_clear_error(bucket):
    with pytest.raises(StoreError, match=r"absent.*: the bucket does not exist; create it"):
        Store("s3://absent-bucket/results").write_trial(make_rows(FIRST))


A_PLACE = "results go to a folder or to s3://bucket/prefix"
NO_PLACE = "names no place for rows; give a folder, or s3://bucket/prefix"
A_BUCKET = "name a bucket, as in s3://bucket/prefix"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("gs://bucket/x", f"gs://bucket/x: {A_PLACE}"),
        ("http://host/x", f"http://host/x: {A_PLACE}"),
        ("file:///tmp/x", f"file:///tmp/x: {A_PLACE}"),
        ("s3:/bucket/x", f"s3:/bucket/x: {A_PLACE}"),
        ("S3://bucket/x", f"S3://bucket/x: {A_PLACE}"),
        ("s3://", f"s3://: {A_BUCKET}"),
        ("s3:///results", f"s3:///results: {A_BUCKET}"),
        ("s3://My_Bucket/results", f"s3://My_Bucket/results: {A_BUCKET}"),
        ("s3://<bucket>/results", f"s3://<bucket>/results: {A_BUCKET}"),
        ("", f"'' {NO_PLACE}"),
        (" ", f"' ' {NO_PLACE}"),
        ("results\n", f"'results\\n' {NO_PLACE}"),
        ("results\u202e", f"'results\\u202e' {NO_PLACE}"),
        ("~nobody-here/x", "~nobody-here/x: Could not determine home directory."),
    ],
)
def test_a_location_of_no_known_kind_is_refused(location, message):
    with pytest.raises(StoreError) as refused:
        Store(location)
    assert str(refused.value) == message


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/results").location == f"{tmp_path}/results"


def test_a_key_may_have_the_marks_of_a_url(bucket):
    odd = f"{bucket}/why?#%41 because"
    Store(odd).write_trial(make_rows(FIRST))
    assert Store(odd).finished_ids() == {FIRST.id}
    assert Store(f"{bucket}/why").finished_ids() == frozenset()


def test_a_bucket_that_nobody_answers_for_is_one_clear_error_within_seconds(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    begun = time.monotonic()
    with pytest.raises(StoreError) as refused:
        Store(bucket).finished_ids()
    assert time.monotonic() - begun < 30
    assert str(refused.value) == (
        f"{bucket}/trials: the object store does not answer; check AWS_ENDPOINT_URL and the network"
    )


def test_a_sweep_of_a_bucket_spares_what_is_young(bucket):
    store = Store(bucket)
    store.write_trial(make_rows(FIRST))
    write(bucket, f"epochs/{SECOND.id}.parquet", b"half")
    store.write_plan(AnalysisPlan(grid="g"), [FIRST], "")
    assert swept(store) == []
    assert {file.name for file in store.place.list_files("")} == {"plan.parquet", "grid.yaml"}


class TestRequests:
    """What a bucket is asked for: each request costs time, and money."""

    def test_a_trial_is_written_by_four(self, bucket, requests):
        store = Store(bucket)
        store.write_trial(make_rows(FIRST))
        requests.clear()
        store.write_trial(make_rows(SECOND))
        assert requests == ["HEAD", "PUT", "PUT", "PUT"]
        requests.clear()
        store.write_trial(make_rows(SECOND))
        assert requests == ["HEAD"]

    def test_a_start_reads_a_trial_by_two(self, bucket, requests):
        store = Store(bucket)
        trials = [make_trial(seed=seed) for seed in range(30)]
        counts = []
        for trial in trials:
            store.write_trial(make_rows(trial))
            if trial in {trials[9], trials[29]}:
                requests.clear()
                take_snapshot(store, whole_up_to=store.place.most_checked)
                counts.append(len(requests))
        assert counts[1] - counts[0] == 2 * 20
        assert counts[0] <= 2 * 10 + 10  # a list of each folder

    def test_a_worker_asks_for_its_shard_at_once(self, bucket, requests):
        store = Store(bucket)
        store.write_trial(make_rows(FIRST))
        ids = [make_trial(seed=seed).id for seed in range(50)]
        requests.clear()
        assert store.find_finished(ids) == {FIRST.id}
        assert requests == ["GET"]
        assert store.find_finished(ids[:2]) == {FIRST.id}
        assert requests == ["GET", "HEAD", "HEAD"]


def test_files_lie_where_the_page_says(tmp_path):
    store = Store(tmp_path)
    store.write_trial(make_rows(FIRST))
    store.write_failure(make_failure(FIRST))
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
