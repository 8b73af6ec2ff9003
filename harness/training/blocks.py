"""A block is a program: a text that lists its operations in the order they run.

Every network here is R replicas (seeds) side by side: activations have R*C channels, replica-major,
convolutions have R groups, and so has every norm, as often as one replica's has.
With one replica this is the ordinary network.

Shapes (letters of this module):
    N images, R replicas, C channels of one replica, H and W height and width
    x_NDHW or x_ND with D = R*C, all channels of replica 0 first
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.study.trials import Trial

BN_EPS = 1e-5
BN_MOMENTUM = 0.1


class Layer(NamedTuple):
    """What a `conv` or `linear` of a program needs to know; a linear has no kernel and no stride."""

    width: int  # output channels of one replica
    kernel: int = 3
    stride: int = 1


ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=False),  # in place would destroy what the probe reads
    "leaky_relu": partial(nn.LeakyReLU, inplace=False),
    "gelu": nn.GELU,
    "silu": partial(nn.SiLU, inplace=False),
    "tanh": nn.Tanh,
}
"""The setting `activation` -> what an `act` of a program is."""

SQUARED_GAIN: Mapping[str, float] = {
    "relu": 2.0,
    "leaky_relu": 2 / (1 + 0.01**2),
    "gelu": 2.351715614073373,
    "silu": 2.8107611240744714,
    "tanh": 2.5361754332174526,
}
"""The same -> 1 / E[f(z)^2] for a standard normal z: with weights of this gain a layer hands on the
variance that it gets. ReLU's is He et al.'s; torch's `calculate_gain` has another for tanh, 25/9."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
"""What a `norm` of a program may be."""


@dataclass(frozen=True, slots=True)
class Norm:
    """What every `norm` of a network is.

    The channels of a replica are normalised by themselves, whatever the kind. 'layer' is one group
    over all channels and positions of an image, 'instance' one group per channel.

    Source:
        'layer' and 'group' as in Wu & He 2018, arXiv:1803.08494, s.3.1, eq. 5 and 7.
    """

    kind: str = "batch"
    groups: int = 8
    affine: bool = True

    @classmethod
    def of(cls, trial: Trial) -> Norm:
        """The norm that the settings of a trial name."""
        return cls(trial.norm, trial.norm_groups, trial.norm_affine)

    def module(self, channels: int, *, replicas: int = 1, is_flat: bool = False) -> nn.Module:
        """A norm of `channels` in each replica; `is_flat` for x_ND, without height and width."""
        width = replicas * channels
        match self.kind:
            case "batch":
                norm = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
                return norm(width, BN_EPS, BN_MOMENTUM, affine=self.affine)
            case "layer":
                return nn.GroupNorm(replicas, width, BN_EPS, affine=self.affine)
            case "group":
                groups = replicas * math.gcd(channels, self.groups)
                return nn.GroupNorm(groups, width, BN_EPS, affine=self.affine)
            case "instance":
                return nn.InstanceNorm2d(width, BN_EPS, affine=self.affine)
            case _:
                raise AssertionError(self.kind)


