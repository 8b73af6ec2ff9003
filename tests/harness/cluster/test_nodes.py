"""Which nodes a cluster has and could have, and what comes of a call on each."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from harness.cluster import nodes
from harness.cluster.nodes import (
    count_room_to_come,
    list_groups,
    run_on_every_node,
    survey,
    wait_for_nodes,
)
from harness.cluster.request import Node, Request, describe_resources
from harness.study.errors import ClusterError


class Notebook:
    """A watcher that keeps what it is told."""

    def note_waiting(self, nodes, wanted):
        self.waited_for = nodes, wanted


class Nodes:
    """One more is up each time somebody looks."""

    def __init__(self):
        self.up = 0

    def nodes(self):
        self.up += 1
        return [{"Alive": index < self.up} for index in range(9)]


class NeverStop:
    def wait(self, _seconds):
        return False


def test_a_run_waits_for_its_nodes_and_says_so(monkeypatch):
    monkeypatch.setattr(nodes, "ray", Nodes())
    notebook = Notebook()
    wait_for_nodes(Request(address="auto", wait_for_nodes=4), notebook, NeverStop())
    assert notebook.waited_for == (3, 4)


def test_a_run_that_is_stopped_waits_no_longer(monkeypatch):
    monkeypatch.setattr(nodes, "ray", Nodes())
    stop = threading.Event()
    stop.set()
    notebook = Notebook()
    wait_for_nodes(Request(address="auto", wait_for_nodes=4), notebook, stop)
    assert notebook.waited_for == (1, 4)


def test_a_ray_of_its_own_never_has_two_nodes():
    with pytest.raises(ClusterError, match=r"--wait-for-nodes 2: .* give its --address"):
        wait_for_nodes(Request(wait_for_nodes=2), Notebook(), NeverStop())


@pytest.fixture(scope="module")
def node():
    """The one node of a local Ray."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test
    with survey(Request()) as cluster:
        (node,) = cluster.nodes
        yield node


@pytest.mark.ray
class TestCalls:
    """What comes of a call on every node, well or not."""

    def test_its_value(self, node: Node):
        answers = run_on_every_node(lambda word: word * 2, {node: ("a",)}, patience=60)
        assert answers[node].value == "aa"

    def test_what_it_raised(self, node: Node):
        answers = run_on_every_node(lambda: 1 / 0, {node: ()}, patience=60)
        assert answers[node].error == "ZeroDivisionError: division by zero"

    def test_its_silence(self, node: Node):
        begun = time.monotonic()
        answers = run_on_every_node(lambda: time.sleep(600), {node: ()}, patience=1)
        assert answers[node].error == "no answer within 1 s"
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("address", "groups"), [("auto", 2), ("local", 0)])
def test_what_ray_up_could_add_is_known_on_its_head(address, groups, monkeypatch):
    monkeypatch.setattr(nodes, "BOOTSTRAP_FILE", Path(__file__).parents[3] / "cluster.yaml")
    monkeypatch.setattr(nodes, "read_node_groups", dict)
    found = {
        group.name: (group.most, describe_resources(group.resources))
        for group in list_groups(Request(address=address))
    }
    assert len(found) == groups
    assert found.get("spot", (8, "4 CPUs and 1 GPU")) == (8, "4 CPUs and 1 GPU")


def test_room_to_come_is_that_of_every_node_an_autoscaler_could_add(monkeypatch):
    groups = {"spot": (8, {"CPU": 4, "GPU": 1}), "small": (5, {"CPU": 2})}
    monkeypatch.setattr(nodes, "read_node_groups", lambda: groups)
    quarter = {"CPU": 1.0, "GPU": 0.25}
    assert count_room_to_come(Request(address="auto"), quarter) == 8 * 4
    assert count_room_to_come(Request(address="auto"), {"CPU": 1.0, "GPU": 0.0}) == 8 * 4 + 5 * 2
    assert count_room_to_come(Request(address="local"), quarter) == 0


def test_where_no_autoscaler_is_nothing_is_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "BOOTSTRAP_FILE", tmp_path / "absent.yaml")
    monkeypatch.setattr(nodes, "read_node_groups", dict)
    assert list_groups(Request(address="auto")) == []
