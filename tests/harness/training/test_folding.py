"""Folding: torch's own in `before`, right up to the borders in `after`, and nothing is touched."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from harness.study.architectures import ARCHITECTURES, PREFIX
from harness.study.trials import EVERY_PROGRAM
from harness.training.folding import fold, measure_folding, run_and_look
from harness.training.networks import build_network, initialize
from tests.builders import make_trial

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(network, seed=0):
    """Scales, shifts and running statistics that no symmetry hides behind."""
    generator = torch.Generator().manual_seed(seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in norm.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5, generator=generator)
    return network.double().eval()


def network_of(architecture, placement="before", *, replicas=1, shape=(3, 12, 12), **settings):
    depth = ARCHITECTURES[architecture].shown_depth
    trial = make_trial(
        architecture=architecture,
        placement=placement,
        program=EVERY_PROGRAM[architecture][placement],
        depth={"densenet": 10, "mlp": 3, "plain": 8, "resnet": 8, "preresnet": 8}.get(
            architecture, depth
        ),
        **{} if architecture.startswith(PREFIX) else {"width_factor": 0.25},
        **settings,
    )
    network = build_network(trial, shape, 10, replicas=replicas)
    initialize(network, [trial] * replicas)
    return fill(network)


def images(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_in_before_the_weights_are_those_of_torchs_own_fusion():
    network = network_of("plain", "before")
    _, weights, _ = fold(network)
    blocks = [
        (name, block) for name, block in network.features.named_children() if [*block.children()]
    ]
    assert len(blocks) > 3
    for name, block in blocks:
        fused = fuse_conv_bn_eval(block.conv0, block.norm0)
        torch.testing.assert_close(weights[f"features.{name}.conv0.weight"], fused.weight.data)
        torch.testing.assert_close(weights[f"features.{name}.conv0.bias"], fused.bias.data)


def test_in_after_the_whole_error_comes_from_the_borders():
    """A twin that pads with the value whose scaled and shifted image is zero has none."""
    network = network_of("plain", "after")
    _, weights, folded = fold(network)
    assert folded == 1.0
    x_NDHW = images(6, 3, 12, 12)
    out, border = x_NDHW, torch.zeros(1, 3, 1, 1)
    for name, block in network.features.named_children():
        if not hasattr(block, "conv0"):
            continue
        conv, norm = block.conv0, block.norm0
        weight = weights.get(f"features.{name}.conv0.weight", conv.weight)
        padded = functional.pad(out - border, (1, 1, 1, 1)) + border
        bias = weights.get(f"features.{name}.conv0.bias")
        out = functional.relu(functional.conv2d(padded, weight, bias, conv.stride))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        border = (norm.running_mean - norm.bias / scale).view(1, -1, 1, 1)
    y_NRK = functional.linear(
        out.mean((2, 3)), weights["head.weight"], weights["head.bias"]
    ).unflatten(1, (1, -1))
    torch.testing.assert_close(y_NRK, network(x_NDHW))
    assert measure_folding(network, x_NDHW).error_R.item() > 0.01


@pytest.mark.parametrize(
    ("architecture", "placement", "share", "is_exact"),
    [
        ("mlp", "before", 1, True),
        ("mlp", "after", 1, True),  # a linear layer has no border
        ("resnet", "before", 1, True),
        ("resnet", "after", 3 / 7, False),  # the others are read by an addition
        ("preresnet", "before", 3 / 7, True),  # those that begin a branch read a sum
        ("preresnet", "after", 1, False),
        ("vgg", "after", 8 / 13, False),  # the others are read by a maximum
        ("torchvision/resnet18", "before", 1, True),
        ("torchvision/vgg11_bn", "before", 1, True),
    ],
)
def test_what_is_folded_and_whether_it_is_exact(architecture, placement, share, is_exact):
    is_large = "vgg" in architecture or architecture.startswith(PREFIX)
    shape = (3, 32, 32) if is_large else (3, 12, 12)
    network = network_of(architecture, placement, shape=shape)
    folding = measure_folding(network, images(4, *shape))
    assert folding.folded == pytest.approx(share)
    assert (folding.error_R.item() < 1e-12) == is_exact
    if is_exact:
        assert folding.flips_R.item() == 0


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_without_a_batch_norm_nothing_is_said(norm):
    for network in (network_of("plain", "none"), network_of("plain", "before", norm=norm)):
        folding = measure_folding(network, images(4, 3, 12, 12))
        told = [folding.folded, folding.error_R.item(), folding.flips_R.item()]
        assert all(map(math.isnan, told))


def test_each_replica_of_a_pack_has_its_own_error():
    pack = network_of("resnet", "after", replicas=2)
    x_NDHW = images(8, 3, 12, 12)
    together = measure_folding(pack, x_NDHW.repeat(1, 2, 1, 1))
    for replica in range(2):
        solo = network_of("resnet", "after")
        for name, tensor in solo.state_dict().items():
            own = pack.state_dict()[name]
            tensor.copy_(own.unflatten(0, (2, -1))[replica] if own.ndim else own)
        alone = measure_folding(solo, x_NDHW)
        assert together.error_R[replica].item() == pytest.approx(alone.error_R.item())
        assert together.flips_R[replica] == alone.flips_R
    assert together.error_R[0] != together.error_R[1]


def test_flips_are_the_images_whose_class_changes():
    network = network_of("plain", "after")
    x_NDHW = images(64, 3, 12, 12)
    graph, weights, _ = fold(network)
    ours = functional_call(graph, weights, (x_NDHW,))
    flips = (ours.argmax(-1) != network(x_NDHW).argmax(-1)).double().mean().item()
    assert measure_folding(network, x_NDHW).flips_R.item() == flips


def test_measuring_leaves_the_network_and_the_generators_as_they_were():
    network = network_of("resnet", "after").train()
    found = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = [*network.parameters()]
    state = torch.get_rng_state()
    measure_folding(network, images(8, 3, 12, 12))
    assert network.training
    assert all(module.training for module in network.modules())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in found.items())
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert network.features[1].conv0.bias is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("rest", "is_folded"),
    [
        ([nn.Conv2d(8, 6, 3, groups=2)], True),  # pads nothing
        ([nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8)], True),  # both fold into one layer
        ([nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)], True),
        ([nn.MaxPool2d(2), nn.Conv2d(8, 6, 1)], False),
        ([nn.ReLU(), nn.Conv2d(8, 6, 1)], False),
    ],
)
def test_a_batch_norm_ahead_of_a_layer_is_folded_where_that_is_exact(rest, is_folded):
    network = fill(nn.Sequential(nn.BatchNorm2d(8), *rest))
    graph, weights, share = fold(network)
    assert share == float(is_folded)
    x_NDHW = images(3, 8, 6, 6)
    torch.testing.assert_close(functional_call(graph, weights, (x_NDHW,)), network(x_NDHW))


def test_what_has_no_weight_of_its_own_to_fold_into_stays():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(self.norm(self.conv(x)))

    assert fold(fill(Loop()))[2] == 0
    by_batch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert fold(fill(by_batch))[2] == 0


def test_a_batch_norm_with_two_readers_stays():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            out = self.norm(x)
            return out + self.conv(out)

    assert fold(fill(Fork()))[2] == 0


class Odd(nn.Module):
    """A network of one channel count everywhere, so that no size tells axes apart."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x)


