"""Move batch norm in the graphs of torchvision's models.

`torch.fx` turns a model into a graph. This module finds two kinds of places in it, and a program
has one part for each kind, which says what replaces the operations there:

* pair  `norm act`     a batch norm that only a ReLU reads
* join  `norm + act`   the batch norm that ends a residual branch, the addition, the ReLU behind it

For example, `act norm, act norm +` is the resnet's `after`: ReLU and then batch norm follow every
conv, and no ReLU follows the addition. The skip path is never changed: where it has a projection,
the projection's batch norm stays where it was. A program without `norm` removes every batch norm
and gives every conv a bias. Whatever a program does not name stays as torchvision wrote it:
kernels, widths, the stem's pool, epsilon and momentum of each batch norm.

Shapes (letters of this module):
    N images, C channels, H and W height and width, K classes
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from harness.study.architectures import PREFIX, find_setting_mistake
from harness.study.errors import GridError
from harness.study.trials import Trial
from harness.training.blocks import NORMS, Linear, Shortcut

_FUNCTIONS = {
    "relu": "act",
    "add": "+",
    "cat": "cat",
    "mean": "pool",
    "avg_pool2d": "pool",
    "max_pool2d": "pool",
    "adaptive_avg_pool2d": "pool",
}
"""Functions and methods that are operations; the others (flatten, size, getitem ...) move data."""

_MODULES: Mapping[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    Linear: "linear",
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh), "act"),
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "pool",
    nn.Flatten: "",
    nn.Identity: "",
    Shortcut: "",
}


def build_graph(
    trial: Trial, shape: tuple[int, int, int], classes: int
) -> tuple[fx.GraphModule, nn.Linear]:
    """The features and the head of a torchvision model, rewritten by `trial.program`.

    The last linear layer is the head; the first conv has as many input channels as the images;
    dropout is removed, because a placement would shift its random stream. Convs and linear layers
    are not initialised yet; batch norms have scale 1 and shift 0.

    Raises:
        GridError: the images are too small for the model, or it does not support a setting.
    """
    mistakes = [
        find_setting_mistake(trial.architecture, setting, getattr(trial, setting))
        for setting in ("pack_size", "width_factor", "final_norm")
    ]
    if any(mistakes):
        raise GridError([mistake for mistake in mistakes if mistake])
    name = trial.architecture.removeprefix(PREFIX)
    features = rewrite(load_model(name, classes), trial.program)
    head = _detach_head(features)
    convs = [module for module in features.modules() if isinstance(module, nn.Conv2d)]
    _take_channels(convs[0], shape[0])
    try:
        features(torch.empty(2, *shape, device="meta"))
    except (RuntimeError, ValueError) as error:
        size = " x ".join(map(str, shape[1:]))
        reason = str(error).splitlines()[0]
        raise GridError(
            [f"{trial.architecture} does not take images of {size}: {reason}"]
        ) from error
    for module in (features, head):
        module.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            if not trial.norm_affine:
                module.affine = False
                module.register_parameter("weight", None)
                module.register_parameter("bias", None)
            module.reset_parameters()
    return features, head


def load_model(name: str, classes: int = 1000) -> nn.Module:
    """torchvision's model called `name`, on the meta device: no memory, no randomness, no files."""
    from torchvision import models  # noqa: PLC0415 - torchvision takes longer to import than torch

    with torch.device("meta"):
        return models.get_model(name, weights=None, num_classes=classes)


def rewrite(model: nn.Module, program: str) -> fx.GraphModule:
    """`model` with its batch norms where `program` puts them; the two share every layer they keep.

    In every program each ReLU is out of place and a separate module: in place it would overwrite
    what the probe reads, and a hook on a shared ReLU would read two layers as one.
    """
    network = trace(model)
    _separate_relus(network)
    _drop_dropout(network)
    sites = find_sites(network.graph)
    parts = [part.split() for part in program.split(",")]
    for of_kind, operations in zip((sites.pairs, sites.joins), parts, strict=False):
        for site in of_kind:
            _rewrite_site(network, site, operations)
    if "norm" not in program.replace(",", " ").split():
        _remove_norms(network)
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    return network


def trace(module: nn.Module) -> fx.GraphModule:
    """The graph of `module`, down to the layers whose names `operation` knows."""
    graph = _Tracer().trace(module)
    for node in graph.nodes:
        node.meta = {"block": _find_block(node)}
    return fx.GraphModule(module, graph)


