"""What a check of the cluster calls trouble, and what it leaves behind."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from harness.cluster import fanout
from harness.cluster.fanout import Answer, Node, Request
from harness.cluster.preflight import (
    CLOCK_TOLERANCE,
    Cell,
    Report,
    check_cluster,
    compare_clocks,
    compare_versions,
    try_out,
)
from harness.results.store import Store
from harness.run import main
from tests.harness.conftest import make_trial

MINE = {"Python": "3.11.7", "Ray": "2.60.0", "torch": "2.15.0", "code": "0123456789abcdef"}
BEACON = "active/.preflight-01234567"


def answer(value=None, *, error="", took=0.0) -> Answer:
    return Answer(value, error, 1_000.0, 1_000.0 + took)


def troubles(cells) -> list[str]:
    return [cell.trouble for cell in cells.values() if cell.trouble]


@pytest.mark.parametrize("what", MINE)
def test_a_node_that_runs_something_else_than_the_driver_is_trouble(what):
    cells = compare_versions(answer(MINE | {what: "other"}), MINE)
    assert troubles(cells) == [f"{what} is other, but {MINE[what]} here"]
    assert troubles(compare_versions(answer(MINE), MINE)) == []


def test_a_node_that_does_not_answer_is_trouble_with_its_likely_cause():
    (trouble,) = troubles(compare_versions(answer(error="no answer within 60 s"), MINE))
    assert "does not answer: no answer within 60 s" in trouble
    assert "another Python or Ray than 3.11.7 and 2.60.0" in trouble


@pytest.mark.parametrize(
    ("ahead", "took", "trouble"),
    [
        (0, 0, ""),
        (CLOCK_TOLERANCE - 1, 0, ""),
        (90, 0, "its clock is 90 s ahead"),
        (-90, 0, "its clock is 90 s behind"),
        (90, 200, ""),  # it may have read its clock at any moment of these
    ],
)
def test_a_clock_is_trouble_when_it_is_off_by_more_than_the_delay_explains(ahead, took, trouble):
    cell = compare_clocks([answer(1_000.0 + took / 2 + ahead, took=took)])
    assert cell.trouble.startswith(trouble)
    assert bool(cell.trouble) == bool(trouble)


def test_of_several_readings_of_a_clock_the_quickest_counts():
    late = answer(1_500.0, took=1_000.0)
    lost = answer(error="no answer within 60 s")
    assert compare_clocks([late, answer(1_007.0), lost]).text == "+7 s"
    assert "does not tell the time" in compare_clocks([lost]).trouble


def test_a_node_reads_what_the_driver_wrote_and_leaves_the_driver_its_own(location):
    store = Store(location)
    store.place.create(BEACON, b"from the driver")
    cells = try_out(store, BEACON, ("digits",), 0)
    assert troubles(cells) == []
    assert (cells["data"].text, cells["device"].text) == ("digits", "cpu")
    _, left = store.place.list_files("active")
    assert f"active/{left.name}".startswith(BEACON)


def test_a_folder_that_the_nodes_do_not_share_is_trouble(tmp_path):
    cells = try_out(Store(tmp_path), BEACON, (), 0)
    (trouble,) = troubles(cells)
    assert "is another folder here than for the driver" in trouble
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_cannot_be_written_is_trouble(tmp_path):
    store = Store(tmp_path)
    store.place.create(BEACON, b"from the driver")
    (tmp_path / "active").rename(tmp_path / "elsewhere")
    (tmp_path / "active").write_text("a file")
    (trouble,) = troubles(try_out(store, BEACON, (), 0))
    assert "a file stands where a folder is needed" in trouble


def test_data_that_cannot_be_had_is_trouble(monkeypatch, tmp_path):
    monkeypatch.setenv("BN_ORDER_DATA", str(tmp_path))
    name = f"imagefolder:flowers:8@{'0' * 16}"
    (trouble,) = troubles(try_out(None, "", (name,), 0))
    assert "flowers" in trouble


def test_gpus_that_ray_counts_and_torch_does_not_find_are_trouble(monkeypatch):
    monkeypatch.setattr("harness.cluster.preflight._SUMS_ON_GPUS", "print('NVIDIA L4')")
    (trouble,) = troubles(try_out(None, "", (), 2))
    assert "Ray counts 2 GPUs, torch finds 1" in trouble
    assert try_out(None, "", (), 1)["device"].text == "NVIDIA L4"


def test_a_gpu_that_does_not_compute_is_trouble(monkeypatch):
    monkeypatch.setattr(
        "harness.cluster.preflight._SUMS_ON_GPUS", "raise SystemExit('no kernel image')"
    )
    (trouble,) = troubles(try_out(None, "", (), 1))
    assert trouble == "a GPU does not compute: no kernel image"


def test_the_report_is_one_table_with_its_troubles_below():
    report = Report(
        rows={
            "10.0.0.1": {"Python": Cell("3.11.7"), "clock": Cell("+0.01 s")},
            "10.0.0.2": {"Python": Cell("3.12.1", "Python is 3.12.1, but 3.11.7 here")},
        }
    )
    heading, first, second, trouble = str(report).splitlines()
    assert heading.split() == [
        *("node", "offers", "Python", "Ray", "torch", "code", "device"),
        *("storage", "data", "clock"),
    ]
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
    assert row.split()[1:3] == [str(fanout.count_cpus()), "CPUs"]
    assert "digits" in row[heading.index("data") :]
    assert [path for path in results.rglob("*") if path.is_file()] == []


@pytest.fixture(scope="module")
def node():
    """The one node of a local Ray."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test
    with fanout.survey(Request()) as cluster:
        (node,) = cluster.nodes
        yield node


@pytest.mark.ray
class TestCalls:
    """What comes of a call on every node, well or not."""

    def test_its_value(self, node: Node):
        answers = fanout.run_on_every_node(lambda word: word * 2, {node: ("a",)}, patience=60)
        assert answers[node].value == "aa"
        assert answers[node].asked < answers[node].answered

    def test_what_it_raised(self, node: Node):
        answers = fanout.run_on_every_node(lambda: 1 / 0, {node: ()}, patience=60)
        assert answers[node].error == "ZeroDivisionError: division by zero"

    def test_its_silence(self, node: Node):
        begun = time.monotonic()
        answers = fanout.run_on_every_node(lambda: time.sleep(600), {node: ()}, patience=1)
        assert answers[node].error == "no answer within 1 s"
        assert time.monotonic() - begun < 10


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
    with pytest.raises(fanout.ClusterError, match="no Ray at"):
        check_cluster([make_trial()], Store(tmp_path), Request(address="127.0.0.1:1"))


@pytest.mark.parametrize(("address", "groups"), [("auto", 2), ("local", 0)])
def test_what_ray_up_could_add_is_known_on_its_head(address, groups, monkeypatch):
    monkeypatch.setattr(fanout, "BOOTSTRAP_FILE", Path(__file__).parents[3] / "cluster.yaml")
    monkeypatch.setattr(fanout.cluster_state, "get_cluster_config", lambda: None)
    found = {
        group.name: (group.most, group.offers)
        for group in fanout._list_groups(Request(address=address))
    }
    assert len(found) == groups
    assert found.get("spot", (8, "4 CPUs and 1 GPU")) == (8, "4 CPUs and 1 GPU")


def test_where_no_autoscaler_is_nothing_is_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr(fanout, "BOOTSTRAP_FILE", tmp_path / "absent.yaml")
    monkeypatch.setattr(fanout.cluster_state, "get_cluster_config", lambda: None)
    assert fanout._list_groups(Request(address="auto")) == []
