"""Which activation and which norm the output of each layer runs into.

Read from the network's graph, not from the order of execution: where two branches meet, the layers
of both run into the same ReLU, whichever ran last.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from harness.training.graphs import operation, trace
from harness.training.networks import Network


@dataclass(frozen=True, slots=True)
class Reach:
    """What the output of one layer meets before any other layer: names of modules, None if none."""

    relu: str | None
    """The first activation, if it is a ReLU."""
    norm: str | None
    """The first norm."""
    is_shift_invariant: bool
    """Whether the norm takes away any constant added to what it gives mean 0: nothing else reads it."""
    is_scale_invariant: bool
    """Whether it takes away any scale of the weight: nothing else reads what the weight scales."""


def follow_layers(network: Network) -> dict[str, Reach]:
    """Follow the output of every layer with a weight, under its dotted name."""
    modules: Mapping[str, nn.Module] = dict(network.named_modules())
    graph = trace(network).graph
    place = {node: at for at, node in enumerate(graph.nodes)}
    layers = {str(node.target): node for node in graph.nodes if _is_layer(node)}
    shift_invariant = _find_shift_invariant(graph, modules)
    has_norms = any(operation(node) == "norm" for node in graph.nodes)
    reaches: dict[str, Reach] = {}
    for name, _ in network.layers():
        act = norm = None
        for node in _run_into(layers[name], place):
            match operation(node):
                case "act":
                    act = act or node
                case "norm":
                    norm = norm or node
            if act and (norm or not has_norms):
                break
        reaches[name] = Reach(
            relu=str(act.target)
            if act and isinstance(modules.get(str(act.target)), nn.ReLU)
            else None,
            norm=str(norm.target) if norm else None,
            is_shift_invariant=norm is not None and norm.args[0] in shift_invariant,
            is_scale_invariant=_is_scale_invariant(layers[name], modules),
        )
    return reaches


def _run_into(layer: fx.Node, place: dict[fx.Node, int]) -> Iterator[fx.Node]:
    """Every node that the layer's output reaches past no other layer, in the order they run."""
    found = {layer}
    waiting: list[tuple[int, fx.Node]] = [(place[layer], layer)]
    while waiting:
        _, node = heapq.heappop(waiting)
        if node is not layer:
            yield node
        for reader in node.users:
            if reader not in found and not _is_layer(reader):
                found.add(reader)
                heapq.heappush(waiting, (place[reader], reader))


def _find_shift_invariant(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """Tensors to which a constant may be added without effect.

    A batch norm takes away a constant of each channel, and so do several that read one tensor, past
    additions, concatenations and pools. What the groups of another norm share differs from norm to
    norm: one that reads the tensor alone takes it away.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        readers = list(node.users)
        norms = [modules[str(reader.target)] for reader in readers if operation(reader) == "norm"]
        is_of_one = len(norms) == len(readers) == 1
        if is_of_one or (
            readers
            and all(isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) for norm in norms)
            and all(
                operation(reader) == "norm"
                or (reader in found and _keeps_constants(reader, modules))
                for reader in readers
            )
        ):
            found.add(node)
    return found


def _keeps_constants(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a constant of a channel, added ahead of the operation, is one behind it.

    It joins, pools or reshapes. Zeros that an average counts in, and a concatenation along another
    axis than the channels', leave it to a part of the positions.
    """
    match operation(node):
        case "+":
            return True
        case "cat":
            axis = (node.args[1:] or (node.kwargs.get("dim", 0),))[0]
            return bool(axis == 1) or _is_block_cat(node)
        case "pool":
            module = modules.get(str(node.target))
            return isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d) or (
                isinstance(module, nn.AvgPool2d) and module.padding in {0, (0, 0)}
            )
        case "":
            return node.op == "call_module" or node.target in {"flatten", "unflatten"}
        case _:
            return False


def _is_block_cat(node: fx.Node) -> bool:
    """Our blocks concatenate the channels of each replica, which stand on an axis of their own."""
    return all(source.target == "unflatten" for source in node.all_input_nodes)


def _is_scale_invariant(layer: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a norm divides out any scale of the weight.

    Nothing but pools and activations that scale with their input, f(c x) = c f(x) for every c > 0,
    may stand between the two. A bias does not scale with the weight: only a norm that subtracts it
    again, right behind the layer, allows one.
    """
    weight, bias = (getattr(modules[str(layer.target)], name) for name in ("weight", "bias"))
    if any(node.target == f"{layer.target}.weight" for node in layer.graph.nodes):
        return False  # something else reads the weight, too
    is_direct = True
    node = layer
    while len(node.users) == 1:
        (node,) = node.users
        module = modules.get(str(node.target))
        match operation(node), module:
            case "norm", nn.GroupNorm():
                return bias is None and module.num_channels == len(weight)
            case "norm", nn.BatchNorm1d() | nn.BatchNorm2d() | nn.InstanceNorm2d():
                return (bias is None or is_direct) and module.num_features == len(weight)
            case "act", nn.ReLU() | nn.LeakyReLU():
                is_direct = False
            case "pool", nn.Module():
                pass
            case _:
                return False
    return False


def _is_layer(node: fx.Node) -> bool:
    return operation(node) in {"conv", "linear"}