class Linear(nn.Module):
    """R fully connected layers side by side: x_ND -> y_NE, D = R*C, E = R*K.

    `weight` has the layout of a grouped convolution's, (R*K, C), so that code that measures or
    initialises one replica finds its rows the same way in both.
    """

    def __init__(self, in_features: int, out_features: int, *, replicas: int, bias: bool) -> None:
        super().__init__()
        self.replicas = replicas
        self.weight = nn.Parameter(torch.empty(replicas * out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(replicas * out_features)) if bias else None

    def forward(self, x_ND: Tensor) -> Tensor:
        x_RNC = x_ND.unflatten(1, (self.replicas, -1)).transpose(0, 1)
        weight_RCK = self.weight.unflatten(0, (self.replicas, -1)).transpose(1, 2)
        y_NE = torch.bmm(x_RNC, weight_RCK).transpose(0, 1).flatten(1)
        return y_NE if self.bias is None else y_NE + self.bias


class Shortcut(nn.Module):
    """Fits the block's input to the shape of its output without parameters: x_NDHW -> y_NEhw.

    Source:
        Option A of He et al. 2015, arXiv:1512.03385, s.4.2: subsample, pad channels with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, replicas: int) -> None:
        super().__init__()
        self.stride = stride
        self.replicas = replicas
        missing = out_channels - in_channels
        self.padding = (missing // 2, missing - missing // 2)

    def forward(self, x_NDHW: Tensor) -> Tensor:
        if self.stride > 1:
            x_NDHW = x_NDHW[:, :, :: self.stride, :: self.stride]
        if any(self.padding):  # each replica's channels get their own zeros
            x_NRCHW = x_NDHW.unflatten(1, (self.replicas, -1))
            x_NDHW = functional.pad(x_NRCHW, (0, 0, 0, 0, *self.padding)).flatten(1, 2)
        return x_NDHW


class Block(nn.Module):
    """The operations of `program`, in order: x_NDHW -> y_NEhw, or x_ND -> y_NE for `linear`.

    A norm sees the channels that reach it: the input's before the conv, the output's after it.
    No conv has a bias where the program has a norm: an arm must not gain parameters from its
    placement alone.
    """

    def __init__(
        self,
        program: str,
        in_channels: int,
        layers: Sequence[Layer],
        *,
        replicas: int = 1,
        norm: Norm = Norm(),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.program = tuple(program.split())
        self.replicas = replicas
        self.in_channels = in_channels
        self.operations: list[str] = []  # names of submodules; "+" and "cat" stand for themselves
        bias = "norm" not in self.program
        is_flat = "linear" in self.program
        width = in_channels  # channels of one replica that reach the next operation
        remaining = iter(layers)
        for operation in self.program:
            match operation:
                case "norm":
                    module = norm.module(width, replicas=replicas, is_flat=is_flat)
                case "act":
                    module = ACTIVATIONS[activation]()
                case "linear":
                    layer = next(remaining)
                    module = Linear(width, layer.width, replicas=replicas, bias=bias)
                    width = layer.width
                case "conv":
                    layer = next(remaining)
                    module = nn.Conv2d(
                        replicas * width,
                        replicas * layer.width,
                        layer.kernel,
                        layer.stride,
                        padding=layer.kernel // 2,
                        groups=replicas,
                        bias=bias,
                    )
                    width = layer.width
                case "+":
                    self.shortcut = Shortcut(
                        in_channels,
                        width,
                        stride=math.prod(layer.stride for layer in layers),
                        replicas=replicas,
                    )
                    self.operations.append("+")
                    continue
                case "cat":
                    width += in_channels
                    self.operations.append("cat")
                    continue
                case _:
                    raise AssertionError(operation)
            # Numbered within its kind, so that a conv has the same name in every placement.
            name = f"{operation}{sum(op.startswith(operation) for op in self.operations)}"
            self.add_module(name, module)
            self.operations.append(name)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for operation in self.operations:
            match operation:
                case "+":
                    out = out + self.shortcut(x)
                case "cat":
                    # Replica-major on both sides: concatenate within each replica.
                    pair = (part.unflatten(1, (self.replicas, -1)) for part in (x, out))
                    out = torch.cat(tuple(pair), dim=2).flatten(1, 2)
                case _:
                    out = self.get_submodule(operation)(out)
        return out


def split_program(program: str) -> tuple[str, str]:
    """Split a program into what precedes its first conv, and that conv up to the next one.

    A pre-activation network needs the first part before its head; a post-activation network uses
    the second part as its stem. So the layers at the input and at the head follow the order of the
    block as well.

    >>> split_program("conv norm act conv norm + act")
    ('', 'conv norm act')
    >>> split_program("act norm conv act norm conv +")
    ('act norm', 'conv act norm')
    """
    operations = program.split()
    first = operations.index("conv")
    ends = (
        at for at in range(first + 1, len(operations)) if operations[at] in {"conv", "+", "cat"}
    )
    end = next(ends, len(operations))
    return " ".join(operations[:first]), " ".join(operations[first:end])