def operation(node: fx.Node) -> str:
    """The operation of a node, in the words of a program; "" where it only moves data.

    An operation that no program has keeps its name in torch: `hardswish`, `silu`.
    """
    if node.op != "call_module":
        name = getattr(node.target, "__name__", str(node.target))
        return _FUNCTIONS.get(name, "") if node.op.startswith("call_") else ""
    module = _module(node)
    for kind, name in _MODULES.items():
        if isinstance(module, kind):
            return name
    return type(module).__name__.lower()


def block_of(node: fx.Node) -> str:
    """Dotted name of the block that a node belongs to in the original model."""
    return node.meta.get("block", "")


@dataclass(frozen=True, slots=True)
class Site:
    """One place that a program rewrites: a join where there is an addition, otherwise a pair."""

    norm: fx.Node
    act: fx.Node
    add: fx.Node | None = None


@dataclass(frozen=True, slots=True)
class Sites:
    """Every batch norm of a graph, grouped by how the placements treat it."""

    pairs: tuple[Site, ...]
    joins: tuple[Site, ...]
    projections: tuple[fx.Node, ...]  # on the skip path of a join
    loose: tuple[fx.Node, ...]  # no ReLU follows them: `after` would have to add one


def find_sites(graph: fx.Graph) -> Sites:
    """Group the batch norms of `graph`; those in `pairs` and `joins` have one reader each."""
    pairs: list[Site] = []
    joins: list[Site] = []
    projections: list[fx.Node] = []
    loose: list[fx.Node] = []
    for norm in graph.nodes:
        if operation(norm) != "norm":
            continue
        reader = _only_reader(norm)
        match reader and operation(reader):
            case "act":
                assert reader is not None
                pairs.append(Site(norm, reader))
            case "+" if (act := _only_reader(reader)) and operation(act) == "act":
                assert reader is not None
                if norm in skip_path(reader):
                    projections.append(norm)
                else:
                    joins.append(Site(norm, act, reader))
            case _:
                loose.append(norm)
    assert len({site.add for site in joins}) == len(joins), "one branch ends at each addition"
    return Sites(tuple(pairs), tuple(joins), tuple(projections), tuple(loose))


def skip_path(add: fx.Node) -> frozenset[fx.Node]:
    """The nodes from the fork to the addition on the side with fewer convs.

    Empty where the skip is an identity, and where both sides have equally many.
    """
    if len(add.all_input_nodes) != 2:
        return frozenset()
    one, other = map(_ancestors, add.all_input_nodes)
    sides = {_count_convs(side): side for side in (one - other, other - one)}
    return sides[min(sides)] if len(sides) == 2 else frozenset()


@dataclass(frozen=True, slots=True)
class Adjacencies:
    """How many batch norms a network has, and which operations they are next to.

    An addition reads a branch and a skip path; a batch norm on either counts.
    """

    norms: int
    ahead_of_act: int  # BN > ReLU
    behind_act: int  # ReLU > BN
    ahead_of_join: int  # BN > + > ReLU
    behind_pool: int  # ReLU > pool > BN


def read_blocks(graph: fx.Graph) -> Iterator[tuple[str, str]]:
    """Yield the name and the operations of each block, those on a skip path in brackets."""
    named = [node for node in graph.nodes if operation(node)]
    skipped = {node for add in named if operation(add) == "+" for node in skip_path(add)}
    for block, nodes in itertools.groupby(named, block_of):
        words: list[str] = []
        for on_skip, part in itertools.groupby(nodes, skipped.__contains__):
            text = " ".join(map(operation, part))
            words.append(f"({text})" if on_skip else text)
        yield block, " ".join(words)


