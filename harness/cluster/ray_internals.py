"""The parts of Ray used here that Ray does not promise to keep, each with the reason.

No other module imports them. `tests/harness/cluster/test_ray_internals.py` names the part that a
new version of Ray has moved.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from harness.study.errors import ClusterError

try:
    from ray._private import ray_constants, services, utils, worker
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._private.node import Node
    from ray._private.state import state
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental import internal_kv

    START_PROCESS = services.ConsolePopen
    STARTERS = {
        name: getattr(Node, name)
        for name in ("start_api_server", "start_log_monitor", "start_monitor")
    }
    SET_SIGTERM_HANDLER = utils.set_sigterm_handler
    GET_CLUSTER_CONFIG = state.get_cluster_config
    SAVE_TOKEN = tokens.generate_and_save_token
    GET_HEAD: Callable[[], Any] = internal_kv.internal_kv_get_gcs_client
    IS_OPEN_TO_NEIGHBOURS = ray_constants.ENABLE_RAY_CLUSTER
except (ImportError, AttributeError) as error:
    raise ClusterError(
        f"Ray {ray.__version__} has moved a part that is needed here ({error}); "
        "install the tested version: pip install -c constraints.txt ray"
    ) from error

_SHELF = b"bn-order"
"""The namespace of our values in Ray's head."""


@contextmanager
def undisturbed_start() -> Iterator[None]:
    """Within the block a Ray that starts disturbs neither this process nor its neighbours.

    Ray has no setting for it. Its own SIGTERM handler exits and leaves Ray's processes behind,
    where a run stops in order. And a signal to the driver's group, as `timeout` and Slurm send it,
    would end Ray's processes ahead of the run that needs them to stop. A local Ray listens on
    loopback alone, as it does on other systems than Linux; and the token that it may make is not
    readable to all. It comes up without its dashboard, autoscaler and sender of logs, which a run
    does not use: a third of the start, and 2 s of CPU.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler = lambda _handler: None
    services.ConsolePopen = partial(subprocess.Popen, process_group=0)
    ray_constants.ENABLE_RAY_CLUSTER = False
    tokens.generate_and_save_token = _save_token_for_its_owner
    for name in STARTERS:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        utils.set_sigterm_handler = SET_SIGTERM_HANDLER
        services.ConsolePopen = START_PROCESS
        ray_constants.ENABLE_RAY_CLUSTER = IS_OPEN_TO_NEIGHBOURS
        tokens.generate_and_save_token = SAVE_TOKEN
        for name, starter in STARTERS.items():
            setattr(Node, name, starter)
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's C++ side has a handler that aborts


def _start_nothing(_node: object, **_: object) -> None:
    """In place of a method of Ray's node."""


def read_node_groups() -> dict[str, tuple[int, Mapping[str, float]]]:
    """By name, how many nodes of a group an autoscaler adds, and each one's resources.

    Public functions tell the nodes that are up, and not those that could come. Empty where the
    autoscaler has told Ray nothing; that of `ray up` never does.
    """
    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return {group.name: (group.max_count, dict(group.resources)) for group in groups}


def find_refused_groups() -> frozenset[str]:
    """The groups of which a node was asked for lately and did not come.

    `ray status` prints them; no public function returns them.
    """
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return frozenset(launch.ray_node_type_name for launch in status.failed_launches)


def open_processes() -> dict[str, int]:
    """By name, a descriptor of each process on this machine that a run cannot do without.

    It can be read once the process has ended. Empty where the system has no such thing.
    """
    node: Any = worker._global_node  # noqa: SLF001  no public function knows it
    pids = {
        name: processes[0].process.pid
        for name, processes in node.all_processes.items()
        if name in ("raylet", "gcs_server")
    }
    if not pids and hasattr(socket, "SO_PEERCRED"):  # a cluster's: it tells who it is
        with socket.socket(socket.AF_UNIX) as raylet:
            raylet.connect(node.raylet_socket_name)
            size = struct.calcsize("3i")
            peer = raylet.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pids = {"raylet": struct.unpack("3i", peer)[0]}
    if not hasattr(os, "pidfd_open"):
        return {}
    return {name: os.pidfd_open(pid) for name, pid in pids.items() if pid}


def end_own_processes() -> None:
    """End what `ray.init` has started, at once."""
    if node := worker._global_node:  # noqa: SLF001  no public function knows it
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def find_logs() -> Path:
    """Where the Ray on this machine writes what it does."""
    node = worker._global_node  # noqa: SLF001  no public function knows it
    return Path(node.get_logs_dir_path()) if node else Path("/tmp/ray/session_latest/logs")  # noqa: S108  Ray's


def read_complaints(most: int = 6) -> list[str]:
    """The last lines in which the Ray on this machine says what went wrong with its workers."""
    errors = [*find_logs().glob("raylet.err"), *find_logs().glob("worker-*.err")]
    lines = [line for path in errors for line in _read_lines(path)]
    for path in (*find_logs().glob("runtime_env_setup-*.log"), *find_logs().glob("raylet.out")):
        lines += [line for line in _read_lines(path) if re.search(r"\b[EC] \d+ |ERROR", line)]
    return list(dict.fromkeys(reversed(lines)))[:most][::-1]


def find_reserved_nodes() -> set[str]:
    """The ids of the nodes on which resources wait for a worker of this driver's."""
    job = ray.get_runtime_context().get_job_id()  # a placement group's id ends in its job's
    return {
        node
        for group in ray.util.placement_group_table().values()
        if group["state"] == "CREATED" and group["placement_group_id"].endswith(job)
        for node in group["bundles_to_node_id"].values()
    }


def put_value(name: str, value: bytes) -> None:
    """Keep a small value in the memory of Ray's head, in place of an earlier one.

    The public ways from a worker to its driver are an actor, which is one more process to start,
    and the result of a task, which comes at its end.
    """
    GET_HEAD().internal_kv_put(name.encode(), value, True, _SHELF)


def get_values(names: Sequence[str], *, patience: float) -> list[bytes]:
    """What is kept under these names, of those that keep anything.

    Units:
        patience: seconds.
    """
    if not names:
        return []
    keys = [name.encode() for name in names]
    found = GET_HEAD().internal_kv_multi_get(keys, _SHELF, patience)
    return [found[key] for key in keys if key in found]


def drop_values(prefix: str) -> None:
    """Keep no more what has a name that begins so."""
    GET_HEAD().internal_kv_del(prefix.encode(), True, _SHELF)


def _read_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.strip()[:300] for line in deque(file, maxlen=1_000) if line.strip()]


def _save_token_for_its_owner() -> None:
    before = os.umask(0o077)
    try:
        SAVE_TOKEN()
    finally:
        os.umask(before)
