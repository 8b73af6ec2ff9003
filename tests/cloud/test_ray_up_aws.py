"""The story of one cluster at AWS: `ray up cluster.yaml`, work, a lost machine, `ray down`.

The file that is proven is cluster.yaml itself, but for what `adapt` changes. The tests run in the
order they stand in; each goes on where the one before it stopped.
"""

import re
import socket
import time
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest
import yaml

from tests.cloud.machines import ENVIRONMENT, ROOT, Cloud, Host, Laptop, apply_template, wait_for

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy:UserWarning"),
]

WORK = """
import ray, sys
ray.init(address="auto", log_to_driver=False)

@ray.remote(num_gpus=0.75, max_retries=-1)  # the rest is for who asks whether a worker comes up
def hold(seconds):
    import time
    time.sleep(seconds)
    return ray.util.get_node_ip_address()

ray.get([hold.remote(float(sys.argv[2])) for _ in range(int(sys.argv[1]))])
"""


SMALL_GRID = """
seeds: 3
defaults: {dataset: digits, epochs: 2, warmup_epochs: 1, augmentation: none}
grid:
  - {architecture: [plain, resnet], placement: [before, after], depth: 8}
"""

STUDY = """
seeds: 40
defaults: {dataset: digits, epochs: 2_000, warmup_epochs: 1, augmentation: none}
grid:
  - {architecture: resnet, placement: [before, after], depth: 110}
"""

ON_DEMAND = (
    'python -c \'import ray; ray.init("auto"); '
    'ray.get(ray.remote(resources={"on-demand": 1})(lambda: None).remote())\''
)


@pytest.fixture(scope="module")
def stack(cloud) -> dict[str, str]:
    """Apply harness/cluster/aws.yaml; its outputs come back."""
    return apply_template(cloud.client)


def adapt(config: dict, security_group: str) -> dict:
    """Fill in what a user fills in; change what cannot be had without a network, or in minutes."""
    for node_type in config["available_node_types"].values():
        node_type["node_config"]["SecurityGroupIds"] = [security_group]
    watch, *_, shell = config["setup_commands"]
    assert "most=10 " in watch
    assert "sleep 60;" in watch
    config["setup_commands"] = [
        watch.replace("most=60", "most=600").replace("sleep 60;", "sleep 3;"),
        f"ln -sfn {ENVIRONMENT} ~/env",  # no package index here
        shell,
    ]
    config["idle_timeout_minutes"] = 0.2
    return config


def read_cluster_file() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def laptop(cloud, stack, tmp_path_factory):
    """Yield a laptop whose cluster is up."""
    laptop = Laptop(
        tmp_path_factory.mktemp("laptop"),
        adapt(read_cluster_file(), stack["SecurityGroup"]),
        cloud.credentials("laptop"),
    )
    laptop.ray("up", "--yes")
    return laptop


@pytest.fixture
def head(cloud, laptop):
    """Yield the head that is up at this point of the story."""
    (instance,) = cloud.instances(ray_node_type="head")
    return cloud.hosts[instance["InstanceId"]]


