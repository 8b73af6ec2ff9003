"""What passes between a run and the package that knows Ray: plain data, which needs no ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.study.errors import StoreError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of Ray; `gpus_per_trial` None means one each where there are any."""

    address: str = "local"
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    wait_for_nodes: int = 0


@dataclass(frozen=True, slots=True)
class Finish:
    """A trial that has ended: `status` is that of its row, or 'failed'."""

    trial_id: str
    status: str
    test_accuracy: float = float("nan")
    wall_time: float = float("nan")


@dataclass(frozen=True, slots=True)
class News:
    """How far the training of a pack is, as its worker tells it.

    Units:
        epoch: epochs that have ended.
        epoch_time: seconds, the mean of the epochs since this start, of the whole pack.
    """

    trial_id: str
    """Of the first of the pack that is asked for."""
    epoch: int = 0
    train_loss: float = float("nan")
    """This and the accuracy are means over the pack."""
    validation_accuracy: float = float("nan")
    epoch_time: float = float("nan")


class Watcher(Protocol):
    """Is told, in the driver, what happens."""

    def note_waiting(self, nodes: int, wanted: int) -> None: ...
    def count_workers(self, workers: int) -> None: ...
    def note_running(self, workers: int) -> None: ...
    def note_news(self, news: Sequence[News]) -> None: ...
    def note_finish(self, finish: Finish) -> None: ...


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that is up; `room` is how many trials of the request it can train at a time."""

    id: str
    address: str
    offers: str
    room: int


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Machines that an autoscaler adds on demand, `most` at a time."""

    name: str
    most: int
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is, and what there could be."""

    nodes: tuple[Node, ...]
    groups: tuple[NodeGroup, ...]
    refused: frozenset[str]
    """Groups of which a machine was asked for lately and did not come."""
    worker: Mapping[str, float]
    """The resources of the worker that trains a trial."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call on a node returned, or in `error` why it did not."""

    value: Any
    error: str = ""


def refuse_caches_of_ray(location: str) -> None:
    """Stop ahead of rows in the copy of a working directory that Ray makes for a job, and deletes.

    Raises:
        StoreError: the folder lies in such a copy.
    """
    if "://" not in location and "working_dir_files" in (folder := Path(location).absolute()).parts:
        raise StoreError(
            f"{folder}: Ray deletes this copy of a job's working directory some time after the job. "
            "Name a place that stays: --results with an absolute path, or s3://bucket/prefix"
        )


def describe_resources(resources: Mapping[str, float]) -> str:
    """The CPUs and GPUs among them.

    >>> describe_resources({"CPU": 2, "GPU": 1, "memory": 1e9})
    '2 CPUs and 1 GPU'
    """
    counts = ((resources.get(kind, 0), kind) for kind in ("CPU", "GPU"))
    return " and ".join(f"{count:g} {kind}{'s' * (count != 1)}" for count, kind in counts)
