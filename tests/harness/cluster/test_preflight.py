"""What a check of the cluster calls trouble, and what it leaves behind."""

from __future__ import annotations

from unittest import mock

import pytest

from harness.cluster.machine import count_cpus
from harness.cluster.preflight import Cell, Report, check_cluster, compare_versions, try_out
from harness.cluster.request import Answer, Request
from harness.results.store import Store
from harness.run import main
from harness.study.errors import ClusterError
from tests.builders import make_trial

MINE = {"Python": "3.11.7", "Ray": "2.60.0", "torch": "2.15.0", "code": "0123456789abcdef"}
BEACON = "active/.preflight-01234567"


def troubles(cells) -> list[str]:
    return [cell.trouble for cell in cells.values() if cell.trouble]


@pytest.mark.parametrize("what", MINE)
def test_a_node_that_runs_something_else_than_the_driver_is_trouble(what):
    cells = compare_versions(Answer(MINE | {what: "other"}), MINE)
    assert troubles(cells) == [f"{what} is other, but {MINE[what]} here"]
    assert troubles(compare_versions(Answer(MINE), MINE)) == []


def test_a_node_that_does_not_answer_is_trouble_with_its_likely_cause():
    (trouble,) = troubles(compare_versions(Answer(None, "no answer within 60 s"), MINE))
    assert "does not answer: no answer within 60 s" in trouble
    assert "another Python or Ray than 3.11.7 and 2.60.0" in trouble


def test_a_node_reads_what_the_driver_wrote_and_leaves_the_driver_its_own(location):
    store = Store(location)
    store.place.create(BEACON, b"from the driver")
    cells = try_out(store, BEACON, ("digits",), on_gpu=False)
    assert troubles(cells) == []
    assert (cells["data"].text, cells["device"].text) == ("digits", "cpu")
    _, left = store.place.list_files("active")
    assert f"active/{left.name}".startswith(BEACON)


def test_a_folder_that_the_nodes_do_not_share_is_trouble(tmp_path):
    cells = try_out(Store(tmp_path), BEACON, (), on_gpu=False)
    (trouble,) = troubles(cells)
    assert "is another folder here than for the driver" in trouble
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_is_trouble(tmp_path):
    store = Store(tmp_path)
    store.place.create(BEACON, b"from the driver")
    (tmp_path / "active").rename(tmp_path / "elsewhere")
    (tmp_path / "active").write_text("a file")
    (trouble,) = troubles(try_out(store, BEACON, (), on_gpu=False))
    assert "a file stands where a folder is needed" in trouble


def test_data_that_cannot_be_had_is_trouble(monkeypatch, tmp_path):
    monkeypatch.setenv("BN_ORDER_DATA", str(tmp_path))
    name = f"imagefolder:flowers:8@{'0' * 16}"
    (trouble,) = troubles(try_out(None, "", (name,), on_gpu=False))
    assert "flowers" in trouble


def test_gpus_that_ray_counts_and_torch_does_not_find_are_trouble(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (trouble,) = troubles(try_out(None, "", (), on_gpu=True))
    assert "Ray counts a GPU, torch finds none" in trouble


def test_a_gpu_that_does_not_compute_is_trouble(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.ones", mock.Mock(side_effect=RuntimeError("no kernel image")))
    (trouble,) = troubles(try_out(None, "", (), on_gpu=True))
    assert trouble == "the GPU does not compute: no kernel image"


def test_a_node_without_the_compiler_that_a_grid_needs_is_trouble(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert troubles(try_out(None, "", (), on_gpu=False)) == []
    (trouble,) = troubles(try_out(None, "", (), on_gpu=False, compiles=True))
    assert trouble.startswith("compile: true needs a C++ compiler, and no-such-compiler: no such")


def test_the_report_is_one_table_with_its_troubles_below():
    report = Report(
        rows={
            "10.0.0.1": {"Python": Cell("3.11.7"), "data": Cell("digits")},
            "10.0.0.2": {"Python": Cell("3.12.1", "Python is 3.12.1, but 3.11.7 here")},
        }
    )
    heading, first, second, trouble = str(report).splitlines()
    words = "node offers Python Ray torch code device storage data"
    assert heading.split() == words.split()
    assert first.index("3.11.7") == second.index("3.12.1 (!)") == heading.index("Python")
    assert trouble == "10.0.0.2: Python is 3.12.1, but 3.11.7 here"
    assert not report.is_well


@pytest.mark.ray
def test_a_cluster_that_is_well_exits_with_0_and_keeps_no_object(tmp_path, capsys):
    grid = tmp_path / "small.yaml"
    grid.write_text(
        "seeds: 2\n"
        "defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}\n"
        "grid: [{architecture: mlp, placement: before, depth: 2}]\n"
    )
    results = tmp_path / "results"
    assert main([str(grid), "--check-cluster", "--results", str(results)]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert row.split()[1:3] == [str(count_cpus()), "CPUs"]
    assert "digits" in row[heading.index("data") :]
    assert [path for path in results.rglob("*") if path.is_file()] == []


def test_a_driver_that_cannot_write_is_trouble(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("a file")
    report = Report()
    from harness.cluster.preflight import _beacon

    with _beacon(Store(tmp_path / "results"), report) as beacon:
        assert beacon == ""
    (trouble,) = report.troubles
    assert trouble.startswith("the driver cannot write: ")
    assert not report.is_well


def test_what_no_node_could_hold_is_said_as_a_run_would_say_it(tmp_path):
    with pytest.raises(ClusterError, match="no Ray at"):
        check_cluster([make_trial()], Store(tmp_path), Request(address="127.0.0.1:1"))
