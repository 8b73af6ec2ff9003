from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from harness.study.trials import PROGRAMS, WORDS
from harness.training.blocks import (
    SQUARED_GAIN,
    Block,
    Layer,
    Linear,
    Norm,
    Shortcut,
    split_program,
)

ALL_PROGRAMS = [
    pytest.param(architecture, placement, id=f"{architecture}-{placement}")
    for architecture, programs in PROGRAMS.items()
    for placement in programs
]
CONVOLUTIONAL = [param for param in ALL_PROGRAMS if param.values[0] != "mlp"]


def build(architecture, placement, in_channels=6, width=6, **options):
    program = PROGRAMS[architecture][placement]
    layers = [Layer(width)] * sum(op in {"conv", "linear"} for op in program.split())
    return Block(program, in_channels, layers, **options)


def fill(module, seed=0):
    """Weights and running statistics that no symmetry hides behind."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 1.2, generator=generator)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(generator=generator)


def images(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def load_renamed(ours, theirs, names):
    """Copy the state of `theirs` to `ours`, whose submodules have the names on the left."""
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            f"{mine}.{rest}": state[f"{names[mine]}.{rest}"]
            for mine, _, rest in (name.partition(".") for name in ours.state_dict())
        }
    )


def run_both(ours, theirs, x):
    """Outputs and input gradients of two modules on equal inputs."""
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        (grad,) = torch.autograd.grad((out * images(*out.shape, seed=2)).sum(), leaf)
        results.append((out, grad))
    return results


@pytest.mark.parametrize(("architecture", "placement"), ALL_PROGRAMS)
def test_a_block_runs_the_operations_of_its_program_in_their_order(architecture, placement):
    block = build(architecture, placement)
    kinds = {nn.Conv2d: "conv", Linear: "linear", nn.ReLU: "act", Shortcut: "+"}
    kinds |= {nn.BatchNorm2d: "norm", nn.BatchNorm1d: "norm"}
    ran = []
    for module in block.children():
        module.register_forward_hook(lambda module, *_: ran.append(kinds[type(module)]))

    x = images(4, 6) if architecture == "mlp" else images(4, 6, 5, 5)
    out = block(x)

    if out.shape[1] == 12:  # concatenation has no module: it shows in the channels
        assert torch.equal(out[:, :6], x)
        ran.append("cat")
    assert ran == PROGRAMS[architecture][placement].split()


@pytest.mark.parametrize(("architecture", "placement"), CONVOLUTIONAL)
def test_the_last_operation_is_the_one_that_shows_in_the_output(architecture, placement):
    block = build(architecture, placement)
    fill(block)
    out = block(images(8, 6, 5, 5))[:, -6:]  # a densenet block's new channels
    last = PROGRAMS[architecture][placement].removesuffix("cat").split()[-1]
    if last == "act":
        assert out.min() == 0
    elif last == "norm":  # shift is the mean of a batch-normed channel
        norm = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)][-1]
        torch.testing.assert_close(out.mean((0, 2, 3)), norm.bias.data, atol=1e-5, rtol=1e-5)
    else:
        assert out.min() < 0


@pytest.mark.parametrize("stride", [1, 2])
def test_resnet_before_is_torchvisions_basic_block(stride):
    width = 6 * stride
    ours = Block(PROGRAMS["resnet"]["before"], 6, [Layer(width, stride=stride), Layer(width)])
    shortcut = Shortcut(6, width, stride=stride, replicas=1) if stride > 1 else None
    theirs = torchvision.models.resnet.BasicBlock(6, width, stride, shortcut)
    fill(theirs)
    load_renamed(ours, theirs, {"conv0": "conv1", "conv1": "conv2", "norm0": "bn1", "norm1": "bn2"})
    (ours_out, ours_grad), (out, grad) = run_both(ours, theirs, images(4, 6, 8, 8))
    torch.testing.assert_close(ours_out, out)
    torch.testing.assert_close(ours_grad, grad)


def test_densenet_before_is_torchvisions_dense_layer():
    growth, bottleneck = 3, 4
    body = PROGRAMS["densenet"]["before"].removesuffix("cat")
    ours = Block(f"{body} {body} cat", 6, [Layer(bottleneck * growth, kernel=1), Layer(growth)])
    layer = torchvision.models.densenet._DenseLayer(6, growth, bottleneck, drop_rate=0.0)
    fill(layer)
    load_renamed(
        ours, layer, {"norm0": "norm1", "conv0": "conv1", "norm1": "norm2", "conv1": "conv2"}
    )

    class Concatenated(nn.Module):
        def forward(self, x):
            return torch.cat([x, layer([x])], 1)

    (ours_out, ours_grad), (out, grad) = run_both(ours, Concatenated(), images(4, 6, 8, 8))
    torch.testing.assert_close(ours_out, out)
    torch.testing.assert_close(ours_grad, grad)


@pytest.mark.parametrize("architecture", PROGRAMS)
def test_an_arm_gains_no_parameters_from_its_placement(architecture):
    sizes = {}
    for placement, program in PROGRAMS[architecture].items():
        block = build(architecture, placement)
        weights = [p.numel() for p in block.parameters() if p.ndim > 1]
        biases = [
            name for name, _ in block.named_parameters() if name in {"conv0.bias", "linear0.bias"}
        ]
        assert bool(biases) == ("norm" not in program)
        sizes[placement] = sum(weights)
    assert len(set(sizes.values())) == 1
    with_norm = [
        sum(p.numel() for p in build(architecture, placement).parameters())
        for placement in ("before", "after")
    ]
    assert with_norm[0] == with_norm[1]


@pytest.mark.parametrize(("architecture", "placement"), ALL_PROGRAMS)
def test_replicas_side_by_side_are_the_blocks_alone(architecture, placement):
    together = build(architecture, placement, replicas=3, width=6).double()
    fill(together)
    x_NRC = images(4, 3, 6).double() if architecture == "mlp" else images(4, 3, 6, 5, 5).double()
    out = together(x_NRC.flatten(1, 2)).unflatten(1, (3, -1))
    for replica in range(3):
        alone = build(architecture, placement).double()
        alone.load_state_dict(
            {
                name: tensor if tensor.ndim == 0 else tensor.unflatten(0, (3, -1))[replica]
                for name, tensor in together.state_dict().items()
            }
        )
        torch.testing.assert_close(
            alone(x_NRC[:, replica]), out[:, replica], rtol=1e-12, atol=1e-12
        )


def test_a_shortcut_subsamples_and_pads_each_replica_with_zeros():
    x = images(2, 2 * 3, 4, 4)
    out = Shortcut(3, 6, stride=2, replicas=2)(x).unflatten(1, (2, 6))
    expected = torch.zeros(2, 2, 6, 2, 2)
    expected[:, :, 1:4] = x.unflatten(1, (2, 3))[:, :, :, ::2, ::2]
    assert torch.equal(out, expected)


def test_batch_norm_without_affine_has_no_parameters():
    block = build("plain", "before", norm=Norm(affine=False))
    assert [name for name, _ in block.named_parameters()] == ["conv0.weight"]


@pytest.mark.parametrize(
    ("architecture", "placement", "parts"),
    [
        ("resnet", "before", ("", "conv norm act")),
        ("resnet", "after-add", ("", "conv act norm")),
        ("resnet", "none", ("", "conv act")),
        ("preresnet", "after", ("act norm", "conv act norm")),
        ("densenet", "none", ("act", "conv")),
    ],
)
def test_stem_and_tail_take_the_order_of_the_block(architecture, placement, parts):
    assert split_program(PROGRAMS[architecture][placement]) == parts


def make_torchs_norm(kind, channels, groups):
    """The same norm in torch's own words."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "group":
            return nn.GroupNorm(groups, channels)
        case "instance":
            return nn.InstanceNorm2d(channels, affine=True)


