"""Connect to Ray: a local one of the run's own, or a cluster; and give its workers the driver's code."""

from __future__ import annotations

import io
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import ray

from harness.cluster.guard import ending_with_ray
from harness.cluster.machine import count_cpus
from harness.cluster.ray_internals import undisturbed_start
from harness.cluster.request import Request
from harness.cluster.scratch import make_scratch, note_session, sweep_scratch
from harness.study.errors import ClusterError, last_line
from harness.training.provenance import COMMIT_VARIABLE, PACKAGE, read_commit

PATIENCE = 5.0
"""Seconds a cluster has to accept a connection."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer one draws tables even at verbose=0
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative path means the same in a worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker that asked for no GPU sees none
    "RAY_prestart_worker_first_driver": "0",  # else Ray's start waits for workers that never come
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard beside the rows
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stop` decides
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is never restored
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",  # beyond the 5 s that Tune gives a stopped worker anyway
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they become failure rows
    "TUNE_WARN_THRESHOLD_S": "10",
}
"""Settings of Ray and Tune, where the user's own environment has none."""

_log = logging.getLogger(__name__)


@contextmanager
def connect(request: Request) -> Iterator[None]:
    """A local Ray that ends with the block, or a connection to the one at the address.

    Whatever Ray prints within the block goes to the log, not into the progress display.

    Raises:
        ClusterError: Ray does not answer.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray's logger writes to the terminal by itself; the root logger decides about that.
    ray_log = logging.getLogger("ray")
    ray_log.handlers.clear()
    ray_log.propagate = True
    # This one misses the files of the callbacks that are off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    sweep_scratch()
    if request.address == "local":
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "4")  # nothing to autoscale
        code = _copied_code()
        own: dict[str, Any] = {
            "num_cpus": count_cpus(),
            "include_dashboard": False,
            "object_store_memory": 128 * 2**20,  # holds shards, not data
        }
    else:
        _knock(request.address)
        code = nullcontext()
        own = {"runtime_env": _package_code()}
    printed = _LogStream()
    with redirect_stdout(printed), redirect_stderr(printed), code as scratch:
        try:
            with undisturbed_start():
                context = ray.init(
                    address=request.address, log_to_driver=False, configure_logging=False, **own
                )
            if scratch:
                note_session(scratch, context.address_info["session_dir"])
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
            raise ClusterError(f"no Ray at {request.address!r}: {last_line(error)}") from error
        try:
            with ending_with_ray():
                yield
        finally:
            ray.shutdown()
            sweep_scratch()  # again: workers of a killed run may end half a minute after it


@contextmanager
def _copied_code() -> Iterator[Path]:
    """Let workers on this machine run a copy of this package, by the environment they start from.

    Whatever happens to the files meanwhile, such as a switch of branches, a worker that starts later
    runs what the driver runs. The folder of the copy is that of the run.
    """
    with make_scratch("code") as folder:
        shutil.copytree(PACKAGE, folder / PACKAGE.name)
        # Python imports this at its start. Later Ray puts the current folder ahead of all others.
        (folder / "sitecustomize.py").write_text(f"import {PACKAGE.name}\n")
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        told = {"PYTHONPATH": path, COMMIT_VARIABLE: _describe_commit()}
        before = {name: os.environ.get(name) for name in told}
        os.environ.update(told)
        try:
            yield folder
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _package_code() -> dict[str, Any]:
    """The same for workers on a cluster, by Ray's runtime environment."""
    return {
        "py_modules": [str(PACKAGE)],
        "env_vars": {COMMIT_VARIABLE: _describe_commit()},
        "worker_process_setup_hook": _import_package,  # ahead of a checkout that a node may have
    }


def _import_package() -> None:
    """Nothing more: whoever calls it has imported the package that this file belongs to."""


def _describe_commit() -> str:
    commit, dirty = read_commit()
    return f"{commit} dirty" if dirty else commit


class _LogStream(io.TextIOBase):
    def write(self, text: str, /) -> int:
        for line in filter(None, map(str.strip, text.splitlines())):
            _log.info("printed: %s", line)
        return len(text)


def _knock(address: str) -> None:
    """Fail within `PATIENCE` where nobody listens; Ray itself would try for minutes.

    Raises:
        ClusterError: nobody listens, or the address is none.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address}: through Ray Client the grid would run in another process than this one, "
            "and go on without it. Run this command on the cluster with --address auto: "
            "in a shell there, or by `ray job submit -- python -m harness.run GRID --address auto`"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"{address!r} is not an address: auto, or host:port as in 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray at {address}: {error}") from error
