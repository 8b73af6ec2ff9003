"""The story of a cluster of machines one already has, with harness/cluster/local.yaml itself.

The tests run in the order they stand in; each goes on where the one before it stopped.
"""

import socket

import pytest
import yaml

from tests.cloud.machines import ENVIRONMENT, ROOT, Host, Laptop, wait_for

pytestmark = pytest.mark.cloud

ADDRESSES = ["172.31.0.1", "172.31.0.2", "172.31.0.3"]


def adapt(config: dict) -> dict:
    """Fill in what a user fills in; of the rest only what needs a package index."""
    config["provider"] |= {"head_ip": ADDRESSES[0], "worker_ips": ADDRESSES[1:]}
    config["auth"] = {"ssh_user": "ubuntu", "ssh_private_key": "/tmp/home/.ssh/bn-order"}
    *_, shell = config["setup_commands"]
    config["setup_commands"] = [f"ln -sfn {ENVIRONMENT} ~/env", shell]
    return config


@pytest.fixture(scope="module")
def laptop(network, tmp_path_factory):
    config = yaml.safe_load((ROOT / "harness/cluster/local.yaml").read_text())
    laptop = Laptop(tmp_path_factory.mktemp("laptop"), adapt(config), {})
    laptop.type("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/home/.ssh/bn-order")
    return laptop


@pytest.fixture(scope="module")
def hosts(laptop, tmp_path_factory):
    """Yield three machines, the head first."""
    public_key = laptop.type("cat", "/tmp/home/.ssh/bn-order.pub")
    folder = tmp_path_factory.mktemp("hosts")
    hosts = [
        Host.start(f"machine-{address[-1]}", folder / address, [address], public_key, {})
        for address in ADDRESSES
    ]
    yield hosts
    for host in hosts:
        host.stop()


def test_ray_up_brings_every_machine_in(laptop, hosts):
    laptop.ray("up", "--yes")
    count = 'python -c \'import ray; ray.init("auto"); print("nodes:", len(ray.nodes()))\''
    wait_for(lambda: "nodes: 3" in laptop.ray("exec", count), 90, "three nodes")


def test_every_machine_has_the_clusters_token_for_its_owner_only(hosts):
    tokens = {host.read("cat /home/ubuntu/.ray/auth_token") for host in hosts}
    assert len(tokens) == 1
    assert {host.read("stat -c %a /home/ubuntu/.ray/auth_token") for host in hosts} == {"600\n"}


def test_without_the_token_the_head_answers_nothing(laptop, hosts):
    status = laptop.type("ray", "status", f"--address={ADDRESSES[0]}:6379", check=False)
    assert "InvalidAuthToken" in status or "Unauthenticated" in status, status
    with pytest.raises(ConnectionRefusedError):  # Ray Client's
        socket.create_connection((ADDRESSES[0], 10001), timeout=10)


def test_ray_down_ends_ray_on_every_machine(laptop, hosts):
    laptop.ray("down", "--yes")
    wait_for(
        lambda: not any(host.read("pgrep -x raylet || true") for host in hosts), 120, "no raylet"
    )
