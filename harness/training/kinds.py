"""The norms and activations of a model that was written elsewhere, and those that a trial asks for.

A model written with batch norm and ReLU, as torchvision's are, gets whatever the trial names. One
written with others trains with what it has, and the trial has to name that: a grid says what it
compares.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from harness.study.trials import Trial
from harness.training.blocks import ACTIVATIONS, NORMS, Linear, Norm, Shortcut


class Unfit(ValueError):  # noqa: N818 - an outcome of looking, told with the model's name ahead
    """What keeps a model from being rewritten, as a sentence without its subject.

    `says` are the settings, if any, under which it could be.
    """

    def __init__(self, text: str, **says: str) -> None:
        super().__init__(text)
        self.says = says


LAYERS = (nn.Conv2d, nn.Linear, *NORMS)
"""Layers with weights that a model may have, each at one place."""

_OF_ACTIVATION: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
}

MODULES: Mapping[type[nn.Module], str] = {
    nn.Conv2d: "conv",
    nn.Linear: "linear",
    Linear: "linear",
    **dict.fromkeys(NORMS, "norm"),
    **dict.fromkeys(_OF_ACTIVATION, "act"),
    nn.MaxPool2d: "pool",
    nn.AvgPool2d: "pool",
    nn.AdaptiveAvgPool2d: "pool",
    nn.AdaptiveMaxPool2d: "pool",
    nn.Flatten: "",
    nn.Identity: "",
    Shortcut: "",
}
"""Modules -> the operation that each is, in the words of a program; "" where it moves data."""

FUNCTIONS: Mapping[str, str] = {
    **{name: "act" for kind in _OF_ACTIVATION.values() for name in (kind, f"{kind}_")},
    "add": "+",
    "cat": "cat",
    "mean": "pool",
    "avg_pool2d": "pool",
    "max_pool2d": "pool",
    "adaptive_avg_pool2d": "pool",
    "adaptive_max_pool2d": "pool",
}
"""The same of functions and methods; the others (flatten, size, getitem ...) move data."""


def exchange_norms(model: nn.Module, trial: Trial) -> None:
    """Give `model` the norms that `trial` names, in place, if it is written with batch norm.

    Raises:
        Unfit: it is written with another norm than the trial names.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    for name, module in found.items():
        if isinstance(module, nn.InstanceNorm2d):
            model.set_submodule(name, _as_group_norm(module, name))
    norms = {
        name: module for name in found if isinstance(module := model.get_submodule(name), NORMS)
    }
    kinds = {_kind_of(module) for module in norms.values()}
    if kinds == {"batch"}:
        if trial.norm != "batch":
            for name, module in norms.items():
                channels, is_flat = _channels(module), isinstance(module, nn.BatchNorm1d)
                if is_flat and trial.norm == "instance":
                    raise Unfit(
                        f"has a BatchNorm1d, {name!r}, and `norm: instance` needs height and width "
                        "to average over: say another norm in its product"
                    )
                with next(model.parameters()).device:  # not one that stands around a forecast
                    new = Norm.of(trial).module(channels, is_flat=is_flat)
                model.set_submodule(name, new)
        return
    if "batch" in kinds:
        raise Unfit("has batch norms and others; what is compared has one kind of norm")
    kind = kinds.pop() if len(kinds) == 1 else "group"
    if norms and kind != trial.norm and trial.has_norms:
        raise Unfit(f"is written with {kind} norm: say `norm: {kind}` in its product", norm=kind)
    if kind == "group" and trial.has_norms:
        groups = [module for module in norms.values() if isinstance(module, nn.GroupNorm)]
        _refuse_groups(groups, trial.norm_groups)


def _refuse_groups(norms: Iterable[nn.GroupNorm], groups: int) -> None:
    """Refuse a number of groups that the norms of a model do not have: it would change nothing."""
    written = {(norm.num_channels, norm.num_groups) for norm in norms}
    if all(math.gcd(channels, groups) == has for channels, has in written):
        return
    counts = ", ".join(map(str, sorted({has for _, has in written})))
    fits = math.lcm(*(has for _, has in written))
    if any(math.gcd(channels, fits) != has for channels, has in written):
        raise Unfit(
            f"is written with groups of several counts, {counts}, which no `norm_groups` is"
        )
    raise Unfit(f"is written with groups of {counts}: say `norm_groups: {fits}` in its product")


def _kind_of(module: nn.Module) -> str:
    if not isinstance(module, nn.GroupNorm):
        return "batch"
    groups, channels = module.num_groups, module.num_channels
    return "layer" if groups == 1 else "instance" if groups == channels else "group"


def _channels(module: nn.Module) -> int:
    return module.num_channels if isinstance(module, nn.GroupNorm) else int(module.num_features)  # pyright: ignore[reportArgumentType]


def _as_group_norm(module: nn.InstanceNorm2d, name: str) -> nn.GroupNorm:
    """The same sums as a group norm, which is what the other parts know."""
    if module.track_running_stats:
        raise Unfit(f"has in {name!r} an instance norm with track_running_stats; leave that out")
    channels = module.num_features
    return nn.GroupNorm(channels, channels, module.eps, affine=module.affine)


def make_activation(node: fx.Node, module: nn.Module | None) -> nn.Module:
    """A module of its own, out of place, of what an activation's node computes."""
    if module is not None:
        own = copy.deepcopy(module)
        if isinstance(own, nn.ReLU | nn.LeakyReLU | nn.SiLU):
            own.inplace = False
        return own
    name = getattr(node.target, "__name__", str(node.target)).rstrip("_")
    if name == "leaky_relu":
        slope = node.kwargs.get("negative_slope", (*node.args, 0.01)[1] if node.args else 0.01)
        return nn.LeakyReLU(float(slope))  # pyright: ignore[reportArgumentType]
    if name == "gelu":
        return nn.GELU(str(node.kwargs.get("approximate", "none")))
    return ACTIVATIONS[name]()


def choose_activation(
    found: Iterable[nn.Module], wanted: str | None
) -> Callable[[], nn.Module] | None:
    """What takes the place of each activation of a model; None where they stay as they are.

    None is wanted where the model keeps the kind that it has.

    Raises:
        Unfit: it is written with another activation than the trial names.
    """
    kinds = {_OF_ACTIVATION[type(module)] for module in found}
    if kinds <= {"relu"}:
        return ACTIVATIONS[wanted or "relu"]
    if len(kinds) > 1:
        raise Unfit(f"has activations of several kinds, {', '.join(sorted(kinds))}; use one")
    kind = kinds.pop()
    if wanted not in {kind, None}:
        text = f"is written with {kind}: say `activation: {kind}` in its product"
        raise Unfit(text, activation=kind)
    return None
