"""What of Ray may move with its next version: each test names the part that did."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
from contextlib import suppress
from types import CodeType

import pytest
import ray

from harness.cluster import ray_internals
from harness.cluster.connection import connect
from harness.cluster.request import Request
from harness.study.errors import ClusterError


def names_in(code: CodeType) -> set[str]:
    """Every name that a function uses, those inside it included."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*inner)


@pytest.mark.parametrize(
    ("caller", "name"),
    [
        ("ray._private.services:start_ray_process", "ConsolePopen"),
        ("ray._private.worker:init", "set_sigterm_handler"),
        ("ray._private.services:get_node_ip_address", "ENABLE_RAY_CLUSTER"),
        (
            "ray._private.authentication.authentication_token_setup:ensure_token_if_auth_enabled",
            "generate_and_save_token",
        ),
        ("ray._private.node:Node._register_shutdown_hooks", "set_sigterm_handler"),
        ("ray._private.node:Node.start_head_processes", "start_api_server"),
        ("ray._private.node:Node.start_head_processes", "start_monitor"),
        ("ray._private.node:Node.start_ray_processes", "start_log_monitor"),
    ],
)
def test_ray_still_calls_what_a_start_replaces(caller, name):
    module, _, path = caller.partition(":")
    function = importlib.import_module(module)
    for part in path.split("."):
        function = getattr(function, part, None)
        assert function is not None, (
            f"Ray {ray.__version__} has moved {caller}, seen to call {name}"
        )
    function = getattr(function, "__wrapped__", function)
    assert name in names_in(function.__code__), (
        f"Ray {ray.__version__}: {caller} calls {name} no more; "
        "undisturbed_start in harness/cluster/ray_internals.py replaces it in vain"
    )


def test_what_a_start_replaces_is_put_back():
    def look():
        return (
            ray_internals.services.ConsolePopen,
            ray_internals.utils.set_sigterm_handler,
            signal.getsignal(signal.SIGTERM),
            *(getattr(ray_internals.Node, name) for name in ray_internals.STARTERS),
        )

    before = look()
    with suppress(OSError), ray_internals.undisturbed_start():
        assert all(here is not there for here, there in zip(look()[:2], before[:2], strict=True))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise OSError
    assert look() == before


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray._private.services", "ConsolePopen"),
        ("ray._private.utils", "set_sigterm_handler"),
        ("ray._private.node.Node", "start_monitor"),
        ("ray.autoscaler.v2.sdk", "get_cluster_status"),
    ],
)
def test_a_ray_that_has_moved_a_part_is_an_error_that_names_it(monkeypatch, module, name):
    with monkeypatch.context() as patch:
        patch.delattr(f"{module}.{name}")
        with pytest.raises(Exception, match=f"moved a part .*{name}.*constraints.txt") as raised:
            importlib.reload(ray_internals)
    importlib.reload(ray_internals)
    assert isinstance(raised.value, ClusterError)


@pytest.mark.ray
def test_rays_processes_get_no_signal_of_ours_and_the_cluster_can_be_asked():
    def list_children() -> dict[str, tuple[str, bool]]:
        """What each child of this process is called, and whether it leads its own group."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,pgid=,comm=", "--ppid", str(os.getpid())],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
        return {pid: (name, pid == group) for pid, group, name in rows if name != "ps"}

    handler = signal.getsignal(signal.SIGTERM)
    before = list_children()  # an earlier test may have left its resource tracker
    with connect(Request()):
        assert signal.getsignal(signal.SIGTERM) == handler
        groups = dict(child for pid, child in list_children().items() if pid not in before)
        assert groups["gcs_server"]
        assert groups["raylet"]
        assert all(groups.values())
        assert sum(name.startswith("python") for name in groups) == 0  # what a run does not use
        assert ray_internals.read_node_groups() == {}
        assert ray_internals.find_refused_groups() == frozenset()