@pytest.mark.parametrize(
    ("compute", "modules"),
    [
        (lambda self, x: self.lin(self.norm(x).mean(1)), {"lin": nn.Linear(8, 8)}),
        (lambda self, x: self.lin(self.norm(x).mean((2, 3))), {"lin": nn.Linear(8, 8)}),
        (lambda self, x: self.lin(self.norm(x).flatten(2)), {"lin": nn.Linear(64, 64)}),
        (lambda self, x: self.lin(self.norm(x).flatten(1)), {"lin": nn.Linear(512, 4)}),
        (lambda self, x: self.lin(self.norm(x)), {"lin": nn.Linear(8, 8)}),
        (lambda self, x: self.norm(self.lin(x)), {"lin": nn.Linear(8, 8)}),
        (
            lambda self, x: self.norm(self.conv(x)) * self.conv.weight.sum(),
            {"conv": nn.Conv2d(8, 8, 1)},
        ),
    ],
)
def test_whatever_the_axes_what_is_folded_is_exact(compute, modules):
    network = fill(Odd(compute, norm=nn.BatchNorm2d(8), **modules))
    x_NDHW = images(3, 8, 8, 8)
    out, over_positions = run_and_look(network, x_NDHW)
    graph, weights, _ = fold(network, over_positions)
    torch.testing.assert_close(functional_call(graph, weights, (x_NDHW,)), out)