def ask(address: str, token: str = "") -> int:
    """HTTP status of a POST, made by someone who has got into the nodes' own network."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address, data=b"", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


def workers(cloud: Cloud) -> list[dict]:
    return cloud.instances(ray_node_type="worker")


def every_instance(cloud: Cloud) -> list[dict]:
    """Those too that run no more."""
    reservations = cloud.ec2.describe_instances()["Reservations"]
    return [instance for one in reservations for instance in one["Instances"]]


def at_work(laptop: Laptop, gpus: int) -> bool:
    return f" {0.75 * gpus}/{gpus:.1f} GPU" in laptop.ray("exec", "ray status")


def start_work(head: Host, laptop: Laptop, gpus: int, seconds: int) -> None:
    """Start a driver the way the README does: in tmux, so that it stays when the laptop goes."""
    (head.folder / "home/work.py").write_text(WORK)
    laptop.ray("exec", f"python work.py {gpus} {seconds}", "--tmux")


def test_the_account_lets_ssh_in_from_one_range_and_the_nodes_talk_among_themselves(cloud, stack):
    (group,) = cloud.ec2.describe_security_groups(GroupIds=[stack["SecurityGroup"]])[
        "SecurityGroups"
    ]
    rules = [
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            [source["CidrIp"] for source in rule["IpRanges"]],
            [source["GroupId"] for source in rule["UserIdGroupPairs"]],
        )
        for rule in group["IpPermissions"]
    ]
    assert rules == [
        ("tcp", 22, ["203.0.113.7/32"], []),
        ("-1", None, [], [group["GroupId"]]),
    ]


def test_an_unfilled_file_starts_nothing_and_opens_nothing(cloud, stack, tmp_path):
    laptop = Laptop(tmp_path, read_cluster_file(), cloud.credentials("laptop"))
    said = laptop.ray("up", "--yes", check=False)
    assert "Failed to detect a security group" in said, said
    assert not cloud.instances()
    groups = cloud.ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "bn-order"}


def test_ray_up_starts_one_head_and_nothing_else(cloud, laptop):
    (head,) = cloud.instances()
    assert head["IamInstanceProfile"]["Arn"].endswith(":instance-profile/bn-order-head")
    assert "InstanceLifecycle" not in head  # on demand
    groups = cloud.ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "bn-order"}  # none of Ray's own


def test_the_token_is_the_clusters_own_and_only_its_owner_can_read_it(laptop, head):
    assert head.read("stat -c '%a %U' /home/ubuntu/.ray/auth_token") == "600 ubuntu\n"
    token = head.read("cat /home/ubuntu/.ray/auth_token")
    assert len(token) >= 32
    elsewhere = [*laptop.checkout.parent.rglob("*"), head.folder / "home/ray_bootstrap_config.yaml"]
    assert not any(token.encode() in path.read_bytes() for path in elsewhere if path.is_file())
    told = "/proc/[0-9]*/cmdline /proc/[0-9]*/environ /tmp/ray /home/ubuntu"
    find = "grep -rlsa --devices=skip -F -f /home/ubuntu/.ray/auth_token"
    assert head.read(f"{find} {told}") == "/home/ubuntu/.ray/auth_token\n"


def test_without_the_token_nothing_is_answered(cloud, laptop, head):
    (instance,) = cloud.instances(ray_node_type="head")
    node = instance["PrivateIpAddress"]
    port = head.read("cat /tmp/ray/session_latest/runtime_env_agent_port_*")
    environments = f"http://{node}:{port}/get_runtime_envs_info"  # its neighbour runs commands
    assert ask(environments) == 401
    assert ask(environments, token="guessed") == 403
    assert ask(environments, token=head.read("cat /home/ubuntu/.ray/auth_token")) == 200
    agent = f"http://{node}:52365/api/job_agent/jobs/"
    wait_for(lambda: ask(agent) == 401, 30, "401 from the agent that takes jobs")
    status = laptop.type("ray", "status", f"--address={node}:6379", check=False)
    assert "InvalidAuthToken" in status or "Unauthenticated" in status, status
    assert "Active" not in status


def test_nothing_answers_in_the_place_of_ray_client(cloud, head):
    (instance,) = cloud.instances(ray_node_type="head")
    for address in (instance["PrivateIpAddress"], "127.0.0.1"):
        assert (
            head.read(f"(: < /dev/tcp/{address}/10001) 2> /dev/null || echo closed") == "closed\n"
        )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((instance["PrivateIpAddress"], 10001), timeout=10)


@pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="ray[default] is not installed")
def test_the_dashboard_answers_on_loopback_alone_and_only_with_the_token(cloud, head):
    (instance,) = cloud.instances(ray_node_type="head")
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(f"http://{instance['PrivateIpAddress']}:8265/api/jobs/")
    jobs = "curl -s -o /dev/null -w %{http_code} -X POST http://127.0.0.1:8265/api/jobs/"
    wait_for(lambda: head.read(f"{jobs} || true") == "401", 30, "401 from the jobs API")


def test_workers_come_with_the_demand_as_spot_instances(cloud, laptop, head):
    start_work(head, laptop, gpus=2, seconds=3_600)
    wait_for(lambda: at_work(laptop, gpus=2), 90, "two GPUs at work")
    assert [worker.get("InstanceLifecycle") for worker in workers(cloud)] == ["spot", "spot"]


def test_every_node_has_the_clusters_token_and_the_project(cloud, head):
    token = head.read("cat /home/ubuntu/.ray/auth_token")
    assert workers(cloud)
    for worker in workers(cloud):
        host = cloud.hosts[worker["InstanceId"]]
        assert host.read("stat -c '%a %U' /home/ubuntu/.ray/auth_token") == "600 ubuntu\n"
        assert host.read("cat /home/ubuntu/.ray/auth_token") == token
        assert host.read("cd /home/ubuntu/bn-order && ls pyproject.toml harness/training/train.py")


def test_every_instance_is_locked_tagged_and_its_disk_encrypted(cloud, head):
    for instance in cloud.instances():
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
        assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["bn-order"]
        assert {"Key": "project", "Value": "bn-order"} in instance["Tags"]
        (disk,) = instance["BlockDeviceMappings"]
        (volume,) = cloud.ec2.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
        assert volume["Encrypted"]
        assert {"Key": "project", "Value": "bn-order"} in volume["Tags"]
    for worker in workers(cloud):
        assert worker["IamInstanceProfile"]["Arn"].endswith(":instance-profile/bn-order-worker")


def test_every_node_is_ready_to_train_on_its_cpus_and_none_on_gpus_it_has_not(cloud, stack, laptop):
    check = "python -m harness.run grids/quickstart.yaml --address auto --check-cluster"
    results = f"--results {stack['Results']}/checked"
    well = laptop.ray("exec", f"cd bn-order && {check} --gpus-per-trial 0 {results}")
    addresses = [instance["PrivateIpAddress"] for instance in cloud.instances()]
    assert len(addresses) == 3
    for address in addresses:
        assert re.search(rf"^{re.escape(address)} .* [0-9a-f]{{16}} ", well, re.MULTILINE)
    assert len(re.findall(r" ok, [\d.]+ s ", well)) == 2  # the head trains nothing
    assert "(!)" not in well
    assert "to come, unchecked until then: up to 8 of spot, 4 CPUs and 1 GPU" in well
    # the cards exist on paper only
    on_gpus = "--gpus-per-trial 0.25"
    off = laptop.ray("exec", f"cd bn-order && {check} {on_gpus} {results}", check=False)
    assert off.count("Ray counts a GPU, torch finds none") == 2, off
    bucket, _, prefix = stack["Results"].removeprefix("s3://").partition("/")
    left = cloud.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/checked/")
    # Arrow keeps a mark of every folder
    assert [each["Key"] for each in left["Contents"] if not each["Key"].endswith("/")] == []


def test_a_grid_runs_there_and_its_rows_are_in_the_bucket(cloud, stack, laptop):
    results = f"{stack['Results']}/quickstart"
    run = "python -m harness.run grids/quickstart.yaml --address auto --limit 3"
    on_cpus = "--gpus-per-trial 0"  # the cards exist on paper only
    laptop.ray("exec", f"cd bn-order && {run} {on_cpus} --results {results}")
    bucket, _, prefix = results.removeprefix("s3://").partition("/")
    listing = cloud.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/trials/")
    assert listing["KeyCount"] == 3


def test_a_spot_instance_that_is_taken_away_is_replaced(cloud, laptop):
    lost, kept = (worker["InstanceId"] for worker in workers(cloud))
    cloud.ec2.terminate_instances(InstanceIds=[lost])
    wait_for(lambda: len(workers(cloud)) == 2, 90, "a new instance")
    (new,) = {worker["InstanceId"] for worker in workers(cloud)} - {kept}
    # Ray counts the lost one's GPU for a while, and would say that all is well.
    wait_for(lambda: new in cloud.hosts, 10, "a machine behind it")
    wait_for(lambda: cloud.hosts[new].read("pgrep -x raylet || true"), 120, "Ray on it")
    wait_for(lambda: at_work(laptop, gpus=2), 120, "two GPUs at work again")


def test_idle_workers_leave(cloud, laptop):
    assert workers(cloud)
    laptop.ray("exec", "tmux kill-server")
    wait_for(lambda: not workers(cloud), 180, "no worker")


def test_a_short_grid_starts_one_worker_and_its_report_is_read_from_the_bucket(
    cloud, stack, laptop, head
):
    (head.folder / "home/bn-order/grids/small.yaml").write_text(SMALL_GRID)
    started = {instance["InstanceId"] for instance in every_instance(cloud)}
    results = f"{stack['Results']}/small"
    laptop.ray(
        "exec",
        "cd bn-order && python -m harness.run grids/small.yaml --address auto "
        f"--gpus-per-trial 0 --results {results}",
        timeout=240,
    )
    # Room for more was asked for by nobody: the work is done sooner than another machine is there.
    assert len({instance["InstanceId"] for instance in every_instance(cloud)} - started) == 1
    said = laptop.type("python", "-m", "analysis.report", results, timeout=240)
    page = laptop.checkout / "results/small/report/index.html"
    assert page.exists(), said
    wait_for(lambda: not workers(cloud), 180, "no worker")


@pytest.mark.parametrize(("at_once", "machines"), [("--max-concurrent 10", 3), ("", 8)])
def test_a_long_study_asks_for_all_its_workers_in_one_step(cloud, laptop, head, at_once, machines):
    cloud.spot_left = False  # what is asked for counts, not what comes
    (head.folder / "home/bn-order/grids/study.yaml").write_text(STUDY)
    # Ray gives what it asks of AWS in one step one id.
    asked = (
        "cat /tmp/ray/session_latest/logs/monitor.log* | "
        "grep -o 'requested to launch spot with request id [0-9a-f-]*' || true"
    )
    before = head.read(asked).splitlines()
    run = f"grids/study.yaml --address auto --gpus-per-trial 0.25 {at_once} --results ~/study"
    laptop.ray("exec", f"cd bn-order && python -m harness.run {run}", "--tmux")
    first, *_ = wait_for(
        lambda: head.read(asked).splitlines()[len(before) :], 90, "a request for workers"
    )
    laptop.ray("exec", "tmux kill-server")
    assert head.read(asked).splitlines().count(first) == machines


def test_where_no_spot_instance_is_left_one_on_demand_comes_when_asked_for(cloud, laptop, head):
    cloud.spot_left = False
    start_work(head, laptop, gpus=1, seconds=3_600)
    check = "python -m harness.run grids/quickstart.yaml --address auto --check-cluster"
    wait_for(
        lambda: re.search(
            "spot: a machine was asked for and did not come",
            laptop.ray("exec", f"cd bn-order && {check} --results ~/checked", check=False),
        ),
        60,
        "a check that says why there is no worker",
    )
    laptop.ray("exec", ON_DEMAND)
    wait_for(lambda: at_work(laptop, gpus=1), 60, "one GPU at work")
    (worker,) = workers(cloud)
    assert "InstanceLifecycle" not in worker
    assert {"Key": "ray-user-node-type", "Value": "on-demand"} in worker["Tags"]


def test_the_head_asks_aws_for_nothing_that_its_role_does_not_allow(cloud, laptop):
    iam = cloud.client("iam")
    policy = iam.get_policy_version(
        PolicyArn="arn:aws:iam::123456789012:policy/bn-order-workers", VersionId="v1"
    )
    allowed = {
        action
        for statement in policy["PolicyVersion"]["Document"]["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    asked = {action for who, action in cloud.calls if who == "bn-order-head"}
    assert asked
    assert asked <= allowed
    assert not {action for who, action in cloud.calls if who == "bn-order-worker"}


def test_workers_whose_head_is_lost_shut_themselves_down(cloud, head):
    (instance,) = cloud.instances(ray_node_type="head")
    cloud.ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    wait_for(lambda: not cloud.instances(), 120, "nothing that runs, and is paid for")


def test_a_head_on_which_nothing_happens_for_long_shuts_itself_down(cloud, laptop):
    laptop.ray("up", "--yes")
    (instance,) = cloud.instances()
    folder = cloud.hosts[instance["InstanceId"]].folder / "home"
    watch, *_ = read_cluster_file()["setup_commands"]
    assert "sleep 60;" in watch
    watch = watch.replace("sleep 60;", "sleep 0.1;").replace("sudo shutdown -h now", "touch over")
    watch = watch.replace(".watchdog", ".impatient")  # the head's own goes on
    laptop.ray("exec", "sleep 600", "--tmux")
    laptop.ray("exec", watch)
    time.sleep(25)  # an hour is 6 s here; and ssh hangs up after 10
    assert not (folder / "over").exists()
    laptop.ray("exec", "tmux kill-server")
    wait_for((folder / "over").exists, 60, "the head's end")


def test_ray_down_leaves_nothing(cloud, laptop, head):
    cloud.spot_left = True
    start_work(head, laptop, gpus=1, seconds=3_600)
    wait_for(lambda: workers(cloud), 60, "a worker")
    laptop.ray("down", "--yes")
    assert not cloud.instances()
    stopped = cloud.ec2.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["stopping", "stopped"]}]
    )
    assert not stopped["Reservations"]
