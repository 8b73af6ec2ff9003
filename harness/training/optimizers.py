"""SGD with Nesterov momentum or AdamW, decay of weights only, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.study.trials import Trial
from harness.training.networks import Network

ADAM_EPS = 1e-8


def make_optimizer(
    network: nn.Module, trial: Trial, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """The trial's optimizer, without weight decay on norms and biases, which have one dimension.

    If `capturable`, learning rate and averages are tensors on the device from the start: a recorded
    step would otherwise replay the Python number it was recorded with.

    Source:
        Nesterov momentum as Sutskever et al. 2013; AdamW as Loshchilov & Hutter 2019,
        arXiv:1711.05101, alg. 2; no decay of normalisation and biases as He et al. 2019,
        arXiv:1812.01187, s.3.1.
    """
    parameters = list(network.parameters())
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": trial.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    lr = torch.tensor(trial.lr, device=parameters[0].device) if capturable else trial.lr
    # Of each optimizer only the fused kernel reads its rate on the device.
    foreach, fused = not capturable, capturable
    if trial.optimizer == "adamw":
        averages = ["exp_avg", "exp_avg_sq"]
        optimizer = torch.optim.AdamW(
            groups,
            lr=lr,
            betas=(trial.beta1, trial.beta2),
            eps=ADAM_EPS,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )
    else:
        averages = ["momentum_buffer"] if trial.momentum > 0 else []
        optimizer = torch.optim.SGD(
            groups,
            lr=lr,
            momentum=trial.momentum,
            nesterov=trial.momentum > 0,
            foreach=foreach,
            fused=fused,
        )
    if capturable:  # zeros give the same first step as no averages
        for parameter in parameters:
            of_parameter = optimizer.state[parameter]
            of_parameter.update({name: torch.zeros_like(parameter) for name in averages})
            if trial.optimizer == "adamw":
                of_parameter["step"] = torch.zeros((), device=parameter.device)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step to `lr`, without waiting for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # in place: a recorded step reads it there
        else:
            group["lr"] = lr


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


@contextmanager
def grafted_updates(network: Network, donor: Network) -> Iterator[None]:
    """Rescale the step of `network` to the size of the donor's; take both inside the block.

    In each layer and replica the step keeps its direction, and its relative size ||dW|| / ||W||
    becomes the donor's. Where batch norm makes a weight's scale irrelevant, the magnitude of a
    gradient acts through that ratio alone; so two arms with one donor differ by the directions of
    their gradients, and one arm with two donors by the gradients' sizes.

    Limits: biases and a norm's scale and shift keep their own steps; the donor's sizes come
    from its own training path, not from this one.

    Source:
        Layer-wise grafting, Agarwal et al. 2020, arXiv:2002.11803, alg. 1; why the ratio is the
        effective learning rate: van Laarhoven 2017, arXiv:1706.05350, s.3.
    """
    ours = [layer.weight for _, layer in network.layers()]
    theirs = [layer.weight for _, layer in donor.layers()]
    ours_before = [weight.detach().clone() for weight in ours]
    theirs_before = [weight.detach().clone() for weight in theirs]
    yield
    with torch.no_grad():
        for weight, before, other, other_before in zip(
            ours, ours_before, theirs, theirs_before, strict=True
        ):
            step = weight - before
            size_R1 = _size(step, network.replicas) / _size(before, network.replicas)
            wanted_R1 = _size(other - other_before, donor.replicas) / _size(
                other_before, donor.replicas
            )
            # A tensor of zeros, because copying a Python number to the device would block.
            zero_R1 = torch.zeros_like(size_R1)
            scale_R1 = torch.where(size_R1 > 0, wanted_R1 / size_R1, zero_R1)
            scaled = step.unflatten(0, (network.replicas, -1)).flatten(1) * scale_R1
            weight.copy_(before + scaled.view_as(step))


def _size(weight: Tensor, replicas: int) -> Tensor:
    """L2 norm of each replica's rows, (R, 1)."""
    return weight.unflatten(0, (replicas, -1)).flatten(1).norm(dim=1, keepdim=True)
