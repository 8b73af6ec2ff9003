"""A run whose workers do not come up, or whose Ray is gone, ends and says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cluster import ray_internals
from harness.cluster.connection import connect
from harness.cluster.request import Request
from harness.results.store import Store

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]

GRID = """
name: long
defaults: {dataset: digits, epochs: 300, warmup_epochs: 1, augmentation: none}
seeds: 20
grid:
  - {architecture: mlp, placement: [before, after], depth: 2, width_factor: 0.1}
"""

CRASH = """
import importlib.util, os, sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    sys.exit("libcudart.so.13: cannot open shared object file")
path = os.path.join(os.path.dirname(os.__file__), "base64.py")
spec = importlib.util.spec_from_file_location("base64", path)
spec.loader.exec_module(sys.modules.setdefault("base64", importlib.util.module_from_spec(spec)))
"""
"""Stands in the way of a module that Ray's workers import first, and lets every other process pass."""


def start(folder, *arguments, start_limit=90.0, **environment):
    (folder / "long.yaml").write_text(GRID, encoding="utf-8")
    run = (
        f"import sys; from harness.cluster import desk, guard, nodes; "
        f"guard.START = desk.START = nodes.START = {start_limit}; "
        f"from harness.run import main; sys.exit(main(['long.yaml', *{arguments}]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", run],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("option", "code"), [((), 2), (("--check-cluster",), 1)])
def test_workers_that_crash_at_their_start_end_a_run_with_the_cause(tmp_path, option, code):
    (tmp_path / "base64.py").write_text(CRASH, encoding="utf-8")
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    run = start(tmp_path, *option, start_limit=10.0, PYTHONPATH=path)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == code, said
    if not option:
        assert "no worker came up on 127.0.0.1 within 10 s" in said
        assert "libcudart.so.13: cannot open shared object file" in said


@pytest.mark.slow
def test_a_raylet_that_is_killed_ends_the_run_with_a_code_of_its_own(tmp_path):
    run = start(tmp_path)
    store = Store(tmp_path / "results/long")
    while not store.finished_ids():
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.1)
    listed = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(run.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    [raylet] = [line.split()[0] for line in listed.stdout.splitlines() if "raylet" in line]
    os.kill(int(raylet), signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 4, said
    assert "Ray's raylet ended under the run" in said
    assert "To go on, give the command again" in said
    assert "Traceback" not in said


ON_A_CLUSTER = """
import sys, time, types
from harness.cluster import guard
guard.SILENCE, guard.KNOCK_EVERY = 1.0, 0.2
guard.ray_internals.open_processes = dict
head = types.SimpleNamespace(gcs_address=sys.argv[1])
guard.ray = types.SimpleNamespace(get_runtime_context=lambda: head)
with guard.ending_with_ray():
    print(flush=True)
    time.sleep(60)
"""


def test_a_head_that_no_longer_answers_ends_the_run_with_a_code_of_its_own():
    """Ray would end the process after a minute, with a line about itself."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        run = subprocess.Popen(
            [sys.executable, "-c", ON_A_CLUSTER, address],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert run.stdout
        run.stdout.readline()
        time.sleep(3.0)
        assert run.poll() is None
    said, _ = run.communicate(timeout=30)
    assert run.returncode == 4, said
    assert f"the head of the cluster, {address}, was lost under the run" in said
    assert "To go on, give the command again" in said


def list_listeners():
    """The addresses that processes of Ray's listen at."""
    listed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True)
    mine = {str(os.getpid())} | {
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"HARNESS_TEST={os.getpid()}".encode() in _read(path)
    }
    for line in listed.stdout.splitlines():
        _, _, _, address, _, *process = line.split()
        if any(f"pid={pid}," in "".join(process) for pid in mine):
            yield address.rpartition(":")[0]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/usr/bin/ss").exists(), reason="ss (iproute2) is not installed")
def test_a_local_ray_listens_on_loopback_alone(monkeypatch):
    import ray

    monkeypatch.setenv("HARNESS_TEST", str(os.getpid()))
    with connect(Request()):
        ray.get(ray.remote(lambda: None).remote())
        time.sleep(5)
        listeners = list(list_listeners())
    assert len(listeners) > 5
    assert set(listeners) <= {"127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"}


def test_a_token_that_ray_makes_is_its_owners_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with ray_internals.undisturbed_start():
        ray_internals.tokens.generate_and_save_token()
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
