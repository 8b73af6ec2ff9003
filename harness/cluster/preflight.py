"""Ask every node of a cluster, ahead of a study, whether it could train: one table, troubles below.

Each node tells its versions; each that has room for a trial then starts a worker as a run does, and
that worker uses the storage, the data sets and the device. What a check leaves is what the study
would make there anyway: the data sets, and an empty folder where a new study's results will be.
"""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata

from harness.cluster.machine import explain_lack_of_compiler
from harness.cluster.request import Answer, Cluster, Request, describe_resources
from harness.results.store import Store
from harness.study.errors import ClusterError, HarnessError, StoreError
from harness.study.trials import Trial
from harness.training.provenance import digest_code

INTRODUCTION = 60.0
"""Seconds a node has to start a worker and tell its versions."""

TRIAL_RUN = 900.0
"""Seconds it has to try everything out: a data set may have to be downloaded."""

_HEADINGS = ("node", "offers", "Python", "Ray", "torch", "code", "device", "storage", "data")


@dataclass(frozen=True, slots=True)
class Cell:
    """What the table says about one thing on one node, and what is wrong with it, if something is."""

    text: str = "-"
    trouble: str = ""

    def __str__(self) -> str:
        return f"{self.text} (!)" if self.trouble else self.text


@dataclass(slots=True)
class Report:
    """The outcome of a check: a line of cells per node, and what concerns no single node."""

    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Could the study start?"""
        return not self.troubles and not any(
            cell.trouble for row in self.rows.values() for cell in row.values()
        )

    def __str__(self) -> str:
        lines = [_HEADINGS]
        lines += [
            (node, *(str(row.get(heading, Cell())) for heading in _HEADINGS[1:]))
            for node, row in self.rows.items()
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        troubles = [
            f"{node}: {cell.trouble}"
            for node, row in self.rows.items()
            for cell in row.values()
            if cell.trouble
        ]
        return "\n".join([*table, *self.notes, *self.troubles, *troubles])


def check_cluster(trials: Sequence[Trial], store: Store, request: Request) -> Report:
    """Ask every node that is up whether it could train `trials` and keep their rows in `store`.

    Raises:
        ClusterError: Ray does not answer, or no node, present or to come, could hold a trial.
    """
    from harness.cluster.nodes import (  # noqa: PLC0415  Ray: only now
        run_in_workers,
        run_on_every_node,
        survey,
    )

    report = Report()
    datasets = tuple(dict.fromkeys(trial.dataset for trial in trials))
    with survey(request) as cluster, _beacon(store, report) as beacon:
        introductions = run_on_every_node(
            name_versions, dict.fromkeys(cluster.nodes, ()), patience=INTRODUCTION
        )
        mine = name_versions()
        for node, answer in introductions.items():
            report.rows[node.address] = {"offers": Cell(node.offers)}
            report.rows[node.address] |= compare_versions(answer, mine)
        compiles = any(trial.compile for trial in trials)
        on_gpu = cluster.worker["GPU"] > 0
        arguments = (store if beacon else None, beacon, datasets, on_gpu, compiles)
        able = [node for node, answer in introductions.items() if node.room and not answer.error]
        tried = run_in_workers(
            try_out, dict.fromkeys(able, arguments), patience=TRIAL_RUN, resources=cluster.worker
        )
        asked = describe_resources(cluster.worker)
        for node, answer in tried.items():
            if answer.error:
                trouble = f"no worker of {asked} tried it out: {answer.error}; is the node at work?"
                report.rows[node.address]["storage"] = Cell("?", trouble)
            else:
                report.rows[node.address] |= answer.value
        report.notes += describe_what_is_to_come(cluster, report)
        report.troubles += [
            f"{group}: a machine was asked for and did not come; on the head, the line 'Failed to "
            "launch' of /tmp/ray/session_latest/logs/monitor.log has the provider's reason"
            for group in sorted(cluster.refused)
        ]
    return report


def name_versions() -> dict[str, str]:
    """What this machine runs, by heading of the table."""
    return {
        "Python": platform.python_version(),
        "Ray": metadata.version("ray"),
        "torch": metadata.version("torch"),
        "code": digest_code(),
    }


def compare_versions(answer: Answer, mine: Mapping[str, str]) -> dict[str, Cell]:
    """The cells of a node's versions; other ones than the driver's are trouble."""
    if answer.error:
        text = (
            f"does not answer: {answer.error}. A node of another Python or Ray than "
            f"{mine['Python']} and {mine['Ray']} starts no workers; see its /tmp/ray/session_latest/logs"
        )
        return {"Python": Cell("?", text)}
    cells: dict[str, Cell] = {}
    for what, version in mine.items():
        found = answer.value[what]
        trouble = "" if found == version else f"{what} is {found}, but {version} here"
        cells[what] = Cell(found, trouble)
    return cells


def try_out(
    store: Store | None,
    beacon: str,
    datasets: Sequence[str],
    on_gpu: bool,
    compiles: bool = False,
) -> dict[str, Cell]:
    """Use, in the worker this runs in, what a trial would use there."""
    cells = {
        "data": _try(lambda: _get_data(datasets)),
        "device": _try(lambda: _use_device(on_gpu, compiles)),
    }
    if store is not None:
        cells["storage"] = _try(lambda: _use_storage(store, beacon))
    return cells


def _try(use: Callable[[], str]) -> Cell:
    try:
        return Cell(use())
    except HarnessError as error:
        return Cell("off", str(error))


def _use_storage(store: Store, beacon: str) -> str:
    """Read what the driver has written; write, read and give the driver something to remove."""
    begun = time.monotonic()
    if store.place.read(beacon) is None:
        raise StoreError(
            f"{store.location} is another folder here than for the driver; "
            "--results needs one that all nodes share, or s3://bucket/prefix"
        )
    path = f"{beacon}-{secrets.token_hex(4)}"
    store.place.create(path, beacon.encode())
    if store.place.read(path) != beacon.encode():
        raise StoreError(f"{store.location}/{path}: reads otherwise than it was written")
    return f"ok, {time.monotonic() - begun:.2f} s"


def _get_data(datasets: Sequence[str]) -> str:
    from harness.training.images import load_images  # noqa: PLC0415  torch: on the nodes, not for a driver

    for name in datasets:
        load_images(name, fetch=True)
    return ", ".join(datasets)


def _use_device(on_gpu: bool, compiles: bool) -> str:
    """Its name, once programs can be compiled for it and it has done a sum."""
    if compiles and (lack := explain_lack_of_compiler()):
        raise ClusterError(lack)
    if not on_gpu:
        return "cpu"
    import torch  # noqa: PLC0415  on the nodes, not for a driver

    if not torch.cuda.is_available():
        raise ClusterError(
            "Ray counts a GPU, torch finds none; is the driver there, and new enough for this "
            "torch? (nvidia-smi)"
        )
    try:
        torch.ones(8, device="cuda").sum().item()
    except RuntimeError as error:
        raise ClusterError(f"the GPU does not compute: {error}") from error
    return torch.cuda.get_device_name()


@contextmanager
def _beacon(store: Store, report: Report) -> Iterator[str]:
    """Something that the driver wrote, for the nodes to find; "" where it cannot write.

    The driver removes it afterwards, with all that the nodes have put beside it: workers need no
    right to delete. The names are hidden, so that a sweep gets what a killed check leaves.
    """
    beacon = f"active/.preflight-{secrets.token_hex(8)}"
    try:
        store.place.create(beacon, b"from the driver")
    except StoreError as error:
        report.troubles.append(f"the driver cannot write: {error}")
        yield ""
        return
    try:
        yield beacon
    finally:
        try:
            for file in store.place.list_files("active"):
                if f"active/{file.name}".startswith(beacon):
                    store.place.remove(f"active/{file.name}")
        except StoreError as error:
            report.troubles.append(f"the driver cannot delete: {error}")


def describe_what_is_to_come(cluster: Cluster, report: Report) -> Iterator[str]:
    """What the table cannot show: nodes that an autoscaler would add, devices that differ."""
    for group in cluster.groups:
        offers = describe_resources(group.resources)
        yield f"to come, unchecked until then: up to {group.most} of {group.name}, {offers}"
    devices = {row["device"].text for row in report.rows.values() if "device" in row}
    if len(devices) > 1:
        yield f"devices differ: {'; '.join(sorted(devices))}; arms of one cell may meet on both"
