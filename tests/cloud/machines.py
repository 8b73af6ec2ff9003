"""Machines to bring up a cluster on, all of them inside this one.

A *host* is a process tree with network, process, mount, host and IPC namespaces of its own, an
address on a bridge that leads nowhere, and an sshd. For `ray up` it is a machine: the same fixed
ports are free on each, `ray stop` ends only what runs there, and killing the host is losing power.
The bridge lies in a network namespace that the test thread enters, so nothing here can reach, or
be reached from, the rest of the machine. EC2, IAM, CloudFormation and S3 are moto's, in this very
process; its instances become hosts as soon as it starts them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)
KEPT = " ".join({str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix)})
"""What runs Python, wherever it lies: machines have a /home and a /tmp of their own."""

GATEWAY = "172.31.255.254"  # in the range of moto's default VPC, where moto's instances are
ENDPOINT = f"http://{GATEWAY}:5000"

HIDING = r"""
set -e
hold() {  # what Python needs of the folders that are hidden next
    held=(); for path in $KEPT; do exec {number}< "$path"; held+=("$number $path"); done
}
show() {
    for each in "${held[@]}"; do
        mkdir -p "${each#* }"
        mount -c --rbind "/proc/self/fd/${each%% *}" "${each#* }"
    done
}
"""

HOST = r"""
echo up; read -r _  # the other end moves a network device in here
ip link set lo up
for address in $ADDRESSES; do ip address add "$address" dev eth0; done
ip link set eth0 up
ip route add default via "$GATEWAY"  # leads nowhere; Ray asks it for the machine's own address
hostname "$NAME"
cd "$FOLDER"  # which may be hidden soon
mount -c --bind passwd /etc/passwd
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run && mkdir /run/sshd
cp sshd_config host_key /run/sshd/
chmod 600 /run/sshd/host_key
mount -c --bind sbin /usr/local/sbin
hold
mount -t tmpfs none /home && mkdir -p /home/ubuntu && mount -c --bind home /home/ubuntu
mount -c --bind tmp /tmp
show
exec /usr/sbin/sshd -D -e -f /run/sshd/sshd_config
"""

SSHD_CONFIG = """
ListenAddress 0.0.0.0
HostKey /run/sshd/host_key
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
MaxStartups 50
"""


def read_template() -> str:
    """Read harness/cluster/aws.yaml, but for what moto has not: public images, a group's VPC."""
    text = (ROOT / "harness/cluster/aws.yaml").read_text()
    text = re.sub(r"Default: /aws/service/\S+", "Default: /image", text)
    return text.replace("${SecurityGroup.VpcId}", "vpc-of-the-group")


