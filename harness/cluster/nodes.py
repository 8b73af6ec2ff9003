"""The nodes of a cluster that is connected: which there are and could be, their room, calls on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import yaml
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from harness.cluster.connection import connect
from harness.cluster.guard import START
from harness.cluster.ray_internals import find_refused_groups, read_node_groups
from harness.cluster.request import (
    Answer,
    Cluster,
    Node,
    NodeGroup,
    Request,
    Watcher,
    describe_resources,
)
from harness.cluster.worker import Caller
from harness.study.errors import ClusterError, last_line

if TYPE_CHECKING:
    from threading import Event

BOOTSTRAP_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster file on the head."""


def wait_for_nodes(request: Request, watcher: Watcher, stop: Event) -> None:
    """Return once as many nodes are up as the request wants, or `stop` is set.

    Raises:
        ClusterError: a Ray of the run's own will never have more than one.
    """
    wanted = request.wait_for_nodes
    if request.address == "local" and wanted > 1:
        raise ClusterError(
            f"--wait-for-nodes {wanted}: a Ray of this run's own has one node; to use a cluster "
            "give its --address"
        )
    while (up := len(_list_alive())) < wanted:
        watcher.note_waiting(up, wanted)
        if stop.wait(1.0):
            return


def place(request: Request) -> tuple[dict[str, float], int]:
    """The resources of one worker, and how many of them there is room for now.

    Raises:
        ClusterError: no node, present or to come, could hold one worker.
    """
    nodes = [node["Resources"] for node in _list_alive()]
    to_come = [dict(group.resources) for group in list_groups(request)]
    gpus = request.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes + to_come) else 0.0
    resources = {"CPU": request.cpus_per_trial, "GPU": gpus}
    if not any(_count_room(node, resources) for node in nodes + to_come):
        there = "; ".join(sorted({describe_resources(node) for node in nodes + to_come}))
        raise ClusterError(
            f"a trial asks for {describe_resources(resources)}, and no node has as much. "
            f"The largest request a node could fulfil: {there}. "
            "See --cpus-per-trial and --gpus-per-trial"
        )
    workers = max(1, sum(_count_room(node, resources) for node in nodes))
    return resources, min(workers, request.max_concurrent or workers)


def list_groups(request: Request) -> list[NodeGroup]:
    """The kinds of node that an autoscaler could add; none where there is no autoscaler."""
    if request.address == "local":
        return []
    if groups := read_node_groups():
        return [NodeGroup(name, most, resources) for name, (most, resources) in groups.items()]
    try:  # the autoscaler of `ray up` tells Ray nothing; this file on its head is what it was given
        config = yaml.safe_load(BOOTSTRAP_FILE.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [
        NodeGroup(name, min(node["max_workers"], config["max_workers"]), node["resources"])
        for name, node in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


def count_room_to_come(request: Request, resources: Mapping[str, float]) -> int:
    """How many workers of these resources the nodes hold that an autoscaler could add."""
    return sum(
        group.most * _count_room(group.resources, resources) for group in list_groups(request)
    )


@contextmanager
def survey(request: Request) -> Iterator[Cluster]:
    """Be connected to the cluster within the block, to ask its nodes.

    Raises:
        ClusterError: Ray does not answer, or no node, present or to come, could hold a trial.
    """
    with connect(request):
        resources, _ = place(request)
        yield Cluster(
            tuple(
                Node(
                    id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    offers=describe_resources(node["Resources"]),
                    room=_count_room(node["Resources"], resources),
                )
                for node in _list_alive()
            ),
            tuple(list_groups(request)),
            find_refused_groups(),
            resources,
        )


def run_on_every_node(
    function: Callable[..., Any],
    arguments: Mapping[Node, tuple[Any, ...]],
    *,
    patience: float,
) -> dict[Node, Answer]:
    """Call `function` once on each node, all at the same time, with the arguments for that node.

    A node at work answers too. Within a `survey` only.

    Units:
        patience: seconds that all calls have together.
    """
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    asked: dict[ray.ObjectRef, Node] = {}
    for node, values in arguments.items():
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[remote.options(scheduling_strategy=here).remote(*values)] = node
    return _collect(asked, patience)


def run_in_workers(
    function: Callable[..., Any],
    arguments: Mapping[Node, tuple[Any, ...]],
    *,
    patience: float,
    resources: Mapping[str, float],
) -> dict[Node, Answer]:
    """The same in a worker of these resources on each node, started as a run's are.

    That is an actor in room that was reserved for it, whose class is one of Tune's. It has as long
    to come up as a run would wait for it.

    Units:
        patience: seconds that all calls have together, once their workers are up.
    """
    worker: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources["GPU"])(Caller)
    groups = {
        node: placement_group([{**_positive(resources), f"node:{node.address}": 0.001}])
        for node in arguments
    }
    workers: dict[Node, Any] = {
        node: worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
        for node, group in groups.items()
    }
    try:
        started = _collect({workers[node].start.remote(): node for node in workers}, START)
        up = [node for node, answer in started.items() if not answer.error]
        asked = {workers[node].call.remote(function, *arguments[node]): node for node in up}
        return started | _collect(asked, patience)
    finally:
        for node, group in groups.items():
            ray.kill(workers[node])
            remove_placement_group(group)


def name_nodes(ids: Collection[str]) -> str:
    """The addresses of the nodes with these ids."""
    return ", ".join(node["NodeManagerAddress"] for node in _list_alive() if node["NodeID"] in ids)


def _positive(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if amount > 0}


def _collect(asked: Mapping[ray.ObjectRef, Node], patience: float) -> dict[Node, Answer]:
    answers: dict[Node, Answer] = {}
    until = time.monotonic() + patience
    waiting = list(asked)
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            break
        try:
            answers[asked[ready[0]]] = Answer(ray.get(ready[0]))
        except Exception as error:  # noqa: BLE001  the border with Ray: a node may be lost in any way
            answers[asked[ready[0]]] = Answer(None, last_line(error))
    for reference in waiting:
        with suppress(ValueError):  # no call to an actor can be forced to end; its actor is
            ray.cancel(reference, force=True)
        answers[asked[reference]] = Answer(None, f"no answer within {patience:.0f} s")
    return {node: answers[node] for node in asked.values()}


def _list_alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _count_room(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """How many workers of these resources a node holds."""
    return min(int(node.get(name, 0) // need) for name, need in resources.items() if need > 0)
