from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from harness.study.trials import PROGRAMS
from harness.training.networks import build_network, initialize

CIFAR = (3, 32, 32)
FULL_WIDTH = {"width_factor": 1.0}


def count_parameters(trial, classes=10):
    return sum(p.numel() for p in build_network(trial, CIFAR, classes).parameters())


# He et al. 2015, arXiv:1512.03385, table 6, and Huang et al. 2017, arXiv:1608.06993, table 2: in millions.
PUBLISHED = [
    ("resnet", 20, {}, 0.27),
    ("resnet", 32, {}, 0.46),
    ("resnet", 44, {}, 0.66),
    ("resnet", 56, {}, 0.85),
    ("resnet", 110, {}, 1.7),
    ("densenet", 40, {"bottleneck": False}, 1.0),
    ("densenet", 100, {"bottleneck": True}, 0.8),
]


@pytest.mark.parametrize(("architecture", "depth", "options", "millions"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(trial_of, architecture, depth, options, millions):
    count = count_parameters(trial_of(architecture, depth=depth, **FULL_WIDTH, **options))
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_before_is_torchvisions_vgg_bn_features(trial_of, depth):
    ours = build_network(trial_of("vgg", depth=depth, **FULL_WIDTH), (3, 64, 64), 10)
    theirs = getattr(torchvision.models, f"vgg{depth}_bn")(init_weights=False).features
    ours_layers = [m for m in ours.features.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    their_layers = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    for mine, other in zip(ours_layers, their_layers, strict=True):
        other.bias.data.zero_()  # theirs has one ahead of batch norm, where it has no effect
        if isinstance(other, nn.Conv2d):
            other.weight.data.normal_(std=0.05, generator=generator)
            mine.weight.data.copy_(other.weight)
        else:
            other.weight.data.uniform_(0.5, 1.5, generator=generator)
            other.bias.data.normal_(generator=generator)
            mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=generator)
    pooled = theirs(x).mean((2, 3))
    torch.testing.assert_close(ours.features(x), pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "depth"),
    [("mlp", 3), ("vgg", 11), ("plain", 20), ("resnet", 20), ("preresnet", 20), ("densenet", 22)],
)
def test_depth_counts_the_weighted_layers(trial_of, architecture, depth):
    network = build_network(trial_of(architecture, depth=depth), CIFAR, 10)
    layers = len(list(network.layers()))
    uncounted = {
        "mlp": 1,
        "vgg": -2,
    }  # an mlp counts its hidden layers; torchvision's vgg has 3 heads
    assert layers - uncounted.get(architecture, 0) == depth


@pytest.mark.parametrize("architecture", PROGRAMS)
def test_layers_of_equal_shape_start_equal_in_every_placement(trial_of, architecture):
    weights = {}
    for placement in PROGRAMS[architecture]:
        trial = trial_of(architecture, placement)
        network = build_network(trial, CIFAR, 10)
        initialize(network, [trial])
        weights[placement] = dict(network.layers())
    for layers in weights.values():
        assert list(layers) == list(weights["before"])
        for name, layer in layers.items():
            assert torch.equal(layer.weight, weights["before"][name].weight)


def test_another_seed_depth_or_layer_starts_elsewhere(trial_of):
    def first_weight(**settings):
        trial = trial_of("plain", **settings)
        network = build_network(trial, CIFAR, 10)
        initialize(network, [trial])
        return [layer.weight for _, layer in network.layers()]

    weights = first_weight()
    assert torch.equal(weights[0], first_weight()[0])
    assert not torch.equal(weights[0], first_weight(seed=1)[0])
    assert not torch.equal(weights[0], first_weight(depth=14)[0])
    assert not torch.equal(weights[1], weights[2])


def test_initial_weights_are_kaiming_normal_by_fan_out(trial_of):
    trial = trial_of("resnet", **FULL_WIDTH)
    network = build_network(trial, CIFAR, 10)
    initialize(network, [trial])
    for name, layer in network.layers():
        weight = layer.weight.detach()
        if name == "head":
            expected = 1 / math.sqrt(weight.shape[1])
        else:
            reference = torch.empty_like(weight)
            nn.init.kaiming_normal_(reference, mode="fan_out", nonlinearity="relu")
            expected = math.sqrt(2 / (weight.shape[0] * 9))
            assert abs(reference.std() / expected - 1) < 0.2
        # The standard deviation of n normal draws has a relative error of 1/sqrt(2n).
        assert abs(weight.std().item() / expected - 1) < 4 / math.sqrt(2 * weight.numel())


@pytest.mark.parametrize("architecture", PROGRAMS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_every_architecture_takes_small_and_colour_images(trial_of, architecture, shape):
    for placement in PROGRAMS[architecture]:
        trial = trial_of(architecture, placement)
        network = build_network(trial, shape, 7, replicas=2)
        initialize(network, [trial, trial_of(architecture, placement, seed=1)])
        out = network(torch.randn(3, 2 * shape[0], *shape[1:]))
        assert out.shape == (3, 2, 7)
        assert out.isfinite().all()


@pytest.mark.parametrize("architecture", PROGRAMS)
@pytest.mark.parametrize("placement", ["before", "after", "none"])
def test_final_norm_stands_ahead_of_the_head_in_every_arm(trial_of, architecture, placement):
    network = build_network(trial_of(architecture, placement, final_norm=True), CIFAR, 10)
    ahead = [
        module
        for module in network.features
        if not isinstance(module, nn.AdaptiveAvgPool2d | nn.Flatten)
    ]
    assert isinstance(ahead[-1], nn.BatchNorm1d | nn.BatchNorm2d)


def test_width_factor_multiplies_channels(trial_of):
    halves = build_network(trial_of("resnet", width_factor=0.5), CIFAR, 10)
    assert [layer.weight.shape[0] for _, layer in halves.layers()] == [8, 8, 8, 16, 16, 32, 32, 10]
