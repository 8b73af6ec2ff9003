"""`ray job submit -- python -m harness.run ...` to a real head with a dashboard, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.results.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
BOUND = 600.0
"""Seconds, on a machine with much else to do."""

GRID = """
name: small
defaults: {dataset: digits, warmup_epochs: 1, augmentation: none}
seeds: 1
grid:
  - {architecture: mlp, placement: [before, after], depth: 2}
"""

Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A head on this machine that asks for a token; the environment of who may talk to it."""
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
    with tempfile.TemporaryDirectory(prefix="job-") as folder:  # sockets need a short path
        ports = [_find_port() for _ in range(3)]
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text("0123456789abcdef" * 2, encoding="ascii")
        told = os.environ | {
            "HOME": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ADDRESS": f"http://127.0.0.1:{ports[1]}",
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": "180",
        }
        of_head = {name: value for name, value in told.items() if name != "RAY_ADDRESS"}
        options = [
            *(f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={folder}/ray"),
            *("--num-cpus=1", "--disable-usage-stats", "--block"),
        ]
        with subprocess.Popen(
            [RAY, "start", "--head", *options],
            env=of_head,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as head:
            try:
                _wait(lambda: _ray(told, "job", "list").returncode == 0)
                yield told
            finally:
                head.send_signal(signal.SIGTERM)  # it ends what it has started
                with suppress(subprocess.TimeoutExpired):
                    head.wait(30)
                with suppress(ProcessLookupError):
                    os.killpg(head.pid, signal.SIGKILL)


def _find_port() -> int:
    """Below Ray's ports for workers, from 10002 on."""
    for port in range(8_300 + os.getpid() % 1_000, 10_000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in _given:
                _given.add(port)
                return port
    pytest.fail("no port is free")


_given: set[int] = set()


def _ray(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


def _wait(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + BOUND
    while not is_so():
        assert time.monotonic() < until, "it took too long"
        time.sleep(1)


@pytest.fixture
def submit(environment, tmp_path) -> Submit:
    """Submit a run of a grid of two trials from a checkout, as the README does."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("harness", "analysis"):
        (checkout / name).symlink_to(ROOT / name)
    (checkout / "small.yaml").write_text(GRID, encoding="utf-8")

    def run(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "harness.run", "small.yaml", *arguments]
        there = ["--working-dir", str(checkout), *options]
        return _ray(environment, "job", "submit", *there, "--", *command, "--address", "auto")

    return run


def test_a_job_trains_into_a_place_that_stays_and_ends_with_the_code_of_the_run(submit, tmp_path):
    rows = tmp_path / "rows"
    lost = submit("epochs=1")
    assert lost.returncode == 1
    assert "Ray deletes this copy of a job's working directory" in lost.stdout
    assert "exit code 3" in lost.stdout
    done = submit("epochs=1", "--results", str(rows))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "small: 2 trials = 2 done" in done.stdout
    assert len(Store(rows).finished_ids()) == 2


def test_a_stopped_job_keeps_what_is_finished_and_the_next_one_goes_on(
    submit, environment, tmp_path
):
    rows = tmp_path / "rows"
    store = Store(rows)
    name = f"stopped-{os.getpid()}"
    begun = submit(
        "epochs=2000", "--results", str(rows), options=("--no-wait", "--submission-id", name)
    )
    assert begun.returncode == 0, begun.stdout + begun.stderr
    _wait(lambda: "small: 0 of 2" in _ray(environment, "job", "logs", name).stdout)
    _wait(lambda: any("epoch " in line for line in _read_progress(store)))
    stopped = _ray(environment, "job", "stop", name)
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    _wait(lambda: not store.place.list_files("active"))
    assert "STOPPED" in _ray(environment, "job", "status", name).stdout.upper()
    assert store.finished_ids() == frozenset()
    done = submit("epochs=1", "--results", str(rows))
    assert done.returncode == 0, done.stdout + done.stderr


def _read_progress(store: Store) -> list[str]:
    files = store.place.list_files("active")
    claims = [json.loads(store.place.read(f"active/{file.name}") or b"{}") for file in files]
    return [line for claim in claims for line in claim.get("progress", ())]


def test_without_the_token_nothing_is_submitted(environment, tmp_path):
    other = tmp_path / "token"
    other.write_text("f" * 32, encoding="ascii")
    refused = _ray(environment | {"RAY_AUTH_TOKEN_PATH": str(other)}, "job", "list")
    assert refused.returncode != 0
