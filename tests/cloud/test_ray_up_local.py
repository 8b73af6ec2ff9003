"""The story of a cluster of machines one already has, with harness/cluster/local.yaml itself.

The tests run in the order they stand in; each goes on where the one before it stopped.
"""

import socket

import pytest
import yaml

from tests.cloud.machines import ENVIRONMENT, ROOT, Host, Laptop, wait_for

pytestmark = pytest.mark.cloud

ADDRESSES = ["172.31.0.1", "172.31.0.2", "172.31.0.3"]
COUNT = 'python -c \'import ray; ray.init("auto"); print("nodes:", len(ray.nodes()))\''


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


@pytest.fixture(scope="module")
def cluster(laptop, hosts):
    """Yield the three machines as one cluster; without it no test here can pass."""
    laptop.ray("up", "--yes")
    wait_for(lambda: "nodes: 3" in laptop.ray("exec", COUNT), 90, "three nodes")
    return hosts


def test_ray_up_a_second_time_finds_its_work_done(laptop, cluster):
    laptop.ray("up", "--yes")
    wait_for(lambda: "nodes: 3" in laptop.ray("exec", COUNT), 90, "three nodes")


def test_every_machine_has_the_clusters_token_for_its_owner_only(cluster):
    tokens = {host.read("cat /home/ubuntu/.ray/auth_token") for host in cluster}
    assert len(tokens) == 1
    assert {host.read("stat -c %a /home/ubuntu/.ray/auth_token") for host in cluster} == {"600\n"}


def test_without_the_token_the_head_answers_nothing(laptop, cluster):
    status = laptop.type("ray", "status", f"--address={ADDRESSES[0]}:6379", check=False)
    assert "InvalidAuthToken" in status or "Unauthenticated" in status, status
    with pytest.raises(ConnectionRefusedError):  # Ray Client's
        socket.create_connection((ADDRESSES[0], 10001), timeout=10)


def test_ray_down_ends_ray_on_every_machine(laptop, cluster):
    assert all(host.read("pgrep -x raylet") for host in cluster)
    laptop.ray("down", "--yes")
    wait_for(
        lambda: not any(host.read("pgrep -x raylet || true") for host in cluster), 120, "no raylet"
    )
