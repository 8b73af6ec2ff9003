"""What a layer's output runs into, in networks that no placement of ours makes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.training.dataflow import follow_layers
from harness.training.networks import Network


class Odd(nn.Module):
    def __init__(self, compute, **modules):
        super().__init__()
        self.compute = compute
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x).mean((2, 3))


def reach_of(compute, **modules):
    """Of the conv in a network with two batch norms of as many channels."""
    modules = {
        "conv": nn.Conv2d(8, 8, 3, bias=False),
        "one": nn.BatchNorm2d(8),
        "two": nn.BatchNorm2d(8),
        "act": nn.ReLU(),
    } | modules
    network = Network(Odd(compute, **modules), nn.Linear(8, 3), replicas=1)
    return follow_layers(network)["features.conv"]


@pytest.mark.parametrize(
    ("compute", "is_shift_invariant", "is_scale_invariant"),
    [
        (lambda self, x: self.one(self.conv(x)), True, True),
        (lambda self, x: self.one(self.act(self.conv(x))), True, True),
        (lambda self, x: self.one(z := self.conv(x)) + self.two(z), True, False),
        (lambda self, x: self.one(z := self.conv(x)) + z, False, False),
        (lambda self, x: self.one(z := self.conv(x)) + self.two(torch.cat([z, z[:, :4]], 1)[:, :8]), False, False),
        (lambda self, x: self.one(z := self.conv(x)) + self.two(torch.cat([z, x], 2))[:, :, :6], False, False),
        (lambda self, x: self.one(self.conv(x)) * self.conv.weight.sum(), True, False),
        (lambda self, x: self.one(self.conv(x) * x.sigmoid().mean()), True, False),
    ],
)  # fmt: skip
def test_an_identity_is_claimed_only_of_what_the_norm_takes_away(
    compute, is_shift_invariant, is_scale_invariant
):
    reach = reach_of(compute)
    assert reach.norm == "features.one"
    assert reach.is_shift_invariant == is_shift_invariant
    assert reach.is_scale_invariant == is_scale_invariant


@pytest.mark.parametrize(("padding", "keeps"), [(0, True), (1, False)])
def test_an_average_that_counts_padded_zeros_keeps_no_constant(padding, keeps):
    def compute(self, x):
        z = self.conv(x)
        return self.one(z).mean() + self.two(self.pool(z))

    reach = reach_of(compute, pool=nn.AvgPool2d(3, 1, padding))
    assert reach.is_shift_invariant == keeps
