"""What is missing in an AWS account is said ahead of `ray up`; moto stands in for AWS."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

from harness import account  # noqa: E402
from harness.account import check_account, main  # noqa: E402
from tests.cloud.machines import ROOT, apply_template  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS..S3..BucketPolicy:UserWarning")


@pytest.fixture(autouse=True)
def laptop(monkeypatch, tmp_path):
    """Give the test a home of its own, with nobody's credentials in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setattr(account, "read_quota", lambda _config, _code: 64.0)
    account._session.cache_clear()  # it has read the credentials of another test's home


@pytest.fixture
def aws(laptop):
    """Yield what the stack says of itself, once it is made in us-east-1."""
    with moto.mock_aws():
        session = boto3.Session(region_name="us-east-1")
        yield apply_template(session.client)


@pytest.fixture
def fill_in(tmp_path):
    """Write cluster.yaml as somebody has filled it in; its path comes back."""

    def fill(group: str, region: str = "us-east-1") -> Path:
        text = (ROOT / "cluster.yaml").read_text()
        text = text.replace("sg-FILL-IN", group).replace("region: us-east-1", f"region: {region}")
        (tmp_path / "cluster.yaml").write_text(text)
        return tmp_path / "cluster.yaml"

    return fill


def troubles(file: Path) -> dict[str, str]:
    return {finding.what: finding.trouble for finding in check_account(file) if finding.trouble}


def test_an_account_with_all_that_is_needed_is_well(aws, fill_in, capsys):
    assert main([str(fill_in(aws["SecurityGroup"]))]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^security group +sg-\w+: ssh from 203\.0\.113\.7/32$", said, re.MULTILINE)
    assert re.search(r"^roles +bn-order-head, bn-order-worker$", said, re.MULTILINE)
    assert re.search(r"^images .*/bn-order/gpu-image is ami-0123", said, re.MULTILINE)
    assert "spot 8 of 8" in said
    assert re.search(r"^key .*/bn-order\.pem: `ray up` makes it$", said, re.MULTILINE)
    ec2 = boto3.client("ec2", region_name="us-east-1")
    assert not ec2.describe_instances()["Reservations"]  # the starts were pretended
    assert not ec2.describe_key_pairs()["KeyPairs"]


def test_a_region_that_is_misspelt_is_named_and_nobody_is_asked(fill_in):
    off = troubles(fill_in("sg-1", region="us-esat-1"))
    assert off.keys() == {"region"}
    assert re.search("'us-esat-1' is no region of AWS; there is .*us-east-1", off["region"])


def test_without_credentials_it_is_said_how_to_get_some(fill_in):
    (trouble,) = troubles(fill_in("sg-1")).values()
    assert (
        trouble == "Unable to locate credentials; aws configure, aws sso login, or set AWS_PROFILE"
    )


def test_a_profile_that_is_not_there_is_named(fill_in, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    (trouble,) = [f.trouble for f in check_account(fill_in("sg-1")) if f.trouble]
    assert "The config profile (nobody) could not be found" in trouble


def test_what_is_not_filled_in_is_named(aws):
    off = troubles(ROOT / "cluster.yaml")
    assert off["security group"] == "sg-FILL-IN: fill in the output SecurityGroup of the stack"


def test_in_another_region_than_the_stacks_everything_of_the_stack_is_missed(aws, fill_in):
    off = troubles(fill_in(aws["SecurityGroup"], region="eu-central-1"))
    assert "there is none in this region; make the stack" in off["security group"]
    assert "there is no parameter /bn-order/gpu-image" in off["images"]


def test_ahead_of_the_stack_the_roles_are_missed(fill_in):
    with moto.mock_aws():
        off = troubles(fill_in("sg-1"))
    assert off["roles"].startswith("there is no instance profile bn-order-head; make the stack")


@pytest.mark.parametrize(
    ("rule", "trouble"),
    [
        ((22, 22, "0.0.0.0/0"), "open to 0.0.0.0/0: whoever finds a port may knock"),
        ((8265, 8265, "203.0.113.0/24"), "open to 203.0.113.0/24 for more than ssh"),
        ((22, 8265, "203.0.113.0/24"), "open to 203.0.113.0/24 for more than ssh"),
    ],
)
def test_a_group_that_lets_more_in_than_ssh_from_a_range_is_trouble(aws, fill_in, rule, trouble):
    low, high, source = rule
    boto3.client("ec2", region_name="us-east-1").authorize_security_group_ingress(
        GroupId=aws["SecurityGroup"],
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": low,
                "ToPort": high,
                "IpRanges": [{"CidrIp": source}],
            }
        ],
    )
    assert trouble in troubles(fill_in(aws["SecurityGroup"]))["security group"]


def test_a_quota_of_nothing_is_trouble_and_a_small_one_is_said(aws, fill_in, monkeypatch):
    file = fill_in(aws["SecurityGroup"])
    monkeypatch.setattr(account, "read_quota", lambda _config, _code: 0.0)
    assert "no worker will come, as in a new account" in troubles(file)["quota"]
    for cores, said in ((13.0, "on-demand 2 of 2, spot 3 of 8"), (None, "spot not told")):
        monkeypatch.setattr(account, "read_quota", lambda _config, _code, cores=cores: cores)
        (quota,) = [finding for finding in check_account(file) if finding.what == "quota"]
        assert said in quota.text
        assert not quota.trouble


def test_a_key_whose_private_half_is_elsewhere_is_said(aws, fill_in):
    boto3.client("ec2", region_name="us-east-1").create_key_pair(KeyName="bn-order")
    (key,) = [f for f in check_account(fill_in(aws["SecurityGroup"])) if f.what == "key"]
    assert "a head that is up lets only the first one in" in key.text


def test_a_file_for_other_machines_is_an_error(capsys):
    assert main([str(ROOT / "harness/cluster/local.yaml")]) == 2
    assert "its provider is 'local'" in capsys.readouterr().err
