"""Networks stay on one type of device, and the types share the work."""

from __future__ import annotations

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cluster import fanout
from harness.cluster.devices import assign_devices, network_of
from harness.results.store import Store
from harness.study.errors import ClusterError
from tests.harness.conftest import make_rows, make_trial


class Notebook:
    """A watcher that does not care."""

    def count_workers(self, workers):
        pass

    def note_running(self, workers):
        pass

    def note_finish(self, finish):
        pass


TRIALS = [
    make_trial(placement=placement, depth=depth, seed=seed)
    for seed in range(3)
    for depth in (2, 4, 8, 16)
    for placement in ("before", "after")
]


@given(
    st.dictionaries(st.sampled_from(["A10G", "L4", "T4"]), st.integers(1, 32), min_size=1),
    st.lists(st.floats(0.1, 1e4), min_size=len(TRIALS), max_size=len(TRIALS)),
)
def test_every_network_gets_one_type_that_there_is(rooms, seconds):
    estimate = dict(zip((trial.id for trial in TRIALS), seconds, strict=True))
    chosen = assign_devices(TRIALS, lambda trial: estimate[trial.id], rooms, {})
    assert set(chosen) == {network_of(trial) for trial in TRIALS}
    assert set(chosen.values()) <= set(rooms)


def test_types_get_work_by_what_they_have_room_for():
    trials = [make_trial(depth=depth) for depth in range(1, 41)]
    chosen = assign_devices(trials, lambda _: 1.0, {"L4": 3, "T4": 1}, {})
    assert sorted(chosen.values()).count("L4") == 30


def test_what_has_been_trained_on_a_type_goes_on_there():
    known = {network_of(TRIALS[0]): "T4"}
    chosen = assign_devices(TRIALS, lambda _: 1.0, {"L4": 1_000, "T4": 1}, known)
    assert chosen[network_of(TRIALS[0])] == "T4"
    assert list(chosen.values()).count("T4") == 1


def test_who_has_a_choice_makes_way_for_who_has_none():
    short, long = make_trial(depth=1), make_trial(depth=2)
    known = {network_of(short): "L4"}
    chosen = assign_devices([short, long], lambda t: float(t.depth), {"L4": 1, "T4": 1}, known)
    assert chosen == {network_of(short): "L4", network_of(long): "T4"}


def test_a_type_that_is_gone_is_an_error_that_names_the_network():
    known = {network_of(TRIALS[0]): "T4"}
    with pytest.raises(ClusterError) as raised:
        assign_devices(TRIALS, lambda _: 1.0, {"L4": 1}, known)
    assert "digits mlp-2 has been trained on T4, and no node has one; there is L4" in str(
        raised.value
    )


@pytest.fixture
def two_types(monkeypatch):
    """Address of a cluster with two GPUs each of two types; they exist on paper only."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    small = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80 * 2**20}
    head = small | {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for name in ("L4", "T4"):
        cluster.add_node(**small, resources={f"accelerator_type:{name}": 1})
    yield cluster.address
    cluster.shutdown()


def train_nowhere(start):
    """Stand in for training: the device is the one of the node it would have been on."""
    import time

    import ray

    time.sleep(0.2)  # long enough for the other node to get its share
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    (name,) = (name for name in node["Resources"] if name.startswith("accelerator_type:"))
    device = name.replace("accelerator_type:", "NVIDIA ")
    return [
        make_rows(trial, device=device, attempt=start.attempt, run=start.run)
        for trial in start.pack
    ]


@pytest.mark.ray
def test_each_pinned_network_meets_one_type_and_both_types_have_work(two_types, tmp_path):
    from ray import cloudpickle

    from tests.harness import conftest

    for module in (sys.modules[__name__], conftest):
        cloudpickle.register_pickle_by_value(module)  # no worker can import a test
    store = Store(tmp_path)
    fanout.train_missing(
        TRIALS,
        store,
        fanout.Request(address=two_types, pin_device_type=True),
        run="now",
        estimate=lambda _: 1.0,
        limit=lambda _: 100.0,
        watcher=Notebook(),
        stop=threading.Event(),
        train=train_nowhere,
    )
    rows = store.read_trial_rows()
    assert len(rows) == len(TRIALS)
    met = {(network_of(row), row.device) for row in rows}
    assert len(met) == len({network_of(row) for row in rows})
    assert {device for _, device in met} == {"NVIDIA L4", "NVIDIA T4"}