TORCHS_ACTIVATIONS = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("kind", WORDS["norm"])
@pytest.mark.parametrize("activation", WORDS["activation"])
def test_norm_and_activation_are_torchs_own(kind, activation):
    block = build("plain", "after", norm=Norm(kind, groups=3), activation=activation)
    fill(block)
    norm = make_torchs_norm(kind, 6, 3)
    norm.load_state_dict(block.norm0.state_dict())
    x = images(4, 6, 8, 8)
    expected = norm(TORCHS_ACTIVATIONS[activation](block.conv0(x)))
    torch.testing.assert_close(block(x), expected)
    if kind == "layer":
        scale, shift = (each[:, None, None] for each in (norm.weight, norm.bias))
        of_image = functional.layer_norm(TORCHS_ACTIVATIONS[activation](block.conv0(x)), (6, 8, 8))
        torch.testing.assert_close(block(x), of_image * scale + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "placement", "kind"),
    [
        *(("densenet", "before", kind) for kind in WORDS["norm"]),
        *(("mlp", "after", kind) for kind in ("batch", "layer", "group")),
    ],
)
def test_each_replica_has_its_own_groups(architecture, placement, kind):
    """Exact to rounding: what one replica holds moves no other."""
    options = {"norm": Norm(kind, groups=3), "activation": "gelu"}
    pack = build(architecture, placement, replicas=2, **options).double()
    fill(pack)
    x = images(4, 12, *(() if architecture == "mlp" else (5, 5))).double()
    for replica, (out, part) in enumerate(
        zip(pack(x).unflatten(1, (2, -1)).unbind(1), x.chunk(2, 1), strict=True)
    ):
        alone = build(architecture, placement, **options).double()
        alone.load_state_dict(
            {
                name: tensor.chunk(2)[replica] if tensor.ndim else tensor
                for name, tensor in pack.state_dict().items()
            }
        )
        torch.testing.assert_close(alone(part), out, rtol=1e-13, atol=1e-13)


def test_groups_are_as_many_as_divide_the_channels():
    found = [Norm("group", groups=8).module(channels).num_groups for channels in (16, 12, 5)]
    assert found == [8, 4, 1]
    assert Norm("group", groups=8).module(12, replicas=3).num_groups == 12


@pytest.mark.parametrize("activation", WORDS["activation"])
def test_the_gain_keeps_the_second_moment_of_a_standard_normal(activation):
    z = torch.linspace(-12, 12, 1_000_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(TORCHS_ACTIVATIONS[activation](z) ** 2 * density, z)
    assert SQUARED_GAIN[activation] * float(moment) == pytest.approx(1, rel=1e-9)
    if activation in {"relu", "leaky_relu"}:
        assert math.sqrt(SQUARED_GAIN[activation]) == nn.init.calculate_gain(activation)
