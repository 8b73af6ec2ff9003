"""Rows that look like a trial's, without training one; and places to keep them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from harness.study.records import EpochRow, GradientRow, TrialRow, TrialRows
from harness.study.trials import TRAINING_VERSION, Trial

if TYPE_CHECKING:
    from harness.training.images import Images


def make_trial(**settings: Any) -> Trial:
    """A small trial; `settings` replace what it would be otherwise."""
    small = {
        "dataset": "digits",
        "architecture": "mlp",
        "placement": "before",
        "program": "linear norm act",
        "depth": 3,
        "seed": 0,
        "epochs": 2,
    }
    return Trial(**small | settings)


def make_rows(trial: Trial, **outcome: Any) -> TrialRows:
    """What training `trial` could have left; `outcome` replaces columns of its row."""
    row = {
        "status": "done",
        "epochs_trained": trial.epochs,
        "test_accuracy": 0.8 + trial.seed / 100,
        "test_correct": b"\xf0\x0f",
        "started": datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
        "training_version": TRAINING_VERSION,
        "trial_id": trial.id,
    }
    return TrialRows(
        trial=_fill(TrialRow, **asdict(trial) | row | outcome),
        epochs=tuple(
            _fill(EpochRow, trial_id=trial.id, epoch=epoch, lr=0.1 / epoch)
            for epoch in range(1, trial.epochs + 1)
        ),
        gradients=tuple(
            _fill(
                GradientRow,
                trial_id=trial.id,
                step=step,
                epoch=step / 10,
                layer=f"blocks.{layer}.linear",
                layer_index=layer,
                actgrad_total=0.1 + trial.seed,
                update_ratio=1e-3 if step else float("nan"),
            )
            for step in (0, 1, 20)
            for layer in range(trial.depth)
        ),
    )


def _fill(row_type: type[Any], **columns: Any) -> Any:
    """A row in which columns that do not matter have some value of their type."""
    some = {
        "str": "text",
        "int": 3,
        "float": 0.25,
        "bool": False,
        "bytes": b"",
        "datetime": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return row_type(**{field.name: some[field.type] for field in fields(row_type)} | columns)


@pytest.fixture(scope="session")
def digits() -> Images:
    """The bundled data set."""
    from harness.training.images import load_images

    return load_images("digits")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch set as in a worker."""
    import torch

    from harness.training.train import prepare_worker

    before = torch.get_num_threads()
    prepare_worker(threads=1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture(params=["folder", "bucket"])
def location(request, tmp_path) -> str:
    """Somewhere to keep results, of either kind; nothing is there yet."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return str(tmp_path / "results" / "quickstart")