def apply_template(client: Callable[[str], Any]) -> dict[str, str]:
    """Make the stack of `read_template`, by the clients of these names; its outputs."""
    client("ssm").put_parameter(Name="/image", Value="ami-0123456789abcdef0", Type="String")
    formation = client("cloudformation")
    formation.create_stack(
        StackName="bn-order",
        TemplateBody=read_template(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": "SshFrom", "ParameterValue": "203.0.113.7/32"}],
    )
    outputs = formation.describe_stacks(StackName="bn-order")["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def run(*command: str) -> str:
    """Run a command that must not fail; what it prints comes back."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Host:
    """One machine. Its account `ubuntu` may do everything, as on Ubuntu's cloud images."""

    name: str
    folder: Path
    process: subprocess.Popen

    @classmethod
    def start(
        cls,
        name: str,
        folder: Path,
        addresses: list[str],
        public_key: str,
        environment: Mapping[str, str],
    ) -> Host:
        """Switch a machine on; who holds the key's other half may log in at any of its addresses."""
        for part in ("home/.ssh", "sbin", "tmp"):
            (folder / part).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "home/.ssh/authorized_keys").write_text(public_key)
        # Ubuntu's own leaves here, unless the shell is interactive
        (folder / "home/.bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
        (folder / "passwd").write_text(
            "ubuntu:x:0:0::/home/ubuntu:/bin/bash\n"  # first, so that uid 0 is at home there
            "root:x:0:0::/root:/bin/bash\n"
            "sshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        shims = {"sudo": 'exec "$@"', "shutdown": "touch ~/shutdown"}
        for tool, line in shims.items():
            (folder / "sbin" / tool).write_text(f"#!/bin/sh\n{line}\n")
            (folder / "sbin" / tool).chmod(0o755)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
        pairs = " ".join(f"{key}={value}" for key, value in environment.items())
        (folder / "sshd_config").write_text(SSHD_CONFIG + (f"SetEnv {pairs}\n" if pairs else ""))
        flags = "--net --pid --mount --uts --ipc --fork --mount-proc --kill-child=SIGKILL"
        command = ["bash", "-c", HIDING + HOST]
        process = subprocess.Popen(
            [*["setpriv", "--pdeathsig", "KILL", "unshare"], *flags.split(), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ
            | {
                "NAME": name,
                "FOLDER": str(folder),
                "KEPT": KEPT,
                "GATEWAY": GATEWAY,
                "ADDRESSES": " ".join(f"{address}/16" for address in addresses),
            },
        )
        assert process.stdout.readline() == "up\n"
        device = f"h{process.pid}"
        run(*f"ip link add {device} type veth peer name eth0 netns {process.pid}".split())
        run(*f"ip link set {device} master bridge up".split())
        for address in addresses:  # public addresses lie outside the bridge's own range
            run(*f"ip route replace {address}/32 dev bridge".split())
        process.stdin.write("go\n")
        process.stdin.flush()
        return cls(name, folder, process)

    def stop(self) -> None:
        """Pull the plug."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def is_shut_down(self) -> bool:
        """Whether somebody on it typed `shutdown`."""
        return (self.folder / "home/shutdown").exists()

    def read(self, command: str) -> str:
        """What a command says when it is run inside, from outside."""
        inner = run("pgrep", "-P", str(self.process.pid)).split()[0]
        return run("nsenter", "--all", "--target", inner, "bash", "-c", command)


class Laptop:
    """Where `ray up` is typed: a /tmp of its own, with a home and a checkout in it.

    The checkout holds the config and what of the repository the config sends to the nodes.
    """

    def __init__(self, folder: Path, config: dict, environment: Mapping[str, str]) -> None:
        self._tmp = folder
        self._environment = environment
        self.checkout = folder / "checkout"
        self.checkout.mkdir()
        (folder / "home/.ssh").mkdir(parents=True)
        (self.checkout / "cluster.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        for source in config["file_mounts"].values():
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, self.checkout / source)

    def type(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a command in the checkout; both its streams come back as one text."""
        there = 'hold && mount --bind "$0" /tmp && show && cd /tmp/checkout && exec "$@"'
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", HIDING + there, str(self._tmp), *command],
            env={
                "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
                "HOME": "/tmp/home",
                "KEPT": KEPT,
                "TERM": "dumb",
                **self._environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            overdue = threading.Timer(timeout, process.kill)
            overdue.start()
            output = process.stdout.read()
            overdue.cancel()
        if check and process.returncode:
            pytest.fail(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
        return output

    def ray(self, verb: str, *arguments: str, **options: Any) -> str:
        """Type a `ray` command about the cluster."""
        return self.type("ray", verb, "cluster.yaml", *arguments, **options)


NO_CAPACITY = b"""<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>
<Message>There is no Spot capacity available.</Message></Error></Errors></Response>"""


class Cloud:
    """moto's EC2 and its neighbours, with a machine behind every instance.

    Attributes:
        calls: (access key, "service:Action") of every request that came in; the access key says
            who asked, because every role and the laptop have another.
        spot_left: whether AWS still has spot instances to give.
        hosts: instance id -> the machine behind it.
    """

    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        import boto3
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.calls: set[tuple[str, str]] = set()
        self.spot_left = True
        self.hosts: dict[str, Host] = {}
        self._folder = folder
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(GATEWAY, 5000, self._record_and_answer, threaded=True)
        self._closing = threading.Event()
        self._one_at_a_time = threading.Lock()  # moto shows instances that are half made
        self._answerer = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._keeper = threading.Thread(target=self._keep_hosts, daemon=True)
        session = boto3.Session("test", "secret", region_name=self.region)
        self.client = lambda service: session.client(service, endpoint_url=ENDPOINT)
        self.ec2 = self.client("ec2")
        self._answerer.start()
        self._keeper.start()

    def credentials(self, name: str) -> dict[str, str]:
        """Environment of a machine or person that asks as `name`."""
        return {
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_ACCESS_KEY_ID": name,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": self.region,
            # moto makes one instance, whatever number is asked for
            "AUTOSCALER_MAX_LAUNCH_BATCH": "1",
        }

    def instances(self, **filters: str) -> list[dict]:
        """Instances that run; filters are tags, `_` for `-`."""
        wanted = [
            {"Name": f"tag:{tag.replace('_', '-')}", "Values": [value]}
            for tag, value in filters.items()
        ]
        wanted.append({"Name": "instance-state-name", "Values": ["pending", "running"]})
        reservations = self.ec2.describe_instances(Filters=wanted)["Reservations"]
        return [instance for one in reservations for instance in one["Instances"]]

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        self._server.shutdown()
        self._answerer.join()
        self._server.server_close()
        for host in self.hosts.values():
            host.stop()

    def _record_and_answer(self, environ, start_response):
        signed = re.search(
            r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", "")
        )
        if signed and signed[2] != "s3":  # whose requests are streams
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)  # once more, for moto
            form = parse_qs(body.decode())
            action = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2] or form["Action"][0]
            self.calls.add((signed[1], f"{signed[2]}:{action}"))
            if form.get("InstanceMarketOptions.MarketType") == ["spot"] and not self.spot_left:
                start_response("500 Internal Server Error", [])
                return [NO_CAPACITY]
        with self._one_at_a_time:
            return self._application(environ, start_response)

    def _keep_hosts(self) -> None:
        while not self._closing.wait(0.3):
            running = {instance["InstanceId"]: instance for instance in self.instances()}
            for instance_id in running.keys() - self.hosts.keys():
                self.hosts[instance_id] = self._start_host(running[instance_id])
            for instance_id in self.hosts.keys() - running.keys():
                self.hosts.pop(instance_id).stop()
            for instance_id, host in self.hosts.items():
                if host.is_shut_down() and self._terminates_on_shutdown(instance_id):
                    self.ec2.terminate_instances(InstanceIds=[instance_id])

    def _terminates_on_shutdown(self, instance_id: str) -> bool:
        name = "instanceInitiatedShutdownBehavior"
        answer = self.ec2.describe_instance_attribute(InstanceId=instance_id, Attribute=name)
        return answer["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"

    def _start_host(self, instance: dict) -> Host:
        key = self.ec2.describe_key_pairs(KeyNames=[instance["KeyName"]], IncludePublicKey=True)
        profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        return Host.start(
            instance["InstanceId"],
            self._folder / instance["InstanceId"],
            [instance["PrivateIpAddress"], instance["PublicIpAddress"]],
            key["KeyPairs"][0]["PublicKey"],
            self.credentials(profile),  # in place of the instance's metadata service
        )


def wait_for(condition, seconds: float, what: str):
    """Ask again and again until `condition()` is true; its value comes back."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(1)
    return value
