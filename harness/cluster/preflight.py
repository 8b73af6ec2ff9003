"""Ask every node of a cluster, ahead of a study, whether it could train: one table, what is off below.

Each node says what it runs, tries the storage and the devices, gets the data sets, and tells the
time. What a check leaves is what the study would make there anyway: the data sets, and an empty
folder where a new study's results will be.
"""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING

from harness.results.store import Store
from harness.study.errors import HarnessError, StoreError
from harness.study.trials import Trial
from harness.training.provenance import digest_code

if TYPE_CHECKING:
    from harness.cluster import fanout

INTRODUCTION = 60.0
"""Seconds a node has to start a worker and say what it runs."""

TRIAL_RUN = 900.0
"""Seconds it has to try everything out: a data set may have to be downloaded."""

CLOCK_TOLERANCE = 5.0
"""Seconds between two clocks; with time kept by NTP it is thousandths."""

CLOCK_READINGS = 3

_SUMS_ON_GPUS = """
import torch
for index in range(torch.cuda.device_count()):
    assert torch.ones(8, device=f"cuda:{index}").sum().item() == 8
    print(torch.cuda.get_device_name(index))
"""

_HEADINGS = (
    "node",
    "offers",
    "Python",
    "Ray",
    "torch",
    "code",
    "device",
    "storage",
    "data",
    "clock",
)


_REMEDY = """AWS did not give a machine. Ray passes the reason on to nobody; on the head it is in
/tmp/ray/session_latest/logs/monitor.log, "Failed to launch". Mostly it is one of these:
  VcpuLimitExceeded, MaxSpotInstanceCountExceeded  the quota is used up, or 0 as in a new account:
                                ask for 4 cores a machine in AWS's Service Quotas, "All G and VT"
  InsufficientInstanceCapacity  none is left at present: wait, take another region, or on demand
  UnauthorizedOperation         the instance type is not among WorkerTypes of the stack"""


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


def check_cluster(trials: Sequence[Trial], store: Store, request: fanout.Request) -> Report:
    """Ask every node that is up whether it could train `trials` and keep their rows in `store`.

    Raises:
        ClusterError: Ray does not answer, or no node, present or to come, could hold a trial.
    """
    report = Report()
    datasets = tuple(dict.fromkeys(trial.dataset for trial in trials))
    from harness.cluster import fanout  # noqa: PLC0415  Ray: only once a cluster is asked

    with fanout.survey(request) as cluster, _beacon(store, report) as beacon:
        introductions = fanout.run_on_every_node(
            name_versions, dict.fromkeys(cluster.nodes, ()), patience=INTRODUCTION
        )
        mine = name_versions()
        for node, answer in introductions.items():
            report.rows[node.address] = {"offers": Cell(node.offers)}
            report.rows[node.address] |= compare_versions(answer, mine)
        known = [node for node, answer in introductions.items() if not answer.error]
        tried = fanout.run_on_every_node(
            try_out,
            {
                node: (
                    store if beacon else None,
                    beacon,
                    datasets if node.room else (),
                    0 if request.gpus_per_trial == 0 else node.gpus,
                )
                for node in known
            },
            patience=TRIAL_RUN,
        )
        for node, answer in tried.items():
            if answer.error:
                report.rows[node.address]["storage"] = Cell("?", answer.error)
            else:
                report.rows[node.address] |= answer.value
        # Last: by now each node has a worker that answers at once.
        rounds = [
            fanout.run_on_every_node(time_now, dict.fromkeys(known, ()), patience=INTRODUCTION)
            for _ in range(CLOCK_READINGS)
        ]
        for node in known:
            readings = [answers[node] for answers in rounds]
            report.rows[node.address]["clock"] = compare_clocks(readings)
        report.notes += describe_what_is_to_come(cluster, report)
        report.troubles += [f"{group}: {_REMEDY}" for group in sorted(cluster.refused)]
    return report


def name_versions() -> dict[str, str]:
    """What this machine runs, by heading of the table."""
    return {
        "Python": platform.python_version(),
        "Ray": metadata.version("ray"),
        "torch": metadata.version("torch"),
        "code": digest_code(),
    }


def time_now() -> float:
    """Seconds since 1970 by this machine's clock."""
    return time.time()


def compare_versions(answer: fanout.Answer, mine: Mapping[str, str]) -> dict[str, Cell]:
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


def compare_clocks(readings: Sequence[fanout.Answer]) -> Cell:
    """How far a node's clock is ahead; trouble where it is more than the answer's delay explains.

    Source:
        Mills 1991, doi:10.1109/26.103043, s.3: of several readings the quickest errs the least.
    """
    answer = min(readings, key=lambda answer: (answer.error, answer.answered - answer.asked))
    if answer.error:
        return Cell("?", f"does not tell the time: {answer.error}")
    ahead = answer.value - (answer.asked + answer.answered) / 2
    uncertainty = (answer.answered - answer.asked) / 2
    if abs(ahead) - uncertainty <= CLOCK_TOLERANCE:
        return Cell(f"{ahead:+.2f} s")
    way = "ahead" if ahead > 0 else "behind"
    return Cell(
        f"{ahead:+.0f} s", f"its clock is {abs(ahead):.0f} s {way}; keep it by NTP (chrony)"
    )


def try_out(
    store: Store | None, beacon: str, datasets: Sequence[str], gpus: int
) -> dict[str, Cell]:
    """Use, on the node this runs on, what a trial would use there."""
    cells: dict[str, Cell] = {}
    if store is not None:
        cells["storage"] = _try(lambda: _use_storage(store, beacon))
    if datasets:
        cells["data"] = _try(lambda: _get_data(datasets))
    if gpus:
        cells["device"] = _try(lambda: _use_gpus(gpus))
    elif datasets:
        cells["device"] = Cell("cpu")
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


def _use_gpus(count: int) -> str:
    """Their names, once each has done a sum.

    In a process of its own: from this one Ray hides the GPUs, because it has asked for none.
    """
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", _SUMS_ON_GPUS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    names = done.stdout.splitlines()
    if done.returncode:
        raise HarnessError(f"a GPU does not compute: {done.stderr.strip().splitlines()[-1]}")
    if len(names) < count:
        raise HarnessError(
            f"Ray counts {count} GPUs, torch finds {len(names)}; is the driver there, and new "
            "enough for this torch? (nvidia-smi)"
        )
    return ", ".join(dict.fromkeys(names))


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


def describe_what_is_to_come(cluster: fanout.Cluster, report: Report) -> Iterator[str]:
    """What the table cannot show: nodes that an autoscaler would add, devices that differ."""
    for group in cluster.groups:
        yield f"to come, unchecked until then: up to {group.most} of {group.name}, {group.offers}"
    devices = {row["device"].text for row in report.rows.values() if "device" in row}
    if len(devices) > 1:
        yield (
            f"devices differ: {'; '.join(sorted(devices))}. --pin-device-type trains all arms of a "
            "network on one type"
        )
