"""Move norms in the graphs of torchvision's models and of users' own.

`torch.fx` turns a model into a graph. This module finds two kinds of places in it, and a program
has one part for each kind, which says what replaces the operations there:

* pair  `norm act`     a norm that only an activation reads
* join  `norm + act`   the norm that ends a residual branch, the addition, the activation behind it

For example, `act norm, act norm +` is the resnet's `after`: ReLU and then batch norm follow every
conv, and no ReLU follows the addition. The skip path is never changed: where it has a projection,
the projection's batch norm stays where it was. A program without `norm` removes every batch norm
and gives every conv a bias. Whatever a program does not name stays as torchvision wrote it:
kernels, widths, the stem's pool, epsilon and momentum of each batch norm.

Shapes (letters of this module):
    N images, C channels, H and W height and width, K classes
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from harness.study.architectures import PREFIX, explain_lack, find_setting_mistake
from harness.study.errors import GridError
from harness.study.own import is_own
from harness.study.trials import Trial
from harness.training.blocks import NORMS, Linear, Shortcut
from harness.training.kinds import (
    FUNCTIONS,
    MODULES,
    Unfit,
    choose_activation,
    exchange_norms,
    make_activation,
)
from harness.training.own import (
    explained,
    load_own,
    refuse_cut_gradients,
    refuse_graph,
    refuse_other_numbers,
)


def build_graph(
    trial: Trial, shape: tuple[int, int, int], classes: int
) -> tuple[fx.GraphModule, nn.Linear]:
    """The features and the head of a model, rewritten by `trial.program`.

    The last linear layer is the head; dropout is removed, because a placement would shift its
    random stream. Convs and linear layers are not initialised yet; norms have scale 1 and shift 0.

    Raises:
        GridError: the images are too small for the model, it does not support a setting, or a
            user's own cannot be rewritten.
    """
    mistakes = [
        find_setting_mistake(trial.architecture, setting, getattr(trial, setting))
        for setting in ("pack_size", "width_factor", "final_norm")
    ]
    if any(mistakes):
        raise GridError([mistake for mistake in mistakes if mistake])
    features = rewrite_model(trial, shape, classes)
    with explained(trial):
        head = _detach_head(features, classes)
    _refuse_images(features, head, trial, shape)
    if not is_own(trial.architecture):  # nothing of it had memory yet
        for module in (features, head):
            module.to_empty(device="cpu")
    for module in features.modules():
        if isinstance(module, NORMS):
            if not trial.norm_affine:
                module.affine = False
                module.register_parameter("weight", None)
                module.register_parameter("bias", None)
            module.reset_parameters()
    return features, head


def rewrite_model(trial: Trial, shape: tuple[int, int, int], classes: int) -> fx.GraphModule:
    """The whole model of `trial`, its head too, rewritten by the trial's program.

    Raises:
        GridError: a user's own network cannot be rewritten.
    """
    if is_own(trial.architecture):
        model = load_own(trial, shape, classes)
    else:
        model = load_model(trial.architecture.removeprefix(PREFIX), classes)
        _take_channels(model, shape[0])
    with explained(trial):
        exchange_norms(model, trial)
        if is_own(trial.architecture):
            in_evaluation = _without_dropout(trace(copy.deepcopy(model).eval()))
            network = _without_dropout(trace(model))
            refuse_graph(network, in_evaluation)
            refuse_other_numbers(model, _out_of_place, shape)
            sites = find_sites(network.graph)
            has = {"pairs": len(sites.pairs), "joins": len(sites.joins), "loose": len(sites.loose)}
            if lack := explain_lack(trial.program, **has):
                raise Unfit(lack)
        return rewrite(model, trial.program, trial.activation)


def load_model(name: str, classes: int = 1000) -> nn.Module:
    """torchvision's model called `name`, on the meta device: no memory, no randomness, no files."""
    from torchvision import models  # noqa: PLC0415 - torchvision takes longer to import than torch

    with torch.device("meta"):
        return models.get_model(name, weights=None, num_classes=classes)


def rewrite(model: nn.Module, program: str, activation: str = "relu") -> fx.GraphModule:
    """`model` with its norms where `program` puts them; the two share every layer they keep.

    In every program each activation is out of place and a separate module: in place it would
    overwrite what the probe reads, and a hook on a shared one would read two layers as one.

    Raises:
        Unfit: the model has other activations than the one named, or no place for the program.
    """
    network = _without_dropout(trace(model))
    network.graph.eliminate_dead_code()
    _separate_activations(network, activation)
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


def _out_of_place(model: nn.Module) -> fx.GraphModule:
    """`model` as it is written, apart from what no placement keeps: operations in place."""
    network = trace(model)
    network.graph.eliminate_dead_code()
    _separate_activations(network, None)
    network.recompile()
    return network


def trace(module: nn.Module) -> fx.GraphModule:
    """The graph of `module`, down to the layers whose names `operation` knows."""
    tracer = _Tracer()
    graph = tracer.trace(module)
    # A tracer of torch's refers to itself, and would keep the module, gradients and all, until
    # Python's collector comes by: on a GPU that is memory of the next training.
    for name in ("root", "tensor_attrs", "submodule_paths"):
        vars(tracer).pop(name, None)
    for node in graph.nodes:
        node.meta = {"block": _find_block(node)}
        if node.op == "call_module":  # as torch's own layers are called, with the input alone
            node.args, node.kwargs = (*node.args, *node.kwargs.values()), {}
    return fx.GraphModule(module, graph)


