"""Build whole networks from blocks, R replicas side by side (legend in `blocks`).

The study varies the block. Each part around it follows one rule:

* vgg, plain, mlp   every layer ahead of the head is a block; there is no other stem.
* resnet            the stem is the block's first conv with the operations up to the next one.
* preresnet,        the stem is a bare conv; ahead of the head stand the operations that the
  densenet          program puts ahead of its first conv, and densenet's transitions begin with
                    them too.
* head              global average (of linear blocks none), then a linear layer with bias.

A torchvision model or a user's own network keeps its stem, blocks and pools, rewritten by `graphs`;
its last linear layer is the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from harness.study.architectures import is_rewritten
from harness.study.trials import Trial, derive_seed
from harness.training.blocks import SQUARED_GAIN, Block, Layer, Linear, Norm, split_program
from harness.training.graphs import build_graph

VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convs before each pool: configurations A, B, D, E of Simonyan & Zisserman, arXiv:1409.1556."""

VGG_WIDTHS = (64, 128, 256, 512, 512)
RESNET_WIDTHS = (16, 32, 64)
MLP_WIDTH = 512


class Network(nn.Module):
    """Logits of R replicas: x_NDHW -> y_NRK.

    Shapes:
        x_NDHW: (N, R*C, H, W), the images of replica 0 in the first C channels.
        y_NRK: (N, R, classes).
    """

    def __init__(self, features: nn.Module, head: Linear | nn.Linear, *, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas
        self.features = features
        self.head = head
        # The order in which they run; that in which a user's own network lists them may be another.
        names = [name for name, _ in self.named_modules()]
        if isinstance(features, fx.GraphModule):
            ran = [f"features.{node.target}" for node in features.graph.nodes]
            names.sort(key=lambda name: ran.index(name) if name in ran else len(ran))
        self._names = names

    def forward(self, x_NDHW: Tensor) -> Tensor:
        return self.head(self.features(x_NDHW)).unflatten(1, (self.replicas, -1))

    def layers(self) -> Iterator[tuple[str, nn.Conv2d | Linear | nn.Linear]]:
        """Every layer with a weight, under its dotted name, from the input to the head."""
        for name in self._names:
            module = self.get_submodule(name)
            if isinstance(module, nn.Conv2d | Linear | nn.Linear):
                yield name, module


def build_network(
    trial: Trial, shape: tuple[int, int, int], classes: int, *, replicas: int = 1
) -> Network:
    """The network of `trial` for images of `shape` (C, H, W), its weights not initialised yet.

    Raises:
        GridError: a torchvision model does not support images this small, or one of the settings;
            or a user's own network cannot be built or rewritten.
    """
    if is_rewritten(trial.architecture):
        assert replicas == 1, "a rewritten network has no groups to spare for replicas"
        features, head = build_graph(trial, shape, classes)
        return Network(features, head, replicas=1)
    builder = Builder(trial, replicas)
    parts = list(BUILDERS[trial.architecture](trial, builder, shape))
    width = builder.width
    is_flat = "linear" in trial.program.split()
    if trial.final_norm:
        parts.append(Norm.of(trial).module(width, replicas=replicas, is_flat=is_flat))
    if not is_flat:
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head = Linear(width, classes, replicas=replicas, bias=True)
    return Network(nn.Sequential(*parts), head, replicas=replicas)


class Builder:
    """Makes the blocks of one network and keeps the running width, in channels of one replica."""

    def __init__(self, trial: Trial, replicas: int) -> None:
        self.trial = trial
        self.replicas = replicas
        self.width = 0  # the architecture sets it to the channels of its input

    def block(self, program: str, *layers: Layer) -> Block:
        block = Block(
            program,
            self.width,
            layers,
            replicas=self.replicas,
            norm=Norm.of(self.trial),
            activation=self.trial.activation,
        )
        self.width = block.out_channels
        return block

    def bare_conv(self, layer: Layer) -> nn.Conv2d:
        """A stem that belongs to no block; with a bias where the blocks have one."""
        conv = nn.Conv2d(
            self.replicas * self.width,
            self.replicas * layer.width,
            layer.kernel,
            layer.stride,
            padding=layer.kernel // 2,
            groups=self.replicas,
            bias="norm" not in self.trial.program.split(),
        )
        self.width = layer.width
        return conv

    def scaled(self, channels: int) -> int:
        return max(1, round(channels * self.trial.width_factor))


def _mlp(trial: Trial, builder: Builder, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    builder.width = math.prod(shape)
    yield nn.Flatten()
    for _ in range(trial.depth):
        yield builder.block(trial.program, Layer(builder.scaled(MLP_WIDTH)))


def _vgg(trial: Trial, builder: Builder, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    builder.width, *size = shape
    side = min(size)
    for convs, width in zip(VGG_STAGES[trial.depth], VGG_WIDTHS, strict=True):
        for _ in range(convs):
            yield builder.block(trial.program, Layer(builder.scaled(width)))
        if side > 1:  # a pool that would empty a small image is left out
            side //= 2
            yield nn.MaxPool2d(2)


def _residual(trial: Trial, builder: Builder, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    builder.width = shape[0]
    _, stem = split_program(trial.program)
    yield builder.block(stem, Layer(builder.scaled(RESNET_WIDTHS[0])))
    for first, second in _residual_layers(trial, builder):
        if "+" in trial.program.split():
            yield builder.block(trial.program, first, second)
        else:
            yield builder.block(trial.program, first)
            yield builder.block(trial.program, second)


def _preresnet(trial: Trial, builder: Builder, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    builder.width = shape[0]
    ahead, _ = split_program(trial.program)
    yield builder.bare_conv(Layer(builder.scaled(RESNET_WIDTHS[0])))
    for first, second in _residual_layers(trial, builder):
        yield builder.block(trial.program, first, second)
    yield builder.block(ahead)


def _residual_layers(trial: Trial, builder: Builder) -> Iterator[tuple[Layer, Layer]]:
    """Both layers of each block of the 6n+2 networks: He et al. 2015, arXiv:1512.03385, s.4.2."""
    blocks = (trial.depth - 2) // 6
    for stage, width in enumerate(map(builder.scaled, RESNET_WIDTHS)):
        for block in range(blocks):
            yield Layer(width, stride=2 if stage > 0 and block == 0 else 1), Layer(width)


def _densenet(trial: Trial, builder: Builder, shape: tuple[int, int, int]) -> Iterator[nn.Module]:
    """Huang et al. 2017, arXiv:1608.06993, s.3 and 4.2, for small images."""
    builder.width = shape[0]
    growth = builder.scaled(trial.growth)
    ahead, _ = split_program(trial.program)
    body = trial.program.removesuffix("cat").strip()
    if trial.bottleneck:  # the program runs twice per layer: 1x1 to 4k channels, then 3x3 to k
        program, layers = f"{body} {body} cat", (Layer(4 * growth, kernel=1), Layer(growth))
        compression = 0.5
    else:
        program, layers, compression = f"{body} cat", (Layer(growth),), 1.0
    yield builder.bare_conv(Layer(2 * growth if trial.bottleneck else builder.scaled(16)))
    for stage in range(3):
        if stage > 0:
            transition = Layer(math.floor(builder.width * compression), kernel=1)
            yield builder.block(f"{ahead} conv", transition)
            yield nn.AvgPool2d(2)
        for _ in range((trial.depth - 4) // (3 * len(layers))):
            yield builder.block(program, *layers)
    yield builder.block(ahead)


BUILDERS: dict[str, Callable[[Trial, Builder, tuple[int, int, int]], Iterator[nn.Module]]] = {
    "mlp": _mlp,
    "vgg": _vgg,
    "plain": _residual,  # its block has no "+": the same net with the addition deleted
    "resnet": _residual,
    "preresnet": _preresnet,
    "densenet": _densenet,
}
"""How each of our own architectures is built from its blocks, without their common ending."""


def initialize(network: Network, replicas: Sequence[Trial]) -> None:
    """Draw every weight from its own random stream, named by its layer, one replica at a time.

    Kaiming normal, fan-out, with the gain of the activation, so that layers of equal shape start
    equal in every placement; the head, followed by a softmax and no activation, has gain 1 and
    fan-in, so that the first loss is near log(classes) at any width. Biases 0, scales 1, shifts 0,
    as torch sets them.

    Source:
        He et al. 2015, arXiv:1502.01852, eq. 14.
    """
    for name, layer in network.layers():
        weight_RKC = layer.weight.data.unflatten(0, (len(replicas), -1))
        fan_in = weight_RKC[0, 0].numel()
        fan_out = weight_RKC[0].numel() // fan_in * math.prod(weight_RKC.shape[3:])
        gain = SQUARED_GAIN[replicas[0].activation]
        std = math.sqrt(1 / fan_in) if layer is network.head else math.sqrt(gain / fan_out)
        for weight, trial in zip(weight_RKC, replicas, strict=True):
            generator = torch.Generator().manual_seed(derive_seed(trial.block_seed, "init", name))
            weight.normal_(std=std, generator=generator)
        if layer.bias is not None:
            layer.bias.data.zero_()
