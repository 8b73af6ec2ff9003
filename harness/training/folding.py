"""Measure what folding batch norms into their neighbours changes in a trained network.

In evaluation mode a batch norm is y = scale * x + shift in each channel. Inference engines fold it
into a conv or linear layer next to it, so that it costs nothing:

* behind a layer that nothing else reads, it scales the layer's rows: exact to rounding;
* ahead of a layer that is its only reader, it scales the layer's columns, and the shift becomes a
  bias. This is exact in linear layers and wherever the conv pads nothing. Zeros that the conv pads
  around its input got no shift before and get it afterwards, which changes the output at the border.

The mean over positions may stand between a batch norm and its reader; nothing else may. A maximum
turns where the scale is negative; an addition, a concatenation or several readers leave no single
layer to fold into. Such a batch norm stays.

Shapes (letters of this module):
    N images, R replicas, K classes, D = R*C channels, G groups, O rows of a group, I its inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from harness.training.blocks import Linear
from harness.training.graphs import operation, trace
from harness.training.networks import Network

_AVERAGES = {"AdaptiveAvgPool2d", "adaptive_avg_pool2d"}
_OVER_POSITIONS = ((2, 3), (3, 2), (-2, -1), (-1, -2))
"""Axes of a mean that leaves images and channels apart."""

Weights = dict[str, Tensor]
"""Dotted name of a parameter -> its value."""


@dataclass(frozen=True, slots=True)
class Folding:
    """What folding did to each replica, on the device; all NaN without a batch norm."""

    folded: float
    """Share of the batch norms that could be folded."""
    error_R: Tensor
    """RMS change of the logits over their RMS."""
    flips_R: Tensor
    """Share of the images whose predicted class changed."""


@torch.no_grad()
def measure_folding(network: Network, x_NDHW: Tensor) -> Folding:
    """Compare the logits of `network` in evaluation mode before and after folding.

    The network, its mode and its buffers stay as they are: the folded weights are lent to its
    layers for one forward pass.
    """
    was_training = network.training
    network.eval()
    try:
        y_NRK, over_positions = run_and_look(network, x_NDHW)
        graph, weights, folded = fold(network, over_positions)
        if math.isnan(folded):
            missing_R = x_NDHW.new_full((network.replicas,), math.nan)
            return Folding(folded, missing_R, missing_R)
        folded_NRK = functional_call(graph, weights, (x_NDHW,))
    finally:
        network.train(was_training)
    change_R = (folded_NRK - y_NRK).square().mean((0, 2)).sqrt()
    return Folding(
        folded=folded,
        error_R=change_R / y_NRK.square().mean((0, 2)).sqrt(),
        flips_R=(folded_NRK.argmax(-1) != y_NRK.argmax(-1)).double().mean(0),
    )


def run_and_look(network: Network, x_NDHW: Tensor) -> tuple[Tensor, set[str]]:
    """The logits, and the linear layers that run over positions: their rows are no channels."""
    found: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def look_at(_module: nn.Module, inputs: tuple[Tensor, ...], _out: Tensor) -> None:
            if inputs[0].ndim > 2:
                found.add(name)

        return look_at

    handles = [
        module.register_forward_hook(look(name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        return network(x_NDHW), found
    finally:
        for handle in handles:
            handle.remove()


def fold(network: nn.Module, kept: Collection[str] = ()) -> tuple[fx.GraphModule, Weights, float]:
    """The graph without the batch norms that can be folded, the weights to run it with, and their share.

    The graph shares its layers with `network`; only the weights are new. Nothing is folded into the
    layers that are `kept`, nor into those whose weight something else reads.
    """
    graph = trace(network)
    kept = {
        *kept,
        *(
            str(node.target).rpartition(".")[0]
            for node in graph.graph.nodes
            if node.op == "get_attr"
        ),
    }
    weights: Weights = {}
    norms = [node for node in graph.graph.nodes if _is_batch_norm(graph, node)]
    folded = 0
    for node in norms:
        norm = graph.get_submodule(str(node.target))
        if norm.running_mean is None:  # normalises by the batch even in evaluation mode
            continue
        scale_D, shift_D = _affine_map(norm)
        source, reader = node.all_input_nodes[0], _find_reader(node)
        if reader is not None and str(reader.target) in kept:
            reader = None
        is_free = _has_own_weight(source) and str(source.target) not in kept
        if is_free and len(source.users) == 1:
            _fold_behind(graph, weights, source, scale_D, shift_D)
        elif reader is not None:
            _fold_ahead(graph, weights, reader, scale_D, shift_D)
        else:
            continue
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
        folded += 1
    graph.recompile()
    return graph, weights, folded / len(norms) if norms else math.nan


def _is_batch_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        graph.get_submodule(str(node.target)), nn.BatchNorm1d | nn.BatchNorm2d
    )


def _affine_map(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(scale_D, shift_D) of a batch norm in evaluation mode."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_D = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        scale_D = scale_D * norm.weight
    shift_D = -norm.running_mean * scale_D
    return scale_D, shift_D + norm.bias if norm.affine else shift_D


def _find_reader(node: fx.Node) -> fx.Node | None:
    """The conv or linear layer that alone reads a node, past averages."""
    while len(node.users) == 1:
        (node,) = node.users
        if _has_own_weight(node):
            return node
        if not _commutes(node):
            return None
    return None


def _commutes(node: fx.Node) -> bool:
    """May a batch norm be folded through the node: does it keep channels apart, and constants?"""
    match _name(node):
        case "Flatten" | "flatten":
            module = _module_of(node)
            given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
            if isinstance(module, nn.Flatten):
                given = {"start_dim": module.start_dim, "end_dim": module.end_dim}
            return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
        case "mean":
            axes = node.kwargs.get("dim", (node.args[1:] or (None,))[0])
            return isinstance(axes, tuple | list) and tuple(axes) in _OVER_POSITIONS
        case name:
            return name == "Identity" or name in _AVERAGES


def _has_own_weight(node: fx.Node) -> bool:
    """Is the node a conv or linear layer that runs only there?"""
    return operation(node) in {"conv", "linear"} and [
        other for other in node.graph.nodes if other.target == node.target
    ] == [node]


def _name(node: fx.Node) -> str:
    if module := _module_of(node):
        return type(module).__name__
    return getattr(node.target, "__name__", str(node.target))


def _module_of(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner and node.op == "call_module" else None


def _fold_behind(
    graph: fx.GraphModule, weights: Weights, node: fx.Node, scale_D: Tensor, shift_D: Tensor
) -> None:
    """Scale and shift what the layer puts out."""
    weight, bias, _ = _layer(graph, weights, node)
    weights[f"{node.target}.weight"] = weight * scale_D.view(-1, *[1] * (weight.ndim - 1))
    weights[f"{node.target}.bias"] = bias * scale_D + shift_D


def _fold_ahead(
    graph: fx.GraphModule, weights: Weights, node: fx.Node, scale_D: Tensor, shift_D: Tensor
) -> None:
    """Scale and shift what the layer reads."""
    weight, bias, groups = _layer(graph, weights, node)
    weight_GOI = weight.unflatten(0, (groups, -1))
    inputs = groups * weight.shape[1]
    # Flattened, a channel is several inputs in a row.
    scale_GI, shift_GI = (
        part_D.repeat_interleave(inputs // len(part_D)).view(
            groups, 1, -1, *[1] * (weight.ndim - 2)
        )
        for part_D in (scale_D, shift_D)
    )
    weights[f"{node.target}.weight"] = (weight_GOI * scale_GI).flatten(0, 1)
    weights[f"{node.target}.bias"] = bias + (weight_GOI * shift_GI).flatten(2).sum(2).flatten()


def _layer(graph: fx.GraphModule, weights: Weights, node: fx.Node) -> tuple[Tensor, Tensor, int]:
    """Weight, bias and groups of a layer, with what was folded into it already."""
    layer = graph.get_submodule(str(node.target))
    assert isinstance(layer, nn.Conv2d | nn.Linear | Linear)
    weight = weights.get(f"{node.target}.weight", layer.weight)
    bias = weights.get(f"{node.target}.bias", layer.bias)
    groups = {nn.Conv2d: "groups", Linear: "replicas"}.get(type(layer))
    return (
        weight,
        weight.new_zeros(len(weight)) if bias is None else bias,
        getattr(layer, groups) if groups else 1,
    )