def operation(node: fx.Node) -> str:
    """The operation of a node, in the words of a program; "" where it only moves data.

    An operation that no program has keeps its name in torch: `hardswish`, `silu`.
    """
    if node.op != "call_module":
        name = getattr(node.target, "__name__", str(node.target))
        known = FUNCTIONS.get(name, "") if node.op.startswith("call_") else ""
        is_join = len(node.all_input_nodes) == 2 and not node.kwargs
        return "" if known == "+" and not is_join else known
    module = _module(node)
    for kind, name in MODULES.items():
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
    """Group the norms of `graph`; those in `pairs` and `joins` have one reader each.

    Raises:
        Unfit: two branches end at one addition.
    """
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
    if len({site.add for site in joins}) < len(joins):
        raise Unfit("has an addition of two branches with as many convs: which is the skip path?")
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


def _separate_activations(network: fx.GraphModule, wanted: str | None) -> None:
    """Give each activation a module of its own, of the kind that is wanted or the model has."""
    nodes = [node for node in network.graph.nodes if operation(node) == "act"]
    own = [
        make_activation(node, _module(node) if node.op == "call_module" else None) for node in nodes
    ]
    chosen = choose_activation(own, wanted)
    for node, module in zip(nodes, own, strict=True):
        source = node.all_input_nodes[0]
        new = _insert_activation(network, chosen() if chosen else module, source, after=node)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        network.graph.erase_node(node)


def _insert_activation(
    network: fx.GraphModule,
    module: nn.Module,
    source: Any,  # noqa: ANN401 - fx calls it Argument
    *,
    after: fx.Node,
) -> fx.Node:
    """Insert `module`, which reads `source`, named like the layers beside it."""
    beside = block_of(after)
    number = 0
    if beside not in dict(network.named_modules(remove_duplicate=False)):
        network.add_submodule(beside, nn.Module())  # it has no layers, and only calls functions
    while hasattr(network.get_submodule(beside), f"act{number}"):
        number += 1
    name = f"{beside}.act{number}".lstrip(".")
    network.add_submodule(name, module)
    with network.graph.inserting_after(after):
        return network.graph.call_module(name, (source,))


_DROPOUT = {"dropout", "dropout_", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"} | {
    *("dropout1d", "dropout2d", "dropout3d", "stochastic_depth"),
}


def _without_dropout(network: fx.GraphModule) -> fx.GraphModule:
    for node in list(network.graph.nodes):
        if node.op == "call_module":
            is_dropout = isinstance(_module(node), nn.modules.dropout._DropoutNd)  # noqa: SLF001 - the base of all
        else:
            name = getattr(node.target, "__name__", str(node.target))
            is_dropout = node.op.startswith("call_") and name in _DROPOUT
        if is_dropout:
            node.replace_all_uses_with(node.all_input_nodes[0])
            network.graph.erase_node(node)
    return network


def _rewrite_site(network: fx.GraphModule, site: Site, operations: Sequence[str]) -> None:
    """Replace the operations of the site by `operations`.

    Those ahead of the addition go where the batch norm was, so that they run right after their
    conv, before any projection on the skip path, and the probe attributes them to that conv.
    """
    graph, act = network.graph, _module(site.act)
    out, at = site.norm.args[0], site.norm
    for name in operations:
        match name:
            case "norm":
                with graph.inserting_after(at):
                    new = graph.call_module(str(site.norm.target), (out,))
            case "act":
                new = _insert_activation(network, copy.deepcopy(act), out, after=at)
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
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)))


def _detach_head(network: fx.GraphModule, classes: int) -> nn.Linear:
    """Remove the last linear layer from the graph; its input becomes the graph's output.

    Raises:
        Unfit: the graph ends otherwise, or for another number of classes.
    """
    *_, output = network.graph.nodes
    node = output.args[0]
    if not isinstance(node, fx.Node):
        raise Unfit("returns more than one value, and should return the logits alone")
    head = _module(node) if node.op == "call_module" else node.target
    if not isinstance(head, nn.Linear) or len(node.users) != 1:
        last = getattr(head, "__name__", None) or (
            head if isinstance(head, str) else type(head).__name__
        )
        raise Unfit(f"ends in {last!r}, and should end in an nn.Linear that gives the logits")
    if head.out_features != classes:
        raise Unfit(f"gives {head.out_features} logits, and the data set has {classes} classes")
    output.args = (node.args[0],)
    network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return head


def _take_channels(model: nn.Module, channels: int) -> None:
    """Give torchvision's first conv as many input channels as the images have."""
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    conv.in_channels = channels
    conv.weight = nn.Parameter(
        conv.weight.new_empty(conv.out_channels, channels, *conv.kernel_size)
    )


def _refuse_images(
    features: fx.GraphModule, head: nn.Linear, trial: Trial, shape: tuple[int, int, int]
) -> None:
    """Stop if the features of two such images do not fit the head; computes nothing."""
    on_meta = copy.deepcopy(features).to("meta") if is_own(trial.architecture) else features
    cause = None
    try:
        out = on_meta(torch.empty(2, *shape, device="meta"))
        reason = f"{tuple(out.shape[1:])} numbers reach its head, which takes {head.in_features}"
        if out.shape == (2, head.in_features):
            if is_own(trial.architecture):
                with explained(trial):
                    refuse_cut_gradients(on_meta, out)
            return
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        cause, reason = error, str(error).strip().partition("\n")[0]
    size = " x ".join(map(str, shape if is_own(trial.architecture) else shape[1:]))
    raise GridError([f"{trial.architecture} does not take images of {size}: {reason}"]) from cause
