"""The cluster files, read as Ray reads them and as a suspicious person would."""

import os
import re
import subprocess

import pytest
import yaml

from tests.cloud.machines import ROOT

FILES = ["cluster.yaml", "harness/cluster/local.yaml"]


class CloudFormationLoader(yaml.SafeLoader):
    """Reads `!Ref` and its kin as the text or list that follows them."""


CloudFormationLoader.add_multi_constructor(
    "!",
    lambda loader, _tag, node: (
        loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node)
    ),
)


@pytest.fixture(params=FILES)
def config(request):
    return yaml.safe_load((ROOT / request.param).read_text())


@pytest.fixture
def aws():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def stack():
    text = (ROOT / "harness/cluster/aws.yaml").read_text()
    return yaml.load(text, Loader=CloudFormationLoader)


def node_configs(config):
    return [node_type["node_config"] for node_type in config["available_node_types"].values()]


def commands(config):
    parts = (
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    )
    return [command for part in parts for command in config.get(part, [])]


def test_ray_accepts_the_file(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_aws_knows_every_parameter_of_a_node(aws):
    # Ray's own check lets any word pass here; botocore has AWS's own description of the request.
    import botocore.session
    from botocore.validate import ParamValidator

    session = botocore.session.get_session()
    request = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    for node_config in node_configs(aws):
        mistakes = ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, request)
        assert not mistakes.has_errors(), mistakes.generate_report()


def test_cloudformation_accepts_the_stack():
    from cfnlint.api import ManualArgs, lint

    text = (ROOT / "harness/cluster/aws.yaml").read_text()
    assert not lint(text, config=ManualArgs(regions=["us-east-1", "eu-central-1"]))


def test_what_is_sent_to_the_nodes_is_there(config):
    missing = [path for path in config["file_mounts"].values() if not (ROOT / path).exists()]
    assert not missing


def test_an_unfilled_file_cannot_start_a_machine(aws):
    # With ids given Ray makes no security group; one that it makes opens port 22 to the world.
    assert {tuple(node["SecurityGroupIds"]) for node in node_configs(aws)} == {("sg-FILL-IN",)}
    assert "security_group" not in aws["provider"]


def test_at_most_two_values_are_to_be_filled_in():
    assert (ROOT / "cluster.yaml").read_text().count("# FILL IN") == 2


def test_every_ray_that_is_started_asks_for_the_token(config):
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start " in command for command in starts)


def test_the_token_is_made_on_the_head_for_its_owner_only(config):
    (command,) = config["head_setup_commands"]
    assert command.startswith("umask 077 && ray get-auth-token --generate > /dev/null")
    assert config["cluster_synced_files"] == ["~/.ray/auth_token"]