def count_adjacencies(graph: fx.Graph) -> Adjacencies:
    """Count the batch norms of `graph`, and those next to a ReLU, an addition or a pool."""
    norms: set[fx.Node] = set()
    ahead_of_act: set[fx.Node] = set()
    behind_act: set[fx.Node] = set()
    ahead_of_join: set[fx.Node] = set()
    behind_pool: set[fx.Node] = set()
    for node in graph.nodes:
        for source in _sources(node):
            match operation(source), operation(node):
                case "norm", "act":
                    ahead_of_act.add(source)
                case "act", "norm":
                    behind_act.add(node)
                case "+", "act":
                    ahead_of_join |= {
                        term for term in _sources(source) if operation(term) == "norm"
                    }
                case "pool", "norm" if any(operation(past) == "act" for past in _sources(source)):
                    behind_pool.add(node)
        if operation(node) == "norm":
            norms.add(node)
    return Adjacencies(*map(len, (norms, ahead_of_act, behind_act, ahead_of_join, behind_pool)))


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """The operations whose output a node reads, past nodes that only move data or join one."""
    for source in node.all_input_nodes:
        while len(inputs := source.all_input_nodes) == 1 and operation(source) in {"", "cat"}:
            source = inputs[0]  # noqa: PLW2901 - walks back
        yield source


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Linear | Shortcut) or super().is_leaf_module(m, module_qualified_name)


def _find_block(node: fx.Node) -> str:
    """The outermost module around a node that is not just a sequence of others.

    Where there is none, it is the sequence: vgg's `features`, or "" for the whole model.
    """
    stack = node.meta.get("nn_module_stack", {})
    around = [(path, kind) for path, kind in stack.values() if path != node.target]
    for path, kind in around:
        if not issubclass(kind, nn.Sequential | nn.ModuleDict | nn.ModuleList):
            return path
    return around[-1][0] if around else ""


def _module(node: fx.Node) -> nn.Module:
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target))


def _only_reader(node: fx.Node | None) -> fx.Node | None:
    readers = list(node.users) if node is not None else []
    return readers[0] if len(readers) == 1 else None


def _ancestors(node: fx.Node) -> frozenset[fx.Node]:
    """The node and all nodes that its value depends on."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        if (current := waiting.pop()) not in found:
            found.add(current)
            waiting += current.all_input_nodes
    return frozenset(found)


def _count_convs(nodes: Iterable[fx.Node]) -> int:
    return sum(operation(node) == "conv" for node in nodes)


def _separate_relus(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if operation(node) == "act":
            own = _insert_relu(network, node.args[0], after=node)
            own.meta = dict(node.meta)
            node.replace_all_uses_with(own)
            network.graph.erase_node(node)


def _insert_relu(network: fx.GraphModule, source: Any, *, after: fx.Node) -> fx.Node:  # noqa: ANN401 - fx calls it Argument
    """Insert a new ReLU that reads `source`, named like the layers beside it."""
    beside = block_of(after)
    number = 0
    while hasattr(network.get_submodule(beside), f"act{number}"):
        number += 1
    name = f"{beside}.act{number}".lstrip(".")
    network.add_submodule(name, nn.ReLU(inplace=False))
    with network.graph.inserting_after(after):
        return network.graph.call_module(name, (source,))


def _drop_dropout(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if node.op == "call_module" and isinstance(_module(node), nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


def _rewrite_site(network: fx.GraphModule, site: Site, operations: Sequence[str]) -> None:
    """Replace the operations of the site by `operations`.

    Those ahead of the addition go where the batch norm was, so that they run right after their
    conv, before any projection on the skip path, and the probe attributes them to that conv.
    """
    graph = network.graph
    out, at = site.norm.args[0], site.norm
    for name in operations:
        match name:
            case "norm":
                with graph.inserting_after(at):
                    new = graph.call_module(str(site.norm.target), (out,))
            case "act":
                new = _insert_relu(network, out, after=at)
            case "+":
                assert site.add is not None
                terms = tuple(out if term is site.norm else term for term in site.add.args)
                with graph.inserting_after(site.add):
                    new = graph.call_function(operator.add, terms)
            case _:
                raise AssertionError(name)
        new.meta = dict(site.norm.meta)
        out = at = new
    site.act.replace_all_uses_with(at)
    for old in (site.act, site.add, site.norm):
        if old is not None:
            graph.erase_node(old)


def _remove_norms(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if operation(node) == "norm":
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            weight = module.weight
            module.bias = nn.Parameter(weight.new_zeros(module.out_channels))


def _detach_head(network: fx.GraphModule) -> nn.Linear:
    """Remove the last linear layer from the graph; its input becomes the graph's output."""
    *_, node, output = network.graph.nodes
    head = _module(node)
    assert isinstance(head, nn.Linear), "every classifier of torchvision's ends in a linear layer"
    output.args = (node.args[0],)
    network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return head


def _take_channels(conv: nn.Conv2d, channels: int) -> None:
    conv.in_channels = channels
    conv.weight = nn.Parameter(
        conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size)
    )
