"""SGD with Nesterov momentum, weight decay on weights only, warm-up and cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

from harness.trials import Trial


def make_optimizer(network: nn.Module, trial: Trial) -> torch.optim.SGD:
    """SGD whose weight decay leaves batch norm and biases alone: they are the one-dimensional ones.

    Source:
        Nesterov momentum as Sutskever et al. 2013; no decay of normalisation and biases as
        He et al. 2019, arXiv:1812.01187, s.3.1.
    """
    parameters = list(network.parameters())
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim == 1]
    return torch.optim.SGD(
        [{"params": weights, "weight_decay": trial.weight_decay}, {"params": others}],
        lr=trial.lr,
        momentum=trial.momentum,
        nesterov=trial.momentum > 0,
        foreach=True,
    )


def make_schedule(trial: Trial, steps_per_epoch: int) -> list[float]:
    """Learning rate of every step: linear warm-up to `trial.lr`, then a cosine to zero.

    Source:
        Warm-up: Goyal et al. 2017, arXiv:1706.02677, s.2.2. Cosine: Loshchilov & Hutter 2017,
        arXiv:1608.03983, eq. 5, one period.
    """
    steps = trial.epochs * steps_per_epoch
    warmup = min(round(trial.warmup_epochs * steps_per_epoch), steps)
    rising = [trial.lr * (step + 1) / warmup for step in range(warmup)]
    falling = [
        trial.lr * 0.5 * (1 + math.cos(math.pi * step / (steps - warmup)))
        for step in range(steps - warmup)
    ]
    return rising + falling