def test_nothing_but_ssh_listens_to_the_world(config):
    (head,) = (command for command in commands(config) if "ray start --head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert not any("0.0.0.0" in command for command in commands(config))
    *_, last = config["head_start_ray_commands"]
    assert "pkill -f -- '-m ray[.]util[.]client[.]server'" in last


def test_a_forgotten_machine_ends_itself_whatever_of_its_setup_fails(aws):
    first, *others = commands(aws)
    assert "shutdown -h now" in first
    assert first.endswith("&")
    assert not any("shutdown" in command for command in others)


EMPTY_MACHINE = """
set -e
mount -t tmpfs none /tmp; cd /tmp; mkdir bin home; export HOME=/tmp/home USER=nobody
export RAY_HEAD_IP=127.0.0.1 PATH=/tmp/bin:$PATH
mkdir -p home/bn-order home/env/bin home/.ray; touch home/.ray/auth_token
for tool in ray sudo cloud-init python3 home/env/bin/pip; do
    printf '#!/bin/sh\\necho "${0##*/} $*" >> /tmp/calls\\n' | tee bin/${tool##*/} > $tool
    chmod +x bin/${tool##*/} $tool
done
for round in 1 2; do
    for command; do
        bash -c "$command" || { echo "round $round: exit $? of: $command"; exit 1; }
    done
done
sleep 1; echo watchdogs: $(pgrep -fc '^sh -c .*shutdown' || true)
"""


@pytest.mark.cloud
def test_every_command_is_safe_twice_and_where_it_finds_nothing(config):
    """Shell is what is tried here: the programs that need a network or Ray only say that they ran."""
    if os.geteuid() != 0:
        pytest.skip("making namespaces needs root")
    flags = ["--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    said = subprocess.run(
        ["unshare", *flags, "bash", "-c", EMPTY_MACHINE, "machine", *commands(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    rented = config["provider"]["type"] != "local"
    assert said.stdout.endswith(f"watchdogs: {int(rented)}\n")


def test_no_secret_stands_in_a_file(config):
    text = yaml.safe_dump(config)
    assert not re.search(r"aws_credentials|AKIA|AUTH_TOKEN=|secret|password", text, re.IGNORECASE)


def test_all_versions_come_from_the_constraints(config):
    installs = [command for command in commands(config) if "pip install" in command]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]
    assert not any("http" in command for command in commands(config))
    (ray,) = re.findall(r"^ray==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tuple(map(int, ray)) >= (2, 60)  # earlier: CVE-2026-57516 and others


def test_instances_are_locked_encrypted_and_gone_when_they_end(aws):
    assert aws["provider"]["cache_stopped_nodes"] is False
    for node in node_configs(aws):
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
        assert {tag["ResourceType"] for tag in node["TagSpecifications"]} == {"instance", "volume"}
        for disk in node["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"]
            assert disk["Ebs"]["DeleteOnTermination"]


def test_only_the_head_may_do_what_a_head_does(aws):
    types = aws["available_node_types"]
    profiles = {
        name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in types.items()
    }
    head = profiles.pop(aws["head_node_type"])
    assert (head, set(profiles.values())) == ("bn-order-head", {"bn-order-worker"})


def test_no_image_is_named_by_an_id_that_is_right_in_one_region_only(aws):
    images = {node["ImageId"] for node in node_configs(aws)}
    assert all(image.startswith("resolve:ssm:/bn-order/") for image in images)


def test_the_file_and_the_stack_speak_of_the_same_things(aws, stack):
    resources = stack["Resources"].values()
    names = {
        value
        for resource in resources
        for value in resource["Properties"].values()
        if isinstance(value, str)
    }
    for node in node_configs(aws):
        assert node["IamInstanceProfile"]["Name"] in names
        assert node["ImageId"].removeprefix("resolve:ssm:") in names
    workers = {name: node for name, node in aws["available_node_types"].items() if name != "head"}
    allowed = stack["Parameters"]["WorkerTypes"]["Default"].split(",")
    assert {node["node_config"]["InstanceType"] for node in workers.values()} <= set(allowed)
    text = (ROOT / "harness/cluster/aws.yaml").read_text()
    assert f"ray-cluster-name: {aws['cluster_name']}\n" in text
    assert f"key-pair/{aws['provider']['key_pair']['key_name']}*" in text


@pytest.mark.parametrize("world", ["0.0.0.0/0", "10.0.0.0/8", "::/0", "203.0.113.7"])
def test_ssh_is_never_open_to_the_world(stack, world):
    pattern = stack["Parameters"]["SshFrom"]["AllowedPattern"]
    assert re.fullmatch(pattern, "203.0.113.7/32")
    assert not re.fullmatch(pattern, world)


def test_a_worker_may_delete_what_is_half_done_and_nothing_else(stack):
    resources = stack["Resources"]
    (worker,) = resources["WorkerRole"]["Properties"]["ManagedPolicyArns"]
    assert "Policies" not in resources["WorkerRole"]["Properties"]
    deletes = [
        statement["Resource"]
        for statement in resources[worker]["Properties"]["PolicyDocument"]["Statement"]
        if "s3:DeleteObject" in statement["Action"]
    ]
    assert deletes == ["${Bucket.Arn}/results/*/partial/*"]


def test_a_head_starts_workers_in_the_network_of_its_group_only(stack):
    statements = stack["Resources"]["Workers"]["Properties"]["PolicyDocument"]["Statement"]
    (subnets,) = (each for each in statements if ":subnet/*" in str(each["Resource"]))
    assert "${SecurityGroup.VpcId}" in subnets["Condition"]["ArnEquals"]["ec2:Vpc"]


def test_no_policy_gives_more_than_it_names(stack):
    properties = [resource["Properties"] for resource in stack["Resources"].values()]
    inline = [policy for each in properties for policy in each.get("Policies", [])]
    statements = [
        statement
        for policy in [*properties, *inline]
        for statement in policy.get("PolicyDocument", {}).get("Statement", [])
        if statement["Effect"] == "Allow"
    ]
    assert len(statements) > 10
    for statement in statements:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions)
    assert "arn:aws:iam::aws:policy" not in (ROOT / "harness/cluster/aws.yaml").read_text()


def test_ones_own_machines_get_the_same_environment_as_those_of_aws(aws):
    local = yaml.safe_load((ROOT / "harness/cluster/local.yaml").read_text())
    for part in ("file_mounts", "rsync_exclude", "cluster_synced_files", "head_setup_commands"):
        assert local[part] == aws[part]
    assert local["setup_commands"] == aws["setup_commands"][3:]  # nobody pays for those by the hour
