"""What a study costs on rented machines, computed; and how many of them are worth starting.

The machines are those of a cluster file as `ray up` takes it. Nothing is asked of a provider.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.cluster.forecast import PACES, Forecast
from harness.study.errors import ClusterError
from harness.study.records import TrialRow
from harness.study.trials import Trial
from harness.study.wording import format_count

PRICES = {"m6i.large": 0.096, "g4dn.xlarge": 0.526, "g5.xlarge": 1.006, "g6.xlarge": 0.8048}
"""US dollars an hour for an instance on demand: AWS, us-east-1, Linux."""

PRICES_AS_OF = "June 2026"

SPOT_SHARE = 0.5
"""What a spot instance is assumed to cost of that. It changes by the hour: look it up, and give it by
`--price`, before a budget rests on it."""

BOOT_TIME = 300.0
"""Seconds from asking for a machine to its first trial: its start, and its environment's setup."""

_GPU_GUESS = (
    f"guessed from the size of the networks: {1 / PACES['cuda'].flop:.0e} FLOP a second "
    "are assumed of a GPU, and no gain from sharing one; no trial has been timed on it yet"
)

Prices = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Machine:
    """One node type of a cluster file.

    Units:
        price: US dollars an hour.
    """

    name: str
    instance: str
    cpus: float
    gpus: float
    most: int
    price: float

    def count_room(self, cpus: float, gpus: float | None) -> int:
        """Trials that train on it at a time; `gpus` None means one each where there are any."""
        gpus = min(1.0, self.gpus) if gpus is None else gpus
        room = int(self.cpus // cpus)
        return min(room, int(self.gpus // gpus)) if gpus else room


def count_worthwhile_workers(seconds: float, *, present: int, most: int) -> int:
    """Workers worth having for so much work: those present, and those who come in time to help.

    A new worker is worth its start if it then trains for at least as long as it took to come.
    Until it comes, those who are present go on; what they leave is shared by all.

    >>> count_worthwhile_workers(8 * BOOT_TIME, present=0, most=100)
    8
    >>> count_worthwhile_workers(8 * BOOT_TIME, present=3, most=100)  # 5 left, for 5 workers
    5
    >>> count_worthwhile_workers(8 * BOOT_TIME, present=4, most=100)  # 4 left, for 4 workers
    4

    Units:
        seconds: of work, on one worker.
    """
    worthwhile = int(seconds / BOOT_TIME) - present
    return max(1, present, min(worthwhile, most))


def read_machines(file: Path, prices: Prices) -> tuple[Machine, list[Machine]]:
    """The head and the kinds of worker of a cluster file, with prices by node type or instance type.

    Raises:
        ClusterError: the file is none of AWS's, or a price is missing or for nothing in it.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        types = config["available_node_types"]
        head_name = config["head_node_type"]
        machines = {
            name: _read_machine(name, node, config["max_workers"], prices)
            for name, node in types.items()
        }
        head = machines.pop(head_name)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ClusterError(f"{file}: not a cluster file with node types: {error}") from error
    known = {
        word for machine in (head, *machines.values()) for word in (machine.name, machine.instance)
    }
    if strangers := sorted(set(prices) - known):
        raise ClusterError(
            f"--price {strangers[0]}: {file} has no such machine; it has {', '.join(sorted(known))}"
        )
    return head, list(machines.values())


def _read_machine(name: str, node: Mapping[str, Any], most: int, prices: Prices) -> Machine:
    config, resources = node["node_config"], node["resources"]
    instance = config["InstanceType"]
    is_spot = config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    price = prices.get(name)
    if price is None:
        price = prices.get(instance, PRICES.get(instance))
        if price is None:
            raise ClusterError(
                f"the price of {instance} is not known here; give it: --price {name}=1.23 (USD/hour)"
            )
        price *= SPOT_SHARE if is_spot else 1.0
    return Machine(
        name=name,
        instance=instance,
        cpus=resources["CPU"],
        gpus=resources.get("GPU", 0),
        most=min(most, node.get("max_workers", most)),
        price=price,
    )


def describe_costs(
    file: Path,
    missing: Sequence[Trial],
    finished: Iterable[tuple[Trial, TrialRow]],
    *,
    cpus: float,
    gpus: float | None,
    prices: Prices,
) -> Iterator[str]:
    """Hours and money of training `missing` on one machine of each kind and on a fleet; the basis.

    Where no trial has been timed on a GPU, those that share one are taken to gain nothing by it:
    what a guess from the size of the network leaves free on the card nobody knows.

    Raises:
        ClusterError: as `read_machines`.
    """
    finished = list(finished)
    head, kinds = read_machines(file, prices)
    bases: dict[str, None] = {}
    for kind in kinds:
        room = kind.count_room(cpus, gpus)
        if not room:
            yield f"{kind.name} ({kind.instance}): too small for a trial"
            continue
        device = "cuda" if kind.gpus and gpus != 0 else "cpu"
        forecast = Forecast(device)
        timed = [(trial, row) for trial, row in finished if row.device_kind == device]
        for trial, row in timed:
            forecast.note(trial, row.wall_time)
        is_guessed_for_gpu = device == "cuda" and not timed
        bases[_GPU_GUESS if is_guessed_for_gpu else forecast.basis] = None
        at_once = min(room, math.ceil(kind.gpus)) if is_guessed_for_gpu else room
        forecast.prepare(missing)
        durations = [forecast.seconds(trial) for trial in missing]
        most = min(kind.most * at_once, len(missing))
        workers = count_worthwhile_workers(sum(durations), present=0, most=most)
        for machines in sorted({1, math.ceil(workers / at_once)}):
            together = min(machines * at_once, workers)
            hours = (BOOT_TIME + max(sum(durations) / together, *durations)) / 3600
            money = hours * (machines * kind.price + head.price)
            yield (
                f"{machines} {kind.name} ({kind.instance}, {format_count(room, 'trial')} each): "
                f"roughly {hours:.1f} h, {machines * hours:.1f} machine-hours, {money:.2f} USD with the head"
            )
    yield from bases
    yield (
        f"computed, not billed: AWS's prices of {PRICES_AS_OF}, spot at {SPOT_SHARE:.0%} of them, "
        "disks and traffic aside; --price NODE=USD replaces one"
    )
