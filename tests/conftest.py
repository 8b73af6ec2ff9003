"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from harness.study.trials import PROGRAMS, Trial

with suppress(ImportError):  # a bare GPU machine has no hypothesis, and its tests need none
    from hypothesis import settings

    settings.register_profile("ci", derandomize=True, deadline=None)
    if os.environ.get("CI"):
        settings.load_profile("ci")


@pytest.fixture(scope="session")
def trial_of() -> Callable[..., Trial]:
    """Make a trial small enough to train in a test: digits, narrow, short."""

    def make(architecture: str = "resnet", placement: str = "before", **settings: object) -> Trial:
        small = {
            "program": PROGRAMS[architecture][placement],
            "depth": {"mlp": 3, "vgg": 11, "densenet": 16}.get(architecture, 8),
            "seed": 0,
            "dataset": "digits",
            "width_factor": 0.25,
            "epochs": 2,
            "batch_size": 128,
            "warmup_epochs": 0.5,
            "augmentation": "none",
            "probe_size": 64,
        }
        return Trial(architecture=architecture, placement=placement, **(small | settings))

    return make


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[str]:
    """An S3 server on loopback; its address."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(bucket_server: str, monkeypatch: pytest.MonkeyPatch, request) -> str:
    """The location of a new bucket."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": bucket_server,
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = f"results-{os.urandom(8).hex()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}/studies/quickstart"
