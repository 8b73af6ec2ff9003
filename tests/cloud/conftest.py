"""The network that the machines of `machines` are in, and the cloud they are of."""

import ctypes
import os
import shutil

import pytest

from tests.cloud.machines import GATEWAY, Cloud, run

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def network():
    """Bring the test's thread into a network of its own; skip where that cannot be."""
    for tool in ("unshare", "nsenter", "ip", "rsync", "ssh", "/usr/sbin/sshd", "tmux"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        pytest.skip("making namespaces needs root")
    try:
        for line in (
            "ip link set lo up",
            "ip link add bridge type bridge",
            f"ip address add {GATEWAY}/16 dev bridge",
            "ip link set bridge up",
        ):
            run(*line.split())
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


@pytest.fixture(scope="module")
def cloud(network, tmp_path_factory):
    """Yield an empty account at AWS."""
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    yield cloud
    cloud.close()
