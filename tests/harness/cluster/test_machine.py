"""What a machine gives and lacks is told ahead of a run, with the variable that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cluster.machine import LONGEST_SOCKET, count_cpus, refuse_unfit_machine
from harness.study.errors import ClusterError
from tests.builders import make_trial

ALL = len(os.sched_getaffinity(0))


@pytest.fixture
def lay(tmp_path):
    """Lay files of /proc and /sys where `count_cpus` may look."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="ascii")
        return tmp_path

    return write


V1 = "11:memory:/a\n4:cpu,cpuacct:/docker/b\n0::/\n"


class TestCpus:
    def test_without_quotas_affinity_counts(self, tmp_path):
        assert count_cpus(tmp_path) == ALL
        code = "from harness.cluster.machine import count_cpus; print(count_cpus())"
        first = str(min(os.sched_getaffinity(0)))
        done = subprocess.run(
            ["taskset", "-c", first, sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "1\n"

    @pytest.mark.parametrize(
        "files",
        [
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "190000 100000\n"},
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "20000 100000\n"},
            {"proc/self/cgroup": "0::/not/mounted\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/b/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/b/cpu.cfs_period_us": "50000\n",
            },
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
        ],
        ids=["v2", "v2, of a parent", "v2, less than 1", "v2, container", "v1", "v1, container"],
    )
    def test_a_quota_counts_wherever_it_is_set(self, lay, files):
        assert count_cpus(lay(files)) == 1

    @pytest.mark.parametrize("quota", ["max 100000", "", "100000", "900000000 100000"])
    def test_no_quota_takes_nothing_away(self, lay, quota):
        files = {"proc/self/cgroup": "0::/\n" + V1, "sys/fs/cgroup/cpu.max": quota}
        files["sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1\n"
        files["sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000\n"
        assert count_cpus(lay(files)) == ALL

    @pytest.mark.ray
    def test_it_is_no_more_than_ray_counts(self):
        from ray._private.utils import get_num_cpus

        assert count_cpus() <= max(1, get_num_cpus())


def refuse(*trials, is_local=True):
    with pytest.raises(ClusterError) as raised:
        refuse_unfit_machine(trials or [make_trial()], is_local=is_local)
    return str(raised.value)


class TestLacks:
    """Each in our words, and with the variable to set."""

    @pytest.fixture(autouse=True)
    def _fit(self, monkeypatch, tmp_path):
        for name in ("RAY_TMPDIR", "BN_ORDER_DATA", "RAY_AUTH_MODE", "CXX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TMPDIR", "/tmp")
        monkeypatch.setenv("HOME", str(tmp_path))

    def test_a_fit_machine_lacks_nothing(self, tmp_path):
        before = sorted(tmp_path.iterdir())
        refuse_unfit_machine([make_trial(dataset="fashion-mnist")], is_local=True)
        assert sorted(tmp_path.iterdir()) == before  # and nothing is left there

    @pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
    @pytest.mark.parametrize(
        "folder", ["/proc/nowhere", "relative", "", "/etc/hostname", "/dev/full"]
    )
    def test_a_temporary_folder_that_is_none(self, monkeypatch, name, folder):
        monkeypatch.setenv(name, folder)
        assert refuse().startswith(f"{name}={folder}: ")

    def test_a_temporary_folder_without_room(self):
        code = "from harness.cluster.machine import *; refuse_unfit_machine([], is_local=True)"
        limit = f"ulimit -f 1000; trap '' XFSZ; exec {sys.executable} -c '{code}'"
        done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True, check=False)
        assert "TMPDIR=/tmp: file too large. Set TMPDIR to a folder" in done.stderr

    def test_a_temporary_folder_too_long_for_sockets(self, monkeypatch, tmp_path):
        """As Ray itself counts; see its `validate_socket_filepath`."""
        deep = tmp_path / ("x" * LONGEST_SOCKET)
        deep.mkdir()
        monkeypatch.setenv("TMPDIR", str(deep))
        assert "bytes too long for the sockets" in refuse()
        assert "Set RAY_TMPDIR to a folder with a shorter path" in refuse()
        refuse_unfit_machine([make_trial()], is_local=False)  # a cluster has sockets of its own
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        refuse_unfit_machine([make_trial()], is_local=True)

    def test_a_home_that_cannot_be_written(self, monkeypatch):
        monkeypatch.setenv("HOME", "/proc/self")
        assert refuse().startswith("HOME=/proc/self: /proc/self/.ray/auth_token cannot be made")
        assert "Set BN_ORDER_DATA to a folder" in refuse(make_trial(dataset="cifar10"))
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        refuse_unfit_machine([make_trial()], is_local=True)

    def test_a_user_without_a_name_or_a_home(self, monkeypatch):
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(Path, "expanduser", _nobody)
        assert refuse().startswith(f"HOME is not set, and the user id {os.getuid()} has no home")
        assert "Set HOME to a folder that can be written" in refuse(is_local=False)
        assert "Set BN_ORDER_DATA" in refuse(make_trial(dataset="cifar10"))

    @pytest.mark.parametrize(
        "command", ["harness.run grids/quickstart.yaml --results {}", "analysis.report {}"]
    )
    def test_docstrings_that_ray_and_altair_need(self, command, tmp_path):
        done = subprocess.run(
            [sys.executable, "-OO", "-m", *command.format(tmp_path).split()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.endswith(": unset PYTHONOPTIMIZE, or set it to 1\n")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "sh -c 'exit 1' #"])
    def test_a_compiler_that_compile_needs(self, monkeypatch, compiler):
        monkeypatch.setenv("CXX", compiler)
        refuse_unfit_machine([make_trial()], is_local=True)
        assert refuse(make_trial(compile=True)).startswith(
            "compile: true needs a C++ compiler, and "
        )


def _nobody(_path):
    raise RuntimeError("Could not determine home directory.")
