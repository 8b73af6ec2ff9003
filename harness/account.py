"""python -m harness.account [FILE]: ask AWS whether `ray up` could make a cluster of a cluster file.

Ray meets such mistakes one at a time, some of them after minutes, and a quota of 0 it never
mentions. What is asked for here are descriptions, and starts that AWS only pretends: nothing
changes, nothing costs.
"""

# ruff: noqa: T201  this file speaks to the terminal
from __future__ import annotations

import argparse
import difflib
import ipaddress
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.study.errors import ClusterError

if TYPE_CHECKING:
    from boto3 import Session

FILE = Path("cluster.yaml")

WIDEST = 16
"""Bits of the prefix of a range from which ssh may come; one with fewer is as good as the world."""

QUOTAS = {"spot": "L-3819A6DF", "on demand": "L-DB2E81BA"}
"""AWS's codes for cores of the families G and VT: 'All G and VT Spot Instance Requests', and
'Running On-Demand G and VT instances'."""

READY, NOT_READY = 0, 1

_STACK = "make the stack in this region first, as the top of the file says"
_CREDENTIALS = "aws configure, aws sso login, or set AWS_PROFILE"

_EXPLAINED: Mapping[str, str] = {
    "AuthFailure": f"AWS does not know these credentials; {_CREDENTIALS}",
    "ExpiredToken": f"these credentials have expired; {_CREDENTIALS}",
    "InvalidClientTokenId": f"AWS does not know these credentials; {_CREDENTIALS}",
    "OptInRequired": "the account has this region switched off, or is not complete",
    "RequestExpired": "these credentials have expired, or the clock here is wrong",
    "SignatureDoesNotMatch": f"the secret key is not the one of this access key; {_CREDENTIALS}",
    "UnrecognizedClientException": f"AWS does not know these credentials; {_CREDENTIALS}",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What AWS says about one thing that the cluster needs, and what is wrong with it, if something is."""

    what: str
    text: str
    trouble: str = ""

    def __str__(self) -> str:
        return f"{self.what:<15} {self.text}{' (!)' if self.trouble else ''}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.account",
        description="Ask AWS, ahead of `ray up`, whether a cluster file could become a cluster.",
        epilog="Exit codes: 0 it could, 1 something is off, 2 the file is not for AWS.",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    try:
        findings = []
        for finding in check_account(options.file):
            print(finding, flush=True)
            findings.append(finding)
    except ClusterError as error:
        print(f"harness.account: {error}", file=sys.stderr)
        return error.exit_code
    troubles = [finding for finding in findings if finding.trouble]
    for finding in troubles:
        print(f"{finding.what}: {finding.trouble}")
    return NOT_READY if troubles else READY


def check_account(file: Path) -> Iterator[Finding]:
    """Everything that a cluster file takes for granted; no more of it after region and credentials.

    Raises:
        ClusterError: the file is none of AWS's, or boto3 is not installed.
    """
    config = _read_config(file)
    for what, check, is_needed in (
        ("region", _find_region, True),
        ("credentials", _find_credentials, True),
        ("security group", _find_group, False),
        ("roles", _find_roles, False),
        ("images", _find_images, False),
        ("machines", _pretend_to_start, False),
        ("quota", _find_quotas, False),
        ("key", _find_key, False),
    ):
        finding = _try(what, check, config)
        yield finding
        if finding.trouble and is_needed:
            return


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = config["provider"]["type"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ClusterError(f"{file}: not a cluster file: {error}") from error
    if kind != "aws":
        raise ClusterError(f"{file}: its provider is {kind!r}; of AWS's this asks, of no other")
    return config


def _try(what: str, check: Callable[[dict[str, Any]], str], config: dict[str, Any]) -> Finding:
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ClusterError(
            "boto3 is not here: pip install -c constraints.txt '.[cluster]'"
        ) from error
    try:
        return Finding(what, check(config))
    except ClusterError as error:
        return Finding(what, "off", str(error))
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        return Finding(what, "off", _EXPLAINED.get(code, f"{code}: {message}"))
    except BotoCoreError as error:
        return Finding(what, "off", str(error))


@cache
def _session(region: str) -> Session:
    from boto3 import Session  # noqa: PLC0415  an extra

    return Session(region_name=region)


def _ask(config: dict[str, Any], service: str) -> Any:  # noqa: ANN401  boto3 makes its types as it runs
    from botocore.config import Config  # noqa: PLC0415  an extra

    patience = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})
    return _session(config["provider"]["region"]).client(service, config=patience)


def _node_configs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node["node_config"] for name, node in config["available_node_types"].items()}


def _find_region(config: dict[str, Any]) -> str:
    region = config["provider"]["region"]
    known = _session(region).get_available_regions("ec2")
    if region not in known:
        close = difflib.get_close_matches(region, known, n=3) or known
        raise ClusterError(f"{region!r} is no region of AWS; there is {', '.join(close)}")
    return region


def _find_credentials(config: dict[str, Any]) -> str:
    from botocore.exceptions import NoCredentialsError, ProfileNotFound  # noqa: PLC0415  an extra

    try:
        return _ask(config, "sts").get_caller_identity()["Arn"]
    except (NoCredentialsError, ProfileNotFound) as error:
        raise ClusterError(f"{error}; {_CREDENTIALS}") from error


def _find_group(config: dict[str, Any]) -> str:
    """The groups, open for ssh from some range, and to the world for nothing."""
    ids = {group for node in _node_configs(config).values() for group in node["SecurityGroupIds"]}
    if unfilled := sorted(group for group in ids if "FILL-IN" in group):
        raise ClusterError(f"{unfilled[0]}: fill in the output SecurityGroup of the stack")
    groups = _ask(config, "ec2").describe_security_groups(
        Filters=[{"Name": "group-id", "Values": sorted(ids)}]
    )["SecurityGroups"]
    if absent := ids - {group["GroupId"] for group in groups}:
        raise ClusterError(f"{', '.join(sorted(absent))}: there is none in this region; {_STACK}")
    sources = [
        (rule, address)
        for group in groups
        for rule in group["IpPermissions"]
        for address in (
            *(each["CidrIp"] for each in rule.get("IpRanges", ())),
            *(each["CidrIpv6"] for each in rule.get("Ipv6Ranges", ())),
        )
    ]
    for rule, address in sources:
        if ipaddress.ip_network(address, strict=False).prefixlen < WIDEST:
            raise ClusterError(f"open to {address}: whoever finds a port may knock; narrow it")
        if (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            raise ClusterError(
                f"open to {address} for more than ssh; Ray's ports are the nodes' own"
            )
    if not sources:
        raise ClusterError("ssh comes in from nowhere; deploy the stack with your SshFrom")
    return f"{', '.join(sorted(ids))}: ssh from {', '.join(address for _, address in sources)}"


def _find_roles(config: dict[str, Any]) -> str:
    iam = _ask(config, "iam")
    names = sorted({node["IamInstanceProfile"]["Name"] for node in _node_configs(config).values()})
    for name in names:
        try:
            iam.get_instance_profile(InstanceProfileName=name)
        except iam.exceptions.NoSuchEntityException:
            raise ClusterError(f"there is no instance profile {name}; {_STACK}") from None
    return ", ".join(names)


def _find_images(config: dict[str, Any]) -> str:
    prefix = "resolve:ssm:"
    images = {node["ImageId"] for node in _node_configs(config).values()}
    names = sorted(image.removeprefix(prefix) for image in images if image.startswith(prefix))
    found = _ask(config, "ssm").get_parameters(Names=names) if names else {"Parameters": []}
    if absent := found.get("InvalidParameters"):
        raise ClusterError(f"there is no parameter {', '.join(absent)}; {_STACK}")
    return ", ".join(f"{each['Name']} is {each['Value']}" for each in found["Parameters"])


def _pretend_to_start(config: dict[str, Any]) -> str:
    """AWS checks each request as if it were meant: rights, type, image, group and role."""
    from botocore.exceptions import ClientError  # noqa: PLC0415  an extra

    ec2 = _ask(config, "ec2")
    for name, node in _node_configs(config).items():
        try:
            ec2.run_instances(DryRun=True, MinCount=1, MaxCount=1, **node)
        except ClientError as error:
            refusal = error.response["Error"]
            if refusal["Code"] != "DryRunOperation":
                raise ClusterError(f"{name}: {refusal['Code']}: {refusal['Message']}") from error
    return ", ".join(
        f"{name} ({node['InstanceType']})" for name, node in _node_configs(config).items()
    )


def _find_quotas(config: dict[str, Any]) -> str:
    """How many workers of each type the quota has room for, those of others aside."""
    parts: list[str] = []
    most = 0
    asked = ""
    for name, node in config["available_node_types"].items():
        instance = node["node_config"]["InstanceType"]
        if name == config["head_node_type"] or not instance.startswith(("g", "vt")):
            continue
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on demand")
        wanted = min(node["max_workers"], config["max_workers"])
        cores = read_quota(config, QUOTAS[market])
        if cores is None:
            parts.append(f"{name} not told")
            most += wanted
            continue
        room = min(wanted, int(cores // node["resources"]["CPU"]))
        most += room
        parts.append(f"{name} {room} of {wanted}")
        asked = f"{wanted * node['resources']['CPU']:g} cores {market}"
    if parts and not most:
        raise ClusterError(
            f"no worker will come, as in a new account ({', '.join(parts)}). Ask for {asked} in AWS's "
            "Service Quotas, 'G and VT'; it takes a day or so"
        )
    return ", ".join(parts)


def read_quota(config: dict[str, Any], code: str) -> float | None:
    """Cores that may run at once in this region; None where the account may not be asked."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  an extra

    try:
        answer = _ask(config, "service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except (BotoCoreError, ClientError):
        return None
    return answer["Quota"]["Value"]


def _find_key(config: dict[str, Any]) -> str:
    """The key that Ray will use: its public half at AWS, its private half here."""
    name = config["provider"]["key_pair"]["key_name"]
    file = Path(f"~/.ssh/{name}.pem").expanduser()
    is_known = bool(
        _ask(config, "ec2").describe_key_pairs(Filters=[{"Name": "key-name", "Values": [name]}])[
            "KeyPairs"
        ]
    )
    match is_known, file.exists():
        case True, True:
            return str(file)
        case False, False:
            return f"{file}: `ray up` makes it"
        case True, False:
            return (
                f"{name} is at AWS and {file} is not here: `ray up` makes a second key, and a head that "
                "is up lets only the first one in"
            )
        case _:
            return f"{file} is here and {name} is not at AWS: `ray up` makes a second key"


if __name__ == "__main__":
    sys.exit(main())
