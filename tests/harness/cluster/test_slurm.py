"""What the script for Slurm does with a head that starts and with ones that do not; commands are fakes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "harness/cluster/slurm.sh"

FAKES = {
    "scontrol": "printf 'head\\n127.0.0.2\\n'",
    "hostname": "echo 192.0.2.77 10.0.0.1",  # of a network that the other node does not see
    "srun": 'echo "$@" >> steps; until [ "$1" = ray ] || [ "$1" = python ]; do shift; done; exec "$@"',
    "python": f"""
[ "$1" = -m ] || exec {sys.executable} "$@"
until grep --quiet -e --address= said; do sleep 0.1; done  # another node's start
echo "$@" >> said
""",
    "ray": """
echo "$@" >> said
case "$*" in *--head*) eval "$HEAD" ;; esac
""",
}

BOUND = 60.0
"""Seconds, on a machine with much else to do."""

LISTENS = f"exec {sys.executable} -m http.server --bind 127.0.0.1 $PORT"


@pytest.fixture
def submit(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the script as Slurm runs it on two nodes, with a head that does this."""
    for name, text in FAKES.items():
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        fake.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = tmp_path / "slurm.sh"
    script.write_text(SCRIPT.read_text(encoding="utf-8").replace("6379", port), encoding="utf-8")
    of_slurm = {
        "SLURM_JOB_NODELIST": "head,other",
        "SLURMD_NODENAME": "head",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_NNODES": "2",
    }

    def run(
        head: str, *, seconds_before: int = 0, container: str = ""
    ) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        told = {"PATH": path, "HEAD": head, "PORT": port, "SECONDS": str(seconds_before)}
        told |= {"CONTAINER": container} if container else {}
        with (
            (tmp_path / "log").open("w+", encoding="utf-8") as log,
            subprocess.Popen(
                ["bash", script, "grids/full.yaml"],
                cwd=tmp_path,
                env=os.environ | of_slurm | told,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ) as job,
        ):
            try:
                code = job.wait(timeout=BOUND)
            finally:
                with suppress(ProcessLookupError):  # Slurm ends what a job leaves, too
                    os.killpg(job.pid, signal.SIGKILL)
            log.seek(0)
            said = log.read().replace(port, "6379")
        return subprocess.CompletedProcess(job.args, code, said)

    return run


def test_the_head_is_found_by_the_address_that_its_other_nodes_see(submit, tmp_path):
    done = submit(LISTENS)
    assert done.returncode == 0, done.stdout
    said = (tmp_path / "said").read_text(encoding="utf-8")
    token, head, other, run = said.splitlines()
    assert token.startswith("get-auth-token")
    assert "--head" in head
    assert "--node-ip-address=127.0.0.1" in head
    address = other.rpartition("=")[2]
    assert address.startswith("127.0.0.1:")
    assert other == f"start --num-cpus=2 --disable-usage-stats --block --address={address}"
    assert run == f"-m harness.run grids/full.yaml --address {address} --wait-for-nodes 2"


def test_in_containers_ray_and_the_run_start_in_one(submit, tmp_path):
    submit(LISTENS, container="--container-image=one --container-workdir=/w")
    steps = (tmp_path / "steps").read_text(encoding="utf-8").splitlines()
    assert len(steps) == 3
    for step in steps:
        assert " --container-image=one --container-workdir=/w " in step
    (run,) = (step for step in steps if "harness.run" in step)
    assert "--nodelist=head python -m harness.run grids/full.yaml --address" in run


@pytest.mark.parametrize(
    ("head", "seconds_before"),
    [("echo no port left; exit 1", 0), ("exec sleep 100", 118)],
    ids=["ends", "hangs"],
)
def test_a_head_that_does_not_start_ends_the_job_with_the_reason(
    submit, tmp_path, head, seconds_before
):
    done = submit(head, seconds_before=seconds_before)
    assert done.returncode == 2
    assert "slurm.sh: no Ray at 127.0.0.1:6379 after " in done.stdout
    assert "/tmp/ray/session_latest/logs on head" in done.stdout
    assert "harness.run" not in (tmp_path / "said").read_text(encoding="utf-8")
