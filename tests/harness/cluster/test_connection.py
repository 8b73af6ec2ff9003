"""How a run finds its Ray, and whose code the workers there run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cluster.connection import connect
from harness.cluster.nodes import run_on_every_node, survey
from harness.cluster.request import Request
from harness.results.store import Store
from harness.study.errors import ClusterError
from harness.training.provenance import digest_code, read_commit

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", "'head' is not an address: auto, or host:port as in 10.0.0.1:6379"),
        ("head:port", "'head:port' is not an address"),
        ("ray://head:10001", "Run this command on the cluster with --address auto"),
    ],
)
def test_an_address_that_is_none_is_an_error(address, message):
    with pytest.raises(ClusterError) as raised:
        connect(Request(address=address)).__enter__()
    assert message in str(raised.value)


def test_a_cluster_that_does_not_answer_is_an_error_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray at {address}: .*refused"):
            connect(Request(address=address)).__enter__()


GRID = """
name: small
defaults: {dataset: digits, epochs: 4, warmup_epochs: 1, augmentation: none}
seeds: 30
grid:
  - {architecture: mlp, placement: [before, after], depth: 2, width_factor: 0.1}
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_switch_of_branches_during_a_run_changes_nothing(tmp_path):
    """A worker that starts after it trains with the code of the run all the same."""
    tree = tmp_path / "tree"
    for package in ("harness", "analysis"):
        shutil.copytree(ROOT / package, tree / package)
    (tree / "small.yaml").write_text(GRID, encoding="utf-8")

    def git(*arguments):
        me = ("-c", "user.name=me", "-c", "user.email=me@localhost")
        done = subprocess.run(
            ["git", *me, *arguments], cwd=tree, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--initial-branch", "one")
    git("add", ".")
    git("commit", "--message", "one")
    commit = git("rev-parse", "HEAD")
    git("switch", "--create", "other")
    (tree / "harness/training/networks.py").write_text(
        "raise SystemExit('other code')", encoding="ascii"
    )
    git("commit", "--all", "--message", "other")
    git("switch", "one")

    run = subprocess.Popen(
        [sys.executable, "-m", "harness.run", "small.yaml", "--max-concurrent", "1"],
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    store = Store(tree / "results/small")
    while not store.finished_ids():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.02)
    git("switch", "other")
    [row, *_] = store.read_trial_rows()
    os.kill(row.worker, signal.SIGKILL)
    _, said = run.communicate(timeout=240)
    assert run.returncode == 0, said
    rows = store.read_trial_rows()
    assert len(rows) == 60
    assert len({row.worker for row in rows}) == 2
    assert {(row.code_digest, row.commit, row.dirty) for row in rows} == {
        (row.code_digest, commit, False)
    }


@pytest.mark.ray
def test_workers_of_a_cluster_run_the_drivers_code_not_a_checkout_they_stand_in():
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    def say_code():
        from harness.training import provenance

        return Path(provenance.__file__), provenance.digest_code(), provenance.read_commit()

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        with survey(Request(address=cluster.address)) as found:
            nodes = dict.fromkeys(found.nodes, ())
            [answer] = run_on_every_node(say_code, nodes, patience=120).values()
    finally:
        cluster.shutdown()
    path, digest, commit = answer.value
    assert not path.is_relative_to(ROOT)
    assert (digest, commit) == (digest_code(), read_commit())
